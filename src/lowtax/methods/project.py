"""Remove the strongest directions of the frozen weight from a trained update.

Ours, for the overlap-reducing merge that Xue & Mirzasoleiman 2025, arXiv:2507.17075, describe without equations in
their code: at full strength, the smallest change of dW that brings the penalties of `orthogonal` to zero.

With W = U S V' cut at its k largest singular values, and strength t:

    side="left"     dW - t U U' dW                    outputs that W uses most
    side="right"    dW - t dW V V'                    inputs that W reads most
    side="both"     the first, then the second        stronger than the "both" of `orthogonal`, which is:
    side="block"    dW - t U U' dW V V'               from those inputs to those outputs only; rank r + min(k, r)

`ridge`, on the left or the right, weighs the directions instead: argmin_X ||X - dW||^2 + ridge ||S U' X||^2, which
removes ridge s^2 / (1 + ridge s^2) of a direction with singular value s. `keep_norm` restores the norm of every site.
At t = 1 the result is idempotent and its overlap is zero; without `keep_norm` no norm grows; k = 0 changes nothing.

Departures: all of it is ours, since the paper's equations for the merge were not available; the paper claims a modest
gain on some tasks.

Fails: it does little if dW has only a small part in those directions; a dW of random direction has k / outputs (left)
or k / inputs (right) of its energy there, and the rank-16 adapter of the quickstart 1 to 5 %. On square weights, a k of
all directions removes all of dW. It reads W alone, and cannot tell what refuses from what costs reasoning.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator
from torch import Tensor

from lowtax.common.linalg import Factors, overlap, top_singular, without_left, without_right
from lowtax.methods.base import Edit, Probe
from lowtax.methods.sites import Site, Sites

MIN_NORM = 1e-6  # relative; a smaller remainder is rounding and is not scaled up

Span = dict[str, Tensor | float]  # U, (out, k); S, (k,); V, (in, k); share: of ||dW||^2 that t = 1 removes


class Project(Edit):
    """Remove the part of dW in the span of W's k strongest singular directions."""

    k: NonNegativeInt = 16
    side: Literal["left", "right", "both", "block"] = "left"
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    ridge: NonNegativeFloat | None = None
    keep_norm: bool = False

    @model_validator(mode="after")
    def _one_weighing(self) -> "Project":
        if self.ridge is not None and (self.side not in ("left", "right") or self.strength != 1):
            raise ValueError("ridge replaces strength, and is for side left or right")
        return self

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Span]:
        """Compute the directions of each site, and the share of its update in them."""
        return {name: self._span(site) for name, site in sites.items()} if self.k else {}

    def edit(self, sites: Sites, state: dict[str, Span]) -> dict[str, Factors]:
        """Return the updates without that part."""
        return {name: self._without(sites[name].factors(), span) for name, span in state.items()}

    def _span(self, site: Site) -> Span:
        U, S, V = top_singular(site.weight, self.k)
        shares = overlap(site.factors(), U, V)
        share = shares | {"both": shares["left"] + shares["right"] - shares["both"], "block": shares["both"]}
        return {"U": U, "S": S, "V": V, "share": share[self.side]}

    def _without(self, D: Factors, span: Span) -> Factors:
        U, S, V = (torch.as_tensor(span[key]).to(D.b.dtype) for key in "USV")
        removed = torch.full_like(S, self.strength) if self.ridge is None else 1 - 1 / (1 + self.ridge * S.square())
        new = D.plus(_block(D, U, removed, V)) if self.side == "block" else D
        if self.side in ("left", "both"):
            new = without_left(new, U, removed)
        if self.side in ("right", "both"):
            new = without_right(new, V, removed)
        before, after = D.sq_norm().sqrt(), new.sq_norm().clamp(min=0).sqrt()
        return Factors(new.b * float(before / after), new.a) if self.keep_norm and after > MIN_NORM * before else new


def _block(D: Factors, U: Tensor, removed: Tensor, V: Tensor) -> Factors:
    """Return - U diag(removed) U' dW V V', with a rank of k or of D, whichever is smaller."""
    left, right = U.T @ D.b, D.a @ V
    if len(U.T) < D.rank:
        return Factors(-U * removed, left @ right @ V.T)
    return Factors(-(U * removed) @ left, right @ V.T)
