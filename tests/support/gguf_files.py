"""A tiny GGUF file: a two-layer Llama in 8-bit blocks, with a byte tokenizer."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
HIDDEN, INNER, LAYERS, HEADS, SHARED = 64, 96, 2, 4, 2


def write_gguf(path: Path, seed: int = 0) -> Path:
    """Write the file, with random weights."""
    tokens = [*_bytes(), "<|im_start|>", "<|im_end|>"]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(seed)
    shared = HIDDEN // HEADS * SHARED
    shapes = {"token_embd.weight": (len(tokens), HIDDEN)}
    for layer in range(LAYERS):
        sizes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (shared, HIDDEN), "attn_v": (shared, HIDDEN)}
        sizes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN)}
        sizes |= {"ffn_down": (HIDDEN, INNER)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in sizes.items()}
    for name, shape in shapes.items():
        block = GGMLQuantizationType.Q8_0
        weight = quantize(random.normal(0, 0.3, shape).astype(np.float32), block)
        writer.add_tensor(name, weight, raw_dtype=block)
    for name in ["output_norm", *(f"blk.{n}.{kind}_norm" for n in range(LAYERS) for kind in ("attn", "ffn"))]:
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _bytes() -> list[str]:
    """Return the letters that stand for the 256 bytes in byte-level BPE, and two merged tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [n for n in range(256) if n not in plain]
    return [chr(n) for n in plain] + [chr(256 + n) for n in range(len(other))] + ["he", "ll"]
