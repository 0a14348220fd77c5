"""Our loop beside TRL's SFTTrainer: the same model, adapter, batches and settings give the same losses and weights.

Without warm-up, as in the reference: transformers' begins with a step at learning rate 0, ours does not.
"""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model

from lowtax import models
from lowtax.adapt import adapt
from lowtax.data import Conversation
from lowtax.encoding import encode_all
from lowtax.packing import Batches
from lowtax.placement import parse_mode
from lowtax.recipe import Train
from lowtax.train import Job, train

ROWS = [Conversation(f"What is {i} + {i * i}?", f"{i} + {i * i}.", f"It is {i + i * i}, I think.") for i in range(10)]
SETTINGS = Train(lr=3e-3, steps=10, batch_size=4, warmup_steps=0, weight_decay=0.01, max_grad_norm=0.5)


def trl_losses(folder: Path, mode: str, out: Path) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        tokenizer = models.load_tokenizer(str(folder))
        examples = encode_all(tokenizer, ROWS, 1024).examples
        plan = Batches(len(ROWS), SETTINGS.batch_size, 0)
        order = [examples[i] for step in range(10) for i in plan[step]]
        torch.manual_seed(0)
        placement = parse_mode(mode).model_copy(update={"dropout": 0.0})
        model = adapt(models.load_model(str(folder)), placement, str(folder))
        config = SFTConfig(
            output_dir=str(out),
            max_steps=10,
            per_device_train_batch_size=4,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            learning_rate=SETTINGS.lr,
            lr_scheduler_type="cosine",
            warmup_steps=SETTINGS.warmup_steps,
            weight_decay=SETTINGS.weight_decay,
            max_grad_norm=SETTINGS.max_grad_norm,
            train_sampling_strategy="sequential",
            logging_steps=1,
            disable_tqdm=True,
            save_strategy="no",
        )
        rows = [{"input_ids": e.prompt + e.completion, "labels": [-100] * len(e.prompt) + e.completion} for e in order]
        trainer = SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer.train()
        trainer.save_model(str(out))
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("mode", ["full", "lora_qkvo_mlp_r2", "lora_up_proj_only_from1_to2_r1"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_losses_and_weights_are_those_of_sft_trainer(tmp_path: Path, kind: str, mode: str):
    pytest.importorskip("trl", reason="TRL is not installed: pip install 'lowtax[dev]'")
    folder = make_model(tmp_path / "m", kind, layers=3)
    theirs = trl_losses(folder, mode, tmp_path / "trl")
    wanted = Job(str(folder), parse_mode(mode), SETTINGS, 0, "float32", ROWS)
    wanted = replace(wanted, placement=wanted.placement.model_copy(update={"dropout": 0.0}))
    train(wanted, tmp_path / "ours", lambda _: None)
    ours = [json.loads(line)["loss"] for line in (tmp_path / "ours" / "steps.jsonl").read_text().splitlines()]
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0]
    name = "model.safetensors" if mode == "full" else "adapter_model.safetensors"
    one, two = load_file(tmp_path / "ours" / "checkpoint-10" / name), load_file(tmp_path / "trl" / name)
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-2, atol=1e-4)
