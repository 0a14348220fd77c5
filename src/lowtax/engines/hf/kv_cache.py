"""Key-value cache with room for the next tokens, and attention that reads shared keys without repeating them.

transformers' own cache makes a new tensor for every token, so each step copies all keys and values. This one writes a
token into space that is already there, and copies only once in `ROOM` tokens. States of recurrent layers are kept as
transformers keeps them. An architecture with its own cache class is read without a cache (`memory_of`).
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED_ATTENTION = "lowtax_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "rows heads tokens size"],
    key: Float[Tensor, "rows shared past size"],
    value: Float[Tensor, "rows shared past width"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Float[Tensor, "rows tokens heads width"], None]:
    """Compute what `sdpa` computes, with transformers' attention interface and the mask of `sdpa_mask`."""
    rows, heads, tokens, size = query.shape
    shared = key.shape[1]
    plain = tokens == 1 and not dropout and more.get("position_bias") is None and more.get("cache") is None
    if not plain or heads == shared or (attention_mask is not None and attention_mask.shape[1] != 1):
        inputs = (module, query, key, value, attention_mask)
        usual: tuple[Tensor, None] = sdpa_attention_forward(*inputs, dropout=dropout, scaling=scaling, **more)
        return usual
    by_group = query.reshape(rows, shared, heads // shared, size)
    output = torch.nn.functional.scaled_dot_product_attention(
        by_group, key, value, attn_mask=attention_mask, scale=scaling
    )
    return output.reshape(rows, 1, heads, value.shape[-1]), None


def use_grouped(model: PreTrainedModel) -> None:
    """Make a model with transformers' sdpa decode with `grouped_attention`; leave others unchanged."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
        AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)
        model.set_attn_implementation(GROUPED_ATTENTION)


ROOM = 64  # tokens


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, as views of longer tensors."""

    def update(
        self,
        key_states: Float[Tensor, "rows heads tokens size"],
        value_states: Float[Tensor, "rows heads tokens width"],
        *args: object,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "rows heads past size"], Float[Tensor, "rows heads past width"]]:
        """Append the keys and values of new tokens; return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._long: list[Tensor] = [states[:, :, :0] for states in (key_states, value_states)]
        before = self.get_seq_length()
        after = before + key_states.shape[2]
        if after > self._long[0].shape[2]:
            self._long = [_longer(states[:, :, :before], after + ROOM) for states in self._long]
        for states, new in zip(self._long, (key_states, value_states), strict=True):
            states[:, :, before:after] = new
        return self._show(after)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Reduce the cache to these rows, in this order."""
        if length := self.get_seq_length():
            self._long = [states[indices.to(states.device)] for states in self._long]
            self._show(length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (states[:, :, :length] for states in self._long)
        return self.keys, self.values


class RoomyCache(DynamicCache):  # type: ignore[misc]
    """transformers' cache with roomy layers. Layers with a window or a state instead of all tokens stay as they are."""

    def __init__(self, config: PretrainedConfig | None = None) -> None:
        super().__init__(config=config)
        usual = DynamicCache(config=config).layers
        self.layers: list[CacheLayerMixin] = [RoomyLayer() if type(x) is DynamicLayer else x for x in usual]

    def can_join(self) -> bool:
        """Return True if rows of another cache can be added."""
        return all(type(layer) is RoomyLayer for layer in self.layers)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Reduce the cache to these rows, in this order; states of recurrent layers follow keys and values."""
        for layer in self.layers:
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                layer.reorder_cache(indices)  # of keys and values too, where the layer has them
            elif layer.is_initialized:
                layer.batch_select_indices(indices.to(layer.keys.device))  # of a model over several GPUs

    @classmethod
    def of(cls, caches: Sequence["RoomyCache"], parts: Sequence[tuple[Tensor, int]], width: int) -> "RoomyCache":
        """Return one cache of `width` tokens with rows of several caches, which are emptied.

        A part is, for each cache, the indices of its rows and the number of tokens to drop at the left. Shorter rows
        are padded with zeros at the left. A layer is emptied as soon as it is copied, so that the memory holds all
        caches once and one layer twice.
        """
        cache = cls()
        cache.layers = []
        for number in range(len(caches[0].layers)):
            layers = [each.layers[number] for each in caches]
            cache.layers.append(_joined([(layer, *part) for layer, part in zip(layers, parts, strict=True)], width))
            for each in caches:
                each.layers[number] = RoomyLayer()
        return cache


def _joined(parts: Sequence[tuple[RoomyLayer, Tensor, int]], width: int) -> RoomyLayer:
    joined, count = RoomyLayer(), sum(len(rows) for _, rows, _ in parts)
    first = parts[0][0]
    joined.lazy_initialization(first.keys, first.values)
    joined._long = [x.new_empty(count, x.shape[1], width + ROOM, x.shape[3]) for x in (first.keys, first.values)]
    at = 0
    for layer, rows, dropped in parts:
        for target, source in zip(joined._long, (layer.keys, layer.values), strict=True):
            begin = width - source.shape[2] + dropped
            target[at : at + len(rows), :, :begin] = 0
            target[at : at + len(rows), :, begin:width] = source[rows.to(source.device), :, dropped:]
        at += len(rows)
    joined._show(width)
    return joined


def _longer(states: Tensor, length: int) -> Tensor:
    longer = torch.empty(*states.shape[:2], length, states.shape[3], dtype=states.dtype, device=states.device)
    longer[:, :, : states.shape[2]] = states
    return longer


class NoCache:
    """The place of a cache for a model that reads the whole text for each token."""

    def can_join(self) -> bool:
        """Return False: such rows are decoded batch by batch."""
        return False

    def batch_select_indices(self, indices: Tensor) -> None:
        """Do nothing."""


Memory = Literal["past_key_values", "cache_params", "none"]


def memory_of(model: PreTrainedModel) -> Memory:
    """Return the argument in which a model takes transformers' cache from one token to the next.

    "none" is for architectures that know no such cache, or have a class of their own: what they remember cannot be
    reduced to some of the rows, so they read the whole text for each token.
    """
    classes = [value for value in vars(sys.modules[type(model).__module__]).values() if isinstance(value, type)]
    here = [cls for cls in classes if cls.__module__ == type(model).__module__ and "Cache" in cls.__name__]
    names = arguments(model)
    for name in ("past_key_values", "cache_params"):
        if name in names and not here:
            return name  # type: ignore[return-value]
    return "none"


def arguments(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the arguments that a model's forward pass declares."""
    return frozenset(inspect.signature(model.forward).parameters)
