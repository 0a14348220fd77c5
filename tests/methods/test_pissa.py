"""PiSSA starts at the base model, in its strongest directions, and saves an ordinary adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import make_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from lowtax.common.errors import UserError
from lowtax.common.linalg import top_singular
from lowtax.data.conversations import Conversation
from lowtax.methods.sites import sites_of
from lowtax.models.adapters import check_adapter
from lowtax.models.placement import Placement
from lowtax.training.job import Job
from lowtax.training.loop import TrainingRun
from lowtax.training.settings import Train

ROWS = [Conversation(f"What is {i}?", f"{i}.", f"It is {i}, I think.") for i in range(6)]
IDS = torch.arange(40, 70)[None]


def job(model: Path, rank: int = 4, **settings: Any) -> Job:
    values = {"lr": 1e-3, "steps": 6, "batch_size": 3, "weight_decay": 0.5, "warmup_steps": 0} | settings
    return Job(
        model=str(model),
        placement=Placement(modules=("q_proj", "up_proj", "down_proj"), rank=rank, alpha=12, dropout=0.1),
        settings=Train.model_validate(values),
        seed=0,
        precision="float32",
        rows=ROWS,
        methods=[{"name": "pissa"}],
    )


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS).logits.float()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_start_is_the_base_in_its_strongest_directions(tmp_path: Path, kind: str):
    folder = make_model(tmp_path / "m", kind)
    run = TrainingRun(job(folder), tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(run.model), logits(base), rtol=0, atol=1e-5)
    for site in sites_of(run.model).values():
        U, S, V = top_singular(site.weight, 2)
        trained = site.scale * site.b[:, :2] @ site.a[:2]
        torch.testing.assert_close(trained, (U * S) @ V.T, rtol=1e-4, atol=1e-5)


def test_the_first_step_is_that_of_peft_s_pissa(tiny_model: Path, tmp_path: Path):
    """PEFT trains rank 2 on W - B0 A0; ours of rank 4 on W has the gradients of B and A, whatever alpha is."""
    run = TrainingRun(job(tiny_model), tmp_path)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["up_proj"], init_lora_weights="pissa", lora_dropout=0.0)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    own = sites_of(run.model)
    for name, site in sites_of(peft).items():
        torch.testing.assert_close(
            site.b @ site.a, own[name].scale * own[name].b[:, :2] @ own[name].a[:2], rtol=1e-3, atol=1e-4
        )


def test_the_constant_half_stays_and_the_adapter_is_plain(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model), tmp_path)
    sites = sites_of(run.model)
    before = {name: (site.a.detach().clone(), site.b.detach().clone()) for name, site in sites.items()}
    run.finish()
    for name, site in sites.items():
        a, b = before[name]
        assert torch.equal(site.a[2:], a[2:])
        assert torch.equal(site.b[:, 2:], b[:, 2:])
        assert site.delta().norm() > 1e-4
    folder = tmp_path / "checkpoint-6"
    check_adapter(folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    untrained = logits(base)
    loaded = PeftModel.from_pretrained(base, folder)
    assert torch.equal(logits(loaded), logits(run.model))
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), untrained)


@pytest.mark.parametrize(("rank", "says"), [(3, "rank 3 .* is odd"), (66, "rank of at most 32")])
def test_ranks_that_cannot_be(tiny_model: Path, tmp_path: Path, rank: int, says: str):
    with pytest.raises(UserError, match=says):
        TrainingRun(job(tiny_model, rank), tmp_path)


@pytest.mark.parametrize(
    ("field", "says"), [("dora", "plain LoRA"), ("use_dora", "plain LoRA"), ("init_lora_weights", "methods: .*pissa")]
)
def test_what_no_engine_serves_is_refused_with_a_way(field: str, says: str):
    with pytest.raises(UserError, match=says):
        Placement.model_validate({field: True})
