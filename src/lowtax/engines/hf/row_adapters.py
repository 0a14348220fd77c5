"""The adapters of the rows of a batch: each row's update is added to the output of the layer that all rows share.

PEFT does the same with `adapter_names`, but sets a hook on every layer for each token, and sorts the rows by adapter in
every layer anew: with several adapters that took longer than the model (bench/mixed_adapters.py). Here the rows are
sorted once, until other rows are in the batch. The products are PEFT's, in the precision of the adapter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora.layer import Linear, LoraLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.functional import linear

BASE = "__base__"  # PEFT's name for rows without an adapter
Places = slice | Tensor  # of rows in a batch


class Factors(NamedTuple):
    """One adapter in one layer: x -> (x A^T B^T + bias) * scale."""

    a: Float[Tensor, "rank inputs"]
    b: Float[Tensor, "outputs rank"]
    bias: Float[Tensor, " outputs"] | None
    scale: float


class RowAdapters:
    """The LoRA layers of a model, each of which can serve every row with another adapter."""

    def __init__(self, model: PeftModel) -> None:
        """Take over the layers of a model with all its adapters; make it anew when one is loaded."""
        self.parts: list[tuple[str, Places]] | None = None  # adapter and its rows; None: PEFT's own way
        self.rows = 0
        self._names: list[str] = []
        adapted = [m for m in model.modules() if isinstance(m, LoraLayer | AuxiliaryTrainingWrapper)]
        self.covers_model = all(type(layer) is Linear and not layer.lora_variant for layer in adapted)
        self._known = {BASE, *(name for layer in adapted if isinstance(layer, Linear) for name in layer.lora_A)}
        if self.covers_model:
            for layer in adapted:
                layer.forward = partial(self._forward, layer, layer.get_base_layer(), _factors(layer))

    @contextmanager
    def of(self, names: list[str], device: torch.device) -> Iterator[None]:
        """Serve rows with these adapters, in order.

        Raises:
            ValueError: an adapter was loaded later.
        """
        if names != self._names:
            if unknown := {*names} - self._known:
                raise ValueError(f"Adapters that were loaded later: {', '.join(sorted(unknown))}.")
            self._names, self._parts = names, _parts(names, device)
        self.parts, self.rows = self._parts, len(names)
        try:
            yield
        finally:
            self.parts = None

    def _forward(
        self, layer: Linear, base: nn.Module, adapters: dict[str, Factors], x: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        if self.parts is None:
            usual: Tensor = type(layer).forward(layer, x, *args, **options)
            return usual
        if len(x) != self.rows:
            raise ValueError(f"A layer sees {len(x)} rows of a batch of {self.rows}.")
        output: Tensor = base(x, *args, **options)
        for name, places in self.parts:
            if (factors := adapters.get(name)) is None:
                continue
            places = places if isinstance(places, slice) else places.to(x.device)  # of a layer on another GPU
            inputs = x[places].to(factors.a.dtype)
            update = linear(linear(inputs, factors.a), factors.b, factors.bias) * factors.scale
            if isinstance(places, slice):
                output[places] += update.to(output.dtype)
            else:
                output.index_add_(0, places, update.to(output.dtype))
        return output


def _factors(layer: Linear) -> dict[str, Factors]:
    """Return the adapters of a layer by name."""
    return {
        name: Factors(down.weight, layer.lora_B[name].weight, layer.lora_B[name].bias, layer.scaling[name])
        for name, down in layer.lora_A.items()
    }


def _parts(names: Sequence[str], device: torch.device) -> list[tuple[str, Places]]:
    """Return every adapter with its rows: a slice where they are neighbours, which needs no copy."""
    rows: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        rows.setdefault(name, []).append(number)
    return [
        (name, slice(own[0], own[-1] + 1) if own[-1] - own[0] < len(own) else torch.tensor(own, device=device))
        for name, own in rows.items()
    ]
