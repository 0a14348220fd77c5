"""What every test shares: no network, a cache of its own, and one tiny model."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before transformers is imported, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep embedded models out of the user's cache, unless LOWTAX_HOME says where they are shared."""
    with pytest.MonkeyPatch.context() as patch:
        if "LOWTAX_HOME" not in os.environ:
            patch.setenv("LOWTAX_HOME", str(tmp_path_factory.mktemp("lowtax-home")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights; read only."""
    from tiny import make_model

    return make_model(tmp_path_factory.mktemp("tiny-llama"))
