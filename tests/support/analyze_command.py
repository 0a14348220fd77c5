"""The command `analyze` in this process: its output, which must be of a run without an error."""

import typer
from typer.testing import CliRunner

from lowtax.cli import analyze

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(analyze.analyze)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout
