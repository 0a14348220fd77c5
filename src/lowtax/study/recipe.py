"""A recipe: everything that a user can set in a study, with one line of documentation per field.

Unknown keys are refused.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from lowtax.benchmarks.base import Task
from lowtax.common.borders import brief
from lowtax.common.config import SEED, Section
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.names import sharing
from lowtax.common.registry import is_program
from lowtax.common.yaml_files import parse_yaml, read_yaml
from lowtax.data import thinking_tags
from lowtax.data.conversations import Conversation
from lowtax.data.specs import Data, PromptSet
from lowtax.engines.settings import EXAM, Sampling
from lowtax.judges.base import Text
from lowtax.models.placement import Placement, mode_methods, parse_mode
from lowtax.study import lineage
from lowtax.study.lineage import Attack
from lowtax.study.matched import Level
from lowtax.training.settings import Execution, Train

NEWER = (
    "chat_template_kwargs",
    "system",
    "thinking_tags",
    "deterministic",
    "matched_safety",
    "prompt_order",
    "attacked",
    "judges",
)  # fields that stored cards do not have
TO_ARM = "arm:"  # in an edit, before the name of a trained arm: its last checkpoint
T = TypeVar("T", bound=BaseModel)


class Arm(Section):
    """One arm of a study: its placement, methods and data, and the fields of `train` that differ."""

    later: ClassVar[frozenset[str]] = frozenset({"start"})

    mode: str | None = Field(
        None, description="a mode string of the reference, such as lora_up_proj_only_from10_to19_r1"
    )
    placement: Placement | None = Field(None, description="the same in full")
    start: str | None = Field(
        None, description="the arm whose weights it starts from, ARM or ARM@checkpoint-N; the base if absent"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="fields of train that differ for this arm")
    data: list[Data] | None = Field(None, description="training data of this arm, instead of the recipe's")
    methods: list[dict[str, Any]] = Field(
        default_factory=list,
        description="methods to train with: {name: orthogonal, beta: 0.1, only: [down_proj]}",
    )

    @model_validator(mode="after")
    def _one_of(self) -> "Arm":
        if self.mode is None and self.placement is None and self.start is not None:
            return self  # it has the placement of its parent
        if (self.mode is None) == (self.placement is None):
            raise ValueError("an arm needs either mode or placement")
        self.where()
        return self

    def where(self) -> Placement:
        """Return the arm's placement, from `placement` or from `mode`."""
        return self.placement or parse_mode(str(self.mode))

    def acts(self, published: bool = True) -> list[dict[str, Any]]:
        """Return the methods of this arm: those of its mode (see `mode_methods`), then its `methods`."""
        return [*(mode_methods(self.mode, published) if self.mode else []), *self.methods]


class EditedArm(Section):
    """An arm that is made of a trained arm by weight-space edits (docs/guides/editing.md)."""

    of: str = Field(description="the trained LoRA arm whose checkpoints are edited")
    edits: list[dict[str, Any]] = Field(
        min_length=1, description="edits in order, from `lowtax methods`: {name: safe_lora, aligned: REF}"
    )
    rank: PositiveInt | None = Field(
        None, le=1_000_000, description="after every edit, truncate the changed matrices to this rank"
    )
    checkpoints: Literal["all", "last"] = Field("last", description="the checkpoints of the arm that are edited")

    def end(self, edit: dict[str, Any]) -> str | None:
        """Return the trained arm that an edit interpolates to: NAME in {name: interpolate, to: "arm:NAME"}."""
        to = edit.get("to")
        is_arm = edit.get("name") == "interpolate" and isinstance(to, str) and to.startswith(TO_ARM)
        return str(to).removeprefix(TO_ARM) if is_arm else None

    def ends(self) -> list[str]:
        """Return the trained arms that its edits interpolate to."""
        return [end for edit in self.edits if (end := self.end(edit)) is not None]

    def made_of(self) -> list[str]:
        """Return all trained arms that it is made of."""
        return list(dict.fromkeys([self.of, *self.ends()]))


class Recipe(Section):
    """A study: arms x checkpoints x seeds, measured on the same prompts and problems."""

    name: str = Field("study", description="the study's name in tables")
    model: str = Field(description="builtin:NAME, a folder, a .gguf file or a hub id")
    precision: Literal["auto", "float32", "bfloat16", "float16", "nf4", "nf4-float32"] = Field(
        "auto",
        description="precision of training and evaluation; auto is bfloat16 if the hardware supports it; float16 "
        "trains only under DeepSpeed, which scales the loss; nf4 has the base in 4 bits and computes in bfloat16 "
        "(QLoRA), nf4-float32 in float32",
    )
    thinking: Literal["default", "on", "off"] = Field(
        "default", description="thinking in training and sampling, for chat templates with a switch"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="variables of the chat template in training and sampling: {reasoning_effort: low}",
    )
    thinking_tags: str | None = Field(
        None,
        description="the tags of thoughts, a family of docs/reference/thinking-tags.md or OPENING...CLOSING; those "
        "that the chat template shows if absent",
    )
    system: str | None = Field(
        None, description="a system prompt of all training rows, prompts and problems that have none of their own"
    )
    engine: str = Field("hf", description="the engine: hf, vllm, openai, fake (for tests) or path/to/file.py:Class")
    batch_size: PositiveInt = Field(64, le=1_000_000, description="rows that the engine decodes together")
    deterministic: bool = Field(
        False, description="decode every reply in a fixed batch, so that a resumed run draws the same in any precision"
    )
    prompt_order: PositiveInt | None = Field(
        None, le=SEED, description="seed of the order in which requests reach the engine; the engine hf sorts them"
    )
    seeds: list[Annotated[NonNegativeInt, Field(le=SEED)]] = Field(
        [0], min_length=1, max_length=10_000, description="every arm is trained once for each seed"
    )
    data: list[Data] = Field(default_factory=list, description="training data of every arm")
    train: Train = Field(Train(), description="training settings of every arm")
    execution: Execution = Field(Execution(), description="how training runs on the hardware")
    arms: dict[str, Arm] = Field(default_factory=dict, description="name -> arm; the base is always included")
    edited: dict[str, EditedArm] = Field(
        default_factory=dict, description="name -> an arm that edits make of a trained arm"
    )
    attacked: dict[str, Attack] = Field(
        default_factory=dict, description="name -> a training that starts from each of several arms (ARM.NAME)"
    )
    sampling: Sampling = Field(Sampling(), description="sampling of harmful and ordinary prompts")
    judge: str = Field(
        "refusal", description="the judge of replies to harmful and ordinary prompts (docs/reference/judges.md)"
    )
    judges: list[str] = Field(
        default_factory=list, description="further judges of the same replies, beside `judge`, and their agreement"
    )
    judged_text: Text = Field(
        "answer", description="the text that the judge reads; both is the reply exactly as it was written"
    )
    judged_also: list[Text] = Field(
        ["thought", "both"], description="further texts to judge, of replies to harmful prompts"
    )
    harmful: list[PromptSet] = Field(default_factory=list, description="prompts to refuse: the safety axis")
    ordinary: list[PromptSet] = Field(default_factory=list, description="prompts to answer: over-refusal")
    tasks: dict[str, Task] = Field(default_factory=dict, description="reasoning task -> settings")
    matched_safety: Level | None = Field(
        None, description="the level of safety at which the arms are compared; 0.9 with over-refusal of 0.3 if absent"
    )

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _json(cls, variables: Any) -> Any:
        """Return the variables with dates, which YAML reads without quotes, as text."""
        if not isinstance(variables, dict):
            return variables
        return {name: value.isoformat() if isinstance(value, date) else value for name, value in variables.items()}

    @field_validator("thinking_tags")
    @classmethod
    def _known_tags(cls, tags: str | None) -> str | None:
        try:
            thinking_tags.parse(tags)
        except UserError as error:
            raise ValueError(str(error).removesuffix(".")) from error
        return tags

    @field_validator("arms", "edited")
    @classmethod
    def _names(cls, arms: dict[str, Any]) -> dict[str, Any]:
        for name in arms:
            if name == "base" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"arm name {name!r}: letters, digits, '.', '-' and '_' only, and not 'base'")
        return arms

    @field_validator("tasks")
    @classmethod
    def _own_files(cls, tasks: dict[str, Task]) -> dict[str, Task]:
        if shared := sharing(tasks):
            raise ValueError(f"{shared[0]!r} and {shared[1]!r} would share one file: give one another name")
        return tasks

    @model_validator(mode="before")
    @classmethod
    def _attacks_written_out(cls, values: Any) -> Any:
        return lineage.expanded(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _starts(self) -> "Recipe":
        """Give arms without a placement that of the arm that they start from."""
        self.__dict__["arms"] = lineage.completed(self.arms, self.edited)
        return self

    @model_validator(mode="after")
    def _edits_of_trained_arms(self) -> "Recipe":
        for name, arm in self.edited.items():
            if name in self.arms:
                raise ValueError(f"edited.{name} has the name of a trained arm: give it another")
            for source in arm.made_of():
                self._refuse_source(source, f"edited.{name}")
        return self

    def _refuse_source(self, of: str, where: str) -> None:
        """Raise ValueError unless `of` is a trained arm whose adapters can be edited."""
        if of not in self.arms:
            hint = did_you_mean(of, self.arms).removesuffix(".") if self.arms else "the recipe has none"
            raise ValueError(f"{where}: there is no trained arm {of!r}; {hint}")
        placement = self.arms[of].where()
        if placement.kind == "full" and of != self.edited[where.removeprefix("edited.")].of:
            raise ValueError(f"{where}: {of!r} is fine-tuned in full, and only adapters are edited: name a LoRA arm")
        if placement.kind == "full":
            lineage.refuse_edits_of_whole(where.removeprefix("edited."), self.edited[where.removeprefix("edited.")])
        if placement.parameters:
            raise ValueError(f"{where}: {of!r} adapts {placement.parameters[0]}, and only linear modules are edited")

    def train_of(self, arm: str) -> Train:
        """Return the training settings of one arm."""
        return _checked(Train, self.train.with_changes(self.arms[arm].train), f"arms.{arm}.train")

    def drawn(self) -> Sampling:
        """Return the sampling of harmful and ordinary prompts, with the recipe's system prompt."""
        return self._with_system(self.sampling)

    def exams(self) -> dict[str, Task]:
        """Return the reasoning tasks, with the recipe's system prompt."""
        return {
            name: task.model_copy(update={"sampling": self._with_system(task.sampling)})
            for name, task in self.tasks.items()
        }

    def with_tokens(self, replies: int, answers: int = EXAM, known: "Recipe | None" = None) -> "Recipe":
        """Return the recipe with `max_new_tokens` wherever it has none.

        Args:
            replies: of harmful and ordinary prompts. answers: of tasks.
            known: the stored recipe of the same study, whose numbers stay; one that is older than this rule has none.
        """
        sampling = _with_tokens(self.sampling, replies, known.sampling if known else None)
        tasks = {}
        for name, task in self.tasks.items():
            before = known.tasks.get(name) if known else None
            drawn = _with_tokens(task.sampling, answers, before.sampling if before else None)
            tasks[name] = task if drawn is task.sampling else task.model_copy(update={"sampling": drawn})
        changes = {"sampling": sampling} if sampling is not self.sampling else {}
        return self.model_copy(update=changes | ({"tasks": tasks} if tasks != self.tasks else {}))

    def rows(self, rows: Iterable[Conversation]) -> list[Conversation]:
        """Return training rows, with the recipe's system prompt where they have none."""
        return [replace(row, system=row.system or self.system) for row in rows] if self.system else [*rows]

    def resolved(self) -> dict[str, Any]:
        """Return all fields as JSON data, as cards record them; newer ones only where they are set."""
        fields = self.model_dump(mode="json")
        return {name: value for name, value in fields.items() if value or name not in NEWER}

    def _with_system(self, sampling: Sampling) -> Sampling:
        if self.system is None or sampling.system is not None:
            return sampling
        return sampling.model_copy(update={"system": self.system})

    def programs(self) -> list[str]:
        """Return the classes in Python files that it names (path/to/file.py:Class): they run when they are used."""
        specs = [spec for arm in self.arms.values() for spec in arm.methods]
        specs += [spec for arm in self.edited.values() for spec in arm.edits]
        names = [self.engine, self.judge, *self.judges, *(spec.get("name") for spec in specs)]
        names += [value for spec in self.harmful for value in spec.attack_names()]
        names += [task.benchmark or name for name, task in self.tasks.items()]
        names += [name for data in self.sources() for name in data.programs()]
        return list(dict.fromkeys(name for name in names if isinstance(name, str) and is_program(name)))

    def sources(self) -> list[Data]:
        """Return the training data of all arms."""
        return [*self.data, *(spec for arm in self.arms.values() for spec in arm.data or [])]

    def data_of(self, arm: str) -> list[Data]:
        """Return the training data of one arm."""
        specs = self.arms[arm].data
        return self.data if specs is None else specs


def _with_tokens(sampling: Sampling, tokens: int, known: Sampling | None) -> Sampling:
    """Return sampling settings with a number of tokens, unless they or the stored ones have one."""
    if "max_new_tokens" in sampling.model_fields_set:
        return sampling
    return sampling.model_copy(update={"max_new_tokens": known.max_new_tokens if known else tokens})


def load(path: str | Path, settings: list[str] | None = None, trust: bool = False) -> Recipe:
    """Read a YAML recipe.

    Args:
        settings: `dotted.key=value` overrides, with values in YAML.
        trust: accept classes in Python files, which run. Those that an override names are accepted anyway.

    Raises:
        UserError: The file cannot be read, a key or a value is wrong, or it names Python files and is not trusted.
    """
    values = read_yaml(Path(path), f"The recipe {str(path)!r}")
    if not isinstance(values, dict):
        raise UserError(f"The recipe {str(path)!r} holds no keys: it must be a YAML mapping such as `model: ...`.")
    recipe = build(values, settings or [], str(path))
    if not trust:
        refuse_programs(recipe.programs(), str(path), settings or [])
    return recipe


def refuse_programs(names: Iterable[str], where: str, told: Sequence[str] = ()) -> None:
    """Refuse classes in Python files that a recipe names: whoever wrote the recipe would run code on this machine.

    Args:
        where: the recipe, for the error.
        told: texts of the command line; the classes in them are the user's own choice.

    Raises:
        UserError: There is one.
    """
    if foreign := [name for name in names if not any(name in text for text in told)]:
        raise UserError(
            f"{where} names {foreign[0]}, a Python file that would run with your rights: read it, and add --trust "
            "(in Python trust=True) if you trust it."
        )


def build(values: dict[str, Any], settings: list[str], where: str) -> Recipe:
    """Return the recipe of these keys.

    Args:
        settings: `dotted.key=value` overrides.
        where: the recipe's name in errors.

    Raises:
        UserError: A key or a value is wrong.
    """
    for setting in settings:
        _override(values, setting)
    recipe = _checked(Recipe, values, where)
    for arm in recipe.arms:
        recipe.train_of(arm)
    return recipe


def _override(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise UserError(f"--set {setting!r} is not of the form key=value, for example --set train.lr=1e-4.")
    *parents, last = key.split(".")
    node: Any = values
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node[part] = node.get(part) if node.get(part) is not None else {}
            node = node[part]
        else:
            raise UserError(f"--set {setting!r}: {part!r} is not a section of the recipe.")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {brief(setting)}: the value is not valid YAML: {error}.") from error
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {setting!r}: {key!r} is not a key that can be set.")


def _checked(kind: type[T], values: dict[str, Any], where: str) -> T:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or where
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(str(problem["loc"][-1]), _keys(kind, problem["loc"][:-1]))
            raise UserError(f"{where}: unknown key {place!r}; {hint}") from error
        message = problem["msg"].removeprefix("Value error, ")
        value = "" if isinstance(problem["input"], dict) else f" (found {brief(problem['input'])})"
        at = f"{place}: " if problem["loc"] else ""
        raise UserError(f"{where}: {at}{message}{value}.") from error


def _keys(kind: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Return the field names of the section at `path`."""
    sections: dict[str, type[BaseModel]] = {
        "data": Data,
        "train": Train,
        "execution": Execution,
        "arms": Arm,
        "edited": EditedArm,
        "attacked": Attack,
        "sampling": Sampling,
        "harmful": PromptSet,
        "ordinary": PromptSet,
        "tasks": Task,
        "placement": Placement,
    }
    for part in reversed(path):
        if part in sections:
            return list(sections[part].model_fields)
    return list(kind.model_fields)  # type: ignore[attr-defined]
