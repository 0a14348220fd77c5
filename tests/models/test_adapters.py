"""Adapters read as factors are what PEFT adds; written ones are what plain PEFT loads."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny import make_model
from transformers import AutoModelForCausalLM

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.models.adapters import (
    CONFIG,
    WEIGHTS,
    Adapter,
    check_adapter,
    check_base,
    extras,
    fingerprint,
    plain_config,
    read_adapter,
    write_adapter,
)

IDS = torch.arange(40).view(2, 20)
CONFIGS: list[dict[str, Any]] = [
    {},
    {"r": 1, "lora_alpha": 16, "target_modules": ["up_proj"]},
    {"use_rslora": True, "rank_pattern": {"q_proj": 4}},
    {"rank_pattern": {r"layers.0.self_attn.q_proj": 5, "q_proj": 3}, "alpha_pattern": {r"layers.1.mlp.up_proj": 3}},
    {"target_modules": ["embed_tokens", "down_proj"]},
    {"target_modules": "all-linear"},
]


def make(folder: Path, base: Path, save_embeddings: bool = False, **config: Any) -> dict[str, torch.Tensor]:
    """Save an adapter with factors that are not zero; returns what PEFT adds to each weight."""
    given = {"r": 2, "lora_alpha": 7, "target_modules": ["up_proj", "q_proj"], "task_type": "CAUSAL_LM"} | config
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**given))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=noise))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder, save_embedding_layers=save_embeddings)
    return deltas(model)


def deltas(model: PeftModel) -> dict[str, torch.Tensor]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {n.removeprefix("base_model.model."): m.get_delta_weight("default").detach() for n, m in layers.items()}


def loaded(base: Path, adapter: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("qwen"), "qwen3")


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_factors_are_what_peft_adds_and_come_back(tmp_path: Path, qwen: Path, config: dict[str, Any]):
    wanted = make(tmp_path / "one", qwen, **config)
    found = read_adapter(tmp_path / "one")
    assert found.factors.keys() == wanted.keys()
    for name, dense in wanted.items():
        torch.testing.assert_close(found.factors[name].dense(), dense, msg=name)
    assert found.base == str(qwen)
    write_adapter(tmp_path / "two", found)
    again, model = read_adapter(tmp_path / "two"), loaded(qwen, tmp_path / "two")
    assert set(again.scales.values()) == {1.0}
    assert again.embeddings == found.embeddings
    for name, dense in deltas(model).items():
        torch.testing.assert_close(dense, wanted[name], msg=name)
        assert again.factors[name].rank == found.factors[name].rank
    torch.testing.assert_close(model(IDS).logits, loaded(qwen, tmp_path / "one")(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_copies_of_the_embeddings_are_no_part_of_the_update(tmp_path: Path, qwen: Path, target: str):
    wanted = make(tmp_path, qwen, save_embeddings=True, target_modules=[target])
    assert len(load_file(tmp_path / "adapter_model.safetensors")) > 2
    (found,) = read_adapter(tmp_path).factors.values()
    (dense,) = wanted.values()
    torch.testing.assert_close(found.dense(), dense)


def test_scales_of_modules_follow_the_patterns(tmp_path: Path, qwen: Path):
    make(tmp_path, qwen, use_rslora=True, rank_pattern={"q_proj": 4}, alpha_pattern={"layers.1.mlp.up_proj": 3})
    scales = read_adapter(tmp_path).scales
    assert scales["model.layers.0.self_attn.q_proj"] == 7 / 2
    assert scales["model.layers.0.mlp.up_proj"] == pytest.approx(7 / 2**0.5)
    assert scales["model.layers.1.mlp.up_proj"] == pytest.approx(3 / 2**0.5)


def test_edited_updates_of_other_ranks(tmp_path: Path, qwen: Path):
    wanted = make(tmp_path / "one", qwen)
    one = read_adapter(tmp_path / "one")
    names = sorted(wanted)
    edited = dict(one.factors)
    edited[names[0]] = one.factors[names[0]].truncated(0)
    edited[names[1]] = one.factors[names[1]].plus(one.factors[names[1]])
    edited[names[2]] = one.factors[names[2]].truncated(1)
    write_adapter(tmp_path / "two", Adapter(one.config, one.scales, edited))
    found = deltas(loaded(qwen, tmp_path / "two"))
    assert found[names[0]].count_nonzero() == 0
    torch.testing.assert_close(found[names[1]], 2 * wanted[names[1]])
    assert torch.linalg.matrix_rank(found[names[2]], atol=1e-4) == 1
    torch.testing.assert_close(found[names[3]], wanted[names[3]])
    config = plain_config(tmp_path / "two")
    assert (config.task_type, config.base_model_name_or_path) == ("CAUSAL_LM", str(qwen))


def test_fewer_modules_may_be_written(tmp_path: Path, qwen: Path):
    make(tmp_path / "one", qwen, layers_to_transform=[1])
    one = read_adapter(tmp_path / "one")
    (name,) = [name for name in one.factors if name.endswith("up_proj")]
    write_adapter(tmp_path / "two", Adapter(one.config, one.scales, {name: one.factors[name]}))
    assert deltas(loaded(qwen, tmp_path / "two")).keys() == {name}


def test_float16_factors_are_read_as_float32(tmp_path: Path, qwen: Path):
    make(tmp_path, qwen)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: t.half() for name, t in load_file(file).items()}, file)
    found = next(iter(read_adapter(tmp_path).factors.values()))
    assert isinstance(found, Factors)
    assert found.a.dtype == found.b.dtype == torch.float32


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, of DoRA and biases
@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias: all"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
        ({"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]}, "target_parameters"),
    ],
)
def test_what_is_more_than_a_lora_is_refused(tmp_path: Path, qwen: Path, config: dict[str, Any], named: str):
    make(tmp_path, qwen, **config)
    with pytest.raises(UserError, match=rf"more than W \+ s B A .*it has {named}"):
        read_adapter(tmp_path)


def test_what_a_caller_supports_is_not_refused(tmp_path: Path, qwen: Path):
    make(tmp_path, qwen)
    config = json.loads((tmp_path / CONFIG).read_text()) | {"fan_in_fan_out": True, "use_dora": True}
    assert extras(config) == {"use_dora": "use_dora", "fan_in_fan_out": "fan_in_fan_out"}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"\(it has use_dora\): merge it\.$"):
        check_adapter(tmp_path, supported=["fan_in_fan_out"], remedy="merge it")
    assert check_adapter(tmp_path, supported=["fan_in_fan_out", "use_dora"]) == config


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, qwen: Path):
    make(tmp_path, qwen)
    check_base(tmp_path, str(qwen))
    with pytest.raises(UserError, match=r"to be compared with 'owner/other'.*add --base-is-the-same"):
        check_base(tmp_path, "owner/other")
    with pytest.raises(UserError, match=r"name it by --base if both"):
        check_base(tmp_path, "owner/other", "name it by --base")


def test_a_fingerprint_is_the_hash_of_the_files(tmp_path: Path):
    (tmp_path / CONFIG).write_bytes(b"config")
    with pytest.raises(UserError, match=f"it has no {WEIGHTS}"):
        fingerprint(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    assert fingerprint(tmp_path) == hashlib.sha256(b"configweights").hexdigest()
    assert fingerprint(tmp_path, weights_only=True) == hashlib.sha256(b"weights").hexdigest()
    assert fingerprint(tmp_path, prefix=b"x") == hashlib.sha256(b"xconfigweights").hexdigest()


def test_adapters_are_checked_without_torch_or_peft():
    code = "import sys, lowtax.models.adapters; print({'torch', 'peft', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_is_no_adapter_is_refused(tmp_path: Path, qwen: Path):
    with pytest.raises(UserError, match=r"is not a PEFT adapter folder: it has no adapter_config.json"):
        read_adapter(tmp_path)
    make(tmp_path, qwen)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    one = next(name for name in tensors if "lora_A" in name)
    save_file({name: t for name, t in tensors.items() if name != one}, file)
    with pytest.raises(UserError, match=r"only one factor of model.layers"):
        read_adapter(tmp_path)
    save_file(tensors | {"base_model.model.model.norm.weight": torch.ones(3)}, file)
    with pytest.raises(UserError, match=r"norm.weight \(3,\), which is not a LoRA factor"):
        read_adapter(tmp_path)
    file.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"is not a safetensors file"):
        read_adapter(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(qwen)
    other = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    get_peft_model(model, other).save_pretrained(tmp_path / "ia3")
    with pytest.raises(UserError, match=r"holds an adapter of type IA3, and lowtax handles LoRA only"):
        read_adapter(tmp_path / "ia3")
