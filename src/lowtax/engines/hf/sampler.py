"""Choice of the next token of every row in a batch, greedy or with the row's own random numbers."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lowtax.engines.base import Request

FEW = 256  # likeliest tokens, sorted first: a nucleus seldom has more, while the vocabulary has 100,000


class Drawing(Protocol):
    """The part of a row that the choice depends on."""

    request: Request
    generator: torch.Generator
    done: bool


def choose(logits: Tensor, rows: Sequence[Drawing]) -> list[int]:
    """Return the next token of every row: the likeliest, or drawn with its generator; -1 if logits are not finite."""
    tokens = torch.full((len(rows),), -1, device=logits.device)
    greedy = [i for i, row in enumerate(rows) if row.request.temperature == 0 and not row.done]
    if greedy:
        # A row that is done is read with the others: its token is not used, and a selection would copy the logits.
        best, likeliest = (part[greedy] for part in logits.max(-1))
        tokens[greedy] = likeliest.masked_fill(~best.isfinite(), -1)
    drawn = [i for i, row in enumerate(rows) if row.request.temperature > 0 and not row.done]
    # Nucleus rows are drawn from sorted tokens, so they form a group: no reply may depend on other rows.
    for nucleus in (False, True):
        group = [i for i in drawn if (rows[i].request.top_p < 1 or rows[i].request.top_k > 0) == nucleus]
        if group:
            part = logits if len(group) == len(logits) else logits[group]  # no copy if all rows are in the group
            tokens[group] = _draw(part, [rows[i] for i in group], nucleus)
    return [int(token) for token in tokens.tolist()]


def _draw(logits: Tensor, rows: Sequence[Drawing], nucleus: bool) -> Tensor:
    """Invert each row's distribution function at a number from its generator.

    Takes logits [rows, vocabulary] and returns token ids [rows]; -1 where logits are not finite. With `nucleus`, only
    the row's top_k likeliest tokens can be drawn, and of these the likeliest that together reach the share top_p of
    their probability: first top-k, then the nucleus of what is left, as in vLLM and transformers.
    """

    def column(values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    # One number per row and step, drawn on the CPU: the same for every device and batch.
    uniform = column([torch.rand((), generator=row.generator, dtype=torch.float64).item() for row in rows])
    probabilities = (logits / column([row.request.temperature for row in rows], logits.dtype)).softmax(-1)
    broken = probabilities[:, 0].isnan()  # one such logit makes all probabilities of its row NaN
    if not nucleus:
        return _invert(probabilities, uniform).squeeze(-1).masked_fill(broken, -1)
    top_p = column([row.request.top_p for row in rows])
    most = column([row.request.top_k or logits.shape[-1] for row in rows])
    limited = most < logits.shape[-1]
    tokens = torch.empty(len(rows), 1, dtype=torch.long, device=logits.device)
    few = min(FEW, logits.shape[-1])
    likeliest = probabilities.topk(few, dim=-1)
    # Sorting the vocabulary takes longer than the model: only rows that draw from more than `few` tokens need it.
    enough = torch.where(limited, most <= few, likeliest.values.double().sum(-1, keepdim=True) >= top_p).squeeze(-1)
    for rows_, top in ((enough, likeliest), (~enough, None)):
        if rows_.any():
            weights, order = (part[rows_] for part in top) if top else probabilities[rows_].sort(-1, descending=True)
            weights = weights.double()
            weights = weights.masked_fill(torch.arange(weights.shape[-1], device=weights.device) >= most[rows_], 0.0)
            total = torch.where(limited[rows_], weights.sum(-1, keepdim=True), 1.0)
            weights = weights.masked_fill(weights.cumsum(-1) - weights >= top_p[rows_] * total, 0.0)
            tokens[rows_] = order.gather(-1, _invert(weights, uniform[rows_]))
    return tokens.squeeze(-1).masked_fill(broken, -1)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return where the running sum of each row's weights passes the share `uniform` of the total, [rows, 1]."""
    sums = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(sums, uniform * sums[:, -1:], right=True).clamp(max=weights.shape[-1] - 1)
