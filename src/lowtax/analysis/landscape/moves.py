"""Moves of a model's weights in memory and back, along random directions or towards a second model; mixed adapters.

    ground = Ground(model, perturbed(model))
    d = {name: direction(name, W, seed=0) for name, W in ground.base.items()}
    with ground.moved(along([(0.1, d)])):
        ...                                   # here the model has moved
    ...                                       # here it is the old one, bit for bit

The CPU's memory holds a copy of the weights and of each direction, in the precision of the weights. Every move starts
from the copy, in float32, and is rounded once, so that no errors add up over a slice (the paper's code adds up steps).
Adapters are not merged: a point of a slice between two adapters, or along one, is a new adapter.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lowtax.analysis.landscape.slices import Place, Slice
from lowtax.common.borders import expanded
from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.common.records import row_id
from lowtax.engines.hf.engine import HF
from lowtax.models import loading
from lowtax.models.adapters import Adapter, is_adapter, read_adapter, write_adapter

Move = Callable[[str, Tensor], Tensor]  # a weight's name and its base in float32 -> the weight, moved
Tensors = Mapping[str, Tensor]


class Ground:
    """The weights that move, and the copy `base` from which they start and to which they return; both by name."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        parameters = dict(model.named_parameters())
        self.weights = {name: parameters[name] for name in names}
        self.base = {name: weight.detach().to("cpu", copy=True) for name, weight in self.weights.items()}

    @contextmanager
    def moved(self, move: Move) -> Iterator[None]:
        """Move the weights, and restore them bit for bit afterwards, also after an error."""
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
    """Return the parameters that a random direction moves: all but those of norms, also embeddings and output head.

    A shared parameter (a head tied to the embeddings) moves once.
    """
    return [name for name, _ in model.named_parameters() if "norm" not in name.lower()]


def direction(name: str, base: Tensor, seed: int, axis: int = 0, against: Tensor | None = None) -> Tensor:
    """Return a Gaussian direction of one tensor, with the tensor's Frobenius norm and precision, on the CPU.

    It depends only on the seed, the axis and the tensor's name and shape. (In the paper's code one stream of random
    numbers runs through all tensors, so that their order changes every direction.) A tensor of zeros has zeros.

    Args:
        base: the tensor, of any shape.
        axis: 0, or 1 for the second direction of a plane.
        against: a direction of the same tensor to be orthogonal to. Two directions that are orthogonal in every tensor
            are orthogonal as a whole. (`orthogonal_to` of the paper's code prints the cosine and changes nothing.)
    """
    generator = torch.Generator().manual_seed(int(row_id("direction", seed, axis, name), 16) % 2**63)
    d = torch.randn(base.shape, generator=generator)
    if against is not None and (square := against.float().square().sum()) > 0:
        d -= (d * against.float()).sum() / square * against.float()
    norm = torch.linalg.vector_norm(d)
    return (d * (torch.linalg.vector_norm(base.float()) / norm if norm > 0 else 0.0)).to(base.dtype)


def along(steps: Sequence[tuple[float, Tensors]]) -> Move:
    """Return the move to W + the sum of step * direction."""

    def move(name: str, W: Tensor) -> Tensor:
        for step, directions in steps:
            W = W + step * directions[name].to(W.device).float()
        return W

    return move


def towards(other: Tensors, t: float) -> Move:
    """Return the move to (1 - t) W + t W', which is exactly W at 0 and W' at 1."""
    return lambda name, W: torch.lerp(W, other[name].to(W.device).float(), t)


def within(second: Tensors, third: Tensors, alpha: float, beta: float) -> Move:
    """Return the move to W + alpha (W' - W) + beta (W'' - W); a weight that one of the two lacks is W there."""

    def move(name: str, W: Tensor) -> Tensor:
        ends = [(step, of[name]) for step, of in ((alpha, second), (beta, third)) if name in of]
        own = W * (1 - sum(step for step, _ in ends))  # so that an end is exactly that end
        return sum((step * end.to(W.device).float() for step, end in ends), start=own)

    return move


def counterpart(model: nn.Module, other: nn.Module, ref: str, option: str = "--to") -> dict[str, Tensor]:
    """Return the weights of `other` that differ from those of `model`, by name. `option` names it in an error.

    Raises:
        UserError: The two have different shapes, or the same weights.
    """
    first, second = dict(model.named_parameters()), dict(other.named_parameters())
    if unshared := sorted(first.keys() ^ second.keys()):
        raise UserError(f"{option} {ref} is another architecture than --model: only one of them has {unshared[0]}.")
    for name, weight in first.items():
        if weight.shape != second[name].shape:
            raise UserError(
                f"{option} {ref} does not fit --model: {name} is {tuple(second[name].shape)} in it and "
                f"{tuple(weight.shape)} in the model."
            )
    differ = {name: W.detach() for name, W in second.items() if not torch.equal(W, first[name].to(W.device))}
    if not differ:
        raise UserError(f"{option} {ref} has the weights of --model: there is nothing between them.")
    return differ


class Mixtures:
    """Adapters (1 - t - u) A + t B + u C with exact factors, whose ranks add up. A is None for the model alone.

    At the ends they are A, B and C themselves. The others are written as small adapters to `folder`, for the engine.

    Raises:
        UserError: One of them is more than a plain LoRA.
    """

    def __init__(self, a: Path | None, b: Path, folder: Path, ref: str, c: Path | None = None) -> None:
        self.folder, self.ends = folder, (a, b, c)
        self.parts = [read_adapter(end, ref) if end else None for end in self.ends]

    def at(self, t: float, u: float = 0.0) -> str | None:
        """Return the PEFT folder of a mixture; None for the model without an adapter."""
        shares = (1 - t - u, t, u)
        if sorted(shares) == [0, 0, 1]:
            end = self.ends[shares.index(1)]
            return str(end) if end else None
        where = self.folder / (f"{t} {u}" if u else str(t))
        if not where.exists():
            write_adapter(where, self.mixture(t, u))
        return str(where)

    def mixture(self, t: float, u: float = 0.0) -> Adapter:
        """Return the mixture at t, and at u towards the third adapter."""
        factors, embeddings = dict[str, Factors](), frozenset[str]()
        for share, part in ((t, self.parts[1]), (1 - t - u, self.parts[0]), (u, self.parts[2])):
            if part is None:
                continue
            embeddings |= part.embeddings
            for name, update in part.factors.items():
                own = _times(share, update)
                factors[name] = factors[name].plus(own) if name in factors else own
        main = self.parts[1]
        assert main is not None
        return Adapter(main.config, {}, factors, embeddings)


def _times(number: float, update: Factors) -> Factors:
    return Factors(number * update.b, update.a)


class Walk:
    """The walk along a slice. `ground.moved(move(place))` and `adapter(place)` together are the model at a place.

    Args:
        adapter, to: as in `landscape.Ask`.
        scratch: an empty folder for the mixed adapters.

    Raises:
        UserError: The two ends do not fit each other.
    """

    def __init__(
        self,
        engine: HF,
        slice_: Slice,
        adapter: Path | None,
        to: str | None,
        precision: str,
        scratch: Path,
        third: str | None = None,
    ) -> None:
        self.engine, self.slice, self.given = engine, slice_, adapter
        self.mixtures = self.other = None
        self.third: dict[str, Tensor] = {}
        if slice_.along == "adapter" and adapter is not None:
            self.mixtures = Mixtures(None, adapter, scratch, engine.ref)
        elif to is not None and is_adapter(to):
            self.mixtures = Mixtures(adapter, expanded(to), scratch, engine.ref, expanded(third) if third else None)
        elif to is not None:
            cpu = torch.device("cpu")
            self.other = counterpart(engine.model, loading.load_model(to, precision, cpu), to)
            if third is not None:
                self.third = counterpart(engine.model, loading.load_model(third, precision, cpu), third, "--third")
        # Take the names now: PEFT renames the modules with the first adapter, and keeps their weights.
        names = perturbed(engine.model) if slice_.seeds else list({**(self.other or {}), **self.third})
        self.ground = Ground(engine.model, names)
        self._directions: tuple[int, list[dict[str, Tensor]]] = (-1, [])

    def adapter(self, place: Place) -> str | None:
        """Return the adapter of the requests at a place."""
        if self.mixtures is not None:
            return self.mixtures.at(place.alpha, place.beta if self.slice.along == "between" else 0.0)
        return str(self.given) if self.given else None

    def move(self, place: Place) -> Move:
        """Return the move of the weights to a place."""
        if self.other is not None and self.third:
            return within(self.other, self.third, place.alpha, place.beta)
        if self.other is not None:
            return towards(self.other, place.alpha)
        steps = place.steps(self.slice.along)
        if not any(steps):
            return along([])
        if self._directions[0] != place.seed:
            self._directions = (place.seed, self.directions(place.seed))
        return along(list(zip(steps, self._directions[1], strict=False)))  # a line has no second direction

    def directions(self, seed: int) -> list[dict[str, Tensor]]:
        """Return the random directions of a seed, by axis; along an adapter, one orthogonal to it in every tensor."""
        base = self.ground.base
        if self.slice.along == "adapter" and self.given is not None:
            updates = read_adapter(self.given, self.engine.ref).factors
            of = {f"{name}.weight": update for name, update in updates.items()}
            return [{n: direction(n, W, seed, 0, of[n].dense() if n in of else None) for n, W in base.items()}]
        first = {name: direction(name, W, seed) for name, W in base.items()}
        if not self.slice.two:
            return [first]
        return [first, {name: direction(name, W, seed, 1, first[name]) for name, W in base.items()}]
