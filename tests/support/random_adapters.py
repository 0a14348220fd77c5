"""Fixtures: a tiny Qwen2, and adapters of it whose factors are all random."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import make_model
from torch import nn

from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import Placement

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("qwen2"), "qwen2"))


@pytest.fixture(scope="module")
def make(base: str, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """An adapter folder of the base, all factors at random."""

    def made(seed: int = 0, **fields: object) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = adapt(loading.load_model(base), Placement(**fields), base)
            for name, p in model.named_parameters():
                if "lora_" in name:
                    nn.init.normal_(p, std=0.1)
            model.save_pretrained(folder)
        return folder

    return made
