"""Garbage collection is off in the block, and afterwards as it was."""

import gc

import pytest

from lowtax.common.imports import uncollected


@pytest.fixture(autouse=True)
def as_before():
    enabled = gc.isenabled()
    yield
    gc.enable() if enabled else gc.disable()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_off_in_the_block_and_then_as_before(enabled: bool):
    gc.enable() if enabled else gc.disable()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() is enabled


def test_an_import_that_fails_leaves_the_collector_as_it_was():
    gc.enable()
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
