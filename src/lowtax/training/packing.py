"""Packed rows: the examples of a step laid end to end, and the attention that keeps them apart.

A row has no padding, no mask and no cache; `position_ids` restart with each example. In attention alone, each example
has a separate line, padded at the end. With causal attention no real token sees the padding, so no mask is needed,
and the work grows with the sum of the squares of the examples' lengths, not with the square of their sum.

The attention refuses what it does not compute (`UnsupportedAttention`): sinks, soft caps, biases, masks, windows that
an example reaches beyond.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lowtax.common.errors import UserError
from lowtax.training.encoding import Example

# Tokens packed into one row; a larger step becomes several rows. Enough to fill the cores, few enough to fit.
MAX_ROW = {"cpu": 2048, "cuda": 8192}
ROUND = 16
PACKED_ATTENTION = "lowtax_packed"
# On CPU torch's fused bfloat16 attention takes longer than plain products in float32, up to this length.
PLAIN_UP_TO = 256
# Arguments of transformers' attention interface that do not change what is computed.
NEUTRAL = frozenset(
    "position_ids position_embeddings cache_position past_key_values use_cache output_attentions output_hidden_states "
    "output_router_logits return_dict logits_to_keep num_items_in_batch".split()
)


def length(example: Example) -> int:
    """Return the number of tokens that are run: all but the last, which predicts nothing and which no other sees."""
    return len(example.prompt) + len(example.completion) - 1


def round_up(n: int, to: int = ROUND) -> int:
    """Return the smallest multiple of `to` that is not below n."""
    return -(-n // to) * to


class Callers:
    """The modules that used a layout; no plain set, which FSDP copies with the inputs of a layer when it casts them."""

    def __init__(self) -> None:
        self.modules = set[nn.Module]()


@dataclass(frozen=True)
class Layout:
    """The map between the tokens of a packed row and a padded table with a line for each example.

    pad: the token of the row at each place of the table; 0 in the padding. A line is longer than any example.
    unpad: the place of each token in the flattened table. Tokens that fill up the row point to the first line's
        padding.
    longest: tokens of the longest example.
    callers: takes the attention modules that use the layout, if there is one.
    """

    pad: Int[Tensor, "examples longest"]
    unpad: Int[Tensor, " tokens"]
    longest: int
    callers: "Callers | None" = None


@dataclass(frozen=True)
class Row:
    """Examples laid end to end and filled up to a multiple of `ROUND` tokens.

    Filling up keeps the number of shapes small; a kernel is built for each.

    members: numbers of the examples in the data.
    lengths: tokens of each example.
    sources: positions whose next token carries loss.
    targets: those next tokens.
    """

    members: tuple[int, ...]
    lengths: tuple[int, ...]
    ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    sources: Int[Tensor, " targets"]
    targets: Int[Tensor, " targets"]
    layout: Layout

    def to(self, device: torch.device) -> "Row":
        """Return the same row on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("ids", "positions", "sources", "targets")}
        layout = replace(self.layout, pad=self.layout.pad.to(device), unpad=self.layout.unpad.to(device))
        return replace(self, layout=layout, **moved)


def pack(examples: Sequence[Example], members: Sequence[int] = ()) -> Row:
    """Pack examples, in their order, into one row."""
    lengths = tuple(length(e) for e in examples)
    ids, positions, sources, targets, unpad = list[int](), list[int](), list[int](), list[int](), list[int]()
    pad = torch.zeros(len(lengths), round_up(max(lengths) + 1, 8), dtype=torch.long)
    for number, (e, n) in enumerate(zip(examples, lengths, strict=True)):
        start = len(ids)
        ids += (e.prompt + e.completion)[:n]
        positions += range(n)
        sources += range(start + len(e.prompt) - 1, start + n)
        targets += e.completion
        pad[number, :n] = torch.arange(start, start + n)
        unpad += range(number * pad.shape[1], number * pad.shape[1] + n)
    filler = round_up(len(ids)) - len(ids)
    return Row(
        members=tuple(members),
        lengths=lengths,
        ids=torch.tensor(ids + [0] * filler),
        positions=torch.tensor(positions + [0] * filler),
        sources=torch.tensor(sources),
        targets=torch.tensor(targets),
        layout=Layout(pad, torch.tensor(unpad + [pad.shape[1] - 1] * filler), max(lengths)),
    )


def separate(row: Row) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the ids, sources and targets of each example of a row, without what fills the row up."""
    ends = torch.tensor(row.lengths).cumsum(0)
    starts = ends - torch.tensor(row.lengths)
    cuts = torch.searchsorted(row.sources.cpu(), ends).tolist()
    parts, first = [], 0
    for start, end, cut in zip(starts.tolist(), ends.tolist(), cuts, strict=True):
        parts.append((row.ids[start:end], row.sources[first:cut] - start, row.targets[first:cut]))
        first = cut
    return parts


def group_by_length(lengths: Sequence[int], max_tokens: int, max_examples: int | None = None) -> list[list[int]]:
    """Return the examples of each row, as places in `lengths`.

    Examples of similar length share a row, so that attention pads little. A row has at most `max_tokens` tokens,
    unless a single example is longer, and at most `max_examples` examples.
    """
    groups: list[list[int]] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not groups or lengths[place] > room or len(groups[-1]) == max_examples:
            groups.append([])
            room = max_tokens
        groups[-1].append(place)
        room -= lengths[place]
    return groups


class Batches:
    """The examples that each optimiser step sees, by step number.

    The order of epoch e is a permutation seeded by (seed, e). The last batch of an epoch is completed from the next
    epoch, so that every step sees `size` examples.
    """

    def __init__(self, n: int, size: int, seed: int) -> None:
        self.n, self.size, self.seed = n, size, seed
        self._orders: dict[int, list[int]] = {}

    def __getitem__(self, step: int) -> list[int]:
        """Return the examples of a step, counted from 0."""
        places = range(step * self.size, (step + 1) * self.size)
        return [self._order(place // self.n)[place % self.n] for place in places]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
            previous = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders = previous | {epoch: torch.randperm(self.n, generator=generator).tolist()}
        return self._orders[epoch]


# --- attention


class UnsupportedAttention(UserError):
    """An attention layer passes what packed attention does not compute."""


def use_packed_attention(model: PreTrainedModel) -> None:
    """Register the attention of packed rows with transformers, and select it for a model."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)
    model.set_attn_implementation(PACKED_ATTENTION)


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens size"],
    key: Float[Tensor, "1 groups tokens size"],
    value: Float[Tensor, "1 groups tokens size"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 tokens heads size"], Tensor | None]:
    """Compute causal attention within each example of a row; the signature is transformers'.

    Without a layout the row is a single example, and transformers' sdpa attention computes it.

    Raises:
        UnsupportedAttention: An argument asks for more than causal attention.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)  # type: ignore[no-any-return]
    _require_plain(module, query, key, attention_mask, layout, kwargs)
    n, longest = layout.pad.shape
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (
        x[0].transpose(0, 1).index_select(0, layout.pad.view(-1)).view(n, longest, x.shape[1], x.shape[3])
        for x in (query, key, value)
    )
    on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    plain = on_cpu and longest <= PLAIN_UP_TO and not dropout and q.shape[3] == v.shape[3]
    output = plain_attention(q, k, v, scale) if plain else fused_attention(q, k, v, scale, dropout)
    return output.reshape(n * longest, *output.shape[2:]).index_select(0, layout.unpad)[None], None


def _require_plain(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, layout: Layout, more: dict[str, Any]
) -> None:
    """Check that a layer asks for causal softmax attention over the whole example, and note the layer.

    Raises:
        UnsupportedAttention: It asks for more.
    """
    window = more.get("sliding_window")
    extra = [name for name, value in more.items() if value is not None and name not in NEUTRAL]
    extra = [name for name in extra if name not in ("sliding_window", "is_causal")]
    if window and window < layout.longest:
        extra.append(f"sliding_window={window}")
    if mask is not None:
        extra.append("attention_mask")
    causal = more.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):  # transformers' default is True
        extra.append("is_causal=False")
    if query.shape[2] != len(layout.unpad) or key.shape[2] != len(layout.unpad):
        extra.append(f"{key.shape[2]} keys for {query.shape[2]} queries")
    if extra:
        raise UnsupportedAttention(
            f"{type(module).__name__} passes {', '.join(extra)} to its attention, which packed rows leave out; please "
            "report this."
        )
    if layout.callers is not None:
        layout.callers.modules.add(module)


def fused_attention(
    query: Float[Tensor, "examples longest heads size"],
    key: Float[Tensor, "examples longest groups size"],
    value: Float[Tensor, "examples longest groups size"],
    scale: float,
    dropout: float = 0.0,
) -> Float[Tensor, "examples longest heads size"]:
    """Compute causal attention by torch's scaled_dot_product_attention."""
    output = nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        dropout_p=dropout,
        is_causal=True,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return output.transpose(1, 2)


def plain_attention(
    query: Float[Tensor, "examples longest heads size"],
    key: Float[Tensor, "examples longest groups size"],
    value: Float[Tensor, "examples longest groups size"],
    scale: float,
) -> Float[Tensor, "examples longest heads size"]:
    """Compute softmax(scale Q K' + causal) V in three products; the query heads of a group share keys and values.

    Everything between inputs and output is float32, as in torch's fused attention: scores that were rounded to bfloat16
    would make the loss three times as inexact.
    """
    n, longest, heads, size = query.shape
    groups = key.shape[2]
    per = heads // groups
    q = query.float().view(n, longest, groups, per, size).permute(0, 2, 3, 1, 4)
    q = q.reshape(n * groups, per * longest, size)
    k = key.float().permute(0, 2, 3, 1).reshape(n * groups, size, longest)
    v = value.float().permute(0, 2, 1, 3).reshape(n * groups, longest, size)
    future = torch.full((longest, longest), -torch.inf).triu(1).repeat(per, 1)
    weights = torch.baddbmm(future.expand(n * groups, -1, -1), q, k, alpha=scale).softmax(-1)
    output = torch.bmm(weights, v).to(query.dtype)
    return output.view(n, groups, per, longest, size).permute(0, 3, 1, 2, 4).reshape(n, longest, heads, size)


def _no_mask(*_: Any, **__: Any) -> None:
    """Return no mask: the attention of packed rows needs none."""
