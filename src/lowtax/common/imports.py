"""Imports of large libraries without garbage collection.

torch and transformers make a million objects, none of which is garbage, and Python's collector looks at all of them
again and again: a ninth of the processor time of their import, a second on a CPU with AVX2 alone.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause garbage collection in the block; a collector that was off stays off."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
