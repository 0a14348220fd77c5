"""Matrix computations that methods and analysis share: the anatomy of updates, top directions of weights.

An update dW is kept as it was made: `Factors`, b @ a, of LoRA; `Dense` of full fine-tuning. Both answer the same few
questions, and the first never forms an (out, in) matrix. The cores of that, (rank, rank), are computed in float64.
What is random is seeded for the call alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

OVERSAMPLED = 8  # directions carried beyond the k that are asked for
DEPTH = 8  # powers of W'W in one Krylov space
ROUNDS = 8
TINY, SMALL = 128, 768  # smaller sides up to which LAPACK decomposes a matrix, and up to which all of it is decomposed
FAINT = 1e-6  # of the largest singular value: less is lost in the Gram matrix
TOLERANCE = 1e-4  # of a singular pair: ||W'u - s v|| relative to the largest singular value

Svd = tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "in k"]]  # U, S descending, V: U diag(S) V'


@dataclass(frozen=True, eq=False)
class Factors:
    """dW = b @ a, with LoRA's scale inside of one of them; float32 wherever lowtax reads or writes them."""

    b: Float[Tensor, "out rank"]
    a: Float[Tensor, "rank in"]

    @property
    def rank(self) -> int:
        """Rows of a: an upper bound of the rank of dW."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of dW: (out, in)."""
        return self.b.shape[0], self.a.shape[1]

    def dense(self) -> Float[Tensor, "out in"]:
        """dW, formed."""
        return self.b @ self.a

    def left(self, M: Float[Tensor, "k out"]) -> Float[Tensor, "k in"]:
        """M @ dW, without forming dW."""
        return (M @ self.b) @ self.a

    def right(self, M: Float[Tensor, "in k"]) -> Float[Tensor, "out k"]:
        """dW @ M, without forming dW."""
        return self.b @ (self.a @ M)

    def sq_norm(self) -> Float[Tensor, ""]:
        """||dW||_F^2 in float64, from two (rank, rank) matrices; not below 0 where b and a cancel."""
        return inner(self, self).clamp(min=0)

    def svd(self) -> Svd:
        """dW = U diag(S) V' through the QR decompositions of b and a', in O((out + in) rank^2) and float64 within.

        S has min(out, in, rank) values, zeros among them where dW is of lower rank.
        """
        Qb, Rb = torch.linalg.qr(self.b.double())
        Qa, Ra = torch.linalg.qr(self.a.double().T)
        U, S, Vh = torch.linalg.svd(Rb @ Ra.T, full_matrices=False)
        dtype = self.b.dtype
        return (Qb @ U).to(dtype), S.to(dtype), (Qa @ Vh.T).to(dtype)

    def truncated(self, k: int) -> "Factors":
        """The nearest dW of rank k at most, its singular values shared between b and a; itself if it has no more."""
        if k >= self.rank:
            return self
        U, S, V = (part[..., :k] for part in self.svd())
        return Factors(U * S.sqrt(), (V * S.sqrt()).T.contiguous())

    def plus(self, other: "Factors") -> "Factors":
        """The sum of two updates; its rank is the sum of their ranks."""
        return Factors(torch.cat([self.b, other.b], dim=1), torch.cat([self.a, other.a]))


@dataclass(frozen=True, eq=False)
class Dense:
    """dW as it is, entry by entry."""

    matrix: Float[Tensor, "out in"]

    @property
    def shape(self) -> tuple[int, int]:
        """Of dW: (out, in)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def left(self, M: Float[Tensor, "k out"]) -> Float[Tensor, "k in"]:
        """M @ dW."""
        return M @ self.matrix

    def right(self, M: Float[Tensor, "in k"]) -> Float[Tensor, "out k"]:
        """dW @ M."""
        return self.matrix @ M

    def sq_norm(self) -> Float[Tensor, ""]:
        """||dW||_F^2, summed in float64."""
        norm: Tensor = torch.linalg.vector_norm(self.matrix, dtype=torch.float64)
        return norm.square()


Update = Factors | Dense


def norm(M: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """||M||_F in float64, row by row: one sum over millions of float32 numbers comes out up to 0.6 % low on a CPU."""
    rows: Tensor = torch.linalg.vector_norm(M, dim=1)
    found: Tensor = torch.linalg.vector_norm(rows.double())
    return found


def inner(x: Factors, y: Factors) -> Float[Tensor, ""]:
    """<X, Y> = trace(X'Y), in float64 and without forming X or Y."""
    return ((x.b.double().T @ y.b.double()) * (x.a.double() @ y.a.double().T)).sum()


def stable_rank(S: Float[Tensor, " k"], sq_norm: float | None = None) -> float:
    """||M||_F^2 / ||M||_2^2 of singular values, the largest first; 0 for a zero matrix.

    Args:
        sq_norm: ||M||_F^2, where S has only the largest ones.
    """
    squares = S.double().square()
    total = float(squares.sum()) if sq_norm is None else sq_norm
    return total / top if S.numel() and (top := float(squares[0])) > 0 else 0.0


def effective_rank(S: Float[Tensor, " k"]) -> float:
    """exp of the entropy of p = S / sum(S) over all singular values (Roy & Vetterli 2007); 0 for a zero matrix."""
    total = S.double().sum()
    return float(torch.special.entr(S.double() / total).sum().exp()) if total > 0 else 0.0


def overlap(
    x: Update, U: Float[Tensor, "out k"], V: Float[Tensor, "in k"], S: Float[Tensor, " k"] | None = None
) -> dict[str, float]:
    """The share of dW's energy in given directions; all zero for a zero update.

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
    """What `overlap` expects of a dW of random direction, in k directions a side."""
    out, inp = shape
    left, right = (1 / out, 1 / inp) if weighted else (min(k, out) / out, min(k, inp) / inp)
    return {"left": left, "right": right, "both": left * right}


def without_left(x: Factors, U: Float[Tensor, "out k"], share: float | Float[Tensor, " k"] = 1.0) -> Factors:
    """(I - U diag(share) U') dW: the update without its part towards some directions of the output; b alone changes."""
    return Factors(x.b - (U * share) @ (U.T @ x.b), x.a)


def without_right(x: Factors, V: Float[Tensor, "in k"], share: float | Float[Tensor, " k"] = 1.0) -> Factors:
    """dW (I - V diag(share) V'): the update without its part from some directions of the input; a alone changes."""
    return Factors(x.b, x.a - (x.a @ (V * share)) @ V.T)


@torch.no_grad()
def top_singular(
    W: Float[Tensor, "out in"], k: int, plus: Factors | None = None, start: Float[Tensor, "in near"] | None = None
) -> Svd:
    """The k largest singular values of W + plus with their vectors: W ~ U diag(S) V', S descending.

    Small matrices are decomposed exactly. For others a block Krylov space span{W'WX, (W'W)^2 X, ...} is searched
    (Musco & Musco 2015, arXiv:1504.05477), again from the best directions found, until every pair is accurate to
    1e-4; what eight rounds do not settle is decomposed exactly. Unlike two power iterations (`torch.svd_lowrank`)
    this holds on flat spectra too. Signs are arbitrary, and so are the vectors of equal singular values.

    Where k exceeds the smaller side of W, all singular values are returned. The global random state is not touched.

    Args:
        plus: an update, which is formed only where the whole matrix is decomposed.
        start: directions of the input near the wanted ones, such as those of W without the update.
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
    """W W' or W'W, whichever is smaller, in float64: its square roots are exact to 1e-8 of the largest."""
    M = W if W.shape[0] <= W.shape[1] else W.T
    parts = (part.double() for part in torch.split(M, 4096, dim=1))  # float64 copies of a part at a time
    return sum((part @ part.T for part in parts), start=torch.zeros((), dtype=torch.float64, device=W.device))


def exact_singular(W: Float[Tensor, "out in"], k: int) -> Svd:
    """The k largest singular values of W with their vectors, from the whole decomposition.

    Of matrices beyond 128 x 128 that of the Gram matrix, which is several times as fast.
    """
    if min(W.shape) <= TINY:
        return _lapack(W, k)
    squares, near = torch.linalg.eigh(gram(W))
    return from_gram(W, squares.flip(0), near.flip(1), k)


def from_gram(W: Float[Tensor, "out in"], squares: Tensor, near: Tensor, k: int) -> Svd:
    """`exact_singular`, given the eigenvalues of `gram`, descending, and its eigenvectors.

    Where W has singular values too small for that (1e-6 of the largest), LAPACK decomposes it again.
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
