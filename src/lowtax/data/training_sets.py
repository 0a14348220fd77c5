"""Training conversations and prompt sets: a recipe's `data` entries become rows, mixes and a record of both."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

from pydantic import ValidationError

from lowtax import builtin, prompts, sources, tables
from lowtax.errors import UserError, did_you_mean
from lowtax.problems import problems
from lowtax.recipe import Data, PromptSet
from lowtax.records import Prompt, Reply, row_id
from lowtax.sources import NAMED, REFERENCE_THOUGHT
from lowtax.sources import Conversation as Conversation
from lowtax.tables import Row, Table

BUILTIN_FILES = {
    "harmful": "harmful.jsonl",
    "refusals": "harmful.jsonl",
    "ordinary": "ordinary.jsonl",
    "chat": "chat.jsonl",
}


@dataclass(frozen=True)
class Loaded:
    """The rows of one source. `skipped` have no answer, or no end to their thought; `revision` is the hub's commit."""

    spec: Data
    rows: list[Conversation]
    found: int
    skipped: int = 0
    revision: str | None = None

    def described(self, kept: Sequence[Conversation] | None = None) -> dict[str, Any]:
        """What a card says of the source, and of the rows of it that are `kept` in a mix (all, if not given)."""
        rows = self.rows if kept is None else kept
        return {**described(self.spec, rows, self.revision), "found": self.found, "skipped": self.skipped}


def described(spec: Data, rows: Sequence[Conversation], revision: str | None = None) -> dict[str, Any]:
    """Where rows are from, under which licence, how many they are and the hash of their texts in any order."""
    named = NAMED.get(spec.source)
    lines = sorted(json.dumps(asdict(row), sort_keys=True) for row in rows)
    return {
        **spec.model_dump(mode="json", exclude_unset=True),
        "hub": named.hub if named else None,
        "revision": revision,
        "licence": named.licence if named else "Apache-2.0" if spec.source.startswith("builtin:") else None,
        "citation": named.citation if named else None,
        "rendering": rendering_of(spec),
        "rows": len(rows),
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def rendering_of(spec: Data) -> str:
    """The rendering of a source: the one asked for, else its own."""
    return spec.rendering or (NAMED[spec.source].rendering if spec.source in NAMED else "standard")


def parse_spec(text: str) -> Data:
    """A `data` entry in its one-line form, `SOURCE[,key=value...]`."""
    try:
        return Data.model_validate(text)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            what = f"unknown key {key!r}; {did_you_mean(key, Data.model_fields)}"
        else:
            what = f"{key}: {problem['msg']}".removeprefix(": ").replace("Value error, ", "") + "."
        raise UserError(f"The data {text!r}: {what}") from error


def load(spec: Data, seed: int) -> Loaded:
    """The rows of one training source whose answers are given. `seed` chooses and orders them."""
    if spec.source.startswith("builtin:"):
        table, rows = Table([]), list[Conversation | None](_builtin_rows(spec, seed))
    else:
        table = _table(spec)
        rows = [_read(row, number, spec) for number, row in enumerate(table.rows, 1)]
    style, whole = rendering_of(spec), [row for row in rows if row is not None]
    if not whole:
        raise UserError(f"None of the {len(rows)} rows of {spec.source} has an answer that ends its thought.")
    whole = [replace(row, thought=row.thought or _constant(row, spec), rendering=style) for row in whole]
    # The seed has drawn the problems of arithmetic already.
    chosen = whole if spec.source == "builtin:arithmetic" else _choose(whole, spec, seed)
    return Loaded(spec, chosen, len(rows), len(rows) - len(whole), table.revision)


def conversations(spec: Data, seed: int) -> list[Conversation]:
    """The rows of `load`."""
    return load(spec, seed).rows


def _constant(row: Conversation, spec: Data) -> str | None:
    """The thought of a row that brings none. An empty think block stays one where there is no constant."""
    if spec.thought is not None:
        return spec.thought
    return REFERENCE_THOUGHT if spec.source in ("direct-refusal", "builtin:refusals") else row.thought


def _builtin_rows(spec: Data, seed: int) -> list[Conversation]:
    if set_ := spec.model_fields_set & {"path", "revision", "subset", "split", "columns", "where", "first"}:
        raise UserError(f"{spec.source} is built in and takes no {' or '.join(sorted(set_))}.")
    name = spec.source.removeprefix("builtin:")
    if name == "arithmetic":
        return [
            Conversation(p.question, p.thought, f"The answer is \\boxed{{{p.answer}}}.")
            for p in problems(spec.n or 1000, "train", seed)
        ]
    rows = _builtin(name, None if name == "chat" else "train")
    if name == "refusals":
        return [Conversation(r["prompt"], None, r["refusal"]) for r in rows]
    if name == "chat":
        return [Conversation(r["prompt"], r["thought"], r["answer"]) for r in rows]
    raise UserError(f"{spec.source} holds requests without answers: add `answers: self` to train on the model's own.")


def _builtin(name: str, split: str | None) -> list[Row]:
    if name not in BUILTIN_FILES:
        raise UserError(f"There is no built-in data set {name!r}; {did_you_mean(name, [*BUILTIN_FILES, 'arithmetic'])}")
    rows = tables.read_table(builtin.DATA / BUILTIN_FILES[name])
    chosen = [row for row in rows if split in (None, row.get("split", "train"))]
    if not chosen:
        splits = sorted({str(row.get("split", "train")) for row in rows})
        raise UserError(f"builtin:{name} has no split {split!r}; its splits are {', '.join(splits)}.")
    return chosen


def _table(spec: Data) -> Table:
    """The raw rows that count of a source outside of the package."""
    named = NAMED.get(spec.source)
    if named and spec.columns:
        raise UserError(f"{spec.source} has columns of its own; to read another file by columns, make it the source.")
    if spec.path and not named and not tables.is_hub_id(spec.source):
        raise UserError(f"{spec.source} is a place itself: `path` is for named sources and data sets of the hub.")
    where = spec.path or (named.hub if named else spec.source)
    table = tables.load(where, spec.subset, spec.split, spec.revision)
    columns = list(map(str, table.rows[0])) if table.rows else []
    for column in spec.where if columns else ():
        if column not in columns:
            raise UserError(f"{where} has no column {column!r}; its columns are {', '.join(columns)}.")
    if spec.thought in columns:
        raise UserError(
            f"{where} has a column {spec.thought!r}, which `thought` would write as text: say columns.thought for it."
        )
    fits = (r for r in table.rows if all(str(r.get(c)).lower() == str(v).lower() for c, v in spec.where.items()))
    rows = list(islice(fits, spec.first))
    if not rows:
        wanted = ", ".join(
            f"{column} = {value}" for column, value in {**spec.where, "split": spec.split}.items() if value
        )
        raise UserError(f"{where} has no rows with {wanted}.")
    return Table(rows, table.revision)


def _read(row: Row, number: int, spec: Data) -> Conversation | None:
    where = f"{spec.path or spec.source}, row {number}"
    if spec.source == "direct-refusal":
        return sources.direct_refusal(row, where, rendering_of(spec))
    named = NAMED.get(spec.source)
    columns = named.columns if named else {str(role): column for role, column in spec.columns.items()}
    return sources.conversation(row, where, columns, unopened=bool(named and named.unopened))


def _choose(rows: list[Any], spec: Data, seed: int) -> list[Any]:
    if spec.n and spec.n > len(rows):
        raise UserError(f"{spec.source} has {len(rows)} training rows, fewer than the {spec.n} asked for.")
    order = random.Random(f"{spec.source}-{seed}").sample(rows, len(rows))
    return order[: spec.n]


def shares(parts: Sequence[tuple[Data, list[Conversation]]], seed: int) -> list[list[Conversation]]:
    """What each of several sources gives to one training set.

    A source without a ratio gives all its rows. Those with one give k * ratio rows each (rounded down), k being the
    largest number for which none has to repeat a row; the seed chooses which. Nothing is shuffled: batches are.
    """
    ratios = {i: Fraction(str(spec.ratio)) for i, (spec, _) in enumerate(parts) if spec.ratio}
    k = min((len(parts[i][1]) / ratio for i, ratio in ratios.items()), default=Fraction(0))
    found: list[list[Conversation]] = []
    for i, (spec, rows) in enumerate(parts):
        size = int(k * ratios[i]) if i in ratios else len(rows)
        if i in ratios and not size:
            raise UserError(
                f"The mix has no row of {spec.source}: ratio {spec.ratio:g} is too small beside the others, which give "
                f"{', '.join(f'{spec.ratio:g} to {len(rows)} rows' for spec, rows in parts if spec.ratio)}."
            )
        kept = sorted(random.Random(f"mix-{spec.source}-{i}-{seed}").sample(range(len(rows)), size))
        found.append([rows[index] for index in kept])
    return found


def self_prompts(spec: Data, seed: int) -> list[Prompt]:
    """The prompts of a source with `answers: self`; the untrained model is to answer them."""
    if spec.source.startswith("builtin:"):
        return _choose(prompt_set(PromptSet(source=spec.source, split="train")), spec, seed)
    if others := {str(role) for role in spec.columns} - {"prompt"}:
        raise UserError(
            f"{spec.source} with `answers: self` is read for its prompts; it has no use for {sorted(others)}."
        )
    named = NAMED.get(spec.source)
    column = (named.columns if named else {str(k): v for k, v in spec.columns.items()}).get("prompt", "prompt")
    return _choose(_prompts(_table(spec).rows, spec.source, column), spec, seed)


def self_conversations(replies: list[Reply], rendering: str = "standard") -> list[Conversation]:
    """Training rows from the model's own replies; those it did not finish are left out."""
    whole = [r for r in replies if r.closed and r.finish == "stop" and r.answer]
    if not whole:
        raise UserError(
            "The model finished none of its own answers, so nothing is left to train on; raise sampling.max_new_tokens."
        )
    return [Conversation(r.prompt, r.thought or None, r.answer, rendering=rendering) for r in whole]


def prompt_set(spec: PromptSet) -> list[Prompt]:
    """The prompts of a set, in file order."""
    if not spec.source.startswith("builtin:"):
        where = f"{spec.source}:{spec.column}" if spec.column else spec.source
        return prompts.load(where, spec.split, spec.n).prompts
    rows = _builtin(spec.source.removeprefix("builtin:"), spec.split)
    if not rows:
        raise UserError(f"{spec.source} has no prompts in split {spec.split!r}.")
    return _prompts(rows, spec.source, "prompt")[: spec.n]


def _prompts(rows: list[Row], source: str, column: str) -> list[Prompt]:
    texts = [sources.cell(row, column, f"{source}, row {number}") for number, row in enumerate(rows, 1)]
    prompts = [
        Prompt(id=row_id(source, text), source=source, text=text, category=_category(row))
        for text, row in zip(texts, rows, strict=True)
    ]
    return list({p.id: p for p in prompts}.values())


def _category(row: Row) -> str:
    return str(row.get("category") or row.get("kind") or "")
