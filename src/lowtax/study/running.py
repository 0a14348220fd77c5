"""A run of a study in this process, or by workers."""

from typing import TYPE_CHECKING, Any

from lowtax.common.errors import UserError

if TYPE_CHECKING:
    from lowtax.study.study import Study


def run(
    study: "Study",
    train: bool = True,
    workers: int | None = None,
    on: str | None = None,
    gpus_each: int | None = None,
    patience: float | None = None,
) -> dict[str, Any]:
    """Run every stage of a study and return its table; arguments are those of `lt.run`.

    Raises:
        UserError: There are not enough GPUs, or Ray cannot be used, or the recipe cannot be run.
    """
    if workers is None and on is None:
        for option, value in {"--patience": patience, "--gpus-each": gpus_each}.items():
            if value is not None:
                raise UserError(f"{option} is for workers: give --workers N or --on ray, too.")
        return study.run(train=train)
    from lowtax.study.units.driver import Driver  # lazy: one process needs none of it
    from lowtax.study.units.pools import open_pool
    from lowtax.study.units.scheduler import PATIENCE

    with open_pool(workers, on, study.out, gpus_each or 1) as pool:
        return Driver(study, pool, patience or PATIENCE, gpus_each).run(train)
