"""Settings of training in a recipe."""

from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lowtax.common.config import MANY, SEED, Section
from lowtax.data.specs import Data

Scheduler = Literal["cosine", "linear", "constant", "wsd", "step"]
EXTENDABLE = ("constant", "step", "wsd")  # schedulers whose steps so far do not depend on the number of all steps


class Rollouts(Section):
    """The model's own replies during training: how they are drawn, and how often."""

    every: PositiveInt = Field(8, le=MANY, description="optimiser steps for which replies are drawn together")
    max_new_tokens: PositiveInt = Field(64, le=MANY, description="tokens after which a reply is cut")
    temperature: PositiveFloat = Field(1.0, le=1e6, description="of the replies")
    top_p: PositiveFloat = Field(1.0, le=1.0, description="nucleus sampling")
    top_k: NonNegativeInt = Field(0, le=MANY, description="draw from the k likeliest tokens; 0 is all")


class Train(Section):
    """One fine-tuning run, by default as the reference's but for warm-up, batch size and decay of norms and biases."""

    later: ClassVar[frozenset[str]] = frozenset(
        {
            "scheduler",
            "warmup_ratio",
            "decay_ratio",
            "lowered_every",
            "lowered_by",
            "optimizer",
            "betas",
            "epsilon",
            "decayed",
            "validation_data",
            "save_dtype",
            "order_seed",
            "data_seed",
            "loss",
            "dpo_beta",
            "rollouts",
            "penalty",
            "penalty_weight",
            "penalty_beside",
            "divergence",
        }
    )

    lr: PositiveFloat = Field(5e-5, description="peak learning rate")
    steps: PositiveInt | None = Field(None, le=MANY, description="optimiser steps; exclusive with epochs")
    epochs: PositiveFloat | None = Field(None, le=1e6, description="passes over the data; exclusive with steps")
    batch_size: PositiveInt = Field(8, le=MANY, description="examples per optimiser step")
    checkpoint_steps: PositiveInt | None = Field(None, le=MANY, description="save every N steps, and at the end")
    checkpoint_epochs: PositiveFloat | None = Field(None, le=1e6, description="save every N epochs, and at the end")
    scheduler: Scheduler = Field(
        "cosine",
        description="the learning rate after warm-up: cosine or linear to zero, constant, step, which lowers it at "
        "intervals, or wsd, which is constant and falls linearly to zero at the end",
    )
    warmup_steps: NonNegativeInt = Field(5, le=MANY, description="linear warm-up")
    warmup_ratio: float | None = Field(
        None, ge=0, lt=1, description="linear warm-up as a share of the steps; exclusive with warmup_steps"
    )
    decay_ratio: float = Field(0.1, gt=0, le=1, description="share of the steps in which wsd falls to zero")
    lowered_every: PositiveInt | None = Field(
        None,
        le=MANY,
        description="steps after which the scheduler step lowers the rate; one pass over the data if absent",
    )
    lowered_by: float = Field(0.85, gt=0, le=1, description="the factor by which the scheduler step lowers the rate")
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        "adamw", description="adamw; adamw_8bit, whose moments take a quarter of the memory (needs bitsandbytes and a "
        "GPU); or adafactor, whose moments take almost none and whose lr is relative to the size of a weight"
    )  # fmt: skip
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of AdamW's two moments")
    epsilon: PositiveFloat = Field(1e-8, description="AdamW's epsilon")
    weight_decay: NonNegativeFloat = Field(1e-4, description="decoupled weight decay")
    decayed: Literal["all", "matrices"] = Field(
        "all", description="what weight decay acts on: all trained weights, or matrices only, not norms and biases"
    )
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this global norm")
    max_length: PositiveInt = Field(
        1024, le=MANY, description="examples longer than this many tokens are cut at the end"
    )
    validation: NonNegativeInt = Field(
        0, le=MANY, description="held-out rows, whose loss is measured at every checkpoint"
    )
    validation_data: list[Data] = Field(
        default_factory=list, description="further rows whose loss is measured, such as [rows.jsonl]; not trained"
    )
    patience: PositiveInt | None = Field(
        None, le=MANY, description="stop after this many checkpoints without a better validation loss"
    )
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of saved whole models; auto is that of training. Adapters are always float32"
    )

    loss: Literal["cross_entropy", "on_policy", "dpo"] = Field(
        "cross_entropy",
        description="cross_entropy of the answers; on_policy: divergence from the frozen base on the model's own "
        "replies (docs/guides/self-generated-data.md); dpo: preference over a rejected answer",
    )
    rollouts: Rollouts = Field(Rollouts(), description="the model's own replies, with the loss on_policy")
    dpo_beta: PositiveFloat = Field(0.1, le=1e6, description="DPO's beta: how strongly the frozen base holds the model")
    penalty: Literal["none", "kl"] = Field(
        "none", description="kl: divergence from the frozen base (adapters off) on rows that are marked `ordinary`"
    )
    penalty_weight: PositiveFloat = Field(1.0, le=1e6, description="factor of the penalty, which counts per token")
    penalty_beside: bool = Field(
        False, description="ordinary rows have cross-entropy beside the penalty; without it the penalty alone"
    )
    divergence: Literal["forward", "reverse"] = Field(
        "forward", description="KL of the frozen base from the model (forward), or of the model from it (reverse)"
    )

    order_seed: NonNegativeInt | None = Field(
        None, le=SEED, description="seed of the order of examples; that of the arm if absent"
    )
    data_seed: NonNegativeInt | None = Field(
        None,
        le=SEED,
        description="seed of the choice of rows: those of a source with `n`, of a mix, and held-out ones; that of the "
        "arm if absent",
    )

    @model_validator(mode="after")
    def _exclusive(self) -> "Train":
        if self.steps and self.epochs:
            raise ValueError("give steps or epochs, not both")
        if self.checkpoint_steps and self.checkpoint_epochs:
            raise ValueError("give checkpoint_steps or checkpoint_epochs, not both")
        if self.warmup_ratio is not None and "warmup_steps" in self.model_fields_set:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        if self.patience and not (self.validation or self.validation_data):
            raise ValueError("patience needs validation rows: set validation or validation_data")
        if self.loss != "cross_entropy" and self.penalty != "none":
            raise ValueError(f"penalty goes with the loss cross_entropy, not with {self.loss}: remove one of them")
        if self.loss == "on_policy" and (self.validation or self.validation_data):
            raise ValueError("on_policy has no validation loss, since replies change: remove validation")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas lie between 0 and 1 (found {self.betas[0]:g} and {self.betas[1]:g})")
        return self

    def warmup_of(self, total: int) -> int:
        """Return the warm-up steps of a run of `total` steps."""
        return self.warmup_steps if self.warmup_ratio is None else round(self.warmup_ratio * total)

    def order_of(self, seed: int) -> int:
        """Return the seed of the order of examples, for an arm's seed."""
        return seed if self.order_seed is None else self.order_seed

    def choice_of(self, seed: int) -> int:
        """Return the seed of the choice of rows, for an arm's seed."""
        return seed if self.data_seed is None else self.data_seed

    def with_changes(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that were set, with changes; either form of the warm-up replaces the other."""
        fields = self.model_dump(exclude_unset=True)
        if changes.get("warmup_ratio") is not None:
            fields.pop("warmup_steps", None)
        if "warmup_steps" in changes:
            fields.pop("warmup_ratio", None)
        return {**fields, **changes}


class Execution(Section):
    """The execution of training. It may change when a run resumes, and affects results only by rounding."""

    later: ClassVar[frozenset[str]] = frozenset(
        {
            "save_state_minutes",
            "save_total_limit",
            "release_gradients",
            "report_replies",
            "report_harmful_text",
            "layers_over_gpus",
            "fused",
        }
    )

    row_tokens: PositiveInt | None = Field(
        None,
        le=MANY,
        description="tokens in one forward pass; if absent 8192 on a GPU and 2048 on a CPU, or what is free",
    )
    micro_batch_size: PositiveInt | None = Field(
        None, le=MANY, description="examples in one forward pass; any if absent"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, one more forward pass of trained layers")
    release_gradients: bool = Field(
        False,
        description="in full fine-tuning, step each weight during backward and free its gradient: less memory, twice "
        "the time",
    )
    prefix: Literal["auto", "memory", "disk", "off"] = Field(
        "auto", description="where to cache the hidden states below the first trained layer between epochs"
    )
    prefix_gb: NonNegativeFloat | None = Field(
        None, le=1e6, description="memory for this cache before a file is used; a quarter of the free memory if absent"
    )
    fused: Literal["auto", "on", "off"] = Field(
        "auto", description="layers as two operations each, compared with transformers' first: auto on CPUs alone, on "
        "also on a GPU"
    )  # fmt: skip
    compile: bool = Field(False, description="compile the layers with torch.compile: a slow start, then faster steps")
    layers_over_gpus: bool = Field(
        False, description="divide the layers over all GPUs that the process sees, for a model that one does not hold"
    )
    deepspeed: str | None = Field(None, description="a DeepSpeed JSON file, for ZeRO")
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="trackers that receive every step of training, and a study's results"
    )
    report_replies: NonNegativeInt = Field(
        8,
        le=1000,
        description="replies of every arm to each prompt set and task that trackers receive with the results",
    )
    report_harmful_text: bool = Field(
        False, description="harmful requests and the replies to them are among these; else their verdicts alone"
    )
    save_state_minutes: NonNegativeFloat = Field(
        5.0, le=1e6, description="minutes between saves of the state from which a killed run resumes; 0 saves it at "
        "checkpoints only"
    )  # fmt: skip
    save_total_limit: PositiveInt | None = Field(
        None, le=MANY, description="keep only the newest N checkpoints, and the one with the least validation loss"
    )
