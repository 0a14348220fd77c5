"""Scale the update of an adapter: none of it, half, all, or more.

Ours; the line from W to W + dW is that of WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903, for whole models.

Departures: only what the adapter changes moves.

Fails: never as arithmetic; `by` = 0 is the base itself. All directions shrink alike, those that refuse and those that
cost reasoning. Weights are linear in `by` but behaviour is not: sample every point of a sweep.
"""

from lowtax.common.linalg import Factors
from lowtax.methods.base import Edit, State
from lowtax.methods.sites import Sites


class Scale(Edit):
    """Multiply the update of every site by one number."""

    by: float

    def edit(self, sites: Sites, state: State) -> dict[str, Factors]:
        """Return by * dW of each site; `by` is 0 for the base, 1 for the adapter."""
        return {name: scaled(site.factors(), self.by) for name, site in sites.items()}


def scaled(D: Factors, by: float) -> Factors:
    """Return by * dW."""
    return Factors(by * D.b, D.a)
