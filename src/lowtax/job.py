"""A training job: all that decides its result, how it is told from another, and what its cards say."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowtax.checkpoints import Checkpoint
from lowtax.data.conversations import Conversation
from lowtax.errors import UserError
from lowtax.files import read_json
from lowtax.modelcard import DataFacts, Facts
from lowtax.placement import Placement
from lowtax.progress import peak_memory_gb
from lowtax.provenance import hardware, provenance, versions
from lowtax.records import row_id
from lowtax.training_settings import Execution, Train


@dataclass(frozen=True)
class Job:
    """All that decides a training run; two equal jobs give the same weights on the same machine.

    `execution`, `sources` and `mode` say how it runs and where it comes from, and decide nothing.
    """

    model: str
    placement: Placement
    settings: Train
    seed: int
    precision: str
    rows: list[Conversation]
    methods: list[dict[str, Any]] = field(default_factory=list)
    thinking: str = "default"
    execution: Execution = field(default_factory=Execution)
    sources: list[dict[str, Any]] = field(default_factory=list)
    mode: str | None = None

    def describe(self) -> dict[str, Any]:
        """The job as data, to be compared with that of an earlier run in the same folder."""
        return {
            "model": self.model,
            "placement": self.placement.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "precision": self.precision,
            "methods": self.methods,
            "thinking": self.thinking,
            "rows": {"n": len(self.rows), "hash": row_id([asdict(row) for row in self.rows])},
        }

    def refuse_another(self, out: Path) -> None:
        """UserError if the folder holds the run of another job; it names what differs."""
        wanted = _flat(self.describe())
        for name in ("card.json", "job.json"):
            if not (out / name).exists():
                continue
            found = read_json(out / name)
            was = _flat(found["job"] if name == "card.json" else found)
            differs = [
                f"{key} was {was.get(key, 'absent')}, now {wanted.get(key, 'absent')}"
                for key in sorted(was.keys() | wanted.keys())
                if was.get(key) != wanted.get(key)
            ]
            if differs:
                more = f" and {len(differs) - 3} more" if differs[3:] else ""
                raise UserError(
                    f"{out} was trained with other settings ({'; '.join(differs[:3])}{more}); "
                    "choose another --out, or delete that folder to train it again."
                )

    def facts(self, checkpoint: Checkpoint, trainable: int) -> Facts:
        """What the model card of one of its checkpoints says."""
        made = hardware()
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
            hardware=made["accelerator"] or f"CPU, {made['cpu_threads']} threads",
            versions=versions(),
        )

    def card(self, found: list[Checkpoint], trainable: int, revision: str | None, processes: int) -> dict[str, Any]:
        """What card.json says of the finished run; `revision` is the model's commit on the hub."""
        return {
            "job": self.describe(),
            "model_revision": revision,
            "sources": self.sources,
            "execution": self.execution.model_dump(),
            "processes": processes,
            "trainable_parameters": trainable,
            "checkpoints": [asdict(c) for c in found],
            "peak_memory_gb": round(peak_memory_gb(), 2),
            **provenance(),
        }


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{key}.{name}".lstrip(".")).items()}


def _data_facts(source: dict[str, Any]) -> DataFacts:
    names = {"license": "licence"} | {name: name for name in ("source", "rows", "hub", "revision")}
    return DataFacts(**{ours: source.get(theirs) for ours, theirs in names.items()})
