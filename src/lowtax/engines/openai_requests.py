"""Requests as the JSON that an OpenAI-compatible server reads, and its replies as completions and failures."""

import json
import math
import re
import time
import unicodedata
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from lowtax.data.chat import SWITCHES
from lowtax.data.rendering import CLOSE, OPEN, opens, split_reply
from lowtax.engines.base import Completion, Request

ZERO_WIDTH_SPACE = "\u200b"
WIDE_BAR = "\uff5c"  # of DeepSeek's own tokens
WORDS = (
    "s|bos|eos|pad|unk|mask|sep|cls|sop|eop|eod|think|answer|tool_call|tool_response|start_of_turn|end_of_turn|"
    "end_of_text|start_of_image|end_of_image|image_soft_token|file_sep|repo_name|fim_[a-z]+|seed:[a-z_]+|"
    "unused_?[0-9]+|[A-Za-z]{3,}_(?:[A-Za-z]+_)*[0-9]+"  # <seed:eos>, <unused7>, <extra_id_1>, <SPECIAL_12>
)
BRACKETS = (
    "INST|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|PREFIX|SUFFIX|MIDDLE|"
    "MODEL_SETTINGS|IMG|IMG_BREAK|IMG_END|BOS|EOS|EOT|PAD|UNK|CLS|SEP|MASK|gMASK|sMASK|"
    "start_header_id|end_header_id|UNUSED_TOKEN_[0-9]+"
)
SPECIAL = re.compile(
    rf"<(?=[|\uff5c][^<>\n]{{1,64}}>|/?(?:{WORDS})>|<?/?SYS>>)"
    rf"|\[(?=/?(?:{BRACKETS})\]|\|[A-Za-z_]{{1,64}}\|\]|e?~\[)"  # [|endofturn|] of EXAONE, [e~[ of MiniMax
    r"|\](?=~b\]|~!b\[|<\]|!p~\[|!d~\[)"
)
STOPPED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", None)
THOUGHTS = ("thinking", "reasoning", "reasoning_text", "thought")  # types of parts
PART_TEXTS = ("text", "thinking", "reasoning", "reasoning_content", "content", "summary", "refusal")
CUT = ("length", "max_tokens", "model_length")
OPENS_THOUGHT = re.compile(f"{OPEN}(?:\\s|[\u010a\u0120\u2581]|<0x0A>)*$")  # white space as vocabularies spell it
TOP_LOGPROBS = 20  # the most that OpenAI allows, and vLLM by default

TOO_LARGE, UNREACHABLE, NO_REPLY = -2, -1, 0  # in place of an HTTP status
MOST_TOKENS = 10_000_000  # that a server may count for a reply; other counts are errors
MOST_CHARACTERS = 256  # of a token
SMALL = 100_000  # characters that a reply may have in any case
TEMPORARY = frozenset({UNREACHABLE, NO_REPLY, 408, 409, 425, 429, *range(500, 600)}) - {501, 505}
TOO_LONG = "{where} asks to wait {wait:.0f} s ({status}: {detail}); repeat the command then, or raise LOWTAX_TIMEOUT."
FATAL = {
    UNREACHABLE: "{detail}; start the server again and repeat the command, which keeps the replies it has.",
    401: "{where} does not accept the key (401): set OPENAI_API_KEY to one of that server.",
    402: "{where} serves no more requests on this account ({detail}); settle that there.",
    403: "{where} is forbidden (403: {detail}); check what the key in OPENAI_API_KEY may use.",
    404: "{where} is not found (404: {detail}); check the model's name, and that LOWTAX_BASE_URL ends as the server "
    "expects it (mostly in /v1).",
} | dict.fromkeys(range(300, 400), "{where} redirects ({status}: {detail}); set LOWTAX_BASE_URL to where it leads.")


class _Message(BaseModel):
    """A reply's message. `content` may be a list of parts, of which some are the thought (Mistral, OpenRouter)."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_parts(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        fields = {name: value.get(name) for name in cls.model_fields}
        for name in ("reasoning", "reasoning_content"):
            if isinstance(fields[name], list | dict):
                fields[name] = _joined_parts(fields[name])
        parts = fields["content"]
        if isinstance(parts, list) and all(isinstance(part, str | dict) for part in parts):
            thoughts = [part for part in parts if _is_thought(part)]
            fields["content"] = _joined_parts([part for part in parts if not _is_thought(part)])
            if thoughts and fields["reasoning"] is None and fields["reasoning_content"] is None:
                fields["reasoning"] = _joined_parts(thoughts)
        return fields


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] in THOUGHTS


def _joined_parts(value: Any) -> str:
    """Return the text in a part of a message, or in a list of parts."""
    if isinstance(value, list):
        return "".join(map(_joined_parts, value))
    if isinstance(value, dict):
        return _joined_parts(next((value[name] for name in PART_TEXTS if value.get(name)), ""))
    return value if isinstance(value, str) else ""


class _TokenLogprob(BaseModel):
    token: str
    logprob: float


class _Position(BaseModel):
    top_logprobs: list[_TokenLogprob] = []


class _Logprobs(BaseModel):
    """One entry per generated token: in `content` for a chat, in `top_logprobs` for a plain completion."""

    content: list[_Position] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(BaseModel):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Reply(BaseModel):
    """The fields that lowtax reads. The types of the `openai` package require fields that many servers do not send.

    Of several choices the first is read, and the server's count of tokens if it is one.
    """

    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None

    @model_validator(mode="before")
    @classmethod
    def _first(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
            return value
        return {"choices": value["choices"][:1], "usage": value.get("usage")}

    @property
    def tokens(self) -> int | None:
        """The server's count of the reply's tokens; None if it has none, or nonsense."""
        count = self.usage.get("completion_tokens") if isinstance(self.usage, dict) else None
        if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count <= MOST_TOKENS:
            return None
        return int(count)


def request_body(request: Request, name: str) -> tuple[str, dict[str, Any]]:
    """Return the path and the JSON of a request; `name` is the served name of the model or adapter.

    A prefix is sent as the start of the assistant's message, and `add_special_tokens` prevents a second
    beginning-of-text token in a raw prompt. Like `top_k` and `chat_template_kwargs`, these are extensions of vLLM and
    SGLang.
    """
    body: dict[str, Any] = {
        "model": name,
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    if request.top_k > 0:
        body["top_k"] = request.top_k
    if request.raw:
        body |= {"prompt": raw_prompt(request), "add_special_tokens": False}
        return "/completions", body | ({"logprobs": TOP_LOGPROBS} if request.score else {})
    body |= chat_prompt(request)
    return "/chat/completions", body | ({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if request.score else {})


def chat_prompt(request: Request) -> dict[str, Any]:
    """Return the fields of a chat request that determine its prompt."""
    messages = [{**message, "content": disarm(message["content"])} for message in request.messages]
    prompt: dict[str, Any] = {"messages": messages}
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
        prompt |= {"add_generation_prompt": False, "continue_final_message": True}
    switch = {} if request.thinking == "default" else dict.fromkeys(SWITCHES, request.thinking == "on")
    if variables := {**switch, **request.variables}:
        prompt["chat_template_kwargs"] = variables
    return prompt


def raw_prompt(request: Request) -> str:
    """Return the text of a raw prompt: template, content, template ..., and then the prefix."""
    parts = [disarm(part) if number % 2 else part for number, part in enumerate(request.raw)]
    return "".join(parts) + request.prefix


def disarm(text: str) -> str:
    """Insert a zero-width space into everything that looks like a special token or a turn tag.

    A server reads `<|im_end|>` in a message as the end of the turn, and the vocabulary of its model is unknown here.
    So the form is what counts, also in characters that a tokenizer may take for others (compatibility forms). Only
    contents of messages are disarmed, never templates and prefixes.
    """
    plain = text if text.isascii() else "".join(map(_plain, text))
    parts, begun = [], 0
    for match in SPECIAL.finditer(plain):
        parts.append(text[begun : match.start() + 1])
        begun = match.start() + 1
    return ZERO_WIDTH_SPACE.join([*parts, text[begun:]])


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """Return the character that a compatible one stands for, such as < for a wide one; others stay."""
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 and character != WIDE_BAR else character


def ends_in_thought(text: str) -> bool:
    """Return True if the text ends inside a think block that it opens itself."""
    return text.rfind(OPEN) > text.rfind(CLOSE)


def prompt_opens_thought(request: Request, template_opens: bool | None) -> bool | None:
    """Return True if the prompt leaves the model inside a think block; None if that is unknown.

    `template_opens` is the answer for the chat template. A prefix replaces the think block that a template opens.
    """
    if request.raw:
        template = request.raw[-1] if len(request.raw) % 2 else ""
        return ends_in_thought(request.prefix) or (opens(template) and CLOSE not in request.prefix)
    return ends_in_thought(request.prefix) if request.prefix else template_opens


def read_completion(request: Request, reply: Any, opened: bool | None) -> Completion:
    """Return the completion in a server's JSON; `opened` is None if the server does not show its prompts."""
    try:
        parsed = _Reply.model_validate(reply)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        return failed(request, f"the server's reply is not in OpenAI's format: {where}: {first['msg']}")
    choice = parsed.choices[0]
    if choice.message is None and choice.text is None:
        return failed(request, "the server's reply has neither a message nor a text")
    if choice.finish_reason not in (*STOPPED, *CUT):
        return failed(request, f"the server ended the reply itself, for the reason {choice.finish_reason!r}")
    text, tagged = _text(choice, request.prefix)
    if len(text) > max(SMALL, MOST_CHARACTERS * request.max_new_tokens):
        return failed(request, f"the server's reply has {len(text):,} characters for {request.max_new_tokens:,} tokens")
    if opened is None and split_reply(text, None).thought and not split_reply(text, False).thought:
        opened = True  # only the reply shows it
    tokens = len(text.split()) if parsed.tokens is None else parsed.tokens
    cut = choice.finish_reason in CUT or (choice.finish_reason is None and tokens >= request.max_new_tokens)
    finish: Literal["stop", "length"] = "length" if cut else "stop"
    scores = _scores(request, choice.logprobs)
    if scores is None:
        return failed(request, "the server sends no logprobs, which the request needs for its scores")
    return Completion(request.id, text, tokens, finish, bool(opened) and not tagged, scores=scores)


def read_models(reply: Any) -> dict[str, str] | None:
    """Return the path of each served model ("" if unknown) from the reply to /models; None if it is no list."""
    models = reply.get("data") if isinstance(reply, dict) else reply
    cards = [card for card in models if isinstance(card, dict)] if isinstance(models, list) else []
    return {str(card["id"]): _path(card.get("root")) for card in cards if _is_name(card.get("id"))} or None


def _is_name(value: Any) -> bool:
    """Return True for a text that can be the name of a model; of some servers it is a number."""
    return bool(value) and (isinstance(value, str) or type(value) is int)


def _path(value: Any) -> str:
    """Return the path that a server names; "" if no file can have it."""
    return value if isinstance(value, str) and value.isprintable() and len(value) < 4096 else ""


def shown_prompt_opens_thought(reply: Any) -> bool | None:
    """Return True if the prompt in a reply to vLLM's /tokenize opens a think block; None if the reply has no tokens."""
    tokens = reply.get("token_strs") if isinstance(reply, dict) else None
    if not isinstance(tokens, list):
        return None
    return bool(OPENS_THOUGHT.search("".join(token for token in tokens[-20:] if isinstance(token, str))))


def failed(request: Request, reason: str) -> Completion:
    """Return the completion of a request that was not served."""
    return Completion(request.id, "", 0, "failed", False, reason)


@dataclass(eq=False)
class Failure(Exception):
    """A request without a usable reply.

    status: the HTTP status, NO_REPLY or UNREACHABLE. detail: the reason in one line. wait: seconds that the server asks
    to wait. slow: the time limit was reached. filtered: the server objects to the prompt. tries: times it was sent.
    """

    status: int
    detail: str
    wait: float = 0.0
    slow: bool = False
    filtered: bool = False
    tries: int = 1

    def temporary(self) -> bool:
        """Return True if another try may succeed."""
        return self.status in TEMPORARY

    def reason(self) -> str:
        """Return the reason that a failed row records."""
        if self.status == TOO_LARGE:
            return self.detail
        if self.temporary():
            return f"no reply after {self.tries} tries: {self.detail}"
        return f"the server refuses the request ({self.status}): {self.detail}"

    def fatal_message(self, where: str, longest_wait: float) -> str | None:
        """Return the message for the user if every other request to the URL `where` would fail like this one."""
        if self.filtered:
            return None
        message = TOO_LONG if self.wait > longest_wait else FATAL.get(self.status)
        return message and message.format(where=where, **vars(self))


def refusal(status: int, detail: str, wait: float, body: str) -> Failure:
    """Return the failure in a reply whose status is an error."""
    if status == 429 and "insufficient_quota" in body:
        status = 402  # no waiting helps
    filtered = status == 403 and ("flagged" in body or "moderation" in body)
    return Failure(status, detail, wait, filtered=filtered)


def error_message(body: object) -> str:
    """Return the sentence in the body of an error: a text, or JSON with "message" or "detail"; else all of it."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    try:
        return body if isinstance(body, str) else json.dumps(body)
    except (ValueError, RecursionError):
        return "an error"


def retry_after(header: str) -> float:
    """Return the seconds of a Retry-After header, which is a number or a date; 0 if there is none."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return 0.0


def _text(choice: _Choice, prefix: str) -> tuple[str, bool]:
    """Return the model's text, with the think tags that a reasoning parser removed; True if there were any."""
    message = choice.message or _Message(content=choice.text)
    content, thought = message.content or message.refusal or "", message.reasoning
    thought = message.reasoning_content if thought is None else thought
    if thought is None or not (thought or content):
        return content, False
    if content:  # also after an empty thought, whose tags the parser removed
        return f"{OPEN}\n{thought}\n{CLOSE}\n\n{content}", True
    # A parser that did not see the prefix close the block takes the answer for a thought.
    return (thought, False) if CLOSE in prefix and not ends_in_thought(prefix) else (f"{OPEN}\n{thought}", True)


def _scores(request: Request, logprobs: _Logprobs | None) -> tuple[float, ...] | None:
    """Return, for each text, the summed probability of the likeliest first tokens that it starts with; None if unknown.

    White space around tokens is ignored: " yes" and "yes" both count for "yes", as do "y" and "ye".
    """
    if not request.score:
        return ()
    likeliest: list[tuple[str, float]] = []
    if logprobs and logprobs.content:
        likeliest = [(entry.token, entry.logprob) for entry in logprobs.content[0].top_logprobs]
    elif logprobs and logprobs.top_logprobs and logprobs.top_logprobs[0]:
        likeliest = list(logprobs.top_logprobs[0].items())
    if not likeliest:
        return None
    shares = [(token.strip(), math.exp(min(logprob, 0.0))) for token, logprob in likeliest if not math.isnan(logprob)]
    sums = (sum(p for token, p in shares if token and text.strip().startswith(token)) for text in request.score)
    return tuple(min(total, 1.0) for total in sums)
