"""Remove the updates whose spectrum is most concentrated; only the adapter is read.

Ao & Ramchurn 2025, arXiv:2508.15068 (code: AoShuang92/S3_LoRA @ 6ef0fcc, massvd.py).

The score of a site is the share of the largest singular value of its update, s_1 / sum(s), between 1 / rank and 1. The
`number` sites with the largest scores lose their update: B becomes zero. Of equal scores the larger norm goes first.
`normalised` scores the update with its rows, or its columns, at unit length.

`as_published=True` removes what the code removes. It works on B A without the scale: the best of 25 rank-one
approximations d u v', with v among the first right directions of the matrix with rows at unit length, and u among the
first five rows (not columns) of the left directions of the matrix with columns at unit length. The best is the one
whose error has the smallest sum of absolute values. The score is S[0] / (sum(S) + 1e-6), S being the singular values of
that approximation, of which one is not zero: not a concentration, but a magnitude. All of this is in float32, in the
code's own operations and order, since many scores and many of the 25 errors differ in their last digits alone; scores
are not rounded, and norms decide nothing. Dense matrices are formed.

Departures: the score is our interpretation of the paper, whose formula was not legible. The code considers q, k, v and
o alone, which `only` does here. It miscounts its modules if one has more outputs than inputs; `as_published` refuses
such a module.

Fails: at rank 1 every score is 1, so rank 1 is refused. Scores of different ranks have different lower bounds: compare
one rank with `only`. `number` sites are removed even if no spectrum is sharp, and a sharp spectrum is not necessarily
harmful. As published, the score grows with the size of an update, up to 1; and rows of its left directions belong in
part to the null space of an update of low rank, so that the last digits of another library of linear algebra, or of a
GPU, may choose another pair and remove another site.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.methods.base import Edit, Probe
from lowtax.methods.sites import Site, Sites

CANDIDATES = 5
TINY = 1e-6
SMALL = 1e-8  # added to norms


class S3LoRA(Edit):
    """Remove the updates with the sharpest spectrum."""

    number: PositiveInt = 10
    normalised: Literal["rows", "columns"] | None = None
    as_published: bool = False

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, dict[str, float]]:
        """Compute score and norm of each site."""
        low = [name for name, site in sites.items() if site.rank == 1]
        if low and not self.as_published:
            raise UserError(
                f"Method 's3lora' ranks updates by the concentration of their spectrum, and at rank 1 ({low[0]}) there "
                "is only one value: use an adapter of a higher rank, or leave such modules out with only."
            )
        return {name: self._score(site) for name, site in sites.items()}

    def edit(self, sites: Sites, state: dict[str, dict[str, float]]) -> dict[str, Factors]:
        """Return zero updates for the sites that are pruned."""
        if self.as_published:
            scores = np.array([state[name]["score"] for name in sites], dtype=np.float32)
            ordered = [list(sites)[place] for place in np.argsort(-scores)]
        else:
            ordered = sorted(
                state, key=lambda name: (round(state[name]["score"], 6), state[name]["norm"]), reverse=True
            )
        return {n: Factors(torch.zeros_like(D.b), D.a) for n in ordered[: self.number] for D in [sites[n].factors()]}

    def _score(self, site: Site) -> dict[str, float]:
        D = site.factors()
        norm = float(D.sq_norm().sqrt())
        if self.as_published:
            return {"score": _published(site), "norm": norm}
        if self.normalised == "rows":
            D = Factors(D.b / _row_norms(D)[:, None], D.a)
        if self.normalised == "columns":
            D = Factors(D.b, D.a / _row_norms(Factors(D.a.T, D.b.T)))
        S = D.svd()[1].double()
        return {"score": float(S[0] / S.sum()) if norm else 0.0, "norm": norm}


def _row_norms(D: Factors) -> Tensor:
    """Return the norms of the rows of dW, from the rows of b and the Gram matrix of a."""
    return ((D.b @ (D.a @ D.a.T)) * D.b).sum(dim=1).clamp(min=0).sqrt() + SMALL


def _published(site: Site) -> float:
    """Return the score of the published code; 0 if the update is zero, which comes last there as not a number."""
    X = (site.b @ site.a).detach().float()
    if X.shape[0] > X.shape[1]:
        raise UserError(
            f"Method 's3lora' as published fails on weights with more outputs than inputs ({site.name}, "
            f"{tuple(X.shape)}): leave them out with only."
        )
    rows, columns = torch.norm(X, dim=1, keepdim=True) + SMALL, torch.norm(X, dim=0, keepdim=True) + SMALL
    V = torch.linalg.svd(X / rows, full_matrices=False).Vh[:CANDIDATES]
    U = torch.linalg.svd(X / columns, full_matrices=False).U[:CANDIDATES]
    pairs = [(torch.median((X @ v) * u), u, v) for u in U for v in V]
    nearest = min((d * torch.outer(u, v) for d, u, v in pairs), key=lambda Y: float(torch.norm(X - Y, p=1)))
    S = torch.linalg.svd(rows * nearest, full_matrices=False).S.numpy()
    return float(S[0] / (np.sum(S) + TINY)) if np.sum(S) else 0.0
