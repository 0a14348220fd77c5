"""Probability of a given text: the sum of its tokens' log-probabilities after a context, under the hf engine's model.

The engine's own weights and adapters are used, unmerged, so that the same load also generates; an adapter that cannot
share a batch is in the model alone. Rows are padded on the right; of a row that is longer than the model's positions
the beginning of the context is left out.
"""

from collections.abc import Sequence

import torch

from lowtax.engines.hf.engine import HF

Pair = tuple[list[int], list[int]]  # context, continuation: token ids
Found = tuple[float, bool]  # log-probability of the continuation; whether each of its tokens is the likeliest


def score(engine: HF, adapter: str | None, pairs: Sequence[Pair], longest: int) -> list[Found]:
    """Every pair's score, in batches of like length. `longest` is how many tokens the model may see at once."""
    name = engine.prepare(adapter, [context + continuation for context, continuation in pairs])
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    found: dict[int, Found] = {}
    for start in range(0, len(order), engine.batch_size):
        batch = order[start : start + engine.batch_size]
        found |= zip(batch, _batch(engine, name, [pairs[i] for i in batch], longest), strict=True)
    return [found[i] for i in range(len(pairs))]


@torch.inference_mode()
def _batch(engine: HF, name: str, pairs: Sequence[Pair], longest: int) -> list[Found]:
    rows = [[*context, *continuation][-(longest + 1) :] for context, continuation in pairs]
    width, on = max(map(len, rows)) - 1, engine.model.device
    gaps = [width + 1 - len(row) for row in rows]
    ids = torch.tensor([row[:-1] + [engine.pad] * gap for row, gap in zip(rows, gaps, strict=True)], device=on)
    mask = torch.tensor([[1] * (width - gap) + [0] * gap for gap in gaps], device=on)
    whose = {} if engine.loaded is None or engine.one_at_a_time else {"adapter_names": [name] * len(rows)}
    logits = (engine.loaded or engine.model)(input_ids=ids, attention_mask=mask, **whose).logits
    found = []
    for row, (_, continuation), scores in zip(rows, pairs, logits, strict=True):
        wanted = torch.tensor(row[len(row) - len(continuation) :], device=on)
        part = scores[len(row) - 1 - len(wanted) : len(row) - 1].float().log_softmax(-1)
        value = part.gather(-1, wanted[:, None]).sum()
        found.append((float(value), bool((part.argmax(-1) == wanted).all())))
    return found
