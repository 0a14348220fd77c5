"""Walk along the adapter: none of its update, half, all, or more.

Ours to name; the line from W to W + dW is that of WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903, for whole models.

Departures: only what the adapter changes moves.

Fails: nowhere as arithmetic; `by` = 0 is the base itself. All directions shrink alike, those that refuse and those that
cost reasoning. Weights are linear in `by` and behaviour is not: sample every point of a sweep.
"""

from lowtax.linalg import Factors
from lowtax.methods import Edit, State
from lowtax.sites import Sites


class Scale(Edit):
    """Multiply the update of every site by one number."""

    by: float

    def edit(self, sites: Sites, state: State) -> dict[str, Factors]:
        """by * dW of each site; `by` is 0 for the base, 1 for the adapter."""
        return {name: scaled(site.factors(), self.by) for name, site in sites.items()}


def scaled(D: Factors, by: float) -> Factors:
    """by * dW."""
    return Factors(by * D.b, D.a)
