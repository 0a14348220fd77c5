"""Tiny random models of each supported architecture, saved as ordinary Hugging Face folders.

The tokenizer is byte level: one token per byte, so that every text has tokens and every token a text.
"""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lowtax.models.loading import load_model

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
VOCABULARY = 300  # 256 bytes, 3 specials, and rows without a token, as padded vocabularies have
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": False, "head_dim": 8}),
}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}__OPEN__{% endif %}"
)


def make_tokenizer(think: bool = True) -> PreTrainedTokenizerFast:
    """256 bytes and three specials; with `think` the generation prompt ends in an opened think block."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([START, END, PAD])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, pad_token=PAD, additional_special_tokens=[START]
    )
    tokenizer.chat_template = TEMPLATE.replace("__OPEN__", "{{ '<think>\n' }}" if think else "")
    return tokenizer


def make_model(folder: Path, kind: str = "llama", layers: int = 2, seed: int = 0, think: bool = True) -> Path:
    """Save a random model and its tokenizer in `folder`. The same arguments give the same weights."""
    config_class, model_class, own = ARCHITECTURES[kind]
    tokenizer = make_tokenizer(think)
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Larger than the usual 0.02: replies of such a model then depend on their prompt.
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        **own,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, rank: int, modules: list[str], seed: int) -> str:
    """A random LoRA that changes what the model says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(
            load_model(str(base)),
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, init_lora_weights=False),
        )
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return str(folder)
