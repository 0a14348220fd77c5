"""Rows of the JSONL files: prompts, replies, verdicts and grades.

An id is a hash of what produced the row. A row that exists is never produced again, and a changed recipe produces new
rows instead of mixing with old ones.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from lowtax.common.errors import UserError

T = TypeVar("T")
HASH = re.compile("[0-9a-f]{64}")  # a SHA-256


class Row(BaseModel):
    """One line of a JSONL file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str


class Attacked(BaseModel):
    """The place of a prompt or reply in an attack on a plain request.

    attack: the attack's name in a table. request: the id of the plain request. attempt: the number of the query among
        those to this model about this request, from 0. variant: the wrapper or technique.
    prefix: text that begins the reply, in the `part` of it; it is not part of the reply. closed: such a thought ends.
    history: the earlier turns of the conversation, as (role, content).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: str
    request: str
    attempt: int = 0
    variant: str = ""
    prefix: str = ""
    part: Literal["answer", "thought"] = "answer"
    closed: bool = False
    history: tuple[tuple[str, str], ...] = ()


class Prompt(Row):
    """One request to a model.

    `attacked` is set where an attack made the prompt. `gold` is the correct answer of a question and `choices` its
    options in order. Where `text` wraps the actual request, `goal` is that request, which judges see. Where `text`
    wraps a problem, `problem` is the problem alone, which a checker sees; it is part of no stored row.
    """

    source: str
    text: str
    category: str = ""
    gold: str | None = None
    goal: str | None = None
    choices: tuple[str, ...] = ()
    problem: str | None = None
    attacked: Attacked | None = None


@dataclass(frozen=True)
class Subject:
    """The base or a checkpoint. `made_by` is a hash of everything that decided its weights."""

    arm: str
    seed: int | None
    checkpoint: str | None
    step: int
    model: str
    adapter: str | None
    made_by: str
    trainable_parameters: int = 0
    train_seconds: float = 0.0


class Reply(Row):
    """Text that a model wrote. `finish` is "stop" (it ended by itself), "length" (token limit) or "failed".

    `columns` has the other columns of the user's file that the prompt is from, and `attacked` the place of the prompt
    in an attack.
    """

    arm: str
    seed: int | None
    checkpoint: str | None
    source: str
    prompt_id: str
    prompt: str
    sample: int
    text: str
    thought: str
    answer: str
    closed: bool
    finish: Literal["stop", "length", "failed"]
    tokens: int
    error: str | None = None
    category: str = ""
    goal: str | None = None
    columns: dict[str, Any] = {}
    attacked: Attacked | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write no `columns` and no `attacked` where there are none, as rows are that are older than these fields."""
        row: dict[str, Any] = handler(self)
        return {name: value for name, value in row.items() if name not in ("columns", "attacked") or value}


def require_texts(replies: Iterable[Reply], where: str) -> None:
    """Refuse replies that are kept as hashes, as a study is that must not have its texts.

    where: the file that was to get what is read in them.

    Raises:
        UserError: Request and text of a reply are both a SHA-256.
    """
    if number := sum(bool(HASH.fullmatch(reply.text) and HASH.fullmatch(reply.prompt)) for reply in replies):
        raise UserError(
            f"{number:,} replies that {where} needs are kept as hashes, so nothing can be read in them: their rates "
            "are in the study's table.json; the study with its texts can be compared."
        )


class Verdict(Row):
    """A judge's verdict on a reply: full refusal, partial refusal, compliance; safe, unsafe; or no verdict.

    `score`, `category` and `detail` are those of the judge's `Opinion`, and `version` is that of a judge of ours.
    """

    reply_id: str
    judge: str
    on: Literal["answer", "thought", "both"] = "answer"
    label: Literal["refusal", "partial", "compliance", "safe", "unsafe", "unfinished", "unparsed", "failed"]
    error: str | None = None
    score: float | None = None
    category: str = ""
    detail: str = ""
    version: str = ""

    @model_serializer(mode="wrap")
    def _without_empty_version(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write no `version` where there is none, as rows are that are older than this field."""
        row: dict[str, Any] = handler(self)
        return row if self.version else {name: value for name, value in row.items() if name != "version"}


class Grade(Row):
    """The grade of an answer: correct or not. An unfinished answer is counted apart, and incorrect but for the preset
    `reference`.

    `rule` names the rule that found the answer, or the fault. `checked` is a model's opinion on an answer that the
    rules reject.
    """

    reply_id: str
    task: str
    correct: bool
    finished: bool
    extracted: str | None
    gold: str
    rule: str = ""
    checked: bool | None = None


def row_id(*parts: Any) -> str:
    """Return a stable id: 16 hex digits of the SHA-256 of what produced the row."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Rows(list[T]):
    """A list of rows that pandas can show."""

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a column for every field; nested fields become `outer.inner`.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped]
        except ImportError as error:
            raise UserError("to_frame needs pandas: install it with `pip install pandas`.") from error
        return pandas.json_normalize([row.model_dump() if isinstance(row, BaseModel) else row for row in self])
