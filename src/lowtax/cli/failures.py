"""Messages and exit codes of commands where replies failed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lowtax.common.log import complain

if TYPE_CHECKING:
    from lowtax.common.records import Reply, Verdict


def stored(paths: Iterable[Path]) -> "list[Reply]":
    """Return the replies in files."""
    from lowtax.common.files import read_rows
    from lowtax.common.records import Reply

    return [reply for path in paths for reply in read_rows(path, Reply).values()]


def report_failed_verdicts(verdicts: "Sequence[Verdict]") -> None:
    """Say why verdicts failed if all of them did; the command then ends with code 1."""
    failed = [verdict for verdict in verdicts if verdict.label == "failed"]
    if failed and len(failed) == len(verdicts):
        complain(f"lowtax: all {len(failed)} verdicts failed: {failed[0].error}")
        raise typer.Exit(1)


def report_failures(replies: "Sequence[Reply]") -> None:
    """Say why replies failed. If all of them did, the command ends with code 1."""
    from lowtax.engines.sampling import failures

    if sentence := failures(replies):
        complain(f"lowtax: {sentence}")
        if all(reply.finish == "failed" for reply in replies):
            raise typer.Exit(1)
