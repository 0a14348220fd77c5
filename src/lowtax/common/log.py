"""The one place that speaks: progress and messages for people, and the silence of other libraries."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from lowtax.common import launch

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
    for output in OUTPUTS:
        output(text)


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
    """Silence the libraries; call it before transformers is imported. Variables that the user has set stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it finds no accelerator
    from transformers.utils import logging

    logging.disable_progress_bar()
