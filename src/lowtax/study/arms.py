"""Arms of a study: checkpoints of trained ones, and edited ones, which weight-space edits make of trained ones.

```
arms/NAME/seed-S/checkpoint-N/    the adapter, and the card of the last edit (`lowtax.methods.editing`)
arms/NAME/seed-S/card.json        the source arm, the edits, and their cost
arms/NAME/seed-S/edits.json       the same until all checkpoints are made, with those that are
```

They are sampled, judged and compared like trained arms. A checkpoint appears as a whole or not at all, and is never
made twice.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from lowtax.common.borders import expanded
from lowtax.common.cards import EditedCard, EditsUnderWay, TrainedCard, read_card
from lowtax.common.errors import UserError
from lowtax.common.files import beside, read_mapping, write_json
from lowtax.common.log import say
from lowtax.common.names import below
from lowtax.common.provenance import provenance
from lowtax.common.records import Subject, row_id
from lowtax.methods.base import Edit
from lowtax.methods.editing import CARD, MADE_BY, edit
from lowtax.methods.loading import load
from lowtax.models import loading
from lowtax.models.adapters import check_adapter, fingerprint, is_adapter
from lowtax.study.recipe import TO_ARM, EditedArm


def training_card(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Return the card of a finished training run.

    Raises:
        UserError: The run is not finished.
    """
    if not (folder / "card.json").exists():
        raise UserError(f"Arm {arm!r}, seed {seed} is not trained yet: `lowtax run` or `lowtax train` finishes it.")
    return read_card(folder / "card.json", TrainedCard)


def trained_subjects(folder: Path, arm: str, seed: int, full: bool, base: Subject) -> list[Subject]:
    """Return the checkpoints of a training run: whole models if it was `full`, else adapters."""
    facts = training_card(folder, arm, seed)
    jobs = facts.get("jobs", {})  # of checkpoints that were made before the run was made longer
    return [
        Subject(
            arm=arm,
            seed=seed,
            checkpoint=row["name"],
            step=row["step"],
            model=str(folder / row["name"]) if full else base.model,
            adapter=None if full else str(folder / row["name"]),
            made_by=row_id(jobs.get(row["name"], facts["job"]), row["step"], base.made_by),
            trainable_parameters=facts["trainable_parameters"],
            train_seconds=row["seconds"],
        )
        for row in facts["checkpoints"]
    ]


Card = dict[str, Any]
UNDER_WAY = "edits.json"
JOBS = ("job", "other_jobs")
FIGURES = ("method", "changed", "rank", "norm_before", "norm_after", "cosine", "lost")  # per edit, in the card


@dataclass(frozen=True)
class EditedSubject(Subject):
    """A checkpoint of an edited arm. `train_seconds` includes the edits, `edit_seconds` is the edits alone."""

    edit_seconds: float = 0.0


def check(name: str, arm: EditedArm) -> None:
    """Refuse edits that would only fail after the training.

    Raises:
        UserError: A method, one of its fields, a model or an adapter does not exist, or a method acts in training.
    """
    for spec in arm.edits:
        try:
            configured = load(spec)
            for field in ("aligned", "unaligned", "before"):
                if isinstance(ref := spec.get(field), str):
                    loading.resolve(ref)
            if spec["name"] == "interpolate" and not spec["to"].startswith(TO_ARM):
                check_adapter(expanded(spec["to"]))
        except UserError as error:
            raise UserError(f"edited.{name}: {error}") from error
        if not isinstance(configured.method, Edit):
            raise UserError(
                f"edited.{name}: method {spec['name']!r} acts in training: name it under the methods of a trained arm."
            )


def cost(group: Sequence[Subject]) -> dict[str, float]:
    """Return `edit_seconds` of one checkpoint of an edited arm, the mean over its seeds; empty for a trained arm."""
    seconds = [subject.edit_seconds for subject in group if isinstance(subject, EditedSubject)]
    return {"edit_seconds": round(mean(seconds), 1)} if seconds else {}


def _remove_unlisted(folder: Path) -> None:
    """Delete a checkpoint that was edited right before a kill, so that it is not listed; it is made again.

    Raises:
        UserError: the folder is not one that `lowtax edit` wrote.
    """
    if not os.path.lexists(folder):
        return
    card = read_mapping(folder / CARD) if (folder / CARD).is_file() and not folder.is_symlink() else {}
    if card.get("made_by") != MADE_BY:
        raise UserError(
            f"{folder} is where an edited checkpoint goes, and lowtax did not edit what is there: move it away, or "
            "give the edited arm another name."
        )
    shutil.rmtree(folder)


@dataclass(frozen=True)
class EditPlan:
    """The plan of one edited arm for one seed: its edits, and its folder in that of all arms."""

    name: str
    arm: EditedArm
    seed: int
    arms: Path

    @property
    def folder(self) -> Path:
        """The folder of its checkpoints."""
        return self._folder_of(self.name)

    def begun(self) -> bool:
        """Return whether any of it has been made."""
        return any((self.folder / name).exists() for name in (CARD, UNDER_WAY))

    def refuse_another(self, jobs: Mapping[str, Card]) -> None:
        """Refuse a folder that other edits made, or the same edits of other trainings.

        Args:
            jobs: the training jobs of the arms it is made of, by arm.

        Raises:
            UserError: The folder is such a one.
        """
        now = self.decided(jobs)
        for file in (CARD, UNDER_WAY):
            if not (self.folder / file).exists():
                continue
            before = read_card(self.folder / file, EditsUnderWay)
            differs = [key for key in now if row_id(now[key]) != row_id(before.get(key))]
            settings = [f"{key} was {before.get(key)}, now {now[key]}" for key in differs if key not in JOBS]
            if differs:
                what = f"edited with other settings ({'; '.join(settings)})" if settings else "made of another training"
                raise UserError(f"{self.folder} was {what}; choose another --out, or delete that folder to edit again.")

    def make(self, base: str, model: str) -> None:
        """Make the checkpoints that have not been made yet.

        Args:
            base: the model that the adapters are on; whole weights that are edited themselves.
            model: that of the study.

        Raises:
            UserError: The arms it is made of are not trained, or the folder holds another result.
        """
        jobs = {name: self._trained(name)["job"] for name in self.arm.made_of()}
        self.refuse_another(jobs)
        if (self.folder / CARD).exists():
            (self.folder / UNDER_WAY).unlink(missing_ok=True)  # left by a kill between the two writes
            return
        say(f"editing {self.arm.of} into {self.name}, seed {self.seed}")
        source, decided = self._trained(self.arm.of), self.decided(jobs)
        under_way = self.folder / UNDER_WAY
        rows = read_card(under_way, EditsUnderWay)["checkpoints"] if under_way.exists() else []
        write_json(under_way, decided | {"checkpoints": rows})
        for checkpoint in source["checkpoints"][0 if self.arm.checkpoints == "all" else -1 :]:
            if checkpoint["name"] not in [row["name"] for row in rows]:
                rows.append(self._one(checkpoint, base, model))
                write_json(under_way, decided | {"checkpoints": rows})
        write_json(
            self.folder / CARD,
            {
                "made_by": MADE_BY,
                **decided,
                "checkpoints": rows,
                "edit_seconds": round(sum(row["edit_seconds"] for row in rows), 2),
                "trainable_parameters": source["trainable_parameters"],
                **provenance(),
            },
        )
        under_way.unlink()

    def subjects(self, base: Subject) -> list[Subject]:
        """Return its checkpoints as subjects for sampling.

        Raises:
            UserError: They have not been made yet, or come from other edits or trainings.
        """
        if not (self.folder / CARD).exists():
            raise UserError(
                f"Arm {self.name!r}, seed {self.seed} is not edited yet: `lowtax run` or `lowtax sample` finishes it."
            )
        jobs = {name: self._trained(name)["job"] for name in self.arm.made_of()}
        self.refuse_another(jobs)
        card = read_card(self.folder / CARD, EditedCard)
        return [
            EditedSubject(
                arm=self.name,
                seed=self.seed,
                checkpoint=row["name"],
                step=row["step"],
                model=base.model,
                adapter=str(self.folder / row["name"]),
                made_by=row_id(self.decided(jobs), row["step"], base.made_by, row["weights"]),
                trainable_parameters=card["trainable_parameters"],
                train_seconds=row["seconds"],
                edit_seconds=row["edit_seconds"],
            )
            for row in card["checkpoints"]
        ]

    def _one(self, checkpoint: Card, base: str, model: str) -> Card:
        """Edit one checkpoint and return its row of the card. Several edits go through a folder beside it."""
        out, began = below(self.folder, checkpoint["name"]), time.perf_counter()
        source, cards = below(self._folder_of(self.arm.of), checkpoint["name"]), list[Card]()
        _remove_unlisted(out)
        with beside(out.with_name(f"{out.name}.edits")) as between:
            for number, spec in enumerate(self.arm.edits, 1):
                to = out if number == len(self.arm.edits) else between / str(number)
                result = edit(self._with_paths(spec, source, model), source, to, base=base, rank=self.arm.rank)
                cards.append(result.card)
                source = to
        seconds = time.perf_counter() - began
        seconds_of_ends = sum(self._trained(name)["checkpoints"][-1]["seconds"] for name in self.arm.ends())
        return {
            "name": checkpoint["name"],
            "step": checkpoint["step"],
            "seconds": round(checkpoint["seconds"] + seconds_of_ends + seconds, 2),
            "edit_seconds": round(seconds, 2),
            "weights": fingerprint(out, weights_only=True)[:16],
            "edits": [{key: card[key] for key in FIGURES} for card in cards],
        }

    def _with_paths(self, spec: Card, source: Path, model: str) -> Card:
        """Return the edit with `arm:NAME` as the folder of that arm's last checkpoint.

        The update of a whole model is its difference to the model of the study, unless the edit names another. To `lox`
        and `subtract` that is the alignment, too.
        """
        if (end := self.arm.end(spec)) is not None:
            return spec | {"to": str(self._folder_of(end) / self._trained(end)["checkpoints"][-1]["name"])}
        if not is_adapter(source) and spec["name"] in ("lox", "subtract"):
            return {"aligned": str(source), "unaligned": model} | spec
        if not is_adapter(source) and spec["name"] == "safe_lora":
            return {"before": model} | spec
        return spec

    def decided(self, jobs: Mapping[str, Card]) -> Card:
        """Return everything that decides the result."""
        settings = self.arm.model_dump(mode="json")
        settings["asked_checkpoints"] = settings.pop("checkpoints")
        return settings | {"job": jobs[self.arm.of], "other_jobs": {name: jobs[name] for name in self.arm.ends()}}

    def _folder_of(self, arm: str) -> Path:
        return self.arms / arm / f"seed-{self.seed}"

    def _trained(self, arm: str) -> Card:
        """Return the card of a trained arm."""
        return training_card(self._folder_of(arm), arm, self.seed)
