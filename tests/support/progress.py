"""Progress messages in tests: collected in a list, or handed to a function."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lowtax.common import log


@contextmanager
def progress_to(output: Callable[[str], None]) -> Iterator[None]:
    """Hand every line of progress to a function."""
    log.OUTPUTS.append(output)
    try:
        yield
    finally:
        log.OUTPUTS.remove(output)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the lines of progress."""
    lines: list[str] = []
    with progress_to(lines.append):
        yield lines
