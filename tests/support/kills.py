"""Processes that are killed at random moments."""

import os
import signal
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from typing import Any


def kill_at_random(
    context: BaseContext, target: Callable[..., Any], args: tuple[Any, ...], waits: Iterable[float]
) -> int:
    """Start a process for each wait and kill it after so many seconds, until one ends by itself; return the kills."""
    kills = 0
    for wait in waits:
        child = context.Process(target=target, args=args)  # type: ignore[attr-defined]
        child.start()
        child.join(wait)
        if child.exitcode is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
    return kills
