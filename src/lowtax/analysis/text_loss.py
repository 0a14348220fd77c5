"""The loss of a base and of its tuned models on plain text: how much of the language tuning made them forget.

    texts = documents.read("wiki.jsonl,n=200")
    report = measure("org/base", subjects, labels, texts, "float32")

Source: Shuttleworth et al. 2024, arXiv:2410.21228, who measure forgetting as the language-model loss on texts like
those of pre-training, which a tuned model models worse than its base.

A document is tokenised as plain text: a special token that is spelled out in it is text. If the tokenizer begins a text
with a token (BOS), so does the document. It is read in windows of at most L tokens; each window but the first begins
with the last token of the one before, so that every token but the document's first is predicted exactly once, from at
most L - 1 tokens before it. Documents are not packed: no window has tokens of two. One with fewer than two tokens has
none to predict; it is dropped and counted.

    loss = sum of -log p(token) over all documents / number of predicted tokens         in nats a token
    difference = loss of a tuned model - loss of its base, on the same windows

Intervals draw documents, and over several training seeds also the seeds (`stats.ratio_interval`). An adapter is not
merged: the base is measured before PEFT adds one to it, in one precision for all.

Departure: the models there are trained on masked tokens, and so is their loss; here it is that of the next token.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowtax.common import stats
from lowtax.common.errors import UserError
from lowtax.common.log import counted, say
from lowtax.common.records import Subject
from lowtax.data import special_tokens
from lowtax.data.documents import Documents
from lowtax.models import layer_split, loading
from lowtax.models.adapter_fit import fitted, unfit

Row = dict[str, Any]
Window = list[int]  # token ids; the first is given, the others are predicted

MAX_TOKENS = 1024
AT_ONCE = 2048  # tokens of a batch, if a window is not longer
DEFINITIONS = {
    "loss": "nats a predicted token over all documents, with an interval that draws documents; perplexity is exp of it",
    "difference": "the loss minus that of the base on the same windows; above zero, the model forgot",
    "over_seeds": "the mean difference of an arm over its training seeds, with an interval that draws seeds and "
    "documents",
    "dropped": "documents with fewer than two tokens",
    "texts": "of each document that was used: its place in the source from 1, its predicted tokens, and the sum of "
    "-log p of its tokens in nats for each of `models` in order, null where that is not finite",
}
BASE = "base"


def measure(
    base: str,
    subjects: Sequence[Subject],
    labels: Sequence[str],
    documents: Documents,
    precision: str,
    max_tokens: int | None = None,
) -> Row:
    """Return the loss of the base and of each subject on the documents, and their differences, as data.

    Args:
        base: a model reference.
        subjects: checkpoints of the base: whole models, or adapters on it or on a whole model.
        labels: a name for each subject.
        precision: that of the weights: float32, bfloat16, nf4 or nf4-float32.
        max_tokens: the longest window; by default 1024, or the positions of the base if it has fewer.

    Raises:
        UserError: No document has two tokens, a window is longer than the model's positions or does not fit into
            memory, or a model or an adapter cannot be loaded.
    """
    longest = _longest(base, max_tokens)
    windows = _windows(loading.load_tokenizer(base), documents, longest)
    used = [place for place, of_text in enumerate(windows) if of_text]
    if not used:
        raise UserError(
            f"{documents.origin} has no document of two tokens or more ({len(windows)} were read): give another text."
        )
    sums = _all_losses(base, subjects, [windows[place] for place in used], precision)
    tokens = [sum(len(window) - 1 for window in windows[place]) for place in used]
    models = [_entry(BASE, None, sums[0], sums[0], tokens)]
    models += [
        _entry(x, subject, own, sums[0], tokens) for x, subject, own in zip(labels, subjects, sums[1:], strict=True)
    ]
    texts = [
        {"document": place + 1, "tokens": tokens[i], "nats": [_number(own[i]) for own in sums]}
        for i, place in enumerate(used)
    ]
    return {
        "source": documents.describe(),
        "precision": precision,
        "max_tokens": longest,
        "used": len(used),
        "dropped": len(windows) - len(used),
        "tokens": sum(tokens),
        "definitions": DEFINITIONS,
        "models": models,
        "over_seeds": _over_seeds(subjects, sums, tokens),
        "texts": texts,
    }


def _longest(base: str, max_tokens: int | None) -> int:
    """Return the length of a window: the one that a user names, if the base has so many positions."""
    positions = getattr(loading.load_config(base).get_text_config(), "max_position_embeddings", None)
    if max_tokens is None:
        return min(MAX_TOKENS, positions or MAX_TOKENS)
    if max_tokens < 2 or (positions and max_tokens > positions):
        raise UserError(
            f"A window of {max_tokens} tokens cannot be read by {base!r}, which has {positions or 'any number of'} "
            "positions: choose another --max-tokens, 2 or more."
        )
    return max_tokens


def _windows(tokenizer: PreTrainedTokenizerBase, documents: Documents, longest: int) -> list[list[Window]]:
    """Return the windows of each document; none if it has fewer than two tokens."""
    plain = special_tokens.encode_all(tokenizer, [special_tokens.disarm(tokenizer, text) for text in documents.texts])
    begins = list(tokenizer("")["input_ids"])[:1]
    opening = begins if begins == [tokenizer.bos_token_id] else []
    return [windows_of([*opening, *ids], longest) for ids in plain]


def windows_of(ids: Sequence[int], longest: int) -> list[Window]:
    """Divide a document into windows of at most `longest` tokens that share one token with the window before."""
    return [list(ids[start : start + longest]) for start in range(0, len(ids) - 1, longest - 1)]


def _all_losses(
    base: str, subjects: Sequence[Subject], windows: Sequence[list[Window]], precision: str
) -> list[list[float]]:
    """Return the sum of -log p of each document, of the base and of each subject. Every whole model is loaded once."""
    sums: dict[int, list[float]] = {}  # 0: the base; i + 1: subject i
    for ref in dict.fromkeys([base, *(subject.model for subject in subjects)]):
        model = layer_split.load_where_it_fits(ref, precision)
        loading.require_tokens(max(max(w) for of_text in windows for w in of_text), model, ref)
        members = [i for i, subject in enumerate(subjects) if subject.model == ref]
        if ref == base or any(subjects[i].adapter is None for i in members):
            say(f"  reading {len(windows)} texts with {ref}")
            own = _losses(model, windows)
            sums |= {0: own} if ref == base else {}
            sums |= {i + 1: own for i in members if subjects[i].adapter is None}
        for i in members:
            if adapter := subjects[i].adapter:
                say(f"  reading {len(windows)} texts with {adapter}")
                with _wearing(model, ref, Path(adapter)) as tuned:
                    sums[i + 1] = _losses(tuned, windows)
        del model
    return [sums[i] for i in range(len(subjects) + 1)]


@contextmanager
def _wearing(model: PreTrainedModel, ref: str, folder: Path) -> Iterator[PeftModel]:
    """Add an adapter to a model, unmerged and in float32, and take it off again."""
    with unfit(folder, ref):
        tuned = PeftModel.from_pretrained(model, str(fitted(folder, ref).folder)).eval()
    try:
        yield tuned
    finally:
        tuned.unload()
        vars(model).pop("peft_config", None)


def _losses(model: PreTrainedModel | PeftModel, windows: Sequence[list[Window]]) -> list[float]:
    """Return the sum of -log p of the predicted tokens of each document."""
    order = sorted(
        ((place, window) for place, of_text in enumerate(windows) for window in of_text), key=lambda one: len(one[1])
    )
    batches: list[list[tuple[int, Window]]] = []
    for one in order:
        if batches and (len(batches[-1]) + 1) * len(one[1]) <= AT_ONCE:
            batches[-1].append(one)
        else:
            batches.append([one])
    sums = [0.0] * len(windows)
    for batch in counted(batches, len(batches), "batches of text read"):
        try:
            values = _batch(model, [window for _, window in batch])
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{max(AT_ONCE, len(batch[-1][1]))} tokens do not fit into the accelerator's memory beside the model: "
                "lower --max-tokens."
            ) from error
        for (place, _), value in zip(batch, values, strict=True):
            sums[place] += value
    return sums


@torch.inference_mode()
def _batch(model: PreTrainedModel | PeftModel, rows: Sequence[Window]) -> list[float]:
    """Return the sum of -log p of each row but for its first token. Rows are padded on the right."""
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = torch.tensor([row + [row[-1]] * gap for row, gap in zip(rows, gaps, strict=True)], device=model.device)
    mask = torch.tensor([[1] * (width - gap) + [0] * gap for gap in gaps], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [
        float(cross_entropy(scores[: len(row) - 1].float(), own[1 : len(row)], reduction="none").double().sum())
        for row, own, scores in zip(rows, ids, logits, strict=True)
    ]


def _entry(label: str, subject: Subject | None, own: list[float], base: list[float], tokens: list[int]) -> Row:
    loss = _cell(stats.ratio_interval([own], tokens))
    value = loss["value"]
    more = [one - two for one, two in zip(own, base, strict=True)]
    return {
        "label": label,
        "arm": subject.arm if subject else BASE,
        "seed": subject.seed if subject else None,
        "checkpoint": subject.checkpoint if subject else None,
        "loss": loss,
        "perplexity": round(math.exp(value), 4) if value is not None and value < 700 else None,
        "difference": _cell(stats.ratio_interval([more], tokens)) if subject else None,
    }


def _over_seeds(subjects: Sequence[Subject], sums: Sequence[list[float]], tokens: list[int]) -> list[Row]:
    """Return the mean difference from the base of each arm with several training seeds."""
    entries = []
    for arm in dict.fromkeys(subject.arm for subject in subjects):
        members = [i for i, subject in enumerate(subjects) if subject.arm == arm and subject.seed is not None]
        if len(members) > 1:
            more = [[one - two for one, two in zip(sums[i + 1], sums[0], strict=True)] for i in members]
            seeds = [subjects[i].seed for i in members]
            entries.append({"arm": arm, "seeds": seeds, "difference": _cell(stats.ratio_interval(more, tokens))})
    return entries


def _cell(interval: tuple[float, float, float]) -> Row:
    return {name: _number(x) for name, x in zip(("value", "low", "high"), interval, strict=True)}


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
