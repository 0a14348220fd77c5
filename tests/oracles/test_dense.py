"""What must hold of the methods for every shape: wide and tall, rank one, deficient factors, a zero update.

Factored formulas against whole matrices in float64, bounds that no update breaks, and PEFT's own code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from progress import progress_to
from random_adapters import base as base  # fixtures
from random_adapters import make as make
from torch import Tensor

from lowtax.common.linalg import Factors, top_singular
from lowtax.methods.editing import edit
from lowtax.methods.intruders import Intruders
from lowtax.methods.lox import LoX
from lowtax.methods.orthogonal import Orthogonal
from lowtax.methods.s3lora import S3LoRA
from lowtax.methods.safe_lora import SafeLoRA, along
from lowtax.methods.sites import Site, Sites
from lowtax.methods.splora import SPLoRA
from lowtax.models import loading
from lowtax.models.adapters import read_adapter

KINDS = ("full", "deficient", "zero")
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
EXACT = {"rtol": 1e-10, "atol": 1e-10}
many = settings(deadline=None, max_examples=40, derandomize=True)
shapes = {
    "out": st.integers(1, 12),
    "inp": st.integers(1, 12),
    "rank": st.integers(1, 4),
    "kind": st.sampled_from(KINDS),
    "seed": st.integers(0, 99),
}


@dataclass
class Checkpoints:
    """A probe that knows one other checkpoint."""

    known: dict[str, Tensor]

    def weights(self, model: str) -> dict[str, Tensor]:
        return self.known


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def site(out: int, inp: int, rank: int, kind: str, seed: int = 0, scale: float = 2.0, name: str = "0") -> Site:
    """In float64: random factors, all rows of A equal, or B = 0."""
    W, A, B = normal(out, inp, seed=seed), normal(rank, inp, seed=seed + 1), normal(out, rank, seed=seed + 2)
    if kind == "deficient":
        A = A[:1].repeat(rank, 1)
    return Site(name, W, A, B * (kind != "zero"), scale)


def single(s: Site) -> Site:
    """The same in float32, as methods get it."""
    return Site(s.name, s.weight.float(), s.a.float(), s.b.float(), s.scale)


def dense(s: Site) -> Tensor:
    return s.scale * s.b.double() @ s.a.double()


def cut(W: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return U[:, :k], S[:k], Vh[:k].T


def edited(method: Any, sites: Sites, probe: Any = None) -> tuple[dict[str, Any], dict[str, Factors]]:
    state = method.prepare(sites, probe)
    return state, method.edit(sites, state)


# --- the regularisers


@many
@given(**shapes, k=st.integers(1, 14))
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_penalties_are_the_dense_formulas_and_keep_their_bounds(weighted, relative, out, inp, rank, kind, seed, k):
    s = site(out, inp, rank, kind, seed)
    U, S, V = cut(s.weight, k)
    strengths = S if weighted else torch.ones_like(S)
    strengths = strengths / strengths.norm() if weighted and relative else strengths
    D, left, right = dense(s), (U * strengths).T, V * strengths
    total = D.square().sum() + 1e-8 if relative else 1.0
    wanted = {
        side: (part.square().sum() / total).item()
        for side, part in (("left", left @ D), ("right", D @ right), ("both", left @ D @ right))
    }
    for side, value in wanted.items():
        method = Orthogonal(beta=1, k=k, side=side, weighted=weighted, relative=relative)
        span = {name: M for name, M in (("left", left), ("right", right)) if side in (name, "both")}
        assert method.penalty({"0": s}, {"0": span}).item() == pytest.approx(value, rel=1e-10, abs=1e-10)
        found = method.prepare({"0": s}, None)["0"]
        assert found.keys() == span.keys()
        for name, M in span.items():  # of which signs are arbitrary, and their products not
            one, other = (X.T @ X if name == "left" else X @ X.T for X in (found[name].double(), M))
            torch.testing.assert_close(one, other, **CLOSE)
        if kind == "zero":
            assert value == 0
    if relative:
        most = float((S[0] / S.norm()) ** 2) if weighted else 1.0
        assert max(wanted["left"], wanted["right"]) <= most + 1e-9
        assert wanted["both"] <= most * min(wanted["left"], wanted["right"]) + 1e-9


@many
@given(**shapes)
def test_all_directions_of_the_smaller_side_hold_the_whole_update(out, inp, rank, kind, seed):
    s, side = single(site(out, inp, rank, kind, seed)), "left" if out <= inp else "right"
    method = Orthogonal(beta=1, k=min(out, inp), side=side, weighted=False, relative=True)
    value = float(method.penalty({"0": s}, method.prepare({"0": s}, None)))
    total = dense(s).square().sum().item()
    assert value == pytest.approx(total / (total + 1e-8), abs=1e-5)


# --- an alignment between two checkpoints


def pair(sites: Sites, rank: int, seed: int = 7) -> tuple[Checkpoints, dict[str, Tensor]]:
    """W + V in float32, V of a rank, and the V that is between the two when they are rounded."""
    shapes = {name: s.weight.shape for name, s in sites.items()}
    moved = {
        name: (sites[name].weight.double() + normal(m, rank, seed=seed) @ normal(rank, n, seed=seed + 1)).float()
        for name, (m, n) in shapes.items()
    }
    return Checkpoints(moved), {name: moved[name].double() - s.weight.double() for name, s in sites.items()}


@many
@given(**shapes, of=st.integers(1, 12), k=st.integers(1, 12))
def test_edits_by_an_alignment_over_kinds_of_updates(out, inp, rank, kind, seed, of, k):
    one, two = site(out, inp, rank, kind, seed), site(out, inp, rank, "full", seed + 5, name="1")
    sites = {"0": single(one), "1": single(two)}
    of = min(of, out, inp)
    probe, V = pair(sites, of)
    k = min(k, of)
    for projector in ("fast", "subspace"):
        state, new = edited(SafeLoRA(aligned="x", projector=projector, k=k), sites, probe)
        assert set(new) == ({"1"} if kind == "zero" else {"0", "1"})  # a zero update has no direction
        for name, x in new.items():
            M, D = V[name], dense(sites[name])
            U = cut(M, k)[0]
            wanted = (M @ M.T / M.norm() if projector == "fast" else U @ U.T) @ D
            torch.testing.assert_close(x.dense().double(), wanted, rtol=1e-3, atol=1e-3 * float(1 + M.norm()))
            assert -1e-6 <= state[name]["score"] <= 1 + 1e-6
            assert x.rank == rank
    found = SPLoRA(aligned="x").prepare(sites, probe)
    assert found["0"].keys() == (set() if kind == "zero" else {"distance", "score"})
    for name in ("0", "1") if kind != "zero" else ("1",):
        M, D = V[name], dense(sites[name])
        wanted = (M @ M.T / M.norm() @ D - D).norm().item()
        assert found[name]["distance"] == pytest.approx(wanted, rel=1e-3, abs=1e-3)


@many
@given(**shapes, k=st.integers(1, 12))
def test_the_subspace_projector_is_one_and_does_not_see_the_size_of_the_alignment(out, inp, rank, kind, seed, k):
    V, b = normal(out, inp, seed=seed), site(out, inp, rank, kind, seed).b
    once = along(V, b, k)
    U = cut(V, k)[0]
    torch.testing.assert_close(once, U @ U.T @ b, **CLOSE)
    torch.testing.assert_close(along(V, once, k), once, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(along(3 * V, b, k), once, **CLOSE)


def test_an_alignment_that_changes_nothing_has_distance_zero_and_as_published_no_score():
    """V = 2 I of four rows: C = V V' / ||V|| is the identity, in floating point too."""
    same, other = "0.up_proj", "1.up_proj"
    sites = {name: single(site(4, 4, 2, "full", i, name=name)) for i, name in enumerate((same, other))}
    sites[same].weight.round_()  # so that the difference is exact
    known = {same: sites[same].weight + 2 * torch.eye(4), other: sites[other].weight.flip(0)}
    for published in (False, True):
        state, new = edited(SPLoRA(aligned="x", number=2, as_published=published), sites, Checkpoints(known))
        assert set(new) == ({other} if published else {same, other})
        assert state[same].get("distance") == (None if published else 0)


@many
@given(**shapes, of=st.integers(1, 12), k=st.integers(1, 8), coef=st.sampled_from([0.0, 1.25, -0.5]))
def test_extrapolation_of_a_pair_and_its_share(out, inp, rank, kind, seed, of, k, coef):
    sites = {"0": single(site(out, inp, rank, kind, seed))}
    of = min(of, out, inp)
    probe, V = pair(sites, of)
    D, U = V["0"], cut(V["0"], k)[0]
    torch.testing.assert_close(U @ U.T @ D, U * cut(D, k)[1] @ cut(D, k)[2].T, **EXACT)
    state, new = edited(LoX(k=k, coef=coef, aligned="x"), sites, probe)
    wanted = dense(sites["0"]) + coef * U @ U.T @ D
    torch.testing.assert_close(new["0"].dense().double(), wanted, **CLOSE)
    share = state["0"]["share"]
    assert share == pytest.approx((cut(D, k)[1].norm() / D.norm()).item(), rel=1e-4)
    assert share <= 1 + 1e-6
    if k >= of:
        assert share == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(new["0"].dense().double(), dense(sites["0"]) + coef * D, **CLOSE)


# --- the adapter alone


@many
@given(**{**shapes, "rank": st.integers(2, 4)})
def test_a_spectrum_s_concentration_is_that_of_the_dense_update(out, inp, rank, kind, seed):
    s = single(site(out, inp, rank, kind, seed))
    S = torch.linalg.svdvals(dense(s))
    score = S3LoRA().prepare({"0": s}, None)["0"]["score"]
    if kind == "zero":
        assert score == 0
        return
    assert score == pytest.approx((S[0] / S.sum()).item(), rel=1e-4)
    assert 1 / min(rank, out, inp) - 1e-6 <= score <= 1 + 1e-6
    if kind == "deficient":
        assert score == pytest.approx(1, abs=1e-5)


@many
@given(**shapes, k=st.integers(1, 6), size=st.sampled_from([0.01, 1.0, 30.0]))
def test_no_direction_of_a_wide_weight_is_further_from_all_of_its_own_than_a_cube_s_diagonal(
    out, inp, rank, kind, seed, k, size
):
    """max_i |<u, u0_i>| >= 1 / sqrt(m) where the u0 span all m outputs: below that nothing is an intruder."""
    out, inp = sorted((out, inp))
    s = single(site(out, inp, rank, kind, seed, scale=size))
    state, new = edited(Intruders(k=k, threshold=0.999 / out**0.5, keep=0), {"0": s})
    assert (state["0"]["intruders"], new) == (0, {})


@many
@given(**shapes, keep=st.sampled_from([0.0, 0.75, 1.0]))
def test_intruders_over_kinds_of_updates(out, inp, rank, kind, seed, keep):
    s = single(site(out, inp, rank, kind, seed))
    method = Intruders(k=6, threshold=0.7, keep=keep)
    state, new = edited(method, {"0": s})
    U0, (U, S, V) = cut(s.weight, 99)[0], cut(s.weight.double() + dense(s), 6)
    found = (U0.T @ U).abs().amax(dim=0) < 0.7
    if out <= inp or kind != "zero":
        assert state["0"]["intruders"] == int(found.sum())
    if kind == "zero":
        assert state["0"]["intruders"] == 0
    wanted = dense(s) + (keep - 1) * (U * S * found) @ V.T
    x = new.get("0", s.factors())
    torch.testing.assert_close(x.dense().double(), wanted, **CLOSE)
    if keep == 1:
        torch.testing.assert_close(x.dense().double(), dense(s), **CLOSE)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (40, 40)])
def test_a_strong_update_away_from_the_top_becomes_the_first_direction_and_is_taken_out(shape: tuple[int, int]):
    """W + c x y', x orthogonal to W's first ten: the first left singular vector is x to within s_1 / c."""
    W, x, y = normal(*shape, seed=0), normal(shape[0], 1, seed=1), normal(1, shape[1], seed=2)
    U, S, _ = cut(W, 10)
    x = x - U @ (U.T @ x)
    x, y, times = x / x.norm(), y / y.norm(), 50
    s = single(Site("0", W, y, times * S[0] * x, 1.0))
    first = top_singular(s.weight, 1, plus=s.factors())[0][:, 0].double()
    assert 1 - (first @ x).abs().item() < 2 / times**2
    state, new = edited(Intruders(k=1, threshold=0.99, keep=0), {"0": s})
    assert state["0"]["intruders"] == 1
    left = s.weight.double() + new["0"].dense().double()
    assert (first @ left).norm() < 1e-4 * S[0]  # nothing is left along it, W's own part neither
    assert torch.linalg.svdvals(left)[0] <= S[0] * (1 + 1e-5)


def test_intruders_as_published_are_pefts_own(base: str, make: Any, tmp_path: Path):
    peft = pytest.importorskip("peft.tuners.lora.intruders", reason="this PEFT has no such function")
    adapter = make(rank=3, modules=["up_proj", "down_proj", "q_proj"], alpha=12)
    model, said = PeftModel.from_pretrained(loading.load_model(base), str(adapter)), list[str]()
    with torch.no_grad():
        peft.reduce_intruder_dimension(
            model, "default", "less", top_k=4, threshold_epsilon=0.6, mitigation_lambda=0.3, logging_sink=said.append
        )
    assert {text.rpartition(": ")[2] == "No intruders" for text in said[:-1]} == {True, False}
    spec = {"name": "intruders", "k": 4, "threshold": 0.6, "keep": 0.3, "as_published": True}
    with progress_to(said.append):
        new = read_adapter(edit(spec, adapter, tmp_path / "new").folder).factors
    for name, x in new.items():
        theirs = model.get_submodule(f"base_model.model.{name}").get_delta_weight("less").detach()
        torch.testing.assert_close(x.dense(), theirs, rtol=1e-3, atol=1e-4, msg=name)
