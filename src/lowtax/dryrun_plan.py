"""What a dry run finds, as data: trained arms, edited arms, requests, and what they cost."""

from dataclasses import asdict, dataclass
from typing import Any

from lowtax.dryrun_cost import (
    ASSUMED,
    CARDS,
    Setting,
    checkpoint_bytes,
    resume_bytes,
    sampling_flops,
    sampling_hours,
)
from lowtax.dryrun_model import Model, Trained
from lowtax.dryrun_sample import Requests
from lowtax.dryrun_train import Training, least
from lowtax.recipe import Recipe

Hours = dict[str, float]  # by card


@dataclass(frozen=True)
class ArmPlan:
    """A trained arm: one `Training` a seed, and what it costs. None where the model's shape is not known."""

    name: str
    what: str
    runs: list[Training]
    trained: Trained | None
    setting: Setting | None
    flops: float | None
    hours: Hours | None

    @property
    def checkpoints(self) -> int:
        """Of all seeds together."""
        return sum(run.checkpoints for run in self.runs)

    @property
    def disk(self) -> int | None:
        """Bytes of all checkpoints."""
        return None if self.trained is None else checkpoint_bytes(self.trained.parameters, self.checkpoints)

    @property
    def meanwhile(self) -> int | None:
        """Bytes that a run under way keeps beside its checkpoints, to be resumed."""
        between = any(run.checkpoints > 1 for run in self.runs)
        return None if self.trained is None else resume_bytes(self.trained.parameters) if between else 0

    def as_json(self) -> dict[str, Any]:
        """For programs. Of several seeds rows, steps and checkpoints are those of the first, tokens the sum."""
        first, setting = self.runs[0], self.setting
        return {
            "arm": self.name,
            "what": self.what,
            "seeds": len(self.runs),
            "trainable_parameters": self.trained and self.trained.parameters,
            "rows": first.rows,
            "steps": first.steps,
            "checkpoints": first.checkpoints,
            "rows_known": least(run.known for run in self.runs),
            "steps_known": least(run.steps_known for run in self.runs),
            "tokens": sum(run.tokens for run in self.runs),
            "tokens_known": least(run.tokens_known for run in self.runs),
            "longest": max(run.longest for run in self.runs),
            "memory": setting and setting.as_json(),
            "flops": self.flops,
            "gpu_hours": self.hours,
            "disk_bytes": self.disk,
            "resume_bytes": self.meanwhile,
        }


@dataclass(frozen=True)
class EditedPlan:
    """An edited arm: so many checkpoints of all seeds, at no training. Its adapters take the disk of their source's."""

    name: str
    of: str
    edits: list[str]
    checkpoints: int
    disk: int | None


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to. Hours by card, for replies of full length and for `ASSUMED.reply_share` of it."""

    recipe: Recipe
    model: Model
    precision: str
    arms: list[ArmPlan]
    edited: list[EditedPlan]
    asked: Requests
    verdicts: int
    missing: list[str]

    @property
    def subjects(self) -> int:
        """The base and every checkpoint."""
        return subjects(self.arms, self.edited)

    @property
    def disk(self) -> int | None:
        """Bytes of all checkpoints."""
        parts = [*(arm.disk for arm in self.arms), *(arm.disk for arm in self.edited)]
        return None if None in parts else sum(part or 0 for part in parts)

    def sampling(self, share: float = 1.0) -> Hours | None:
        """Card hours of sampling, replies taking this share of their largest length."""
        shape, batch = self.model.shape, self.recipe.batch_size
        if shape is None:
            return None
        return {
            name: sum(
                sampling_hours(shape, card, sheet.requests, share * sheet.max_new_tokens, batch, self.precision)
                for sheet in self.asked.sheets
            )
            for name, card in CARDS.items()
        }

    def training(self) -> Hours | None:
        """Card hours of training."""
        if any(arm.hours is None for arm in self.arms):
            return None
        return {name: sum(arm.hours[name] for arm in self.arms if arm.hours) for name in CARDS}

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        shape = self.model.shape
        return {
            "recipe": self.recipe.name,
            "model": self.recipe.model,
            "parameters": self.model.parameters,
            "precision": self.precision,
            "engine": self.recipe.engine,
            "seeds": self.recipe.seeds,
            "subjects": self.subjects,
            "arms": [arm.as_json() for arm in self.arms],
            "edited": [asdict(arm) for arm in self.edited],
            "sheets": [
                {key: value for key, value in asdict(sheet).items() if key != "ids"}
                | {"requests": sheet.requests, "tokens_at_most": sheet.tokens}
                for sheet in self.asked.sheets
            ],
            "requests": self.asked.requests,
            "tokens_at_most": self.asked.tokens,
            "sampling_flops_at_most": None if shape is None else sampling_flops(shape, self.asked.tokens),
            "sampling_gpu_hours_at_most": self.sampling(),
            "sampling_gpu_hours_at_reply_share": self.sampling(ASSUMED.reply_share),
            "training_gpu_hours": self.training(),
            "judge": self.recipe.judge,
            "verdicts": self.verdicts,
            "disk_bytes": self.disk,
            "not_at_hand": self.missing,
            "assumptions": ASSUMED.describe(),
        }


def subjects(arms: list[ArmPlan], edited: list[EditedPlan]) -> int:
    """The base and every checkpoint."""
    return 1 + sum(arm.checkpoints for arm in arms) + sum(arm.checkpoints for arm in edited)
