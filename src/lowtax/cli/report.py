"""The commands `report` and `view`: the page of a study, written, and shown in a browser."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.log import say, tell

if TYPE_CHECKING:
    from lowtax.report.bundle import Page
    from lowtax.training.settings import Execution

Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Studies: the --out folders of `lowtax run`.")]
PAGE = "report"


def report(
    folders: Folders,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PAGE", help="Folder of the page; DIR/report by default.")
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Write one HTML file, with at most 2,000 replies.")
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Write the page again whenever the study has new results, until its run ends or Ctrl-C."
        ),
    ] = False,
    space: Annotated[
        bool,
        typer.Option("--space", help="Make the folder a static Space: `hf upload OWNER/NAME PAGE --repo-type space`."),
    ] = False,
    cards: Annotated[
        bool, typer.Option("--cards", help="Also write the measured rates into the model cards of the checkpoints.")
    ] = False,
) -> None:
    """Write the page of a study, or of several with the same prompts: a folder that a browser opens without a server.

    Example: lowtax report runs/quickstart

    Example: lowtax report runs/a runs/b --out both.html --single-file
    """
    from lowtax.report import bundle

    if out is None:
        if len(folders) > 1:
            raise UserError("A page of several studies needs --out PAGE, the folder to write to.")
        out = folders[0] / (f"{PAGE}.html" if single_file else PAGE)
    if single_file and (follow or space):
        raise UserError("--follow and --space need a page in a folder: leave out --single-file.")
    for folder in folders if cards else ():
        from lowtax.report.cards import write_cards

        tell(f"model cards with rates: {write_cards(folder)} in {folder / 'arms'}")
    if not follow:
        tell(described(bundle.write(folders, out, single_file, space=space)))
        return
    _follow(folders, out, space)


def _follow(folders: Sequence[Path], out: Path, space: bool) -> None:
    """Write the page until the run that is under way has ended, or Ctrl-C."""
    from lowtax.report import bundle, following

    written = False
    try:
        for last in following.rounds(folders):
            try:
                page = bundle.write(folders, out, follow=not last, space=space)
            except UserError as error:
                if not written or last:
                    raise
                say(f"the page stays as it is: {error}")  # a file that was rewritten meanwhile: the next look reads it
                continue
            written = True
            tell(described(page)) if last else say(described(page))
    except KeyboardInterrupt:
        say(f"stopped; {out} stays as it is" if written else "stopped; no page was written")


def described(page: "Page") -> str:
    """Return a sentence on a page: where it is, its size, and the number of replies."""
    part = "" if page.replies == page.all_replies else f" of {page.all_replies:,}, spread evenly"
    return f"page: {page.path} ({page.size / 1e6:.1f} MB, {page.replies:,}{part} replies and answers)"


def view(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study, or a page that `lowtax report` wrote.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; any free one by default.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Show the page of a study in a browser, from a server that only this machine reaches, until Ctrl-C.

    The page is written first if the folder is a study.

    Example: lowtax view runs/quickstart
    """
    from lowtax.report import bundle, serving

    if not bundle.is_page(folder):
        page = bundle.write([folder], folder / PAGE)
        tell(described(page))
        folder = folder / PAGE
    serving.serve(folder, port, browser)


def write_beside(out: Path) -> None:
    """Write the page of a study into its folder. A page that cannot be written is a line, since the study is done."""
    from lowtax.report import bundle

    try:
        page = bundle.write([out], out / PAGE)
    except (UserError, OSError) as error:
        say(f"no page was written: {error}")
        return
    tell(described(page))


def send_results(out: Path, execution: "Execution") -> None:
    """Send a study's results to its trackers. What a tracker refuses is a line, since the study is done."""
    if not execution.report_to:
        return
    from lowtax.report import tracking

    try:
        sent = tracking.send(out, execution)
    except (UserError, OSError) as error:
        say(f"results were not sent: {error}")
        return
    if line := tracking.described(sent):
        tell(line)


def check_trackers(names: Sequence[str] | None) -> None:
    """Refuse trackers that do not exist or are not installed, before a table is made.

    Raises:
        UserError: there is one.
    """
    if not names:
        return
    from lowtax.training.trackers import PACKAGES, check

    for name in names:
        if name not in PACKAGES:
            raise UserError(f"There is no tracker {name!r}; {did_you_mean(name, PACKAGES)}")
    check(names)


def to_trackers(execution: "Execution", names: Sequence[str] | None) -> "Execution":
    """Return a recipe's `execution` with the trackers that the user names alone: the recipe may be a stranger's."""
    if execution.report_to and not names:
        listed = " ".join(f"--report-to {name}" for name in execution.report_to)
        say(f"nothing is sent to the trackers that the recipe names: {listed} sends the results")
    return execution.model_copy(update={"report_to": list(names or ())})


def compare_several(folders: Sequence[Path], out: Path | None, of_one: Sequence[object]) -> None:
    """Write one table and one figure of several studies, and print the table.

    Args:
        of_one: the values of the options that are for one study alone.

    Raises:
        UserError: there is no folder to write to, or such an option.
    """
    from lowtax.common.names import refuse_foreign
    from lowtax.report.across import compare_studies

    if out is None:
        raise UserError("A table of several studies needs --out DIR, the folder to write to.")
    if any(value is not None for value in of_one):
        raise UserError(
            "--against, --safety, --over-refusal, --expect, --labels and --report-to are for one study: give one "
            "folder."
        )
    if not _has_table_of_several(out):
        refuse_foreign(out, (), ("table.json", "table.md", "frontier.png"))
    compare_studies(folders, out)
    tell((out / "table.md").read_text())
    tell(f"picture: {out / 'frontier.png'}")


def _has_table_of_several(out: Path) -> bool:
    """Return True if a folder has a table that this command wrote: one that says what differs between recipes."""
    from lowtax.common.files import read_json

    try:
        table = read_json(out / "table.json")
    except UserError:
        return False
    return isinstance(table, dict) and "differences" in table
