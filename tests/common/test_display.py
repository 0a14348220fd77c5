"""Strangers' text on screens and in Markdown: nothing in it acts, and ordinary text stays as it is."""

import io
import re
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from places import ROOT
from rich.console import Console
from rich.text import Text

from lowtax.common import log
from lowtax.common.display import Markup, as_code, as_line, as_markdown, as_quoted, as_text, as_word
from lowtax.common.tables import markdown_table, passage

EVIL = [
    "\x1b[2J\x1b[31m",
    "\x1b]8;;http://x\x07link\x1b]8;;\x07",
    "\x9b2J",
    "a\rb",
    "a\bb",
    "\u202eabc",
    "\u2066x",
    "\u2028x",
    "a\u200bb",
    "\ufeffx",
    "\U000e0041",
    "\ud83d",
    "|x|\n\n<img src=x onerror=alert(1)>",
    "<script>x</script>",
    "<!-- x",
    "<http://evil.example>",
    "![x](http://evil.example/a.png)",
    "[x](http://evil.example)",
    "[x][y]",
    "`code`",
    "**bold** _it_ ~~no~~",
    "\\| \\",
    "&lt;img&gt; &#60;",
    "# head",
    "> quote",
    "- item",
    "1. item",
    "---",
    "a | b",
    "a\tb",
    "[red]x[/red] [link=http://evil.example]y[/link]",
]
ORDINARY = [
    "lora_up_proj_only_from16_to31_r1",
    "0.52 [0.40, 0.63]",
    "< 0.001",
    "+0.00 [-0.25, +0.25]",
    "-",
    "caf\u00e9 \u4e2d\u6587 \U0001f600",
    "runs/14b/arms",
    "a < b > c",
    "R&D, x=1",
    "\u05e9\u05dc\u05d5\u05dd",
    "x_1, a(b) [c]",
    "builtin:smollm2",
]
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
ALLOWED = {"table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close", "tr_open", "tr_close",
           "th_open", "th_close", "td_open", "td_close", "inline", "heading_open", "heading_close", "paragraph_open",
           "paragraph_close", "code_block"}  # fmt: skip


def acts(text: str) -> bool:
    """Return whether a character of a text acts on a terminal."""
    return any(c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text) or any(
        c in text for c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u200e\u200f\ufeff\U000e0041"
    )


def kinds(markdown: str) -> set[str]:
    """Return the kinds of blocks and spans in Markdown."""
    tokens = MARKDOWN.parse(markdown)
    return {token.type for token in tokens} | {child.type for token in tokens for child in token.children or []}


def test_ordinary_text_stays_as_it_is():
    for text in ORDINARY:
        assert as_text(text) == as_markdown(text) == as_line(text) == text


@pytest.mark.parametrize("text", EVIL)
def test_no_text_acts(text: str):
    shown = as_text(text)
    assert not acts(shown)
    assert as_text(shown) == shown
    table = markdown_table([["name", text], [text, "1"]])
    assert len(table.split("\n")) == 3
    assert not acts(table)
    assert kinds(table) <= ALLOWED | {"text", "text_special"}
    read = passage(text, {text: f"{text}\n```\n{text}"})
    assert not acts(read)
    assert kinds(read) <= ALLOWED | {"text", "text_special"}
    assert kinds(f"x {as_code(text)} y") <= ALLOWED | {"text", "code_inline"}
    assert kinds(as_quoted(text)) <= {"code_block"}
    assert not set(as_word(text)) & set(" \n\"'`;$()<>|&\\")


PIECES = st.sampled_from("|<>`*_[]()!\\&;#\n -")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(EVIL), st.sampled_from("|<>`*_[]()!\\&;#\n -"), st.text(max_size=3))).map(
        "".join
    )
)
def test_any_cell_is_one_cell_of_text(text: str):
    table = markdown_table([["a", "b"], [text, "1"]])
    assert not acts(table)
    tokens = MARKDOWN.parse(table)
    assert sum(token.type == "td_open" for token in tokens) == 2
    assert kinds(table) <= ALLOWED | {"text", "text_special"}


def test_markup_of_lowtax_stays():
    assert markdown_table([["a"], [Markup(f"**{as_markdown('x*y')}**")]]).endswith("| **x\\*y** |")


def test_everything_printed_is_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "OUTPUTS", [log._print])
    evil = "".join(EVIL)
    for speak in (log.say, log.tell, log.complain):
        speak(evil)
    printed = capsys.readouterr()
    assert not acts(printed.out + printed.err)


@pytest.mark.parametrize("colour", [True, False])
def test_a_console_shows_markup_and_escapes_as_text(colour: bool):
    file = io.StringIO()
    console = log.console(file, force_terminal=colour, color_system="standard" if colour else None, width=400)
    assert isinstance(console, Console)
    for text in EVIL[:-1]:
        if "\ud83d" not in text:
            console.print(Text(text, style="bold"))
            console.print(text)
    console.print(EVIL[-1])
    shown = file.getvalue()
    for own in ("\x1b[1m", "\x1b[0m"):  # the console's own
        shown = shown.replace(own, "")
    assert not acts(shown)
    assert EVIL[-1] in shown


def test_a_stream_that_lacks_a_character_gets_its_escape(monkeypatch: pytest.MonkeyPatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    log.printable_streams()
    log.tell("caf\u00e9")
    sys.stdout.flush()
    assert buffer.getvalue() == b"caf\\xe9\n"


def test_nothing_is_printed_elsewhere():
    """Another place could print what acts. The sandbox's keeper has the standard library alone."""
    spoken = re.compile(r"(?:(?<![\w.])print|sys\.std(?:out|err)\.write|typer\.echo|click\.echo)\(")
    files = [path for path in (ROOT / "src/lowtax").rglob("*.py") if path.name not in ("log.py", "keeper.py")]
    assert len(files) > 200
    assert [path.name for path in files if spoken.search(path.read_text())] == []
