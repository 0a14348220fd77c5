"""The options of `lowtax run` for several processes and machines, and its plan of units."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from lowtax.common.errors import Stopped
from lowtax.common.log import tell

if TYPE_CHECKING:
    from lowtax.engines.sampling import Collect
    from lowtax.judges.verdicts import Read
    from lowtax.study.recipe import Recipe
    from lowtax.study.study import Study

Plan = Annotated[
    bool, typer.Option("--plan", help="Print the units of work that a run consists of, offline; writes nothing.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        max=10_000,
        help="Work in N processes: with GPUs one GPU each, else the cores are divided among them.",
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray[://ADDRESS]",
        help="Work on the machines of a Ray cluster: ray starts one here or joins that of RAY_ADDRESS.",
    ),
]
WorkersOn = Annotated[
    str | None,
    typer.Option(
        "--workers-on",
        metavar="ray[://ADDRESS]",
        help="Work on the machines of a Ray cluster, as --on of lowtax run.",
    ),
]
GpusEach = Annotated[
    int | None,
    typer.Option(
        "--gpus-each",
        metavar="N",
        min=1,
        max=1000,
        help="With --workers or --on, the GPUs of each worker, for a model that one does not hold; 1. ZeRO and FSDP2 "
        "train an arm on all of them.",
    ),
]
NodesEach = Annotated[
    int | None,
    typer.Option(
        "--nodes-each",
        metavar="N",
        min=1,
        max=1000,
        help="With --on ray, the machines of each worker, for training that the GPUs of one do not hold; 1. Each has "
        "its part of --gpus-each.",
    ),
]
Patience = Annotated[
    float | None,
    typer.Option(
        "--patience",
        metavar="SECONDS",
        min=1,
        help="With --workers or --on, seconds without a word after which a worker's unit goes to another; 7200.",
    ),
]


def run(
    study: "Study",
    train: bool,
    workers: int | None,
    on: str | None,
    gpus_each: int | None,
    patience: float | None,
    nodes_each: int | None = None,
) -> str | None:
    """Run a study in this process or by workers; return the sentence about arms that failed, None if none did.

    Raises:
        UserError: There are not enough GPUs, or Ray cannot be used.
    """
    from lowtax.study import failing, running

    by_workers = workers is not None or on is not None
    with stopping_in_order() if by_workers else nullcontext():
        return failing.report(running.run(study, train, workers, on, gpus_each, patience, nodes_each))


@contextmanager
def sampling_by(workers: int | None, on: str | None, out: Path) -> Iterator["Collect"]:
    """Yield the way to complete the sheets in a folder: in this process, or by workers, which end with the block."""
    from lowtax.study import running

    with running.drawing(workers, on, out) as draw:
        yield draw


@contextmanager
def reading_by(workers: int | None, on: str | None, out: Path) -> Iterator["Read"]:
    """Yield the way to judge replies: in this process, or by workers, which end with the block."""
    from lowtax.study import running

    with running.reading(workers, on, out) as read:
        yield read


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Let SIGTERM, which a scheduler sends, end the workers as Ctrl-C does: training saves its state."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number, "stopped; repeat the command to resume.")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show_plan(recipe: "Recipe", limit: int | None, as_json: bool) -> None:
    """Print the units of a recipe."""
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.study.dryrun.plan import plan
    from lowtax.study.limits import limited
    from lowtax.study.units import graph

    recipe = limited(recipe, limit) if limit else recipe
    units = graph.units_of(recipe, plan(recipe))
    tell(json.dumps([asdict(unit) for unit in units])) if as_json else graph.show(units)
