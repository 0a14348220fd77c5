"""Prompt sets: the published safety and over-refusal sets by name, any file, and any data set of the hub.

A named set is read from the folder that the environment variable LOWTAX_PROMPTS names, if its file is there, else from
the hub. Gated sets need an account that accepted their terms; a copy of the file needs neither account nor network. No
commit is pinned: the one that was read is recorded. docs/reference/prompt-sets.md has the table.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lowtax.common.borders import brief, exists, expanded
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.records import Prompt, row_id
from lowtax.data import readers, shipped
from lowtax.data.catalog import PROMPT_SETS, DatasetRecord, NamedDataset
from lowtax.data.specs import PromptSet
from lowtax.data.tables import Row

Columns = Mapping[str, tuple[str, ...]]  # role -> names that its column may have
Others = Mapping[str, Mapping[str, Any]]  # prompt id -> the other columns of its row
ANY_COLUMNS: Columns = {
    "prompt": ("prompt", "forbidden_prompt", "goal", "question", "behavior", "instruction"),
    "category": ("category", "kind"),
}
BEFORE_GOAL = "\n\n---\n\n"  # between a context and the request, as in HarmBench's DirectRequest
IDS = ("id", "prompt_id", "behavior_id", "key", "uid", "index", "custom_id")
SHORT = 1000  # characters of a value of another column that is kept with each reply
COLUMN_HINT = ": add the one that holds the prompts as :COLUMN"


@dataclass(frozen=True, kw_only=True)
class PromptList(DatasetRecord):
    """The prompts of a set in file order, and the data set that they are from.

    columns: of a user's own file, the other columns of its rows by prompt id.
    """

    prompts: list[Prompt]
    columns: Others = field(default_factory=dict)

    @property
    def goals(self) -> dict[str, str]:
        """By prompt id, the plain request where the prompt wraps one; judges see it instead of the prompt."""
        return {p.id: p.goal for p in self.prompts if p.goal is not None}

    @property
    def sha256(self) -> str:
        """A hash of texts, categories and goals that ignores their order."""
        lines = sorted(json.dumps([p.text, p.category, p.goal]) for p in self.prompts)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what a card records of the set."""
        record = {key: value for key, value in super().describe().items() if key != "note" or value}
        return {**record, "sha256": self.sha256, "rows": len(self.prompts)}


def prompt_set(spec: PromptSet) -> list[Prompt]:
    """Return the prompts of a recipe's prompt set, in file order; see `load`."""
    return prompt_list(spec).prompts


def prompt_list(spec: PromptSet) -> PromptList:
    """Return a recipe's prompt set; see `load`."""
    named = spec.column and not spec.source.startswith(shipped.PREFIX)
    return load(f"{spec.source}:{spec.column}" if named else spec.source, spec.split, spec.n, spec.seed)


def load(spec: str, split: str | None = None, n: int | None = None, seed: int | None = None) -> PromptList:
    """Read n prompts of a named set, a file, a folder or owner/name, each with an optional `:COLUMN`.

    They are the first ones, or with a seed those that `spread` draws.

    Raises:
        DataNotAvailable: The set is not on this machine and cannot be downloaded.
        UserError: There is no such set, split or column, or it cannot be read.
    """
    if spec.startswith(shipped.PREFIX):
        prompts = from_rows(shipped.rows(spec, split), spec)
        whole = PromptList(name=spec, origin=spec, licence=shipped.LICENCE, prompts=prompts)
    else:
        source, column = _parse(spec)
        named = PROMPT_SETS.get(source)
        if named and split:
            raise UserError(f"The prompt set {source} is a single split: remove the split {split!r}.")
        columns = {**(named.columns if named else ANY_COLUMNS), **({"prompt": (column,)} if column else {})}
        whole = _read_named(named, columns) if named else _read(source, split, columns)
    if n is None or seed is None:
        return replace(whole, prompts=whole.prompts[:n])
    return replace(whole, prompts=spread(whole.prompts, n, seed))


def spread(prompts: Sequence[Prompt], n: int, seed: int) -> list[Prompt]:
    """Return n prompts that a seed draws, spread over their categories, in their order.

    The first ones are of different categories, as far as there are so many; the others come in proportion to the sizes
    of the categories. A smaller n gives a part of a larger one.
    """
    drawn = sorted(prompts, key=lambda prompt: row_id("spread", seed, prompt.text))
    groups: dict[str, list[Prompt]] = {}
    for prompt in drawn:
        groups.setdefault(prompt.category, []).append(prompt)
    places: dict[str, float] = {}
    for number, group in enumerate(groups.values()):
        for place, prompt in enumerate(group):
            # The first of each group is before all others, the next ones are evenly spaced between 0 and 1.
            places[prompt.id] = place / len(group) + (number / len(groups) / len(group) if place else -1)
    chosen = {prompt.id for prompt in sorted(drawn, key=lambda prompt: places[prompt.id])[:n]}
    return [prompt for prompt in prompts if prompt.id in chosen]


def _parse(spec: str) -> tuple[str, str]:
    """Return source and column of `SOURCE[:COLUMN]`. The path of an existing file may itself contain a colon."""
    source, colon, column = spec.rpartition(":")
    return (source, column) if colon and not exists(expanded(spec)) else (spec, "")


def _read(source: str, split: str | None, columns: Columns) -> PromptList:
    path = expanded(source)
    if not exists(path) and not path.suffix and "/" not in source:
        raise UserError(f"There is no prompt set and no file {brief(source)}; {did_you_mean(source, PROMPT_SETS)}")
    table = readers.load(source, split=split)
    if not table.rows:
        raise UserError(f"{source} has no prompts in split {split!r}.")
    column = readers.require_column(table.rows[0], columns["prompt"], source, COLUMN_HINT)
    empty = [column in row and (readers.is_missing(row[column]) or not str(row[column]).strip()) for row in table.rows]
    rows = [row for row, left_out in zip(table.rows, empty, strict=True) if not left_out]
    if not rows:
        raise UserError(f"{source} has no prompts: its column {column!r} is empty in all {len(table.rows)} rows.")
    prompts, others = _prompts(source, source, rows, columns, own=exists(path))
    repeated = len(rows) - len(prompts)
    notes = [
        f"{sum(empty)} empty, left out" if any(empty) else "",
        f"{repeated} repeated, left out" if repeated else "",
    ]
    note = "; ".join(filter(None, notes))
    return PromptList(
        name=source, origin=table.origin, revision=table.revision, note=note, prompts=prompts, columns=others
    )


def _read_named(named: NamedDataset, columns: Columns) -> PromptList:
    table = named.open()
    rows = named.select(table)
    prompts, _ = _prompts(named.name, table.origin, rows, columns)
    repeated = len(rows) - len(prompts)
    notes = [named.size_note(len(rows)), f"{repeated} repeated, left out" if repeated else ""]
    return PromptList(prompts=prompts, **named.record(table, "; ".join(filter(None, notes))))


def _prompts(
    name: str, origin: str, rows: list[Row], columns: Columns, own: bool = False
) -> tuple[list[Prompt], Others]:
    """Return prompts without repetitions. One that has a context around the request has the request as its goal.

    own: keep the short values of all other columns, the user's id among them; repetitions with other ids count.
    """
    column = readers.require_column(rows[0], columns["prompt"], origin, COLUMN_HINT)
    category = _category_columns(rows[0], columns.get("category", ()))
    around = readers.require_column(rows[0], columns["context"], origin) if "context" in columns else ""
    prompts, others = dict[str, Prompt](), dict[str, dict[str, Any]]()
    for number, row in enumerate(rows, 1):
        goal = readers.text(row, column, f"{origin}, row {number}")
        context = str(row.get(around) or "").strip()
        text = f"{context}{BEFORE_GOAL}{goal}" if context else goal
        prompt = Prompt(
            id=row_id(name, text),
            source=name,
            text=text,
            category=":".join(str(row.get(part) or "") for part in category),
            goal=goal if context else None,
        )
        columns_of = other_columns(row, (column, *category)) if own else {}
        if prompt.id in prompts and (key := _own_id(columns_of)) and key != _own_id(others[prompt.id]):
            prompt = prompt.model_copy(update={"id": row_id(name, text, key)})
        prompts.setdefault(prompt.id, prompt)
        others.setdefault(prompt.id, columns_of)
    return list(prompts.values()), others


def other_columns(row: Row, used: Iterable[str]) -> dict[str, Any]:
    """Return the other columns of a row, as far as they have numbers, truth values and short texts."""
    others = {str(name): value for name, value in row.items() if name is not None and name not in set(used)}
    return {
        name: value
        for name, value in others.items()
        if isinstance(value, bool | int | float | str) and not readers.is_missing(value) and len(str(value)) <= SHORT
    }


def _own_id(columns: Mapping[str, Any]) -> str:
    column = readers.find_column(columns, IDS)
    return str(columns[column]) if column else ""


def _category_columns(row: Row, names: Iterable[str]) -> list[str]:
    """Return the row's columns of the first category that it has in full; `a:b` joins two columns."""
    for name in names:
        columns = [readers.find_column(row, [part]) for part in name.split(":")]
        if None not in columns:
            return [str(column) for column in columns]
    return []


def from_rows(rows: Iterable[Row], source: str, column: str = "prompt") -> list[Prompt]:
    """Return the texts in one column as prompts without repetitions.

    Raises:
        UserError: The column is missing or empty in a row.
    """
    prompts: dict[str, Prompt] = {}
    for number, row in enumerate(rows, 1):
        text = readers.text(row, column, f"{source}, row {number}")
        category = str(row.get("category") or row.get("kind") or "")
        prompt = Prompt(id=row_id(source, text), source=source, text=text, category=category)
        prompts[prompt.id] = prompt
    return list(prompts.values())


def has_context(text: str, goal: str | None) -> bool:
    """Return whether a prompt is a context and, after a line of dashes, the request."""
    return goal is not None and text.endswith(BEFORE_GOAL + goal)
