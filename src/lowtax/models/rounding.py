"""Loss of a weight update to rounding: the share of weights that do not move, and the cosine.

An entry w moves in bfloat16 (8 significant bits) only if its change is at least about 1/512 to 1/256 of |w|, in float16
(11 bits) 1/4096 to 1/2048. A small update therefore mostly vanishes, and the rest of a rank-1 update has full rank.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LARGE_SHARE = 0.05
"""Share of unmoved weights above which the user is warned."""
ROWS = 1024
"""Rows of a matrix that are processed together, so that the float64 copies cost little memory."""


@dataclass
class Rounding:
    """Sums over all weights passed to `add`.

    `entries` counts the weights, `wanted` those whose update is not zero, `unmoved` those of the latter that equal the
    rounded old weight. The applied update is round(W + D) - round(W): the error of rounding W itself does not count as
    a loss of the update.
    """

    entries: int = 0
    wanted: int = 0
    unmoved: int = 0
    product: float = 0.0
    wanted_square: float = 0.0
    applied_square: float = 0.0

    def add(self, weight: Tensor, update: Tensor, dtype: torch.dtype) -> Tensor:
        """Return round(W + D) in `dtype`, summed in float32, and count it.

        Args:
            weight: W, of any precision and shape; the first dimension is that of rows, or of experts.
            update: D, float32, of the same shape.
        """
        rounded = torch.empty(weight.shape, dtype=dtype)
        for start in range(0, len(weight), ROWS):
            part = slice(start, start + ROWS)
            wide, exact = weight[part].float(), update[part]
            rounded[part] = wide + exact
            self._measure(exact, rounded[part].float() - wide.to(dtype).float())
        return rounded

    def _measure(self, exact: Tensor, applied: Tensor) -> None:
        nonzero, d, rounded = exact != 0, exact.double(), applied.double()
        self.entries += exact.numel()
        self.wanted += int(nonzero.sum())
        self.unmoved += int((nonzero & (applied == 0)).sum())
        self.product += float((d * rounded).sum())
        self.wanted_square += float(d.square().sum())
        self.applied_square += float(rounded.square().sum())

    @property
    def share_unmoved(self) -> float:
        """Share of the weights with a nonzero update that did not move; 0 if there are none."""
        return self.unmoved / self.wanted if self.wanted else 0.0

    @property
    def cosine(self) -> float:
        """Cosine between the applied and the exact update, as vectors; 1 if the latter is zero, 0 if all is lost."""
        if not self.wanted_square:
            return 1.0
        norms = (self.wanted_square * self.applied_square) ** 0.5
        return min(1.0, self.product / norms) if norms else 0.0

    def figures(self) -> dict[str, Any]:
        """Return the figures as data."""
        return {name: getattr(self, name) for name in ("entries", "wanted", "share_unmoved", "cosine")}

    def sentence(self) -> str:
        """Return the figures in words."""
        return (
            f"{self.share_unmoved:.2%} of the {self.wanted:,} weights that the adapter changes did not move; "
            f"the cosine between the applied and the exact update is {self.cosine:.4f}"
        )

    def warning(self, dtype: str) -> str | None:
        """Return a warning with a remedy if much of the update is lost, else None."""
        if not self.wanted:
            return "The adapter's update is zero everywhere: the merged model is the base."
        if self.share_unmoved <= LARGE_SHARE:
            return None
        remedy = "Serve the adapter unmerged" + ("" if dtype == "float32" else ", or merge with --dtype float32")
        return f"Warning: rounding to {dtype} lost part of the adapter: {self.sentence()}. {remedy}."
