"""Keys and values of the tokens so far, with room for the next ones.

transformers' cache is a new tensor for every token: each step copies all that is kept. Here a token is written into a
place that was made for it, and what is kept is copied once in `ROOM` tokens.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

ROOM = 64  # tokens


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values, as views of tensors that are longer."""

    def update(
        self,
        key_states: Float[Tensor, "rows heads tokens size"],
        value_states: Float[Tensor, "rows heads tokens width"],
        *args: object,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "rows heads past size"], Float[Tensor, "rows heads past width"]]:
        """Append the new tokens; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._long: list[Tensor] = [states[:, :, :0] for states in (key_states, value_states)]
        had = self.get_seq_length()
        has = had + key_states.shape[2]
        if has > self._long[0].shape[2]:
            self._long = [_longer(kept[:, :, :had], has + ROOM) for kept in self._long]
        for kept, new in zip(self._long, (key_states, value_states), strict=True):
            kept[:, :, had:has] = new
        return self._show(has)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        if length := self.get_seq_length():
            self._long = [kept[indices] for kept in self._long]
            self._show(length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (kept[:, :, :length] for kept in self._long)
        return self.keys, self.values


class RoomyCache(DynamicCache):  # type: ignore[misc]
    """transformers' cache; layers that keep something else than all tokens (a window, a state) are its own."""

    def __init__(self, config: PretrainedConfig | None = None) -> None:
        super().__init__(config=config)
        usual = DynamicCache(config=config).layers
        self.layers: list[CacheLayerMixin] = [RoomyLayer() if type(x) is DynamicLayer else x for x in usual]

    def can_join(self) -> bool:
        """Whether rows of another cache can be put beside these."""
        return all(type(layer) is RoomyLayer for layer in self.layers)

    @classmethod
    def of(cls, caches: Sequence["RoomyCache"], kept: Sequence[tuple[Tensor, int]], width: int) -> "RoomyCache":
        """Rows of several caches in one, of `width` tokens: of each, `kept` rows less so many tokens at the left.

        Shorter ones are padded with zeros at the left.
        """
        made = cls()
        made.layers = [
            _joined([(layer, *which) for layer, which in zip(layers, kept, strict=True)], width)
            for layers in zip(*(cache.layers for cache in caches), strict=True)
        ]
        return made


def _joined(parts: Sequence[tuple[RoomyLayer, Tensor, int]], width: int) -> RoomyLayer:
    made, rows = RoomyLayer(), sum(len(kept) for _, kept, _ in parts)
    first = parts[0][0]
    made.lazy_initialization(first.keys, first.values)
    made._long = [x.new_empty(rows, x.shape[1], width + ROOM, x.shape[3]) for x in (first.keys, first.values)]
    at = 0
    for layer, kept, left in parts:
        for long, had in zip(made._long, (layer.keys, layer.values), strict=True):
            begin = width - had.shape[2] + left
            long[at : at + len(kept), :, :begin] = 0
            long[at : at + len(kept), :, begin:width] = had[kept, :, left:]
        at += len(kept)
    made._show(width)
    return made


def _longer(kept: Tensor, length: int) -> Tensor:
    made = torch.empty(*kept.shape[:2], length, kept.shape[3], dtype=kept.dtype, device=kept.device)
    made[:, :, : kept.shape[2]] = kept
    return made
