"""Progress of a training run: a line per step in `steps.jsonl`, a progress bar, trackers, and the learning rate."""

import json
import math
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lowtax.common.borders import parse_json
from lowtax.common.errors import UserError
from lowtax.common.files import write_text
from lowtax.common.log import say
from lowtax.training import trackers
from lowtax.training.settings import Scheduler

WINDOW = 10
MOST = 1e15  # of any figure of a step


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    loss: mean over the trained tokens, without the methods' penalty.
    tokens: all tokens that went through the model.
    seconds: since training began.
    """

    step: int
    loss: float
    penalty: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float


class Log:
    """Record of steps in `steps.jsonl`, in trackers and on the terminal; only the main process writes.

    folder, total, acc: the run's folder, its number of steps, and its accelerator.
    done: the step after which the run resumes.
    name, settings: of the run in trackers.
    """

    def __init__(
        self, folder: Path, total: int, acc: Accelerator, done: int, name: str, settings: dict[str, Any]
    ) -> None:
        self.path, self.total, self.acc = folder / "steps.jsonl", total, acc
        self.tokens, self.losses = 0, list[float]()
        self._forget_after(done)
        trackers.start(acc, name, settings)
        self._bar, self._task = self._progress(done) if acc.is_main_process else (None, TaskID(0))

    def _forget_after(self, step: int) -> None:
        """Drop the steps of a killed run that the resumed run repeats, and load the others in every process."""
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
        rows = [row for line in lines if (row := _step(line)) is not None and row["step"] <= step]
        self.tokens, self.losses = sum(row["tokens"] for row in rows), [row["loss"] for row in rows]
        if self.acc.is_main_process:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def _progress(self, done: int) -> tuple[Progress | None, TaskID]:
        console = Console(file=sys.stderr)
        if not console.is_terminal:
            return None, TaskID(0)
        columns = (TextColumn("  "), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        bar.start()
        return bar, bar.add_task("", total=self.total, completed=done)

    def add(self, step: Step) -> None:
        """Record a step."""
        self.tokens += step.tokens
        self.losses.append(step.loss)
        if self.acc.log_with:
            self.acc.log({f"train/{k}": v for k, v in asdict(step).items() if k != "step"}, step=step.step)
        if not self.acc.is_main_process:
            return
        with self.path.open("a") as handle:
            handle.write(json.dumps(asdict(step)) + "\n")
        speed = f"{self.tokens / step.seconds:,.0f} tokens/s" if step.seconds else ""
        text = f"loss {step.loss:.3f}  {speed}  {peak_memory_gb():.1f} GB"
        if self._bar:
            self._bar.update(self._task, completed=step.step, description=text)
        if not self._bar and (step.step % 10 == 0 or step.step == self.total):
            remaining = (self.total - step.step) * step.seconds / max(step.step, 1)
            eta = f"  {time.strftime('%H:%M:%S', time.gmtime(remaining))} left" if step.step < self.total else ""
            say(f"  step {step.step}/{self.total}  {text}{eta}")

    def add_validation(self, step: int, loss: float) -> None:
        """Send the validation loss of a checkpoint to the trackers."""
        if self.acc.log_with:
            self.acc.log({"validation/loss": loss}, step=step)

    def rising(self) -> float | None:
        """Return the mean loss of the last `WINDOW` steps if training diverges, otherwise None.

        It diverges if that mean is more than one nat per token above the mean of the first `WINDOW` steps.
        """
        if len(self.losses) < 2 * WINDOW:
            return None
        recent = sum(self.losses[-WINDOW:]) / WINDOW
        return recent if recent > sum(self.losses[:WINDOW]) / WINDOW + 1 else None

    def close(self) -> None:
        """Stop the bar and the trackers."""
        if self._bar:
            self._bar.stop()
        if self.acc.log_with:
            self.acc.end_training()


def _step(line: str) -> dict[str, Any] | None:
    """Return a line of `steps.jsonl`; None if a kill cut it short, or it is no line of that file."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    numbers = [row.get(name) for name in ("step", "tokens", "loss")]
    return row if all(isinstance(number, int | float) and abs(number) < MOST for number in numbers) else None


def diverged(step: int, reason: str, lr: float, checkpoint: str | None) -> UserError:
    """Return the error for a run whose loss rises, or whose loss or gradient is not finite."""
    saved = f"{checkpoint} is kept" if checkpoint else "no checkpoint was saved yet"
    return UserError(f"Training diverged at step {step} ({reason}); lower the learning rate, now {lr:g}; {saved}.")


def schedule(step: int, total: int, warmup: int, kind: Scheduler = "cosine", decay_ratio: float = 0.1) -> float:
    """Return the factor of the learning rate: linear warm-up, then `kind`; cosine, linear and wsd end near zero.

    `step` counts from 0. Unlike in transformers' schedules, no step has a factor of 0.

    Args:
        decay_ratio: the share of the steps in which wsd falls.
    """
    if step < warmup:
        return (step + 1) / warmup
    remaining = total - step
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return remaining / max(1, total - warmup)
    if kind == "wsd":
        return min(1.0, remaining / wsd_decay(total, warmup, decay_ratio))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def stepped(step: int, warmup: int, every: int, by: float) -> float:
    """Return the factor of the learning rate after a linear warm-up: times `by` after every `every` steps."""
    return (step + 1) / warmup if step < warmup else by ** (step // every)


def wsd_decay(total: int, warmup: int, decay_ratio: float) -> int:
    """Return the number of steps in which wsd falls: a share of all, never of the warm-up."""
    return max(1, min(math.ceil(decay_ratio * total), total - warmup))


def peak_memory_gb() -> float:
    """Return peak memory in gigabytes, of all accelerators of the process if there are any, otherwise of itself."""
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count())) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
