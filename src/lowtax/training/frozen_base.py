"""The frozen base inside the model that is trained: its adapters are switched off for a forward pass.

No second copy of the weights is needed, so a term that compares the model with its base costs a forward pass and no
memory. Fully fine-tuned models have no base any more, and are refused (`terms`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


@contextmanager
def frozen_base(model: nn.Module) -> Iterator[None]:
    """Let a model compute what its base computes, without gradients and without dropout, inside the block.

    PEFT's `disable_adapter` is not used: it also changes which parameters are trained.
    """
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    training = model.training
    model.eval()
    for layer in layers:
        layer._disable_adapters = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
        model.train(training)
