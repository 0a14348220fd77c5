"""Shrink intruder dimensions: strong directions of the tuned weight that are unlike any of the frozen one.

Shuttleworth et al. 2024, arXiv:2410.21228 (code: reeceshuttle/intruder-dimensions @ d4445a2, to find them; Hugging Face
PEFT, `tuners/lora/intruders.py`, to shrink them).

With W + dW = U S V', one of its k strongest output directions u is an intruder if max_i |<u, u0_i>| < threshold over
all left singular vectors u0 of W. The update becomes

    dW - (1 - keep) sum over intruders of s_j u_j v_j'

keep = 1 changes nothing; keep = 0 removes the intruders entirely, including what W itself has along them. The rank
grows by the number of intruders, and nothing is lost.

W's strongest directions decide first: u is no intruder if its cosine with one of them reaches `threshold`, and it is
one if all those cosines are smaller and its part outside their span has a norm below `threshold`. Only otherwise is W
decomposed completely.

Departures: the rank grows, while PEFT truncates the result to the adapter's rank; `as_published=True` truncates it too,
and `lost` gives the share of the update that this loses. PEFT's `mitigation_lambda` is `keep`; its documentation
contradicts its code. The paper's cosine has no absolute value, although signs of singular vectors are arbitrary.

Fails: it does nothing if there are no intruders, as in the rank-16 adapter of the quickstart. With keep = 0 the update
may become larger. Equal singular values do not determine their vectors, so a cluster of them may give false intruders.
If W has more outputs than inputs, a direction that W cannot reach is always an intruder.
"""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from lowtax.common.linalg import Factors, exact_singular, top_singular
from lowtax.methods.base import Edit, Probe
from lowtax.methods.sites import Site, Sites

WIDER = 4  # times k directions of W are compared first

Shrunk = dict[str, Tensor | float]  # intruders: their number; if any, b and a of the new update; lost by truncation


class Intruders(Edit):
    """Shrink the strong new directions that an adapter brings into a weight."""

    k: PositiveInt = 10
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    keep: NonNegativeFloat = 0.75
    as_published: bool = False

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Shrunk]:
        """Find and shrink the intruders of each site."""
        return {name: self._shrink(site) for name, site in sites.items()}

    def edit(self, sites: Sites, state: dict[str, Shrunk]) -> dict[str, Factors]:
        """Return the new updates of the sites that have intruders."""
        return {
            name: Factors(torch.as_tensor(shrunk["b"]), torch.as_tensor(shrunk["a"]))
            for name, shrunk in state.items()
            if shrunk["intruders"]
        }

    def _shrink(self, site: Site) -> Shrunk:
        W, D = site.weight.float(), site.factors()
        U, S, V = top_singular(W, self.k, plus=D)
        new = nearest(W, U, self.threshold) < self.threshold
        if not new.any():
            return {"intruders": 0}
        exact = D.plus(Factors((self.keep - 1) * U[:, new] * S[new], V[:, new].T))
        update = exact.truncated(D.rank) if self.as_published else exact
        lost = exact.plus(Factors(-update.b, update.a)).svd()[1].norm() / exact.sq_norm().sqrt()
        return {"b": update.b, "a": update.a, "intruders": int(new.sum()), "lost": float(lost)}


def nearest(W: Tensor, U: Tensor, threshold: float) -> Tensor:
    """Return max_i |<u, u0_i>| of each column u of U over the left singular vectors u0 of W.

    The value may be that of the strongest vectors alone, if they decide on which side of `threshold` it lies.
    """
    strongest = top_singular(W, WIDER * U.shape[1])[0]
    inside = (strongest.T @ U).abs()
    rest = (1 - inside.square().sum(dim=0)).clamp(min=0).sqrt()
    if ((inside.amax(dim=0) < threshold) & (rest >= threshold)).any():
        inside = (exact_singular(W, min(W.shape))[0].T @ U).abs()
    return inside.amax(dim=0)
