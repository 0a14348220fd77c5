"""The sections of a recipe, with one line of documentation per field. Unknown keys are refused."""

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from lowtax import dataspec
from lowtax.errors import did_you_mean
from lowtax.rendering import RENDERINGS

Text = Literal["answer", "thought", "both"]
Decoding = Literal["default", "zero_think", "less_think", "more_think"]


class Section(BaseModel):
    """A section of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    """Training rows from one source. `SOURCE[,key=value...]` is its short form."""

    source: str = Field(
        description="builtin:refusals, ordinary, chat or arithmetic; direct-refusal, safechain or star1; a file, a "
        "folder, or a hub id owner/name"
    )
    path: str | None = Field(None, description="a local copy of a named or hub source: a file or a folder")
    revision: str | None = Field(None, description="a hub source's commit, tag or branch; the card records the commit")
    subset: str | None = Field(None, description="a hub source's or folder's configuration")
    split: str | None = Field(None, description="the split, train if absent; of a file, rows with this `split`")
    columns: dict[Literal["prompt", "context", "thought", "answer", "system", "messages"], str] = Field(
        default_factory=dict, description="names of these columns, if they differ; context follows the prompt"
    )
    where: dict[str, str | bool | int | float] = Field(
        default_factory=dict, description="use only rows with these values: {column: value}, ignoring case"
    )
    first: PositiveInt | None = Field(None, description="only the first N of these rows, in file order")
    n: PositiveInt | None = Field(None, description="number of rows, chosen by the seed; all if absent")
    ratio: PositiveFloat | None = Field(None, description="size relative to the other sources that have a ratio")
    answers: Literal["given", "self"] = Field(
        "given", description="self: train on the untrained model's own answers to the prompts"
    )
    thought: str | None = Field(None, description="a constant thought for rows without one")
    rendering: str | None = Field(
        None, description="the layout of thought and answer: standard, reference ...; the source's own if absent"
    )

    @model_validator(mode="before")
    @classmethod
    def _spec(cls, values: Any) -> Any:
        return dataspec.fields(values) if isinstance(values, str) else values

    @field_validator("rendering")
    @classmethod
    def _rendering(cls, name: str | None) -> str | None:
        if name is not None and name not in RENDERINGS:
            raise ValueError(f"there is no such rendering; {did_you_mean(name, RENDERINGS).removesuffix('.')}")
        return name


class Train(Section):
    """One fine-tuning run. The defaults are the reference's, except warm-up and batch size."""

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
    validation: NonNegativeInt = Field(0, description="held-out rows, whose loss is measured at every checkpoint")
    patience: PositiveInt | None = Field(
        None, description="stop after this many checkpoints without a better validation loss"
    )

    @model_validator(mode="after")
    def _exclusive(self) -> "Train":
        if self.steps and self.epochs:
            raise ValueError("give steps or epochs, not both")
        if self.checkpoint_steps and self.checkpoint_epochs:
            raise ValueError("give checkpoint_steps or checkpoint_epochs, not both")
        if self.patience and not self.validation:
            raise ValueError("patience needs validation rows: set validation")
        return self


class Execution(Section):
    """The execution of training. It may change when a run resumes, and affects results only by rounding."""

    row_tokens: PositiveInt | None = Field(
        None, description="tokens in one forward pass; 2048 on a CPU and 8192 on a GPU if absent"
    )
    micro_batch_size: PositiveInt | None = Field(None, description="examples in one forward pass; any if absent")
    gradient_checkpointing: bool = Field(False, description="less memory, one more forward pass of trained layers")
    prefix: Literal["auto", "memory", "disk", "off"] = Field(
        "auto", description="where to cache the hidden states below the first trained layer between epochs"
    )
    prefix_gb: NonNegativeFloat | None = Field(
        None, description="memory for this cache before a file is used; a quarter of the free memory if absent"
    )
    compile: bool = Field(False, description="compile the layers with torch.compile: a slow start, then faster steps")
    deepspeed: str | None = Field(None, description="a DeepSpeed JSON file, for ZeRO")
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="trackers that receive every step"
    )


class Sampling(Section):
    """Sampling settings."""

    max_new_tokens: PositiveInt = Field(96, description="tokens after which a reply is cut")
    temperature: NonNegativeFloat = Field(0.0, description="0 is greedy")
    top_p: PositiveFloat = Field(1.0, le=1.0, description="nucleus sampling: total probability of the likeliest tokens")
    top_k: NonNegativeInt = Field(0, description="draw from the k likeliest tokens; 0 is all")
    decoding: Decoding = Field("default", description="decoding mode of SafeChain: shorter or longer thoughts")
    system: str | None = Field(None, description="a system prompt")
    samples: PositiveInt = Field(1, description="replies per prompt")
    seed: NonNegativeInt = Field(0, description="every reply's seed derives from this, its prompt and its number")


class PromptSet(Section):
    """Prompts to sample: harmful ones, which should be refused, or ordinary ones, which should not."""

    source: str = Field(
        description="a prompt set by name (docs/prompt-sets.md), builtin:harmful, builtin:ordinary, a file or a hub id"
    )
    split: str | None = Field(None, description="train, validation or test of a built-in set")
    column: str | None = Field(None, description="the prompt's column; one of the usual names if absent")
    n: PositiveInt | None = Field(None, description="only the first n prompts; all if absent")


class Task(Section):
    """A reasoning task."""

    benchmark: str | None = Field(None, description="the benchmark (docs/benchmarks.md); the task's name if absent")
    file: str | None = Field(None, description="a local copy of the benchmark's questions, or your own questions")
    n: PositiveInt | None = Field(
        None, description="number of problems, chosen by the seed; all if absent, 100 if generated"
    )
    split: str | None = Field(None, description="the split; the one that is usually evaluated if absent")
    subset: str | None = Field(None, description="mmlu: subjects, separated by commas; reasoning_gym: a data set")
    seed: NonNegativeInt = Field(0, description="decides problems and order of options, the same for every arm")
    preset: Literal["default", "paper", "reference"] = Field(
        "default", description="paper: the paper's prompts; reference: its code's extraction of answers, too"
    )
    checker: str | None = Field(
        None, description="a model that checks the boxed answers which the rules reject; reported separately"
    )
    sampling: Sampling = Field(
        Sampling(max_new_tokens=32768, temperature=0.6, top_p=0.95), description="sampling of answers"
    )
