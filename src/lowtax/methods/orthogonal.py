"""Keep the update away from the strongest directions of the frozen weight.

Xue & Mirzasoleiman 2025, arXiv:2507.17075 (code: YihaoXue/lora-safety-reasoning @ bc85c7c, models.py).

With W = U S V' cut at its k largest singular values, the loss gains beta * sum over sites of

    side="left"    || S U' dW ||_F^2        outputs that W uses most ("column" in the reference)
    side="right"   || dW V S ||_F^2         inputs that W reads most ("row")
    side="both"    || S U' dW V S ||_F^2    from those inputs to those outputs; not the sum of the two above

`weighted=False` omits S ("uniform"). `relative=True` ("norm") divides the term by ||dW||_F^2 + 1e-8, and S by its norm.
The term then measures the direction of dW and not its size, and with `weighted=False` it is the share of dW's energy in
those directions.

`as_published=True` follows the reference's code where it differs from the paper:
- dW = B A, without the scale alpha / rank.
- k shrinks: the loop over modules sets k = min(k, sides of the weight) and also visits each module's lora_A, (rank,
  in), right after the module. The first module is regularised with k, all others with min(k, rank).
- The spans are rounded to bfloat16, and normalised after that.

Departures: from the code, unless `as_published`: dW has its scale, k is the same for every module, spans are float32.
Its unseeded two-step `svd_lowrank` and its half-precision arithmetic in the loss are not imitated in either case.

Fails: with `relative` the term and its gradient are zero at B = 0, and the term is stiffest soon after: keep the
warm-up. The terms are summed and not averaged, so beta does not carry over to another number of sites. It changes
little if dW has only a small part in those directions. Whole weights and fused experts are refused.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from lowtax.common.linalg import top_singular
from lowtax.methods.base import Method, Probe
from lowtax.methods.sites import Site, Sites

Span = dict[str, Tensor]  # left: S U', (k, out); right: V S, (in, k); only the sides in use


class Orthogonal(Method):
    """Penalise the part of dW in the span of W's k strongest singular directions."""

    beta: NonNegativeFloat
    k: PositiveInt = 16
    side: Literal["left", "right", "both"] = "left"
    weighted: bool = True
    relative: bool = False
    as_published: bool = False

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Span]:
        """Compute the spans of each site from its frozen weight."""
        k, state = self.k, {}
        for name, site in sites.items():
            state[name] = self._span(site.weight, k)
            if self.as_published:
                k = min(k, len(site.b), site.a.shape[1], site.rank)
        return state

    def penalty(self, sites: Sites, state: dict[str, Span]) -> Float[Tensor, ""]:
        """Return beta times the sum of the sites' terms."""
        return self.beta * torch.stack([self._term(site, state[name]) for name, site in sites.items()]).sum()

    def _span(self, W: Float[Tensor, "out in"], k: int) -> Span:
        U, S, V = top_singular(W, k)
        span = {"left": (U * S if self.weighted else U).T.contiguous(), "right": V * S if self.weighted else V}
        if self.as_published:
            span = {side: M.bfloat16() for side, M in span.items()}
        if self.weighted and self.relative:
            span = {side: M / M.norm() for side, M in span.items()}
        return {side: M.float() for side, M in span.items() if self.side in (side, "both")}

    def _term(self, site: Site, span: Span) -> Float[Tensor, ""]:
        if self.as_published:
            site = replace(site, scale=1.0)
        if self.side == "both":
            overlap = site.left(span["left"]) @ span["right"]
        else:
            overlap = site.left(span["left"]) if self.side == "left" else site.right(span["right"])
        term = overlap.square().sum()
        return term / (site.sq_norm() + 1e-8) if self.relative else term
