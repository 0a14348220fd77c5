"""Remove the updates that deviate most from the model's own alignment.

Ao et al. 2025, arXiv:2506.18931 (code: AoShuang92/SPLoRA @ 38e1cd2).

With C of `safe_lora`, the distance of a site is d = ||C dW - dW||_F, or with `relative` d / ||dW||_F. It is compared
among modules of the same name (all q_proj, ...), as z = (d - median) / (interquartile range), and the sites with the
largest z (`number`), or with z above `threshold`, lose their update: B becomes zero.

`as_published=True` computes what the code does, on B A without the scale:
- its reference distances are 50 copies of the distance itself, so that the score, (d + 1e-6 - their mean) / 1e-6 minus
  the difference of the lower quartiles of C dW and dW, is float32 rounding and does not depend on the distance;
- `number` is counted from the largest score down, and then every site of at most that score is pruned: T - N + 1 of T;
- with `threshold`, sites of at most the threshold are pruned.
Dense matrices are formed for this, C with (out, out) numbers. On a GPU, or with another library of linear algebra, the
last digits differ, and with them the sites that are pruned. Sites for which the code finds no score, and then fails,
keep their update.

Departures: z is our interpretation of the paper's "dimension-insensitive" distance, whose formula was not legible; the
code computes something else, which `as_published=True` repeats. Modules are matched by name, not by position.

Fails: quartiles of fewer than four modules of one name mean little: a single one has z = 0 whatever its distance, and
two have 1 and -1. If the two checkpoints differ little, d is the norm of dW. `number` sites are removed even if none
deviates.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.methods.base import Edit, Probe
from lowtax.methods.safe_lora import ALIKE, Pair, along
from lowtax.methods.sites import Site, Sites

COPIES = 50
TINY = 1e-6
LARGEST = 2**24

Scores = dict[str, float]  # distance and score; empty if there is none


class SPLoRA(Edit):
    """Remove the updates farthest from an alignment, with a robust distance."""

    aligned: str
    unaligned: str | None = None
    select: Literal["number", "threshold"] = "number"
    number: PositiveInt = 10
    threshold: float = 2.0
    relative: bool = False
    as_published: bool = False

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Scores]:
        """Compute the score of each site."""
        pair = Pair.of(self.aligned, self.unaligned, probe)
        distances = {
            name: distance for name, site in sites.items() if (distance := self._distance(site, pair)) is not None
        }
        if not distances:
            raise UserError(ALIKE)
        scores = distances if self.as_published else _standardised(distances)
        return {n: {"distance": distances[n], "score": scores[n]} if n in distances else {} for n in sites}

    def edit(self, sites: Sites, state: dict[str, Scores]) -> dict[str, Factors]:
        """Return zero updates for the sites that are pruned."""
        scores = {name: figures["score"] for name, figures in state.items() if figures}
        ordered = sorted(scores, key=scores.__getitem__, reverse=True)
        if self.as_published:
            most = scores[ordered[: self.number][-1]] if self.select == "number" else self.threshold
            pruned = [name for name in ordered if scores[name] <= most]
        elif self.select == "number":
            pruned = ordered[: self.number]
        else:
            pruned = [name for name in ordered if scores[name] > self.threshold]
        return {name: Factors(torch.zeros_like(D.b), D.a) for name in pruned for D in [sites[name].factors()]}

    def _distance(self, site: Site, pair: Pair) -> float | None:
        D, V = site.factors(), pair.difference(site)
        norm = float(D.sq_norm().sqrt())
        if not V.any() or not norm:
            return None
        if self.as_published:
            return _published(V, site.b.detach().float(), site.a.detach().float())
        apart = float(Factors(along(V, D.b) - D.b, D.a).sq_norm().sqrt())
        return apart / norm if self.relative else apart


def _standardised(distances: dict[str, float]) -> dict[str, float]:
    """Return z of each site among those whose module has the same name."""
    kinds: dict[str, list[str]] = {}
    for name in distances:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    scores: dict[str, float] = {}
    for names in kinds.values():
        low, middle, high = np.percentile([distances[name] for name in names], [25, 50, 75])
        spread = (high - low + TINY * middle) or 1.0
        scores |= {name: float((distances[name] - middle) / spread) for name in names}
    return scores


def _published(V: Tensor, b: Tensor, a: Tensor) -> float | None:
    """Return the score of the published code from V, B and A, in its operations and their order."""
    C = torch.mm(V, V.T) / torch.norm(V)
    one, two = torch.mm(torch.mm(C, b), a), torch.mm(b, a)
    lower, upper = _quantile(one, 0.25), _quantile(one, 0.75)
    shift = lower - _quantile(two, 0.25)
    width = upper - lower - shift
    if torch.equal(one, two) or width == 0:
        return None
    distances = torch.norm(one - two).repeat(COPIES)
    spread = torch.quantile(distances, 0.75) - torch.quantile(distances, 0.25) + TINY
    unscaled = (torch.norm(one - two) + TINY - distances.mean()) / spread
    return float((unscaled - shift) / width * width)


def _quantile(M: Tensor, q: float) -> Tensor:
    """Return a quantile of all numbers; torch refuses more than 2^24 of them, where the published code fails."""
    if M.numel() > LARGEST:
        return torch.tensor(np.quantile(M.numpy(), q), dtype=M.dtype)
    return torch.quantile(M, q)
