"""How many rows, steps and tokens an arm trains on, as far as that can be known without training or a network.

A number is `counted` where what it counts was read as the run will read it; `at most` where the model's own answers
are still to be drawn, or patience may end it; `stated` where the set is not here and its size is published or asked
for; `assumed` where it is not even that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from lowtax import data
from lowtax.dryrun_cost import ASSUMED
from lowtax.dryrun_sources import Looked, step_for_data
from lowtax.encoding import encode_all
from lowtax.errors import UserError
from lowtax.packing import Batches, length
from lowtax.recipe import Data, Recipe, Train
from lowtax.sources import Conversation
from lowtax.train import _checkpoint_steps, _total_steps

Known = Literal["counted", "at most", "stated", "assumed"]
CERTAINTY: tuple[Known, ...] = ("counted", "at most", "stated", "assumed")
PUBLISHED = {"direct-refusal": 1000, "safechain": 40_000, "star1": 1000}  # rows, as docs/training-data.md has them


def least(known: Iterable[Known]) -> Known:
    """How well the sum of such numbers is known."""
    return max(known, key=CERTAINTY.index, default="counted")


@dataclass(frozen=True)
class Row:
    """A training row: its text, if it is here, and how many tokens more it may have. An own answer has its prompt."""

    text: Conversation | None
    more: int = 0


@dataclass(frozen=True)
class Training:
    """One run. `tokens` are all that pass through the model, as its log counts them; `longest` is the longest example.

    `known` is about the rows, `steps_known` about steps and checkpoints, `tokens_known` about tokens.
    """

    rows: int
    steps: int
    checkpoints: int
    tokens: int
    longest: int
    known: Known
    steps_known: Known
    tokens_known: Known


class Counter:
    """Counts the training of a recipe's arms; every source is read once."""

    def __init__(self, settings: Recipe, tokenizer: PreTrainedTokenizerBase | None, looked: Looked) -> None:
        self.recipe, self.tokenizer, self.looked = settings, tokenizer, looked
        self._read: dict[tuple[str, int], tuple[list[Row], Known]] = {}
        self._sizes: dict[tuple[str, int, int], tuple[list[int], bool, Known]] = {}
        self.own: dict[str, set[str]] = {}  # sheet of own answers -> prompts that the base answers
        self.own_elsewhere: dict[str, int] = {}  # the same where the prompts are not here: how many

    def training(self, arm: str, seed: int) -> Training:
        """What one arm trains for one seed.

        Raises:
            UserError: It has no data, or data that cannot be trained on.
        """
        settings = self.recipe.train_of(arm)
        sizes, exact, known = self._lengths(arm, seed, settings.max_length)
        kept = _kept(sizes, settings.validation, seed)
        steps = _total_steps(settings, len(kept))
        patience: Known = "at most" if settings.patience else "counted"
        drawn = Batches(len(kept), settings.batch_size, seed)
        return Training(
            rows=len(kept),
            steps=steps,
            checkpoints=len(_checkpoint_steps(settings, len(kept), steps)),
            tokens=sum(kept[i] for step in range(steps) for i in drawn[step]),
            longest=max(sizes),
            known=known,
            steps_known=least([patience, "counted" if _fixed(settings) else known]),
            tokens_known="counted" if exact and not settings.patience else "at most",
        )

    def _lengths(self, arm: str, seed: int, max_length: int) -> tuple[list[int], bool, Known]:
        """Tokens of every example, whether they are exact, and how well their number is known."""
        specs = self.recipe.data_of(arm)
        if not specs:
            raise UserError(f"Arm {arm!r} has no training data: give the recipe or the arm a `data` list.")
        key = (" ".join(spec.model_dump_json() for spec in specs), seed, max_length)
        if key not in self._sizes:
            read = [self._rows(spec, seed) for spec in specs]
            parts = [(spec, rows) for spec, (rows, _) in zip(specs, read, strict=True)]
            mixed = data.shares(parts, seed)  # type: ignore[arg-type]  # it looks into no row
            rows: list[Row] = [row for part in mixed for row in part]  # type: ignore[misc]
            self._sizes[key] = *self._tokens(rows, max_length), least(known for _, known in read)
        return self._sizes[key]

    def _tokens(self, rows: Sequence[Row], max_length: int) -> tuple[list[int], bool]:
        """Tokens of every example that is run (all but its last), at most those of `max_length`; whether exact."""
        most = max_length - 1
        texts = [row.text for row in rows if row.text is not None]
        if self.tokenizer is None or not texts:
            return [most] * len(rows), False
        encoded = encode_all(self.tokenizer, texts, max_length, self.recipe.thinking)
        found = {number: length(e) for number, e in zip(encoded.rows, encoded.examples, strict=True)}
        sizes, number = list[int](), 0
        for row in rows:
            if row.text is None:
                sizes.append(most)
                continue
            if number in found:
                sizes.append(min(most, found[number] + row.more))
            number += 1
        return sizes, all(row.text is not None and not row.more for row in rows)

    def _rows(self, spec: Data, seed: int) -> tuple[list[Row], Known]:
        key = (spec.model_dump_json(), seed)
        if key not in self._read:
            self._read[key] = self._own(spec, seed) if spec.answers == "self" else self._given(spec, seed)
        return self._read[key]

    def _given(self, spec: Data, seed: int) -> tuple[list[Row], Known]:
        found = self.looked.read(lambda: data.load(spec, seed).rows, spec.source, step_for_data(spec))
        if found is None:
            return _unread(spec)
        return [Row(row) for row in found], "counted"

    def _own(self, spec: Data, seed: int) -> tuple[list[Row], Known]:
        """Rows that the base answers itself; those it does not finish will be left out."""
        sheet = "".join(c if c.isalnum() else "_" for c in spec.source)
        prompts = self.looked.read(lambda: data.self_prompts(spec, seed), spec.source, step_for_data(spec))
        if prompts is None:
            rows, known = _unread(spec)
            self.own_elsewhere[sheet] = max(len(rows), self.own_elsewhere.get(sheet, 0))
            return rows, known
        self.own.setdefault(sheet, set()).update(p.id for p in prompts)
        style, more = data.rendering_of(spec), self.recipe.sampling.max_new_tokens + ASSUMED.own_extra
        return [Row(Conversation(p.text, None, "I", rendering=style), more) for p in prompts], "at most"


def _fixed(settings: Train) -> bool:
    """Whether steps and checkpoints follow from the settings alone, whatever the number of rows."""
    return bool(settings.steps) and not settings.checkpoint_epochs


def _kept(sizes: list[int], held: int, seed: int) -> list[int]:
    """The examples that are trained on, in order: `train` holds out the first of this permutation."""
    if held >= len(sizes):
        raise UserError(f"validation holds out {held} of {len(sizes)} rows, which leaves none to train on.")
    apart = set(torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()[:held])
    return [size for i, size in enumerate(sizes) if i not in apart]


def _unread(spec: Data) -> tuple[list[Row], Known]:
    """As many rows as a source that is not here has, or is asked for."""
    sizes = [size for size in (PUBLISHED.get(spec.source), spec.first, spec.n) if size]
    known: Known = "stated" if sizes else "assumed"
    return [Row(None)] * min(sizes or [ASSUMED.training_rows]), known
