"""Matrix computations that the methods share: in float32, and seeded for the call alone."""

import torch
from jaxtyping import Float
from torch import Tensor

OVERSAMPLED = 8  # directions carried beyond the k that are asked for
DEPTH = 8  # powers of W'W in one Krylov space
ROUNDS = 8
TOLERANCE = 1e-4  # of a singular pair: ||W'u - s v|| relative to the largest singular value


@torch.no_grad()
def top_singular(
    W: Float[Tensor, "out in"], k: int
) -> tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "in k"]]:
    """The k largest singular values of W with their vectors: W ~ U diag(S) V', S descending.

    Small matrices are decomposed exactly. For others a block Krylov space span{W'WX, (W'W)^2 X, ...} is searched
    (Musco & Musco 2015, arXiv:1504.05477), again from the best directions found, until every pair is accurate to
    1e-4; what eight rounds do not settle is decomposed exactly. Unlike two power iterations (`torch.svd_lowrank`)
    this holds on flat spectra too. Signs are arbitrary, and so are the vectors of equal singular values.

    Where k exceeds the smaller side of W, all singular values are returned. The global random state is not touched.
    """
    W = W.detach().float()
    width = k + OVERSAMPLED
    if 2 * DEPTH * width >= min(W.shape):
        return _exact(W, k)
    generator = torch.Generator(W.device).manual_seed(0)
    X = torch.randn(W.shape[1], width, generator=generator, device=W.device)
    for _ in range(ROUNDS):
        blocks = []
        for _ in range(DEPTH):
            X = torch.linalg.qr(W.T @ (W @ X)).Q
            blocks.append(X)
        basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
        U, S, Vh = torch.linalg.svd(W @ basis, full_matrices=False)
        X = basis @ Vh[:width].T
        U, S, V = U[:, :k], S[:k], X[:, :k]
        if (W.T @ U - V * S).norm(dim=0).max() <= TOLERANCE * S[0]:
            return U, S, V
    return _exact(W, k)


def _exact(
    W: Float[Tensor, "out in"], k: int
) -> tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "in k"]]:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :k], S[:k], Vh[:k].T
