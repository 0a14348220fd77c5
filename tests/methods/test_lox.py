"""LoX against dense formulas in float64: of the adapter, of a pair of checkpoints, and as published."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.methods.editing import OfflineProbe
from lowtax.methods.lox import LoX
from lowtax.methods.sites import Site


class Checkpoints(OfflineProbe):
    """A probe with one other checkpoint, "aligned", in memory."""

    def __init__(self, matrices: dict[str, Tensor]) -> None:
        self.matrices = matrices

    def weights(self, ref: str) -> dict[str, Tensor]:
        assert ref == "aligned"
        return self.matrices


def site(out: int = 12, inp: int = 8, rank: int = 2, seed: int = 0) -> Site:
    g = torch.Generator().manual_seed(seed)
    W, A, B = (torch.randn(shape, generator=g) for shape in ((out, inp), (rank, inp), (out, rank)))
    return Site("0", W, A, B, 2.0)


def dense(s: Site) -> Tensor:
    return s.scale * s.b.double() @ s.a.double()


def run(method: LoX, s: Site, aligned: Tensor | None = None) -> tuple[float, Tensor, int]:
    """Return the share, the new dW and its rank; `aligned` is the site's weight in the other checkpoint."""
    probe = OfflineProbe() if aligned is None else Checkpoints({"0": aligned})
    state = method.prepare({"0": s}, probe)
    new = method.edit({"0": s}, state)["0"]
    return state["0"]["share"], new.dense().double(), new.rank


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    out=st.integers(1, 12),
    inp=st.integers(1, 12),
    rank=st.integers(1, 4),
    seed=st.integers(0, 99),
    k=st.integers(0, 6),
    coef=st.sampled_from([0.0, 1.25, -0.5]),
    zero=st.booleans(),
)
def test_of_the_adapter_is_the_dense_formula(out, inp, rank, seed, k, coef, zero):
    s = site(out, inp, rank, seed)
    s.b.mul_(not zero)
    D = dense(s)
    U, S, _ = torch.linalg.svd(D, full_matrices=False)
    n = k or min(rank, out, inp)
    share, new, new_rank = run(LoX(k=k, coef=coef), s)
    torch.testing.assert_close(new, D + coef * U[:, :n] @ U[:, :n].T @ D, rtol=1e-3, atol=1e-4)
    assert new_rank <= rank
    if zero:
        assert share == 0
        return
    assert share == pytest.approx((S[:n].norm() / D.norm()).item(), rel=1e-4)
    assert share <= 1 + 1e-6
    if n >= rank:
        assert share == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(new, (1 + coef) * D, rtol=1e-3, atol=1e-4)


def test_of_a_pair_adds_its_strongest_directions():
    s = site()
    V = torch.randn(12, 8, generator=torch.Generator().manual_seed(5))
    share, new, rank = run(LoX(k=3, aligned="aligned"), s, s.weight + V)
    M = V.double()
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    top = (U[:, :3] * S[:3]) @ Vh[:3]
    torch.testing.assert_close(U[:, :3] @ U[:, :3].T @ M, top, rtol=1e-8, atol=1e-10)  # the paper's two forms
    torch.testing.assert_close(new, dense(s) + 1.25 * top, rtol=1e-3, atol=1e-3)
    assert rank == s.rank + 3
    assert share == pytest.approx((S[:3].norm() / S.norm()).item(), rel=1e-4)


def test_as_published_loses_small_updates_to_bfloat16():
    s = site()
    tiny = Site("0", s.weight, s.a, 1e-5 * s.b, 1.0)
    _, new, _ = run(LoX(as_published=True), tiny)
    W, D = s.weight, tiny.b @ tiny.a
    rounded = ((W + D).bfloat16() - W.bfloat16()).double()
    U = torch.linalg.svd(rounded, full_matrices=False).U[:, :6]
    torch.testing.assert_close(new, D.double() + 1.25 * U @ (U.T @ rounded), rtol=1e-4, atol=2e-5)
    assert (rounded.norm() - D.norm()).abs() > 0.1 * D.norm()
    after = W + 1e-3 * torch.randn(12, 8, generator=torch.Generator().manual_seed(5))
    share, _, _ = run(LoX(k=2, aligned="aligned", as_published=True), s, after)
    S = torch.linalg.svdvals((after.bfloat16() - W.bfloat16()).double())
    assert share == pytest.approx((S[:2].norm() / S.norm()).item(), rel=1e-4)
    assert share != pytest.approx(run(LoX(k=2, aligned="aligned"), s, after)[0], rel=1e-3)


def test_what_is_refused():
    for method, message in ((LoX(k=0, aligned="aligned"), "k: 0"), (LoX(unaligned="aligned"), "needs aligned too")):
        with pytest.raises(UserError, match=message):
            run(method, site(), torch.zeros(12, 8))
