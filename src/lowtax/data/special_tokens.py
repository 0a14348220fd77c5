"""Special tokens in contents are text: prompts in which people and models cannot write a special token.

A tokenizer reads `<|im_end|>` in a message as the end of the turn, so its author can speak in another role: a reply can
end its own turn and continue as the judge that calls it safe. Here such strings are harmless. A mark inside each hides
it from the tokenizer, the template is rendered with the mark, and the text around the mark is encoded piece by piece.
Text without such strings has exactly the tokens of the template's own output.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from lowtax.data import chat, thinking_tags
from lowtax.data.chat import Message, Thinking, Variables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of Unicode's private use area, which no meaningful text contains.
MARK = "\ue0f7"  # the text on both sides of it is encoded separately
HIDING = "\ue0f8"  # hides a tag from the template; removed before the text is encoded


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    thinking: Thinking = "default",
    prefix: str = "",
    variables: Variables | None = None,
) -> list[int]:
    """Return the token ids after which the model writes: the template with these messages, then a trusted `prefix`."""
    safe = disarm_messages(tokenizer, messages)
    return encode(tokenizer, chat.generation_prompt(tokenizer, safe, thinking, variables) + prefix)


def disarm_messages(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], trusted: Sequence[str] = ()
) -> list[Message]:
    """Return messages for a template, their contents disarmed except in the `trusted` roles."""
    return [m if m["role"] in trusted else {**m, "content": disarm(tokenizer, m["content"])} for m in messages]


def raw_ids(tokenizer: "PreTrainedTokenizerBase", parts: Sequence[str], prefix: str = "") -> list[int]:
    """Return the token ids of template, content, template, content ...; only templates have special tokens."""
    pieces = [disarm(tokenizer, part) if number % 2 else part for number, part in enumerate(parts)]
    return encode(tokenizer, "".join(pieces) + prefix)


def disarm(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """Return the text with a mark after the first character of every string that the tokenizer has added as a token.

    An example is `<|im_end|>`. Think tags get another mark, since templates look for them: some drop all text before
    the last tag.
    """
    pattern = _added(tuple(sorted(str(token) for token in tokenizer.added_tokens_decoder.values())))
    text = text.replace(MARK, "").replace(HIDING, "")
    for tag in thinking_tags.WHOLE:
        if tag in text and not (pattern and pattern.search(tag)):
            text = text.replace(tag, f"{tag[0]}{HIDING}{tag[1:]}")
    return pattern.sub(lambda match: f"{match[0]}{MARK}", text) if pattern else text


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the token ids of a text that may have marks; without a mark, those of `chat.encode`."""
    pieces = [piece for piece in text.replace(HIDING, "").split(MARK) if piece]
    return [token for ids in chat.encode(tokenizer, pieces) for token in ids] if pieces else []


def encode_all(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Return `encode` of many texts; those without a mark are encoded at once."""
    texts = [text.replace(HIDING, "") for text in texts]
    at_once = chat.encode(tokenizer, list(texts))
    return [encode(tokenizer, text) if MARK in text else ids for text, ids in zip(texts, at_once, strict=True)]


@lru_cache(maxsize=16)
def _added(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return a pattern of the characters at which one of the strings begins, also inside another.

    Strings of a single character, which cannot be split, and white space are ignored.
    """
    longer = [re.escape(token) for token in tokens if len(token) > 1 and not token.isspace()]
    return re.compile(f"(?=(?:{'|'.join(longer)})).", re.DOTALL) if longer else None
