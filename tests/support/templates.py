"""Tokenizers whose chat templates behave like those of the model families, in a few lines each.

Byte level: one token per byte, and one for each special token, so that decoding gives every text back.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lowtax.data import chat, rendering
from lowtax.training.encoding import Example

# DeepSeek-R1-Distill, Qwen and Llama alike: the prompt opens the thought; assistant turns lose theirs.
R1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# DeepSeek-V3.1: off unless asked for, by a switch of another name; the tags stand without line breaks.
V31 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|Assistant|></think>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|Assistant|>' + ('<think>' if thinking is defined and thinking else '</think>') }}{% endif %}"
)
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = TURNS + ASKS
# SmolLM2 and Qwen2.5: a system turn of their own where none is given.
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a model.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
# Qwen3: thinks by itself; off, an empty block stands in the prompt; the last turn is written with a block.
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{% set parts = m['content'].split('</think>') %}"
    "{{ '<think>\n' + parts[0].split('<think>')[-1].strip() * (parts | length - 1) + '\n</think>\n\n' }}"
    "{{ parts[-1].lstrip('\n') }}{% else %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + ASKS + "{% if add_generation_prompt and enable_thinking is defined and "
    "enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
# SmolLM3: the switch is a word in the system turn, and an empty block when off.
SMOLLM3 = (
    "{% set on = enable_thinking is not defined or enable_thinking %}"
    "{{ '<|im_start|>system\n' + ('/think' if on else '/no_think') + '<|im_end|>\n' }}"
    + CHATML
    + "{% if add_generation_prompt "
    "and not on %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Gemma: no system turn.
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' "
    "+ ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
    "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}"
    "{% endif %}"
)
# name -> template, beginning of the text, eos of the tokenizer, other special tokens
FAMILIES: dict[str, tuple[str, str | None, str, list[str]]] = {
    "r1": (R1, "<|begin|>", "<|end|>", ["<|User|>", "<|Assistant|>"]),
    "deepseek-v3.1": (V31, "<|begin|>", "<|end|>", ["<|User|>", "<|Assistant|>"]),
    "chatml": (CHATML, None, "<|im_end|>", ["<|im_start|>"]),
    "smollm2": (DEFAULT_SYSTEM, None, "<|im_end|>", ["<|im_start|>"]),
    "smollm3": (SMOLLM3, None, "<|im_end|>", ["<|im_start|>"]),
    "qwen2-base": (DEFAULT_SYSTEM, None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "qwen3": (QWEN3, None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "llama3": (
        LLAMA3,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
}


def family(name: str, think_token: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a family. With `think_token` the think tags are tokens, not marked special, as in Qwen3."""
    template, begin, end, others = FAMILIES[name]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([token for token in (begin, end, *others, "<|pad|>") if token])
    if think_token:
        inner.add_tokens(["<think>", "</think>"])
    given = {} if begin is None else {"bos_token": begin}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=end, pad_token="<|pad|>", additional_special_tokens=others, **given
    )
    tokenizer.chat_template = template
    return tokenizer


def example(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    thought: str | None,
    answer: str,
    style: str = "standard",
    thinking: chat.Thinking = "default",
) -> Example:
    """One conversation as tokens, row by row: the oracle of `encoding.encode_all`, which does many at once."""
    around = chat.turn(tokenizer, thinking)
    written = chat.write(tokenizer, around, messages, thought, answer, style, thinking)
    prompt, completion = chat.encode(tokenizer, [written.prompt, written.completion])
    return Example(prompt, [*completion, around.end])


def completion_text(prompt: str, thought: str | None, answer: str, style: str = "standard", before: str = "") -> str:
    """What the model should write after `prompt`."""
    return rendering.named(style).completion(prompt, thought, answer, rendering.Markers(before_answer=before))
