"""Edits that read the adapter and its base alone, against dense formulas in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import overlap, top_singular
from lowtax.methods.base import Edit
from lowtax.methods.editing import OfflineProbe
from lowtax.methods.intruders import Intruders, nearest
from lowtax.methods.loading import load
from lowtax.methods.project import Project
from lowtax.methods.s3lora import S3LoRA
from lowtax.methods.scale import Scale
from lowtax.methods.sites import Site

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
sizes = {"out": st.integers(1, 12), "inp": st.integers(1, 12), "rank": st.integers(1, 4), "seed": st.integers(0, 99)}


def site(out: int = 12, inp: int = 8, rank: int = 2, seed: int = 0, scale: float = 2.0) -> Site:
    g = torch.Generator().manual_seed(seed)
    W, A, B = (torch.randn(shape, generator=g) for shape in ((out, inp), (rank, inp), (out, rank)))
    return Site("layer.up_proj", W, A, B, scale)


def edited(method: Edit, *sites: Site) -> list[Tensor]:
    """Return the new dW of each site, dense in float64; the old one if the method does not change it."""
    named = {str(i): one for i, one in enumerate(sites)}
    new = method.edit(named, method.prepare(named, OfflineProbe()))
    return [(new[name] if name in new else one.factors()).dense().double() for name, one in named.items()]


def dense(s: Site) -> Tensor:
    return s.scale * s.b.double() @ s.a.double()


def directions(s: Site, k: int) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(s.weight.double(), full_matrices=False)
    return U[:, :k], S[:k], Vh[:k].T


# --- project


@settings(deadline=None, max_examples=60, derandomize=True)
@given(**sizes, k=st.integers(0, 14), t=st.sampled_from([0.0, 0.3, 1.0]), zero=st.booleans(), flat=st.booleans())
@pytest.mark.parametrize("side", ["left", "right", "both", "block"])
def test_project_is_the_dense_formula(
    side: str, out: int, inp: int, rank: int, seed: int, k: int, t: float, zero, flat
):
    s = site(out, inp, rank, seed)
    s.b.mul_(not zero)
    if flat:
        s.a[:] = s.a[0].clone()  # rank-deficient
    U, _, V = directions(s, k)
    P, Q, D = t * U @ U.T, t * V @ V.T, dense(s)
    one, other = torch.eye(out).double(), torch.eye(inp).double()
    expected = {
        "left": (one - P) @ D,
        "right": D @ (other - Q),
        "both": (one - P) @ D @ (other - Q),
        "block": D - t * (U @ U.T) @ D @ (V @ V.T),
    }[side]
    (new,) = edited(Project(k=k, side=side, strength=t), s)
    torch.testing.assert_close(new, expected, **CLOSE)
    assert new.norm() <= D.norm() * (1 + 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ridge_minimises_its_objective(side: str):
    s, ridge = site(7, 9, 3), 0.2
    U, S, V = directions(s, 4)
    (new,) = edited(Project(k=4, side=side, ridge=ridge), s)
    X = new.clone().requires_grad_()
    inside = S[:, None] * (U.T @ X) if side == "left" else X @ V * S
    ((X - dense(s)).square().sum() + ridge * inside.square().sum()).backward()
    assert X.grad.abs().max() < 1e-4 * new.norm()


def test_a_hard_projection_leaves_no_overlap_is_idempotent_and_can_keep_the_norm():
    s = site(30, 20, 3)
    spans = top_singular(s.weight, 5)
    for side in ("left", "right", "both", "block"):
        named = {"0": s}
        project, with_norm = Project(k=5, side=side), Project(k=5, side=side, keep_norm=True)
        state = project.prepare(named, OfflineProbe())
        new = project.edit(named, state)["0"]
        removed = 1 - (new.dense().norm() / dense(s).norm()).square().item()
        assert state["0"]["share"] == pytest.approx(removed, rel=1e-4)
        after = overlap(new, spans[0], spans[2])
        assert after["both" if side == "block" else side] < 1e-10
        again = Site("0", s.weight, new.a, new.b, 1.0)
        torch.testing.assert_close(edited(project, again)[0], new.dense().double(), **CLOSE)
        (same_norm,) = edited(with_norm, s)
        assert same_norm.norm() == pytest.approx(dense(s).norm().item(), rel=1e-5)
        torch.testing.assert_close(same_norm / same_norm.norm(), new.dense().double() / new.dense().norm(), **CLOSE)


def test_a_block_grows_the_rank_by_the_smaller_of_two():
    for k, rank, expected in ((1, 3, 4), (6, 2, 4)):
        s = site(30, 20, rank)
        named = {"0": s}
        project = Project(k=k, side="block")
        assert project.edit(named, project.prepare(named, OfflineProbe()))["0"].rank == expected


def test_ridge_is_for_one_side():
    for wrong in ({"side": "block"}, {"strength": 0.5}):
        with pytest.raises(UserError, match="ridge replaces strength"):
            load({"name": "project", "ridge": 0.1, **wrong})


# --- intruders


def merged(W: Tensor, D: Tensor, k: int, threshold: float, keep: float) -> tuple[Tensor, int]:
    """Return the new dW of the published algorithm with full decompositions, and the number of its intruders."""
    U0 = torch.linalg.svd(W, full_matrices=False).U
    U, S, Vh = torch.linalg.svd(W + D, full_matrices=False)
    intruders = [j for j in range(min(k, len(S))) if (U0.T @ U[:, j]).abs().max() < threshold]
    removed = sum((S[j] * torch.outer(U[:, j], Vh[j]) for j in intruders), start=torch.zeros_like(D))
    return D + (keep - 1) * removed, len(intruders)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(**sizes, k=st.integers(1, 6), keep=st.sampled_from([0.0, 0.75, 1.0, 1.5]), size=st.sampled_from([0.01, 3.0]))
def test_intruders_are_those_of_whole_decompositions(out, inp, rank, seed, k, keep, size):
    s = site(out, inp, rank, seed, scale=size)
    expected, n = merged(s.weight.double(), dense(s), k, 0.7, keep)
    method = Intruders(k=k, threshold=0.7, keep=keep)
    state = method.prepare({"0": s}, OfflineProbe())
    assert state["0"]["intruders"] == n
    torch.testing.assert_close(edited(method, s)[0], expected, rtol=1e-3, atol=1e-3)


def test_a_planted_intruder_is_found_and_taken_out_of_a_large_weight():
    g = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 120, generator=g)).Q for n in (400, 300))
    W = (U * torch.linspace(10, 0.1, 120)) @ V.T
    x = torch.randn(400, 1, generator=g)
    x = x - U @ (U.T @ x)
    s = Site("0", W, torch.randn(1, 300, generator=g) / 17, 40 * x / x.norm(), 1.0)
    assert Intruders().prepare({"0": Site("0", W, s.a, 0 * s.b, 1.0)}, OfflineProbe())["0"]["intruders"] == 0
    state = Intruders(keep=0).prepare({"0": s}, OfflineProbe())
    assert state["0"]["intruders"] == 1
    assert edited(Intruders(keep=1), s)[0].allclose(dense(s), atol=1e-4)
    new = edited(Intruders(keep=0), s)[0]
    assert (
        Intruders().prepare({"0": Site("0", W + new.float(), s.a, 0 * s.b, 1.0)}, OfflineProbe())["0"]["intruders"] == 0
    )
    assert (W.double() + new).norm() < (W.double() + dense(s)).norm()


def test_the_rank_grows_unless_as_published_which_reports_what_that_loses():
    s = site(12, 9, 1, scale=6.0)
    exact, short = (Intruders(threshold=0.9, keep=0, as_published=published) for published in (False, True))
    one, two = exact.prepare({"0": s}, OfflineProbe())["0"], short.prepare({"0": s}, OfflineProbe())["0"]
    assert one["a"].shape[0] == 1 + one["intruders"] > 1 == two["a"].shape[0]
    assert one["lost"] < 1e-6
    whole, truncated = edited(exact, s)[0], edited(short, s)[0]
    assert two["lost"] == pytest.approx(((whole - truncated).norm() / whole.norm()).item(), rel=1e-4)
    assert torch.linalg.svdvals(whole)[0] == pytest.approx(truncated.norm().item(), rel=1e-4)  # the nearest of rank 1


def test_the_nearest_direction_needs_a_full_decomposition_only_in_doubt():
    g = torch.Generator().manual_seed(1)
    W = torch.randn(300, 200, generator=g)
    U = torch.linalg.qr(torch.randn(300, 2, generator=g)).Q
    U[:, 0] = torch.linalg.svd(W).U[:, 150]  # a weak direction, which only the full decomposition has
    exact = (torch.linalg.svd(W, full_matrices=False).U.T @ U).abs().amax(dim=0)
    torch.testing.assert_close(nearest(W, U, 0.5), exact, atol=1e-4, rtol=1e-4)
    assert exact[0] > 0.99 > 0.5 > exact[1]


# --- s3lora


def with_spectrum(values: list[float], name: str = "0", seed: int = 0) -> Site:
    g = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(n, len(values), generator=g)).Q for n in (8, 12))
    return Site(name, torch.zeros(8, 12), V.T.contiguous(), U * torch.tensor(values), 1.0)


def test_s3lora_removes_the_most_concentrated_whatever_their_size():
    flat, peaked, small = with_spectrum([9, 9, 9]), with_spectrum([5, 1, 1]), with_spectrum([0.05, 0.001, 0.001])
    method = S3LoRA(number=2)
    named = {"flat": flat, "peaked": peaked, "small": small}
    state = method.prepare(named, OfflineProbe())
    assert {name: round(figures["score"], 4) for name, figures in state.items()} == {
        "flat": 0.3333,
        "peaked": 0.7143,
        "small": 0.9615,
    }
    new = method.edit(named, state)
    assert set(new) == {"peaked", "small"}
    assert all(x.dense().abs().sum() == 0 and x.rank == 3 for x in new.values())


@pytest.mark.parametrize("by", ["rows", "columns"])
def test_s3lora_normalised_is_the_spectrum_of_the_dense_normalised_matrix(by: str):
    s = site(7, 9, 3)
    D = dense(s)
    S = torch.linalg.svdvals(D / D.norm(dim=1 if by == "rows" else 0, keepdim=True))
    state = S3LoRA(normalised=by).prepare({"0": s}, OfflineProbe())
    assert state["0"]["score"] == pytest.approx((S[0] / S.sum()).item(), rel=1e-4)


def test_s3lora_of_equal_scores_removes_the_larger_and_refuses_rank_one():
    one, two = with_spectrum([2.002, 1.001]), with_spectrum([4, 2], seed=1)
    method = S3LoRA(number=1)
    for named in ({"one": one, "two": two}, {"two": two, "one": one}):
        assert set(method.edit(named, method.prepare(named, OfflineProbe()))) == {"two"}
    with pytest.raises(UserError, match=r"rank 1 \(layer\.up_proj\)"):
        S3LoRA().prepare({"layer.up_proj": site(rank=1)}, OfflineProbe())


def test_s3lora_as_published_measures_size_and_not_concentration():
    s = site(6, 9, 3)
    scores = [
        S3LoRA(as_published=True).prepare({"0": Site("0", s.weight, s.a, c * s.b, 1.0)}, OfflineProbe())["0"]["score"]
        for c in (1e-6, 1e-3, 1.0)
    ]
    assert scores[0] < 0.1 < 0.5 < scores[1] < 0.99 < scores[2] <= 1
    proper = [
        S3LoRA().prepare({"0": Site("0", s.weight, s.a, c * s.b, 1.0)}, OfflineProbe())["0"]["score"]
        for c in (1e-3, 1.0)
    ]
    assert proper[0] == pytest.approx(proper[1])
    with pytest.raises(UserError, match=r"more outputs than inputs"):
        S3LoRA(as_published=True).prepare({"0": site(9, 6, 3)}, OfflineProbe())


def published_s3lora(s: Site) -> float:
    """The score of the published code, in its operations and float32."""
    X = s.b @ s.a
    by_row, by_column = X.norm(dim=1, keepdim=True) + 1e-8, X.norm(dim=0, keepdim=True) + 1e-8
    V, U = torch.linalg.svd(X / by_row, full_matrices=False)[2], torch.linalg.svd(X / by_column, full_matrices=False)[0]
    best, least = torch.zeros_like(X), float("inf")
    for u in U[:5]:
        for v in V[:5]:
            near = torch.median((X @ v) * u) * torch.ger(u, v)
            if (error := torch.norm(X - near, p=1)) < least:
                best, least = near, error
    S = torch.linalg.svd(by_row * best, full_matrices=False)[1].numpy()
    return float(S[0] / (S.sum() + 1e-6))


def test_s3lora_as_published_prunes_what_the_code_prunes():
    """Random adapters of low rank, where pairs and scores are apart by the last digits of float32 alone."""
    for seed in range(4):
        named = {str(i): site(24, 40, 8, seed=12 * seed + i) for i in range(12)}
        method = S3LoRA(as_published=True, number=5)
        state = method.prepare(named, OfflineProbe())
        theirs = {name: published_s3lora(one) for name, one in named.items()}
        assert {name: one["score"] for name, one in state.items()} == theirs
        order = np.argsort(-np.array(list(theirs.values()), dtype=np.float32))[:5]
        assert set(method.edit(named, state)) == {str(place) for place in order}


def test_s3lora_as_published_neither_rounds_scores_nor_asks_for_norms():
    named = {name: site(6, 9, 3) for name in "abcd"}
    state = {name: {"score": 0.9999999 - i * 1e-7, "norm": float(i)} for i, name in enumerate("abcd")}
    assert set(S3LoRA(as_published=True, number=2).edit(named, state)) == {"a", "b"}
    assert set(S3LoRA(number=2).edit(named, state)) == {"c", "d"}
    zero = Site("z", named["a"].weight, named["a"].a, torch.zeros(6, 3), 1.0)
    assert S3LoRA(as_published=True).prepare({"z": zero}, OfflineProbe())["z"]["score"] == 0


# --- scale


def test_scale_is_scale():
    s = site()
    for by in (0.0, 0.5, -1.0, 2.0):
        torch.testing.assert_close(edited(Scale(by=by), s)[0], by * dense(s), **CLOSE)
