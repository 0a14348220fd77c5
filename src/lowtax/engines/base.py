"""Engines: they take requests and yield completions.

Every request carries its own adapter and seed, so one engine can serve all checkpoints, prompts and samples of a study
in one plan.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from lowtax.common.registry import resolve
from lowtax.data import chat, rendering, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINES = {
    "hf": "lowtax.engines.hf.engine:HF",
    "vllm": "lowtax.engines.vllm.engine:VLLM",
    "openai": "lowtax.engines.openai:OpenAI",
    "fake": "lowtax.engines.fake:Fake",
}


@dataclass(frozen=True)
class Request:
    """A reply to generate. It depends on the request alone (up to rounding), not on the batch.

    Contents of messages are encoded as plain text, even where they spell special tokens.

    adapter: a PEFT folder; None for the model itself.
    temperature: 0 is greedy.
    top_k: the number of likeliest tokens to draw from; 0 for all.
    prefix: text that starts the reply, given to the model; it is not part of the reply.
    raw: template, content, template ..., instead of messages, for a prompt without a chat template; contents are text.
    score: texts; the completion has the probability that the reply starts with the first token of each.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    adapter: str | None
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    thinking: Literal["default", "on", "off"] = "default"
    top_k: int = 0
    prefix: str = ""
    raw: tuple[str, ...] = ()
    score: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """The reply to a request.

    text: without special tokens. tokens: their number, without the end-of-turn token.
    opened: True if the prompt already ended with `<think>`.
    error: the reason, if `finish` is "failed".
    scores: probabilities, in the order of the request's `score`.
    """

    id: str
    text: str
    tokens: int
    finish: Literal["stop", "length", "failed"]
    opened: bool
    error: str | None = None
    scores: tuple[float, ...] = ()


@runtime_checkable
class MeasuresEffects(Protocol):
    """An engine that measures what its adapters change, by the folder in the request: a mean change of logits."""

    effects: dict[str, float]


class Engine(Protocol):
    """Server of one model and any number of its adapters."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield one completion for every request, in the order in which they finish."""
        ...


def load(name: str, model: str, precision: str, batch_size: int) -> Engine:
    """Return the engine `name` (a key of ENGINES or "file.py:Class") with `model` loaded."""
    engine: Engine = find(name)(model, precision, batch_size)
    return engine


def find(name: str) -> type[Any]:
    """Return the class of the engine `name` without loading a model."""
    return resolve("engine", name, ENGINES)


def request_ids(tokenizer: "PreTrainedTokenizerBase", request: Request) -> tuple[list[int], bool]:
    """Return the token ids that a request lets the model see, and whether they end inside a think block."""
    prefix = request.prefix
    if request.raw:
        return special_tokens.raw_ids(tokenizer, request.raw, prefix), _in_thought("".join(request.raw), prefix)
    messages = special_tokens.disarm_messages(tokenizer, request.messages)
    prompt = chat.generation_prompt(tokenizer, messages, request.thinking)
    return special_tokens.encode(tokenizer, prompt + prefix), _in_thought(prompt, prefix)


def _in_thought(prompt: str, prefix: str) -> bool:
    opened, closed = prefix.rfind(rendering.OPEN), prefix.rfind(rendering.CLOSE)
    return opened > closed if opened != closed else rendering.opens(prompt)


def completion_text(completion: Completion) -> str:
    """Return what a model wrote after its thought, without invisible characters; empty if the thought has no end."""
    answer = rendering.split_reply(completion.text, completion.opened).answer
    return "".join(c for c in answer if unicodedata.category(c) != "Cf")


def well_formed(text: str) -> str:
    """Return the text with each lone surrogate, which no tokenizer accepts, replaced by a question mark."""
    return text.encode("utf-8", "replace").decode()
