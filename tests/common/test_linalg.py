"""Updates as factors against the same in dense form, and top singular directions against exact decompositions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtax.common import linalg
from lowtax.common.linalg import (
    Dense,
    Factors,
    effective_rank,
    exact_singular,
    inner,
    overlap,
    random_overlap,
    stable_rank,
    top_singular,
    without_left,
    without_right,
)

sizes = st.integers(1, 12)
KINDS = ("full", "deficient", "zero")


def factors(out: int, inp: int, rank: int, seed: int = 0, kind: str = "full") -> Factors:
    """In float64: random, with two equal rows of a, or with b = 0."""
    b, a = random(out, rank, seed=seed).double(), random(rank, inp, seed=seed + 1).double()
    if kind == "deficient":
        a[-1] = a[0]
    return Factors(torch.zeros_like(b) if kind == "zero" else b, a)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def orthonormal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(random(rows, columns, seed=seed).double()).Q


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steep(rows: int, columns: int) -> torch.Tensor:
    """Singular values 1, 1/2, 1/3, ... between random directions."""
    side = min(rows, columns)
    left, right = (torch.linalg.qr(random(n, side, seed=n)).Q for n in (rows, columns))
    return left / torch.arange(1, side + 1) @ right.T


@settings(deadline=None, max_examples=40)
@given(out=st.integers(1, 20), inp=st.integers(1, 20), k=st.integers(1, 25), seed=st.integers(0, 100))
def test_small_matrices_are_decomposed_exactly(out: int, inp: int, k: int, seed: int):
    W = random(out, inp, seed=seed)
    U, S, V = top_singular(W, k)
    kept = min(k, out, inp)
    assert (U.shape, S.shape, V.shape) == ((out, kept), (kept,), (inp, kept))
    exact = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(S, exact.S[:kept])
    best = exact.U[:, :kept] * exact.S[:kept] @ exact.Vh[:kept]
    torch.testing.assert_close(U * S @ V.T, best, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(300, 500), (500, 300)])
@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("make", [random, steep])
def test_large_matrices_without_the_whole_decomposition(shape: tuple[int, int], k: int, make, monkeypatch):
    monkeypatch.setattr(linalg, "exact_singular", None)  # would fail if it were called
    monkeypatch.setattr(linalg, "SMALL", 0)
    W = make(*shape)
    U, S, V = top_singular(W, k)
    exact = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(S, exact.S[:k], rtol=1e-5, atol=0)
    for mine, theirs in ((U, exact.U[:, :k]), (V, exact.Vh[:k].T)):
        torch.testing.assert_close(mine.T @ mine, torch.eye(k), atol=1e-5, rtol=0)
        outside = mine - theirs @ (theirs.T @ mine)
        assert outside.norm(dim=0).max() < 5e-3
    torch.testing.assert_close(W @ V, U * S, atol=2e-4 * float(S[0]), rtol=0)


def test_equal_singular_values_and_a_zero_matrix():
    Q = torch.linalg.qr(random(500, 300)).Q
    U, S, V = top_singular(Q, 4)
    torch.testing.assert_close(S, torch.ones(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(Q @ V, U, atol=1e-4, rtol=0)
    assert top_singular(torch.zeros(300, 300), 2)[1].tolist() == [0, 0]


def test_what_does_not_converge_is_decomposed_exactly(monkeypatch):
    monkeypatch.setattr(linalg, "TOLERANCE", -1.0)
    monkeypatch.setattr(linalg, "SMALL", 0)
    W = random(300, 300)
    torch.testing.assert_close(top_singular(W, 3)[1], torch.linalg.svdvals(W)[:3])


def test_seeded_for_the_call_alone(monkeypatch):
    monkeypatch.setattr(linalg, "SMALL", 0)
    W = random(300, 400)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = top_singular(W, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(one, top_singular(W, 4), strict=True))


def test_float32_and_detached_whatever_comes_in():
    W = random(12, 8).requires_grad_()
    for found in (*top_singular(W, 3), *top_singular(W.bfloat16(), 3)):
        assert found.dtype == torch.float32
        assert not found.requires_grad


def test_shapes_are_those_of_the_annotations():
    beartype = pytest.importorskip("beartype", reason="beartype is not installed")
    from jaxtyping import jaxtyped

    jaxtyped(typechecker=beartype.beartype)(top_singular)(random(7, 5), 3)


updates = settings(deadline=None, max_examples=60)


@updates
@given(out=sizes, inp=sizes, rank=sizes, kind=st.sampled_from(KINDS), seed=st.integers(0, 50))
def test_factors_say_what_the_dense_update_says(out: int, inp: int, rank: int, kind: str, seed: int):
    x = factors(out, inp, rank, seed, kind)
    dense = x.b @ x.a
    U, S, V = x.svd()
    kept = min(out, inp, rank)
    assert (x.rank, x.shape, S.shape) == (rank, (out, inp), (kept,))
    close(x.dense(), dense)
    close(S, torch.linalg.svdvals(dense)[:kept])
    close(U * S @ V.T, dense)
    for M in (U, V):
        close(M.T @ M, torch.eye(kept, dtype=torch.float64))
    left, right = random(3, out).double(), random(inp, 3).double()
    close(x.left(left), left @ dense)
    close(x.right(right), dense @ right)
    close(x.sq_norm(), dense.square().sum())
    close(Dense(dense).sq_norm(), dense.square().sum())


@updates
@given(out=sizes, inp=sizes, ranks=st.tuples(sizes, sizes), kind=st.sampled_from(KINDS))
def test_inner_products_and_sums(out: int, inp: int, ranks: tuple[int, int], kind: str):
    x, y = factors(out, inp, ranks[0], 1, kind), factors(out, inp, ranks[1], 5)
    close(inner(x, y), (x.dense() * y.dense()).sum())
    close(x.plus(y).dense(), x.dense() + y.dense())
    nothing = x.plus(Factors(-x.b, x.a))
    assert nothing.sq_norm() <= 1e-12 * (1 + x.sq_norm())


@updates
@given(out=sizes, inp=sizes, rank=sizes, k=st.integers(0, 13), kind=st.sampled_from(KINDS))
def test_the_nearest_update_of_lower_rank(out: int, inp: int, rank: int, k: int, kind: str):
    x = factors(out, inp, rank, kind=kind)
    found = x.truncated(k)
    U, S, Vh = torch.linalg.svd(x.dense(), full_matrices=False)
    assert found.rank <= max(k, 0) or found is x
    close(found.dense(), U[:, :k] * S[:k] @ Vh[:k])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("out", "inp", "rank", "k"), [(9, 6, 3, 2), (5, 11, 1, 5), (7, 7, 7, 4)])
def test_overlap_is_the_formula_written_out_densely(kind, weighted, out, inp, rank, k):
    x, U, V = factors(out, inp, rank, kind=kind), orthonormal(out, k), orthonormal(inp, k, seed=3)
    S = torch.arange(k, 0, -1).double()
    weights = torch.diag(S / S.norm()) if weighted else torch.eye(k, dtype=torch.float64)
    left, right, dense = weights @ U.T, V @ weights, x.dense()
    total = dense.square().sum()
    wanted = {"left": left @ dense, "right": dense @ right, "both": left @ dense @ right}
    for update in (x, Dense(dense)):
        found = overlap(update, U, V, S if weighted else None)
        for side, part in wanted.items():
            assert found[side] == pytest.approx(float(part.square().sum() / total) if total else 0.0, rel=1e-9)
        assert found["both"] <= min(found["left"], found["right"]) + 1e-12


def test_all_of_the_energy_lies_in_all_directions():
    x = factors(6, 9, 2)
    found = overlap(x, orthonormal(6, 6), orthonormal(9, 6))
    assert found["left"] == pytest.approx(1)
    assert found["right"] < 1


@pytest.mark.parametrize("weighted", [False, True])
def test_random_updates_overlap_as_much_as_is_said(weighted: bool):
    out, inp, k = 40, 25, 5
    U, V, S = orthonormal(out, k), orthonormal(inp, k), torch.arange(k, 0, -1).double()
    found = [overlap(factors(out, inp, 4, seed), U, V, S if weighted else None) for seed in range(0, 2000, 2)]
    for side, wanted in random_overlap((out, inp), k, weighted).items():
        values = torch.tensor([each[side] for each in found])
        error = float(values.std()) / len(found) ** 0.5
        assert abs(float(values.mean()) - wanted) < 4 * error, side
        assert error < 0.05 * wanted


@updates
@given(out=sizes, inp=sizes, rank=sizes, k=sizes, share=st.sampled_from([0.0, 0.3, 1.0]))
def test_directions_are_taken_out_as_dense_projectors_would(out: int, inp: int, rank: int, k: int, share: float):
    x, U, V = factors(out, inp, rank), orthonormal(out, min(k, out)), orthonormal(inp, min(k, inp))
    eye = torch.eye
    close(without_left(x, U, share).dense(), (eye(out).double() - share * U @ U.T) @ x.dense())
    close(without_right(x, V, share).dense(), x.dense() @ (eye(inp).double() - share * V @ V.T))
    soft = torch.linspace(0, 1, U.shape[1]).double()
    close(without_left(x, U, soft).dense(), (eye(out).double() - U * soft @ U.T) @ x.dense())


def test_ranks_of_known_spectra():
    flat, one = torch.ones(7), torch.tensor([3.0, 0, 0])
    assert (stable_rank(flat), effective_rank(flat)) == (7, pytest.approx(7))
    assert (stable_rank(one), effective_rank(one)) == (1, 1)
    assert stable_rank(torch.tensor([2.0, 1.0])) == 1.25
    assert stable_rank(torch.tensor([2.0]), sq_norm=5.0) == 1.25
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 27**0.25)  # entropy ln 4 - 3/4 ln 3
    for nothing in (torch.zeros(3), torch.zeros(0)):
        assert (stable_rank(nothing), effective_rank(nothing)) == (0, 0)


@pytest.mark.parametrize("shape", [(150, 400), (400, 150), (200, 200)])
@pytest.mark.parametrize("make", [random, steep])
def test_the_gram_matrix_gives_the_decomposition(shape, make):
    W = make(*shape)
    exact = torch.linalg.svd(W.double(), full_matrices=False)
    U, S, V = exact_singular(W, min(shape))
    torch.testing.assert_close(S.double(), exact.S, rtol=1e-5, atol=0)
    torch.testing.assert_close(U * S @ V.T, W, atol=1e-4 * float(S[0]), rtol=0)
    for M in (U, V):
        torch.testing.assert_close(M.T @ M, torch.eye(min(shape)), atol=1e-4, rtol=0)


def test_a_matrix_of_low_rank_is_left_to_lapack():
    W = random(300, 5) @ random(5, 200)
    U, S, V = exact_singular(W, 10)
    torch.testing.assert_close(U.T @ U, torch.eye(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(V.T @ V, torch.eye(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(U * S @ V.T, W, atol=1e-3, rtol=0)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("size", [0.01, 3.0])
def test_the_top_of_a_sum_that_is_never_formed(start: bool, size: float, monkeypatch):
    monkeypatch.setattr(linalg, "SMALL", 0)
    W, x = random(300, 260), factors(300, 260, 3)
    x = Factors(size * x.b.float(), x.a.float())
    exact = torch.linalg.svd(W + x.dense(), full_matrices=False)
    near = torch.cat([top_singular(W, 6)[2], x.svd()[2]], dim=1) if start else None
    monkeypatch.setattr(linalg, "exact_singular", None)
    U, S, _ = top_singular(W, 4, x, near)
    torch.testing.assert_close(S, exact.S[:4], rtol=1e-4, atol=0)
    outside = U - exact.U[:, :6] @ (exact.U[:, :6].T @ U)
    assert outside.norm(dim=0).max() < 0.05
