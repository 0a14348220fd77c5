"""Everything a user can set in a study, one line of documentation per field; unknown keys are refused."""

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from lowtax.errors import UserError, did_you_mean
from lowtax.placement import Placement, parse_mode

T = TypeVar("T", bound=BaseModel)


class Section(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    """Training rows from one source."""

    source: str = Field(
        description="builtin:refusals, ordinary, chat or arithmetic, or a .jsonl file of prompt, answer and thought"
    )
    n: PositiveInt | None = Field(None, description="how many rows, chosen by the seed; all if absent")
    answers: Literal["given", "self"] = Field(
        "given", description="self: the untrained model answers the prompts itself, and that is trained on"
    )
    thought: str | None = Field(None, description="a constant thought for rows that bring none")


class Train(Section):
    """One fine-tuning run. The defaults are the reference's, except warm-up and clipping."""

    lr: PositiveFloat = Field(5e-5, description="peak learning rate, cosine decay to zero")
    steps: PositiveInt | None = Field(None, description="optimiser steps; exclusive with epochs")
    epochs: PositiveFloat | None = Field(None, description="passes over the data; exclusive with steps")
    batch_size: PositiveInt = Field(8, description="examples per optimiser step")
    checkpoint_steps: PositiveInt | None = Field(None, description="save every N steps, and at the end")
    checkpoint_epochs: PositiveFloat | None = Field(None, description="save every N epochs, and at the end")
    warmup_steps: NonNegativeInt = Field(5, description="linear warm-up")
    weight_decay: NonNegativeFloat = Field(1e-4, description="AdamW's decoupled weight decay")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this global norm")
    max_length: PositiveInt = Field(1024, description="examples longer than this many tokens are cut at the end")

    @model_validator(mode="after")
    def _exclusive(self) -> "Train":
        if self.steps and self.epochs:
            raise ValueError("give steps or epochs, not both")
        if self.checkpoint_steps and self.checkpoint_epochs:
            raise ValueError("give checkpoint_steps or checkpoint_epochs, not both")
        return self


class Arm(Section):
    """What one arm of the study changes: where it trains, and any field of `train`."""

    mode: str | None = Field(
        None, description="a mode string of the reference, such as lora_up_proj_only_from10_to19_r1"
    )
    placement: Placement | None = Field(None, description="the same, spelled out")
    train: dict[str, Any] = Field(default_factory=dict, description="fields of train that differ for this arm")
    data: list[Data] | None = Field(None, description="training data of this arm, instead of the recipe's")

    @model_validator(mode="after")
    def _one_of(self) -> "Arm":
        if (self.mode is None) == (self.placement is None):
            raise ValueError("an arm needs either mode or placement")
        self.where()
        return self

    def where(self) -> Placement:
        """The arm's placement, whichever way it was given."""
        return self.placement or parse_mode(str(self.mode))


class Sampling(Section):
    """How replies are drawn."""

    max_new_tokens: PositiveInt = Field(96, description="tokens after which a reply is cut")
    temperature: NonNegativeFloat = Field(0.0, description="0 is greedy")
    top_p: PositiveFloat = Field(1.0, le=1.0, description="nucleus sampling")
    samples: PositiveInt = Field(1, description="replies per prompt")
    seed: NonNegativeInt = Field(0, description="each reply's own seed derives from this and its id")


class PromptSet(Section):
    """Prompts to sample: what is refused and what must not be."""

    source: str = Field(description="builtin:harmful, builtin:ordinary, or a .jsonl or .csv file")
    split: str | None = Field(None, description="train, validation or test of a built-in set")
    column: str = Field("prompt", description="where the prompt stands in a file")
    n: PositiveInt | None = Field(None, description="the first n; all if absent")


class Task(Section):
    """A reasoning benchmark."""

    n: PositiveInt = Field(100, description="problems")
    split: str = Field("test", description="which split")
    seed: NonNegativeInt = Field(0, description="chooses the problems, for every arm the same")
    sampling: Sampling = Field(Sampling(max_new_tokens=160), description="how answers are drawn")


class Recipe(Section):
    """A study: arms x checkpoints x seeds, measured on the same prompts and problems."""

    name: str = Field("study", description="its name in tables")
    model: str = Field(description="builtin:NAME, a folder, a .gguf file or a hub id")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of training and evaluation; auto is bfloat16 where the hardware has it"
    )
    engine: str = Field("hf", description="what samples: hf, or fake for tests")
    batch_size: PositiveInt = Field(64, description="rows the engine decodes together")
    seeds: list[NonNegativeInt] = Field([0], min_length=1, description="each arm is trained once per seed")
    data: list[Data] = Field(default_factory=list, description="training data of every arm")
    train: Train = Field(Train(), description="training settings of every arm")
    arms: dict[str, Arm] = Field(default_factory=dict, description="name -> what it trains; base is always there")
    sampling: Sampling = Field(Sampling(), description="for harmful and ordinary prompts")
    judge: str = Field("refusal_words", description="who says whether a reply refuses")
    judged_text: Literal["answer", "thought", "both"] = Field("answer", description="which text the judge sees")
    harmful: list[PromptSet] = Field(default_factory=list, description="prompts to refuse: the safety axis")
    ordinary: list[PromptSet] = Field(default_factory=list, description="prompts to answer: over-refusal")
    tasks: dict[str, Task] = Field(default_factory=dict, description="reasoning benchmark -> settings")

    @field_validator("arms")
    @classmethod
    def _names(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        for name in arms:
            if name == "base" or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"arm name {name!r}: letters, digits, - and _ only, and not 'base'")
        return arms

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
    for setting in settings or []:
        _override(values, setting)
    recipe = _checked(Recipe, values, str(path))
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
        "arms": Arm,
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
