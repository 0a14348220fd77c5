"""Everything a user can set in a study, one line of documentation per field; unknown keys are refused."""

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from lowtax.errors import UserError, did_you_mean
from lowtax.placement import Placement, mode_methods, parse_mode
from lowtax.recipe_sections import Data, Decoding, Execution, PromptSet, Sampling, Section, Task, Text, Train

__all__ = [
    "TO_ARM",
    "Arm",
    "Data",
    "Decoding",
    "EditedArm",
    "Execution",
    "PromptSet",
    "Recipe",
    "Sampling",
    "Section",
    "Task",
    "Text",
    "Train",
    "build",
    "load",
]

TO_ARM = "arm:"  # in an edit: the last checkpoint of the trained arm named after it
T = TypeVar("T", bound=BaseModel)


class Arm(Section):
    """What one arm of the study changes: where it trains, and any field of `train`."""

    mode: str | None = Field(
        None, description="a mode string of the reference, such as lora_up_proj_only_from10_to19_r1"
    )
    placement: Placement | None = Field(None, description="the same, spelled out")
    train: dict[str, Any] = Field(default_factory=dict, description="fields of train that differ for this arm")
    data: list[Data] | None = Field(None, description="training data of this arm, instead of the recipe's")
    methods: list[dict[str, Any]] = Field(
        default_factory=list, description="what acts on training: {name: orthogonal, beta: 0.1, only: [down_proj]}"
    )

    @model_validator(mode="after")
    def _one_of(self) -> "Arm":
        if (self.mode is None) == (self.placement is None):
            raise ValueError("an arm needs either mode or placement")
        self.where()
        return self

    def where(self) -> Placement:
        """The arm's placement, whichever way it was given."""
        return self.placement or parse_mode(str(self.mode))

    def acts(self) -> list[dict[str, Any]]:
        """The methods of this arm: those that its mode means, then its own."""
        return [*(mode_methods(self.mode) if self.mode else []), *self.methods]


class EditedArm(Section):
    """An arm that is not trained but made of a trained one, from weights alone (docs/editing.md)."""

    of: str = Field(description="the trained arm, with LoRA, whose checkpoints are edited")
    edits: list[dict[str, Any]] = Field(
        min_length=1, description="one after the other: {name: safe_lora, aligned: REF}, as `lowtax methods` lists them"
    )
    rank: PositiveInt | None = Field(None, description="after every edit, truncate what it changed to this rank")
    checkpoints: Literal["all", "last"] = Field("last", description="which of the arm's checkpoints are edited")

    def end(self, edit: dict[str, Any]) -> str | None:
        """The trained arm that an edit goes towards: NAME in {name: interpolate, to: "arm:NAME"}."""
        to = edit.get("to")
        named = edit.get("name") == "interpolate" and isinstance(to, str) and to.startswith(TO_ARM)
        return str(to).removeprefix(TO_ARM) if named else None

    def ends(self) -> list[str]:
        """The trained arms that its edits go towards."""
        return [end for edit in self.edits if (end := self.end(edit)) is not None]

    def made_of(self) -> list[str]:
        """All trained arms that decide it."""
        return list(dict.fromkeys([self.of, *self.ends()]))


class Recipe(Section):
    """A study: arms x checkpoints x seeds, measured on the same prompts and problems."""

    name: str = Field("study", description="its name in tables")
    model: str = Field(description="builtin:NAME, a folder, a .gguf file or a hub id")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of training and evaluation; auto is bfloat16 where the hardware has it; float16 trains "
        "only under DeepSpeed, which scales the loss",
    )
    thinking: Literal["default", "on", "off"] = Field(
        "default", description="for chat templates with a switch, in training and in sampling"
    )
    engine: str = Field("hf", description="what samples: hf, or fake for tests")
    batch_size: PositiveInt = Field(64, description="rows the engine decodes together")
    seeds: list[NonNegativeInt] = Field([0], min_length=1, description="each arm is trained once per seed")
    data: list[Data] = Field(default_factory=list, description="training data of every arm")
    train: Train = Field(Train(), description="training settings of every arm")
    execution: Execution = Field(Execution(), description="how training runs on the hardware")
    arms: dict[str, Arm] = Field(default_factory=dict, description="name -> what it trains; base is always there")
    edited: dict[str, EditedArm] = Field(
        default_factory=dict, description="name -> an arm made of a trained one by weight-space edits"
    )
    sampling: Sampling = Field(Sampling(), description="for harmful and ordinary prompts")
    judge: str = Field("refusal", description="who says whether a reply refuses, or is harmful (docs/judges.md)")
    judged_text: Text = Field("answer", description="which text the judge sees")
    judged_also: list[Text] = Field(
        ["thought", "both"], description="texts of replies to harmful prompts that are judged beside it"
    )
    harmful: list[PromptSet] = Field(default_factory=list, description="prompts to refuse: the safety axis")
    ordinary: list[PromptSet] = Field(default_factory=list, description="prompts to answer: over-refusal")
    tasks: dict[str, Task] = Field(default_factory=dict, description="reasoning benchmark -> settings")

    @field_validator("arms", "edited")
    @classmethod
    def _names(cls, arms: dict[str, Any]) -> dict[str, Any]:
        for name in arms:
            if name == "base" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"arm name {name!r}: letters, digits, '.', '-' and '_' only, and not 'base'")
        return arms

    @model_validator(mode="after")
    def _edits_of_trained_arms(self) -> "Recipe":
        for name, arm in self.edited.items():
            if name in self.arms:
                raise ValueError(f"edited.{name} has the name of a trained arm: give it another")
            for source in arm.made_of():
                self._refuse_source(source, f"edited.{name}")
        return self

    def _refuse_source(self, of: str, where: str) -> None:
        """ValueError where an arm is no trained one whose adapters can be edited."""
        if of not in self.arms:
            known = did_you_mean(of, self.arms).removesuffix(".") if self.arms else "the recipe has none"
            raise ValueError(f"{where}: there is no trained arm {of!r}; {known}")
        placement = self.arms[of].where()
        if placement.kind == "full":
            raise ValueError(f"{where}: {of!r} is fine-tuned in full, and only adapters are edited: name a LoRA arm")
        if placement.parameters:
            raise ValueError(f"{where}: {of!r} adapts {placement.parameters[0]}, and only linear modules are edited")

    def train_of(self, arm: str) -> Train:
        """The training settings of one arm."""
        return _checked(
            Train, {**self.train.model_dump(exclude_unset=True), **self.arms[arm].train}, f"arms.{arm}.train"
        )

    def data_of(self, arm: str) -> list[Data]:
        """The training data of one arm."""
        own = self.arms[arm].data
        return self.data if own is None else own


def load(path: str | Path, settings: list[str] | None = None) -> Recipe:
    """Read a YAML recipe; `settings` are `dotted.key=value` overrides, values in YAML."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"The recipe {str(path)!r} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {str(path)!r} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"The recipe {str(path)!r} holds no keys: it must be a YAML mapping such as `model: ...`.")
    return build(values, settings or [], str(path))


def build(values: dict[str, Any], settings: list[str], where: str) -> Recipe:
    """The recipe of these keys and `dotted.key=value` overrides; `where` names it in errors."""
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
            raise UserError(f"--set {setting!r}: there is nothing at {part!r} to set a key of.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {setting!r}: the value is not valid YAML.") from error
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
            known = _known(kind, problem["loc"][:-1])
            hint = did_you_mean(str(problem["loc"][-1]), known)
            raise UserError(f"{where}: unknown key {place!r}; {hint}") from error
        message = problem["msg"].removeprefix("Value error, ")
        found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
        raise UserError(f"{where}: {place}: {message}{found}.") from error


def _known(kind: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the section that `path` leads to."""
    sections: dict[str, type[BaseModel]] = {
        "data": Data,
        "train": Train,
        "execution": Execution,
        "arms": Arm,
        "edited": EditedArm,
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
