"""Fixtures for all tests: no model hub, one tiny model, and the folders of local copies of data sets.

The embedded model lives in the user's cache, as in use.
"""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import LONGEST, PUBLISHED, TESTS

# Before transformers is imported, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
quick = Path(__file__).parent / "support" / "as_installed"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(quick), os.environ.get("PYTHONPATH"))))
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background, where tests of Ctrl-C would fail
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Exempt torch, transformers and the collected tests from garbage collection, which else takes half of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process has one left when the others have nothing to do."""
    order = {TESTS / f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights; read only."""
    from tiny import make_model

    return make_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def one_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this machine are copies of one process for all tests that use this, which imports torch once."""
    from worked import OfOneTemplate

    monkeypatch.setattr("lowtax.study.units.pools.Processes", OfOneTemplate)


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which local copies of prompt sets and of task files are searched."""
    return _looked_in(tmp_path, monkeypatch)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real copies, which not every machine has."""
    files = PUBLISHED
    if not files.is_dir():
        pytest.skip("the published prompt and task files are not on this machine")
    return _looked_in(files, monkeypatch)


def _looked_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from lowtax.benchmarks.catalog import TASK_COPIES
    from lowtax.data.catalog import PROMPT_COPIES

    for copies in (PROMPT_COPIES, TASK_COPIES):
        monkeypatch.setenv(copies.variable, str(folder))
    return folder
