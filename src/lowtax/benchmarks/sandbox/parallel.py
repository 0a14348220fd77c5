"""`multiprocessing` without /dev/shm, which only two of the three ways of isolation could give to a program alone.

Its locks lie in memory that the processes of a program share, and its arrays in a file of the program's folder. So
pools, queues and shared values work in every way, and nothing stays behind. Standard library only: this runs in the
server process, before the programs.
"""

import _multiprocessing  # type: ignore[import-not-found]
import ctypes
import mmap
import multiprocessing.heap

from . import kernel

SIZE = 64  # bytes for a semaphore of the C library, which has 32


class SemLock(_multiprocessing.SemLock):  # type: ignore[misc]
    """A lock as `multiprocessing` makes it, by the same arguments, that has no name."""

    def __new__(cls, kind: int, value: int, maxvalue: int, name: str, unlink: bool) -> "SemLock":
        """Make a semaphore in shared memory; it lives as long as a process holds that memory."""
        memory = mmap.mmap(-1, SIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        kernel.checked(kernel.LIBC.sem_init(ctypes.c_void_p(address), 1, ctypes.c_uint(value)), "sem_init")
        lock: SemLock = cls._rebuild(address, kind, maxvalue, None)
        lock.memory = memory
        return lock


def without_shared_files() -> None:
    """Let `multiprocessing` of this process, and of those that it forks, do without /dev/shm."""
    _multiprocessing.SemLock = SemLock
    multiprocessing.heap.Arena._dir_candidates = []  # type: ignore[attr-defined]
