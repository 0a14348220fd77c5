"""Tiny random models of many families, for the matrix of what lowtax does with each.

Two or four layers, width 64, the byte tokenizer of `tiny`. A family is a configuration class of transformers and the
fields that differ from `COMMON`.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import make_tokenizer

from lowtax.models import loading

COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "bos_token_id": None,
}
HEADS = {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # dense decoders
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", HEADS),
    "ministral": ("MinistralConfig", HEADS),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", HEADS),
    "gemma": ("GemmaConfig", HEADS),
    "gemma2": ("Gemma2Config", HEADS | {"sliding_window": 64}),
    "gemma3_text": ("Gemma3TextConfig", HEADS | {"sliding_window": 64}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {}),
    "glm": ("GlmConfig", HEADS),
    "glm4": ("Glm4Config", HEADS),
    "cohere": ("CohereConfig", {}),
    "cohere2": ("Cohere2Config", HEADS | {"sliding_window": 64}),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 64}),
    "granite": ("GraniteConfig", {}),
    "smollm3": ("SmolLM3Config", {}),
    "stablelm": ("StableLmConfig", {}),
    "starcoder2": ("Starcoder2Config", {}),
    "seed_oss": ("SeedOssConfig", HEADS),
    "hunyuan": ("HunYuanDenseV1Config", HEADS),
    "exaone4": ("Exaone4Config", {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}),
    "ernie": ("Ernie4_5Config", HEADS),
    "nemotron": ("NemotronConfig", {}),
    "apertus": ("ApertusConfig", {}),
    "arcee": ("ArceeConfig", HEADS),
    "bitnet": ("BitNetConfig", {}),
    "helium": ("HeliumConfig", HEADS),
    # mixtures of experts
    "mixtral": ("MixtralConfig", LOCAL_EXPERTS),
    "qwen2_moe": ("Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS | HEADS),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("GraniteMoeConfig", LOCAL_EXPERTS),
    "deepseek_v2": ("DeepseekV2Config", LATENT | ROUTED | {"head_dim": 8}),
    "deepseek_v3": ("DeepseekV3Config", LATENT | ROUTED),
    "glm4_moe": ("Glm4MoeConfig", ROUTED | HEADS),
    "ernie_moe": ("Ernie4_5_MoeConfig", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32} | HEADS),
    "hunyuan_moe": ("HunYuanMoEV1Config", {"num_experts": 4, "moe_topk": 2} | HEADS),
    "gpt_oss": ("GptOssConfig", LOCAL_EXPERTS | HEADS | {"sliding_window": 64}),
    "minimax": ("MiniMaxConfig", LOCAL_EXPERTS | HEADS | HYBRID | {"block_size": 32}),
    "llama4_text": ("Llama4TextConfig", LOCAL_EXPERTS | HEADS | {"intermediate_size_mlp": 128}),
    # convolution, recurrence and linear attention
    "qwen3_next": ("Qwen3NextConfig", EXPERTS | LINEAR | HYBRID | HEADS | {"shared_expert_intermediate_size": 32}),
    "qwen3_5_text": ("Qwen3_5TextConfig", LINEAR | HYBRID | HEADS),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    "falcon_h1": ("FalconH1Config", MAMBA | HEADS | {"mamba_d_ssm": 128}),
    "granite_hybrid": (
        "GraniteMoeHybridConfig",
        LOCAL_EXPERTS | MAMBA | {"shared_intermediate_size": 64, "layer_types": ["mamba", "attention"]},
    ),
    "jamba": (
        "JambaConfig",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "mamba": ("MambaConfig", {"state_size": 8}),
    "mamba2": ("Mamba2Config", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1}),
    # older names of layers and modules
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gptj": ("GPTJConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 8}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
    # text decoders inside of wrappers
    "gemma3": (
        "Gemma3Config",
        {"text": HEADS | {"sliding_window": 64}, "vision_config": VISION, "mm_tokens_per_image": 4},
    ),
    "mistral3": (
        "Mistral3Config",
        {"text": HEADS | {"model_type": "mistral"}, "vision_config": VISION | {"model_type": "pixtral"}},
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {
            "text": HEADS | {"rope_parameters": MROPE},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "depth": 1,
                "num_heads": 2,
                "out_hidden_size": 64,
                "deepstack_visual_indexes": [0],
            },
        },
    ),
}


def build(name: str, folder: Path) -> Path:
    """Save the random model of a family with its tokenizer, and return the folder."""
    kind, own = FAMILIES[name]
    make = getattr(transformers, kind)
    if "text" in own:
        rest = {key: value for key, value in own.items() if key != "text"}
        config = make(text_config=COMMON | own["text"], **rest)
    else:
        config = make(**COMMON | own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = loading.model_class(config).from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(3)  # replies that depend on their prompt
    model.generation_config.eos_token_id = 257
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
