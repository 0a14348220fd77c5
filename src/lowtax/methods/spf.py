"""SPF: remove from each task gradient the part that conflicts with the safety gradient.

Zhang et al. 2026, arXiv:2601.10141; the idea is the paper's, every detail is ours.

For each trained tensor (A and B of a site, or W), G_s is the gradient of the safety rows' loss at the current weights,
computed again after every `every` steps, and G_s ~ U S V' are its k strongest directions. If <G, G_s> < 0, a step along
-G raises that loss to first order, and G becomes G - P(G) with

    projector="subspace"    P(G) = U U' G V V'
    projector="conflict"    P(G) = sum of (u_i' G v_i) u_i v_i' over those i where it is negative

`test="global"` tests the sum of <G, G_s> over all tensors instead of each tensor. Clipping follows, then AdamW, whose
moments contain older gradients: `update=True` corrects the step as well, with -(W_new - W_old) in place of G.

Departures: only the abstract and a reader's account of Algorithm 1 were available, and no code. The idea is that safety
gradients are of low rank, that one sample shows their direction, and that the conflicting part of the task's gradient
is removed. Test, projectors, `every` and the order of the steps are ours: do not expect the paper's figures.

Fails: if G_s is zero nothing is removed; with `every` = 0 this is the case for A of a LoRA. Biases, embeddings and
norms are not corrected, and without `update` neither are AdamW's moments. When you train on refusals, the default
`safety` rows hardly ever conflict: pass rows with reasoning instead. A few such rows are memorised at the cost of
others.
"""

from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from lowtax.common.linalg import top_singular
from lowtax.methods.base import Method, Probe, Rows
from lowtax.methods.sites import Sites

ROUNDING = 1e-6  # relative to the largest singular value; a weaker direction is rounding
Safety = dict[str, dict[str, Tensor]]  # by tensor: gradient G_s, left U, right V; before: the tensor before the step


class SPF(Method):
    """Remove from the gradients what conflicts with safety; it needs rows that say what safety is."""

    safety: Rows = "builtin:refusals,n=1"
    k: PositiveInt = 1
    every: NonNegativeInt = 1  # 0: never again
    test: Literal["matrix", "global"] = "matrix"
    projector: Literal["subspace", "conflict"] = "subspace"
    update: bool = False

    whole = True

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Any]:
        """Compute the first safety gradients, and start the counts."""
        counts = torch.zeros(4, dtype=torch.float64)  # gradients, those in conflict, squared norm before, removed
        return {"kept": self._safety(sites, probe), "counts": counts}

    def after_backward(self, sites: Sites, state: dict[str, Any]) -> None:
        """Correct the task gradients in place."""
        tensors = _tensors(sites)
        grads = {key: p.grad for key, p in tensors.items() if p.grad is not None}
        self._correct(grads, state["kept"], state["counts"])
        if self.update:
            for key, p in tensors.items():
                state["kept"][key]["before"] = p.detach().clone()

    def after_step(self, sites: Sites, state: dict[str, Any], probe: Probe, step: int) -> None:
        """Correct the step with `update`, and compute safety gradients again when due."""
        if self.update:
            self._correct_step(_tensors(sites), state["kept"])
        if self.every and step % self.every == 0:
            state["kept"] = self._safety(sites, probe)

    def report(self, state: dict[str, Any]) -> str:
        """Return the number of conflicts so far, and the share of the gradients that was removed."""
        tested, conflicts, before, removed = state["counts"].tolist()
        share = (removed / before) ** 0.5 if before else 0.0
        return f"spf: {conflicts:.0f} of {tested:.0f} gradients conflicted; {share:.1%} of their norm was removed"

    def _safety(self, sites: Sites, probe: Probe) -> Safety:
        gradients = probe.gradients(self.safety, _matrices(sites))
        return {f"{name}:{i}": self._span(G) for name, parts in gradients.items() for i, G in enumerate(parts)}

    def _span(self, G: Tensor) -> dict[str, Tensor]:
        U, S, V = top_singular(G, self.k)
        real = (S / S[0].clamp(min=1e-30) > ROUNDING).float()
        return {"gradient": G, "left": U * real, "right": V * real}

    @torch.no_grad()
    def _correct(self, grads: dict[str, Tensor], safety: Safety, counts: Tensor | None = None) -> None:
        """Remove the conflicting part from each gradient."""
        inner = {key: float((G * safety[key]["gradient"]).sum()) for key, G in grads.items()}
        for key, G in grads.items():
            conflicts = (sum(inner.values()) if self.test == "global" else inner[key]) < 0
            removed = self._part(G, safety[key]) if conflicts else torch.zeros_like(G)
            if counts is not None:
                sizes = (float(M.square().sum()) for M in (G, removed))
                counts += torch.tensor([1, conflicts, *sizes]).to(counts)
            G -= removed

    @torch.no_grad()
    def _correct_step(self, tensors: dict[str, Tensor], safety: Safety) -> None:
        back = {key: safety[key]["before"] - p for key, p in tensors.items()}
        self._correct(back, safety)
        for key, p in tensors.items():
            p.copy_(safety[key]["before"] - back[key])

    def _part(self, G: Tensor, span: dict[str, Tensor]) -> Tensor:
        """Return P(G)."""
        U, V = span["left"], span["right"]
        core = U.T @ G @ V
        return U @ (core if self.projector == "subspace" else torch.diag(core.diagonal().clamp(max=0))) @ V.T


def _matrices(sites: Sites) -> Sites:
    """Return the sites that are matrices, without biases."""
    return {name: site for name, site in sites.items() if site.rank or site.weight.ndim == 2}


def _tensors(sites: Sites) -> dict[str, Tensor]:
    """Return what moves of the matrices: A and B, or W."""
    return {f"{name}:{i}": p for name, site in _matrices(sites).items() for i, p in enumerate(site.moved())}
