"""Causal attention among the examples of a packed row, without a mask over the whole row.

Each example gets a line of its own, padded at the end: with causal attention no real token sees the padding, so
no mask is needed, and the work is the sum of the squares of the examples' lengths and not the square of their sum.
Only attention sees the padding; the linear layers work on the packed row.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lowtax.packing import Layout

NAME = "lowtax_packed"
# On CPU torch's fused bfloat16 attention takes 2 to 4 times as long as three plain products, up to this length.
PLAIN_UP_TO = 256


def packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention in the form that transformers calls: query (1, heads, tokens, size), key and value with as many or
    fewer heads -> (1, tokens, heads, size). Without a layout the row is one example, and torch's own does it."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)  # type: ignore[no-any-return]
    n, longest = layout.pad.shape
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (
        x[0].transpose(0, 1).index_select(0, layout.pad.view(-1)).view(n, longest, x.shape[1], x.shape[3])
        for x in (query, key, value)
    )
    plain = query.device.type == "cpu" and query.dtype == torch.bfloat16 and longest <= PLAIN_UP_TO
    found = _plain(q, k, v, scale) if plain else _fused(q, k, v, scale)
    return found.reshape(n * longest, *found.shape[2:]).index_select(0, layout.unpad)[None], None


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """torch's scaled_dot_product_attention; all (examples, longest, heads, size)."""
    found = nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        is_causal=True,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return found.transpose(1, 2)


def _plain(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale Q K' + causal) V in three products; the query heads of a group share its keys and values."""
    n, longest, heads, size = query.shape
    groups = key.shape[2]
    per = heads // groups
    q = query.view(n, longest, groups, per, size).permute(0, 2, 3, 1, 4).reshape(n * groups, per * longest, size)
    k = key.permute(0, 2, 3, 1).reshape(n * groups, size, longest)
    v = value.permute(0, 2, 1, 3).reshape(n * groups, longest, size)
    future = torch.full((longest, longest), -torch.inf, dtype=query.dtype).triu(1).repeat(per, 1)
    weights = torch.baddbmm(future.expand(n * groups, -1, -1), q, k, alpha=scale).softmax(-1, dtype=torch.float32)
    found = torch.bmm(weights.to(query.dtype), v)
    return found.view(n, groups, per, longest, size).permute(0, 3, 1, 2, 4).reshape(n, longest, heads, size)


def _no_mask(*_: Any, **__: Any) -> None:
    """The mask that goes with it: none."""


AttentionInterface.register(NAME, packed)
AttentionMaskInterface.register(NAME, _no_mask)
