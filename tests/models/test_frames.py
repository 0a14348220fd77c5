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
    Mistral3Config,
    NemotronHConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3VLConfig,
)

from lowtax.models import loading
from lowtax.models.frames import frame
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
