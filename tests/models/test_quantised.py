"""Quantised checkpoints that are dequantised: the loaded weights are those of the format's definition."""

import json
from pathlib import Path

import pytest
import torch
from progress import collected
from safetensors.torch import load_file, save_file
from tiny import make_tokenizer
from transformers import AutoModelForCausalLM, GptOssConfig, Qwen3Config

from lowtax.models import loading

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "bos_token_id": None,
}
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # E2M1


def mark(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": fields}))
    make_tokenizer().save_pretrained(folder)


def test_mxfp4_experts_of_gpt_oss(tmp_path: Path):
    torch.manual_seed(0)
    config = GptOssConfig(**SIZES, intermediate_size=32, num_local_experts=2, num_experts_per_tok=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    expected = {}
    for name in ("gate_up_proj", "down_proj"):
        key = f"model.layers.0.mlp.experts.{name}"
        experts, inp, out = weights.pop(key).shape
        blocks = torch.randint(0, 256, (experts, out, inp // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 130, (experts, out, inp // 32), dtype=torch.uint8)
        weights |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
        pairs = torch.stack([FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]], -1).flatten(-2)
        values = pairs * 2.0 ** (scales.float()[..., None] - 127)
        expected[key] = values.reshape(experts, out, inp).transpose(1, 2)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    mark(tmp_path, quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    with collected() as lines:
        model = loading.load_model(str(tmp_path), "bfloat16")
    assert any("mxfp4 weights are dequantised" in line for line in lines)
    for key, value in expected.items():
        torch.testing.assert_close(model.get_parameter(key).detach().float(), value.bfloat16().float())
    assert "quantization_config" not in model.config.to_dict()


def test_fp8_blocks(tmp_path: Path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3Config(**SIZES, intermediate_size=128)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    expected = {}
    for key in [key for key in weights if key.endswith("_proj.weight")]:
        out, inp = weights[key].shape
        stored = (weights[key] * 100).to(torch.float8_e4m3fn)
        scale = torch.rand(-(-out // 32), -(-inp // 32))
        weights |= {key: stored, f"{key.removesuffix('.weight')}.weight_scale_inv": scale}
        expected[key] = stored.float() * scale.repeat_interleave(32, 0)[:out].repeat_interleave(32, 1)[:, :inp]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    mark(tmp_path, quant_method="fp8", weight_block_size=[32, 32], activation_scheme="dynamic")
    model = loading.load_model(str(tmp_path), "float32")
    for key, value in expected.items():
        torch.testing.assert_close(model.get_parameter(key).detach().float(), value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", ["mxfp4", "fp8"])
def test_a_mark_on_plain_weights_changes_nothing(tmp_path: Path, method: str):
    torch.manual_seed(0)
    if method == "mxfp4":
        config = GptOssConfig(**SIZES, intermediate_size=32, num_local_experts=2, num_experts_per_tok=1)
    else:
        config = Qwen3Config(**SIZES, intermediate_size=128)
    plain = AutoModelForCausalLM.from_config(config)
    plain.save_pretrained(tmp_path)
    mark(tmp_path, quant_method=method)
    model = loading.load_model(str(tmp_path), "float32")
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter)
