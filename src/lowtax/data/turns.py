"""Turns of conversations, as the data sets of many tools write them: one reading of roles, contents and thoughts.

A turn is an object with a role and a content (OpenAI, TRL), or with `from` and `value` (ShareGPT). Its thought is in a
key beside the content, or in a part of it. Nothing of an assistant's turn is dropped: a row with a turn that is more
than text is `Unusable`.
"""

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

from lowtax.data.readers import is_missing, kind_of
from lowtax.data.tables import is_turn

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    **{name: "system" for name in ("system", "developer")},
    **{name: "user" for name in ("user", "human", "prompter")},
    **{name: "assistant" for name in ("assistant", "gpt", "bot", "model", "chatgpt", "bard", "bing", "ai")},
}
THOUGHTS = ("thought", "reasoning_content", "thinking", "reasoning")  # keys and columns that hold a thought
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "parts")
MARKS = ("weight", "train", "loss_weight")  # 0 or false: no loss on this turn (OpenAI, axolotl, LLaMA-Factory)
TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("thinking", "reasoning")
# Keys that hold something which the model has to write or to see, and which is no text.
MORE_THAN_TEXT = ("tool_calls", "function_call", "tool_call_id", "audio", "image", "images", "video", "videos")
EMPTY: tuple[Any, ...] = (None, "", "[]", "{}", "null", [], {})
TURNS = re.compile(r"\s*\[\s*\{\s*['\"](role|from|content|value)['\"]")  # text that holds turns
TRANSCRIPT = re.compile(r"(?:^|\n\n)\s*(Human|Assistant): ?")  # of the pairs of Anthropic's HH


class Unusable(Exception):
    """A row that cannot be trained on. Its text is the reason in few words, by which such rows are counted."""


@dataclass(frozen=True)
class Turn:
    """One turn. `trained` is False if the data say that it carries no loss; `ignored`: keys that are not used."""

    role: Role
    content: str
    thought: str | None = None
    trained: bool = True
    ignored: tuple[str, ...] = ()


def text_of(value: Any, what: str) -> str:
    """Return a text that must not be empty. `what` names it in the reason.

    Raises:
        Unusable: It is missing, blank or no text.
    """
    text = optional_text(value, what)
    if text is None:
        raise Unusable(f"{what} is empty")
    return text


def optional_text(value: Any, what: str) -> str | None:
    """Return a text, or None if it is missing or blank.

    Raises:
        Unusable: It is no text.
    """
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise Unusable(f"{what} holds {kind_of(value)}, not text")
    return value if value.strip() else None


def only_thought(values: Iterable[Any], what: str = "a thought") -> str | None:
    """Return the only thought among several values; None if there is none.

    Raises:
        Unusable: There are several, or one is no text.
    """
    texts = [text for value in values if (text := _thought(value, what)) is not None]
    if len({text.strip() for text in texts}) > 1:
        raise Unusable("it has two different thoughts")
    return texts[0] if texts else None


def _thought(value: Any, what: str) -> str | None:
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return optional_text("".join(text for part in value for text in _part(part)), what)
    return optional_text(value, what)


def turns_of(value: Any, what: str) -> list[Turn]:
    """Return the turns of a list of turns, a single turn, or JSON text of either.

    Raises:
        Unusable: The value is something else, or a turn is more than text.
    """
    value = as_turns(value)
    if isinstance(value, dict):
        value = [value]
    if is_missing(value) or value in ("", []):
        raise Unusable(f"{what} is empty")
    if not isinstance(value, list):
        raise Unusable(f"{what} holds {kind_of(value)}, not a list of turns")
    return [turn for item in value for turn in _turns(item, what)]


def as_turns(value: Any) -> Any:
    """Return the turns that a value holds, else the value itself.

    They may be under `messages` of an object (OpenAI's preferences), or in a text, as JSON or as Python (pandas).
    """
    if isinstance(value, dict) and is_turns(value.get("messages")):
        return value["messages"]
    if not isinstance(value, str) or value.lstrip()[:1] != "[" or not TURNS.match(value):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if is_turns(parsed) and any(_role(turn) for turn in parsed):
            return parsed
    return value


def is_turns(value: Any) -> bool:
    """Return whether a value is a list of turns."""
    return isinstance(value, list) and bool(value) and all(map(is_turn, value))


def transcript(text: str) -> list[Turn]:
    """Return the turns of a text such as "\\n\\nHuman: ... \\n\\nAssistant: ..."; none if it is no such text."""
    before, *pieces = TRANSCRIPT.split(text)
    if before.strip() or not pieces:
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        Turn(cast(Role, roles[name]), content.strip()) for name, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _turns(item: Any, what: str) -> list[Turn]:
    """Return the turn of an object; two if it holds a request and its answer under the names of their roles."""
    if not isinstance(item, dict):
        raise Unusable(f"{what} holds {kind_of(item)} that is no turn")
    if is_turn(item):
        return [_turn(item)]
    pairs = [(ROLES[key], value) for key, value in item.items() if key in ROLES and not is_missing(value)]
    if not pairs:
        raise Unusable("a turn has no role")
    return [Turn(role, text_of(value, f"a turn of the {role}")) for role, value in pairs]


def ends_with_answer(value: Any) -> bool:
    """Return whether a list of turns ends with the assistant's."""
    turns = as_turns(value)
    return is_turns(turns) and _role(turns[-1]) == "assistant"


def _named_role(item: dict[str, Any]) -> Any:
    return next((item[key] for key in ROLE_KEYS if not is_missing(item.get(key))), None)


def _role(item: dict[str, Any]) -> Role | None:
    name = _named_role(item)
    return ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def _turn(item: dict[str, Any]) -> Turn:
    name, role = _named_role(item), _role(item)
    if role is None:
        raise Unusable(f"a turn has the role {str(name)[:40]!r}" if name is not None else "a turn has no role")
    for key in MORE_THAN_TEXT:
        if not is_empty(item.get(key)):
            raise Unusable(f"a turn of the {role} has `{key}`")
    content, in_parts = _content(next((item[key] for key in CONTENT_KEYS if not is_missing(item.get(key))), None), role)
    used = {*ROLE_KEYS, *CONTENT_KEYS, *MARKS}
    thought = None
    if role == "assistant":
        used |= {*THOUGHTS}
        thought = only_thought([*(item.get(key) for key in THOUGHTS), in_parts])
        if not content and isinstance(item.get("refusal"), str):  # OpenAI's own refusals have no other content
            content, used = item["refusal"], used | {"refusal"}
    elif in_parts:
        raise Unusable(f"a turn of the {role} has a thought")
    ignored = tuple(str(key) for key, value in item.items() if key not in used and not is_empty(value))
    trained = not any(item.get(mark) in (0, False) and not is_missing(item.get(mark)) for mark in MARKS)
    return Turn(role, content, thought, trained, ignored if role == "assistant" else ())


def is_empty(value: Any) -> bool:
    """Return whether a value holds nothing: missing, an empty text or list, also as JSON text."""
    return is_missing(value) or value in EMPTY


def _content(value: Any, role: Role) -> tuple[str, str | None]:
    """Return the text of a content, and the thought that is one of its parts."""
    if is_missing(value):
        return "", None
    if isinstance(value, str):
        return value, None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise Unusable(f"a turn of the {role} holds {kind_of(value)}, not text")
    parts = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in value]
    thoughts = ["".join(_part(part)) for part in parts if is_thought_part(part)]
    texts = [text for part in parts if not is_thought_part(part) for text in _part(part)]
    return "".join(texts), "\n\n".join(thoughts) or None


def is_parts(value: Any) -> bool:
    """Return whether a value is a content in parts."""
    return isinstance(value, list) and bool(value) and all(isinstance(p, dict) and "type" in p for p in value)


def content_of(value: Any, role: Role) -> Turn:
    """Return the turn whose content, in parts, is a value.

    Raises:
        Unusable: A part is no text.
    """
    return _turn({"role": role, "content": value})


def is_thought_part(part: dict[str, Any]) -> bool:
    """Return whether a part of a content is a thought (also Gemini's text with `thought: true`)."""
    return part.get("type") in THOUGHT_PARTS or part.get("thought") is True


def _part(part: dict[str, Any]) -> list[str]:
    """Return the texts of one part of a content."""
    kind = part.get("type", "text")
    if kind in THOUGHT_PARTS:
        inner = next(
            (part[key] for key in (*THOUGHT_PARTS, "text", "value", "summary") if not is_empty(part.get(key))), ""
        )
        if isinstance(inner, list):
            return [text for piece in inner for text in _part(piece if isinstance(piece, dict) else {"text": piece})]
    elif kind in (*TEXT_PARTS, "summary_text"):
        inner = next((part[key] for key in ("text", "value") if not is_missing(part.get(key))), None)
    else:
        raise Unusable(f"a turn has a part of type {str(kind)[:40]!r}")
    if is_missing(inner):
        return []
    if not isinstance(inner, str):
        raise Unusable(f"a part of a turn holds {kind_of(inner)}, not text")
    return [inner]
