"""Extrapolate an alignment along its strongest directions, so that later fine-tuning does not undo it.

Perin et al. 2025, arXiv:2506.15606 (code: VITA-Group/LoX @ 9213ce6, LoX.py).

With D = W_aligned - W_unaligned = U S V', the update becomes

    dW + coef * U_k U_k' D = dW + coef * U_k S_k V_k'

Without `aligned` the adapter is the alignment, D = dW: its k largest singular values are multiplied by 1 + coef, and
the rank stays. With `aligned` (and `unaligned`, the adapter's base if absent) D is their difference, and the rank grows
by k. k = 0 means every direction (ExPO), for D = dW only. A negative coef takes the alignment back.

Of a model that was fine-tuned in full, the adapter has rank k on every linear layer, and `aligned` and `unaligned` are
needed.

Departures: only linear layers move, or the adapter's sites, while the code moves every matrix, embeddings included; k
is a field and not chosen by attack success rate. `as_published=True` computes D as the code does, as a difference of
bfloat16 matrices.

Fails: without `aligned`, a k of at least the adapter's rank is `scale` by 1 + coef. It protects against later tuning,
and repairs nothing that training broke. `as_published` loses differences that are too small for bfloat16.
"""

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors, norm, top_singular
from lowtax.methods.base import Edit, Probe
from lowtax.methods.safe_lora import Pair
from lowtax.methods.sites import Site, Sites

Top = dict[str, Tensor | float]  # U, S, V: the k strongest of D; share: ||D_k|| / ||D||, R_align in the paper


class LoX(Edit):
    """Extrapolate the k strongest directions of an alignment."""

    whole = True

    k: NonNegativeInt = 6
    coef: float = 1.25
    aligned: str | None = None
    unaligned: str | None = None
    as_published: bool = False

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Top]:
        """Compute the strongest directions of each site's alignment."""
        if not self.k and (self.aligned or self.as_published):
            raise UserError(
                "Method 'lox': k: 0 (every direction) has a low rank only if the adapter is the alignment: set k, or "
                "remove aligned and as_published."
            )
        if self.unaligned and not self.aligned:
            raise UserError("Method 'lox': unaligned needs aligned too (found only unaligned).")
        if not self.aligned and not all(site.rank for site in sites.values()):
            raise UserError(
                "Method 'lox': a whole model needs aligned and unaligned, whose difference is its alignment."
            )
        pair = Pair.of(self.aligned, self.unaligned, probe) if self.aligned else None
        return {name: self._top(site, pair) for name, site in sites.items()}

    def edit(self, sites: Sites, state: dict[str, Top]) -> dict[str, Factors]:
        """Return the extrapolated updates."""
        return {name: self._further(site, state[name]) for name, site in sites.items()}

    def _top(self, site: Site, pair: Pair | None) -> Top:
        if pair is None and not self.as_published:
            U, S, V = site.factors().svd()
            whole, k = S.norm(), self.k or len(S)
        else:
            D = self._difference(site, pair)
            (U, S, V), whole, k = top_singular(D, self.k), norm(D), self.k
        share = float(S[:k].norm() / whole) if whole else 0.0
        return {"U": U[:, :k], "S": S[:k], "V": V[:, :k], "share": share}

    def _difference(self, site: Site, pair: Pair | None) -> Tensor:
        if pair is None:
            W = site.weight.float()
            return ((W + site.factors().dense()).bfloat16() - W.bfloat16()).float()
        return pair.difference(site, torch.bfloat16 if self.as_published else torch.float32)

    def _further(self, site: Site, top: Top) -> Factors:
        U, S, V = (torch.as_tensor(top[key]) for key in "USV")
        D = site.factors()
        further = D.plus(Factors(self.coef * U * S, V.T))
        within = self.aligned is None and not self.as_published  # then the rank has not grown
        return further.truncated(D.rank) if within else further
