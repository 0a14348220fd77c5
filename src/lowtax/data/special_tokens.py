"""Prompts in which what people and models wrote is text and nothing else.

A tokenizer reads `<|im_end|>` in a message as the end of the turn, so that whoever writes it can speak in another's
name: a reply can end its own turn and go on as the judge that calls it safe. Here such strings lose that power: a mark
inside each keeps the tokenizer from seeing it whole, the template is rendered with the mark, and the text around the
mark is encoded piece by piece. Text without such strings has exactly the tokens of the template's own output.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from lowtax import chat, rendering
from lowtax.chat import Message, Thinking
from lowtax.engines import Request

# Of Unicode's private use: no text that means anything has them.
MARK = "\ue0f7"  # the text is encoded apart on both sides
HIDING = "\ue0f8"  # hides a tag from the template, and is gone before the text is encoded


def request_ids(tokenizer: PreTrainedTokenizerBase, request: Request) -> tuple[list[int], bool]:
    """Token ids of what a request lets the model see, and whether they end in an open think block."""
    prefix = request.prefix
    if request.raw:
        return raw_ids(tokenizer, request.raw, prefix), _inside("".join(request.raw), prefix)
    prompt = chat.generation_prompt(tokenizer, disarmed_messages(tokenizer, request.messages), request.thinking)
    return encode(tokenizer, prompt + prefix), _inside(prompt, prefix)


def _inside(prompt: str, prefix: str) -> bool:
    """Whether the model goes on inside a think block."""
    opened, closed = prefix.rfind(rendering.OPEN), prefix.rfind(rendering.CLOSE)
    return opened > closed if opened != closed else rendering.opens(prompt)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], thinking: Thinking = "default", prefix: str = ""
) -> list[int]:
    """Token ids after which the model writes: the template with these messages, then `prefix`, which is trusted."""
    safe = disarmed_messages(tokenizer, messages)
    return encode(tokenizer, chat.generation_prompt(tokenizer, safe, thinking) + prefix)


def disarmed_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], trusted: Sequence[str] = ()
) -> list[Message]:
    """Messages for a template, with their contents `disarmed`, except those of the `trusted` roles."""
    return [m if m["role"] in trusted else {**m, "content": disarmed(tokenizer, m["content"])} for m in messages]


def raw_ids(tokenizer: PreTrainedTokenizerBase, parts: Sequence[str], prefix: str = "") -> list[int]:
    """Token ids of template, content, template, content ...: special tokens count in the templates alone."""
    pieces = [disarmed(tokenizer, part) if number % 2 else part for number, part in enumerate(parts)]
    return encode(tokenizer, "".join(pieces) + prefix)


def disarmed(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a mark after the first character of every string that the tokenizer takes for one token of its
    own, such as `<|im_end|>`, and another in think tags, which templates look for: some drop all before the last."""
    pattern = _added(tuple(sorted(str(token) for token in tokenizer.added_tokens_decoder.values())))
    text = text.replace(MARK, "").replace(HIDING, "")
    for tag in (rendering.OPEN, rendering.CLOSE):
        text = text.replace(tag, f"{tag[0]}{HIDING}{tag[1:]}") if not pattern or not pattern.search(tag) else text
    return pattern.sub(lambda found: f"{found[0]}{MARK}", text) if pattern else text


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that may have marks; without one, those of `chat.encode`."""
    pieces = [piece for piece in text.replace(HIDING, "").split(MARK) if piece]
    return [token for ids in chat.encode(tokenizer, pieces) for token in ids] if pieces else []


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts, at once where they have no mark."""
    texts = [text.replace(HIDING, "") for text in texts]
    found = chat.encode(tokenizer, list(texts))
    return [encode(tokenizer, text) if MARK in text else ids for text, ids in zip(texts, found, strict=True)]


@lru_cache(maxsize=16)
def _added(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    """A character at which one of the strings begins, also inside of another; those of a single character cannot be
    taken apart and are left alone, as is white space."""
    longer = [re.escape(token) for token in tokens if len(token) > 1 and not token.isspace()]
    return re.compile(f"(?=(?:{'|'.join(longer)})).", re.DOTALL) if longer else None
