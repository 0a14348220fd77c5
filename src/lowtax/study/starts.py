"""The starts of a study's arms: what an arm that starts from another one begins with, and the base of its adapters."""

from typing import TYPE_CHECKING

from lowtax.common.records import row_id
from lowtax.study import lineage
from lowtax.training.start import Start

if TYPE_CHECKING:
    from lowtax.study.study import Study


def start_of(work: "Study", arm: str, seed: int) -> Start | None:
    """Return the checkpoint that a trained arm starts from; None if that is the model.

    No file of the other arm is read, so that jobs can be compared before it is trained.
    """
    start = work.recipe.arms[arm].start
    return None if start is None else _checkpoint(work, *lineage.split(start), seed)


def base_of(work: "Study", arm: str, seed: int) -> str:
    """Return the base of the adapters of an arm, trained or edited: the model, or whole weights that it starts from.

    Raises:
        UserError: Those are not trained yet.
    """
    recipe, name = work.recipe, lineage.source_of(arm, work.recipe.edited)
    while (start := recipe.arms[name].start) is not None:
        parent, checkpoint = lineage.split(start)
        if _is_whole(work, parent):
            return str(Start(parent, checkpoint, work.arm_folder(parent, seed), True, "").path())
        name = lineage.source_of(parent, recipe.edited)
    return recipe.model


def _is_whole(work: "Study", arm: str) -> bool:
    return arm in work.recipe.arms and work.recipe.arms[arm].where().kind == "full"


def _checkpoint(work: "Study", arm: str, checkpoint: str | None, seed: int) -> Start:
    """Return a checkpoint of an arm, as another arm starts from it; None is its last one."""
    edited, source = work.recipe.edited, lineage.source_of(arm, work.recipe.edited)
    if arm in edited:
        [plan] = [plan for plan in work.edit_plans(arm) if plan.seed == seed]
        made_by = row_id(plan.decided({name: work.job(name, seed).describe() for name in plan.arm.made_of()}))
    else:
        made_by = row_id(work.job(arm, seed).describe())
    return Start(
        arm=arm,
        checkpoint=checkpoint,
        folder=work.arm_folder(arm, seed),
        whole=_is_whole(work, arm),
        made_by=made_by,
        before=start_of(work, source, seed),
    )
