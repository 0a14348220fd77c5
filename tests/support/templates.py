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

# --- models whose thoughts are not in `<think>` tags, or in tags with a layout of their own

# gpt-oss: channels; a thought is a message of its own, and the last turn ends with another token than earlier ones.
GPT_OSS = (
    "{{ '<|start|>system<|message|>Reasoning: ' + (reasoning_effort | default('medium')) + '<|end|>' }}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if loop.last and 'thinking' in m %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# Gemma 4: writes a thought only before a call of a tool; without the switch the prompt closes an empty one.
GEMMA4 = (
    "{% set on = enable_thinking | default(false) %}{{ bos_token }}{% if on %}{{ '<|turn>system\n<|think|><turn|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{% if m.reasoning and m.tool_calls %}{{ '<|channel>thought\n' + m.reasoning + '\n<channel|>' }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '<|tool_call>' + call.function.name + '<tool_call|>' }}{% endfor %}"
    "{{ m.content | trim + '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}"
    "{% if not on %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"
)
SEED = (
    "{% set budget = thinking_budget | default(-1) %}{% for m in messages %}{{ '<seed:bos>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<seed:think>' + m.reasoning_content + '</seed:think>\n' }}{% endif %}"
    "{{ m.content + '<seed:eos>' }}{% endfor %}{% if add_generation_prompt %}{{ '<seed:bos>assistant\n' }}"
    "{% if budget == 0 %}{{ '<seed:think></seed:think>' }}{% endif %}{% endif %}"
)
# Magistral: a thought is a part of the content.
MAGISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'thinking' %}{{ '[THINK]' + part.thinking + '[/THINK]' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
)
# Command-R7B: always opens the next turn; several tokens end one; thoughts only before a call of a tool.
COMMAND = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"
    "{% if m.tool_calls %}{{ '<|START_THINKING|>' }}{{ m.reasoning_content }}{{ '<|END_THINKING|><|START_ACTION|>[]' }}"
    "{{ '<|END_ACTION|>' }}{% else %}{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}{% endif %}"
    "{{ '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"
    "{% if not enable_thinking %}{{ '<|START_THINKING|><|END_THINKING|>' }}{% endif %}"
)
# Command A reasoning: the prompt opens the thought.
COMMAND_A = (
    "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}"
    "{{ '<|CHATBOT_TOKEN|>' if m.role == 'assistant' else '<|USER_TOKEN|>' }}"
    "{% if m.thinking %}{{ '<|START_THINKING|>' + m.thinking + '<|END_THINKING|>' }}{% endif %}"
    "{{ '<|START_TEXT|>' + m.content + '<|END_TEXT|><|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>' }}"
    "{% if reasoning_effort == 'none' %}{{ '<|END_THINKING|>' }}{% endif %}{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
    "{{ '\n<think>' + (m.reasoning_content or '') + '</think>\n' + m.content }}{% else %}{{ '\n' + m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n<think></think>' }}{% endif %}{% endif %}"
)
KIMI = (
    "{% set on = thinking | default(true) %}{% for m in messages %}{{ '<|open|>message ' + m.role + '<|sep|>' }}"
    "{% if m.role == 'assistant' %}{% if on %}{{ '<|open|>think<|sep|>' + (m.get('reasoning') or '') }}"
    "{{ '<|close|>think<|sep|>' }}{% endif %}{{ '<|open|>response<|sep|>' + m.content + '<|close|>response<|sep|>' }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|close|>message<|sep|><|end_of_msg|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|open|>message assistant<|sep|><|open|>' }}"
    "{{ ('think' if on else 'response') + '<|sep|>' }}{% endif %}"
)
MINIMAX = (
    "{% for m in messages %}{{ ']~b]' + m.role + '\n' }}{% if m.role == 'assistant' %}{% if m.reasoning_content %}"
    "{{ '<mm:think>' + m.reasoning_content }}{% endif %}{{ '</mm:think>' }}{% endif %}{{ m.content + '[e~[\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ ']~b]assistant\n' }}{% endif %}"
)
# Hunyuan 3: thinks only if its effort is set.
HUNYUAN = (
    "{% set effort = reasoning_effort | default('no_think') %}{% for m in messages %}{{ '<hy_' + m.role + '>' }}"
    "{% if m.role == 'assistant' %}{{ '<think:opensource>' + (m.reasoning_content or '') + '</think:opensource>' }}"
    "{% endif %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<hy_assistant><think:opensource>' }}"
    "{% if effort == 'no_think' %}{{ '</think:opensource>' }}{% endif %}{% endif %}"
)
# Apriel: the words are sentences, which only the prompt has at the beginning.
APRIEL = (
    "{% for m in messages %}{{ '<|begin_' + m.role + '|>\n' }}{% if m.thought %}"
    "{{ m.thought + '\n[BEGIN FINAL RESPONSE]\n' }}{% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' and not loop.last %}{{ '\n<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|begin_assistant|>\nHere are my reasoning steps:\n' }}{% endif %}"
)
# Solar-Open: a thought ends with the token that ends a turn.
SOLAR = (
    "{% for m in messages %}{% if m.reasoning %}{{ '<|begin|>assistant<|think|>' + m.reasoning + '<|end|>' }}"
    "{% endif %}"
    "{{ '<|begin|>' + m.role + '<|content|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|begin|>assistant' }}{% endif %}"
)
# Apertus: the content is an object of blocks.
APERTUS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user_start|>' + m.content + '<|user_end|>' }}"
    "{% else %}{{ '<|assistant_start|>' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for block in m.content.blocks %}{% if block.type == 'thoughts' %}"
    "{{ '<|inner_prefix|>' + block.text + '<|inner_suffix|>' }}{% else %}{{ block.text }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|assistant_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant_start|>' }}{% endif %}"
)
# R1's first release: the model opens the thought itself.
R1_FIRST = R1.replace(r"<think>\n", "").replace("<think>\n", "")
# Mistral v1: a space before every answer, and no thoughts.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# Templates that were written for calls of tools, and meet none.
TOOL_USE = "{% for tool in tools %}{{ tool.name }}{% endfor %}" + CHATML
TURN_TOKENS = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"]
THOUGHT_TOKENS = ["<|START_THINKING|>", "<|END_THINKING|>"]
THINKERS: dict[str, tuple[str, str | None, str, list[str]]] = {
    "gpt-oss": (GPT_OSS, None, "<|return|>", ["<|start|>", "<|end|>", "<|message|>", "<|channel|>"]),
    "gemma4": (
        GEMMA4,
        "<bos>",
        "<eos>",
        ["<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool_call>", "<tool_call|>"],
    ),
    "seed": (SEED, "<seed:bos>", "<seed:eos>", ["<seed:think>", "</seed:think>"]),
    "magistral": (MAGISTRAL, "<s>", "</s>", ["[INST]", "[/INST]", "[THINK]", "[/THINK]"]),
    "command-r7b": (
        COMMAND,
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        [*TURN_TOKENS, *THOUGHT_TOKENS, "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_ACTION|>", "<|END_ACTION|>"],
    ),
    "command-a": (
        COMMAND_A,
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        [*TURN_TOKENS, *THOUGHT_TOKENS, "<|START_TEXT|>", "<|END_TEXT|>"],
    ),
    "glm": (GLM, None, "<|endoftext|>", ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"]),
    "kimi": (KIMI, None, "<|end_of_msg|>", ["<|open|>", "<|close|>", "<|sep|>"]),
    "minimax": (MINIMAX, None, "[e~[", ["]~b]", "<mm:think>", "</mm:think>"]),
    "hunyuan": (
        HUNYUAN,
        None,
        "<hy_eos>",
        ["<hy_user>", "<hy_assistant>", "<think:opensource>", "</think:opensource>"],
    ),
    "apriel": (APRIEL, None, "<|end|>", ["<|begin_user|>", "<|begin_assistant|>"]),
    "solar": (SOLAR, None, "<|endoftext|>", ["<|begin|>", "<|end|>", "<|think|>", "<|content|>"]),
    "apertus": (
        APERTUS,
        "<s>",
        "<|assistant_end|>",
        ["<|assistant_start|>", "<|user_start|>", "<|user_end|>", "<|inner_prefix|>", "<|inner_suffix|>"],
    ),
    "r1-first": (R1_FIRST, "<|begin|>", "<|end|>", ["<|User|>", "<|Assistant|>"]),
    "mistral": (MISTRAL, "<s>", "</s>", []),
    "tool-use": (TOOL_USE, None, "<|im_end|>", ["<|im_start|>"]),
}


def family(name: str, think_token: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a family. With `think_token` the think tags are tokens, not marked special, as in Qwen3."""
    template, begin, end, others = (FAMILIES | THINKERS)[name]
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
