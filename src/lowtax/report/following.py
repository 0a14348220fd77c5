"""Wait until the files of a study under way have changed, and a moment longer, so that a page is not made too often."""

import time
from collections.abc import Sequence
from pathlib import Path

EVERY = 5.0  # seconds between two looks
WATCHED = ("*.json", "*.yaml", "*/*.jsonl", "arms/*/*/steps.jsonl", "arms/*/*/card.json")
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


def wait_for_news(folders: Sequence[Path], before: State, every: float = EVERY) -> State:
    """Return the state of the folders once it is another one than before."""
    while (now := state(folders)) == before:
        time.sleep(every)
    return now
