"""Find the program in an answer: what a person would copy out of it and run.

Texts     fenced blocks of Python, of any other name, and then the answer itself, without tags such as `<code>`. Where a
          text does not parse, non-breaking spaces, invisible characters and HTML's escapes are replaced.
Program   of the last text that defines the function. One that is introduced as a naive, wrong or other version counts
          only if there is no other, and a function without a body never replaces one with a body.
Lines     the imports and definitions that the function reaches, and the statements that change these, as in EvalPlus;
          none that read input, test, print or leave. What a block lacks is taken from the other blocks.
Body      where nothing defines the function: a text that is its body, also one whose first line has lost its
          indentation, is put after the prompt.

Source of the convention: EvalPlus 0.3.1, which keeps the longest run of lines that is valid, its imports, and the
definitions that the function reaches. Departures: the last block counts instead of the longest; of imports, those that
are used; definitions are complete (conditional ones, statements that fill a table); nothing is tried for every pair of
lines, so the time is linear in the length of the answer.
"""

import ast
import builtins
import html
import json
import re
import symtable
import textwrap
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

FENCE = re.compile(r"([ \t]*)(?:(?:>|[-*+]|\d{1,3}[.)])[ \t]+)*(`{3,}|~{3,})[ \t]*(?:\{[.]?)?([\w+#.-]*)")
QUOTE_MARKS = re.compile(r"\A[ \t]*(?:>[ \t]?)+")
PYTHON = re.compile(r"(?:i?py\w*[\d.]*)?")
TAG = r"(?:code|pre|python|answer|solution|output|final_answer|response|script|program|html|body)"
MARK = r"\[/?(?:PYTHON|BEGIN|END|DONE|CODE|ANSWER|SOLUTION|SCRIPT)\]"
LATEX = r"\\begin\{\w+\}(?:\[[^\]\n]*\])?(?:\{\w+\})?"
OPENING = re.compile(rf"^([ \t]*)(?:(?i:<{TAG}\b[^<>\n]*>)|{MARK}|{LATEX})", re.MULTILINE)
CLOSING = re.compile(rf"(?:(?i:</(?:{TAG}|s)>)|{MARK}|\\end\{{\w+\}}|<\|[^|<>\n]{{1,40}}\|>)[ \t]*$", re.MULTILINE)
LATE_FENCE = re.compile(r"(?<=[^\s`])[ \t]*(`{3,}\w*)[ \t]*$", re.MULTILINE)
ONE_LINE = re.compile(r"^([ \t]*)(`+)(?:python[ \t]|py[ \t])?([^`\n]+)\2[.:]?[ \t]*$", re.MULTILINE)
SPACES: dict[int, str | None] = {
    **dict.fromkeys((0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " "),
    **dict.fromkeys((0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF)),
    **dict.fromkeys((0x201C, 0x201D), '"'),
    **dict.fromkeys((0x2018, 0x2019), "'"),
}  # signs of web pages, and those of Python
TRIPLE = re.compile("\"\"\"|'''")
STRINGS = re.compile(r"\"\"\".*?\"\"\"|'''.*?'''|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|#.*")
STARTS = re.compile(r"(?:async\s+def|def|class|import|from|try|if|for|with|while)\b|@|[A-Za-z_][^=\n]*=")
CONTINUES = re.compile(r"[)\]}]|(?:else|elif|except|finally)\b")
RETURNS = re.compile(r"^[ \t]*(?:return|yield|raise)\b", re.MULTILINE)
ASIDE = re.compile(
    r"\b(?:na[iï]ve\w*|brute|alternativ\w*|another|compar\w+|efficient|slow\w*|inefficient\w*|incorrect\w*|wrong\w*|"
    r"mistak\w+|bug\w*|broken|fails?|don.?t|not|avoid\w*|instead|could|would|unoptimi[sz]ed|simpler|other|also|"
    r"recursive|originally|first (?:try|attempt|version))\b",
    re.IGNORECASE,
)
FINAL = re.compile(
    r"\b(?:final\w*|correct\w*|fix\w*|improve\w*|better|best|optimi[sz]ed|optimal|complete\w*|full|updated?|revised?|"
    r"rewrit\w+|solutions?|more efficient|clean\w*|refactored|proper\w*)\b",
    re.IGNORECASE,
)
PROMPT = re.compile(r"[ \t]*(?:>>>|\.\.\.)(?: |$)(.*)")
SETTINGS = ("setrecursionlimit", "set_int_max_str_digits", "stack_size", "seed")  # calls of modules that set something
DYNAMIC = frozenset(("globals", "eval", "exec", "vars"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BUILTIN = frozenset(dir(builtins))
INTRODUCTION = 300  # characters before a block that introduce it
LENIENT = 500_000  # characters that are parsed in all to find statements between prose
LONGEST = 1000  # lines of a statement between prose
LONGEST_BODY = 20_000  # characters
TRIES = 6
PARSING = threading.Lock()  # the filters of warnings belong to all threads


@dataclass(frozen=True)
class Block:
    """A fenced block: its language in small letters, its code, and the end of the text before it."""

    language: str
    code: str
    before: str = ""


@dataclass(frozen=True)
class Statement:
    """A statement at top level: its lines, the global names that it binds and uses, and those that it changes."""

    node: ast.stmt
    text: str
    first: int
    last: int
    binds: frozenset[str]
    uses: frozenset[str]
    changes: frozenset[str]

    @property
    def defines(self) -> bool:
        """True for a function or class and a name with a value, also under a condition."""
        return isinstance(self.node, (*FUNCTIONS, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If, ast.Try))

    @property
    def future(self) -> bool:
        """True for an import that has to come first."""
        return isinstance(self.node, ast.ImportFrom) and self.node.module == "__future__"


@dataclass(frozen=True)
class Source:
    """A text with its statements. `whole`: all of it parses, so that its lines can be kept as they are."""

    text: str
    statements: tuple[Statement, ...]
    whole: bool


@dataclass(frozen=True)
class Target:
    """The function that a program must define, the code that the answer completes, and code for before a definition."""

    entry: str
    prompt: str = ""
    above: str = ""
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        name = re.escape(self.entry)
        pattern = rf"^[ \t]*(?:>>> )?(?:(?:def|async\s+def|class)\s+{name}\b|{name}[ \t]*(?::[^=\n]*)?=(?!=))"
        object.__setattr__(self, "pattern", re.compile(pattern, re.MULTILINE))

    def in_text(self, text: str) -> bool:
        """Return whether a line of a text may define the function."""
        return bool(self.pattern.search(text.translate(SPACES)))


def program(answer: str, target: Target) -> tuple[str | None, str]:
    """Return the program in an answer and the rule that found it (block, body, text), or None and what is missing."""
    text = answer.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
    fenced = _fenced(text)
    for each in _readings(text, fenced):
        read = _read(each, fenced if each == text else _fenced(each), target)
        if read is not None:
            return read
    return _broken(text, fenced, target)


def _readings(text: str, fenced: Sequence[Block]) -> Iterator[str]:
    """Yield an answer as it is, without the tags in it, and what is in its JSON."""
    yield text
    if (plain := without_tags(text)) != text:
        yield plain
    yield from _in_json(text, fenced)


def _fenced(text: str) -> list[Block]:
    return [block for block in blocks(text) if block.code.strip()] if "```" in text or "~~~" in text else []


def _read(text: str, fenced: Sequence[Block], target: Target) -> tuple[str, str] | None:
    """Return the program in one reading of an answer, and the rule that found it."""
    python = [block for block in fenced if PYTHON.fullmatch(block.language)]
    for group in (python, fenced if len(fenced) > len(python) else []):
        if code := _of_blocks(group, target):
            return code, "block"
    if code := _of_text(text, target):
        return code, "text"
    for block in reversed((python or fenced)[-TRIES:]):
        if code := as_body(block.code, target):
            return code, "body"
    if not fenced and (code := as_body(text, target)):
        return code, "text"
    return None


def _broken(text: str, fenced: Sequence[Block], target: Target) -> tuple[str | None, str]:
    """Return a program that defines the function but does not parse, so that its error is reported."""
    for block in reversed(fenced):
        if target.in_text(block.code):
            return _joined([], target.above, textwrap.dedent(block.code)), "block"
    lines = text.strip().splitlines()
    if lines and not fenced and target.in_text(text) and STARTS.match(lines[0]):
        return _joined([], target.above, text), "text"
    return None, f"no function {target.entry}" if fenced or (lines and STARTS.match(lines[0])) else "no code"


# --- texts


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks in order; one that is never closed extends to the end.

    A fence in a string of three quotes, or indented by four more columns than the block's own, belongs to the code.
    """
    lines = text.split("\n")
    ends = {mark: text.count("\n", 0, max(0, text.rfind(mark))) for mark in ('"""', "'''")}
    result, inside, depth, quote, quoted = list[tuple[str, list[str], str]](), "", 0, "", False
    before = list[str]()
    for number, line in enumerate(lines):
        fence = FENCE.match(line.translate(SPACES)) if "```" in line or "~~~" in line else None
        rest = line[fence.end() :].strip(" \t}") if fence else ""
        language = fence[3].lower() if fence else ""
        column = len(fence[1].expandtabs(4)) if fence else 0
        in_string = bool(quote) and ends[quote] > number
        if inside and fence and fence[2].startswith(inside) and not language and not rest:
            if column <= depth + 3 and not in_string:
                inside, before = "", []
                continue
        elif fence and "`" not in rest and not (inside and (in_string or not language)):
            inside, depth, quote, quoted = fence[2], column, "", line.lstrip().startswith(">")
            result.append((language, [], "\n".join(before)[-INTRODUCTION:]))
            before = []
            continue
        if inside:
            result[-1][1].append(QUOTE_MARKS.sub("", line) if quoted else line)
            quote = _open_quote(line, quote) if '"""' in line or "'''" in line else quote
        else:
            before.append(line)
    return [Block(language, "\n".join(code), intro) for language, code, intro in result]


def _open_quote(line: str, quote: str) -> str:
    """Return the mark of the string that is open after a line; empty if there is none."""
    for mark in TRIPLE.findall(line):
        quote = mark if not quote else "" if mark == quote else quote
    return quote


def without_tags(text: str) -> str:
    """Return the text without tags of HTML, LaTeX and models around code, where they begin or end a line.

    A fence at the end of a line gets a separate line, and a line in backquotes loses them.
    """
    for _ in range(3):  # one in the other: <pre><code>
        earlier, text = text, CLOSING.sub("", OPENING.sub(r"\1", text))
        if text == earlier:
            break
    return LATE_FENCE.sub(r"\n\1", ONE_LINE.sub(r"\1\3", text)) if "`" in text else text


def _in_json(text: str, fenced: Sequence[Block]) -> Iterator[str]:
    """Yield the texts in the object that an answer, or its last fenced block, consists of."""
    for code in (*(block.code for block in fenced[-1:]), text):
        try:
            value = json.loads(code, strict=False) if code.strip().startswith("{") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield from (each for each in value.values() if isinstance(each, str))


def _plain(code: str) -> str:
    """Return code as it was before a web page changed its spaces and escaped its signs."""
    return html.unescape(code.translate(SPACES)).translate(SPACES)


def _spellings(code: str, target: Target) -> Iterator[str]:
    """Yield the code, then without the changes of a web page, then what was typed in an interactive session."""
    yield from dict.fromkeys((code, code.translate(SPACES), _plain(code)))
    typed = [match[1] for match in map(PROMPT.match, code.split("\n")) if match] if ">>> " in code else []
    if target.in_text("\n".join(typed)):
        yield "\n".join(typed)


# --- statements


def _parsed(text: str) -> ast.Module | SyntaxError:
    """Return the syntax tree of a text, or the error; one without a line is that of a text which is too deep."""
    try:
        with PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, too deep
        return SyntaxError(str(error))


def _source(code: str, target: Target) -> Source:
    """Return the statements of a text; where it does not parse, those that parse by themselves."""
    for text in map(textwrap.dedent, _spellings(code, target)):
        tree = _parsed(text)
        if isinstance(tree, ast.Module):
            return Source(text, tuple(filter(None, _statements(tree, text.split("\n")))), True)
    return Source(code, tuple(_between_prose(code, target)), False)


def _statements(tree: ast.Module, lines: Sequence[str], offset: int = 0) -> list[Statement | None]:
    """Return the statements of a tree; None for one that has no place at top level, as `return` has none."""
    spans = [(_first(node) - 1, node.end_lineno or node.lineno) for node in tree.body]
    lasts, firsts = [-1, *(last for _, last in spans)], [*(first for first, _ in spans[1:]), len(lines)]
    return [
        _statement(node, lines, span, offset, alone=last <= span[0] and span[1] <= first)
        for node, span, last, first in zip(tree.body, spans, lasts, firsts, strict=False)
    ]


def _first(node: ast.stmt) -> int:
    return min((each.lineno for each in getattr(node, "decorator_list", [])), default=node.lineno)


def _statement(
    node: ast.stmt, lines: Sequence[str], span: tuple[int, int], offset: int, alone: bool
) -> Statement | None:
    """Return a statement with its names. `alone`: it shares no line with another one."""
    try:
        text = "\n".join(lines[slice(*span)]) if alone else ast.unparse(node)
        with PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = symtable.symtable(text, "answer", "exec")
        binds, uses = _names(table)
        changes = _changes(node) & (uses | binds)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if isinstance(node, ast.AnnAssign) and node.value is None:
        binds = frozenset()
    return Statement(node, text, span[0] + offset, span[1] + offset, binds, uses, changes)


def _names(table: symtable.SymbolTable) -> tuple[frozenset[str], frozenset[str]]:
    """Return the global names that a statement binds, and those that it uses, functions inside of it included."""
    symbols = table.get_symbols()
    binds = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported() or s.is_namespace()}
    uses = {s.get_name() for s in symbols if s.is_referenced()}
    inner = list(table.get_children())
    while inner:
        child = inner.pop()
        uses |= {s.get_name() for s in child.get_symbols() if s.is_global()}
        inner += child.get_children()
    return frozenset(binds), frozenset(uses)


def _changes(node: ast.stmt) -> frozenset[str]:
    """Return the names whose objects a statement changes: `a.b = 1`, `a[b] = 1`, `a.append(1)`, also in a loop."""
    names = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute | ast.Subscript) and not isinstance(each.ctx, ast.Load):
            names.add(_root(each, calls=True))
        elif isinstance(each, ast.Expr) and isinstance(each.value, ast.Call):
            function = each.value.func
            names.add(_root(function, calls=False) if isinstance(function, ast.Attribute) else "")
        elif isinstance(each, ast.Global):
            names.update(each.names)
    return frozenset(names - {""})


def _root(node: ast.expr, calls: bool) -> str:
    """Return the name at the beginning of `a.b[c].d`; with `calls`, also of `a().b`. Empty if there is none."""
    while isinstance(node, ast.Attribute | ast.Subscript) or (calls and isinstance(node, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _between_prose(code: str, target: Target) -> Iterator[Statement]:
    """Yield the statements of a text that has other lines between them."""
    plain = code.translate(SPACES)
    defined = target.pattern.search(plain)
    if not defined:
        return
    base = len(defined[0]) - len(defined[0].lstrip())
    lines = [line[base:] if not line[:base].strip() else line.lstrip() for line in plain.split("\n")]
    raw = [line[base:] if not line[:base].strip() else line.lstrip() for line in code.split("\n")]
    budget, start = LENIENT, 0
    while start < len(lines) and budget > 0:
        if not STARTS.match(lines[start]):
            start += 1
            continue
        end = _end(lines, start)
        piece = "\n".join(raw[start:end])
        budget -= len(piece) + 1
        for spelling in dict.fromkeys((piece, piece.translate(SPACES), _plain(piece))):
            tree, whole = _without_prose(spelling.split("\n"))
            if isinstance(tree, ast.Module):
                yield from filter(None, _statements(tree, whole, start))
                start += len(whole) - 1
                break
        start += 1


def _without_prose(lines: list[str]) -> tuple[ast.Module | SyntaxError, list[str]]:
    """Return the tree of a statement, without the lines behind it that do not parse, and its lines."""
    tree = _parsed("\n".join(lines))
    for _ in range(TRIES):
        number = tree.lineno if isinstance(tree, SyntaxError) else None
        if not number or not 1 < number <= len(lines) or lines[number - 1][:1].isspace():  # inside of the statement
            break
        lines = lines[: number - 1]
        tree = _parsed("\n".join(lines))
    return tree, lines


def _end(lines: Sequence[str], start: int) -> int:
    """Return the line after a statement, which is indented, continued, or has an open bracket or string."""
    quote, depth = "", 0
    for number in range(start, min(len(lines), start + LONGEST)):
        line = lines[number]
        free = number > start and bool(line) and not line[0].isspace() and not quote and depth <= 0
        if free and not (CONTINUES.match(line) or lines[number - 1].startswith("@")):
            return number
        if not quote:
            plain = STRINGS.sub("", line)
            depth += sum(map(plain.count, "([{")) - sum(map(plain.count, ")]}"))
        quote = _open_quote(line, quote)
    return min(len(lines), start + LONGEST)


# --- the program


def _of_blocks(group: Sequence[Block], target: Target) -> str | None:
    """Return the program of the best block that defines the function, with what it lacks from the others."""
    named = [place for place, block in enumerate(group) if target.in_text(block.code)]
    sources = {place: _source(group[place].code, target) for place in named}
    ranks = {place: _rank(sources[place], group[place], target) for place in named}
    best = max(ranks.values(), default=0)
    if not best:
        return None
    chosen = max(place for place, rank in ranks.items() if rank == best)
    others = [block.code for place, block in enumerate(group) if place != chosen]
    return _composed(sources[chosen], others[:chosen][::-1] + others[chosen:], target)


def _rank(source: Source, block: Block, target: Target) -> int:
    """Return 0 for a block without the function, 1 without its body, 2 for another version than the right one, 3."""
    definitions = [each for each in source.statements if each.defines and target.entry in each.binds]
    if not definitions:
        return 0
    if all(map(_is_stub, definitions)):
        return 1
    paragraph = block.before.strip().rpartition("\n\n")[2]
    comments = re.match(r"(?:[ \t]*#.*\n)*", block.code)
    introduction = f"{paragraph}\n{comments[0] if comments else ''}"
    return 2 if ASIDE.search(introduction) and not FINAL.search(introduction) else 3


def _is_stub(statement: Statement) -> bool:
    """Return whether a function has no body: a docstring, `pass`, `...`, or a NotImplementedError."""
    node = statement.node
    if not isinstance(node, FUNCTIONS):
        return False
    return all(
        isinstance(each, ast.Pass)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        or (isinstance(each, ast.Raise) and "NotImplemented" in ast.unparse(each))
        for each in node.body
    )


def _of_text(text: str, target: Target) -> str | None:
    """Return the program in an answer without fences around it."""
    if not target.in_text(text):
        return None
    source = _source(text, target)
    found = any(each.defines and target.entry in each.binds for each in source.statements)
    return _composed(source, [], target) if found else None


def _composed(source: Source, others: Iterable[str], target: Target) -> str:
    """Return the program of a source: the lines that the function reaches, after what other texts and the prompt have.

    others: further texts, in the order in which a missing name is looked for.
    """
    reached, names = _reached(source.statements, [target.entry], target.entry)
    above = _source(target.above, target).statements if target.above.strip() else ()
    bound = {name for each in (*source.statements, *above) for name in each.binds} | BUILTIN
    extra = list[Statement]()
    for code in others:
        missing = names - bound
        if not any(re.search(rf"\b{re.escape(name)}\b", code) for name in missing):
            continue
        more, further = _reached(_source(code, target).statements, missing, target.entry)
        extra = [each for each in more if not each.binds & bound] + extra
        names |= further
        bound |= {name for each in more for name in each.binds}
    body = _lines(source, reached) if source.whole else "\n".join(each.text for each in reached if not each.future)
    futures = [each.text for each in (*extra, *source.statements) if each.future]
    return _joined(futures, target.above, "\n".join([*(each.text for each in extra if not each.future), body]))


def _reached(statements: Sequence[Statement], wanted: Iterable[str], entry: str) -> tuple[list[Statement], set[str]]:
    """Return the statements that bind or change these names, or names that they use in turn; and all those names."""
    entries = [place for place, each in enumerate(statements) if each.defines and entry in each.binds]
    usable = {
        place: each
        for place, each in enumerate(statements)
        if _usable(each, bool(entries) and place > entries[0], entry) and not _is_replaced(each, statements)
    }
    fillers = {name: each.changes for each in usable.values() for name in each.binds if each.defines}
    modules = {name for each in usable.values() if _is_import(each) for name in each.binds}
    of_name: dict[str, list[int]] = {}
    for place, each in usable.items():
        for name in each.binds | (_changed(each, fillers) - modules) | _set_modules(each, modules):
            of_name.setdefault(name, []).append(place)
        if each.defines and isinstance(each.node, (*FUNCTIONS, ast.ClassDef)):
            of_name.setdefault("", []).append(place)  # for programs that look names up as texts
    names, kept = set(wanted), {place for place, each in usable.items() if _is_setting(each)}
    waiting = [*names, *(name for place in kept for name in usable[place].uses)]
    while waiting:
        name = waiting.pop()
        names.add(name)
        for place in of_name.pop("" if name in DYNAMIC else name, []):
            if place not in kept:
                kept.add(place)
                waiting += usable[place].uses - names
    return [statements[place] for place in sorted(kept)], names


def _usable(statement: Statement, after_entry: bool, entry: str) -> bool:
    """Return whether a statement may belong to the program: no test, no `if __name__`, nothing that hides its names."""
    node = statement.node
    if isinstance(node, ast.Assert | ast.Return | ast.Raise) or "__name__" in statement.uses:
        return False
    if (
        not after_entry
        or not statement.binds
        or isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom))
    ):
        return True
    return not (statement.binds <= BUILTIN or (entry in statement.binds and _called(statement) == entry))


def _is_replaced(statement: Statement, statements: Sequence[Statement]) -> bool:
    """Return whether a function without a body has one in another place."""
    if not _is_stub(statement):
        return False
    return not all(_is_stub(each) for each in statements if each.defines and each.binds & statement.binds)


def _is_import(statement: Statement) -> bool:
    return isinstance(statement.node, ast.Import | ast.ImportFrom)


def _called(statement: Statement) -> str | None:
    """Return the name of the function whose result a statement assigns, or which it calls; None if there is none."""
    value = getattr(statement.node, "value", None)
    if not isinstance(value, ast.Call):
        return None
    return value.func.id if isinstance(value.func, ast.Name) else ""


def _changed(statement: Statement, fillers: dict[str, frozenset[str]]) -> frozenset[str]:
    """Return the names that a statement changes at once, or by a call of a function such as `fill_table()`."""
    if isinstance(statement.node, (*FUNCTIONS, ast.ClassDef)):
        return frozenset()
    called = _called(statement) if isinstance(statement.node, ast.Expr) else None
    return statement.changes | (fillers.get(called, frozenset()) if called else frozenset())


def _is_setting(statement: Statement) -> bool:
    """Return whether a statement acts on all of the program: a limit of recursion, or an import of every name."""
    node = statement.node
    if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
        return True
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Call) and getattr(value.func, "attr", getattr(value.func, "id", "")) in SETTINGS


def _set_modules(statement: Statement, modules: set[str]) -> set[str]:
    """Return the modules that a statement assigns to, as `decimal.getcontext().prec = 50` does."""
    return set(statement.changes & modules) if isinstance(statement.node, ast.Assign) else set()


def _lines(source: Source, statements: Sequence[Statement]) -> str:
    """Return the lines of a source without those of other statements and without futures."""
    kept = [each for each in statements if not each.future]
    places = {id(each) for each in kept}
    gone = {n for each in source.statements if id(each) not in places for n in range(each.first, each.last)}
    if any(number in gone for each in kept for number in range(each.first, each.last)):  # they share a line
        return "\n".join(each.text for each in kept)
    return "\n".join(line for number, line in enumerate(source.text.split("\n")) if number not in gone)


def _joined(futures: Sequence[str], above: str, code: str) -> str:
    parts = ["\n".join(dict.fromkeys(futures)), f"{above.rstrip()}\n" if above.strip() else "", code.strip("\n")]
    return "\n".join(filter(None, parts)) + "\n"


# --- bodies


def as_body(code: str, target: Target) -> str | None:
    """Return the prompt with code as the body of its function; None if there is no prompt, or it cannot be one."""
    if not target.prompt or len(code) > LONGEST_BODY or not RETURNS.search(code) or target.in_text(code):
        return None
    lines = _plain(code).split("\n")
    starts = [i for i, line in enumerate(lines) if line.strip() and (i < 2 or not lines[i - 1].strip())]
    for start in starts[:TRIES]:
        bodies = list(_indented("\n".join(lines[start:]).rstrip()))
        for cut in (False, True):
            for body in bodies:
                if whole := _with_prompt(body, target, cut):
                    return whole
    return None


def _indented(text: str) -> Iterator[str]:
    """Yield a body in the indentations that it may have had."""
    first, _, rest = text.partition("\n")
    if first[:1].isspace():
        yield text
        yield textwrap.indent(textwrap.dedent(text), "    ")
        return
    depths = {len(line) - len(line.lstrip()) for line in rest.split("\n") if line[:1].isspace() and line.strip()}
    for depth in dict.fromkeys((4, *sorted(depths)[:TRIES], 2, 8)):  # the first line has lost its own
        yield f"{' ' * depth}{text}"
    yield f"\t{text}"
    yield textwrap.indent(text, "    ")


def _with_prompt(body: str, target: Target, cut: bool) -> str | None:
    """Return the prompt with a body, without the lines after it that do not belong to it; None if it is no body.

    cut: leave out lines that do not parse, and all after them.
    """
    prompt = target.prompt.rstrip().split("\n")
    lines = [*prompt, *body.split("\n")]
    tree = _parsed("\n".join(lines))
    for _ in range(TRIES if cut else 0):
        if isinstance(tree, ast.Module | IndentationError) or not len(prompt) + 1 < (tree.lineno or 0) <= len(lines):
            break
        first = (tree.lineno or 1) - 1
        if lines[first][:1].isspace() and lines[first - 1].strip():  # it may belong to the body
            break
        lines = lines[:first]
        tree = _parsed("\n".join(lines))
    if not isinstance(tree, ast.Module):
        return None
    statements = _statements(tree, lines)
    source = Source("\n".join(lines), tuple(filter(None, statements)), True)
    functions = [each for each in source.statements if each.defines and target.entry in each.binds]
    if None in statements or not functions or functions[0].last <= len(prompt) or _is_stub(functions[0]):
        return None
    if not RETURNS.search("\n".join(lines[len(prompt) :])):
        return None
    reached, _ = _reached(source.statements, [target.entry], target.entry)
    places = {id(each) for each in reached}
    own = [each for each in source.statements if each.first < len(prompt) or id(each) in places]
    return _lines(source, own).rstrip("\n") + "\n"
