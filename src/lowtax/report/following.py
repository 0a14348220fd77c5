"""Follow a study under way: when its page is to be written again, and when its run has ended.

A run is under way while a process holds the lock of its folder, which the kernel releases even if the process is
killed. A page is not written more often than every two seconds, and takes a fifth of the time at most.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowtax.common.files import is_locked
from lowtax.report.stored import is_finished

EVERY = 2.0  # seconds between two looks
REST = 4  # times the seconds of writing a page pass before the next one is written
WATCHED = ("*.json", "*.jsonl", "*.yaml", "*/*.jsonl", "arms/*/*/steps.jsonl", "arms/*/*/card.json")
State = dict[str, tuple[int, int]]


def state(folders: Sequence[Path]) -> State:
    """Return the size and the time of change of every file that a page is made of."""
    files = [path for folder in folders for pattern in WATCHED for path in folder.glob(pattern)]
    listed = {}
    for path in files:
        try:
            status = path.stat()
        except OSError:  # replaced just now
            continue
        listed[str(path)] = (status.st_size, status.st_mtime_ns)
    return listed


def rounds(folders: Sequence[Path], every: float = EVERY) -> Iterator[bool]:
    """Yield whenever the page is to be written: False while more may come, True for the last time.

    The first time is at once. The last time is after a run has ended: one that was under way at a look, or a short one
    between two looks, which is known by what it wrote. Studies that have all finished are written once. Where a study
    has not and no run is under way, one is waited for.

    Args:
        every: seconds between two looks.

    Raises:
        UserError: a folder holds no study.
    """
    written: State | None = None
    seen = False
    while True:
        running = any(is_locked(folder) for folder in folders)
        now = state(folders)  # after the look at the lock: what an ended run wrote is in it
        running = running or any(is_locked(folder) for folder in folders)  # one that began meanwhile
        came = seen or (written is not None and now != written)
        if written is None and not running:
            came = all(is_finished(folder) for folder in folders)
        ended = came and not running
        pause = every
        if ended or now != written:
            began = time.monotonic()
            yield ended
            if ended:
                return
            written, pause = now, max(every, REST * (time.monotonic() - began))
        seen = seen or running
        time.sleep(pause)
