"""Moves of a model's weights in memory and back: along random directions, towards a second model; mixed adapters.

    ground = Ground(model, perturbed(model))
    d = {name: direction(name, W, seed=0) for name, W in ground.base.items()}
    with ground.moved(along([(0.1, d)])):
        ...                                   # the model is another one here
    ...                                       # and bit for bit the old one here

A copy of the weights and one of each direction lie in the CPU's memory, in the precision of the weights. Every move
starts from the copy, in float32, and is rounded once: nothing adds up over a slice (the paper's code adds up steps).
Adapters are not merged: a point of a slice between two of them, or along one, is an adapter of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lowtax.adapterfile import Adapter, read_adapter, write_adapter
from lowtax.errors import UserError
from lowtax.linalg import Factors
from lowtax.records import row_id

Move = Callable[[str, Tensor], Tensor]  # a weight's name and its base in float32 -> the weight, moved
Tensors = Mapping[str, Tensor]


class Ground:
    """The weights that move, `weights`, and the copy that they start from and return to, `base`; both by name."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        found = dict(model.named_parameters())
        self.weights = {name: found[name] for name in names}
        self.base = {name: weight.detach().to("cpu", copy=True) for name, weight in self.weights.items()}

    @contextmanager
    def moved(self, move: Move) -> Iterator[None]:
        """The weights where `move` puts them; afterwards, whatever happens, the bits that they had."""
        try:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(move(name, self.base[name].to(weight.device).float()))
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(self.base[name])


def perturbed(model: nn.Module) -> list[str]:
    """The parameters that a random direction moves: all but those of norms; embeddings and output head included.

    What the model shares (a head tied to the embeddings) is one parameter and moves once.
    """
    return [name for name, _ in model.named_parameters() if "norm" not in name.lower()]


def direction(name: str, base: Tensor, seed: int, axis: int = 0, against: Tensor | None = None) -> Tensor:
    """A Gaussian direction of one tensor, scaled to the tensor's Frobenius norm and in its precision; on the CPU.

    It depends on the seed, the axis and the tensor's name and shape alone. (In the paper's code one stream of random
    numbers runs through all tensors, so that their order changes every direction.) Zeros for a tensor of zeros.

    Args:
        base: the tensor, of any shape.
        axis: 0, or 1 for the second direction of a plane.
        against: a direction of the same tensor, to be orthogonal to: orthogonal in every tensor, two directions are
            so as a whole. (`orthogonal_to` of the paper's code prints the cosine and changes nothing.)
    """
    generator = torch.Generator().manual_seed(int(row_id("direction", seed, axis, name), 16) % 2**63)
    d = torch.randn(base.shape, generator=generator)
    if against is not None and (square := against.float().square().sum()) > 0:
        d -= (d * against.float()).sum() / square * against.float()
    norm = torch.linalg.vector_norm(d)
    return (d * (torch.linalg.vector_norm(base.float()) / norm if norm > 0 else 0.0)).to(base.dtype)


def along(steps: Sequence[tuple[float, Tensors]]) -> Move:
    """W + the sum of step * direction."""

    def move(name: str, W: Tensor) -> Tensor:
        for step, directions in steps:
            W = W + step * directions[name].to(W.device).float()
        return W

    return move


def towards(other: Tensors, t: float) -> Move:
    """(1 - t) W + t W': exactly W at 0 and W' at 1."""
    return lambda name, W: torch.lerp(W, other[name].to(W.device).float(), t)


def counterpart(model: nn.Module, other: nn.Module, ref: str) -> dict[str, Tensor]:
    """The weights of `other` that differ from those of `model`, by name.

    Raises:
        UserError: The two are not of one shape, or are the same.
    """
    mine, found = dict(model.named_parameters()), dict(other.named_parameters())
    if strange := sorted(mine.keys() ^ found.keys()):
        raise UserError(f"--to {ref} is another architecture than --model: only one of them has {strange[0]}.")
    for name, weight in mine.items():
        if weight.shape != found[name].shape:
            raise UserError(
                f"--to {ref} does not fit --model: {name} is {tuple(found[name].shape)} in it and "
                f"{tuple(weight.shape)} in the model."
            )
    differ = {name: W.detach() for name, W in found.items() if not torch.equal(W, mine[name].to(W.device))}
    if not differ:
        raise UserError(f"--to {ref} has the weights of --model: there is nothing between them.")
    return differ


class Mixtures:
    """Adapters (1 - t) A + t B, with exact factors whose ranks add up; no A is the model without an adapter.

    At 0 and 1 they are A and B themselves. The others are written as small adapters into `folder`, for the engine.

    Raises:
        UserError: A or B is more than a plain LoRA.
    """

    def __init__(self, a: Path | None, b: Path, folder: Path) -> None:
        self.folder, self.ends = folder, (a, b)
        self.a, self.b = read_adapter(a) if a else None, read_adapter(b)

    def at(self, t: float) -> str | None:
        """The PEFT folder of a mixture; None is the model without an adapter."""
        if t in (0.0, 1.0):
            end = self.ends[int(t)]
            return str(end) if end else None
        where = self.folder / str(t)
        if not where.exists():
            write_adapter(where, self.mixture(t))
        return str(where)

    def mixture(self, t: float) -> Adapter:
        """The factors at t."""
        factors = {name: _times(t, update) for name, update in self.b.factors.items()}
        embeddings = self.b.embeddings
        if self.a is not None:
            embeddings |= self.a.embeddings
            for name, update in self.a.factors.items():
                part = _times(1 - t, update)
                factors[name] = factors[name].plus(part) if name in factors else part
        return Adapter(self.b.config, {}, factors, embeddings)


def _times(number: float, update: Factors) -> Factors:
    return Factors(number * update.b, update.a)
