"""Settings from a launcher (torchrun, accelerate, deepspeed): ranks, and which rank reports a failure."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

WORKERS = "LOWTAX_WORKERS"  # the number of workers of a study on a machine, in the environment of each
GRACE = 5.0  # seconds within which a launcher kills the other ranks once one has ended


def world() -> tuple[int, int]:
    """Return (rank, number of processes)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return the index of this process on its machine, which is also that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def on_this_machine() -> int:
    """Return the number of processes on this machine, of a launch or of the workers of a study, or of both.

    torchrun and accelerate name it differently from deepspeed.
    """
    launched = next(filter(None, map(os.environ.get, ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"))), "1")
    return int(launched) * int(os.environ.get(WORKERS) or "1")


@contextmanager
def first_to_speak() -> Iterator[None]:
    """Delay errors on ranks other than 0, so that rank 0 reports the cause before the launcher kills the rest."""
    try:
        yield
    except Exception:
        if world()[0]:
            time.sleep(GRACE)
        raise
