"""4-bit bases: what is refused, and that the weights are those of the checkpoint in 4 bits."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import write_gguf
from progress import collected
from safetensors.torch import load_file
from tiny import make_model

from lowtax.common.errors import UserError
from lowtax.engines.base import load
from lowtax.models import loading, quantised
from lowtax.models.shapes import SHAPES, Lora
from lowtax.study.checks import require_arms
from lowtax.study.recipe import Recipe
from lowtax.training.memory import first_layout, training_memory

CPU = torch.device("cpu")


def test_without_bitsandbytes_the_command_that_installs_it_is_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"precision nf4 needs bitsandbytes: pip install 'lowtax\[quantized\]'\.$"):
        load("hf", str(tiny_model), "nf4", 4)


def test_a_bitsandbytes_without_4_bits_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantised, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(UserError, match=r"on cpu \(.*\): pip install --upgrade 'lowtax\[quantized\]'"):
        quantised.require("nf4", CPU)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": {"all": {"mode": "full"}}}, "Full fine-tuning needs plain weights"),
        ({"engine": "vllm", "arms": {"r1": {"mode": "lora_mlp_r1"}}}, "The engine vllm needs plain weights"),
    ],
)
def test_a_study_is_refused_before_it_loads_anything(changes: dict[str, Any], words: str):
    recipe = Recipe.model_validate({"model": "a/b", "precision": "nf4", "data": ["rows.jsonl"], **changes})
    with pytest.raises(UserError, match=words):
        require_arms(recipe, "nf4")


def test_deepspeed_and_gguf_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="DeepSpeed needs plain weights"):
        loading.precision("nf4", "zero3.json")
    with pytest.raises(UserError, match="A GGUF file needs plain weights"):
        loading.load_model(str(write_gguf(tmp_path / "a.gguf")), "nf4")


def test_the_dry_run_counts_4_bits():
    shape, lora = SHAPES["R1-Distill-Qwen-32B"], Lora(16, ("up_proj",), 0, 63)
    packed, plain = (training_memory(shape, lora=lora, precision=p, tokens=2048) for p in ("nf4", "bfloat16"))
    assert 18e9 < packed.weights < 21e9
    assert plain.weights - packed.weights == pytest.approx((2 - quantised.BITS / 8) * shape.layers * shape.block, 1e-3)
    layout = first_layout(shape, lambda gpus: 2048, lora, "nf4")
    assert str(layout) == "1 GPU"
    assert first_layout(shape, lambda gpus: 10**6, lora, "nf4") is None


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")
    return make_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize(("precision", "dtype"), [("nf4", torch.bfloat16), ("nf4-float32", torch.float32)])
def test_linear_layers_are_in_4_bits_and_the_rest_is_not(base: Path, precision: str, dtype: torch.dtype):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    with collected() as lines:
        model = loading.load_model(str(base), precision)
    assert any("14 linear layers" in line and "4 bits" in line for line in lines)
    stored, packed = load_file(base / "model.safetensors"), 0
    for name, parameter in model.named_parameters():
        whole = stored[name].to(dtype)
        if quantised.is_packed(parameter):
            packed += 1
            assert parameter.quant_state.nested
            expected = dequantize_4bit(*quantize_4bit(whole, quant_type="nf4", compress_statistics=True))
            assert torch.equal(quantised.plain(parameter), expected)
            assert 0.01 < (expected - whole).abs().mean() / whole.abs().mean() < 0.15
        else:
            assert torch.equal(parameter, whole)
            assert quantised.plain(parameter) is parameter
    assert packed == 14


def test_a_weight_takes_the_bits_that_are_stated():
    pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")
    from bitsandbytes.functional import quantize_4bit

    n = 1 << 18
    packed, state = quantize_4bit(torch.randn(n), quant_type="nf4", compress_statistics=True)
    scales = state.absmax.numel() * state.absmax.element_size() + state.state2.absmax.numel() * 4
    assert 8 * (packed.numel() + scales) / n == pytest.approx(quantised.BITS)


def test_a_quantised_checkpoint_is_not_quantised_again(base: Path, tmp_path: Path):
    loading.load_model(str(base), "nf4").save_pretrained(tmp_path)
    loading.load_tokenizer(str(base)).save_pretrained(tmp_path)
    for precision in ("nf4", "float32"):
        with pytest.raises(UserError, match=r"quantised.*: give the same model without quantisation"):
            loading.load_model(str(tmp_path), precision)
