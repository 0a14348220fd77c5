"""What rounding leaves of a weight update: the share of weights that stay where they were, and the cosine.

An entry w moves in bfloat16 (8 significant bits) only if its change is at least about 1/512 to 1/256 of |w|, in float16
(11 bits) 1/4096 to 1/2048. A small update therefore mostly vanishes, and what is left of a rank-1 update has full rank.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LARGE_SHARE = 0.05
"""A larger share of unmoved weights is worth a warning."""
ROWS = 1024
"""Rows of a matrix that are summed and measured together, so that the float64 copies cost little memory."""


@dataclass
class Rounding:
    """Sums over all the weights that `add` was given.

    `entries` counts the weights, `wanted` those whose update is not zero, `unmoved` those of the wanted that equal
    what the old weight rounds to. The applied update is round(W + D) - round(W): what rounding W itself costs is not
    the update's loss.
    """

    entries: int = 0
    wanted: int = 0
    unmoved: int = 0
    product: float = 0.0
    wanted_square: float = 0.0
    applied_square: float = 0.0

    def add(self, weight: Tensor, update: Tensor, dtype: torch.dtype) -> Tensor:
        """round(W + D) in `dtype`, the sum in float32.

        Args:
            weight: W, of any precision; experts or rows first.
            update: D, float32, of the same shape.
        """
        rounded = torch.empty(weight.shape, dtype=dtype)
        for start in range(0, len(weight), ROWS):
            part = slice(start, start + ROWS)
            wide, wanted = weight[part].float(), update[part]
            rounded[part] = wide + wanted
            self._measure(wanted, rounded[part].float() - wide.to(dtype).float())
        return rounded

    def _measure(self, wanted: Tensor, applied: Tensor) -> None:
        moves, wide, left = wanted != 0, wanted.double(), applied.double()
        self.entries += wanted.numel()
        self.wanted += int(moves.sum())
        self.unmoved += int((moves & (applied == 0)).sum())
        self.product += float((wide * left).sum())
        self.wanted_square += float(wide.square().sum())
        self.applied_square += float(left.square().sum())

    @property
    def share_unmoved(self) -> float:
        """Of the weights that should move, the share that did not; 0 if none should."""
        return self.unmoved / self.wanted if self.wanted else 0.0

    @property
    def cosine(self) -> float:
        """Of the applied with the wanted update, each as one vector; 1 if none was wanted, 0 if all of it is lost."""
        if not self.wanted_square:
            return 1.0
        norms = (self.wanted_square * self.applied_square) ** 0.5
        return min(1.0, self.product / norms) if norms else 0.0

    def figures(self) -> dict[str, Any]:
        """The figures as data."""
        return {name: getattr(self, name) for name in ("entries", "wanted", "share_unmoved", "cosine")}

    def sentence(self) -> str:
        """The figures in words."""
        return (
            f"{self.share_unmoved:.2%} of the {self.wanted:,} weights that the adapter changes did not move; "
            f"the cosine of the applied with the wanted update is {self.cosine:.4f}"
        )

    def warning(self, dtype: str) -> str | None:
        """What the user should know, and do, if much is lost."""
        if not self.wanted:
            return "The adapter's update is zero everywhere: the merged model is the base."
        if self.share_unmoved <= LARGE_SHARE:
            return None
        cure = "serve the adapter unmerged" + ("" if dtype == "float32" else ", or merge with --dtype float32")
        return f"Warning: rounding to {dtype} lost part of the adapter: {self.sentence()}. Cure: {cure}."
