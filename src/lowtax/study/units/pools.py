"""The pool of workers that a user names: processes of this machine, or the machines of a Ray cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.study.units.messages import Pool
from lowtax.study.units.processes import Processes, environments, visible_gpus

RAY = "ray"


@contextmanager
def open_pool(
    workers: int | None, on: str | None, out: Path, gpus_each: int = 1, nodes_each: int = 1
) -> Iterator[Pool]:
    """Start workers, and end them with the block.

    Args:
        workers: their number; on a cluster, None is one for each GPU, or for each core without GPUs.
        on: None for processes of this machine; `ray` or `ray://ADDRESS`.
        out: the study's folder.
        gpus_each: the GPUs of a worker, where there are any.
        nodes_each: the nodes of a cluster on which a worker's GPUs are, as many on each.

    Raises:
        UserError: There are fewer GPUs than workers, or Ray cannot be used.
    """
    if nodes_each > 1 and on is None:
        raise UserError("--nodes-each is for the machines of a Ray cluster: give --on ray, too.")
    if gpus_each % nodes_each:
        raise UserError(
            f"--nodes-each {nodes_each} divides the GPUs of a worker, which --gpus-each {gpus_each} gives: give a "
            f"multiple, such as --gpus-each {nodes_each * max(1, gpus_each // nodes_each)}."
        )
    if on is None:
        assert workers is not None
        pool: Pool = local(workers, gpus_each)
    elif on.partition("://")[0] == RAY:
        from lowtax.study.units.on_ray import Cluster

        pool = Cluster.connect(on, workers, out, gpus_each, nodes_each=nodes_each)
    else:
        raise UserError(f"{on!r} is no place for workers: give ray, or ray://ADDRESS.")
    try:
        yield pool
    finally:
        pool.close()


def local(workers: int, gpus_each: int = 1) -> Processes:
    """Return workers on this machine, with GPUs of their own or a share of the cores."""
    gpus = visible_gpus()
    variables = environments(workers, gpus, len(os.sched_getaffinity(0)), gpus_each)
    each = f"{gpus_each} GPU each" if gpus else f"{variables[0]['OMP_NUM_THREADS']} threads each"
    say(f"{workers} workers, {each}")
    return Processes(variables, copied=not gpus)
