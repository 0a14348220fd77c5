"""What the training benchmarks share: four ways to train the same adapter on the same batches, and the work that
no way can avoid.

    lowtax      our loop
    trl         TRL's `SFTTrainer` at its defaults
    trl_tuned   the same with `padding_free` and without gradient checkpointing
    plain       a loop as one writes it by hand: PEFT, bfloat16, padded batches, logits everywhere

All begin from the same adapter, see the same tokens in the same batches, and use the same optimiser and schedule.
LoRA's dropout is off, so that their losses can be compared.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowtax.common.allocator import kept_memory
from lowtax.data.conversations import Conversation
from lowtax.models.lora import adapt, first_trained_layer
from lowtax.models.placement import Placement
from lowtax.training import loop as training
from lowtax.training.encoding import Example
from lowtax.training.job import Job
from lowtax.training.packing import Batches, length
from lowtax.training.progress import schedule
from lowtax.training.settings import Execution, Train

SIDES = ("lowtax", "trl", "trl_tuned", "plain")


@dataclass(frozen=True)
class Task:
    """One training run, to be done by every side. `load(dtype)` makes the model anew."""

    load: Callable[[str], nn.Module]
    model: str
    tokenizer: Any
    placement: Placement
    settings: Train
    rows: list[Conversation]
    examples: list[Example]
    precision: str
    execution: Execution
    trl_precision: str = "float32"  # TRL's default: float32 weights under bfloat16 autocast

    def limited(self, steps: int) -> "Task":
        """The same, for a few steps."""
        return replace(self, settings=self.settings.model_copy(update={"steps": steps}))

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return int(self.settings.steps or 0)

    def batches(self) -> list[list[Example]]:
        """What every side sees, step by step."""
        plan = Batches(len(self.examples), self.settings.batch_size, 0)
        return [[self.examples[i] for i in plan[step]] for step in range(self.steps)]


@dataclass
class Timed:
    """Seconds of the loop, without loading; the loss of every step; the run behind it, for what it can tell."""

    seconds: float
    losses: list[float]


def adapted(task: Task, precision: str) -> nn.Module:
    """The model with its new adapter, the same on every side."""
    torch.manual_seed(0)
    return adapt(task.load(precision), task.placement, task.model)  # type: ignore[arg-type]


def lowtax(task: Task, out: Path) -> Timed:
    """Our loop, from a loaded model to the saved adapter."""
    job = Job(
        model=task.model,
        placement=task.placement,
        settings=task.settings,
        seed=0,
        precision=task.precision,
        rows=task.rows,
        execution=task.execution,
    )
    with kept_memory(), torch.random.fork_rng():  # as `train` does
        torch.manual_seed(0)
        run = training.TrainingRun(job, out, load=lambda ref, precision: task.load(precision))  # type: ignore[arg-type, return-value]
        made_before = run.seconds  # the hidden states below the first trained layer
        began = time.perf_counter()
        run.finish()
        seconds = time.perf_counter() - began + made_before
    losses = [json.loads(line)["loss"] for line in (out / "steps.jsonl").read_text().splitlines()]
    return Timed(seconds, losses)


def trl(task: Task, out: Path, **changed: Any) -> Timed:
    """`SFTTrainer`. Only what the task itself demands is set: batches in our order, the optimiser, where it writes."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    given = [e for batch in task.batches() for e in batch]
    columns = [{"input_ids": e.prompt + e.completion, "labels": [-100] * len(e.prompt) + e.completion} for e in given]
    settings = task.settings
    config = SFTConfig(
        output_dir=str(out),
        max_steps=task.steps,
        per_device_train_batch_size=settings.batch_size,
        use_cpu=not torch.cuda.is_available(),
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        train_sampling_strategy="sequential",
        logging_steps=1,
        disable_tqdm=True,
        **changed,
    )
    model = adapted(task, task.trl_precision)
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(columns), processing_class=task.tokenizer
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    return Timed(seconds, [row["loss"] for row in trainer.state.log_history if "loss" in row])


def trl_tuned(task: Task, out: Path) -> Timed:
    """`SFTTrainer` as one sets it who has read its documentation."""
    return trl(task, out, padding_free=True, max_length=None, gradient_checkpointing=False)


def plain(task: Task, out: Path) -> Timed:
    """A hand-written loop: padded batches, the loss that transformers returns."""
    model = adapted(task, task.precision)
    model.train()
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    settings = task.settings
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    losses = []
    began = time.perf_counter()
    for step, batch in enumerate(task.batches()):
        sizes = [len(e.prompt) + len(e.completion) for e in batch]
        longest = max(sizes)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for line, (e, n) in enumerate(zip(batch, sizes, strict=True)):
            ids[line, :n] = torch.tensor(e.prompt + e.completion)
            mask[line, :n] = 1
            labels[line, len(e.prompt) : n] = torch.tensor(e.completion)
        loss = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device), use_cache=False
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * schedule(step, task.steps, settings.warmup_steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.save_pretrained(out)  # type: ignore[operator]
    return Timed(time.perf_counter() - began, losses)


def unavoidable_flops(task: Task) -> float:
    """Floating-point operations that the task needs, whoever does them.

    Layers below the first trained one once per example; the others forward in every pass, and their input gradients
    down to the first trained module; the logits of trained tokens, forward and input gradient. Matrix products of
    linear layers only: attention's are a hundredth at these lengths.
    """
    model = adapted(task, "bfloat16")
    inner = model.base_model.model  # type: ignore[union-attr]
    first = first_trained_layer(model)
    sizes: dict[int, int] = {}
    after_first = 0
    layers = inner.get_decoder().layers
    for number, layer in enumerate(layers):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) and "lora_" not in name:
                sizes[number] = sizes.get(number, 0) + module.weight.numel()
                if number == first and "down_proj" in name:
                    after_first = module.weight.numel()
    below = sum(n for i, n in sizes.items() if i < first)
    above = sum(n for i, n in sizes.items() if i > first)
    seen = [e for batch in task.batches() for e in batch]
    tokens, targets = sum(map(length, seen)), sum(len(e.completion) for e in seen)
    once = sum(map(length, task.examples))
    head = inner.get_output_embeddings().weight.numel()
    return 2.0 * (below * once + (sizes[first] + above + after_first + above) * tokens + 2 * head * targets)


def matmul_rate(device: torch.device, dtype: torch.dtype, cube: int = 2048) -> float:
    """Floating-point operations a second of a square product, median of twenty."""
    a, b = (torch.randn(cube, cube, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(23):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * cube**3 / sorted(seconds[3:])[10]
