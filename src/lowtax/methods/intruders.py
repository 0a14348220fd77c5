"""Shrink the intruders: strong directions of the tuned weight that the frozen one does not know.

Shuttleworth et al. 2024, arXiv:2410.21228 (code: reeceshuttle/intruder-dimensions @ d4445a2, to find them; Hugging Face
PEFT, `tuners/lora/intruders.py`, to shrink them).

With W + dW = U S V', one of its k strongest output directions u is an intruder if max_i |<u, u0_i>| < threshold over
all left singular vectors u0 of W. The update becomes

    dW - (1 - keep) sum over intruders of s_j u_j v_j'

keep = 1 changes nothing, 0 takes them out whole, and with them what W itself has along them. The rank grows by the
number of intruders, and nothing is lost.

Whether a direction is an intruder is settled by W's strongest directions where they can: a cosine of `threshold` among
them says no, a rest of norm below `threshold` outside their span says yes. Only else is W decomposed as a whole.

Departures: the rank grows, where PEFT cuts the result to the adapter's rank; `as_published=True` cuts it, too, and
`lost` says how much of the update that took. PEFT's `mitigation_lambda` is `keep`; its documentation says the opposite
of its code. The paper's cosine has no absolute value, and signs of singular vectors are arbitrary.

Fails: it does nothing where there are no intruders, as in the rank 16 of the quickstart. With keep = 0 the update may
end up larger than it was. Equal singular values have no vectors of their own, so that a cluster of them may give false
intruders. Where W has more outputs than inputs, a direction that W cannot reach always is one.
"""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from lowtax.linalg import Factors, exact_singular, top_singular
from lowtax.methods import Edit, Probe
from lowtax.sites import Site, Sites

WIDER = 4  # times k directions of W are looked at first

Found = dict[str, Tensor | float]  # intruders: how many; if any, b and a of the new update, and what a truncation lost


class Intruders(Edit):
    """Shrink the strong new directions that an adapter brings into a weight."""

    k: PositiveInt = 10
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    keep: NonNegativeFloat = 0.75
    as_published: bool = False

    def prepare(self, sites: Sites, probe: Probe | None) -> dict[str, Found]:
        """The intruders of each site."""
        return {name: self._find(site) for name, site in sites.items()}

    def edit(self, sites: Sites, state: dict[str, Found]) -> dict[str, Factors]:
        """The updates of the sites that have intruders, with those shrunk."""
        return {
            name: Factors(torch.as_tensor(found["b"]), torch.as_tensor(found["a"]))
            for name, found in state.items()
            if found["intruders"]
        }

    def _find(self, site: Site) -> Found:
        W, D = site.weight.float(), site.factors()
        U, S, V = top_singular(W, self.k, plus=D)
        new = nearest(W, U, self.threshold) < self.threshold
        if not new.any():
            return {"intruders": 0}
        exact = D.plus(Factors((self.keep - 1) * U[:, new] * S[new], V[:, new].T))
        kept = exact.truncated(D.rank) if self.as_published else exact
        lost = exact.plus(Factors(-kept.b, kept.a)).svd()[1].norm() / exact.sq_norm().sqrt()
        return {"b": kept.b, "a": kept.a, "intruders": int(new.sum()), "lost": float(lost)}


def nearest(W: Tensor, U: Tensor, threshold: float) -> Tensor:
    """max_i |<u, u0_i>| of each column u over the left singular vectors of W; exact on which side of `threshold`."""
    known = top_singular(W, WIDER * U.shape[1])[0]
    inside = (known.T @ U).abs()
    rest = (1 - inside.square().sum(dim=0)).clamp(min=0).sqrt()
    if ((inside.amax(dim=0) < threshold) & (rest >= threshold)).any():
        inside = (exact_singular(W, min(W.shape))[0].T @ U).abs()
    return inside.amax(dim=0)
