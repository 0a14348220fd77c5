"""Names of files that strangers write, in cards, rows, recipes and folders: none leads out of its folder, and what is
written goes through no link and replaces no file of the user's.
"""

import os
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError

CHECKPOINT = "checkpoint-"  # and the number of its step
WRITTEN = ("data", "replies", "verdicts", "answers", "grades", "tracking", "arms", "arms/*", "arms/*/*")
"""The folders that lowtax writes to inside a study or an output folder."""


def refuse_links(folder: Path) -> None:
    """Check that no link leads out of the places in a folder that lowtax writes to.

    A checkpoint may be a link: it is only read. So may the folder itself, whose name is the user's own.

    Raises:
        UserError: a link does.
    """
    for place in WRITTEN:
        for path in folder.glob(place):
            if path.is_symlink():
                raise is_link(path)
            if path.is_dir():
                for entry in path.iterdir():
                    if entry.is_symlink() and not is_checkpoint(entry.name):
                        raise is_link(entry)


def is_link(path: Path) -> UserError:
    """Return the error for a link in a folder that lowtax writes to."""
    return UserError(
        f"{path} is a link, and lowtax writes through none that is inside of a folder: put what it leads to in its "
        "place, or delete it."
    )


def is_checkpoint(name: Any) -> bool:
    """Return whether a value is the name of a checkpoint's folder: checkpoint-40."""
    number = name.removeprefix(CHECKPOINT) if isinstance(name, str) and name.startswith(CHECKPOINT) else ""
    return number.isascii() and number.isdigit() and len(number) <= 15


def below(folder: Path, *parts: str) -> Path:
    """Return a path below a folder, whose parts are names from a file that a stranger may have written.

    Raises:
        UserError: one of them is no plain name.
    """
    for part in parts:
        if part in ("", ".", "..") or set(part) & set("/\\\0") or len(os.fsencode(part)) > 255:
            raise UserError(f"{part[:100]!r} would lead out of {folder}: it must be the name of a file in it.")
    return folder.joinpath(*parts)


def file_name(name: str) -> str:
    """Return a name that is valid for a file."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def sharing(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names that would be the name of one file, also where case is ignored; None if there are none."""
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(unicodedata.normalize("NFC", file_name(name)).casefold(), name)) != name:
            return other, name
    return None


def refuse_inputs(out: Path, names: Collection[str], *inputs: Path | None) -> None:
    """Refuse an output folder in which a result would replace a file that is read.

    Args:
        names: of the files that are written there.

    Raises:
        UserError: an input is one of them.
    """
    for path in inputs:
        for name in names:
            if path is not None and (out / name).exists() and path.exists() and (out / name).samefile(path):
                raise UserError(f"{path} would be replaced by the {name} of this command: choose another --out.")


def refuse_foreign(out: Path, begun: Collection[str], names: Collection[str]) -> None:
    """Refuse an output folder that has files which results would replace, and that lowtax has not written to yet.

    Args:
        begun: names of which a folder that lowtax has written to has at least one.
        names: of the results.

    Raises:
        UserError: there are such files.
    """
    if any(os.path.lexists(out / name) for name in begun):
        return
    if theirs := [name for name in names if os.path.lexists(out / name)]:
        raise UserError(
            f"{out} already has {', '.join(theirs)}, which the results would replace, and lowtax has not written to "
            "that folder: choose another --out, or move the file away."
        )
