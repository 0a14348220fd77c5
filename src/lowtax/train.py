"""Supervised fine-tuning on packed rows, in full or by LoRA, on one device or many; resumable, deterministic on CPU.

Backward never goes below the first trained layer, and forward goes there once per example (`prefix`). What is
random in a step (LoRA's dropout) is drawn from the seed, the step and the process, so that a resumed run needs no
memory of it. What else makes it fast is in `packing`, `attention` and `objective`.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lowtax import checkpoints, distributed, launch, methods, models, prefix, sharding
from lowtax.adapt import adapt, first_trained_layer
from lowtax.checkpoints import Checkpoint, Store, Weights
from lowtax.data import chat
from lowtax.encoding import encode_all
from lowtax.errors import UserError
from lowtax.files import read_json, write_json
from lowtax.gathered import Copies
from lowtax.job import Job as Job
from lowtax.modelcard import model_card
from lowtax.objective import bare, layers_from, prepared
from lowtax.packing import MAX_ROW, Batches, Row, kept_memory, length, pack, rows
from lowtax.probe import Probe, bind
from lowtax.progress import Log, Step, diverged, schedule
from lowtax.training_settings import Train

Say = Callable[[str], None]
Load = Callable[[str, str], PreTrainedModel]  # a reference and a precision -> a model on its device


def train(job: Job, out: Path, say: Say = print) -> list[Checkpoint]:
    """Run a job, or finish it where an earlier call was killed; returns its checkpoints in order.

    Writes `checkpoint-STEP/` folders, `steps.jsonl`, `card.json` at the end, and `.state/` while under way. Where a
    launcher started several processes, every one of them calls this.
    """
    rank, _ = distributed.world()
    job.refuse_another(out)
    if (out / "card.json").exists():
        checkpoints.clean(out)
        return [Checkpoint(**row) for row in read_json(out / "card.json")["checkpoints"]]
    if rank == 0:
        write_json(out / "job.json", job.describe())
    own_gpu = [launch.local_rank()] if torch.cuda.is_available() else []
    with kept_memory(), torch.random.fork_rng(devices=own_gpu):
        torch.manual_seed(job.seed)
        run = _Run(job, out, say)
        found = run.to_the_end()
    if rank == 0:
        revision = getattr(bare(run.model).config, "_commit_hash", None)  # transformers keeps it for models of the hub
        write_json(out / "card.json", job.card(found, run.trainable, revision, run.world))
        checkpoints.clean(out)
    run.acc.wait_for_everyone()
    sharding.release(run.acc, run.model)
    return found


class _Run:
    """A training run under way."""

    def __init__(self, job: Job, out: Path, say: Say, load: Load | None = None) -> None:
        self.job, self.out, self.settings = job, out, job.settings
        self.acc = distributed.accelerator(job.execution, job.settings, job.precision, out)
        self.rank, self.world = self.acc.process_index, self.acc.num_processes
        self.say = say if self.acc.is_main_process else lambda _: None
        self._encode()
        self._build(load or sharding.loader(self.acc))
        self.total = total_steps(job.settings, len(self.examples))
        self.batches = Batches(len(self.examples), job.settings.batch_size, job.seed)
        self.row_tokens = job.execution.row_tokens or MAX_ROW[self.acc.device.type]
        self.step, self.seconds, self.checkpoints = 0, 0.0, list[Checkpoint]()
        self._load_state()
        self.prefix = self._prefix()

    def _encode(self) -> None:
        if not self.job.rows:
            raise UserError("There are no training rows: the recipe's data is empty.")
        self.tokenizer = models.load_tokenizer(self.job.model)
        encoded = encode_all(self.tokenizer, self.job.rows, self.settings.max_length, self.job.thinking)  # type: ignore[arg-type]
        for sentence in encoded.notes():
            self.say(f"  {sentence}")
        apart = held_out(len(encoded.examples), self.settings.validation, self.job.seed)
        self.examples = [e for i, e in enumerate(encoded.examples) if i not in apart]
        self.held_out = [e for i, e in enumerate(encoded.examples) if i in apart]

    def _build(self, load: Load) -> None:
        job = self.job
        chosen = methods.load_all(job.methods)
        sharding.refuse(self.acc, chosen, job.model)
        loaded = load(job.model, job.precision)
        if warning := chat.stop_warning(self.tokenizer, models.stop_tokens(loaded, self.tokenizer)):
            self.say(f"  {warning}")
        self.model = adapt(loaded, job.placement, job.model)
        sharding.fit(self.acc, self.model, bool(chosen))
        if job.execution.gradient_checkpointing:
            loaded.gradient_checkpointing_enable({"use_reentrant": False})
        examples, sharded = [*self.examples, *self.held_out], sharding.sharded(self.acc)
        self.objective, note = prepared(self.model, examples, sharded, fuse=not job.execution.compile)
        if note:
            self.say(f"  {note}: training with transformers' own forward pass")
        if job.execution.compile:
            for layer in bare(self.model).get_decoder().layers:
                layer.compile(dynamic=True)
        self.model.train()
        framework = sharding.keeps_masters(self.acc)
        self.weights = Weights.of(self.model, own_masters=not framework)
        self.trainable = sum(getattr(p, "ds_numel", p.numel()) for p in self.weights.live)
        optimizer = torch.optim.AdamW(
            self.weights.master,
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
            fused=self.acc.device.type == "cuda" or None,
        )
        self.wrapped, self.optimizer = self.acc.prepare(self.objective, optimizer)
        if framework:
            self.weights = Weights.of(self.model, own_masters=False)  # FSDP has put shards in their place
        by_copies = framework and chosen
        self.seen = Copies.made(self.acc, self.wrapped, self.model) if by_copies else self.weights
        self.methods = bind(chosen, self.model, self.seen)
        self.probe: Any = Probe(self.objective, self.seen, self.tokenizer, self.settings.max_length, job.thinking)
        self.store = Store(self.out, self.acc, self.wrapped, self.weights)

    def _load_state(self) -> None:
        found = self.store.load_state(self.optimizer)
        self.seen.take()
        self.states = self.methods.prepare(self.probe, None if found is None else found[1])
        if found is None:
            self.seen.publish()
        self.trainable -= self.methods.held(self.states)
        if found is None:
            return
        progress, _ = found
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.checkpoints = [Checkpoint(**row) for row in progress["checkpoints"]]
        self.say(f"  going on after step {self.step}")

    def _prefix(self) -> prefix.Prefix | None:
        """Hidden states below the first trained layer, where that is exact, possible and repays."""
        execution, first = self.job.execution, first_trained_layer(self.model)
        left = (self.total - self.step) * self.settings.batch_size
        random = getattr(bare(self.model).config, "attention_dropout", 0.0)  # not every architecture has one
        if not first or random or left <= len(self.examples) or not self.objective.direct:
            return None
        gigabytes = prefix.size_gb(self.model, self.examples)
        in_all = gigabytes * launch.on_this_machine()  # each process keeps the whole table
        place = prefix.place_for(execution.prefix, in_all, execution.prefix_gb, self.out)
        place = prefix.PLACES[max(distributed.everyone(self.acc, prefix.PLACES.index(place)))]
        if place == "off":
            return None
        began = time.perf_counter()
        tokens = MAX_ROW[self.acc.device.type]
        share = (self.rank, self.world)
        found = prefix.build(self.objective, first, self.examples, place, self.out, tokens, share)
        self.seconds += time.perf_counter() - began
        self.say(f"  hidden states below layer {first}: {gigabytes:.2f} GB, kept in {place}")
        return found

    # --- the loop

    def to_the_end(self) -> list[Checkpoint]:
        """Every step that is left."""
        save_at = checkpoint_steps(self.settings, len(self.examples), self.total)
        log = Log(self.out, self.total, self.acc, self.say, self.step)
        try:
            while self.step < self.total and not self._patience_is_over():
                began = time.perf_counter()
                done = self._one_step(self.batches[self.step])
                self.seconds += time.perf_counter() - began
                log.add(Step(self.step, seconds=round(self.seconds, 3), **done))
                if (now := log.rising()) is not None:
                    raise self._diverged(f"the loss rose to {now:.2f}")
                if self.step in save_at:
                    self._checkpoint(done["loss"])
        finally:
            log.close()
            if self.prefix:
                self.prefix.close()
        return self.checkpoints

    def _one_step(self, batch: list[int]) -> dict[str, Any]:
        settings = self.settings
        lr = settings.lr * schedule(self.step, self.total, settings.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self._gradients(batch)
        self.seen.gather_gradients()
        penalty = self.methods.add_penalty(self.states)
        self.methods.after_backward(self.states)
        norm = self.seen.clip(self.acc, settings.max_grad_norm)
        if self.optimizer.step_was_skipped and math.isfinite(loss):
            norm = 0.0  # float16: the gradient overflowed, and DeepSpeed lowers its loss scale
        if not math.isfinite(loss + penalty + norm):
            raise self._diverged(self._culprit(batch, loss, norm), self.step + 1)
        self.seen.step(self.optimizer)
        self.step += 1
        self.methods.after_step(self.states, self.probe, self.step, self.seen.publish)
        tokens = sum(length(self.examples[i]) for i in batch)
        return {"loss": loss, "penalty": penalty, "lr": lr, "grad_norm": norm, "tokens": tokens}

    def _gradients(self, batch: list[int]) -> float:
        """Gradients of the batch's mean loss a trained token; returns it."""
        while True:
            try:
                return self._backward(batch)
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is the first; so is that of a CPU
                if not _out_of_memory(error):
                    raise
                short = str(error).splitlines()[0]
            self._halve_rows(batch, short)

    def _backward(self, batch: list[int]) -> float:
        torch.manual_seed((self.job.seed * 1_000_003 + self.step) * 4_093 + self.rank)
        n_targets = sum(len(self.examples[i].completion) for i in batch)
        total = torch.zeros((), device=self.acc.device)
        shares = self._shares(batch)
        for number, members in enumerate(shares, 1):
            last = number == len(shares)
            self.acc.gradient_state._set_sync_gradients(last)
            row = pack([self.examples[i] for i in members or batch[:1]], members or batch[:1]).to(self.acc.device)
            with nullcontext() if last else self.acc.no_sync(self.wrapped):
                loss = self._loss(row) * (bool(members) / n_targets)
                total += loss.detach()
                loss = loss * self.world  # gradients are averaged over processes; the mean is over all tokens
                self.seen.backward(self.acc, loss, last)
            if last or self.world == 1:  # in float32 from row to row, where no other process waits for them
                self.weights.hand_over_gradients()
        return float(self.acc.reduce(total))

    def _loss(self, row: Row) -> torch.Tensor:
        if self.prefix is None:
            return self.wrapped(row)  # type: ignore[no-any-return]
        with layers_from(self.model, self.prefix.first):
            return self.wrapped(row, self.prefix.of(row, self.acc.device))  # type: ignore[no-any-return]

    def _shares(self, batch: list[int]) -> list[list[int]]:
        """The rows of this process, as examples. All processes have as many; an empty one carries no loss."""
        found = []
        for rank in range(self.world):
            mine = batch[rank :: self.world]
            sizes = [length(self.examples[i]) for i in mine]
            shared = rows(sizes, self.row_tokens, self.job.execution.micro_batch_size)
            found.append([[mine[place] for place in row] for row in shared])
        most = max(map(len, found))
        return found[self.rank] + [[]] * (most - len(found[self.rank]))

    # --- when things go wrong

    def _halve_rows(self, batch: list[int], said: str) -> None:
        """After running out of memory: rows of half the tokens, the same effective batch."""
        most = max(sum(length(self.examples[i]) for i in row) for row in self._shares(batch))
        one_each = all(len(row) <= 1 for row in self._shares(batch))
        if self.world > 1 or one_each:
            raise UserError(
                f"Out of memory at step {self.step + 1} ({said}): "
                + (
                    "set execution.row_tokens lower"
                    if self.world > 1
                    else f"even one example of {most} tokens is too much"
                )
                + ", or set execution.gradient_checkpointing, or lower train.max_length."
            )
        self.weights.forget_gradients()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.row_tokens = most // 2
        self.say(
            f"  out of memory: rows of {self.row_tokens} tokens from here on, {len(batch)} examples a step as before"
        )

    @torch.no_grad()
    def _culprit(self, batch: list[int], loss: float, norm: float) -> str:
        if math.isfinite(loss):
            return f"the gradient's norm is {norm}"
        for i in batch if self.world == 1 else []:
            row = pack([self.examples[i]], [i]).to(self.acc.device)
            if not math.isfinite(float(self.objective(row))):
                start = self.tokenizer.decode(self.examples[i].prompt, skip_special_tokens=True).strip()
                return f"loss {loss}, first on the example {start[:60]!r}"
        return f"loss {loss}"

    def _diverged(self, what: str, step: int | None = None) -> UserError:
        kept = self.checkpoints[-1].name if self.checkpoints else None
        return diverged(step or self.step, what, self.settings.lr, kept)

    # --- checkpoints

    def _checkpoint(self, loss: float) -> None:
        name = f"checkpoint-{self.step}"
        self.checkpoints.append(Checkpoint(name, self.step, round(self.seconds, 2), round(loss, 4), self._validate()))
        self.store.save(
            name, self.model, self.tokenizer, model_card(self.job.facts(self.checkpoints[-1], self.trainable))
        )
        for sentence in self.methods.reports(self.states):
            self.say(f"  {sentence}")
        if self.step < self.total:
            progress = {
                "step": self.step,
                "seconds": self.seconds,
                "checkpoints": [asdict(c) for c in self.checkpoints],
            }
            self.store.save_state(progress, self.optimizer, self.states)

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Mean loss a token of the held-out rows."""
        if not self.held_out:
            return None
        self.wrapped.eval()
        total = torch.zeros((), device=self.acc.device)
        groups = rows([length(e) for e in self.held_out], self.row_tokens, self.job.execution.micro_batch_size)
        for start in range(0, len(groups), self.world):
            place = start + self.rank
            row = pack([self.held_out[i] for i in groups[min(place, len(groups) - 1)]]).to(self.acc.device)
            loss = self.wrapped(row)
            total += loss if place < len(groups) else 0 * loss
        self.wrapped.train()
        found = float(self.acc.reduce(total)) / sum(len(e.completion) for e in self.held_out)
        self.say(f"  step {self.step}: validation loss {found:.4f}")
        return round(found, 6)

    def _patience_is_over(self) -> bool:
        found = [c.validation for c in self.checkpoints if c.validation is not None]
        if not self.settings.patience or not found:
            return False
        over = len(found) - 1 - found.index(min(found)) >= self.settings.patience
        if over:
            self.say(
                f"  no better validation loss in {self.settings.patience} checkpoints: stopping at step {self.step}"
            )
        return over


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def held_out(n: int, validation: int, seed: int) -> set[int]:
    """Return the indices of the validation examples among n, drawn by the seed.

    Raises:
        UserError: No example is left to train on.
    """
    if validation >= n:
        raise UserError(f"validation holds out {validation} of {n} rows, which leaves none to train on.")
    return set(torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()[:validation])


def total_steps(settings: Train, n: int) -> int:
    """Return the number of optimiser steps on n training examples."""
    if settings.steps:
        return settings.steps
    return max(1, math.ceil((settings.epochs or 1) * n / settings.batch_size))


def checkpoint_steps(settings: Train, n: int, total: int) -> set[int]:
    """Return the steps, of `total` on n training examples, after which a checkpoint is saved; the last is one."""
    every = settings.checkpoint_steps
    if settings.checkpoint_epochs:
        every = max(1, math.ceil(settings.checkpoint_epochs * n / settings.batch_size))
    return {total, *(range(every, total, every) if every else ())}
