"""Rows of different LoRA adapters in one batch: every adapted layer adds to each row the update of its own adapter.

    y + ((x A') * mask) B'      A [R, in], B [out, R], mask [rows, R]

A and B hold the factors of all adapters side by side (B times the scale), R the sum of their ranks; mask is 1 where
the row is the adapter's own, else 0. So a layer costs one pair of small products, however many adapters there are.
PEFT's own `adapter_names` goes through the adapters one by one, gathers their rows and scatters them back: with
six adapters on a CPU that takes longer than the model. As in PEFT the update is computed in float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]


@dataclass(frozen=True)
class _Factors:
    """The factors of a layer's adapters side by side; `owner` says whose each of the R components is."""

    a: Tensor
    b: Tensor
    owner: tuple[str, ...]


class Mixer:
    """Serves the adapters that PEFT has loaded into `model`, whose own forward pass must be disabled."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: list[str] = []
        self.masks: dict[tuple[str, ...], Tensor | None] = {}
        self.hooks = [
            layer.register_forward_hook(self._hook(factors))
            for layer in model.modules()
            if isinstance(layer, LoraLayer) and (factors := _factors(layer))
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self.hooks:
            hook.remove()

    def set_rows(self, adapters: Sequence[str]) -> None:
        """Say whose each row of the coming batches is."""
        if self.rows != list(adapters):
            self.rows, self.masks = list(adapters), {}

    def _hook(self, factors: _Factors) -> Hook:
        def add_update(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            mask = self._mask(factors)
            if mask is None:
                return None
            inner = nn.functional.linear(inputs[0].to(factors.a.dtype), factors.a) * mask
            return output + nn.functional.linear(inner, factors.b).to(output.dtype)

        return add_update

    def _mask(self, factors: _Factors) -> Tensor | None:
        """[rows, 1, R], or None where no row has an adapter in this layer. Layers adapted alike share it."""
        if factors.owner not in self.masks:
            own = torch.tensor([[row == owner for owner in factors.owner] for row in self.rows])
            self.masks[factors.owner] = own[:, None].to(factors.a) if bool(own.any()) else None
        return self.masks[factors.owner]


def _factors(layer: LoraLayer) -> _Factors | None:
    names = [name for name in layer.lora_A if name in layer.lora_B]
    if not names:
        return None
    owner = tuple(name for name in names for _ in range(layer.r[name]))
    a = torch.cat([layer.lora_A[name].weight for name in names])
    b = torch.cat([layer.lora_B[name].weight * layer.scaling[name] for name in names], dim=1)
    return _Factors(a, b, owner)
