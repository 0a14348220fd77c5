"""LoRA on a 4-bit base: the loss is that of transformers, the adapter is a plain one, and methods see the weights."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from progress import collected
from safetensors.torch import load_file
from tiny import make_model

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.engines.base import Request
from lowtax.engines.hf.engine import HF
from lowtax.methods.sites import sites_of
from lowtax.models import loading, quantised
from lowtax.models.merging import merge
from lowtax.models.placement import parse_mode
from lowtax.training.job import Job
from lowtax.training.loop import TrainingRun, train
from lowtax.training.settings import Train

pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")
ROWS = [Conversation(f"What is {i} + {i * i}?", None, f"It is {i + i * i}, I think.") for i in range(8)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("llama"), layers=3)


def job(base: Path, mode: str = "lora_mlp_r2", precision: str = "nf4-float32", **more: object) -> Job:
    placement = parse_mode(mode)
    return Job(
        model=str(base),
        placement=placement if mode == "full" else placement.model_copy(update={"dropout": 0.0}),
        settings=Train(lr=2e-2, steps=8, batch_size=8),
        seed=0,
        precision=precision,
        rows=ROWS,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    with collected() as lines:
        train(job(base), out)
    assert not any("own forward pass" in line for line in lines), "packed rows must be exact on 4-bit bases"
    return out


def test_the_first_loss_is_that_of_transformers_and_it_falls(base: Path, trained: Path, tmp_path: Path):
    losses = [json.loads(line)["loss"] for line in (trained / "steps.jsonl").read_text().splitlines()]
    run = TrainingRun(job(base), tmp_path)
    model = loading.load_model(str(base), "nf4-float32")
    total = tokens = 0.0
    for e in run.examples:
        ids, n = torch.tensor([e.prompt + e.completion]), len(e.completion)
        labels = torch.tensor([[-100] * len(e.prompt) + e.completion])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * n
        tokens += n
    assert losses[0] == pytest.approx(total / tokens, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    plain = loading.load_model(str(base))
    with torch.no_grad():
        assert (plain(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() > 0.1, "4 bits change nothing"


def test_the_adapter_is_a_plain_one_on_the_original_base(base: Path, trained: Path):
    folder = trained / "checkpoint-8"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    stored = load_file(folder / "adapter_model.safetensors")
    assert len(stored) == 3 * 3 * 2
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())
    model = PeftModel.from_pretrained(loading.load_model(str(base)), str(folder))
    (module,) = [m for name, m in model.named_modules() if name.endswith("1.mlp.up_proj")]
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    assert torch.equal(module.lora_B["default"].weight, stored[key])
    assert stored[key].any()


@pytest.mark.parametrize("precision", ["nf4", "nf4-float32"])
def test_replies_are_those_of_transformers_alone(base: Path, trained: Path, precision: str):
    """In bfloat16 the rows have batches of their own, since products round by their shape."""
    adapters = [None, str(trained / "checkpoint-8")]
    engine, replies = HF(str(base), precision, 1 if precision == "nf4" else 4), {}
    for adapter in adapters:
        requests = [Request(f"{i}", ({"role": "user", "content": f"What is {i} + 5?"},), adapter, 12) for i in range(2)]
        found = list(engine.generate(requests))
        model = loading.load_model(str(base), precision)
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        for reply in found:
            (request,) = [r for r in requests if r.id == reply.id]
            ids = torch.tensor([engine.prompter.prompt(request).ids])
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
            )[0, ids.shape[1] :]
            expected = engine.tokenizer.decode(out, skip_special_tokens=True)
            assert reply.text == expected, (adapter, request.id)
        replies[adapter] = sorted(reply.text for reply in found)
    assert len({tuple(texts) for texts in replies.values()}) == 2


@pytest.mark.parametrize("method", [{"name": "orthogonal", "beta": 0.1, "k": 2}, {"name": "pissa"}])
def test_methods_see_the_weights_that_the_products_see(base: Path, tmp_path: Path, method: dict[str, object]):
    run = TrainingRun(job(base, methods=[method]), tmp_path)
    for name, site in sites_of(run.model).items():
        layer = run.model.base_model.model.get_submodule(name).base_layer
        eye = torch.eye(layer.in_features)
        assert torch.allclose(layer(eye).T, site.weight, atol=1e-6)
        assert torch.equal(site.weight, run.probe.weight(name))
    run.finish()
    assert run.step == 8


def test_whole_weights_are_refused(base: Path, tmp_path: Path):
    with pytest.raises(UserError, match="Full fine-tuning needs plain weights, and precision nf4 has them in 4 bits"):
        TrainingRun(job(base, "full", "nf4"), tmp_path)


def test_a_merge_says_that_the_base_was_in_4_bits(base: Path, trained: Path, tmp_path: Path):
    with collected() as lines:
        merge(trained / "checkpoint-8", tmp_path / "merged", dtype="float32")
    assert any("in 4 bits, and is merged into its plain weights" in line for line in lines)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".mlp." in name}
    assert not any(quantised.is_packed(tensor) for tensor in after.values())
