"""A loaded model at the places of a slice: the move of its weights, and the adapter of its requests."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from lowtax.analysis.landscape.moves import Ground, Mixtures, Move, along, counterpart, direction, perturbed, towards
from lowtax.analysis.landscape.slices import Place, Slice
from lowtax.engines.hf.engine import HF
from lowtax.models import loading
from lowtax.models.adapters import is_adapter, read_adapter


class Walk:
    """The walk along a slice. `ground.moved(move(place))` and `adapter(place)` together are the model at a place.

    Args:
        adapter, to: as in `landscape.Ask`.
        scratch: a folder for the mixed adapters, emptied first and removed by `close`.

    Raises:
        UserError: The two ends do not fit each other.
    """

    def __init__(
        self, engine: HF, slice_: Slice, adapter: Path | None, to: str | None, precision: str, scratch: Path
    ) -> None:
        self.engine, self.slice, self.given, self.scratch = engine, slice_, adapter, scratch
        self.close()
        self.mixtures = self.other = None
        if slice_.along == "adapter" and adapter is not None:
            self.mixtures = Mixtures(None, adapter, scratch)
        elif to is not None and is_adapter(to):
            self.mixtures = Mixtures(adapter, Path(to).expanduser(), scratch)
        elif to is not None:
            self.other = counterpart(engine.model, loading.load_model(to, precision, torch.device("cpu")), to)
        # Take the names now: PEFT renames the modules with the first adapter, and keeps their weights.
        names = perturbed(engine.model) if slice_.seeds else list(self.other or ())
        self.ground = Ground(engine.model, names)
        self._directions: tuple[int, list[dict[str, Tensor]]] = (-1, [])

    def adapter(self, place: Place) -> str | None:
        """Return the adapter of the requests at a place."""
        if self.mixtures is not None:
            return self.mixtures.at(place.alpha)
        return str(self.given) if self.given else None

    def move(self, place: Place) -> Move:
        """Return the move of the weights to a place."""
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
            updates = read_adapter(self.given).factors
            of = {f"{name}.weight": update for name, update in updates.items()}
            return [{n: direction(n, W, seed, 0, of[n].dense() if n in of else None) for n, W in base.items()}]
        first = {name: direction(name, W, seed) for name, W in base.items()}
        if not self.slice.two:
            return [first]
        return [first, {name: direction(name, W, seed, 1, first[name]) for name, W in base.items()}]

    def close(self) -> None:
        """Remove the mixed adapters."""
        shutil.rmtree(self.scratch, ignore_errors=True)
