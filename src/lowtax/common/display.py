"""Strangers' text shown as text: on a terminal, in Markdown, in a code span, and in a command to copy.

What models, data, servers, recipes and file names say is theirs. A terminal would obey its control characters, and a
page its HTML, links and table bars. Each border where text leaves lowtax for people passes it through one function of
this module: `log.say`, `log.tell`, `log.complain` and `log.console` for the screen, `tables` and the model card for
Markdown. Text without such characters comes back unchanged.
"""

import re

ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed; DEL and C1
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # unseen, other directions, other line ends
    "\ud800-\udfff\ufff0-\ufffb\U000e0000-\U000e0fff]"  # no characters, annotations, tags
)
NAMED = {"\r": "\\r", "\x0b": "\\v", "\x0c": "\\f", "\x07": "\\a", "\x08": "\\b"}
MARKS = re.compile(
    r"[\\`*|~]"  # escape, code, emphasis, table, strike
    r"|<(?=[A-Za-z/!?])"  # HTML and links in angle brackets
    r"|\](?=[(\[:])"  # links and images
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis; a name such as up_proj has none
    r"|^#(?=#*\s)|^>|^[+-](?=\s)|^-(?=-)|(?<=^\d)[.)](?=\s)|(?<=^\d\d)[.)](?=\s)"  # headings, quotes, lists
)
ENTITY = re.compile(r"&(?=#?\w{1,31};)")
NOT_A_WORD = re.compile(r"[^\w./:@+-]", re.ASCII)


class Markup(str):
    """Markdown that lowtax wrote itself; `as_markdown` leaves it as it is."""

    __slots__ = ()


def as_text(text: str) -> str:
    """Return a text without characters that act on a terminal; each is written as its escape, such as \\x1b."""
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
    return ACTING.sub(_escape, text)


def as_line(text: str) -> str:
    """Return a text on one line, without characters that act on a terminal; a line break is shown as an arrow."""
    return as_text(text).replace("\n", "\u21b5").replace("\t", " ")


def as_markdown(text: object) -> Markup:
    """Return a value as one line of Markdown that shows it: no markup, HTML, link or end of a table's cell in it."""
    if isinstance(text, Markup):
        return text
    return Markup(MARKS.sub(lambda mark: f"\\{mark[0]}", ENTITY.sub("&amp;", as_line(str(text)))))


def as_code(text: str) -> Markup:
    """Return a text as a code span of Markdown, also within a table."""
    return Markup(f"`{as_line(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`")


def as_quoted(text: str) -> Markup:
    """Return a text as an indented block of Markdown, in which no markup acts and which no fence can end."""
    return Markup("\n".join(f"    {line}" for line in as_text(text).removesuffix("\n").split("\n")))


def as_word(text: str) -> Markup:
    """Return a name for a command or a program that people copy: other characters than those of names become `_`."""
    return Markup(NOT_A_WORD.sub("_", text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return NAMED.get(match[0]) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )
