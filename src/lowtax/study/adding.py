"""Arms added to a stored study: a second mode or seed in the same folder, where the rest of the recipe agrees."""

from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.models import fingerprint, loading
from lowtax.study import recipe as recipes
from lowtax.study import stored_recipe
from lowtax.study.recipe import Arm, Recipe
from lowtax.training.job import begun
from lowtax.training.settings import Train

SHARED = ("model", "precision", "thinking")
"""Fields on which all arms of a study must agree: with others, its base and its arms could not be compared."""


def with_stored(new: Recipe, out: Path, trust: bool = False) -> Recipe:
    """Return the stored recipe of a folder with the one arm of a new recipe added; the new one if none is stored.

    Prompts, tasks, judge and the other arms stay as they are. Data and settings that differ from the stored ones are
    those of the new arm alone. Arms that options made and that were refused before they trained are left out.

    Args:
        trust: accept the classes in Python files that the stored recipe names.

    Raises:
        UserError: The two recipes cannot be one study, or the stored one names Python files and is not trusted.
    """
    if (path := stored_recipe.stored_in(out)) is None:
        return new
    stored, (name, arm) = recipes.load(path, trust=trust), next(iter(new.arms.items()))
    arms = {known: its for known, its in stored.arms.items() if its.mode != known or _begun(out, known)}
    others = [known for known in arms if known != name]
    if not (arms or stored.harmful or stored.ordinary or stored.tasks):
        return new  # an earlier try was refused before it trained anything
    _require_agreement(stored, new, out)
    seeds = list(dict.fromkeys([*stored.seeds, *new.seeds])) if name in arms or not arms else stored.seeds
    if not set(new.seeds) <= set(stored.seeds) and others:
        raise UserError(
            f"The study in {out} has the seeds {_listed(stored.seeds)} for {', '.join(others)}, and now {name} is to "
            f"have {_listed(new.seeds)}: every arm of a study has the same seeds; choose another --out, or add the "
            f"seed to {path} and run `lowtax train {path} --out {out}`."
        )
    first = stored if arms else new
    fields = {key: getattr(stored, key) for key in stored.model_fields_set} | {
        "arms": {**arms, name: _own(arm, new, first, moved=bool(arms))},
        "seeds": seeds if arms else new.seeds,
        "execution": new.execution,
        "data": first.data,
        "train": first.train,
    }
    measured = new.model_fields_set - {*SHARED, "name", "arms", "seeds", "execution", "data", "train"}
    fields |= {key: getattr(new, key) for key in measured}  # by --set
    return Recipe.model_validate(fields)


def _begun(out: Path, arm: str) -> bool:
    return any(begun(folder) for folder in (out / "arms" / arm).glob("seed-*"))


def _require_agreement(stored: Recipe, new: Recipe, out: Path) -> None:
    """Raise UserError if the arms of two recipes cannot be compared."""
    for key in (key for key in SHARED if key in new.model_fields_set):
        before, now = getattr(stored, key), getattr(new, key)
        if before != now and not _alike(key, str(before), str(now), new):
            raise UserError(
                f"The study in {out} has {key} {before!r}, now {now!r}, and all arms of a study share it: choose "
                "another --out."
            )


def _alike(key: str, before: str, now: str, new: Recipe) -> bool:
    if key == "model":
        return fingerprint.identity(before) == fingerprint.identity(now)
    deepspeed = new.execution.deepspeed
    return key == "precision" and loading.precision(before, deepspeed) == loading.precision(now, deepspeed)


def _own(arm: Arm, new: Recipe, stored: Recipe, moved: bool) -> Arm:
    """Return an arm with the data and the settings in which its recipe differs from the stored one."""
    if not moved:
        return arm
    settings = new.train_of(next(iter(new.arms)))
    changes: dict[str, Any] = {
        name: getattr(settings, name)
        for name in Train.model_fields
        if getattr(settings, name) != getattr(stored.train, name)
    }
    if changes.get("warmup_ratio") is not None:
        changes.pop("warmup_steps", None)
    data = new.data_of(next(iter(new.arms)))
    own: dict[str, Any] = {"train": changes} if changes else {}
    return arm.model_copy(update=own if data == stored.data else own | {"data": data})


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
