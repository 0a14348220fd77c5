"""Project the updates that deviate from the model's own alignment onto the direction of that alignment.

Hsu et al. 2024, arXiv:2405.16833 (code: IBM/SafeLoRA @ d81fda1).

With V = W_aligned - W_unaligned and C = V V' / ||V||_F, a site's score is cos(C dW, dW), between 0 and 1. The sites
with the lowest scores (`number`), or those of at most `threshold`, get B <- C B. The rank stays. V is read one matrix
at a time and C is never formed: with T = V'B, C B = V T / ||V||_F. `kept`, ||C dW|| / ||dW||, is the share of its norm
that each site would keep. The published pair is `aligned`, the base of the adapter, and `unaligned`, the model before
its alignment; `unaligned` is the adapter's base if absent. `projector="exact"` is the paper's V (V'V)^-1 V', as the
projector on all left singular vectors of V, which is defined for a V of any shape and rank.

Of a model that was fine-tuned in full, dW = W - W_before, with `before`, the model that it was tuned from, `aligned` if
absent; `unaligned` is needed. The adapter on its weights is C dW - dW, of full rank, at the sites that this changes.

Departures: C is the paper's fast form by default, as in its code. `projector="subspace"`, U_k U_k' of the k strongest
directions of V, is ours. Modules are matched by name; the code matches by position, which breaks if layers are left out
or biases exist. `as_published=True` rounds scores to five decimals, so that ties with the last of `number` are
projected as well. Of whole weights only linear layers are projected, and no embeddings.

Fails: C is not a projector: it scales with ||V||, so that a pair that differs little shrinks the update as well as
turning it, and one that differs much enlarges it. The exact projector is the identity wherever V has full row rank, as
on square weights: it moves tall matrices alone, and is refused where it moves none. For reasoning models it is not
agreed which two checkpoints are meant: name both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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

SAME = 1e-5  # of ||dW||; a smaller change of whole weights is rounding
Projected = dict[str, Any]  # update: a function of nothing; score and kept, absent if V or dW is zero


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

    whole = True

    aligned: str
    unaligned: str | None = None
    select: Literal["number", "threshold"] = "number"
    number: PositiveInt = 10
    threshold: float = 0.5
    projector: Literal["fast", "subspace", "exact"] = "fast"
    k: PositiveInt = 16
    before: str | None = None
    as_published: bool = False

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Projected]:
        """Compute the score of each site."""
        pair = Pair.of(self.aligned, self.unaligned, probe)
        if all(site.rank for site in sites.values()):
            if self.before:
                raise UserError("Method 'safe_lora': before is for a model that was fine-tuned in full: remove it.")
            state = {name: self._projected(site.factors(), pair.difference(site)) for name, site in sites.items()}
        else:
            if self.unaligned is None:
                raise UserError("Method 'safe_lora': a whole model needs unaligned, the model before its alignment.")
            before = probe.weights(self.before or self.aligned)
            state = {name: self._of_whole(site, pair, before) for name, site in sites.items()}
        if not any("score" in projected for projected in state.values()):
            raise UserError(ALIKE)
        return state

    def edit(self, sites: Sites, state: dict[str, Projected]) -> dict[str, Factors]:
        """Return the projected updates of the selected sites; of whole weights, their change, where there is one."""
        scores = {name: float(projected["score"]) for name, projected in state.items() if "score" in projected}
        if self.as_published:
            scores = {name: round(score, 5) for name, score in scores.items()}
        ordered = sorted(scores, key=scores.__getitem__)
        chosen = ordered[: self.number]
        if self.select == "threshold" or self.as_published:
            most = self.threshold if self.select == "threshold" else scores[chosen[-1]]
            chosen = [name for name in ordered if scores[name] <= most]
        updates = {name: state[name]["update"]() for name in chosen}
        moved = {name: update for name, update in updates.items() if update.rank}
        if chosen and not moved:
            raise UserError(
                f"Method 'safe_lora': the {self.projector} projector is the identity on all {len(chosen)} selected "
                "modules: set projector to fast or subspace, or number to more."
            )
        return moved

    def _projected(self, D: Factors, V: Tensor) -> Projected:
        """Return the projection of an update of low rank, whose rank stays."""
        b = along(V, D.b, self._directions(V))
        new = Factors(b, D.a)
        before, after = float(D.sq_norm()) ** 0.5, float(new.sq_norm()) ** 0.5
        if not before or not V.any():
            return {"update": lambda: D}
        return {
            "update": lambda: new,
            "score": float(inner(new, D)) / (after * before) if after else 0.0,
            "kept": after / before,
        }

    def _of_whole(self, site: Site, pair: Pair, before: Mapping[str, Tensor]) -> Projected:
        """Return the projection of a dense update. It is computed again when it is needed, so that none is kept."""

        def both() -> tuple[Tensor, Tensor]:
            D, V = site.weight.float() - before[site.name].float(), pair.difference(site)
            return D, along(V, D, self._directions(V)) if V.any() else D.new_zeros(0)

        def update() -> Factors:
            D, new = both()
            change = new - D
            if float(norm(change)) <= SAME * float(norm(D)):
                return Factors(change[:, :0], change[:0])
            out, inp = change.shape
            return Factors(torch.eye(out), change) if out < inp else Factors(change, torch.eye(inp))

        D, new = both()
        if not D.any() or not new.numel():
            return {"update": update}
        old, size = float(norm(D)), float(norm(new))
        product = float((D.double() * new.double()).sum())
        return {"update": update, "score": product / (size * old) if size else 0.0, "kept": size / old}

    def _directions(self, V: Tensor) -> int | None:
        """Return how many directions of V the projector has; None for the fast form, which is no projector."""
        return {"fast": None, "subspace": self.k, "exact": min(V.shape)}[self.projector]


def along(V: Tensor, b: Tensor, k: int | None = None) -> Tensor:
    """Return C b, C being V V' / ||V||_F or the projector on the k strongest left directions of V; C is not formed."""
    if k is not None:
        U, S, _ = top_singular(V, k)
        U = U[:, S / S[0].clamp(min=1e-30) > max(V.shape) * 1.2e-7].to(b.dtype)  # V may have fewer directions than k
        return U @ (U.T @ b)
    V = V.to(b.dtype)
    return torch.div(V @ (V.T @ b), norm(V).clamp(min=1e-30))
