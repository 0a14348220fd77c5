"""What other libraries print while we work is not for our users: progress bars and advice, not errors."""

import os
import warnings


def quiet_libraries() -> None:
    """Call before transformers is imported. A user's own settings of these variables win."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, would complain
    from transformers.utils import logging

    logging.disable_progress_bar()
