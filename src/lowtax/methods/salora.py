"""SaLoRA: keep the outputs on safety data unchanged, and start the factors in the directions of the task.

Li et al. 2025, arXiv:2501.01765 (ICLR 2025; code read for facts: homles11/SaLoRA @ 3f73de1).

For each site, from forward passes on the intact model:

    U_s    the rank_safety strongest left singular vectors of W X', X from the replies of `safety`;  C = I - U_s U_s'
    U_t    the same for `task`, rank_task of them
    start  W ~ U S V' cut at r;  B0 = U_t U_t' U S^1/2,  A0 = S^1/2 V'
    train  y = W x + s C B A x - s C B0 A0 x,  B and A from B0 and A0: at the start this is W x, and U_s' dW = 0 always

The constant term is part of the adapter: of the placement's rank R (even) the first r = R/2 rows are trained, the
others hold A0 and -C B0. An ordinary LoRA on the original weights is saved. rank 32 with alpha 32 is the paper's r =
16, alpha = 16.

Training B through C is equivalent to projecting its gradient before the optimiser's step and B after it: AdamW sees the
same gradients, and C B moves alike.

Departures: from the published code. The task's features are those of the intact model (the code changes layers before
it reads deeper ones); B0 and A0 are divided by sqrt(s), so that s B0 A0 does not depend on alpha; W is not replaced by
W - s C B0 A0, which would round it once more. Dropout and loss are the placement's and the data's: 0.05 and the
completion by default, where the code has dropout 0 and trains on all tokens of blocks of 128 (`dropout: 0` and
`train_on: all` come close).

Fails: refused on an odd rank, if a layer has no more outputs than rank_safety, and on whole weights. A layer's outputs
are fixed in U_s for the inputs that it had before training; if earlier layers move, its inputs change. When you train
on refusals, the default `safety` rows protect the very behaviour you train: pass rows with reasoning instead.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import top_singular
from lowtax.methods.base import Method, Probe, Rows
from lowtax.methods.sites import Site, Sites

Start = dict[str, Tensor]  # span: U_s, (out, rank_safety); a: A0, (r, in); b: -C B0, (out, r)


class SaLoRA(Method):
    """Fix the outputs on safety data, and start in the directions of the task; it needs rows of both."""

    holds = True
    begins = True

    safety: Rows = "builtin:refusals,n=128"
    task: Rows = "builtin:chat,n=128"
    rank_safety: PositiveInt = 32
    rank_task: PositiveInt = 32

    def check(self, sites: Sites) -> None:
        """Refuse odd ranks, and layers with fewer outputs than directions."""
        for site in sites.values():
            self._require_room(site)

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Start]:
        """Compute spans and starting points, and set the factors to the latter."""
        self.check(sites)
        spans = probe.directions(self.safety, sites, self.rank_safety)
        tasks = probe.directions(self.task, sites, self.rank_task)
        return {name: self._start(site, spans[name], tasks[name]) for name, site in sites.items()}

    def after_backward(self, sites: Sites, state: dict[str, Start]) -> None:
        """Keep the gradients of the trained half alone, and project that of B by C."""
        for name, site in sites.items():
            if (grads := site.grads()) is not None:
                half = site.rank // 2
                of_a, of_b = grads
                of_a[half:] = 0
                of_b[:, half:] = 0
                of_b[:, :half] = _outside(state[name]["span"], of_b[:, :half])

    @torch.no_grad()
    def after_step(self, sites: Sites, state: dict[str, Start], probe: Probe, step: int) -> None:
        """Project B into the range of C again, and restore the constant half, which weight decay moves."""
        for name, site in sites.items():
            half, start = site.rank // 2, state[name]
            site.b[:, :half] = _outside(start["span"], site.b[:, :half])
            site.a[half:] = start["a"]
            site.b[:, half:] = start["b"]

    def held(self, sites: Sites, state: dict[str, Start]) -> int:
        """Count the constant halves."""
        return sum(start["a"].numel() + start["b"].numel() for start in state.values())

    @torch.no_grad()
    def _start(self, site: Site, span: Tensor, task: Tensor) -> Start:
        U, S, V = top_singular(site.weight, site.rank // 2)
        root = (S / abs(site.scale)).sqrt()
        a, b = (V * root).T, _outside(span, task @ (task.T @ U) * root)
        site.a.copy_(torch.cat([a, a]))
        site.b.copy_(torch.cat([b, -b], dim=1))
        return {"span": span, "a": a.contiguous(), "b": -b}

    def _require_room(self, site: Site) -> None:
        if site.rank % 2:
            raise UserError(
                f"salora trains half of the placement's rank and keeps its start in the other half: rank {site.rank} "
                f"of {site.name} is odd; set twice the rank you want, and alpha twice as large."
            )
        out, smallest = len(site.b), min(len(site.b), site.a.shape[1])
        if self.rank_safety >= out or site.rank // 2 > smallest:
            raise UserError(
                f"salora: {site.name} has {out} outputs and a rank of at most {smallest}, too little for rank_safety "
                f"{self.rank_safety} and a trained rank of {site.rank // 2}: lower them."
            )


def _outside(span: Tensor, M: Tensor) -> Tensor:
    """Return C M = M - U_s U_s' M."""
    return M - span @ (span.T @ M)
