"""Helpers shared by all commands: progress output, the lock of an output folder, and the options of an engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowtax.common.errors import UserError

if TYPE_CHECKING:
    from lowtax.engines.settings import EngineSettings

Engine = Annotated[str, typer.Option("--engine", help="hf, vllm, openai (a server), or file.py:Class.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, bfloat16 or float32.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows that the engine decodes together.")]
Thinking = Annotated[str, typer.Option("--thinking", help="default, on or off, for templates with a switch.")]


def own_folder(out: Path) -> Any:
    """Quiet libraries, and return a lock that keeps other processes out of a folder."""
    from lowtax.common.files import locked
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    return locked(out)


def engine_settings(engine: str, precision: str, batch_size: int, thinking: Any) -> "EngineSettings":
    """Return the settings that the four options name; `auto` becomes the precision that the hardware has.

    Raises:
        UserError: A value is invalid.
    """
    from lowtax.engines.settings import EngineSettings
    from lowtax.models import loading

    return EngineSettings(engine, loading.precision(precision), batch_size, thinking_switch(thinking))


def thinking_switch(value: str) -> Any:
    """Return the value of --thinking.

    Raises:
        UserError: The value is not default, on or off.
    """
    if value not in ("default", "on", "off"):
        raise UserError(f"--thinking must be default, on or off (found {value!r}).")
    return value
