"""The command `sandbox`: run one program under limits."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lowtax.common.errors import UserError
from lowtax.common.log import tell


def sandbox(
    file: Annotated[Path, typer.Argument(help="Python program.")],
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.05, help="Seconds of wall-clock and of CPU time.")
    ] = 10.0,
    memory: Annotated[int, typer.Option("--memory", min=32, help="MB of memory of each process.")] = 1024,
    files: Annotated[int, typer.Option("--files", min=1, help="MB of files that it may write.")] = 64,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes and threads at a time.")] = 16,
    output: Annotated[int, typer.Option("--output", min=1, help="Bytes of stdout and stderr.")] = 1_000_000,
) -> None:
    """Run an untrusted program under limits.

    The outcome is printed as JSON (docs/explanation/sandbox.md).

    Example: lowtax sandbox program.py --timeout 5 --memory 512
    """
    from lowtax.benchmarks.sandbox.run import LONGEST, Limits, run
    from lowtax.benchmarks.sandbox.values import LARGEST

    if not 0 < timeout <= LONGEST:
        raise UserError(f"--timeout is {timeout:g}: give seconds, at most {LONGEST:,}.")
    try:
        with file.open() as text:
            program = text.read(LARGEST + 1)  # a device may have no end
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as a program ({error}): give a Python file in UTF-8.") from error
    limits = Limits(timeout, max(1, round(timeout + 0.5)), memory, files, processes, output)
    tell(json.dumps(asdict(run(program, limits)) | {"limits": asdict(limits)}))
