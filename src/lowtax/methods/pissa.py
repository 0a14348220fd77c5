"""PiSSA: start the factors in the strongest singular directions of the weight, and leave the weight as it is.

Meng et al. 2024, arXiv:2404.02948 (NeurIPS 2024), equations 2 to 4.

With W = U S V' cut at its r largest singular values:

    B0 = U S^1/2,  A0 = S^1/2 V'
    train  y = W x + s B A x - s B0 A0 x,  B and A from B0 and A0, each divided by sqrt(s): at the start this is W x

The paper replaces W by W - B0 A0. An adapter saved so changes the base for every other adapter beside it, so that
lowtax refuses to sample it. Here the constant term is part of the adapter: of the placement's rank R (even) the first r
= R/2 rows are trained, the others hold A0 and -B0. An ordinary LoRA on the original weights is saved.

Departures: from the paper. W is not rounded once more where it is 16-bit; A0 and B0 are divided by sqrt(s), so that the
start does not depend on alpha, which scales their gradients alone.

Fails: refused on an odd rank, if r is larger than a matrix's rank can be, and on whole weights. Weight decay pulls the
trained half to zero, and with it the model away from W: set weight_decay to 0, as the paper does.
"""

import torch
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import top_singular
from lowtax.methods.base import Method, Probe
from lowtax.methods.sites import Site, Sites

Start = dict[str, Tensor]  # a: A0, (r, in); b: -B0, (out, r)


class PiSSA(Method):
    """Start the factors in the strongest directions of the weight; the saved adapter is an ordinary one."""

    holds = True
    begins = True

    def check(self, sites: Sites) -> None:
        """Refuse odd ranks, and ranks that a matrix cannot have."""
        for site in sites.values():
            if site.rank % 2:
                raise UserError(
                    f"pissa trains half of the placement's rank and keeps its start in the other half: rank "
                    f"{site.rank} of {site.name} is odd; set twice the rank you want, and alpha twice as large."
                )
            if site.rank // 2 > (most := min(len(site.b), site.a.shape[1])):
                raise UserError(
                    f"pissa: {site.name} has a rank of at most {most}, and {site.rank // 2} is to be trained: lower "
                    "the placement's rank."
                )

    @torch.no_grad()
    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Start]:
        """Compute the starting points, and set the factors to them."""
        self.check(sites)
        return {name: _start(site) for name, site in sites.items()}

    def after_backward(self, sites: Sites, state: dict[str, Start]) -> None:
        """Keep the gradients of the trained half alone."""
        for site in sites.values():
            if (grads := site.grads()) is not None:
                grads[0][site.rank // 2 :] = 0
                grads[1][:, site.rank // 2 :] = 0

    @torch.no_grad()
    def after_step(self, sites: Sites, state: dict[str, Start], probe: Probe, step: int) -> None:
        """Restore the constant half, which weight decay moves."""
        for name, site in sites.items():
            site.a[site.rank // 2 :] = state[name]["a"]
            site.b[:, site.rank // 2 :] = state[name]["b"]

    def held(self, sites: Sites, state: dict[str, Start]) -> int:
        """Count the constant halves."""
        return sum(start["a"].numel() + start["b"].numel() for start in state.values())


def _start(site: Site) -> Start:
    """Set the factors of a site to their starting point, and return its constant half."""
    U, S, V = top_singular(site.weight, site.rank // 2)
    root = (S / abs(site.scale)).sqrt()
    a, b = (V * root).T.contiguous(), U * root
    site.a.copy_(torch.cat([a, a]))
    site.b.copy_(torch.cat([b, -b], dim=1))
    return {"a": a, "b": -b}
