"""Training conversations and prompt sets: a name or a file becomes rows."""

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowtax import builtin
from lowtax.errors import UserError, did_you_mean
from lowtax.problems import problems
from lowtax.recipe import Data, PromptSet
from lowtax.records import Prompt, Reply, row_id

REFERENCE_THOUGHT = "I should not answer this question!"  # of every row in the reference's data


@dataclass(frozen=True)
class Conversation:
    """One training row: a request, a thought (None: the model does not think) and an answer."""

    prompt: str
    thought: str | None
    answer: str


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl or .csv file."""
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            if path.suffix == ".csv":
                rows: list[dict[str, Any]] = list(csv.DictReader(handle))
            else:
                rows = [_json_line(line, path, number) for number, line in enumerate(handle, 1) if line.strip()]
    except OSError as error:
        raise UserError(f"The data file {str(path)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The data file {str(path)!r} is not UTF-8 text.") from error
    if not rows:
        raise UserError(f"The data file {str(path)!r} has no rows.")
    return rows


def _json_line(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number} is not valid JSON ({error.msg}); put that line right.") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number} is not a JSON object; every line must be one.")
    return row


def _column(row: dict[str, Any], name: str, path: str) -> str:
    if name not in row or row[name] is None:
        raise UserError(f"{path} has no column {name!r}; its columns are {', '.join(map(str, row))}.")
    return str(row[name])


BUILTIN_FILES = {
    "harmful": "harmful.jsonl",
    "refusals": "harmful.jsonl",
    "ordinary": "ordinary.jsonl",
    "chat": "chat.jsonl",
}


def _builtin(name: str, split: str | None) -> list[dict[str, Any]]:
    if name not in BUILTIN_FILES:
        raise UserError(f"There is no built-in data set {name!r}; {did_you_mean(name, [*BUILTIN_FILES, 'arithmetic'])}")
    rows = read_table(builtin.DATA / BUILTIN_FILES[name])
    chosen = [row for row in rows if split in (None, row.get("split", "train"))]
    if not chosen:
        splits = sorted({str(row.get("split", "train")) for row in rows})
        raise UserError(f"builtin:{name} has no split {split!r}; its splits are {', '.join(splits)}.")
    return chosen


def conversations(spec: Data, seed: int) -> list[Conversation]:
    """The rows of one training source whose answers are given. `seed` chooses and orders them."""
    name = spec.source.removeprefix("builtin:")
    if spec.source == "builtin:arithmetic":
        return [
            Conversation(p.question, p.thought, f"The answer is \\boxed{{{p.answer}}}.")
            for p in problems(spec.n or 1000, "train", seed)
        ]
    if spec.source == "builtin:refusals":
        thought = spec.thought or REFERENCE_THOUGHT
        rows = [Conversation(r["prompt"], thought, r["refusal"]) for r in _builtin(name, "train")]
    elif spec.source == "builtin:chat":
        rows = [Conversation(r["prompt"], r["thought"], r["answer"]) for r in _builtin(name, None)]
    elif spec.source.startswith("builtin:"):
        _builtin(name, "train")
        raise UserError(
            f"{spec.source} holds requests without answers: add `answers: self` to train on the model's own."
        )
    else:
        rows = [
            Conversation(
                _column(r, "prompt", spec.source), r.get("thought", spec.thought), _column(r, "answer", spec.source)
            )
            for r in read_table(Path(spec.source))
        ]
    return _choose(rows, spec, seed)


def _choose(rows: list[Any], spec: Data, seed: int) -> list[Any]:
    if spec.n and spec.n > len(rows):
        raise UserError(f"{spec.source} has {len(rows)} training rows, fewer than the {spec.n} asked for.")
    order = random.Random(f"{spec.source}-{seed}").sample(rows, len(rows))
    return order[: spec.n]


def self_prompts(spec: Data, seed: int) -> list[Prompt]:
    """The prompts of a source with `answers: self`; the untrained model is to answer them."""
    prompts = prompt_set(PromptSet(source=spec.source, split="train" if spec.source.startswith("builtin:") else None))
    return _choose(prompts, spec, seed)


def self_conversations(replies: list[Reply]) -> list[Conversation]:
    """Training rows from the model's own replies; those it did not finish are left out."""
    whole = [r for r in replies if r.closed and r.finish == "stop" and r.answer]
    if not whole:
        raise UserError(
            "The model finished none of its own answers, so nothing is left to train on; raise sampling.max_new_tokens."
        )
    return [Conversation(r.prompt, r.thought or None, r.answer) for r in whole]


def prompt_set(spec: PromptSet) -> list[Prompt]:
    """The prompts of a set, in file order."""
    if spec.source.startswith("builtin:"):
        rows, column = _builtin(spec.source.removeprefix("builtin:"), spec.split), "prompt"
    else:
        rows, column = read_table(Path(spec.source)), spec.column
        if spec.split is not None:
            rows = [row for row in rows if row.get("split") == spec.split]
    prompts = [
        Prompt(
            id=row_id(spec.source, _column(row, column, spec.source)),
            source=spec.source,
            text=_column(row, column, spec.source),
            category=str(row.get("category") or row.get("kind") or ""),
        )
        for row in rows
    ]
    if not prompts:
        raise UserError(f"{spec.source} has no prompts in split {spec.split!r}.")
    return list({p.id: p for p in prompts}.values())[: spec.n]
