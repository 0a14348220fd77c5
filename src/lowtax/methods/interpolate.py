"""Interpolate between two adapters of one base.

Ours; the line between two fine-tuned models is that of linear mode connectivity, Frankle et al. 2020,
arXiv:1912.05671, and of model soups, Wortsman et al. 2022, arXiv:2203.05482.

The updates are mixed, (1 - at) dW + at dW', not the factors: mixing B and A separately would give a product with cross
terms. The rank is the sum of both ranks. A site that only one adapter has counts as zero in the other.

Departures: only what one of the two adapters changes moves, and there is no average over many models.

Fails: refused if the other adapter changes an embedding that this one does not, or has sites of another shape. With
`only`, sites that only the other adapter has are left out. The models on the line between two runs may be worse than
both: sample between.
"""

from torch import Tensor

from lowtax.common.borders import expanded
from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.methods.base import Edit, Probe
from lowtax.methods.scale import scaled
from lowtax.methods.sites import Sites
from lowtax.models.adapters import read_adapter

Ends = dict[str, dict[str, Tensor]]  # b and a of the other adapter, by site


class Interpolate(Edit):
    """Mix the update with that of another adapter: at=0 is this one, at=1 the other."""

    to: str
    at: float

    def prepare(self, sites: Sites, probe: Probe) -> Ends:
        """Read the updates of the other adapter."""
        other = read_adapter(expanded(self.to))
        if unmatched := other.embeddings - set(sites):
            raise UserError(
                f"{self.to} changes the embedding {min(unmatched)}, and the edited adapter does not: leave it out."
            )
        return {name: {"b": D.b, "a": D.a} for name, D in other.factors.items()}

    def edit(self, sites: Sites, state: Ends) -> dict[str, Factors]:
        """Return the mixed updates."""
        mixed = {name: scaled(site.factors(), 1 - self.at) for name, site in sites.items()}
        for name, end in state.items():
            here, there = mixed.get(name), scaled(Factors(end["b"], end["a"]), self.at)
            if here is not None and here.shape != there.shape:
                raise UserError(
                    f"{self.to} adapts another base: its {name} is {there.shape[0]} x {there.shape[1]} and this one's "
                    f"{here.shape[0]} x {here.shape[1]}; name an adapter of the same base."
                )
            mixed[name] = there if here is None else here.plus(there)
        return mixed
