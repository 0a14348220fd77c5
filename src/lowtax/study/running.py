"""A run of a study, or the sampling or judging of a single command, in this process or by workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtax.common.errors import UserError
from lowtax.engines.sampling import Collect, collect
from lowtax.judges.verdicts import Read, read_here

if TYPE_CHECKING:
    from lowtax.study.study import Study


def run(
    study: "Study",
    train: bool = True,
    workers: int | None = None,
    on: str | None = None,
    gpus_each: int | None = None,
    patience: float | None = None,
    nodes_each: int | None = None,
) -> dict[str, Any]:
    """Run every stage of a study and return its table; arguments are those of `lt.run`.

    Raises:
        UserError: There are not enough GPUs, or Ray cannot be used, or the recipe cannot be run.
    """
    if workers is None and on is None:
        for option, value in {"--patience": patience, "--gpus-each": gpus_each, "--nodes-each": nodes_each}.items():
            if value is not None:
                raise UserError(f"{option} is for workers: give --workers N or --on ray, too.")
        return study.run(train=train)
    from lowtax.study.units.driver import Driver  # lazy: one process needs none of it
    from lowtax.study.units.pools import open_pool
    from lowtax.study.units.scheduler import PATIENCE
    from lowtax.training import distributed

    if (nodes_each or 1) > 1 and not (study.recipe.execution.deepspeed or distributed.by_fsdp()):
        raise UserError(
            "--nodes-each is for arms that several processes train, with execution.deepspeed in the recipe or FSDP2, "
            "and this recipe has neither: remove it."
        )
    with open_pool(workers, on, study.out, gpus_each or 1, nodes_each or 1) as pool:
        return Driver(study, pool, patience or PATIENCE, gpus_each).run(train)


@contextmanager
def drawing(workers: int | None, on: str | None, out: Path) -> Iterator[Collect]:
    """Yield the way to complete sheets in a folder: in this process, or by workers, which end with the block.

    Raises:
        UserError: There are not enough GPUs, or Ray cannot be used.
    """
    if workers is None and on is None:
        yield collect
        return
    from lowtax.study.units import requests  # lazy, as above
    from lowtax.study.units.pools import open_pool

    with open_pool(workers, on, out) as pool:
        yield partial(requests.collect, pool)


@contextmanager
def reading(workers: int | None, on: str | None, out: Path) -> Iterator[Read]:
    """Yield the way to judge replies: in this process, or by workers, which end with the block.

    Args:
        out: the folder for units.jsonl.

    Raises:
        UserError: There are not enough GPUs, or Ray cannot be used.
    """
    if workers is None and on is None:
        yield read_here
        return
    from lowtax.study.units import judging  # lazy, as above
    from lowtax.study.units.pools import open_pool

    with open_pool(workers, on, out) as pool:
        yield judging.ByWorkers(pool, out)
