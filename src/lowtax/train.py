"""Supervised fine-tuning on packed rows, in full or by LoRA; resumable, deterministic on CPU.

Backward never goes below the first trained layer. What else makes it fast is in `packing`.
"""

import math
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowtax import models
from lowtax.chat import Example
from lowtax.data import Conversation
from lowtax.errors import UserError
from lowtax.packing import MAX_ROW, batches, completion_loss, encode, kept_memory, rows
from lowtax.placement import Placement
from lowtax.recipe import Train
from lowtax.records import provenance, read_json, row_id, write_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of one arm: a PEFT folder or a whole model, and what it took to get there."""

    name: str
    step: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Job:
    """All that decides a training run; two equal jobs give the same weights on the same machine."""

    model: str
    placement: Placement
    settings: Train
    seed: int
    precision: str
    rows: list[Conversation]

    def describe(self) -> dict[str, Any]:
        """The job as data, to be compared with that of an earlier run in the same folder."""
        return {
            "model": self.model,
            "placement": self.placement.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "precision": self.precision,
            "rows": {"n": len(self.rows), "hash": row_id([asdict(row) for row in self.rows])},
        }


def train(job: Job, out: Path, say: Say = print) -> list[Checkpoint]:
    """Run a job, or finish it where an earlier call was killed; returns its checkpoints in order.

    Writes `checkpoint-STEP/` folders, `card.json` at the end, and `.state.pt` while under way.
    """
    if (out / "card.json").exists():
        card = read_json(out / "card.json")
        _same_job(card["job"], job, out)
        _clean(out)
        return [Checkpoint(**row) for row in card["checkpoints"]]
    if (out / "job.json").exists():
        _same_job(read_json(out / "job.json"), job, out)
    write_json(out / "job.json", job.describe())
    with kept_memory(), torch.random.fork_rng():
        torch.manual_seed(job.seed)
        run = _Run(job, out, say)
        checkpoints = run.to_the_end()
    write_json(
        out / "card.json",
        {
            "job": job.describe(),
            "trainable_parameters": run.trainable,
            "checkpoints": [asdict(c) for c in checkpoints],
            "peak_memory_gb": round(_peak_memory_gb(), 2),
            **provenance(),
        },
    )
    _clean(out)
    return checkpoints


def _clean(out: Path) -> None:
    """Remove what only an unfinished run needs."""
    for name in (".state.pt", "job.json"):
        (out / name).unlink(missing_ok=True)


def _same_job(found: dict[str, Any], job: Job, out: Path) -> None:
    wanted = job.describe()
    differs = [key for key in wanted if found.get(key) != wanted[key]]
    if differs:
        raise UserError(
            f"{out} was trained with other settings (different: {', '.join(differs)}); "
            "choose another --out, or delete that folder to train it again."
        )


def adapt(model: PreTrainedModel, placement: Placement, ref: str) -> PreTrainedModel | PeftModel:
    """The model with its trainable weights marked: all, or new LoRA factors in float32."""
    if placement.kind == "full":
        return model.requires_grad_(True)
    names = placement.target_modules(models.linear_names(model), models.n_layers(model))
    config = LoraConfig(
        r=placement.rank,
        lora_alpha=placement.alpha,  # type: ignore[arg-type]
        lora_dropout=placement.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = ref
    return adapted  # type: ignore[return-value]


@dataclass
class _Weights:
    """Trained parameters and the float32 copies the optimiser moves; one and the same if already float32."""

    live: list[nn.Parameter]
    master: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "_Weights":
        live = [p for p in model.parameters() if p.requires_grad]
        return cls(live, [p if p.dtype == torch.float32 else p.detach().float() for p in live])

    def hand_over_gradients(self) -> None:
        """Give the masters the gradients of the live weights, in float32."""
        for live, master in zip(self.live, self.master, strict=True):
            if live is not master:
                master.grad, live.grad = (None if live.grad is None else live.grad.float()), None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the live weights."""
        for live, master in zip(self.live, self.master, strict=True):
            if live is not master:
                live.copy_(master)


class _Run:
    """A training run under way."""

    def __init__(self, job: Job, out: Path, say: Say) -> None:
        self.job, self.out, self.say, self.settings = job, out, say, job.settings
        tokenizer = models.load_tokenizer(job.model)
        self.tokenizer = tokenizer
        self.examples = [encode(tokenizer, row, job.settings.max_length) for row in job.rows]
        if not self.examples:
            raise UserError("There are no training rows: the recipe's data is empty.")
        self.model = adapt(models.load_model(job.model, job.precision), job.placement, job.model)
        self.weights = _Weights.of(self.model)
        self.trainable = sum(p.numel() for p in self.weights.live)
        self.total = _total_steps(job.settings, len(self.examples))
        self.optimizer = torch.optim.AdamW(
            self.weights.master, lr=job.settings.lr, weight_decay=job.settings.weight_decay
        )
        self.step, self.seconds, self.checkpoints = 0, 0.0, list[Checkpoint]()
        if (out / ".state.pt").exists():
            self._load_state()

    def to_the_end(self) -> list[Checkpoint]:
        """The loop."""
        save_at = _checkpoint_steps(self.settings, len(self.examples), self.total)
        self.model.train()
        for batch in batches(self.examples, self.settings.batch_size, self.job.seed, self.step, self.total):
            began = time.perf_counter()
            loss = self._one_step(batch)
            self.seconds += time.perf_counter() - began
            if not math.isfinite(loss):
                raise UserError(
                    f"Training diverged at step {self.step} (loss {loss}); "
                    f"lower the learning rate, now {self.settings.lr:g}."
                )
            if self.step % 10 == 0 or self.step == self.total:
                rate = self.step * self.settings.batch_size / self.seconds
                self.say(f"  step {self.step}/{self.total}  loss {loss:.3f}  {rate:.1f} examples/s")
            if self.step in save_at:
                self.checkpoints.append(
                    Checkpoint(f"checkpoint-{self.step}", self.step, round(self.seconds, 2), round(loss, 4))
                )
                self._save()
        return self.checkpoints

    def _one_step(self, batch: list[Example]) -> float:
        n_targets = sum(len(e.completion) for e in batch)
        total = 0.0
        for row in rows(batch, MAX_ROW[self.model.device.type]):
            loss = completion_loss(self.model, row) / n_targets
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self.weights.hand_over_gradients()
        torch.nn.utils.clip_grad_norm_(self.weights.master, self.settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * _schedule(self.step, self.total, self.settings.warmup_steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.weights.publish()
        self.step += 1
        return total

    def _save(self) -> None:
        """Write the checkpoint, then the state from which to go on; each as a whole or not at all."""
        target = self.out / f"checkpoint-{self.step}"
        work = self.out / f".{target.name}.tmp"
        try:
            shutil.rmtree(work, ignore_errors=True)
            if isinstance(self.model, PeftModel):
                self.model.save_pretrained(work, save_embedding_layers=False)
            else:
                self.tokenizer.save_pretrained(work)
                self.model.save_pretrained(work, state_dict=self._master_state())
            shutil.rmtree(target, ignore_errors=True)
            os.replace(work, target)
            if self.step < self.total:
                self._save_state()
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # the last two are how the libraries report a full disk
            raise UserError(
                f"{target} could not be saved ({str(error).splitlines()[0]}); free some disk space and repeat the "
                "command, which goes on after the last checkpoint."
            ) from error

    def _master_state(self) -> dict[str, Tensor]:
        """The float32 weights under the names of the model, tied ones included."""
        master = {
            id(live): tensor.detach() for live, tensor in zip(self.weights.live, self.weights.master, strict=True)
        }
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: master[id(p)] for name, p in named}

    def _save_state(self) -> None:
        work = self.out / ".state.tmp"
        torch.save(
            {
                "step": self.step,
                "seconds": self.seconds,
                "checkpoints": [asdict(c) for c in self.checkpoints],
                "master": [t.detach() for t in self.weights.master],
                "optimizer": self.optimizer.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            work,
        )
        os.replace(work, self.out / ".state.pt")

    @torch.no_grad()
    def _load_state(self) -> None:
        state = torch.load(self.out / ".state.pt", map_location="cpu", weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.checkpoints = [Checkpoint(**row) for row in state["checkpoints"]]
        for mine, saved in zip(self.weights.master, state["master"], strict=True):
            mine.copy_(saved)
        self.weights.publish()
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.say(f"  going on after step {self.step}")


def _total_steps(settings: Train, n: int) -> int:
    if settings.steps:
        return settings.steps
    return max(1, math.ceil((settings.epochs or 1) * n / settings.batch_size))


def _checkpoint_steps(settings: Train, n: int, total: int) -> set[int]:
    every = settings.checkpoint_steps
    if settings.checkpoint_epochs:
        every = max(1, math.ceil(settings.checkpoint_epochs * n / settings.batch_size))
    return {total, *(range(every, total, every) if every else ())}


def _schedule(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then cosine to zero. `step` counts from 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _peak_memory_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
