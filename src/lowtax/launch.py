"""What a launcher (torchrun, accelerate, deepspeed) told this process: its rank, and who speaks when things fail."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 5.0  # seconds in which a launcher surely ends the other processes of one that has ended


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which of this machine's processes, and so which of its GPUs."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def on_this_machine() -> int:
    """How many of the processes run on this machine, as torchrun and accelerate say, or deepspeed."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")


@contextmanager
def first_to_speak() -> Iterator[None]:
    """An error waits in all processes but the first: mostly the first fails too, for the same reason or as the
    reason, says so, and its launcher ends the others before they repeat it or tell of a broken connection."""
    try:
        yield
    except Exception:
        if world()[0]:
            time.sleep(GRACE)
        raise
