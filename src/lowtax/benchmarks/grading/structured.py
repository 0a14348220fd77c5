"""Find an answer where a reply has a place for it: an `<answer>` tag, or the `answer` field of JSON at its end."""

import json
import re

TAG = re.compile(
    r"<(answer|final_answer|ans)>(?P<inside>.*?)(?:</(?:answer|final_answer|ans)>|\Z)", re.DOTALL | re.IGNORECASE
)
OPENING = re.compile(r"<(?:answer|final_answer|ans)>", re.IGNORECASE)
LONGEST_TAG = 2_000  # characters in a tag
PLACEHOLDER = re.compile(
    r"\W*(?:(?:your|the|my|final|insert|put|write|choice|letter|option|number|result)\W+)*"
    r"(?:answer|result|choice|letter|option|number|value|here)?(?:\W+here)?\W*",
    re.IGNORECASE,
)
FIELD = re.compile(
    r"[\"'](?:final[ _-]?)?(?:answer|result)[\"']\s*:\s*"
    r"(?P<value>\"(?:[^\"\\]|\\.){0,2000}\"|'(?:[^'\\\n]|\\.){0,2000}'|-?[\d.,]+(?:[eE][-+]?\d+)?"
    r"|\[[^\[\]]{0,500}\]|\[\[[^{}]{0,500}\]\])",
    re.IGNORECASE | re.DOTALL,
)
AFTER_FIELD = 300  # characters that may follow the object
AFTER_REPLY = 1_500  # the same, for a reply that begins with an object
ESCAPED = re.compile(r"\\(?:([\"'/])|(n)(?![A-Za-z])|(u[0-9a-fA-F]{4}))")
FENCE = re.compile(r"^[ \t>]*(?:```+|~~~+)[ \t]*[\w+.#-]{0,20}[ \t]*$\n?", re.MULTILINE)
FENCE_INLINE = re.compile(r"```+")


def tagged(text: str) -> tuple[str, int] | None:
    """Return the content of the last `<answer>` tag that holds an answer, and where the tag begins."""
    for match in reversed(list(TAG.finditer(text))):
        inside = OPENING.split(match["inside"])[-1].strip()
        if inside and len(inside) <= LONGEST_TAG and not (len(inside) < 60 and PLACEHOLDER.fullmatch(inside)):
            return inside, match.start()
    return None


def field(text: str) -> tuple[str, int] | None:
    """Return the value of the last `answer` field, if the text ends with its object, and where the field begins.

    LaTeX in it may have single backslashes, which is no JSON: `"\\frac{1}{2}"` is read as it was meant.
    """
    last = None
    for match in FIELD.finditer(text):
        last = match
    limit = AFTER_REPLY if text.lstrip().removeprefix("```json").lstrip().startswith("{") else AFTER_FIELD
    if last is None or not _ends(text[last.end() :], limit):
        return None
    value = _unescaped(last["value"])
    return (value, last.start()) if value else None


def _ends(rest: str, limit: int) -> bool:
    """Return True if a text holds the end of an object and little else."""
    inside, brace, after = rest.rpartition("}")
    if not brace:
        return not rest.strip(" \t\n`~\"',]")
    return "{" not in inside and len(after) <= limit and "\\boxed" not in after


def _unescaped(raw: str) -> str:
    """Return a JSON value as text; of a list its members, separated by commas."""
    if raw[0] == "[":
        members = re.findall(r"\"(?:[^\"\\]|\\.)*\"|\[[^\[\]]*\]|[^,\[\]\s]+", raw[1:-1])
        return ", ".join(f"({_unescaped(each)})" if each[0] == "[" else _unescaped(each) for each in members)
    if raw[0] not in "\"'":
        return raw.rstrip(",.")
    inside = raw[1:-1]
    if raw[0] == '"' and ("\\\\" in inside or "\\" not in inside):
        try:
            return str(json.loads(raw, strict=False)).strip()
        except ValueError:
            pass
    plain = ESCAPED.sub(lambda match: match[1] or (" " if match[2] else chr(int(match[3][1:], 16))), inside)
    return plain.replace("\\\\", "\\").strip()


def unfenced(text: str) -> str:
    """Remove the lines that begin and end a code block; what is in it stays."""
    return FENCE_INLINE.sub("", FENCE.sub("", text)) if "```" in text or "~~~" in text else text
