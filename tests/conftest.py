"""What every test shares: no model hub, and one tiny model. The embedded model lives in the user's cache, as in use."""

import os
from pathlib import Path

# Before transformers is imported, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights; read only."""
    from tiny import make_model

    return make_model(tmp_path_factory.mktemp("tiny-llama"))
