"""Special tokens in contents are text: prompts in which people and models cannot write a special token.

A tokenizer reads `<|im_end|>` in a message as the end of the turn, so its author can speak in another role: a reply can
end its own turn and continue as the judge that calls it safe. Here such strings are harmless. A mark inside each hides
it from the tokenizer, the template is rendered with the mark, and the text around the mark is encoded piece by piece.
Text without such strings has exactly the tokens of the template's own output.

A normalizer can make such a string of other characters (a wide bracket, a capital letter, an accent). So the ids are
checked too: a special token that is not spelled out where it comes from is broken like the others.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lowtax.data import chat, thinking_tags
from lowtax.data.chat import Message, Thinking, Variables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of Unicode's private use area, which no meaningful text contains.
MARK = "\ue0f7"  # the text on both sides of it is encoded separately
HIDING = "\ue0f8"  # hides a tag from the template; removed before the text is encoded
NOTHING = "\ufffd"  # in place of a character that is a special token by itself
NEVER = "(?!)"
DEEPEST = 8  # times that a text is broken, more than any normalizer of a model needs
TAG = re.compile("|".join(map(re.escape, sorted(thinking_tags.WHOLE))))
KNOWN: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Added]]" = WeakKeyDictionary()


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
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], with_thoughts: Sequence[str] = ()
) -> list[Message]:
    """Return messages for a template, their contents disarmed.

    Args:
        with_thoughts: roles whose think tags stay, since templates divide their contents at them.
    """
    return [
        {
            name: text
            if name == "role"
            else disarm(tokenizer, text, think_tags=name == "content" and message["role"] in with_thoughts)
            for name, text in message.items()
        }
        for message in messages
    ]


def raw_ids(tokenizer: "PreTrainedTokenizerBase", parts: Sequence[str], prefix: str = "") -> list[int]:
    """Return the token ids of template, content, template, content ...; only templates have special tokens."""
    pieces = [disarm(tokenizer, part) if number % 2 else part for number, part in enumerate(parts)]
    return encode(tokenizer, "".join(pieces) + prefix)


def disarm(tokenizer: "PreTrainedTokenizerBase", text: str, think_tags: bool = False) -> str:
    """Return the text with a mark after the first character of every string that the tokenizer has added as a token.

    An example is `<|im_end|>`. Think tags get another mark, since templates look for them: some drop all text before
    the last tag.

    Args:
        think_tags: leave think tags as they are.
    """
    begins = _added(tokenizer).begins
    text = text.replace(MARK, "").replace(HIDING, "")
    if think_tags:
        return begins.sub(lambda match: match[0] if TAG.match(text, match.start()) else f"{match[0]}{MARK}", text)
    for tag in thinking_tags.WHOLE:
        if tag in text and not begins.search(tag):
            text = text.replace(tag, f"{tag[0]}{HIDING}{tag[1:]}")
    return begins.sub(lambda match: f"{match[0]}{MARK}", text)


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the token ids of a text that may have marks; without a mark, those of `chat.encode`."""
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Return `encode` of many texts, which are encoded at once."""
    added = _added(tokenizer)
    pieces = [[piece for piece in text.replace(HIDING, "").split(MARK) if piece] for text in texts]
    together = [piece for of_text in pieces for piece in of_text]
    encoded = iter(chat.encode(tokenizer, together) if together else [])
    checked = [[added.checked(tokenizer, piece, next(encoded)) for piece in of_text] for of_text in pieces]
    return [[token for ids in of_text for token in ids] for of_text in checked]


@dataclass(frozen=True)
class Added:
    """The strings that a tokenizer has added as tokens, but for white space and single characters.

    names: by id, without the token of unknown characters, which any text may have.
    begins: the characters at which such a string begins, also inside another. whole: the strings, the longest first.
    exact: nothing but the string itself becomes its token.
    """

    names: dict[int, str]
    begins: re.Pattern[str]
    whole: re.Pattern[str]
    exact: bool

    def checked(self, tokenizer: "PreTrainedTokenizerBase", text: str, ids: list[int], depth: int = 0) -> list[int]:
        """Return the ids of a text in which each of these tokens is spelled out.

        One that a normalizer made of other characters is broken, and the text is encoded again around the break.
        """
        tokens = [token for token in ids if token in self.names]
        if not tokens or (self.exact and [self.names[token] for token in tokens] == self.whole.findall(text)):
            return ids
        if not tokenizer.is_fast or depth > DEEPEST:
            return self._without(tokenizer, text)
        pieces = self._broken(tokenizer, text)
        if pieces == [text]:
            return ids
        encoded = zip(pieces, chat.encode(tokenizer, pieces), strict=True)
        return [token for piece, of_piece in encoded for token in self.checked(tokenizer, piece, of_piece, depth + 1)]

    def _broken(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
        """Return the parts of a text between whose characters a token is that is not spelled out there."""
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        cuts = {0, len(text)}
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if token in self.names and text[start:end].strip() != self.names[token].strip():
                cuts |= {start, min(start + 1, len(text)), end}
        if cuts == {0, 1}:
            return _spread(tokenizer, text, self.names)
        places = sorted(cuts)
        return [text[start:end] for start, end in pairwise(places)]

    def _without(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
        """Return the ids of a text without tokens that are not spelled out, for a tokenizer that cannot say where."""
        parts = [part for part in re.split(f"({self.whole.pattern})", text) if part]
        encoded = zip(parts, chat.encode(tokenizer, parts), strict=True)
        return [t for part, ids in encoded for t in ids if t not in self.names or self.whole.fullmatch(part)]


def _spread(tokenizer: "PreTrainedTokenizerBase", character: str, names: Mapping[int, str]) -> list[str]:
    """Return the parts of the string that a normalizer makes of a character, if that is a token; else the character."""
    if names.keys().isdisjoint(chat.encode(tokenizer, [character])[0]):
        return [character]
    normalizer = tokenizer.backend_tokenizer.normalizer  # type: ignore[attr-defined]
    plain = normalizer.normalize_str(character) if normalizer else character
    return [plain[0], plain[1:]] if len(plain) > 1 else [NOTHING]


def _added(tokenizer: "PreTrainedTokenizerBase") -> Added:
    """Return what a tokenizer has added; it is read again if the tokenizer has grown."""
    size, known = len(tokenizer), KNOWN.get(tokenizer)
    if known is None or known[0] != size:
        known = KNOWN[tokenizer] = (size, _read(tokenizer))
    return known[1]


def _read(tokenizer: "PreTrainedTokenizerBase") -> Added:
    tokens = {
        number: token
        for number, token in tokenizer.added_tokens_decoder.items()
        if len(str(token)) > 1 and not str(token).isspace()
    }
    strings = sorted({str(token) for token in tokens.values()})
    by_first: dict[str, list[str]] = {}
    for string in strings:
        by_first.setdefault(string[0], []).append(string[1:])
    # Each branch begins with another character, so that a search skips all others fast.
    begins = "|".join(f"{re.escape(first)}(?={either(rests)})" for first, rests in by_first.items())
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None  # type: ignore[attr-defined]
    normalized = normalizer is not None and any(token.normalized for token in tokens.values())
    return Added(
        {number: str(token) for number, token in tokens.items() if number != tokenizer.unk_token_id},
        re.compile(begins or NEVER, re.DOTALL),
        re.compile(either(strings) if strings else NEVER, re.DOTALL),
        exact=not normalized and not any(token.single_word for token in tokens.values()),
    )


def _same(one: str, other: str) -> int:
    """Return the number of characters that two strings share at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def either(strings: Sequence[str]) -> str:
    """Return a pattern of any of these strings, of which the longest matches; those that begin alike share a branch."""
    branches: dict[str, list[str]] = {}
    for string in strings:
        if string:
            branches.setdefault(string[0], []).append(string)
    parts = []
    for alike in branches.values():
        shared = alike[0][: _same(min(alike), max(alike))]
        parts.append(re.escape(shared) + either([string[len(shared) :] for string in alike]))
    if not parts:
        return ""
    pattern = parts[0] if len(parts) == 1 and "" not in strings else f"(?:{'|'.join(parts)})"
    return f"{pattern}?" if "" in strings else pattern
