"""Edits that read the alignment between two checkpoints, against dense formulas in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.methods.editing import OfflineProbe
from lowtax.methods.loading import load
from lowtax.methods.safe_lora import SafeLoRA, along
from lowtax.methods.sites import Site, Sites
from lowtax.methods.splora import SPLoRA

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
sizes = {"out": st.integers(1, 12), "inp": st.integers(1, 12), "rank": st.integers(1, 4), "seed": st.integers(0, 99)}


class Checkpoints(OfflineProbe):
    """A probe with other checkpoints in memory, by name."""

    def __init__(self, checkpoints: dict[str, dict[str, Tensor]]) -> None:
        self.checkpoints = checkpoints

    def weights(self, ref: str) -> dict[str, Tensor]:
        return self.checkpoints[ref]


def site(out: int = 12, inp: int = 8, rank: int = 2, seed: int = 0, name: str = "0") -> Site:
    g = torch.Generator().manual_seed(seed)
    W, A, B = (torch.randn(shape, generator=g) for shape in ((out, inp), (rank, inp), (out, rank)))
    return Site(name, W, A, B, 2.0)


def many(n: int, out: int = 12, inp: int = 8, kinds: tuple[str, ...] = ("up_proj",)) -> Sites:
    names = [f"layers.{i}.{kinds[i % len(kinds)]}" for i in range(n)]
    return {name: site(out, inp, seed=i, name=name) for i, name in enumerate(names)}


def aligned(sites: Sites, size: float = 1.0, rank: int | None = None) -> Checkpoints:
    """Return a probe with W + V as "aligned", V being random and of a rank, and with W as "same"."""
    g = torch.Generator().manual_seed(5)
    changed = {}
    for name, s in sites.items():
        out, inp = s.weight.shape
        r = rank or min(out, inp)
        changed[name] = s.weight + size * torch.randn(out, r, generator=g) @ torch.randn(r, inp, generator=g)
    return Checkpoints({"aligned": changed, "same": {name: s.weight for name, s in sites.items()}})


def run(method: Any, sites: Sites, probe: Checkpoints) -> tuple[dict[str, Any], dict[str, Factors]]:
    state = method.prepare(sites, probe)
    return state, method.edit(sites, state)


def dense(s: Site) -> Tensor:
    return s.scale * s.b.double() @ s.a.double()


def V(s: Site, probe: Checkpoints) -> Tensor:
    return probe.checkpoints["aligned"][s.name].double() - s.weight.double()


# --- safe_lora


@settings(deadline=None, max_examples=60, derandomize=True)
@given(**sizes)
def test_safe_lora_is_the_dense_formula(out: int, inp: int, rank: int, seed: int):
    sites = {"0": site(out, inp, rank, seed)}
    probe = aligned(sites)
    M, D = V(sites["0"], probe), dense(sites["0"])
    C = M @ M.T / M.norm()
    state, new = run(SafeLoRA(aligned="aligned"), sites, probe)
    torch.testing.assert_close(new["0"].dense().double(), C @ D, rtol=1e-3, atol=1e-3)
    cosine = (C @ D * D).sum() / ((C @ D).norm() * D.norm())
    assert state["0"]["score"] == pytest.approx(cosine.item(), abs=1e-4)
    assert -1e-6 <= state["0"]["score"] <= 1 + 1e-6
    assert state["0"]["kept"] == pytest.approx(((C @ D).norm() / D.norm()).item(), rel=1e-3, abs=1e-6)
    assert new["0"].rank == rank


@settings(deadline=None, max_examples=40, derandomize=True)
@given(**sizes)
def test_along_in_float64(out: int, inp: int, rank: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    M, b = torch.randn(out, inp, generator=g).double(), torch.randn(out, rank, generator=g).double()
    torch.testing.assert_close(along(M, b), M @ M.T / M.norm() @ b, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(along(3 * M, b), 3 * along(M, b), rtol=1e-10, atol=1e-12)
    u, v = M[:, :1], M[:1]
    expected = u @ (u.T @ b) * v.norm() / u.norm()
    torch.testing.assert_close(along(u @ v, b), expected, rtol=1e-10, atol=1e-12)


def test_of_a_rank_one_alignment_only_its_direction_is_left():
    sites = many(1)
    probe = aligned(sites, rank=1)
    (name,) = sites
    u = torch.linalg.svd(V(sites[name], probe)).U[:, :1]
    _, new = run(SafeLoRA(aligned="aligned"), sites, probe)
    b = new[name].b.double()
    torch.testing.assert_close(u @ (u.T @ b), b, **CLOSE)


def test_the_exact_projector_is_the_identity_on_square_weights_and_a_subspace_is_not():
    sites = many(1, 8, 8)
    probe = aligned(sites)
    (name,) = sites
    M, D = V(sites[name], probe), dense(sites[name])
    torch.testing.assert_close(M @ torch.linalg.inv(M.T @ M) @ M.T, torch.eye(8).double(), atol=1e-8, rtol=0)
    U = torch.linalg.svd(M).U[:, :3]
    _, new = run(SafeLoRA(aligned="aligned", projector="subspace", k=3), sites, probe)
    torch.testing.assert_close(new[name].dense().double(), U @ U.T @ D, **CLOSE)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(**sizes, directions=st.integers(1, 12))
def test_the_exact_projector_is_the_pseudo_inverse_formula(out: int, inp: int, rank: int, seed: int, directions: int):
    """V (V'V)^+ V' dW in float64, for a V of any shape and rank."""
    sites = {"0": site(out, inp, rank, seed)}
    probe = aligned(sites, rank=min(directions, out, inp))
    M, D = V(sites["0"], probe), dense(sites["0"])
    C = M @ torch.linalg.pinv(M.T @ M, rtol=1e-9) @ M.T
    if torch.linalg.cond(M) > 1e3 and min(directions, out, inp) == min(out, inp):
        return  # the projector of nearly dependent directions is not defined in float32
    state, new = run(SafeLoRA(aligned="aligned", projector="exact"), sites, probe)
    torch.testing.assert_close(new["0"].dense().double(), C @ D, rtol=2e-3, atol=2e-3)
    assert state["0"]["kept"] <= 1 + 1e-5


def whole(sites: Sites) -> tuple[Sites, Checkpoints]:
    """The same updates in whole weights: sites of rank 0 on W + dW, and W + V, W and W + dW as checkpoints."""
    probe = aligned(sites)
    tuned = {name: s.weight + s.delta() for name, s in sites.items()}
    probe.checkpoints["tuned"] = tuned
    empty = {name: (W.new_zeros(0, W.shape[1]), W.new_zeros(W.shape[0], 0)) for name, W in tuned.items()}
    return {name: Site(name, W, *empty[name], 1.0) for name, W in tuned.items()}, probe


@pytest.mark.parametrize("projector", ["fast", "subspace", "exact"])
@pytest.mark.parametrize(("out", "inp"), [(12, 8), (8, 12)])
def test_whole_weights_get_the_dense_formula(out: int, inp: int, projector: str):
    """W_before + C (W - W_before) in float64 at the sites with the lowest scores, and the scores of LoRA's form."""
    adapters = many(4, out, inp)
    sites, probe = whole(adapters)
    how = {"aligned": "aligned", "projector": projector, "k": 3, "number": 2}
    if projector == "exact" and out < inp:
        with pytest.raises(UserError, match="the exact projector is the identity on all 2 selected modules"):
            run(SafeLoRA(**how, unaligned="same", before="same"), sites, probe)
        return
    state, new = run(SafeLoRA(**how, unaligned="same", before="same"), sites, probe)
    of_lora, _ = run(SafeLoRA(**how), adapters, probe)
    ordered = sorted(adapters, key=lambda name: of_lora[name]["score"])
    assert set(new) == set(ordered[:2])
    for name in adapters:
        assert state[name]["score"] == pytest.approx(of_lora[name]["score"], abs=1e-4)
        assert state[name]["kept"] == pytest.approx(of_lora[name]["kept"], rel=1e-3)
    for name, update in new.items():
        M, D = V(adapters[name], probe), dense(adapters[name])
        U = torch.linalg.svd(M, full_matrices=False).U[:, : 3 if projector == "subspace" else None]
        C = M @ M.T / M.norm() if projector == "fast" else U @ U.T
        expected = adapters[name].weight.double() + C @ D
        torch.testing.assert_close(sites[name].weight.double() + update.dense(), expected, rtol=1e-4, atol=1e-4)


def test_whole_weights_are_tuned_from_the_aligned_model_by_default_and_need_both():
    sites, probe = whole(many(3))
    probe.checkpoints["other"] = {name: W + 1 for name, W in probe.checkpoints["same"].items()}
    (_, one), (_, two) = (
        run(SafeLoRA(aligned="aligned", unaligned="same", before=before), sites, probe) for before in (None, "aligned")
    )
    assert all(torch.equal(one[name].dense(), two[name].dense()) for name in sites)
    with pytest.raises(UserError, match="a whole model needs unaligned"):
        run(SafeLoRA(aligned="aligned"), sites, probe)
    with pytest.raises(UserError, match="before is for a model that was fine-tuned in full"):
        run(SafeLoRA(aligned="aligned", before="same"), many(3), probe)


def test_scores_do_not_depend_on_the_size_of_the_alignment_and_what_is_kept_does():
    sites = many(4)
    small, large = (run(SafeLoRA(aligned="aligned"), sites, aligned(sites, size))[0] for size in (1.0, 3.0))
    for name in sites:
        assert large[name]["score"] == pytest.approx(small[name]["score"], abs=1e-4)
        assert large[name]["kept"] == pytest.approx(3 * small[name]["kept"], rel=1e-3)


def test_what_safe_lora_selects():
    sites = many(6)
    probe = aligned(sites)
    state, lowest = run(SafeLoRA(aligned="aligned", number=2), sites, probe)
    ordered = sorted(sites, key=lambda name: state[name]["score"])
    assert set(lowest) == set(ordered[:2])
    middle = (state[ordered[2]]["score"] + state[ordered[3]]["score"]) / 2
    _, below = run(SafeLoRA(aligned="aligned", select="threshold", threshold=middle), sites, probe)
    assert set(below) == set(ordered[:3])
    twins = {"a": site(name="a"), "b": site(name="b")}
    probe = aligned(twins)
    probe.checkpoints["aligned"]["b"] = probe.checkpoints["aligned"]["a"].clone()
    for published, n in ((False, 1), (True, 2)):
        assert len(run(SafeLoRA(aligned="aligned", number=1, as_published=published), twins, probe)[1]) == n


def test_sites_without_an_alignment_are_left_alone_and_a_pair_without_one_is_refused():
    sites = many(2)
    probe = aligned(sites)
    first, second = sites
    probe.checkpoints["aligned"][first] = sites[first].weight
    for method in (SafeLoRA(aligned="aligned"), SPLoRA(aligned="aligned")):
        assert set(run(method, sites, probe)[1]) == {second}
        with pytest.raises(UserError, match="same weights at every site"):
            run(method.model_copy(update={"aligned": "same"}), sites, probe)
    with pytest.raises(UserError, match="one checkpoint"):
        run(SafeLoRA(aligned="same", unaligned="same"), sites, probe)
    probe.checkpoints["aligned"][second] = torch.zeros(3, 3)
    with pytest.raises(UserError, match="a different shape"):
        run(SafeLoRA(aligned="aligned"), sites, probe)


def test_both_checkpoints_may_be_others_and_their_order_does_not_matter():
    sites = many(3)
    probe = aligned(sites)
    probe.checkpoints["other"] = {name: 2 * s.weight for name, s in sites.items()}
    one, two = (
        run(SafeLoRA(aligned=a, unaligned=b), sites, probe)[1] for a, b in (("aligned", "other"), ("other", "aligned"))
    )
    M = probe.checkpoints["aligned"]["layers.0.up_proj"].double() - 2 * sites["layers.0.up_proj"].weight.double()
    D = dense(sites["layers.0.up_proj"])
    torch.testing.assert_close(one["layers.0.up_proj"].dense().double(), M @ M.T / M.norm() @ D, rtol=1e-3, atol=1e-3)
    for name in sites:
        torch.testing.assert_close(one[name].dense(), two[name].dense())


# --- splora


@pytest.mark.parametrize("relative", [True, False])
def test_splora_compares_distances_within_modules_of_one_name(relative: bool):
    sites = many(10, kinds=("up_proj", "down_proj"))
    probe = aligned(sites, 0.1)
    state, new = run(SPLoRA(aligned="aligned", number=3, relative=relative), sites, probe)
    expected = {}
    for kind in ("up_proj", "down_proj"):
        distances = {}
        for name, s in sites.items():
            if name.endswith(kind):
                M, D = V(s, probe), dense(s)
                distances[name] = ((M @ M.T / M.norm() @ D - D).norm() / (D.norm() if relative else 1)).item()
        low, middle, high = np.percentile([*distances.values()], [25, 50, 75])
        expected |= {name: (d - middle) / (high - low) for name, d in distances.items()}
    for name in sites:
        assert state[name]["score"] == pytest.approx(expected[name], abs=1e-3)
    assert set(new) == set(sorted(sites, key=expected.__getitem__)[-3:])
    assert all(x.dense().abs().sum() == 0 for x in new.values())
    _, above = run(SPLoRA(aligned="aligned", select="threshold", threshold=0.5, relative=relative), sites, probe)
    assert set(above) == {name for name in sites if expected[name] > 0.5}


def test_splora_as_published_prunes_almost_everything_by_a_score_without_distance():
    sites = many(8)
    probe = aligned(sites)
    state, new = run(SPLoRA(aligned="aligned", number=3, as_published=True), sites, probe)
    assert len(new) == len(sites) - 3 + 1
    for name, s in sites.items():
        M, D = V(s, probe).float(), dense(s).float()
        one = (M @ M.T / M.norm()) @ D
        d = torch.norm(one - D)
        shift = float(np.percentile(one, 25) - np.percentile(D, 25))
        rounding = state[name]["distance"] + shift
        assert abs(rounding) <= 4 * torch.finfo(torch.float32).eps * float(d) / 1e-6 + 2


def published_splora(W: Tensor, b: Tensor, a: Tensor) -> float:
    """The score of the published code, in its operations and float32; W is the difference of the checkpoints."""
    one, two = ((W @ W.t() / torch.norm(W)) @ b) @ a, b @ a
    distances = torch.tensor([torch.norm(one - two) for _ in range(50)])
    low, high, other = torch.quantile(one, 0.25), torch.quantile(one, 0.75), torch.quantile(two, 0.25)
    spread = torch.quantile(distances, 0.75) - torch.quantile(distances, 0.25) + 1e-6
    d = (torch.norm(one - two) + 1e-6 - torch.mean(distances)) / spread
    return (((d - (low - other)) / ((high - low) - (low - other))) * ((high - low) - (low - other))).item()


def test_splora_as_published_prunes_what_the_code_prunes():
    for size in (0.1, 1.0, 3.0):
        sites = many(12, 40, 24)
        probe = aligned(sites, size)
        state, new = run(SPLoRA(aligned="aligned", number=4, as_published=True), sites, probe)
        V = {name: probe.weights("aligned")[name] - s.weight for name, s in sites.items()}
        theirs = {name: published_splora(V[name], s.b, s.a) for name, s in sites.items()}
        assert {name: scores["score"] for name, scores in state.items()} == theirs
        most = np.sort(list(theirs.values()))[::-1][:4][-1]
        assert set(new) == {name for name, score in theirs.items() if score <= most}


def test_specifications_that_are_refused():
    for spec, message in (
        ({"name": "safe_lora"}, "needs a value for 'aligned'"),
        ({"name": "splora", "aligned": "x", "number": 0}, "number"),
    ):
        with pytest.raises(UserError, match=message):
            load(spec)
