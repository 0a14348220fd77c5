"""The one place that speaks: progress, results and messages for people, and the silence of other libraries.

Whatever is printed may hold words of strangers. So all of it passes `display.as_text`, and no other module prints.
"""

import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeVar

from lowtax.common import launch, threads
from lowtax.common.display import as_text
from lowtax.common.imports import uncollected

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

SPEAK_EVERY = 10.0  # seconds between lines of progress
LOGGER = logging.getLogger("lowtax")
OUTPUTS: list[Callable[[str], None]] = [LOGGER.info]  # take each line of progress


def say(text: str) -> None:
    """Tell people about progress: printed after `show_progress`, else logged as information by the logger `lowtax`.

    In a launch of several processes only the first one speaks.
    """
    if launch.world()[0] > 0:
        return
    shown = as_text(text)
    for output in OUTPUTS:
        output(shown)


def tell(text: object, end: str = "\n") -> None:
    """Print a result to the standard output."""
    print(as_text(str(text)), end=end)


def complain(text: str) -> None:
    """Print a message to the standard error, also where progress is silent."""
    _print(as_text(text))


def console(file: IO[str] | None = None, **options: Any) -> "Console":
    """Return a console of rich for tables and colours. Texts have no markup, emoji codes or control characters.

    Args:
        file: the standard output by default.
        options: of `rich.console.Console`.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Safe(Console):
        """A console that shows the characters of every segment as text."""

        def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
            for text, style, control in super().render(*args, **kwargs):
                yield Segment(text if control else as_text(text), style, control)

    return Safe(file=file, markup=False, emoji=False, highlight=False, **options)


def printable_streams() -> None:
    """Let the standard streams write an escape for what their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def counted(items: Iterable[T], total: int, noun: str, size: int = 1) -> Iterator[T]:
    """Yield the items, and say at most every ten seconds how many things are done.

    Args:
        total: the number of all things.
        noun: the things as people call them: `replies judged`.
        size: the things that an item stands for.
    """
    began = spoke = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now, number = time.monotonic(), number * size
        if now - spoke > SPEAK_EVERY and number < total:
            say(f"  {number:,} of {total:,} {noun}, {number / (now - began):.1f} a second")
            spoke = now


def show_progress() -> None:
    """Print progress to the standard error from now on, as the command line does."""
    OUTPUTS[:] = [_print]  # printed directly, since libraries change the settings of logging


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Silence the libraries, and settle torch's threads; call it before transformers is imported.

    Variables that the user has set stay.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    warnings.filterwarnings("ignore", category=FutureWarning)
    with uncollected():
        import torch

    if note := threads.settle():
        say(note)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it finds no accelerator
    from transformers.utils import logging

    logging.disable_progress_bar()
