"""RRS: move what the model makes of harmful requests to where it already refuses, and hold what it makes of others.

Ours, after the idea of Yang et al. 2025, arXiv:2505.19670 (EMNLP 2025), whose code is not published.

At layer l, h(x) is the hidden state of a request x at one position: the end of the prompt, or of the thought that its
row has. With m the mean of the states of requests that the base refuses, and h_0 those of the base,

    harmful     mean over harmful rows of ||M (h(x) - m)||^2 / size
    ordinary    mean over ordinary rows of ||h(x) - h_0(x)||^2 / size
    loss        harmful + hold * ordinary, summed over the layers

M keeps the `share` of features in which m differs most from the mean of ordinary requests, relative to their pooled
standard deviation. m, M and h_0 are computed once, before the first step, so that the target does not drift.

The gradient at the weights of each step is computed after the step before, on `rows` harmful and as many ordinary rows
in turn. It is added to that of the arm's data, or takes its place (`alone`, the paper's case: no answers are trained).

Departures: from the abstract and a summary alone. Loss, layers, share, weights, steps and positions are ours, and the
paper's audio is out of scope: this is its idea on text. The base refuses few requests by itself, so by default m is
the mean over the harmful requests below an instruction to refuse (`steer`); `refused` names rows that it does refuse.

Fails: no token is trained with `alone`, so a model may stop to write well: look at its replies. If m is where ordinary
requests are (an instruction that the base ignores), nothing is learnt but noise. The other gradient of `alone` is
computed all the same. Refused where whole weights are trained.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from lowtax.data import steering
from lowtax.methods.base import Method, Probe, Rows
from lowtax.methods.sites import Sites

TINY = 1e-6


class RRS(Method):
    """Move the states of harmful requests to where the model refuses, and hold those of ordinary ones (ours)."""

    layers: list[NonNegativeInt] = Field(min_length=1)
    harmful: Rows = "builtin:refusals,n=64"
    ordinary: Rows = "builtin:own-answers,n=64"
    refused: Rows | None = None
    steer: str = "refuse"
    position: Literal["prompt", "thought"] = "prompt"
    share: float = Field(0.1, gt=0, le=1)
    hold: NonNegativeFloat = 1.0
    weight: NonNegativeFloat = 1.0
    rows: PositiveInt = 8
    alone: bool = True

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Any]:
        """Compute targets, features and the states of the base, and the first gradient."""
        targets = {}
        for layer in self.layers:
            ordinary = probe.states(self.ordinary, layer, self.position)
            harmful = probe.states(self.harmful, layer, self.position)
            if self.refused is not None:
                refused = probe.states(self.refused, layer, self.position)
            else:
                refused = probe.states(self.harmful, layer, self.position, steering.text_of(self.steer))
            mask = features(refused, ordinary, self.share)
            targets[str(layer)] = {"target": refused.mean(0), "mask": mask, "held": ordinary, "number": len(harmful)}
        state = {"targets": targets, "step": 0, "loss": 0.0}
        self._pull(sites, state, probe)
        return state

    def after_backward(self, sites: Sites, state: dict[str, Any]) -> None:
        """Add the gradient of the representations, or put it in the place of that of the data."""
        for name, site in sites.items():
            for number, p in enumerate(site.moved()):
                pull = state["gradients"][f"{name}:{number}"]
                if p.grad is None:
                    p.grad = pull.clone()
                elif self.alone:
                    p.grad.copy_(pull)
                else:
                    p.grad += pull

    def after_step(self, sites: Sites, state: dict[str, Any], probe: Probe, step: int) -> None:
        """Compute the gradient at the new weights."""
        state["step"] = step
        self._pull(sites, state, probe)

    def report(self, state: dict[str, Any]) -> str:
        """Return the loss of the representations at the last weights."""
        return f"rrs: the loss of the representations is {state['loss']:.4f}"

    def _pull(self, sites: Sites, state: dict[str, Any], probe: Probe) -> None:
        """Store loss and gradient of the next rows in turn."""
        sums = dict[str, Tensor]()
        total = 0.0
        for layer in self.layers:
            goal = state["targets"][str(layer)]
            target, mask, held = goal["target"], goal["mask"], goal["held"]
            moved, fixed = (self._turn(n, state["step"]) for n in (goal["number"], len(held)))

            def pull(h: Tensor, target: Tensor = target, mask: Tensor = mask) -> Tensor:
                return ((h - target) * mask).square().mean()

            def held_loss(h: Tensor, held: Tensor = held[fixed]) -> Tensor:
                return self.hold * (h - held).square().mean()

            for source, members, loss in ((self.harmful, moved, pull), (self.ordinary, fixed, held_loss)):
                value, gradients = probe.state_gradients(source, sites, layer, self.position, members, loss)
                total += value
                for name, parts in gradients.items():
                    for number, part in enumerate(parts):
                        key = f"{name}:{number}"
                        sums[key] = sums[key] + self.weight * part if key in sums else self.weight * part
        state["gradients"], state["loss"] = sums, total

    def _turn(self, n: int, step: int) -> list[int]:
        """Return the numbers of the rows of a step: all in turn."""
        return [(step * self.rows + i) % n for i in range(min(self.rows, n))]


def features(
    refused: Float[Tensor, "rows size"], ordinary: Float[Tensor, "others size"], share: float
) -> Float[Tensor, " size"]:
    """Return a mask of the features in which two groups of states differ most, of this share of all."""
    pooled = ((refused.var(0, correction=0) + ordinary.var(0, correction=0)) / 2).sqrt() + TINY
    distance = (refused.mean(0) - ordinary.mean(0)).abs() / pooled
    number = max(1, round(share * len(distance)))
    return torch.zeros_like(distance).scatter_(0, distance.topk(number).indices, 1.0)
