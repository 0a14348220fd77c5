"""The training job: everything that decides a run, its comparison with an earlier run, and the content of its cards."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowtax.common.cards import FinishedCard, JobRecord, Progress, TrainedCard, read_card
from lowtax.common.errors import UserError
from lowtax.common.names import CHECKPOINT, is_checkpoint
from lowtax.common.provenance import hardware, provenance, versions
from lowtax.common.records import row_id
from lowtax.data.chat import Thinking, Variables
from lowtax.data.conversations import Conversation
from lowtax.models.model_card import DataFacts, Facts
from lowtax.models.placement import Placement
from lowtax.training.checkpoints import STABLE, STATES, Checkpoint
from lowtax.training.progress import peak_memory_gb
from lowtax.training.settings import EXTENDABLE, Execution, Train
from lowtax.training.start import Start


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides a training run; two equal jobs give the same weights on the same machine.

    model: a hub id, a folder or builtin:NAME.
    placement: the weights that are trained.
    settings: learning rate, steps, batch size and so on; the recipe's `train`.
    seed: of new LoRA factors and dropout, and, unless the settings have seeds of their own for these, of held-out rows
        and the order of examples.
    precision: of frozen weights and of the forward pass: float32, bfloat16 or float16.
    rows: the training conversations.
    methods: specifications of the methods that act in training.
    thinking: position of the chat template's thinking switch.
    chat_template_kwargs: variables of the chat template.
    thinking_tags: the tags of thoughts, instead of those that the template shows.
    system: the system prompt of the rows that had none; the rows contain it.
    validation_rows: further conversations whose loss is measured, beside those that are held out.
    start: the checkpoint of another arm that the run starts from; None is the model itself.

    The other fields do not change the result; a run may resume with different ones.

    execution: how the run uses the hardware; the recipe's `execution`.
    sources: origin of the rows, for the cards.
    mode: the mode string that named the placement, for the cards.
    name: of the run in trackers.
    """

    model: str
    placement: Placement
    settings: Train
    seed: int
    precision: str
    rows: list[Conversation]
    methods: list[dict[str, Any]] = field(default_factory=list)
    thinking: Thinking = "default"
    chat_template_kwargs: Variables = field(default_factory=dict)
    thinking_tags: str | None = None
    system: str | None = None
    validation_rows: list[Conversation] = field(default_factory=list)
    start: Start | None = None

    execution: Execution = field(default_factory=Execution)
    sources: list[dict[str, Any]] = field(default_factory=list)
    mode: str | None = None
    name: str = ""

    @property
    def base(self) -> str:
        """The reference of the weights that the run loads: the model, or whole weights that it starts from."""
        return self.start.base(self.model) if self.start else self.model

    @property
    def releases(self) -> bool:
        """True if gradients are freed during backward: of a LoRA they are small, and it would take twice the time."""
        return self.execution.release_gradients and self.placement.kind == "full"

    def describe(self) -> dict[str, Any]:
        """Return the fields that decide the result as JSON data; the rows as their number and hash."""
        measured = {"validation_rows": _rows(self.validation_rows)} if self.validation_rows else {}
        return {
            "model": self.model,
            "placement": self.placement.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "precision": self.precision,
            "methods": self.methods,
            "thinking": self.thinking,
            # Absent from the cards of runs that are older than these fields.
            **({"chat_template_kwargs": dict(self.chat_template_kwargs)} if self.chat_template_kwargs else {}),
            **({"thinking_tags": self.thinking_tags} if self.thinking_tags else {}),
            **({"system": self.system} if self.system else {}),
            **({"start": self.start.describe()} if self.start else {}),
            "rows": _rows(self.rows),
            **measured,
        }

    def finished(self, out: Path) -> dict[str, Any] | None:
        """Return the card of this job, if a folder has its finished run; None also if that run was shorter."""
        if not (out / "card.json").exists():
            return None
        card = read_card(out / "card.json", TrainedCard)
        if _differences(_flat(card["job"]), _flat(self.describe())):
            return None
        return read_card(out / "card.json", FinishedCard)

    def require_same(self, out: Path) -> None:
        """Check that a folder has no run of another job. A run without a checkpoint or a state does not count.

        The same job with more steps is no other one, if the learning rate of the steps before does not depend on them.

        Raises:
            UserError: It has; the first differences are named.
        """
        now = self.describe()
        for before, finished in _stored_jobs(out):
            differences = _differences(_flat(before), _flat(now))
            if not differences:
                continue
            longer = _is_longer(before, now)
            if longer and self.settings.scheduler in EXTENDABLE and self.settings.warmup_ratio is None:
                if not finished or (out / STABLE).is_dir():
                    continue
                longer = False
            more = f" and {len(differences) - 3} more" if differences[3:] else ""
            what = "was trained" if finished else "holds an unfinished run"
            why = (
                f"; with the scheduler {self.settings.scheduler} its steps so far would have had other learning rates, "
                "and only constant, step and wsd, with warmup_steps, can be made longer"
            ) * longer
            raise UserError(
                f"{out} {what} with other settings ({'; '.join(differences[:3])}{more}){why}; "
                "choose another --out, or delete that folder to train it again."
            )

    def facts(self, checkpoint: Checkpoint, trainable: int) -> Facts:
        """Return the content of the model card of a checkpoint."""
        machine, settings = hardware(), self.settings.model_dump(mode="json")
        if self.settings.validation_data:
            settings["validation_data"] = ", ".join(data.source for data in self.settings.validation_data)
        return Facts(
            name=f"{self.mode or self.placement.kind}, {checkpoint.name}",
            model=self.base,
            placement=self.placement.model_dump(mode="json"),
            settings=settings,
            seed=self.seed,
            precision=self.precision,
            data=[_data_facts(source) for source in self.sources],
            step=checkpoint.step,
            seconds=checkpoint.seconds,
            loss=checkpoint.loss,
            trainable_parameters=trainable,
            validation_loss=checkpoint.validation,
            peak_memory_gb=round(peak_memory_gb(), 2),
            methods=[str(spec["name"]) for spec in self.methods],
            mode=self.mode,
            hardware=machine["accelerator"] or f"CPU, {machine['cpu_threads']} threads",
            versions=versions(),
        )

    def card(
        self, checkpoints: list[Checkpoint], trainable: int, revision: str | None, processes: int
    ) -> dict[str, Any]:
        """Return the content of card.json after the run.

        Args:
            checkpoints: all checkpoints, in order.
            trainable: the number of trained parameters that can move.
            revision: the model's commit on the hub.
            processes: the number of processes.
        """
        return {
            "job": self.describe(),
            "model_revision": revision,
            "sources": self.sources,
            "execution": self.execution.model_dump(),
            "processes": processes,
            "trainable_parameters": trainable,
            "checkpoints": [asdict(c) for c in checkpoints],
            "peak_memory_gb": round(peak_memory_gb(), 2),
            **provenance(),
        }


def begun(out: Path) -> bool:
    """Test whether a folder has anything of a training run that would be lost: a card, a state or a checkpoint."""
    return (out / "card.json").exists() or _resumable(out)


def _resumable(out: Path) -> bool:
    return any((out / name).is_dir() for name in STATES) or any(out.glob("checkpoint-*"))


def stored_methods(out: Path) -> list[list[dict[str, Any]]]:
    """Return the methods of the runs that a folder has, finished or not."""
    return [job.get("methods", []) for job, _ in _stored_jobs(out)]


def _stored_jobs(out: Path) -> list[tuple[dict[str, Any], bool]]:
    """Return the jobs of which a folder has a run, and whether that is finished."""
    stored = list[tuple[dict[str, Any], bool]]()
    if (out / "card.json").exists():
        stored.append((read_card(out / "card.json", TrainedCard)["job"], True))
    if _resumable(out):
        if (out / "job.json").exists():
            stored.append((read_card(out / "job.json", JobRecord), False))
        elif not stored:  # job.json is gone
            jobs = [
                job for name in STATES if isinstance(job := _progress(out / name / "progress.json").get("job"), dict)
            ]
            stored += [(job, False) for job in jobs[:1]]
            if not jobs and any(is_checkpoint(path.name) for path in out.glob(f"{CHECKPOINT}*")):
                raise UserError(
                    f"{out} has checkpoints of a run whose settings are lost (no job.json, no card.json): choose "
                    "another --out, or delete that folder to train it again."
                )
    return stored


def _progress(path: Path) -> dict[str, Any]:
    """Return the progress in a saved state; empty if it is absent or damaged, which loading it deals with."""
    try:
        return read_card(path, Progress) if path.exists() else {}
    except UserError:
        return {}


def _is_longer(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Test whether a job is another one with more steps or epochs, and nothing else."""
    for name in ("steps", "epochs"):
        old, new = before.get("settings", {}).get(name), now["settings"].get(name)
        if old is not None and new is not None and new > old:
            settings = {**now["settings"], name: old}
            return not _differences(_flat(before), _flat({**now, "settings": settings}))
    return False


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a phrase for each field that differs."""
    return [
        f"{key} was {before.get(key, 'absent')}, now {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _rows(rows: list[Conversation]) -> dict[str, Any]:
    return {"n": len(rows), "hash": row_id([row.describe() for row in rows])}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys."""
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{key}.{name}".lstrip(".")).items()}


def _data_facts(source: dict[str, Any]) -> DataFacts:
    """Return what a model card says about one source of rows."""
    names = {"license": "licence"} | {name: name for name in ("source", "rows", "hub", "revision")}
    return DataFacts(**{ours: source.get(theirs) for ours, theirs in names.items()})
