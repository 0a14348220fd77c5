"""Engines: they take requests and yield completions.

Every request carries its own adapter and seed, so one engine can serve all checkpoints, prompts and samples of a study
in one plan.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from jinja2 import TemplateError

from lowtax.common.errors import UserError
from lowtax.common.registry import resolve
from lowtax.data import chat, rendering, special_tokens
from lowtax.data.rendering import THINK, Markers, Parts

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
    variables: variables of the chat template (`chat_template_kwargs`).
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
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """The reply to a request.

    text: without special tokens, except those that mark a thought. tokens: their number, without the end-of-turn token.
    opened: True if the prompt already ended inside a thought.
    error: the reason, if `finish` is "failed".
    scores: probabilities, in the order of the request's `score`.
    markers: the model's format of a thought.
    """

    id: str
    text: str
    tokens: int
    finish: Literal["stop", "length", "failed"]
    opened: bool
    error: str | None = None
    scores: tuple[float, ...] = ()
    markers: Markers = THINK

    def __post_init__(self) -> None:
        """Replace half characters, which servers send where a limit cuts one, and which no file can hold."""
        object.__setattr__(self, "text", well_formed(self.text))
        object.__setattr__(self, "error", self.error and well_formed(self.error))

    def parts(self) -> Parts:
        """Return the thought and the answer."""
        return rendering.split_reply(self.text, self.opened, self.markers)


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


@dataclass(frozen=True)
class Prompt:
    """A request as tokens.

    opened: the prompt ends inside a thought. markers: the model's format of a thought. marks: its special tokens.
    """

    ids: list[int]
    opened: bool
    markers: Markers
    marks: frozenset[int]


class Prompter:
    """The way from requests to tokens, and from tokens to replies, for one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self._formats: dict[str, tuple[Markers, frozenset[int]]] = {}

    def prompt(self, request: Request) -> Prompt:
        """Return the tokens that a request lets the model see.

        Raises:
            TemplateError: The chat template refuses the messages.
            UserError: It refuses them for the system turn alone, which every request of a run has.
        """
        markers, marks = self._format(request)
        if request.raw:
            ids = special_tokens.raw_ids(self.tokenizer, request.raw, request.prefix)
            opened = rendering.opens("".join(request.raw))
        else:
            messages = special_tokens.disarm_messages(self.tokenizer, request.messages)
            text = self._text(request, messages)
            ids = special_tokens.encode(self.tokenizer, text + request.prefix)
            opened = markers.opens(text)
        return Prompt(ids, in_thought(opened, request.prefix, markers), markers, marks)

    def _text(self, request: Request, messages: list[dict[str, str]]) -> str:
        """Return the prompt that the chat template makes of messages."""
        try:
            return chat.generation_prompt(self.tokenizer, messages, request.thinking, request.variables)
        except TemplateError as error:
            if messages[0]["role"] != "system":
                raise
            chat.generation_prompt(self.tokenizer, messages[1:], request.thinking, request.variables)
            raise UserError(
                f"The chat template of this model takes no system turn ({error}): remove the system prompt (--system, "
                "or `system` in a recipe), or write its text at the beginning of the prompts."
            ) from error

    def completion(
        self,
        request: Request,
        prompt: Prompt,
        tokens: list[int],
        finish: Literal["stop", "length"],
        scores: tuple[float, ...] = (),
    ) -> Completion:
        """Return the completion of a request, from the tokens of its reply."""
        text = chat.decode(self.tokenizer, tokens, prompt.marks)
        return Completion(request.id, text, len(tokens), finish, prompt.opened, scores=scores, markers=prompt.markers)

    def _format(self, request: Request) -> tuple[Markers, frozenset[int]]:
        """Return the format of thoughts for a request, learnt once for each setting of the template."""
        chats = bool(self.tokenizer.chat_template) and not request.raw
        key = json.dumps([request.thinking, dict(request.variables)], sort_keys=True, default=str) if chats else ""
        if key not in self._formats:
            markers = chat.markers_of(self.tokenizer, request.thinking, request.variables) if chats else THINK
            self._formats[key] = (markers, chat.mark_tokens(self.tokenizer, markers))
        return self._formats[key]


def request_ids(tokenizer: "PreTrainedTokenizerBase", request: Request) -> tuple[list[int], bool]:
    """Return the token ids that a request lets the model see, and whether they end inside a thought."""
    prompt = Prompter(tokenizer).prompt(request)
    return prompt.ids, prompt.opened


def in_thought(opened: bool, prefix: str, markers: Markers) -> bool:
    """Return whether a reply begins inside a thought. `opened`: the prompt does, which comes before the prefix."""
    begun = prefix.rfind(markers.opening.strip()) if markers.opening.strip() else -1
    ended = prefix.rfind(markers.closing.strip())
    return begun > ended if begun != ended else opened


def completion_text(completion: Completion) -> str:
    """Return what a model wrote after its thought, without invisible characters; empty if the thought has no end."""
    answer = completion.parts().answer
    return "".join(c for c in answer if unicodedata.category(c) != "Cf")


def well_formed(text: str) -> str:
    """Return the text with each lone surrogate, which no tokenizer and no file accepts, replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
