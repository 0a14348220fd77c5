"""The one place that speaks: progress and messages for people, and the silence of other libraries."""

import logging
import os
import sys
import warnings
from collections.abc import Callable

LOGGER = logging.getLogger("lowtax")
PRINTED = logging.NullHandler()  # on LOGGER where progress is printed
Say = Callable[[str], None]  # takes a line of progress for people


def say(text: str) -> None:
    """Tell people about progress: printed after `show_progress`, else logged as information by the logger `lowtax`."""
    if PRINTED in LOGGER.handlers:  # printed directly, since libraries change the settings of logging
        print(text, file=sys.stderr, flush=True)
    else:
        LOGGER.info(text)


def show_progress() -> None:
    """Print progress to the standard error from now on, as the command line does."""
    if PRINTED not in LOGGER.handlers:
        LOGGER.addHandler(PRINTED)


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
