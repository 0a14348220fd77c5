"""The next token of every row of a batch, greedily or by the row's own random numbers."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lowtax.engines import Request

FEW = 256  # likeliest tokens that are sorted first: a nucleus seldom has more, and the vocabulary has 100,000


class Drawing(Protocol):
    """What is read of a row under way."""

    request: Request
    generator: torch.Generator
    done: bool


def choose(logits: Tensor, rows: Sequence[Drawing]) -> list[int]:
    """The next token of every row: the likeliest, or drawn by the row's own generator; -1 where logits are broken."""
    tokens = torch.full((len(rows),), -1, device=logits.device)
    greedy = [i for i, row in enumerate(rows) if row.request.temperature == 0 and not row.done]
    if greedy:
        best, likeliest = logits[greedy].max(-1)
        tokens[greedy] = likeliest.masked_fill(~best.isfinite(), -1)
    drawn = [i for i, row in enumerate(rows) if row.request.temperature > 0 and not row.done]
    # Nucleus rows apart from the others: they are drawn from sorted tokens, and no row's reply may hang on another's.
    for nucleus in (False, True):
        group = [i for i in drawn if (rows[i].request.top_p < 1 or rows[i].request.top_k > 0) == nucleus]
        if group:
            asked = logits if len(group) == len(logits) else logits[group]  # not copied if it is all of them
            tokens[group] = _draw(asked, [rows[i] for i in group], nucleus)
    return [int(token) for token in tokens.tolist()]


def _draw(logits: Tensor, rows: Sequence[Drawing], nucleus: bool) -> Tensor:
    """Invert each row's distribution function at a number from its generator.

    logits [rows, vocabulary], token ids [rows]. With `nucleus`, only the likeliest tokens that together
    reach the row's top_p take part, and of these the row's top_k likeliest. -1 where a logit is no number.
    """

    def column(values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    # Drawn on the CPU, one number a row and step: the same for every device and batch.
    luck = column([torch.rand((), generator=row.generator, dtype=torch.float64).item() for row in rows])
    probabilities = (logits / column([row.request.temperature for row in rows], logits.dtype)).softmax(-1)
    broken = probabilities[:, 0].isnan()  # one such logit makes all of its row's probabilities so
    if not nucleus:
        return _invert(probabilities, luck).squeeze(-1).masked_fill(broken, -1)
    top_p = column([row.request.top_p for row in rows])
    most = column([row.request.top_k or logits.shape[-1] for row in rows])
    tokens = torch.empty(len(rows), 1, dtype=torch.long, device=logits.device)
    few = min(FEW, logits.shape[-1])
    likeliest = probabilities.topk(few, dim=-1)
    # Sorting the whole vocabulary takes longer than the model: only for rows whose nucleus is not among the few.
    enough = ((likeliest.values.double().sum(-1, keepdim=True) >= top_p) | (most <= few)).squeeze(-1)
    for rows_, found in ((enough, likeliest), (~enough, None)):
        if rows_.any():
            kept, order = (part[rows_] for part in found) if found else probabilities[rows_].sort(-1, descending=True)
            kept = kept.double()
            kept = kept.masked_fill(kept.cumsum(-1) - kept >= top_p[rows_], 0.0)
            kept = kept.masked_fill(torch.arange(kept.shape[-1], device=kept.device) >= most[rows_], 0.0)
            tokens[rows_] = order.gather(-1, _invert(kept, luck[rows_]))
    return tokens.squeeze(-1).masked_fill(broken, -1)


def _invert(weights: Tensor, luck: Tensor) -> Tensor:
    """Where the running sum of each row's weights passes its share `luck` of their total, [rows, 1]."""
    reached = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(reached, luck * reached[:, -1:], right=True).clamp(max=weights.shape[-1] - 1)
