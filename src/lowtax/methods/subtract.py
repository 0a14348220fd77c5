"""Take an alignment back: shrink the update along its own strongest directions.

Ours, as an attack; with every direction it is the line of WiSE-FT (`scale`), and with the strongest alone the opposite
of LoX, Perin et al. 2025, arXiv:2506.15606.

With dW = U S V', the k largest singular values of each site are multiplied by 1 - share. k = 0 means all of them: share
1 is then the base itself, and shares above 1 lead beyond it.

Of a model that was fine-tuned in full, dW is the difference of two checkpoints, `aligned` - `unaligned`: its k
strongest directions (k at least 1) are taken back by an adapter of rank k on the model.

Departures: none known; published attacks on weights need the update, too, and differ in what they keep of it.

Fails: it needs the aligned update apart from the base, or both checkpoints. Full fine-tuning has many small directions,
so that k of them are a smaller part of its update than of a LoRA's.
It says how much of an alignment is in the strongest directions, and little about further training.
"""

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors, top_singular
from lowtax.methods.base import Edit, Probe, State
from lowtax.methods.safe_lora import Pair
from lowtax.methods.sites import Sites


class Subtract(Edit):
    """Shrink the update along its own strongest directions: an attack."""

    attacks = True
    whole = True

    share: float = Field(1.0, ge=0, le=10)
    k: NonNegativeInt = 0
    aligned: str | None = None
    unaligned: str | None = None

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Factors]:
        """Return the k strongest directions of each site's alignment, where two checkpoints are named."""
        if self.aligned is None and self.unaligned is None and all(site.rank for site in sites.values()):
            return {}
        if not (self.aligned and self.unaligned and self.k):
            raise UserError(
                "Method 'subtract' takes back the k strongest directions of two checkpoints: give aligned, unaligned "
                "and k, or none of them for an adapter."
            )
        pair = Pair.of(self.aligned, self.unaligned, probe)
        return {name: self._strongest(pair.difference(site)) for name, site in sites.items()}

    def _strongest(self, D: Tensor) -> Factors:
        U, S, V = top_singular(D, self.k)
        return Factors(-self.share * U * S, V.T.contiguous())

    def edit(self, sites: Sites, state: State) -> dict[str, Factors]:
        """Return the update of each site without a share of its k strongest directions."""
        if state:
            return {name: site.factors().plus(state[name]) for name, site in sites.items()}
        return {name: self._less(site.factors()) for name, site in sites.items()}

    def _less(self, D: Factors) -> Factors:
        if not self.k or self.k >= D.rank:
            return Factors((1 - self.share) * D.b, D.a)
        U, S, V = D.svd()
        factors = torch.where(torch.arange(len(S)) < self.k, 1 - self.share, 1.0)
        return Factors(U * S * factors, V.T.contiguous())
