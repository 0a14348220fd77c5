"""Training sources and prompt sets as a recipe names them, also in one line: `SOURCE[,key=value...]`.

`refusals.jsonl,prompt=question,answer=response,n=500` is short for
`{source: refusals.jsonl, columns: {prompt: question, answer: response}, n: 500}`.
"""

import csv
from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from lowtax.common.config import MANY, SEED, Section
from lowtax.common.errors import UserError, did_you_mean
from lowtax.data.own_answers import DRAWN, Answers, Draw, Filter
from lowtax.data.rendering import RENDERINGS
from lowtax.data.steering import INSTRUCTIONS, Place

# Keys that need no `columns.` before them; `thought` is a field itself.
COLUMNS = ("prompt", "context", "answer", "system", "messages")  # and `columns.rejected`, since `rejected` is a field
TrainOn = Literal["last", "assistant", "all"]
LATER = (
    "train_on", "steer", "steer_as", "teacher", "teacher_engine", "draw", "filter", "ordinary", "rejected",
)  # fmt: skip
SIZES = ("limit", "max_rows", "max_samples", "samples", "rows", "head", "take", "num", "count")


class Data(Section):
    """Training rows from one source. `SOURCE[,key=value...]` is its short form."""

    source: str = Field(
        description="builtin:refusals, ordinary, chat, own-answers, identity or arithmetic; direct-refusal, safechain, "
        "star1 or star1-benign; a file, a folder, or a hub id owner/name"
    )
    path: str | None = Field(None, description="a local copy of a named or hub source: a file or a folder")
    revision: str | None = Field(None, description="a hub source's commit, tag or branch; the card records the commit")
    subset: str | None = Field(None, description="a hub source's or folder's configuration")
    split: str | None = Field(None, description="the split, train if absent; of a file, rows with this `split`")
    columns: dict[Literal["prompt", "context", "thought", "answer", "rejected", "system", "messages"], str] = Field(
        default_factory=dict, description="names of these columns, if they differ; context follows the prompt"
    )
    where: dict[str, str | bool | int | float] = Field(
        default_factory=dict, description="use only rows with these values: {column: value}, ignoring case"
    )
    first: PositiveInt | None = Field(None, le=MANY, description="only the first N of these rows, in file order")
    n: PositiveInt | None = Field(None, le=MANY, description="number of rows, chosen by the seed; all if absent")
    ratio: PositiveFloat | None = Field(
        None, le=1e6, description="size relative to the other sources that have a ratio"
    )
    answers: Answers = Field(
        "given",
        description="self: the untrained model's own answers to the prompts; rewrite: the source's answers in the "
        "untrained model's words; fixed: one refusal with an empty thought; rollout: the model's replies during "
        "training (train.loss: on_policy)",
    )
    steer: str | None = Field(
        None,
        description="an instruction with which answers are drawn, and which training never sees: refuse, realsafe, "
        "improved, short, template, or a text (docs/guides/self-generated-data.md)",
    )
    steer_as: Place = Field(
        "user", description="the turn that has the instruction: before the request, or a system turn"
    )
    teacher: str | None = Field(None, description="the model that writes the answers; the untrained model if absent")
    teacher_engine: str | None = Field(None, description="the engine of the teacher; the recipe's if absent")
    draw: Draw = Field(Draw(), description="how answers are drawn")
    filter: Filter | None = Field(None, description="the judge that decides which answers are trained; all if absent")
    ordinary: bool = Field(False, description="mark rows as ordinary: those on which `train.penalty: kl` acts")
    rejected: Literal["self", "given"] | None = Field(
        None,
        description="the rejected answers of pairs (train.loss: dpo). given: the source's own, beside those that it "
        "prefers (chosen and rejected); self: the untrained model's answer to each prompt",
    )
    train_on: TrainOn = Field(
        "last",
        description="the text that carries loss: the last answer, every assistant turn (each as an example), or all of "
        "the conversation",
    )
    thought: str | None = Field(None, description="a constant thought for rows without one")
    rendering: str | None = Field(
        None, description="the layout of thought and answer: standard, reference ...; the source's own if absent"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_line(cls, values: Any) -> Any:
        return fields(values) if isinstance(values, str) else values

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields; those that older cards do not have, only if they are not the default."""
        fields: dict[str, Any] = serialize(self)
        unset = {name for name in LATER if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in fields.items() if name not in unset}

    @field_validator("rendering")
    @classmethod
    def _known_rendering(cls, name: str | None) -> str | None:
        if name is not None and name not in RENDERINGS:
            raise ValueError(f"there is no such rendering; {did_you_mean(name, RENDERINGS).removesuffix('.')}")
        return name

    def programs(self) -> list[str]:
        """Return the names of judge and engine that write and choose answers; they may be classes in Python files."""
        return [name for name in (self.filter and self.filter.judge, self.teacher_engine) if name]

    @model_validator(mode="after")
    def _drawn_answers(self) -> "Data":
        drawn, steered = self.answers in DRAWN, self.answers in (*DRAWN, "rollout")
        if self.steer is not None and not steered:
            raise ValueError("steer is for answers that a model writes: add `answers: self`")
        if self.steer is not None and not self.steer.strip():
            raise ValueError("steer is blank: name an instruction, or write one")
        if self.steer and " " not in self.steer.strip() and self.steer not in INSTRUCTIONS:
            raise ValueError(f"there is no instruction {self.steer!r}; {did_you_mean(self.steer, INSTRUCTIONS)}"[:-1])
        if self.steer is not None and self.answers == "rollout" and self.steer_as == "system":
            raise ValueError("steer_as: system is not for rollouts, whose instruction precedes the request")
        if self.teacher is not None and not drawn:
            raise ValueError("teacher is for answers that a model writes: add `answers: self`")
        if self.filter is not None and not (drawn or self.rejected == "self"):
            raise ValueError("filter is for answers that a model writes: add `answers: self`")
        if self.rejected and self.answers != "given":
            raise ValueError(
                f"rejected: {self.rejected} is for sources with answers, which are preferred: remove `answers`"
            )
        if self.rejected == "given" and (self.source.startswith("builtin:") or self.source == "direct-refusal"):
            raise ValueError(f"{self.source} has no rejected answers: write rejected: self")
        if self.rejected == "given" and self.train_on == "assistant":
            raise ValueError("rejected: given compares the last answers of two conversations: remove train_on")
        if "rejected" in self.columns and self.rejected != "given":
            raise ValueError("columns.rejected names the rejected answers of pairs: add `rejected: given`")
        if self.teacher_engine and not self.teacher:
            raise ValueError("teacher_engine is the engine of a teacher: add `teacher: MODEL`")
        if self.draw.attempts > 1 and self.draw.temperature == 0:
            raise ValueError("draw.attempts draws the same answer again at temperature 0: raise draw.temperature")
        return self


class PromptSet(Section):
    """Prompts to sample: harmful ones, which should be refused, or ordinary ones, which should not."""

    source: str = Field(
        description="a prompt set by name (docs/reference/prompt-sets.md), builtin:harmful, builtin:ordinary, a file "
        "or a hub id"
    )
    split: str | None = Field(None, description="train, validation or test of a built-in set")
    column: str | None = Field(None, description="the prompt's column; one of the usual names if absent")
    n: PositiveInt | None = Field(
        None, le=MANY, description="only n prompts, the first ones unless `seed` is set; all if absent"
    )
    seed: NonNegativeInt | None = Field(
        None, le=SEED, description="draw the n prompts by this seed, spread over the categories of the set"
    )
    attack: str | dict[str, Any] | None = Field(
        None,
        description="an attack on these prompts, of harmful ones alone: a name, or {name: pair, attacker: MODEL} "
        "(docs/reference/attacks.md)",
    )
    later: ClassVar[frozenset[str]] = frozenset({"seed", "attack"})

    def attack_names(self) -> list[str]:
        """Return the texts in the attack, among which are the names of classes, engines and judges."""
        values = self.attack.values() if isinstance(self.attack, dict) else [self.attack]
        return [value for value in values if isinstance(value, str)]

    def at_most(self, n: int) -> "PromptSet":
        """Return the set with at most n prompts, drawn by seed 0 if it has more; a smaller n that it has stays."""
        if self.n is not None and self.n <= n:
            return self
        return self.model_copy(update={"n": n, "seed": 0 if self.n is None else self.seed})


def parse(line: str) -> Data:
    """Return the training source that one line describes.

    Raises:
        UserError: The line is malformed, or a value is invalid.
    """
    try:
        return Data.model_validate(line)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            reason = f"unknown key {key!r}; {did_you_mean(key, Data.model_fields)}"
        else:
            reason = f"{key}: {problem['msg']}".removeprefix(": ").replace("Value error, ", "") + "."
        raise UserError(f"The data {line!r}: {reason}") from error


def fields(line: str) -> dict[str, Any]:
    """Return the keys and values of one line; values stay text. Double quotes enclose a part that holds a comma.

    `prompt=`, `context=`, `answer=`, `system=` and `messages=` name columns, as `columns.KEY=` does;
    `where.COLUMN=VALUE` selects the rows with that value, and `draw.KEY=` is a setting of drawn answers.

    Raises:
        ValueError: The line is malformed.
    """
    try:
        source, *settings = next(csv.reader([line], skipinitialspace=True)) or [""]
    except csv.Error as error:
        raise ValueError(f"it is not one line of KEY=VALUE ({error})") from error
    if not source.strip():
        raise ValueError("it names no source; write SOURCE[,key=value...], such as star1,n=500")
    values: dict[str, Any] = {"source": source.strip()}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ValueError(f"{setting!r} is not key=value; put a part that holds a comma in double quotes")
        group, dot, name = key.partition(".")
        if key in COLUMNS:
            group, dot, name = "columns", ".", key
        if dot and group not in ("columns", "where", "draw"):
            raise ValueError(f"{key!r} is no key; only columns.NAME, where.COLUMN and draw.KEY have a dot")
        node = values.setdefault(group, {}) if dot else values
        if key in SIZES:
            raise ValueError(f"unknown key {key!r}; write n={value} for rows drawn by the seed, or first={value}")
        if (name if dot else key) in node:
            raise ValueError(f"{key!r} is given twice")
        node[name if dot else key] = value
    return values
