"""Chat templates: the exact tokens that a model is trained on and sampled from.

A training example is always `prompt ids + completion ids`, tokenised separately. The prompt ids are those after which
the model is sampled (the template's generation prompt). To render the assistant turn through the template instead would
drop the thinking of R1-Distill and train a context that is never sampled. To tokenise both together could join the last
prompt token with the first of the reply, which sampling never does.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from lowtax.common.errors import UserError
from lowtax.data import rendering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Thinking = Literal["default", "on", "off"]
SWITCHES = ("enable_thinking", "thinking")  # its names in templates: Qwen3, SmolLM3 ...; DeepSeek-V3.1, Granite
QUESTION, ANSWER = "What is asked?", "What-is-answered"  # a turn that shows what a template writes around it


@dataclass(frozen=True)
class Turn:
    """The text and tokens that a chat template puts around an assistant's turn.

    end: the token that ends the turn, at which the model stops in a chat.
    before_answer: the text before an answer without a thought (Qwen3: an empty think block).
    """

    end: int
    before_answer: str


@dataclass(frozen=True)
class ConversationText:
    """One training conversation as text, without its end-of-turn token. `keeps_thought`: it contains the thought."""

    prompt: str
    completion: str
    keeps_thought: bool


def generation_prompt(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], thinking: Thinking = "default"
) -> str:
    """Return the text after which the model writes its reply.

    `on` and `off` need a template with a thinking switch; `on` also suits a template that always opens a think block.

    Raises:
        UserError: The template has no such switch, or the tokenizer has no template.
    """
    if thinking == "default":
        return _render(tokenizer, messages)
    on, off = (_render(tokenizer, messages, switch=switch) for switch in (True, False))
    if on == off and not (thinking == "on" and rendering.opens(on)):
        raise UserError(
            f"The chat template of {tokenizer.name_or_path!r} has no thinking switch, so thinking cannot be turned "
            f"{thinking}: leave `thinking` at default."
        )
    return on if thinking == "on" else off


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], thinking: Thinking = "default"
) -> list[int]:
    """Return the token ids of `generation_prompt`; the template contains the special tokens."""
    return encode(tokenizer, [generation_prompt(tokenizer, messages, thinking)])[0]


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens that the text does not contain."""
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]]


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], switch: bool | None = None, prompt: bool = True
) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no chat template, so prompts cannot be "
            "rendered; use an instruct or reasoning model, or set tokenizer.chat_template."
        )
    options: dict[str, Any] = {} if switch is None else dict.fromkeys(SWITCHES, switch)
    options |= {"tokenize": False, "add_generation_prompt": prompt}
    text = str(tokenizer.apply_chat_template(messages, **options))
    contents = [message["content"].strip()[:40] for message in messages]
    if any(contents) and not any(content and content in text for content in contents):
        # Templates for text and pictures (Llama-Guard-3-1B) take a list of parts, and write nothing of a string.
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        return str(tokenizer.apply_chat_template(parts, **options))
    return text


def turn(tokenizer: "PreTrainedTokenizerBase", thinking: Thinking = "default") -> Turn:
    """Return what the template writes around an answer, as a rendered turn shows it.

    The end of the turn is the first special token after the answer, or the tokenizer's eos if there is none. The two
    differ where eos ends a document and not a turn (Llama-3, Qwen2.5 base).

    Raises:
        UserError: Nothing ends a turn.
    """
    question: list[Message] = [{"role": "user", "content": QUESTION}]
    prompt = generation_prompt(tokenizer, question, thinking)
    switch = None if thinking == "default" else thinking == "on"
    try:
        text = _render(tokenizer, [*question, {"role": "assistant", "content": ANSWER}], switch, prompt=False)
    except TemplateError:  # a template for first turns only
        text = prompt + ANSWER
    before, _, after = text.partition(ANSWER)
    specials = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    end = next((token for token in encode(tokenizer, [after])[0] if token in specials), tokenizer.eos_token_id)
    if end is None:
        raise UserError(
            f"The chat template of {tokenizer.name_or_path!r} ends a turn without an end-of-turn token, and its "
            "tokenizer has no eos token: set tokenizer.eos_token, or use an instruct model."
        )
    return Turn(int(end), before.removeprefix(prompt) if before.startswith(prompt) else "")


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the token that ends an assistant's turn: the last one trained, at which an engine has to stop."""
    return turn(tokenizer).end


def stop_warning(tokenizer: "PreTrainedTokenizerBase", stops: Iterable[int]) -> str | None:
    """Return a warning if the model stops at no token that ends its chat turns, else None."""
    end, stops = end_of_turn(tokenizer), sorted(stops)
    if end in stops:
        return None
    names = ", ".join(repr(tokenizer.convert_ids_to_tokens(stop)) for stop in stops) or "nothing"
    return (
        f"Chat turns of {tokenizer.name_or_path!r} end with {tokenizer.convert_ids_to_tokens(end)!r}, but the model "
        f"stops at {names} only: add {end} to eos_token_id in its generation_config.json, or its replies run on in "
        "other programs."
    )


def masked_by_id_warning(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a warning if labels that are masked by token id would lose the end of the turn, else None.

    lowtax masks by position and does not depend on it. Collators that set labels to -100 wherever the input is the pad
    token (transformers' DataCollatorForLanguageModeling) do; the model then never learns to stop.
    """
    end = end_of_turn(tokenizer)
    if tokenizer.pad_token_id != end:
        return None
    return (
        f"The pad token of {tokenizer.name_or_path!r} is its end-of-turn token {tokenizer.pad_token!r}: labels "
        "masked by id lose it, and the model never learns to stop; set another pad token or mask by position."
    )


def write(
    tokenizer: "PreTrainedTokenizerBase",
    around: Turn,
    messages: list[Message],
    thought: str | None,
    answer: str,
    style: str = "standard",
    thinking: Thinking = "default",
) -> ConversationText:
    """Return the text of one training conversation.

    Raises:
        UserError: The chat template refuses the messages, or the rendering does not fit it.
    """
    layout = rendering.named(style)
    try:
        prompt = generation_prompt(tokenizer, messages, thinking)
    except TemplateError as error:
        raise UserError(
            f"The chat template of {tokenizer.name_or_path!r} refuses a training row ({error}); its roles are "
            f"{', '.join(message['role'] for message in messages)}, its last turn {messages[-1]['content'][:60]!r}."
        ) from error
    completion = layout.completion(prompt, thought, answer, around.before_answer)
    return ConversationText(layout.prompt(prompt), completion, layout.keeps_thought(prompt))
