"""Project the updates that deviate from the model's own alignment onto the direction of that alignment.

Hsu et al. 2024, arXiv:2405.16833 (code: IBM/SafeLoRA @ d81fda1).

With V = W_aligned - W_unaligned and C = V V' / ||V||_F, a site's score is cos(C dW, dW), between 0 and 1. The sites
with the lowest scores (`number`), or those of at most `threshold`, get B <- C B. The rank stays. V is read one matrix
at a time and C is never formed: with T = V'B, C B = V T / ||V||_F. `kept`, ||C dW|| / ||dW||, is the share of its norm
that each site would keep. The published pair is `aligned`, the base of the adapter, and `unaligned`, the model before
its alignment; `unaligned` is the adapter's base if absent.

Departures: C is the paper's fast form; its exact V (V'V)^-1 V' is not offered. `projector="subspace"`, U_k U_k' of the
k strongest directions of V, is ours. Modules are matched by name; the code matches by position, which breaks if layers
are left out or biases exist. `as_published=True` rounds scores to five decimals, so that ties with the last of `number`
are projected as well.

Fails: C is not a projector: it scales with ||V||, so that a pair that differs little shrinks the update as well as
turning it, and one that differs much enlarges it. The exact projector is the identity on square weights if V has full
rank. For reasoning models it is not agreed which two checkpoints are meant: name both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors, inner, norm, top_singular
from lowtax.methods.base import Edit, Probe
from lowtax.methods.sites import Site, Sites

ALIKE = (
    "aligned and unaligned (the adapter's base if absent) hold the same weights at every site, or the adapter is zero: "
    "name two checkpoints that differ."
)

Projected = dict[str, Tensor | float]  # b of the projected update; score and kept, absent if V or dW is zero


@dataclass(frozen=True)
class Pair:
    """Two checkpoints whose difference is an alignment."""

    aligned: Mapping[str, Tensor]
    unaligned: Mapping[str, Tensor] | None  # None: the weights that the adapter sits on

    @classmethod
    def of(cls, aligned: str, unaligned: str | None, probe: Probe) -> "Pair":
        """Return the pair by the names of its checkpoints."""
        if aligned == unaligned:
            raise UserError(
                f"aligned and unaligned are one checkpoint ({aligned!r}): name two whose difference is the alignment."
            )
        return cls(probe.weights(aligned), None if unaligned is None else probe.weights(unaligned))

    def difference(self, site: Site, precision: torch.dtype = torch.float32) -> Tensor:
        """Return V of one site in float32, subtracted in `precision`."""
        before = site.weight if self.unaligned is None else self.unaligned[site.name]
        after = self.aligned[site.name]
        if not site.b.shape[0] == len(before) == len(after) or not site.a.shape[1] == before.shape[1] == after.shape[1]:
            raise UserError(
                f"{site.name} has a different shape in aligned or unaligned: name checkpoints of one architecture."
            )
        return (after.to(precision) - before.to(precision)).float()


class SafeLoRA(Edit):
    """Project the updates least along an alignment onto its direction."""

    aligned: str
    unaligned: str | None = None
    select: Literal["number", "threshold"] = "number"
    number: PositiveInt = 10
    threshold: float = 0.5
    projector: Literal["fast", "subspace"] = "fast"
    k: PositiveInt = 16
    as_published: bool = False

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Projected]:
        """Compute the projected B and the score of each site."""
        pair = Pair.of(self.aligned, self.unaligned, probe)
        state = {name: self._projected(site, pair.difference(site)) for name, site in sites.items()}
        if not any("score" in projected for projected in state.values()):
            raise UserError(ALIKE)
        return state

    def edit(self, sites: Sites, state: dict[str, Projected]) -> dict[str, Factors]:
        """Return the projected updates of the selected sites."""
        scores = {name: float(projected["score"]) for name, projected in state.items() if "score" in projected}
        if self.as_published:
            scores = {name: round(score, 5) for name, score in scores.items()}
        ordered = sorted(scores, key=scores.__getitem__)
        chosen = ordered[: self.number]
        if self.select == "threshold" or self.as_published:
            most = self.threshold if self.select == "threshold" else scores[chosen[-1]]
            chosen = [name for name in ordered if scores[name] <= most]
        return {name: Factors(torch.as_tensor(state[name]["b"]), sites[name].factors().a) for name in chosen}

    def _projected(self, site: Site, V: Tensor) -> Projected:
        D = site.factors()
        b = along(V, D.b, self.k if self.projector == "subspace" else None)
        new = Factors(b, D.a)
        before, after = float(D.sq_norm()) ** 0.5, float(new.sq_norm()) ** 0.5
        if not before or not V.any():
            return {"b": D.b}
        return {"b": b, "score": float(inner(new, D)) / (after * before) if after else 0.0, "kept": after / before}


def along(V: Tensor, b: Tensor, k: int | None = None) -> Tensor:
    """Return C b, C being V V' / ||V||_F or the projector on the k strongest left directions of V; C is not formed."""
    if k is not None:
        U, S, _ = top_singular(V, k)
        U = U[:, S / S[0].clamp(min=1e-30) > max(V.shape) * 1.2e-7].to(b.dtype)  # V may have fewer directions than k
        return U @ (U.T @ b)
    V = V.to(b.dtype)
    return torch.div(V @ (V.T @ b), norm(V).clamp(min=1e-30))
