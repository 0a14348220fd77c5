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
    whole = _whole_below(work, arm, seed)
    return work.recipe.model if whole is None else whole.base(work.recipe.model)


def _whole_below(work: "Study", arm: str, seed: int) -> Start | None:
    """Return the checkpoint of whole weights that the adapters of an arm are on; None if that is the model."""
    recipe = work.recipe
    if arm in recipe.edited and lineage.is_whole(recipe.edited[arm].of, recipe.arms):
        return Start(recipe.edited[arm].of, None, work.arm_folder(recipe.edited[arm].of, seed), True, "")
    start = recipe.arms[lineage.source_of(arm, recipe.edited)].start
    if start is None:
        return None
    parent, checkpoint = lineage.split(start)
    if lineage.is_whole(parent, recipe.arms):
        return Start(parent, checkpoint, work.arm_folder(parent, seed), True, "")
    return _whole_below(work, parent, seed)


def _checkpoint(work: "Study", arm: str, checkpoint: str | None, seed: int) -> Start:
    """Return a checkpoint of an arm, as another arm starts from it; None is its last one."""
    if arm in work.recipe.edited:
        [plan] = [plan for plan in work.edit_plans(arm) if plan.seed == seed]
        made_by = row_id(plan.decided({name: work.job(name, seed).describe() for name in plan.arm.made_of()}))
    else:
        made_by = row_id(work.job(arm, seed).describe())
    return Start(
        arm=arm,
        checkpoint=checkpoint,
        folder=work.arm_folder(arm, seed),
        whole=lineage.is_whole(arm, work.recipe.arms),
        made_by=made_by,
        before=_whole_below(work, arm, seed),
    )
