"""Take an alignment back: shrink the update along its own strongest directions.

Ours, as an attack; with every direction it is the line of WiSE-FT (`scale`), and with the strongest alone the opposite
of LoX, Perin et al. 2025, arXiv:2506.15606.

With dW = U S V', the k largest singular values of each site are multiplied by 1 - share. k = 0 means all of them: share
1 is then the base itself, and shares above 1 lead beyond it.

Departures: none known; published attacks on weights need the update, too, and differ in what they keep of it.

Fails: it needs the aligned update apart from the base, as an adapter is; on a released whole model it needs the base.
It says how much of an alignment is in the strongest directions, and little about further training.
"""

import torch
from pydantic import Field, NonNegativeInt

from lowtax.common.linalg import Factors
from lowtax.methods.base import Edit, State
from lowtax.methods.sites import Sites


class Subtract(Edit):
    """Shrink the update along its own strongest directions: an attack."""

    attacks = True

    share: float = Field(1.0, ge=0, le=10)
    k: NonNegativeInt = 0

    def edit(self, sites: Sites, state: State) -> dict[str, Factors]:
        """Return the update of each site without a share of its k strongest directions."""
        return {name: self._less(site.factors()) for name, site in sites.items()}

    def _less(self, D: Factors) -> Factors:
        if not self.k or self.k >= D.rank:
            return Factors((1 - self.share) * D.b, D.a)
        U, S, V = D.svd()
        factors = torch.where(torch.arange(len(S)) < self.k, 1 - self.share, 1.0)
        return Factors(U * S * factors, V.T.contiguous())
