"""Settings of training in a recipe."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lowtax.common.config import Section


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
