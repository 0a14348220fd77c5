"""Top singular directions against exact decompositions, on steep and on flat spectra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtax import linalg
from lowtax.linalg import top_singular


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
    monkeypatch.setattr(linalg, "_exact", None)  # would fail if it were called
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
    W = random(300, 300)
    torch.testing.assert_close(top_singular(W, 3)[1], torch.linalg.svdvals(W)[:3])


def test_seeded_for_the_call_alone():
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
