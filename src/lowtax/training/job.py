"""The training job: everything that decides a run, its comparison with an earlier run, and the content of its cards."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.files import read_json
from lowtax.common.provenance import hardware, provenance, versions
from lowtax.common.records import row_id
from lowtax.data.chat import Thinking, Variables
from lowtax.data.conversations import Conversation
from lowtax.models.model_card import DataFacts, Facts
from lowtax.models.placement import Placement
from lowtax.training.checkpoints import Checkpoint
from lowtax.training.progress import peak_memory_gb
from lowtax.training.settings import Execution, Train


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides a training run; two equal jobs give the same weights on the same machine.

    model: a hub id, a folder or builtin:NAME.
    placement: the weights that are trained.
    settings: learning rate, steps, batch size and so on; the recipe's `train`.
    seed: of new LoRA factors, held-out rows, order of examples and dropout.
    precision: of frozen weights and of the forward pass: float32, bfloat16 or float16.
    rows: the training conversations.
    methods: specifications of the methods that act in training.
    thinking: position of the chat template's thinking switch.
    chat_template_kwargs: variables of the chat template.
    system: the system prompt of the rows that had none; the rows contain it.

    The other fields do not change the result; a run may resume with different ones.

    execution: how the run uses the hardware; the recipe's `execution`.
    sources: origin of the rows, for the cards.
    mode: the mode string that named the placement, for the cards.
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
    system: str | None = None

    execution: Execution = field(default_factory=Execution)
    sources: list[dict[str, Any]] = field(default_factory=list)
    mode: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return the fields that decide the result as JSON data; the rows as their number and hash."""
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
            **({"system": self.system} if self.system else {}),
            "rows": {"n": len(self.rows), "hash": row_id([row.describe() for row in self.rows])},
        }

    def require_same(self, out: Path) -> None:
        """Check that a folder has no run of another job.

        Raises:
            UserError: It has; the first differences are named.
        """
        now = _flat(self.describe())
        for name in ("card.json", "job.json"):
            if not (out / name).exists():
                continue
            stored = read_json(out / name)
            before = _flat(stored["job"] if name == "card.json" else stored)
            differences = [
                f"{key} was {before.get(key, 'absent')}, now {now.get(key, 'absent')}"
                for key in sorted(before.keys() | now.keys())
                if before.get(key) != now.get(key)
            ]
            if differences:
                more = f" and {len(differences) - 3} more" if differences[3:] else ""
                raise UserError(
                    f"{out} was trained with other settings ({'; '.join(differences[:3])}{more}); "
                    "choose another --out, or delete that folder to train it again."
                )

    def facts(self, checkpoint: Checkpoint, trainable: int) -> Facts:
        """Return the content of the model card of a checkpoint."""
        machine = hardware()
        return Facts(
            name=f"{self.mode or self.placement.kind}, {checkpoint.name}",
            model=self.model,
            placement=self.placement.model_dump(mode="json"),
            settings=self.settings.model_dump(mode="json"),
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


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys."""
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{key}.{name}".lstrip(".")).items()}


def _data_facts(source: dict[str, Any]) -> DataFacts:
    """Return what a model card says about one source of rows."""
    names = {"license": "licence"} | {name: name for name in ("source", "rows", "hub", "revision")}
    return DataFacts(**{ours: source.get(theirs) for ours, theirs in names.items()})
