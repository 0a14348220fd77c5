"""Tiny random models of architectures that packed rows may not fit: hybrids, windows, sinks, soft caps, other names.

Weights are four times as large as usual, so that what leaks from one example into the next is visible in the loss.
"""

from pathlib import Path
from typing import Any

import torch
from tiny import VOCABULARY, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
PURE = {"state_size": 8, "conv_kernel": 4, "expand": 2}
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 64}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
DROPPED = object()  # an option of `COMMON` that an architecture does not take
OWN: dict[str, dict[str, Any]] = {
    "gpt_oss": {**EXPERTS, "sliding_window": 512},
    "qwen3_5_text": {**LINEAR, "layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {
        **LINEAR,
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {**MAMBA, **EXPERTS, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "jamba": {"mamba_d_state": 8, "mamba_d_conv": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "minimax": {**EXPERTS, "block_size": 16, "layer_types": ["linear_attention", "full_attention"]},
    "mamba": PURE,
    "falcon_mamba": PURE,
    "mamba2": {**PURE, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "gemma2": {"attn_logit_softcapping": 2.0, "sliding_window": 512, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 512, "query_pre_attn_scalar": 8},
    "gemma3": {},
    "gemma": {},
    "cohere": {},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512},
    "mistral": {"sliding_window": 512},
    "mixtral": EXPERTS,
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"head_dim": DROPPED, "new_decoder_architecture": False, "multi_query": True},
    "gpt2": SMALL,
    "gptj": {**SMALL, "rotary_dim": 8},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {"num_attention_heads": 4},
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
}


def make_hybrid(folder: Path, kind: str, scale: float = 4.0, seed: int = 0, **more: Any) -> Path:
    """Save a random model of a kind in `OWN`, or of any causal language model, with a byte tokenizer."""
    tokenizer = make_tokenizer()
    options = COMMON | {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    options |= {"bos_token_id": None} | OWN.get(kind, {}) | more
    if kind == "gemma3":
        text = options | {"query_pre_attn_scalar": 8}
        options = {"text_config": text, "vision_config": VISION, "mm_tokens_per_image": 4}
    config = AutoConfig.for_model(kind, **{name: value for name, value in options.items() if value is not DROPPED})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim >= 2:
                    p.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
