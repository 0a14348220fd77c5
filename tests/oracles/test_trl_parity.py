"""Our loop beside TRL's SFTTrainer: the same model, adapter, batches and settings give the same losses and weights.

Without warm-up, as in the reference: transformers' begins with a step at learning rate 0, ours does not. How TRL is
called is what the benchmarks call it with (`bench/training.py`), in float32.
"""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from places import ROOT
from safetensors.torch import load_file
from tiny import make_model

from lowtax.data.conversations import Conversation
from lowtax.models import loading
from lowtax.models.placement import parse_mode
from lowtax.training.encoding import encode_all
from lowtax.training.job import Job
from lowtax.training.loop import train
from lowtax.training.settings import Execution, Train

sys.path.insert(0, str(ROOT / "bench"))
import training

ROWS = [Conversation(f"What is {i} + {i * i}?", f"{i} + {i * i}.", f"It is {i + i * i}, I think.") for i in range(10)]
SETTINGS = Train(lr=3e-3, steps=10, batch_size=4, warmup_steps=0, weight_decay=0.01, max_grad_norm=0.5)


@pytest.mark.parametrize("mode", ["full", "lora_qkvo_mlp_r2", "lora_up_proj_only_from1_to2_r1"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_losses_and_weights_are_those_of_sft_trainer(tmp_path: Path, kind: str, mode: str):
    pytest.importorskip("trl", reason="TRL is not installed: pip install 'lowtax[dev]'")
    folder = make_model(tmp_path / "m", kind, layers=3)
    tokenizer = loading.load_tokenizer(str(folder))
    task = training.Task(
        load=lambda dtype: loading.load_model(str(folder), dtype),
        model=str(folder),
        tokenizer=tokenizer,
        placement=parse_mode(mode).model_copy(update={"dropout": 0.0}),
        settings=SETTINGS,
        rows=ROWS,
        examples=encode_all(tokenizer, ROWS, 1024).examples,
        precision="float32",
        execution=Execution(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = training.trl(task, tmp_path / "trl", bf16=False, gradient_checkpointing=False).losses
    job = Job(model=str(folder), placement=task.placement, settings=SETTINGS, seed=0, precision="float32", rows=ROWS)
    train(job, tmp_path / "ours")
    ours = [json.loads(line)["loss"] for line in (tmp_path / "ours" / "steps.jsonl").read_text().splitlines()]
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0]
    name = "model.safetensors" if mode == "full" else "adapter_model.safetensors"
    one, two = (load_file(tmp_path / side / "checkpoint-10" / name) for side in ("ours", "trl"))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-2, atol=1e-4)
