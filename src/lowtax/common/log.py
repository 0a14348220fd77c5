"""Silencing of other libraries: their progress bars and advice are not for our users; their errors stay."""

import os
import warnings


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
