"""Memory of the C library."""

import ctypes
import gc
from pathlib import Path

import pytest
import torch

from lowtax.common.allocator import kept_memory, return_memory

MB = 2**20


def resident() -> int:
    """Return the megabytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // MB


@pytest.fixture(autouse=True)
def glibc() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the C library is not glibc")


def test_freed_blocks_are_kept_until_they_are_returned_or_the_block_ends():
    gc.collect()
    return_memory()  # of other tests
    before = resident()
    with kept_memory():
        for _ in range(2):
            large = torch.ones(256 * MB, dtype=torch.uint8)
            above = torch.ones(MB, dtype=torch.uint8)  # the gap below it is no end of the heap
            del large
            assert resident() >= before + 200
            return_memory()
            assert resident() <= before + 60
        large = torch.ones(256 * MB, dtype=torch.uint8)
        above = torch.ones(MB, dtype=torch.uint8)
        del large
        assert resident() >= before + 200
    assert resident() <= before + 60
    assert above.all()
