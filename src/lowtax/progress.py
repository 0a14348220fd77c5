"""What a training run says while it runs: a line a step in `steps.jsonl`, a progress bar, and trackers."""

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lowtax.errors import UserError
from lowtax.files import write_text

Say = Callable[[str], None]
WINDOW = 10


@dataclass(frozen=True)
class Step:
    """One optimiser step. `loss` is the mean over its trained tokens, without the methods' `penalty`; `tokens` are
    all that went through the model; `seconds` count from the beginning of training."""

    step: int
    loss: float
    penalty: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float


class Log:
    """Writes steps to `steps.jsonl` and says them. Only the main process has one that does."""

    def __init__(self, folder: Path, total: int, acc: Accelerator, say: Say, done: int) -> None:
        self.path, self.total, self.acc, self.say = folder / "steps.jsonl", total, acc, say
        self.tokens, self.losses = 0, list[float]()
        self._forget_after(done)
        self._bar, self._task = self._progress(done) if acc.is_main_process else (None, TaskID(0))
        if acc.log_with:
            acc.init_trackers("lowtax")

    def _forget_after(self, step: int) -> None:
        """Of an earlier run, keep the steps whose result the resumed run starts from. All processes know them."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        rows = [json.loads(line) for line in kept]
        self.tokens, self.losses = sum(row["tokens"] for row in rows), [row["loss"] for row in rows]
        if self.acc.is_main_process:
            write_text(self.path, "".join(line + "\n" for line in kept))

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
            left = (self.total - step.step) * step.seconds / max(step.step, 1)
            eta = f"  {time.strftime('%H:%M:%S', time.gmtime(left))} left" if step.step < self.total else ""
            self.say(f"  step {step.step}/{self.total}  {text}{eta}")

    def rising(self) -> float | None:
        """The mean loss of the last steps, if it is a nat a token above that of the first: training diverges."""
        if len(self.losses) < 2 * WINDOW:
            return None
        now = sum(self.losses[-WINDOW:]) / WINDOW
        return now if now > sum(self.losses[:WINDOW]) / WINDOW + 1 else None

    def close(self) -> None:
        """Stop the bar and the trackers."""
        if self._bar:
            self._bar.stop()
        if self.acc.log_with:
            self.acc.end_training()


def diverged(step: int, what: str, lr: float, kept: str | None) -> UserError:
    """The sentence about a run that stopped because its loss or gradient is no number, or rises."""
    saved = f"{kept} is kept" if kept else "no checkpoint was saved yet"
    return UserError(f"Training diverged at step {step} ({what}); lower the learning rate, now {lr:g}; {saved}.")


def schedule(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then cosine to zero. `step` counts from 0; unlike transformers', no step has a rate of 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def peak_memory_gb() -> float:
    """Gigabytes at the peak: of the accelerator, or of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
