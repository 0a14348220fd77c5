"""Take the strongest directions of the frozen weight out of a trained update.

Ours, for the overlap-reducing merge that Xue & Mirzasoleiman 2025, arXiv:2507.17075, describe and whose equations are
in no code of theirs: at full strength, the least change of dW that brings the penalties of `orthogonal` to zero.

With W = U S V' cut at its k largest singular values, and strength t:

    side="left"     dW - t U U' dW                    outputs that W uses most
    side="right"    dW - t dW V V'                    inputs that W reads most
    side="both"     the first, then the second        a stronger demand than the "both" of `orthogonal`, which is:
    side="block"    dW - t U U' dW V V'               from those inputs to those outputs only; rank r + min(k, r)

`ridge`, on the left or the right, weighs the directions instead: argmin_X ||X - dW||^2 + ridge ||S U' X||^2, which
takes ridge s^2 / (1 + ridge s^2) of a direction of singular value s. `keep_norm` gives every site back the norm it had.
At t = 1 the result is idempotent and its overlap is zero; without `keep_norm` no norm grows; k = 0 changes nothing.

Departures: all of it is ours, since the paper's equations for the merge were not at hand; its claim is a modest gain on
some tasks.

Fails: it does little where dW hardly lies in those directions; a dW of random direction has k / outputs (left) or
k / inputs (right) of its energy there, and the rank 16 of the quickstart 1 to 5 %. On square weights a k of all
directions takes all of dW. It reads W alone, and cannot tell what refuses from what costs reasoning.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator
from torch import Tensor

from lowtax.linalg import Factors, overlap, top_singular, without_left, without_right
from lowtax.methods import Edit, Probe
from lowtax.sites import Site, Sites

LEFT = 1e-6  # of a norm: with less of it left, there is no direction to scale up

Span = dict[str, Tensor | float]  # U, (out, k); S, (k,); V, (in, k); share: of ||dW||^2, what t = 1 takes


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
            raise ValueError("ridge takes the place of strength, and is for side left or right")
        return self

    def prepare(self, sites: Sites, probe: Probe | None) -> dict[str, Span]:
        """The directions of each site, and the share of its update in them."""
        return {name: self._span(site) for name, site in sites.items()} if self.k else {}

    def edit(self, sites: Sites, state: dict[str, Span]) -> dict[str, Factors]:
        """The updates without that part."""
        return {name: self._without(sites[name].factors(), span) for name, span in state.items()}

    def _span(self, site: Site) -> Span:
        U, S, V = top_singular(site.weight, self.k)
        found = overlap(site.factors(), U, V)
        share = found | {"both": found["left"] + found["right"] - found["both"], "block": found["both"]}
        return {"U": U, "S": S, "V": V, "share": share[self.side]}

    def _without(self, D: Factors, span: Span) -> Factors:
        U, S, V = (torch.as_tensor(span[key]).to(D.b.dtype) for key in "USV")
        taken = torch.full_like(S, self.strength) if self.ridge is None else 1 - 1 / (1 + self.ridge * S.square())
        new = D.plus(_block(D, U, taken, V)) if self.side == "block" else D
        if self.side in ("left", "both"):
            new = without_left(new, U, taken)
        if self.side in ("right", "both"):
            new = without_right(new, V, taken)
        before, after = D.sq_norm().sqrt(), new.sq_norm().clamp(min=0).sqrt()
        return Factors(new.b * float(before / after), new.a) if self.keep_norm and after > LEFT * before else new


def _block(D: Factors, U: Tensor, taken: Tensor, V: Tensor) -> Factors:
    """- U diag(taken) U' dW V V', of the smaller of two ranks: k and that of D."""
    left, right = U.T @ D.b, D.a @ V
    if len(U.T) < D.rank:
        return Factors(-U * taken, left @ right @ V.T)
    return Factors(-(U * taken) @ left, right @ V.T)
