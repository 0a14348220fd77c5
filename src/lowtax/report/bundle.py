"""Write the page of one study or several: a folder that a browser opens without a server, or one HTML file.

```
PAGE/index.html                the page; its policy lets nothing in it load from elsewhere, or run but its scripts
PAGE/assets/                   page.css, data.js, charts.js, tables.js, reader.js, page.js
PAGE/assets/vendor/            d3.min.js, plot.umd.min.js, LICENSES.txt
PAGE/data/overview.js          measures, warnings, recipes and cards; all that the first view needs
PAGE/data/requests.js          the index of prompts, and questions.js that of questions
PAGE/data/requests-N.js        the texts of some prompts, read when one of them is opened
PAGE/data/training.js  anatomy.js  stamp.js
```
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowtax import __version__
from lowtax.common.errors import UserError
from lowtax.common.files import atomic_folder, write_text
from lowtax.common.palette import COLOURS
from lowtax.report import curves, overview, stored, vendored
from lowtax.report.across import on_common_prompts
from lowtax.report.answers import answers
from lowtax.report.differences import differences
from lowtax.report.encoding import as_block, as_chunk, as_json, as_lines, as_script, source_hash
from lowtax.report.replies import Replies
from lowtax.report.space import write_readme
from lowtax.report.subjects import Columns

ASSETS = Path(__file__).parent / "page"
SCRIPTS = ("data.js", "charts.js", "tables.js", "reader.js", "page.js")
STYLE = "page.css"
MADE_BY = '<meta name="generator" content="lowtax report">'
MOST_REPLIES, LONGEST_TEXT = 2_000, 3_000  # of one file: replies, and characters of a thought or an answer
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; connect-src 'none'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; trusted-types lowtax; require-trusted-types-for 'script'"
)
Put = Callable[[str, str], None]  # takes the name of a part and its text


@dataclass(frozen=True)
class Page:
    """A page that was written: its file, the number of replies on it and of all, and its size in bytes."""

    path: Path
    replies: int
    all_replies: int
    size: int


def write(
    folders: Sequence[Path], out: Path, single_file: bool = False, follow: bool = False, space: bool = False
) -> Page:
    """Write the page of the studies in some folders.

    Args:
        out: a folder, which is replaced if it holds such a page; with `single_file`, a file.
        single_file: write one HTML file, with at most `MOST_REPLIES` replies and questions.
        follow: the page looks for a newer one while it is open.
        space: the folder is also a static Space of the Hugging Face hub.

    Raises:
        UserError: a folder holds no study, `out` holds something else, or the studies have no prompt in common.
    """
    studies = stored.read_all(folders)
    if single_file:
        _refuse_other(out, out)
        return _write_file(studies, out)
    _refuse_other(out, out / "index.html")
    with atomic_folder(out, replace=True) as work:
        (work / "data").mkdir()
        shown, everything = _write_data(studies, lambda name, text: _write_script(work, name, text), follow)
        (work / "assets" / "vendor").mkdir(parents=True)
        for name in (*vendored.scripts(), f"vendor/{vendored.LICENCES}", *SCRIPTS, STYLE):
            (work / "assets" / name).write_text(_asset(name), encoding="utf-8")
        (work / "index.html").write_text(_folder_page(), encoding="utf-8")
        if space:
            write_readme(work, studies)
        size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    return Page(out / "index.html", shown, everything, size)


def _refuse_other(out: Path, index: Path) -> None:
    """Refuse a place that holds anything but an earlier page.

    Raises:
        UserError: it does.
    """
    if not os.path.lexists(out) or (out.is_dir() and out != index and not any(out.iterdir())):
        return
    if not _is_ours(index):
        raise UserError(f"{out} holds something else than a page of lowtax: choose another --out, or move it away.")


def is_page(folder: Path) -> bool:
    """Return True if a folder holds a page that `write` wrote."""
    return _is_ours(folder / "index.html")


def _is_ours(index: Path) -> bool:
    if not index.is_file():
        return False
    with index.open("rb") as handle:
        return MADE_BY.encode() in handle.read(4096)


def _write_script(work: Path, name: str, text: str) -> None:
    script = as_chunk(name, text) if name.rpartition("-")[2].isdigit() else as_script(name, text)
    (work / "data" / f"{name}.js").write_text(script, encoding="utf-8")


def _write_file(studies: Sequence[stored.Stored], out: Path) -> Page:
    blocks: list[str] = []
    shown, everything = _write_data(
        studies, lambda name, text: blocks.append(as_block(name, text)), False, MOST_REPLIES, LONGEST_TEXT
    )
    text = _file_page("".join(blocks))
    write_text(out, text)
    return Page(out, shown, everything, len(text.encode()))


def _write_data(
    studies: Sequence[stored.Stored], put: Put, follow: bool, most: int | None = None, longest: int | None = None
) -> tuple[int, int]:
    """Hand every part of the data to `put`, with its name; return the number of replies on the page, and of all.

    Args:
        most: the largest number of replies, and as many answers; None for all.
        longest: the characters of a thought or an answer; None for all.
    """
    columns = Columns(studies)
    columns.add_rows()
    both = {"requests": Replies(studies, columns, False), "questions": Replies(studies, columns, True)}
    if len(studies) > 1:
        studies = on_common_prompts(studies, columns, both["requests"], both["questions"])
    shown = everything = 0
    parts: dict[str, dict[str, int]] = {}
    for name, replies in both.items():
        prompts = replies.chosen(most)
        numbers: list[int] = []
        for number, lines in enumerate(replies.chunks(prompts, longest)):
            put(f"{name}-{number}", as_lines(len(numbers), lines))
            numbers += [number] * len(lines)
        index = replies.index(prompts, numbers, len(columns.numbers))
        put(name, as_json(index))
        shown, everything = shown + index["replies"], everything + len(replies)
        parts[name] = {"prompts": len(prompts), "replies": index["replies"], "all_replies": len(replies)}
        if replies.replaced:
            studies[0].notes.append(f"{replies.replaced:,} older replies to the same prompts are left out.")
    put("training", as_json({"runs": curves.training(studies), "names": curves.CURVES}))
    put("anatomy", as_json(curves.anatomy(studies)))
    first = overview.overview(studies, columns) | {
        "answers": answers(studies, columns, both["requests"], both["questions"]),
        "differences": differences([study.recipe for study in studies]),
        "colours": COLOURS,
        "parts": parts,
        "version": __version__,
    }
    key = hashlib.sha256(as_json([[study.name, study.recipe_text] for study in studies]).encode()).hexdigest()[:16]
    stamp = hashlib.sha256(as_json([first, parts]).encode()).hexdigest()[:16]
    put("overview", as_json(first | {"key": key, "stamp": stamp, "follow": follow}))
    put("stamp", as_json({"stamp": stamp}))
    return shown, everything


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _folder_page() -> str:
    """Return the page of a folder, whose scripts and style are files beside it."""
    scripts = "".join(f'<script src="assets/{name}"></script>\n' for name in (*vendored.scripts(), *SCRIPTS))
    policy = POLICY.format(scripts="'self'", styles=f"'self' {vendored.style_source()}")
    return _filled(policy, f'<link rel="stylesheet" href="assets/{STYLE}">', scripts)


def _file_page(blocks: str) -> str:
    """Return the page in one file, whose scripts and style are in it, allowed by their hashes."""
    texts, style = [_asset(name) for name in (*vendored.scripts(), *SCRIPTS)], _asset(STYLE)
    policy = POLICY.format(
        scripts=" ".join(map(source_hash, texts)), styles=f"{source_hash(style)} {vendored.style_source()}"
    )
    scripts = "".join(f"<script>{text}</script>\n" for text in texts)
    return _filled(policy, f"<style>{style}</style>", f"{blocks}{scripts}<!--\n{vendored.licences()}-->\n")


def _filled(policy: str, style: str, scripts: str) -> str:
    text = _asset("index.html")
    for name, value in (("{{policy}}", policy), ("{{style}}", style), ("{{scripts}}", scripts)):
        before, _, after = text.partition(name)
        text = before + value + after
    return text
