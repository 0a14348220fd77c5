"""The anatomy of one update dW of a weight W: sizes, ranks, overlap, intruder dimensions, and what rounding leaves.

Overlap: shares of dW's energy in the top singular directions of W, as Xue & Mirzasoleiman (arXiv:2507.17075) regularise
it. `linalg.overlap` has the formulas, and the shares of a dW of random direction.

Intruder dimensions (Shuttleworth et al. 2024, arXiv:2410.21228, Algorithm 1; code: reeceshuttle/intruder-dimensions
@ d4445a2): of the first `tested` left singular vectors of W + dW, those whose absolute cosine with every left
singular vector of W is below `epsilon`. If singular values of W are close together, a small dW rotates their vectors
within their common space, and this definition counts them although nothing new was added. `rotated` counts the
intruders with more than half of their energy in directions of W whose singular values are within 10 % of theirs (or
within ||dW||_2, if that is less).

For matrices with both sides above 768, only the top of W is known unless `exact`. A vector is then no intruder if it
meets one of those directions, an intruder if too little of it is outside of them, and undecided otherwise.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lowtax.analysis.decomposition import Weight
from lowtax.common import linalg
from lowtax.common.linalg import Dense, Factors, Update
from lowtax.models.names import in_layer, layer_of
from lowtax.models.rounding import ROWS, Rounding

CLUSTER = 0.1  # of a singular value: the distance of values whose vectors may have mixed with its own
SIDES = ("left", "right", "both")


@dataclass(frozen=True)
class Settings:
    """The settings of an analysis.

    top: singular directions of W on each side, for overlaps. tested: singular vectors of W + dW, for intruders. exact:
    decompose large matrices completely, which takes minutes for each.
    """

    top: int = 16
    tested: int = 10
    epsilon: float = 0.5
    exact: bool = False

    @property
    def known(self) -> int:
        """The number of directions of W that are computed if it is too large for all."""
        return max(self.top, 2 * self.tested)


def describe(name: str, weight: Weight, update: Update, settings: Settings) -> dict[str, Any]:
    """Return the anatomy of one update as data; all figures of a zero update are 0."""
    W, k = weight.matrix, min(settings.top, *weight.matrix.shape)
    S = _spectrum(update, settings)
    norm, spectral = float(update.sq_norm()) ** 0.5, float(S[0]) if S.numel() else 0.0
    whole = isinstance(update, Factors) or len(S) == min(W.shape)
    U, values, V = (part[..., :k] for part in weight.top)
    return {
        "name": name,
        "layer": layer_of(name),
        "module": in_layer(name),
        "shape": list(W.shape),
        "rank": update.rank if isinstance(update, Factors) else None,
        "norm": norm,
        "relative_norm": norm / float(linalg.norm(W)),
        "spectral_norm": spectral,
        "relative_spectral_norm": spectral / float(weight.values[0]),
        "stable_rank": linalg.stable_rank(S, norm**2),
        "effective_rank": linalg.effective_rank(S) if whole else None,
        "top": k,
        "overlap": linalg.overlap(update, U, V),
        "random_overlap": linalg.random_overlap(update.shape, k),
        "weighted_overlap": linalg.overlap(update, U, V, values),
        "random_weighted_overlap": linalg.random_overlap(update.shape, k, weighted=True),
        "intruders": intruders(weight, update, spectral, settings),
        "bfloat16": unmoved(W, update).figures(),
    }


def _spectrum(update: Update, settings: Settings) -> Float[Tensor, " k"]:
    """Return the singular values of an update that may be above zero; of a large matrix only the first unless exact."""
    if isinstance(update, Factors):
        return update.svd()[1]
    if settings.exact or min(update.shape) <= linalg.SMALL:
        squares: Tensor = torch.linalg.eigvalsh(linalg.gram(update.matrix))
        return squares.flip(0).clamp(min=0).sqrt()
    return linalg.top_singular(update.matrix, 1)[1]


def intruders(weight: Weight, update: Update, spectral: float, settings: Settings) -> dict[str, int]:
    """Count the intruders among the first singular vectors of W + dW.

    Args:
        spectral: ||dW||_2.
    """
    tested = min(settings.tested, *weight.matrix.shape)
    counts = {"tested": tested, "found": 0, "rotated": 0, "undecided": 0}
    if not spectral:
        return counts
    U, S = weight.tuned(update, tested)
    energies = weight.energies(U)
    met = energies.max(dim=0).values >= settings.epsilon**2
    outside = 1 - energies.sum(dim=0)
    decided = met | (outside < settings.epsilon**2) if weight.whole is None else torch.full_like(met, True)
    window = (CLUSTER * S).clamp(max=spectral)
    rotated = (energies * ((weight.values[:, None] - S).abs() <= window)).sum(dim=0) > 0.5
    return counts | {
        "found": int((~met & decided).sum()),
        "rotated": int((~met & decided & rotated).sum()),
        "undecided": int((~decided).sum()),
    }


def unmoved(W: Float[Tensor, "out in"], update: Update) -> Rounding:
    """Return what rounding W + dW to bfloat16 leaves of dW. The rows of W are processed in blocks."""
    rounding = Rounding()
    for start in range(0, len(W), ROWS):
        rows = slice(start, start + ROWS)
        part = update.matrix[rows] if isinstance(update, Dense) else update.b[rows] @ update.a
        rounding.add(W[rows], part, torch.bfloat16)
    return rounding
