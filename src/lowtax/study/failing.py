"""Arms that fail while the others go on: they are recorded with the reason, and left out of the table's rows."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lowtax.common.allocator import release_memory
from lowtax.common.cards import FailedArms, read_card
from lowtax.common.errors import Busy, UserError
from lowtax.common.log import say
from lowtax.engines.sampling import collect
from lowtax.study import lineage

if TYPE_CHECKING:
    from lowtax.study.recipe import Recipe
    from lowtax.study.study import Study


def dependents(recipe: "Recipe", arm: str) -> Iterator[tuple[str, str]]:
    """Yield the arms that cannot be made without an arm, each with the reason."""
    for name, edited in recipe.edited.items():
        if arm in edited.made_of():
            yield name, f"{arm}, which it is made of, failed"
    for name, settings in recipe.arms.items():
        if lineage.parent_of(settings) == arm:
            yield name, f"{arm}, from which it starts, failed"


def fail(study: "Study", arm: str, seed: int, reason: str) -> None:
    """Leave an arm and seed out, with the arms that cannot be made without it."""
    if (arm, seed) not in study.failed:
        study.failed[arm, seed] = reason
        for name, why in dependents(study.recipe, arm):
            fail(study, name, seed, why)


def remembered(study: "Study") -> dict[tuple[str, int], str]:
    """Return the failures that the folder's table has, of arms that were not made since."""
    path = study.out / "table.json"
    try:
        rows = read_card(path, FailedArms).get("failed", []) if path.exists() else []
    except UserError:  # damaged, and written anew by whatever reads the study
        rows = []
    cards = {(row["arm"], row["seed"]): study.arm_folder(row["arm"], row["seed"]) / "card.json" for row in rows}
    return {(row["arm"], row["seed"]): row["reason"] for row in rows if not cards[row["arm"], row["seed"]].exists()}


@contextmanager
def recorded(study: "Study", unit: str, arm: str, seed: int, goes_on: bool) -> Iterator[None]:
    """Record an error of the block as the failure of an arm and seed.

    Args:
        unit: the stage that fails, `train`, `edit` or `sample`.
        goes_on: False lets errors through, as where nothing else is to be done.
    """
    try:
        yield
    except Busy:
        raise
    except Exception as error:  # row recorded as failed
        if not goes_on:
            raise
        known = isinstance(error, UserError)
        reason = str(error) if known else traceback.format_exception_only(error)[-1].strip()
        if not known:
            say(traceback.format_exc())
        say(f"  {unit}/{arm}/seed-{seed} FAILED: {reason}")
        fail(study, arm, seed, f"{unit}/{arm}/seed-{seed}: {reason}")
        del error
        release_memory()


def sample_all(study: "Study", goes_on: bool) -> None:
    """Sample all sheets of a study in one plan; if that fails and others go on, the base, then each arm and seed alone.

    Raises:
        UserError: The base cannot be sampled.
    """
    sheets = [*study.reply_sheets().values(), *study.attack_sheets(), *study.answer_sheets().values()]
    try:
        return study.sample(sheets)
    except UserError:
        if not goes_on:
            raise
    sheets, subjects = [*study.ordered(sheets)], study.subjects()
    collect(sheets, [study.base], study.engine, study.out)
    for arm, seed in dict.fromkeys((subject.arm, subject.seed) for subject in subjects if subject != study.base):
        of_arm = [subject for subject in subjects if (subject.arm, subject.seed) == (arm, seed)]
        with recorded(study, "sample", arm, seed or 0, goes_on):
            collect(sheets, of_arm, study.engine, study.out)


def report(table: dict[str, Any]) -> str | None:
    """Return the sentence about arms that failed; None if none did."""
    if not (rows := table.get("failed")):
        return None
    names = ", ".join(f"{row['arm']} (seed {row['seed']})" for row in rows)
    return f"{len(rows)} of the trainings, edits or measurements failed: {names}; repeat the command to try again."
