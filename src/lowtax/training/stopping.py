"""Signals that end training: Ctrl-C, and the SIGTERM of a scheduler. The run stops after the step and saves its state.

A second signal ends the process at once.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from lowtax.common.log import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 1.0  # seconds in which a terminal and a launcher may both send a signal that is one


class Signals:
    """The signals that have come. `number` is that of the first; 0 if none has."""

    def __init__(self) -> None:
        self.number = 0
        self._came = 0.0
        self._before = dict[int, Any]()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; let the second do what it would have done without this."""
        if not self.number:
            self.number, self._came = number, time.monotonic()
            with suppress(RuntimeError):  # the signal came while a line was being printed
                say("  stopping after this step, with its state saved; a second signal ends at once")
        elif time.monotonic() - self._came > TOGETHER:
            self.restore()
            signal.raise_signal(number)

    def restore(self) -> None:
        """Give the signals back to those who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def take(self) -> None:
        """Take the signals over. Only a main thread may; in another, they do what they always do."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self.receive) or signal.SIG_DFL for number in SIGNALS}


@contextmanager
def signals() -> Iterator[Signals]:
    """Take over the signals inside the block."""
    taken = Signals()
    taken.take()
    try:
        yield taken
    finally:
        taken.restore()
