"""Matrix computations for methods and analysis: norms, ranks and overlaps of updates, top directions of weights.

An update dW keeps its form: `Factors`, b @ a, from LoRA; `Dense` from full fine-tuning. Both have the same few
operations, and `Factors` never forms an (out, in) matrix; its (rank, rank) cores are computed in float64. Random
numbers come from a generator seeded for the call.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

OVERSAMPLED = 8  # directions computed beyond the requested k
DEPTH = 8  # powers of W'W in one Krylov space
ROUNDS = 8
TINY, SMALL = (
    128,
    768,
)  # smaller sides up to which LAPACK decomposes a matrix, and up to which the decomposition is complete
FAINT = 1e-6  # relative to the largest singular value: smaller ones are lost in the Gram matrix
TOLERANCE = 1e-4  # of a singular pair: ||W'u - s v|| relative to the largest singular value

Svd = tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "in k"]]  # U, S descending, V: U diag(S) V'


@dataclass(frozen=True, eq=False)
class Factors:
    """dW = b @ a, with LoRA's scale in one of the factors; float32 wherever lowtax reads or writes them."""

    b: Float[Tensor, "out rank"]
    a: Float[Tensor, "rank in"]

    @property
    def rank(self) -> int:
        """Number of rows of a, an upper bound of the rank of dW."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of dW: (out, in)."""
        return self.b.shape[0], self.a.shape[1]

    def dense(self) -> Float[Tensor, "out in"]:
        """Return dW as one matrix."""
        return self.b @ self.a

    def left(self, M: Float[Tensor, "k out"]) -> Float[Tensor, "k in"]:
        """Return M @ dW, without forming dW."""
        return (M @ self.b) @ self.a

    def right(self, M: Float[Tensor, "in k"]) -> Float[Tensor, "out k"]:
        """Return dW @ M, without forming dW."""
        return self.b @ (self.a @ M)

    def sq_norm(self) -> Float[Tensor, ""]:
        """Return ||dW||_F^2 in float64, from two (rank, rank) matrices; at least 0 where b and a cancel."""
        return inner(self, self).clamp(min=0)

    def svd(self) -> Svd:
        """Return U, S, V of dW = U diag(S) V', from QR decompositions of b and a' in float64: O((out + in) rank^2).

        S has min(out, in, rank) values, some of them zero if dW has a lower rank.
        """
        Qb, Rb = torch.linalg.qr(self.b.double())
        Qa, Ra = torch.linalg.qr(self.a.double().T)
        U, S, Vh = torch.linalg.svd(Rb @ Ra.T, full_matrices=False)
        dtype = self.b.dtype
        return (Qb @ U).to(dtype), S.to(dtype), (Qa @ Vh.T).to(dtype)

    def truncated(self, k: int) -> "Factors":
        """Return the nearest dW of rank k at most, with singular values split between b and a; self if rank <= k."""
        if k >= self.rank:
            return self
        U, S, V = (part[..., :k] for part in self.svd())
        return Factors(U * S.sqrt(), (V * S.sqrt()).T.contiguous())

    def plus(self, other: "Factors") -> "Factors":
        """Return the sum of two updates; its rank is the sum of their ranks."""
        return Factors(torch.cat([self.b, other.b], dim=1), torch.cat([self.a, other.a]))


@dataclass(frozen=True, eq=False)
class Dense:
    """dW as one matrix."""

    matrix: Float[Tensor, "out in"]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of dW: (out, in)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def left(self, M: Float[Tensor, "k out"]) -> Float[Tensor, "k in"]:
        """Return M @ dW."""
        return M @ self.matrix

    def right(self, M: Float[Tensor, "in k"]) -> Float[Tensor, "out k"]:
        """Return dW @ M."""
        return self.matrix @ M

    def sq_norm(self) -> Float[Tensor, ""]:
        """Return ||dW||_F^2, summed in float64."""
        norm: Tensor = torch.linalg.vector_norm(self.matrix, dtype=torch.float64)
        return norm.square()


Update = Factors | Dense


def norm(M: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """Return ||M||_F in float64, row by row: one sum over millions of float32 numbers is up to 0.6 % low on a CPU."""
    rows: Tensor = torch.linalg.vector_norm(M, dim=1)
    total: Tensor = torch.linalg.vector_norm(rows.double())
    return total


def inner(x: Factors, y: Factors) -> Float[Tensor, ""]:
    """Return <X, Y> = trace(X'Y) in float64, without forming X or Y."""
    return ((x.b.double().T @ y.b.double()) * (x.a.double() @ y.a.double().T)).sum()


def stable_rank(S: Float[Tensor, " k"], sq_norm: float | None = None) -> float:
    """Return the stable rank ||M||_F^2 / ||M||_2^2; 0 for a zero matrix.

    Args:
        S: singular values of M, the largest first.
        sq_norm: ||M||_F^2, if S has only the largest ones.
    """
    squares = S.double().square()
    total = float(squares.sum()) if sq_norm is None else sq_norm
    return total / top if S.numel() and (top := float(squares[0])) > 0 else 0.0


def effective_rank(S: Float[Tensor, " k"]) -> float:
    """Return exp of the entropy of S / sum(S), over all singular values (Roy & Vetterli 2007); 0 for a zero matrix."""
    total = S.double().sum()
    return float(torch.special.entr(S.double() / total).sum().exp()) if total > 0 else 0.0


def overlap(
    x: Update, U: Float[Tensor, "out k"], V: Float[Tensor, "in k"], S: Float[Tensor, " k"] | None = None
) -> dict[str, float]:
    """Return the share of dW's energy in given directions; all zero for a zero update.

        left   ||U'dW||^2   / ||dW||^2       directions of the output: k/out for a dW of random direction
        right  ||dW V||^2   / ||dW||^2       of the input: k/in
        both   ||U'dW V||^2 / ||dW||^2       from those inputs to those outputs: k^2 / (out in)

    With S, the directions are weighted by S / ||S||, on each side: 1/out, 1/in and 1/(out in) for a random dW.

    Args:
        U, V: orthonormal columns.
    """
    total = float(x.sq_norm())
    if total == 0:
        return dict.fromkeys(("left", "right", "both"), 0.0)
    left, right = x.left(U.T).double(), x.right(V).double()
    if S is not None:
        weights = S.double() / S.double().norm()
        left, right = weights[:, None] * left, right * weights
    both = left @ V.double() * (1.0 if S is None else weights)
    return {
        name: float(part.square().sum()) / total for name, part in (("left", left), ("right", right), ("both", both))
    }


def random_overlap(shape: tuple[int, int], k: int, weighted: bool = False) -> dict[str, float]:
    """Return the expected `overlap` of a dW of random direction with k directions on each side."""
    out, inp = shape
    left, right = (1 / out, 1 / inp) if weighted else (min(k, out) / out, min(k, inp) / inp)
    return {"left": left, "right": right, "both": left * right}


def without_left(x: Factors, U: Float[Tensor, "out k"], share: float | Float[Tensor, " k"] = 1.0) -> Factors:
    """Return (I - U diag(share) U') dW, the update without its part in some output directions; only b changes."""
    return Factors(x.b - (U * share) @ (U.T @ x.b), x.a)


def without_right(x: Factors, V: Float[Tensor, "in k"], share: float | Float[Tensor, " k"] = 1.0) -> Factors:
    """Return dW (I - V diag(share) V'), the update without its part from some input directions; only a changes."""
    return Factors(x.b, x.a - (x.a @ (V * share)) @ V.T)


@torch.no_grad()
def top_singular(
    W: Float[Tensor, "out in"], k: int, plus: Factors | None = None, start: Float[Tensor, "in near"] | None = None
) -> Svd:
    """Return the k largest singular values of W + plus with their vectors: W ~ U diag(S) V', S descending.

    Small matrices are decomposed exactly. For others the directions come from block Krylov spaces
    span{W'WX, (W'W)^2 X, ...} (Musco & Musco 2015, arXiv:1504.05477), restarted from the best directions until every
    pair is accurate to 1e-4; after eight rounds without success the matrix is decomposed exactly. Unlike two power
    iterations (`torch.svd_lowrank`) this is accurate on flat spectra too. Signs are arbitrary, and so are the vectors
    of equal singular values.

    If k exceeds the smaller side of W, all singular values are returned. The global random state is unchanged.

    Args:
        W: (out, in), any precision.
        k: number of singular values.
        plus: an update, formed only if the whole matrix is decomposed.
        start: input directions near the result, such as those of W without the update.
    """
    W = W.detach().float()
    plus = plus or Factors(W.new_zeros(W.shape[0], 0), W.new_zeros(0, W.shape[1]))
    width = k + OVERSAMPLED
    if 2 * DEPTH * width >= min(W.shape) or (min(W.shape) <= SMALL and start is None):
        return exact_singular(torch.addmm(W, plus.b, plus.a) if plus.rank else W, k)
    generator = torch.Generator(W.device).manual_seed(0)
    X = torch.randn(W.shape[1], width, generator=generator, device=W.device)
    depths = ROUNDS * [DEPTH]
    if start is not None:
        X, depths = torch.cat([start, X[:, :OVERSAMPLED]], dim=1), [1, 2, *depths]
    for depth in depths:
        blocks = []
        for _ in range(depth):
            X = W @ X + plus.right(X)
            X = torch.linalg.qr(W.T @ X + plus.left(X.T).T).Q
            blocks.append(X)
        basis = blocks[0] if depth == 1 else torch.linalg.qr(torch.cat(blocks, dim=1)).Q
        U, S, Vh = torch.linalg.svd(W @ basis + plus.right(basis), full_matrices=False)
        X = basis @ Vh[:width].T
        U, S, V = U[:, :k], S[:k], X[:, :k]
        if (W.T @ U + plus.left(U.T).T - V * S).norm(dim=0).max() <= TOLERANCE * S[0]:
            return U, S, V
    return exact_singular(torch.addmm(W, plus.b, plus.a) if plus.rank else W, k)


def gram(W: Float[Tensor, "out in"]) -> Float[Tensor, "side side"]:
    """Return the smaller of W W' and W'W in float64: singular values from it are exact to 1e-8 of the largest."""
    M = W if W.shape[0] <= W.shape[1] else W.T
    parts = (part.double() for part in torch.split(M, 4096, dim=1))  # float64 copies of a part at a time
    return sum((part @ part.T for part in parts), start=torch.zeros((), dtype=torch.float64, device=W.device))


def exact_singular(W: Float[Tensor, "out in"], k: int) -> Svd:
    """Return the k largest singular values of W with their vectors, from a complete decomposition.

    Matrices beyond 128 x 128 are decomposed through their Gram matrix, which is several times as fast.
    """
    if min(W.shape) <= TINY:
        return _lapack(W, k)
    squares, vectors = torch.linalg.eigh(gram(W))
    return from_gram(W, squares.flip(0), vectors.flip(1), k)


def from_gram(W: Float[Tensor, "out in"], squares: Tensor, near: Tensor, k: int) -> Svd:
    """Return the result of `exact_singular`, given the eigenvalues of `gram`, descending, and its eigenvectors.

    If a singular value is too small for that (1e-6 of the largest), LAPACK decomposes W again.
    """
    S, near = squares[:k].clamp(min=0).sqrt().float(), near[:, :k].float()
    if S[-1] <= FAINT * S[0]:
        return _lapack(W, k)
    wide = W.shape[0] <= W.shape[1]
    far = (W.T if wide else W) @ near / S
    return (near, S, far) if wide else (far, S, near)


def _lapack(W: Float[Tensor, "out in"], k: int) -> Svd:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :k], S[:k], Vh[:k].T
