"""Names of matrices in files are those of the loaded model, also where transformers renames them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Lfm2Config,
    Mistral3Config,
    NemotronHConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
    Qwen3VLConfig,
)

from lowtax.common.errors import UserError
from lowtax.models import loading
from lowtax.models.frames import frame
from lowtax.models.lora import targets_in, trainable_summary
from lowtax.models.names import in_layer, layer_of
from lowtax.models.placement import Placement, parse_mode
from lowtax.models.weights import open_weights

TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "bos_token_id": None,
}
ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**TEXT),
    "gemma3": lambda: Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4),
    "mistral3": lambda: Mistral3Config(
        text_config={**TEXT, "model_type": "mistral"}, vision_config={**VISION, "model_type": "pixtral"}
    ),
    "qwen3_vl": lambda: Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": ROPE},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "depth": 1, "num_heads": 2, "out_hidden_size": 32,
                       "deepstack_visual_indexes": [0]},
    ),
    "nemotron_h": lambda: NemotronHConfig(
        **{key: value for key, value in TEXT.items() if key != "num_hidden_layers"},
        layers_block_type=["attention", "mlp"],
        mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=8, n_groups=1,
    ),
}  # fmt: skip


def build(config: PretrainedConfig, folder: Path) -> Path:
    wrapped = loading.model_class(config) is AutoModelForImageTextToText
    kind = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
    torch.manual_seed(0)
    kind.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_matrices_have_the_names_of_the_loaded_model(tmp_path: Path, name: str):
    folder = build(CONFIGS[name](), tmp_path / "model")
    model, weights = loading.load_model(str(folder)), open_weights(str(folder))
    own = dict(model.named_parameters())
    assert len(weights) > 5
    for module in weights:
        torch.testing.assert_close(weights[module], own[f"{module}.weight"].detach())
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert not linear - set(weights) - {"lm_head"}
    assert {n for n, _ in frame(str(folder)).named_modules()} == {n for n, _ in model.named_modules()}


@pytest.mark.parametrize("name", ["gemma3", "mistral3", "qwen3_vl"])
def test_placements_stay_in_the_text_decoder(tmp_path: Path, name: str):
    folder = build(CONFIGS[name](), tmp_path / "model")
    summary = trainable_summary(str(folder), parse_mode("lora_qkvo_mlp_r4"))
    assert len(summary.modules) == 2 * 7
    assert all("language_model.layers" in module for module in summary.modules)
    one = trainable_summary(str(folder), parse_mode("lora_q_proj_only_from1_to1_r1"))
    assert (len(one.modules), one.layers) == (1, [1])


def test_a_vision_tower_is_adapted_where_it_is_named(tmp_path: Path):
    folder = build(CONFIGS["gemma3"](), tmp_path / "model")
    placement = Placement(modules=("vision_tower.*q_proj",), rank=1)
    assert all("vision_tower" in module for module in trainable_summary(str(folder), placement).modules)


def test_layers_of_families_with_other_names():
    assert layer_of("transformer.h.3.attn.c_attn") == layer_of("backbone.layers.3.mixer.in_proj") == 3
    assert layer_of("transformer.blocks.3.ffn.up_proj") == 3
    assert in_layer("transformer.blocks.3.ffn.up_proj") == "ffn.up_proj"


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (Phi3Config(**{**TEXT, "pad_token_id": 0, "eos_token_id": 1}), "mlp.down_proj, mlp.gate_up_proj"),
        (Lfm2Config(**TEXT, layer_types=["conv", "full_attention"]), "feed_forward.w1"),
    ],
)
def test_the_names_that_a_family_has_instead_are_listed(config: PretrainedConfig, names: str):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=f"no linear module 'up_proj' .*its layers have .*{names}"):
        targets_in(model, parse_mode("lora_up_proj_only_r1"))
