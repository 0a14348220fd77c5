"""Supervised fine-tuning on packed rows, in full or by LoRA, on one device or many; resumable, deterministic on CPU.

Backward stops at the first trained layer, and forward runs below it once per example (`frozen_prefix`). Randomness in a
step (LoRA's dropout) is drawn from the seed, the step and the process, so that a resumed run needs no random state.
`packing`, `objective` and `fused_layers` hold the rest of what makes training fast.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowtax.common import launch
from lowtax.common.allocator import kept_memory, release_memory, return_memory
from lowtax.common.borders import border
from lowtax.common.errors import Stopped, UserError
from lowtax.common.files import write_json
from lowtax.common.log import say
from lowtax.data import chat
from lowtax.methods.loading import load_all
from lowtax.models import loading, quantised
from lowtax.models.adapters import read_adapter
from lowtax.models.lora import adapt, first_trained_layer
from lowtax.models.model_card import model_card
from lowtax.training import checkpoints, distributed, frozen_prefix, optimizers, sharding, start, stopping
from lowtax.training.assumptions import decoder_layers, is_random
from lowtax.training.checkpoints import STABLE, Checkpoint, Store
from lowtax.training.companions import with_companions
from lowtax.training.encoding import Example, encode_all
from lowtax.training.free_memory import row_tokens
from lowtax.training.job import Job as Job
from lowtax.training.objective import Fuse, choose_objective, unwrap
from lowtax.training.on_policy import Rollouts
from lowtax.training.packing import MAX_ROW, Batches, group_by_length, length, pack
from lowtax.training.parameters import GatheredParameters, TrainedParameters
from lowtax.training.probe import ModelProbe, attach
from lowtax.training.progress import Log, Step, diverged, schedule, stepped, wsd_decay
from lowtax.training.released import ReleasedParameters, one_pass_only
from lowtax.training.settings import EXTENDABLE, Train
from lowtax.training.terms import AnyRow, ComparedRow, Loss, PairRow, Terms, require_base

Load = Callable[[str, str], PreTrainedModel]  # a reference and a precision -> a model on its device


SAVING_SHARE = 20  # of the seconds of training, one in so many at most goes into saving its state


def train(job: Job, out: Path) -> list[Checkpoint]:
    """Run a job, or resume it after a kill, and return its checkpoints in order.

    Writes `checkpoint-STEP/` folders and `steps.jsonl`, `.state/` during the run, and `card.json` at the end. If a
    launcher started several processes, all of them must call this.

    Args:
        job: the job.
        out: its folder; a finished job in it is not run again.

    Raises:
        UserError: The folder has another job, the job cannot be trained, training diverges, or memory or disk run out.
        Stopped: Ctrl-C or SIGTERM came; the state is saved.
    """
    rank, _ = launch.world()
    job.require_same(out)
    if (card := job.finished(out)) is not None:
        checkpoints.clean(out)
        return [Checkpoint(**row) for row in card["checkpoints"]]
    own_gpu = [launch.local_rank()] if torch.cuda.is_available() else []
    with kept_memory(), torch.random.fork_rng(devices=own_gpu), stopping.signals() as signals:
        torch.manual_seed(job.seed)
        run = TrainingRun(job, out)
        run.finish(signals)
    if rank == 0:
        revision = getattr(unwrap(run.model).config, "_commit_hash", None)  # transformers sets it for models of the hub
        card = job.card(run.checkpoints, run.trainable, revision, run.world)
        least = best(run.checkpoints)
        more = {"jobs": run.jobs, "best": least and least.name}
        write_json(out / "card.json", card | {key: value for key, value in more.items() if value})
        checkpoints.clean(out)
    run.acc.wait_for_everyone()
    sharding.release(run.acc, run.model)
    stop, saved = run.stop, run.checkpoints
    del run
    release_memory()  # the next run begins at once
    if stop:
        raise Stopped(stop, "stopped after training was finished; repeat the command to go on from there.")
    return saved


class TrainingRun:
    """A job in progress: model, optimiser, methods and files.

    parameters: the trained parameters, and the tensors that the optimiser moves.
    step_parameters: the same as methods see them; gathered copies if a framework keeps weights in parts.
    trainable: the number of trained parameters that can move.
    checkpoints: those on disk. losses: the validation losses of all.
    jobs: by checkpoint, the job that made it, if the run is longer now than it was then.
    stop: the signal that ends the run; 0 if none has come.
    """

    def __init__(self, job: Job, out: Path, load: Load | None = None) -> None:
        self.job, self.out, self.settings = job, out, job.settings
        optimizers.check(job.settings)
        out.mkdir(parents=True, exist_ok=True)
        self.acc = distributed.accelerator(job.execution, job.settings, job.precision, out)
        self.rank, self.world = self.acc.process_index, self.acc.num_processes
        self._encode()
        self._build(load or sharding.loader(self.acc, job.execution.layers_over_gpus))
        self.total = total_steps(job.settings, len(self.examples))
        order = job.settings.order_of(job.seed)
        self.batches = Batches(len(self.examples), job.settings.batch_size, order)
        lengths = [self.terms.length(example) for example in self.examples]
        self.row_tokens = row_tokens(job, self.model, self.acc.device, self.world, lengths)
        self.step, self.seconds, self.checkpoints = 0, 0.0, list[Checkpoint]()
        self.losses, self.jobs, self.stop = list[float](), dict[str, dict[str, Any]](), 0
        self.claimed, self.saved_at, self.saving = False, time.monotonic(), 0.0
        self.rollouts = Rollouts(self) if job.settings.loss == "on_policy" else None
        self._require_one_pass()
        self._load_state()
        self.prefix = self._build_prefix()

    def _encode(self) -> None:
        """Encode the rows, and set some aside for validation."""
        self.tokenizer = loading.load_tokenizer(self.job.model)
        self.examples, self.held_out, notes = split_rows(self.job, self.tokenizer)
        for sentence in notes:
            say(f"  {sentence}")
        self.terms = Terms(self.settings)
        self.examples = self.terms.prepared(self.examples, self.job.rows)

    def _build(self, load: Load) -> None:
        """Load the model and make all that a step needs of it: objective, optimiser, methods and probe."""
        job = self.job
        methods = load_all(job.methods)
        sharding.require_supported(self.acc, methods, job.model)
        self._require_supported(bool(methods))
        if job.start:
            start.require_supported(self.acc, job.start)
        base, beneath = job.base, job.start.adapter() if job.start else None
        require_base(job.settings, job.placement.kind == "full", sharding.keeps_masters(self.acc), beneath is not None)
        loaded = load(base, job.precision)
        if warning := chat.stop_warning(self.tokenizer, loading.stop_tokens(loaded, self.tokenizer)):
            say(f"  {warning}")
        largest = max(max(*e.prompt, *e.completion) for e in [*self.examples, *self.held_out])
        loading.require_tokens(largest, loaded, job.model)
        self.model = adapt(loaded, job.placement, base)
        frozen = start.begin(self.model, beneath, base) if beneath else None
        if job.start and beneath and frozen is None:
            methods.require_new_factors(job.start.arm)
        sharding.make_shardable(self.acc, self.model, bool(methods))
        if job.execution.gradient_checkpointing:
            loaded.gradient_checkpointing_enable({"use_reentrant": False})
        examples, sharded = [*self.examples, *self.held_out], sharding.sharded(self.acc)
        fuse: Fuse = "off" if job.execution.compile else job.execution.fused
        self.objective, note = choose_objective(self.model, examples, sharded, fuse)
        if note:
            say(f"  {note}")
        if job.execution.compile:
            for layer in decoder_layers(unwrap(self.model)):
                layer.compile(dynamic=True)
        self.model.train()
        framework = sharding.keeps_masters(self.acc)
        self.parameters = TrainedParameters.of(self.model, own_masters=not framework)
        self.trainable = sum(getattr(p, "ds_numel", p.numel()) for p in self.parameters.live)
        fused = self.acc.device.type == "cuda" or not framework  # torch also has that kernel for CPUs
        optimizer = optimizers.make(self.settings, self.parameters.live, self.parameters.master, fused)
        module = self.objective if self.terms.plain else Loss(self.objective, self.settings)
        self.wrapped, self.optimizer = self.acc.prepare(module, optimizer)
        if framework:
            self.parameters = TrainedParameters.of(self.model, own_masters=False)  # FSDP replaced them by shards
        if beneath and job.placement.kind == "full":
            start.merge(self.parameters, self.model, read_adapter(beneath, base))
        if job.releases:
            self.parameters = ReleasedParameters.over(self.parameters)
        self.step_parameters = self.parameters
        if framework and methods:
            self.step_parameters = GatheredParameters.gathered(self.acc, self.wrapped, self.model)
        self.methods = attach(methods, self.model, self.step_parameters)
        self.probe = ModelProbe(
            self.objective,
            self.step_parameters,
            self.tokenizer,
            self.settings.max_length,
            job.thinking,
            job.chat_template_kwargs,
            job.thinking_tags,
        )
        name = quantised.computed(job.precision) if self.settings.save_dtype == "auto" else self.settings.save_dtype
        self.store = Store(self.out, self.acc, self.wrapped, self.parameters, base, loading.DTYPES[name], frozen)

    def _require_supported(self, methods: bool) -> None:
        """Refuse settings that do not go together.

        Raises:
            UserError: An optimiser or released gradients beside sharding, several processes or methods; or full
                fine-tuning of 4-bit weights.
        """
        if self.job.placement.kind == "full":
            quantised.refuse(self.job.precision, *quantised.FULL)
        if self.job.execution.layers_over_gpus:
            sharding.require_dividable(self.acc, self.job.execution, methods, self.job.precision)
        if sharding.keeps_masters(self.acc) and self.settings.optimizer != "adamw":
            raise UserError(
                f"train.optimizer {self.settings.optimizer} needs whole weights, which ZeRO and FSDP split: use adamw."
            )
        if self.job.releases and (methods or self.world > 1 or sharding.keeps_masters(self.acc)):
            raise UserError(
                "execution.release_gradients is for one process and no methods, which need all gradients together: "
                "leave it out, or use ZeRO to divide the gradients."
            )

    def _require_one_pass(self) -> None:
        """Refuse to release gradients if a batch would take several forward passes."""
        if self.job.releases:
            for step in range(self.total):
                if len(self._shares(self.batches[step])) > 1:
                    tokens = sum(length(self.examples[i]) for i in self.batches[step])
                    raise one_pass_only(f"that of step {step + 1} has {tokens} tokens")

    def _load_state(self) -> None:
        """Resume after a kill, or prepare the methods of a new run."""
        saved = self.store.load_state(self.optimizer, self._continues)
        if saved is None and (self.out / "card.json").exists():
            raise UserError(
                f"{self.out} has no state from which its finished run could be made longer: choose another --out, or "
                "delete that folder to train it again."
            )
        self.step_parameters.refresh()
        if saved is None:
            self.states = self.methods.prepare(self.probe)
        else:
            with border(f"The saved state in {self.out} is not that of its methods", checkpoints.DELETE):
                self.states = self.methods.prepare(self.probe, saved[1])
        if saved is None:
            self.step_parameters.publish()
            self._say_rate()
        self.trainable -= self.methods.held(self.states)
        if saved is None:
            return
        progress, _ = saved
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.losses = progress.get("losses", [])
        self.jobs = progress.get("jobs", {})
        listed = [Checkpoint(**row) for row in progress["checkpoints"]]
        self.checkpoints = [c for c in listed if any((self.out / c.name).glob("*.safetensors"))]
        if lost := [c.name for c in listed if c not in self.checkpoints]:
            say(f"  {', '.join(lost)} is no longer in {self.out}, and card.json will not list it")
        if (before := progress.get("job")) and before != self.job.describe():
            self.jobs |= {c.name: before for c in self.checkpoints if c.name not in self.jobs}
        say(f"  resuming after step {self.step}")

    def _continues(self, progress: dict[str, Any]) -> bool:
        """Test whether the steps before a saved state were those of this run."""
        before, settings = progress.get("total", self.total), self.settings
        if self.total != before and settings.warmup_of(self.total) != settings.warmup_of(before):
            return False
        return all(self._factor(step) == self._factor(step, before) for step in range(progress["step"]))

    def _factor(self, step: int, total: int | None = None) -> float:
        """Return the factor of the learning rate at a step, of this run or of one of `total` steps."""
        total, settings = total or self.total, self.settings
        if settings.scheduler == "step":
            every = settings.lowered_every or math.ceil(len(self.examples) / settings.batch_size)
            return stepped(step, settings.warmup_of(total), every, settings.lowered_by)
        return schedule(step, total, settings.warmup_of(total), settings.scheduler, settings.decay_ratio)

    def _say_rate(self) -> None:
        """Tell if the learning rate is another than it seems: it never reaches its peak, or is relative."""
        if note := optimizers.relative_rate(self.settings, self.parameters.master):
            say(f"  {note}")
        if (warmup := self.settings.warmup_of(self.total)) > self.total:
            say(
                f"  the warm-up of {warmup} steps is longer than the run of {self.total}: the learning rate ends at "
                f"{self._factor(self.total - 1) * self.settings.lr:g} and never reaches train.lr {self.settings.lr:g}"
            )

    def _build_prefix(self) -> frozen_prefix.FrozenPrefix | None:
        """Compute the hidden states below the first trained layer, if that is exact, possible and saves time."""
        execution, first = self.job.execution, first_trained_layer(self.model)
        passes = self.total * self.settings.batch_size  # also of a resumed run, so that it computes the same bits
        random = is_random(unwrap(self.model))
        apart = frozen_prefix.layers_are_apart(unwrap(self.model))
        if (
            not self.terms.fixed
            or not first
            or random
            or not apart
            or passes <= len(self.examples)
            or not self.objective.direct
        ):
            return None
        gigabytes = frozen_prefix.size_gb(self.model, self.examples)
        on_machine = gigabytes * launch.on_this_machine()  # each process keeps the whole table
        place = frozen_prefix.choose_place(execution.prefix, on_machine, execution.prefix_gb, self.out)
        # all processes take the place of the one with the least room
        place = frozen_prefix.PLACES[max(distributed.gather(self.acc, frozen_prefix.PLACES.index(place)))]
        if place == "off":
            return None
        began = time.perf_counter()
        tokens = MAX_ROW[self.acc.device.type]
        share = (self.rank, self.world)
        prefix = frozen_prefix.build(self.objective, first, self.examples, place, self.out, tokens, share)
        exact = frozen_prefix.is_exact(self.objective, prefix, self.examples)
        self.seconds += time.perf_counter() - began
        if not exact:
            prefix.close()
            say(f"  hidden states below layer {first} do not give the same loss: they are computed in every step")
            return None
        say(f"  hidden states below layer {first}: {gigabytes:.2f} GB, kept in {place}")
        return prefix

    # --- the loop

    def finish(self, signals: stopping.Signals | None = None) -> None:
        """Take the remaining steps.

        Args:
            signals: end the run after a step at which one has come.

        Raises:
            Stopped: One has come before the last step; the state is saved.
        """
        save_at = checkpoint_steps(self.settings, len(self.examples), self.total)
        log = Log(self.out, self.total, self.acc, self.step, self.job.name, self.job.describe())
        self.saved_at = time.monotonic()
        try:
            while self.step < self.total and not self._out_of_patience():
                began = time.perf_counter()
                if self.rollouts:
                    self.rollouts.refresh()
                figures = self._one_step(self.batches[self.step])
                self.seconds += time.perf_counter() - began
                log.add(Step(self.step, seconds=round(self.seconds, 3), **figures))
                self._claim()
                if (recent := log.rising()) is not None:
                    raise self._diverged(f"the loss rose to {recent:.2f}")
                if self.step in save_at:
                    self._checkpoint(figures["loss"], log)
                self._save_if_due(signals, saved=self.step in save_at)
            self._name_best()
        finally:
            log.close()
            if self.prefix:
                self.prefix.close()

    def _claim(self) -> None:
        """Mark the folder as that of this job, once a step has been made."""
        if self.claimed:
            return
        self.claimed = True
        if self.rank == 0:
            write_json(self.out / "job.json", self.job.describe())
            (self.out / "card.json").unlink(missing_ok=True)  # of the same run when it was to be shorter

    def _save_if_due(self, signals: stopping.Signals | None, saved: bool) -> None:
        """Save the state if a signal has come, if it is time, or if the rate of wsd falls from here on.

        Args:
            signals: the signals that have come to this process.
            saved: the state of this step has been saved already.

        Raises:
            Stopped: A signal has come to some process, and steps remain.
        """
        minutes, now = self.job.execution.save_state_minutes, time.monotonic()
        due = minutes and now - self.saved_at >= max(60 * minutes, SAVING_SHARE * self.saving)
        request = (signals.number if signals else 0) or -int(due)
        if self.world > 1:  # a signal to any process stops all; the first one has the clock
            requests = distributed.gather(self.acc, request)
            request = max(requests) if max(requests) > 0 else requests[0]
        self.stop = max(request, 0)
        if self.step == self._fall() and self.settings.scheduler in EXTENDABLE:
            self._save_state(STABLE)
        if self.step == self.total:
            return
        if request and not saved:
            self._save_in_passing() if request < 0 else self._save_state()
        if self.stop:
            raise Stopped(
                self.stop, f"stopped after step {self.step}, with its state saved; repeat the command to resume."
            )

    def _fall(self) -> int:
        """Return the last step whose weights do not depend on the number of steps."""
        if self.settings.scheduler in ("constant", "step"):
            return self.total
        return self.total - wsd_decay(self.total, self.settings.warmup_of(self.total), self.settings.decay_ratio)

    def _one_step(self, batch: list[int]) -> dict[str, Any]:
        """Make an optimiser step on a batch, and return its figures for the log."""
        settings = self.settings
        lr = settings.lr * self._factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self._gradients(batch)
        self.step_parameters.gather_gradients()
        penalty = self.methods.add_penalty(self.states)
        self.methods.after_backward(self.states)
        norm = self.step_parameters.clip(self.acc, settings.max_grad_norm)
        if self.optimizer.step_was_skipped and math.isfinite(loss):
            norm = 0.0  # the float16 gradient overflowed, and DeepSpeed lowers its loss scale
        if not math.isfinite(loss + penalty + norm):
            raise self._diverged(self._culprit(batch, loss, norm), self.step + 1)
        self.step_parameters.step(self.optimizer)
        if self.job.releases:
            return_memory()  # gradients of all sizes came and went
        self.step += 1
        self.methods.after_step(self.states, self.probe, self.step, self.step_parameters.publish)
        tokens = sum(length(self.examples[i]) for i in batch)
        return {"loss": loss, "penalty": penalty, "lr": lr, "grad_norm": norm, "tokens": tokens}

    def _gradients(self, batch: list[int]) -> float:
        """Compute the gradients of a batch's mean loss per trained token, and return that loss."""
        while True:
            try:
                return self._backward(batch)
            except (RuntimeError, MemoryError) as error:  # torch's errors on GPU and CPU are RuntimeErrors
                if not _out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            self._halve_rows(batch, reason)

    def _backward(self, batch: list[int]) -> float:
        """Run forward and backward for every row of a batch, and return the mean loss."""
        torch.manual_seed((self.job.seed * 1_000_003 + self.step) * 4_093 + self.rank)
        size = self.terms.size([self.examples[i] for i in batch])
        total = torch.zeros((), device=self.acc.device)
        shares = self._shares(batch)
        for number, members in enumerate(shares, 1):
            last = number == len(shares)
            self.acc.gradient_state._set_sync_gradients(last)
            packed = self.terms.pack([self.examples[i] for i in members or batch[:1]], members or batch[:1])
            row = packed.to(self.acc.device)
            with nullcontext() if last else self.acc.no_sync(self.wrapped):
                loss = self._loss(row) * (bool(members) / size)
                total += loss.detach()
                loss = loss * self.world  # gradients are averaged over processes; the mean is over all tokens
                self.step_parameters.backward(self.acc, loss, last)
            if last or self.world == 1:  # one process adds up rows in float32; several reduce after the last row
                self.parameters.collect_gradients()
        return float(self.acc.reduce(total))

    def _loss(self, row: AnyRow) -> torch.Tensor:
        if self.prefix is None or isinstance(row, PairRow):
            return self.wrapped(row)  # type: ignore[no-any-return]
        of, device, first = self.prefix.of, self.acc.device, self.prefix.first
        if not isinstance(row, ComparedRow):
            return self.wrapped(row, of(row, device), first)  # type: ignore[no-any-return]
        taught = row.teacher and of(row.teacher, device)
        return self.wrapped(row, of(row.row, device), first, taught)  # type: ignore[no-any-return]

    def _shares(self, batch: list[int]) -> list[list[int]]:
        """Return the examples of each row of this process.

        All processes have the same number of rows; an empty row carries no loss.
        """
        by_rank = []
        for rank in range(self.world):
            members = batch[rank :: self.world]
            lengths = [self.terms.length(self.examples[i]) for i in members]
            groups = group_by_length(lengths, self.row_tokens, self._most_examples())
            by_rank.append([[members[place] for place in group] for group in groups])
        most = max(map(len, by_rank))
        return by_rank[self.rank] + [[]] * (most - len(by_rank[self.rank]))

    def _most_examples(self) -> int | None:
        """Return the number of examples that a row has at most; None if there is no limit."""
        return self.objective.most_examples or self.job.execution.micro_batch_size

    # --- failures

    def _halve_rows(self, batch: list[int], reason: str) -> None:
        """Halve the tokens of a row after running out of memory; the effective batch stays the same.

        Raises:
            UserError: Rows have a single example already, or other processes would have to change too.
        """
        most = max(sum(length(self.examples[i]) for i in row) for row in self._shares(batch))
        one_each = all(len(row) <= 1 for row in self._shares(batch))
        if self.job.releases:
            raise one_pass_only(f"step {self.step + 1} runs out of memory ({reason})")
        if self.world > 1 or one_each:
            raise UserError(
                f"Out of memory at step {self.step + 1} ({reason}): "
                + ("lower execution.row_tokens" if self.world > 1 else f"a single example of {most} tokens is too long")
                + ", or set execution.gradient_checkpointing, or lower train.max_length."
            )
        self.parameters.clear_gradients()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.row_tokens = most // 2
        say(f"  out of memory: rows of {self.row_tokens} tokens from now on, still {len(batch)} examples per step")

    @torch.no_grad()
    def _culprit(self, batch: list[int], loss: float, norm: float) -> str:
        """Return what is not finite in a step, with the example that causes it if one does."""
        if math.isfinite(loss):
            return f"the gradient's norm is {norm}"
        for i in batch if self.world == 1 else []:
            row = pack([self.examples[i]], [i]).to(self.acc.device)
            if not math.isfinite(float(self.objective(row))):
                start = self.tokenizer.decode(self.examples[i].prompt, skip_special_tokens=True).strip()
                return f"loss {loss}, first on the example {start[:60]!r}"
        return f"loss {loss}"

    def _diverged(self, reason: str, step: int | None = None) -> UserError:
        last = self.checkpoints[-1].name if self.checkpoints else None
        return diverged(step or self.step, reason, self.settings.lr, last)

    # --- checkpoints

    def _checkpoint(self, loss: float, log: Log) -> None:
        """Save a checkpoint and, unless it is the last, the state from which the run resumes."""
        name, validation = f"checkpoint-{self.step}", self._validate()
        self.jobs.pop(name, None)
        self.checkpoints = [c for c in self.checkpoints if c.name != name]
        self.checkpoints.append(Checkpoint(name, self.step, round(self.seconds, 2), round(loss, 4), validation))
        if validation is not None:
            self.losses.append(validation)
            log.add_validation(self.step, validation)
        self.store.save(
            name, self.model, self.tokenizer, model_card(self.job.facts(self.checkpoints[-1], self.trainable))
        )
        for sentence in self.methods.reports(self.states):
            say(f"  {sentence}")
        self.checkpoints = self._kept()
        if self.step < self.total:
            self._save_state()
        if self.job.execution.save_total_limit:
            self.store.prune([c.name for c in self.checkpoints], self.step)

    def _kept(self) -> list[Checkpoint]:
        """Return the checkpoints that stay: the newest of them and the best, if their number is limited."""
        limit = self.job.execution.save_total_limit
        if limit is None:
            return self.checkpoints
        return [c for c in self.checkpoints if c in self.checkpoints[-limit:] or c == best(self.checkpoints)]

    def _name_best(self) -> None:
        """Tell which checkpoint has the least validation loss."""
        if (c := best(self.checkpoints)) is not None and len(self.checkpoints) > 1:
            say(f"  {c.name} is the best, with a loss of {c.validation:.4f} on the validation rows")

    def _save_state(self, name: str = checkpoints.STATE) -> None:
        """Save the state from which the run resumes."""
        began = time.monotonic()
        progress = {
            "step": self.step,
            "total": self.total,
            "seconds": self.seconds,
            "checkpoints": [asdict(c) for c in self.checkpoints],
            "losses": self.losses,
            "job": self.job.describe(),
            "jobs": self.jobs,
        }
        self.store.save_state(progress, self.optimizer, self.states, name)
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - began

    def _save_in_passing(self) -> None:
        """Save the state between checkpoints; a disk without room for it does not end the run of one process."""
        try:
            self._save_state()
        except UserError as error:
            if self.world > 1:
                raise
            self.saved_at, self.saving = time.monotonic(), math.inf
            say(f"  the training state could not be saved, and training continues: {error}")

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Return the mean loss per token of the held-out rows; None if there are none."""
        if not self.held_out:
            return None
        self.wrapped.eval()
        total = torch.zeros((), device=self.acc.device)
        lengths = [length(e) for e in self.held_out]
        groups = group_by_length(lengths, self.row_tokens, self._most_examples())
        for begin in range(0, len(groups), self.world):
            place = begin + self.rank
            row = pack([self.held_out[i] for i in groups[min(place, len(groups) - 1)]]).to(self.acc.device)
            loss = self.wrapped(row)
            total += loss if place < len(groups) else 0 * loss
        self.wrapped.train()
        mean = float(self.acc.reduce(total)) / sum(len(e.completion) for e in self.held_out)
        say(f"  step {self.step}: validation loss {mean:.4f}")
        return round(mean, 6)

    def _out_of_patience(self) -> bool:
        """Test whether the last `patience` checkpoints brought no better validation loss."""
        losses = self.losses
        if not self.settings.patience or not losses:
            return False
        stop = len(losses) - 1 - losses.index(min(losses)) >= self.settings.patience
        if stop:
            say(f"  no better validation loss in {self.settings.patience} checkpoints: stopping at step {self.step}")
        return stop


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def split_rows(job: Job, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Example], list[Example], list[str]]:
    """Return the training examples, those of validation, and sentences about rows that are not trained as they are.

    Raises:
        UserError: There are no rows, or none can be trained.
    """
    if not job.rows:
        raise UserError("There are no training rows: the recipe's data is empty.")
    form = (job.settings.max_length, job.thinking, job.chat_template_kwargs, job.thinking_tags)
    encoded = with_companions(tokenizer, job.rows, encode_all(tokenizer, job.rows, *form), form)
    apart = held_out(len(encoded.examples), job.settings.validation, job.settings.choice_of(job.seed))
    examples = [e for i, e in enumerate(encoded.examples) if i not in apart]
    held = [e for i, e in enumerate(encoded.examples) if i in apart]
    if job.validation_rows:
        held += encode_all(tokenizer, job.validation_rows, *form).examples
    return examples, held, encoded.notes()


def best(among: list[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint with the least validation loss, the first of equal ones; None if it was not measured."""
    measured = [c for c in among if c.validation is not None]
    return min(measured, key=lambda c: c.validation or 0.0, default=None)


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
