"""Memory of the process: freed blocks are kept or returned to the kernel, and what nobody holds is released."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let glibc reuse large freed blocks inside the block instead of returning them to the kernel.

    The page faults of fresh logits cost a quarter of a training step on CPU. All memory is returned at the end.
    Elsewhere than on glibc this does nothing.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    mallopt = libc.mallopt
    mmaps, trim_threshold = -4, -1
    mallopt(mmaps, 0)
    mallopt(trim_threshold, -1)
    try:
        yield
    finally:
        mallopt(mmaps, 65536)  # glibc's defaults
        mallopt(trim_threshold, 128 * 1024)
        libc.malloc_trim(0)


def return_memory() -> None:
    """Return the freed blocks to the kernel, also inside `kept_memory`: blocks of new sizes leave gaps between them."""
    if libc := _glibc():
        libc.malloc_trim(0)


def release_memory() -> None:
    """Free what nothing holds any more, now, with its memory on a GPU.

    A model and its optimiser or engine hold each other, and Python looks for such objects by their number, not by
    their bytes: a second model would be loaded beside the first.
    """
    gc.collect()
    return_memory()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _glibc() -> Any:
    """Return glibc, or None elsewhere."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError):
        return None
