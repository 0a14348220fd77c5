"""Units of pairs of matrices, and the groups into which SSAH divides them.

Li & Kim 2026, arXiv:2410.10862. In a pair of matrices, down_proj after gate_proj and up_proj, or o_proj after v_proj,
unit j is a channel between them:

    I_j = Var(x_j) ||W[:, j]||^2        x: inputs of the second matrix W; variance over tokens

on safety rows (I_S) and on utility rows (I_U).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from lowtax.methods.base import Method, Probe, Rows

Share = Annotated[float, Field(ge=0, le=1)]
Scores = tuple[Float[Tensor, " units"], Float[Tensor, " units"]]  # I_S and I_U
SECOND = {"gate_proj": "down_proj", "up_proj": "down_proj", "v_proj": "o_proj"}


@dataclass(frozen=True)
class Groups:
    """The numbers of the units of a pair; each is in one group.

    safety: safety-critical, by I_S - I_U. utility: utility-critical, by I_U - I_S. redundant: by -(I_S + I_U).
    complex: the rest, by I_S. All begin with the largest.
    """

    safety: Int[Tensor, " scu"]
    utility: Int[Tensor, " ucu"]
    redundant: Int[Tensor, " ru"]
    complex: Int[Tensor, " rest"]


class OfUnits(Method):
    """A method that needs safety and utility rows to tell the groups of units apart."""

    safety: Rows = "builtin:refusals,n=128"
    utility: Rows = "builtin:chat,n=128"
    scu: Share = 0.013
    ucu: Share = 0.133
    ru: Share = 0.148

    def scores(
        self, probe: Probe, seconds: Sequence[str], weight: Callable[[str], Float[Tensor, "out units"]]
    ) -> dict[str, Scores]:
        """Return I_S and I_U of the units by second matrix, without those that the rows do not reach.

        Args:
            probe: the probe, which runs the model on the rows.
            seconds: names of second matrices.
            weight: a function that returns the matrix of a name.
        """
        safety, utility = (probe.variances(rows, seconds) for rows in (self.safety, self.utility))
        norms = {name: weight(name).double().square().sum(0).cpu() for name in seconds if name in safety}
        return {name: (safety[name] * norms[name], utility[name] * norms[name]) for name in norms if name in utility}

    def divided(self, safe: Float[Tensor, " units"], useful: Float[Tensor, " units"]) -> Groups:
        """Divide the units of a pair by their scores: shares `scu`, `ucu` and `ru` of all, taken in this order."""
        n, free = len(safe), torch.ones(len(safe), dtype=torch.bool)

        def take(score: Tensor, share: float) -> Tensor:
            """Take the units with the largest score among those not taken yet."""
            best = score.masked_fill(~free, -torch.inf).argsort(descending=True, stable=True)
            units = best[: min(round(share * n), int(free.sum()))]
            free[units] = False
            return units

        critical, useful_alone = take(safe - useful, self.scu), take(useful - safe, self.ucu)
        return Groups(critical, useful_alone, redundant=take(-safe - useful, self.ru), complex=take(safe, 1))


def second_of(name: str) -> str | None:
    """Return the second matrix of the pair that a module belongs to, or its bias as NAME.bias.

    None if it belongs to no pair, as the bias of a second matrix does.
    """
    module, _, last = name.removesuffix(".bias").rpartition(".")
    pair = SECOND.get(last, last if name.endswith(f".{last}") else None)
    return f"{module}.{pair}" if pair in SECOND.values() else None
