"""Training sets: the sources of a recipe become conversations, mixes of them, and a record of both for the card."""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any, TypeVar

from lowtax.common.errors import UserError
from lowtax.common.records import Prompt, Reply
from lowtax.data import prompt_sets, readers, shipped
from lowtax.data.arithmetic import problems
from lowtax.data.catalog import TRAINING_SETS
from lowtax.data.conversations import REFERENCE_THOUGHT, Conversation, conversation, direct_refusal
from lowtax.data.readers import Row, Table
from lowtax.data.specs import Data

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingSet:
    """The rows of one source.

    total: rows that were read. skipped: those without an answer, or with a thought that has no end.
    revision: the hub's commit, if the source is a data set of the hub.
    """

    spec: Data
    rows: list[Conversation]
    total: int
    skipped: int = 0
    revision: str | None = None

    def describe(self, used: Sequence[Conversation] | None = None) -> dict[str, Any]:
        """Return what a card records of the source and of the rows that a mix uses, by default all."""
        rows = self.rows if used is None else used
        return {**describe(self.spec, rows, self.revision), "found": self.total, "skipped": self.skipped}


def describe(spec: Data, rows: Sequence[Conversation], revision: str | None = None) -> dict[str, Any]:
    """Return origin and licence of rows, their number, and a hash of their texts that ignores their order."""
    named = TRAINING_SETS.get(spec.source)
    lines = sorted(json.dumps(asdict(row), sort_keys=True) for row in rows)
    shipped_licence = shipped.LICENCE if spec.source.startswith(shipped.PREFIX) else None
    return {
        **spec.model_dump(mode="json", exclude_unset=True),
        "hub": named.hub if named else None,
        "revision": revision,
        "licence": named.licence if named else shipped_licence,
        "citation": named.citation if named else None,
        "rendering": rendering_of(spec),
        "rows": len(rows),
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def rendering_of(spec: Data) -> str:
    """Return the rendering that a source asks for, by default the data set's own."""
    return spec.rendering or (TRAINING_SETS[spec.source].rendering if spec.source in TRAINING_SETS else "standard")


def load(spec: Data, seed: int) -> TrainingSet:
    """Read a source that has answers. `seed` chooses and orders its rows.

    Raises:
        DataNotAvailable: The data set is not on this machine and cannot be downloaded.
        UserError: The source cannot be read or trained on.
    """
    if spec.source.startswith(shipped.PREFIX):
        revision, rows = None, list[Conversation | None](_shipped_rows(spec, seed))
    else:
        table = _table(spec)
        revision, rows = table.revision, [_read(row, number, spec) for number, row in enumerate(table.rows, 1)]
    style, whole = rendering_of(spec), [row for row in rows if row is not None]
    if not whole:
        raise UserError(f"None of the {len(rows)} rows of {spec.source} has an answer that ends its thought.")
    whole = [replace(row, thought=row.thought or _constant_thought(row, spec), rendering=style) for row in whole]
    # The seed has drawn the problems of arithmetic already.
    chosen = whole if spec.source == "builtin:arithmetic" else _choose(whole, spec, seed)
    return TrainingSet(spec, chosen, len(rows), len(rows) - len(whole), revision)


def conversations(spec: Data, seed: int) -> list[Conversation]:
    """Return the rows of `load`."""
    return load(spec, seed).rows


def _constant_thought(row: Conversation, spec: Data) -> str | None:
    """Return the thought of a row without one. Without a constant, an empty think block stays empty."""
    if spec.thought is not None:
        return spec.thought
    return REFERENCE_THOUGHT if spec.source in ("direct-refusal", "builtin:refusals") else row.thought


def _shipped_rows(spec: Data, seed: int) -> list[Conversation]:
    unused = spec.model_fields_set & {"path", "revision", "subset", "split", "columns", "where", "first"}
    if unused:
        raise UserError(f"{spec.source} is built in and takes no {' or '.join(sorted(unused))}.")
    if spec.source == "builtin:arithmetic":
        return [
            Conversation(p.question, p.thought, f"The answer is \\boxed{{{p.answer}}}.")
            for p in problems(spec.n or 1000, "train", seed)
        ]
    rows = shipped.rows(spec.source, None if spec.source == "builtin:chat" else "train")
    if spec.source == "builtin:refusals":
        return [Conversation(r["prompt"], None, r["refusal"]) for r in rows]
    if spec.source == "builtin:chat":
        return [Conversation(r["prompt"], r["thought"], r["answer"]) for r in rows]
    raise UserError(f"{spec.source} holds requests without answers: add `answers: self` to train on the model's own.")


def _table(spec: Data) -> Table:
    """Read the rows that count of a source that does not come with the package."""
    named = TRAINING_SETS.get(spec.source)
    if named and spec.columns:
        raise UserError(f"The columns of {spec.source} are fixed; to read another file by columns, make it the source.")
    if spec.path and not named and not readers.is_hub_id(spec.source):
        raise UserError(f"{spec.source} is a local source: `path` is for named sources and data sets of the hub.")
    place = spec.path or (named.hub if named else spec.source)
    table = readers.load(place, spec.subset, spec.split, spec.revision)
    _check_columns(spec, list(map(str, table.rows[0])) if table.rows else [], place)
    matching = (r for r in table.rows if all(str(r.get(c)).lower() == str(v).lower() for c, v in spec.where.items()))
    rows = list(islice(matching, spec.first))
    if not rows:
        conditions = {**spec.where, "split": spec.split}
        listed = ", ".join(f"{column} = {value}" for column, value in conditions.items() if value)
        raise UserError(f"{place} has no rows with {listed}.")
    return replace(table, rows=rows)


def _check_columns(spec: Data, columns: list[str], place: str) -> None:
    for column in spec.where if columns else ():
        if column not in columns:
            raise UserError(f"{place} has no column {column!r}; its columns are {', '.join(columns)}.")
    if spec.thought in columns:
        raise UserError(
            f"{place} has a column {spec.thought!r}, but `thought` is the text itself: set columns.thought instead."
        )


def _read(row: Row, number: int, spec: Data) -> Conversation | None:
    where = f"{spec.path or spec.source}, row {number}"
    if spec.source == "direct-refusal":
        return direct_refusal(row, where, rendering_of(spec))
    named = TRAINING_SETS.get(spec.source)
    return conversation(row, where, _columns(spec), opened=bool(named and named.opened))


def _columns(spec: Data) -> dict[str, str]:
    """Return the columns of a source by role."""
    if named := TRAINING_SETS.get(spec.source):
        return {role: column for role, (column,) in named.columns.items()}
    return {str(role): column for role, column in spec.columns.items()}


def _choose(rows: list[T], spec: Data, seed: int) -> list[T]:
    if spec.n and spec.n > len(rows):
        raise UserError(f"{spec.source} has {len(rows)} training rows, fewer than the {spec.n} requested.")
    order = random.Random(f"{spec.source}-{seed}").sample(rows, len(rows))
    return order[: spec.n]


def shares(parts: Sequence[tuple[Data, list[T]]], seed: int) -> list[list[T]]:
    """Return the rows that each of several sources contributes to one training set.

    A source without a ratio contributes all its rows. The others contribute k * ratio rows each (rounded down), where k
    is the largest number for which no row is repeated; the seed chooses them. The order stays: batches are shuffled.

    Raises:
        UserError: A ratio is so small that its source contributes no row.
    """
    ratios = {i: Fraction(str(spec.ratio)) for i, (spec, _) in enumerate(parts) if spec.ratio}
    k = min((len(parts[i][1]) / ratio for i, ratio in ratios.items()), default=Fraction(0))
    mix: list[list[T]] = []
    for i, (spec, rows) in enumerate(parts):
        size = int(k * ratios[i]) if i in ratios else len(rows)
        if i in ratios and not size:
            listed = ", ".join(f"{spec.ratio:g} to {len(rows)} rows" for spec, rows in parts if spec.ratio)
            raise UserError(
                f"The mix has no row of {spec.source}: its ratio {spec.ratio:g} is too small compared to the other "
                f"sources ({listed})."
            )
        chosen = sorted(random.Random(f"mix-{spec.source}-{i}-{seed}").sample(range(len(rows)), size))
        mix.append([rows[index] for index in chosen])
    return mix


def self_prompts(spec: Data, seed: int) -> list[Prompt]:
    """Return the prompts of a source with `answers: self`, which the untrained model answers.

    Raises:
        UserError: The source cannot be read, or names columns other than the prompt's.
    """
    if spec.source.startswith(shipped.PREFIX):
        rows = shipped.rows(spec.source, "train")
        return _choose(prompt_sets.from_rows(rows, spec.source), spec, seed)
    unused = {str(role) for role in spec.columns} - {"prompt"}
    if unused:
        raise UserError(f"{spec.source} with `answers: self` is read for its prompts; remove columns {sorted(unused)}.")
    column = _columns(spec).get("prompt", "prompt")
    return _choose(prompt_sets.from_rows(_table(spec).rows, spec.source, column), spec, seed)


def self_conversations(replies: Iterable[Reply], rendering: str = "standard") -> list[Conversation]:
    """Return training rows of the model's own replies, without those that it did not finish.

    Raises:
        UserError: The model finished none.
    """
    finished = [r for r in replies if r.closed and r.finish == "stop" and r.answer]
    if not finished:
        raise UserError("The model finished none of the answers to train on; raise sampling.max_new_tokens.")
    return [Conversation(r.prompt, r.thought or None, r.answer, rendering=rendering) for r in finished]
