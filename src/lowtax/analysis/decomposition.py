"""The singular directions of one weight W, and the top ones of W + dW.

Small matrices, or all if `exact`, are decomposed completely, once for all updates, by the smaller of W W' and W'W in
float64. The Gram matrix of W + dW follows from it by a correction of low rank, and its top directions from a subspace
near them. For other matrices only the top is computed (`linalg.top_singular`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lowtax.common import linalg
from lowtax.common.linalg import Factors, Svd, Update

DEPTHS = (2, 4, 8)  # powers of the Gram matrix in the subspaces that are tried
CLOSE = 1e-3  # of an eigenvalue of the Gram matrix: the largest ||G x - s x||
DIRECT = 256  # sides up to which it is decomposed completely each time


@dataclass(frozen=True, eq=False)
class Whole:
    """G = W W' if W is wide, else W'W; its eigenvalues, descending; its eigenvectors, of W's smaller side."""

    gram: Float[Tensor, "side side"]
    squares: Float[Tensor, " side"]
    near: Float[Tensor, "side side"]


@dataclass(frozen=True, eq=False)
class Weight:
    """W and its top singular directions, or all of them if `whole` is not None."""

    matrix: Float[Tensor, "out in"]
    top: Svd
    whole: Whole | None

    @classmethod
    def of(cls, matrix: Float[Tensor, "out in"], k: int, exact: bool = False) -> "Weight":
        """Return W with at least k directions, or with all if it is small or `exact`."""
        if not exact and min(matrix.shape) > linalg.SMALL:
            return cls(matrix, linalg.top_singular(matrix, k), None)
        gram = linalg.gram(matrix)
        squares, near = torch.linalg.eigh(gram)
        whole = Whole(gram, squares.flip(0).clamp(min=0), near.flip(1))
        return cls(matrix, linalg.from_gram(matrix, whole.squares, whole.near, k), whole)

    @property
    def values(self) -> Float[Tensor, " known"]:
        """The known singular values, descending."""
        return self.top[1] if self.whole is None else self.whole.squares.sqrt().float()

    def energies(self, U: Float[Tensor, "out k"]) -> Float[Tensor, "known k"]:
        """Return squared cosines of unit vectors with all known left singular vectors of W, ordered as `values`."""
        if self.whole is None:
            return (self.top[0].T @ U).square()
        if self._wide:
            return (self.whole.near.T.float() @ U).square()
        values = self.values
        present = values > linalg.FAINT * values[0]
        products = self.whole.near.T.float() @ (self.matrix.T @ U)
        return torch.where(present[:, None], products / values.clamp(min=1e-30)[:, None], 0.0).square()

    def tuned(self, update: Update, k: int) -> tuple[Float[Tensor, "out k"], Float[Tensor, " k"]]:
        """Return the first k left singular vectors of W + dW, with their values."""
        if self.whole is None:
            return self._tuned_top(update, k)
        gram = self._tuned_gram(self.whole.gram, update)
        squares, near = _top(gram, k, self._start(update, k))
        values, near = squares.clamp(min=0).sqrt().float(), near.float()
        if self._wide:
            return near, values
        return (self.matrix @ near + update.right(near)) / values.clamp(min=1e-30), values

    @property
    def _wide(self) -> bool:
        return self.matrix.shape[0] <= self.matrix.shape[1]

    def _tuned_top(self, update: Update, k: int) -> tuple[Float[Tensor, "out k"], Float[Tensor, " k"]]:
        V = self.top[2]
        if isinstance(update, Factors):
            start = torch.cat([V, update.svd()[2][:, :k]], dim=1)
            return linalg.top_singular(self.matrix, k, update, start)[:2]
        return linalg.top_singular(self.matrix + update.matrix, k, start=V)[:2]

    def _tuned_gram(self, gram: Float[Tensor, "side side"], update: Update) -> Float[Tensor, "side side"]:
        """Return (W + dW)(W + dW)' or its mirror image, as the Gram matrix of W and what dW adds to it."""
        if not isinstance(update, Factors):
            return linalg.gram(self.matrix + update.matrix)
        W, (b, a) = self.matrix, (update.b.double(), update.a.double())
        if not self._wide:
            W, b, a = W.T, a.T, b.T
        cross = (W @ a.T.float()).double() @ b.T
        return gram + cross + cross.T + b @ (a @ a.T) @ b.T

    def _start(self, update: Update, k: int) -> Float[Tensor, "side near"]:
        """Return directions of the smaller side near those of W + dW: the first ones of W, and those of an adapter."""
        assert self.whole is not None
        first = self.whole.near[:, : 2 * k]
        if not isinstance(update, Factors):
            return first
        U, _, V = update.svd()
        return torch.cat([first, (U if self._wide else V)[:, :k].double()], dim=1)


def _top(gram: Float[Tensor, "side side"], k: int, start: Float[Tensor, "side near"]) -> tuple[Tensor, Tensor]:
    """Return the k largest eigenvalues, descending, with their vectors, from Krylov spaces that start near them."""
    generator = torch.Generator().manual_seed(0)
    extra = torch.randn(len(gram), linalg.OVERSAMPLED, generator=generator, dtype=gram.dtype)
    X = torch.cat([start, extra], dim=1)
    for depth in DEPTHS:
        if len(gram) <= max(DIRECT, 2 * depth * X.shape[1]):
            break
        blocks = [torch.linalg.qr(X).Q]
        for _ in range(depth):
            blocks.append(torch.linalg.qr(gram @ blocks[-1]).Q)
        basis = torch.linalg.qr(torch.cat(blocks[1:], dim=1)).Q
        squares, within = torch.linalg.eigh(basis.T @ (gram @ basis))
        squares, X = squares.flip(0), basis @ within.flip(1)[:, : X.shape[1]]
        if (gram @ X[:, :k] - X[:, :k] * squares[:k]).norm(dim=0).max() <= CLOSE * squares[k - 1]:
            return squares[:k], X[:, :k]
    squares, vectors = torch.linalg.eigh(gram)
    return squares.flip(0)[:k], vectors.flip(1)[:, :k]
