"""`lowtax run RECIPE --dry-run`: a recipe resolved, counted and costed. Nothing is trained, sampled or downloaded.

What is counted is counted by the code that a run uses: placements are tried on a model without values, rows and tokens
read by the training data's own reader and encoder, requests planned as for sampling. The rest is arithmetic
(`cost`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lowtax import engines, judges, models, zero
from lowtax.dryrun import cost
from lowtax.dryrun.cost import ASSUMED, CARDS, Hours, Setting
from lowtax.dryrun.counts import Certainty, Counter, Known, Training, least
from lowtax.dryrun.offline import Looked, offline
from lowtax.dryrun.requests import Asked, requests
from lowtax.dryrun.skeleton import Model, Trained
from lowtax.recipe import EditedArm, Recipe


@dataclass(frozen=True)
class ArmPlan:
    """A trained arm: one `Training` a seed, and what it costs. None where the model's shape is not known."""

    name: str
    what: str
    runs: list[Training]
    trained: Trained | None
    setting: Setting | None
    flops: float | None

    @property
    def known(self) -> Certainty:
        """Of all seeds together."""
        return Certainty(*map(least, zip(*(run.known for run in self.runs), strict=True)))

    @property
    def checkpoints(self) -> int:
        """Of all seeds together."""
        return sum(run.checkpoints for run in self.runs)

    @property
    def disk(self) -> int | None:
        """Bytes of all checkpoints."""
        return None if self.trained is None else cost.checkpoint_bytes(self.trained.parameters, self.checkpoints)

    @property
    def meanwhile(self) -> int | None:
        """Bytes that a run under way keeps beside its checkpoints, to be resumed; seeds train one after the other."""
        most = max(run.checkpoints for run in self.runs)
        return None if self.trained is None else cost.resume_bytes(self.trained.parameters, most)

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
            **{f"{what}_known": known for what, known in self.known._asdict().items()},
            "tokens": sum(run.tokens for run in self.runs),
            "longest": max(run.longest for run in self.runs),
            "memory": setting and setting.as_json(),
            "flops": self.flops,
            "gpu_hours": cost.training_hours(self.flops),
            "disk_bytes": self.disk,
            "resume_bytes": self.meanwhile,
        }


@dataclass(frozen=True)
class EditedPlan:
    """An edited arm: so many checkpoints of all seeds, at no training.

    Its adapters take the disk of those that they are made of: less if `rank` cuts them, more if an edit adds directions
    of its own.
    """

    name: str
    of: str
    edits: list[str]
    checkpoints: int
    disk: int | None


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to. `subjects` are the base and every checkpoint."""

    recipe: Recipe
    model: Model
    precision: str
    arms: list[ArmPlan]
    edited: list[EditedPlan]
    subjects: int
    subjects_known: Known
    sheets: list[Asked]
    missing: list[str]

    @property
    def requests(self) -> int:
        """Replies in all. What two tasks ask alike is drawn once."""
        return sum(sheet.drawn for sheet in self.sheets)

    @property
    def tokens(self) -> int:
        """Tokens of all replies, at most."""
        return sum(sheet.drawn * sheet.max_new_tokens for sheet in self.sheets)

    @property
    def verdicts(self) -> int:
        """Texts that the judge may see: one a reply, and the other texts of replies to harmful prompts."""
        texts = {"harmful": len({self.recipe.judged_text, *self.recipe.judged_also}), "ordinary": 1}
        return sum(sheet.requests * texts.get(sheet.kind, 0) for sheet in self.sheets)

    @property
    def disk(self) -> float | None:
        """Bytes of all checkpoints."""
        return _sum([*(arm.disk for arm in self.arms), *(arm.disk for arm in self.edited)])

    @property
    def flops(self) -> float | None:
        """Operations of training."""
        return _sum([arm.flops for arm in self.arms])

    @property
    def sampling_flops(self) -> float | None:
        """Operations of sampling, every reply of its largest length."""
        return None if self.model.shape is None else cost.sampling_flops(self.model.shape, self.tokens)

    def sampling(self, share: float = 1.0) -> Hours | None:
        """Card hours of sampling, replies taking this share of their largest length."""
        shape, batch = self.model.shape, self.recipe.batch_size
        if shape is None:
            return None
        of = [(sheet.drawn, share * sheet.max_new_tokens, batch, self.precision) for sheet in self.sheets]
        return {name: sum(cost.sampling_hours(shape, card, *asked) for asked in of) for name, card in CARDS.items()}

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "recipe": self.recipe.name,
            "model": self.recipe.model,
            "parameters": self.model.parameters,
            "precision": self.precision,
            "engine": self.recipe.engine,
            "seeds": self.recipe.seeds,
            "subjects": self.subjects,
            "subjects_known": self.subjects_known,
            "arms": [arm.as_json() for arm in self.arms],
            "edited": [asdict(arm) for arm in self.edited],
            "sheets": [asdict(sheet) | {"tokens_at_most": sheet.tokens} for sheet in self.sheets],
            "requests": self.requests,
            "tokens_at_most": self.tokens,
            "sampling_flops_at_most": self.sampling_flops,
            "sampling_gpu_hours_at_most": self.sampling(),
            "sampling_gpu_hours_at_reply_share": self.sampling(ASSUMED.reply_share),
            "training_gpu_hours": cost.training_hours(self.flops),
            "judge": self.recipe.judge,
            "verdicts": self.verdicts,
            "disk_bytes": self.disk,
            "not_at_hand": self.missing,
            "assumptions": ASSUMED.describe(),
        }


def _sum(parts: Sequence[float | None]) -> float | None:
    """None if a part is not known."""
    return None if None in parts else sum(part or 0 for part in parts)


def plan(recipe: Recipe) -> Plan:
    """Resolve a recipe and count what it asks for.

    Raises:
        UserError: The recipe is broken: what a run would refuse, now or after hours.
    """
    with offline():
        looked = Looked()
        precision = _precision(recipe)
        model = Model(recipe.model, looked)
        counter = Counter(recipe, model.tokenizer(), looked)
        arms = {name: _arm(name, recipe, model, counter, precision) for name in recipe.arms}
        edited = [_edited(name, arm, recipe, model, arms) for name, arm in recipe.edited.items()]
        subjects = 1 + sum(arm.checkpoints for arm in arms.values()) + sum(arm.checkpoints for arm in edited)
        known = least(arm.known.checkpoints for arm in arms.values())
        sheets = requests(recipe, subjects, known, counter, looked)
        _tools(recipe, looked)
    return Plan(recipe, model, precision, [*arms.values()], edited, subjects, known, sheets, looked.missing)


def _precision(recipe: Recipe) -> str:
    """That of the cards which are planned for: `auto` is float32 only where this machine has no bfloat16."""
    deepspeed = recipe.execution.deepspeed
    if deepspeed is not None:
        zero._read(Path(deepspeed))
    found = models.precision(recipe.precision, deepspeed)
    return "bfloat16" if (recipe.precision, found) == ("auto", "float32") else found


def _arm(name: str, recipe: Recipe, model: Model, counter: Counter, precision: str) -> ArmPlan:
    arm, shape, batch_size = recipe.arms[name], model.shape, recipe.train_of(name).batch_size
    trained = model.trained(arm)
    runs = [counter.training(name, seed) for seed in recipe.seeds]
    placement = arm.where()
    what = arm.mode or ("full" if placement.kind == "full" else f"{' '.join(placement.modules)} r{placement.rank}")
    if shape is None or trained is None:
        return ArmPlan(name, what, runs, trained, None, None)
    longest, methods, lora = max(run.longest for run in runs), bool(arm.acts()), trained.lora
    setting = cost.first_that_fits(shape, lora, precision, batch_size, longest, recipe.execution, methods)
    again = setting is None or setting.checkpointing
    flops = sum(cost.training_flops(shape, run.tokens, lora, trained.parameters, again) for run in runs)
    return ArmPlan(name, what, runs, trained, setting, flops)


def _edited(name: str, arm: EditedArm, recipe: Recipe, model: Model, arms: dict[str, ArmPlan]) -> EditedPlan:
    model.edits(name, arm, recipe.arms[arm.of])
    of = arms[arm.of]
    checkpoints = of.checkpoints if arm.checkpoints == "all" else len(of.runs)
    trained = [made.parameters for source in (arm.of, *arm.ends()) if (made := arms[source].trained)]
    disk = cost.checkpoint_bytes(sum(trained), checkpoints) if trained else None
    return EditedPlan(name, arm.of, [str(edit["name"]) for edit in arm.edits], checkpoints, disk)


def _tools(recipe: Recipe, looked: Looked) -> None:
    """Check engine and judge, and note what they, and checkers, need.

    Raises:
        UserError: There is no such engine or judge.
    """
    engines.find(recipe.engine)
    if recipe.engine == "vllm" and find_spec("vllm") is None:
        looked.lacks("the engine vllm", "`pip install 'lowtax[vllm]'`")
    if recipe.execution.deepspeed and find_spec("deepspeed") is None:
        looked.lacks("DeepSpeed", "`pip install 'lowtax[deepspeed]'`")
    judge = judges.load(recipe.judge)
    looked.model(getattr(judge, "model", ""), f"the judge {judge.name}:")
    for name, task in recipe.tasks.items():
        if task.checker:
            looked.model(task.checker, f"the checker of {name}:")
