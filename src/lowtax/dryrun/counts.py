"""How many rows, steps and tokens an arm trains on, as far as that can be known without training or a network.

A number is `counted` where what it counts was read as the run will read it; `at most` where the model's own answers
are still to be drawn, or patience may end it; `stated` where the set is not here and its size is published or asked
for; `assumed` where it is not even that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from lowtax import data
from lowtax.dryrun.cost import ASSUMED
from lowtax.dryrun.offline import Looked, step_for_data
from lowtax.encoding import encode_all
from lowtax.errors import UserError
from lowtax.packing import Batches, length
from lowtax.recipe import Data, Recipe
from lowtax.sources import Conversation
from lowtax.train import _checkpoint_steps, _total_steps

Known = Literal["counted", "at most", "stated", "assumed"]
CERTAINTY: tuple[Known, ...] = ("counted", "at most", "stated", "assumed")
PUBLISHED = {"direct-refusal": 1000, "safechain": 40_000, "star1": 1000}  # rows, as docs/training-data.md has them


def least(known: Iterable[Known]) -> Known:
    """How well the sum of such numbers is known."""
    return max(known, key=CERTAINTY.index, default="counted")


class Certainty(NamedTuple):
    """How well these numbers of an arm are known."""

    rows: Known
    steps: Known
    checkpoints: Known
    tokens: Known


def size_of(*stated: int | None, assumed: int) -> tuple[int, Known]:
    """How large a set is that is not here: what is published, or asked for, if anything is."""
    sizes = [size for size in stated if size]
    return (min(sizes), "stated") if sizes else (assumed, "assumed")


@dataclass(frozen=True)
class Row:
    """A training row: its text, if it is here, and how many tokens more it may have. An own answer has its prompt."""

    text: Conversation | None
    more: int = 0


@dataclass(frozen=True)
class Training:
    """One run. `tokens` are all that pass through the model, as its log counts them; `longest`, of one example."""

    rows: int
    steps: int
    checkpoints: int
    tokens: int
    longest: int
    known: Certainty


class Counter:
    """Counts the training of a recipe's arms; the same rows are encoded once for all of them.

    `own` has, for each sheet of own answers, the prompts that the base answers, and how well each is known.
    """

    def __init__(self, settings: Recipe, tokenizer: PreTrainedTokenizerBase | None, looked: Looked) -> None:
        self.recipe, self.tokenizer, self.looked = settings, tokenizer, looked
        self.own: dict[str, dict[str, Known]] = {}
        self._sizes: dict[tuple[str, int, int], tuple[list[int], bool, Known]] = {}

    def training(self, arm: str, seed: int) -> Training:
        """What one arm trains for one seed.

        Raises:
            UserError: It has no data, or data that cannot be trained on.
        """
        settings = self.recipe.train_of(arm)
        sizes, exact, known = self._lengths(arm, seed, settings.max_length)
        kept = _kept(sizes, settings.validation, seed)
        steps = _total_steps(settings, len(kept))
        once = not (settings.checkpoint_steps or settings.checkpoint_epochs)  # at the end, whenever that is
        patient: Known = "at most" if settings.patience and not once else "counted"
        of_steps = least([patient, "counted" if settings.steps else known])
        of_checkpoints = "counted" if once else least([of_steps, known if settings.checkpoint_epochs else "counted"])
        bound: Known = "assumed" if of_steps == "assumed" else "at most"
        of_tokens = "counted" if exact and patient == "counted" else bound
        drawn = Batches(len(kept), settings.batch_size, seed)
        return Training(
            rows=len(kept),
            steps=steps,
            checkpoints=len(_checkpoint_steps(settings, len(kept), steps)),
            tokens=sum(kept[i] for step in range(steps) for i in drawn[step]),
            longest=max(sizes),
            known=Certainty(known, of_steps, of_checkpoints, of_tokens),
        )

    def _lengths(self, arm: str, seed: int, max_length: int) -> tuple[list[int], bool, Known]:
        """Tokens of every example, whether they are exact, and how well their number is known."""
        specs = self.recipe.data_of(arm)
        if not specs:
            raise UserError(f"Arm {arm!r} has no training data: give the recipe or the arm a `data` list.")
        key = (" ".join(spec.model_dump_json() for spec in specs), seed, max_length)
        if key not in self._sizes:
            read = [self._own(spec, seed) if spec.answers == "self" else self._given(spec, seed) for spec in specs]
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
        read = [i for i, row in enumerate(rows) if row.text is not None]
        sizes = dict.fromkeys(set(range(len(rows))) - set(read), most)
        for number, example in zip(encoded.rows, encoded.examples, strict=True):
            i = read[number]
            sizes[i] = min(most, length(example) + rows[i].more)
        return [sizes[i] for i in sorted(sizes)], all(row.text is not None and not row.more for row in rows)

    def _given(self, spec: Data, seed: int) -> tuple[list[Row], Known]:
        found = self.looked.rows(spec, seed)
        return _unread(spec) if found is None else ([Row(text) for text in found], "counted")

    def _own(self, spec: Data, seed: int) -> tuple[list[Row], Known]:
        """Rows that the base answers itself; those it does not finish will be left out."""
        own = self.own.setdefault("".join(c if c.isalnum() else "_" for c in spec.source), {})
        prompts = self.looked.read(lambda: data.self_prompts(spec, seed), spec.source, step_for_data(spec))
        if prompts is None:
            rows, known = _unread(spec)
            drawn = f"seed {seed}" if spec.n else "all"  # each seed chooses its own n
            own |= {f"{drawn}, {i}": known for i in range(len(rows))}
            return rows, known
        own |= {p.id: "counted" for p in prompts}
        style, more = data.rendering_of(spec), self.recipe.sampling.max_new_tokens + ASSUMED.own_extra
        return [Row(Conversation(p.text, None, "I", rendering=style), more) for p in prompts], "at most"


def _kept(sizes: list[int], held: int, seed: int) -> list[int]:
    """The examples that are trained on, in order: `train` holds out the first of this permutation."""
    if held >= len(sizes):
        raise UserError(f"validation holds out {held} of {len(sizes)} rows, which leaves none to train on.")
    apart = set(torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()[:held])
    return [size for i, size in enumerate(sizes) if i not in apart]


def _unread(spec: Data) -> tuple[list[Row], Known]:
    """As many rows as a source that is not here has, or is asked for."""
    size, known = size_of(PUBLISHED.get(spec.source), spec.first, spec.n, assumed=ASSUMED.training_rows)
    return [Row(None)] * size, known
