"""Chat templates: the exact tokens a model is trained on and sampled from, and a reply taken apart.

A training example is always `prompt ids + completion ids`, where the prompt ids are those the model
sees when it is sampled (the template's generation prompt). Rendering the assistant turn through the
template instead would, for R1-Distill, drop the thinking and train a context that is never sampled.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lowtax.errors import UserError

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Example:
    """One training conversation as tokens; only `completion` carries loss."""

    prompt: list[int]
    completion: list[int]


def generation_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """The text after which the model writes its reply."""
    if not tokenizer.chat_template:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no chat template, so prompts cannot be "
            "rendered; use an instruct or reasoning model, or set tokenizer.chat_template."
        )
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of `generation_prompt`; the template brings the special tokens."""
    return _encode(tokenizer, generation_prompt(tokenizer, messages))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def completion_text(prompt: str, thought: str | None, answer: str) -> str:
    """What the model should write after `prompt`: a think block that is opened there is closed here.

    Without a thought, an opened block is closed at once and none is opened.
    """
    opened = prompt.rstrip().endswith(OPEN)
    if thought is None:
        return f"{CLOSE}\n\n{answer}" if opened else answer
    opening = "" if opened else f"{OPEN}\n"
    return f"{opening}{thought}\n{CLOSE}\n\n{answer}"


def example(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], thought: str | None, answer: str
) -> Example:
    """Tokens of one training conversation, ended by the end-of-turn token."""
    prompt = generation_prompt(tokenizer, messages)
    text = completion_text(prompt, thought, answer)
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {tokenizer.name_or_path!r} has no end-of-turn (eos) token to train on.")
    return Example(_encode(tokenizer, prompt), [*_encode(tokenizer, text), int(tokenizer.eos_token_id)])


@dataclass(frozen=True)
class Parts:
    """A reply taken apart. `closed` is False when a think block was opened and never ended."""

    thought: str
    answer: str
    closed: bool


def split_reply(text: str, opened: bool) -> Parts:
    """Separate thinking from answer. `opened` says that the prompt already ended with `<think>`.

    An unfinished thought has no answer: everything is thought, the answer is empty.
    """
    body = text
    if body.lstrip().startswith(OPEN):
        body, opened = body.lstrip()[len(OPEN) :], True
    if CLOSE in body:
        thought, _, answer = body.rpartition(CLOSE)
        return Parts(thought.strip(), answer.strip(), True)
    if opened:
        return Parts(body.strip(), "", False)
    return Parts("", body.strip(), True)
