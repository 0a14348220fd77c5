"""Optimisers: AdamW, AdamW with 8-bit moments, and Adafactor; weight decay on all trained weights or on matrices."""

import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lowtax.common.errors import UserError
from lowtax.training.settings import Train

NAMES = {"adamw": "AdamW", "adamw_8bit": "AdamW8bit", "adafactor": "Adafactor"}


def check(settings: Train) -> None:
    """Refuse an optimiser that this machine does not have.

    Raises:
        UserError: Its package is not installed, or there is no GPU.
    """
    if settings.optimizer != "adamw_8bit":
        return
    if find_spec("bitsandbytes") is None:
        raise UserError("train.optimizer adamw_8bit needs bitsandbytes: pip install 'lowtax[8bit]'.")
    if not torch.cuda.is_available():
        raise UserError("train.optimizer adamw_8bit runs on a GPU, and there is none: use adamw or adafactor.")


def make(settings: Train, live: Sequence[nn.Parameter], master: Sequence[Tensor], fused: bool) -> torch.optim.Optimizer:
    """Return the optimiser of a run.

    Args:
        live: the trained parameters of the model.
        master: for each, the tensor that the optimiser moves.
        fused: use torch's fused kernel of AdamW.
    """
    groups = _groups(settings, live, master)
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    how: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    how |= {"betas": settings.betas, "eps": settings.epsilon}
    if settings.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **how)  # type: ignore[no-any-return]
    return torch.optim.AdamW(groups, fused=fused or None, **how)


def relative_rate(settings: Train, master: Sequence[Tensor]) -> str | None:
    """Return a sentence about a learning rate that is not AdamW's, or None.

    Adafactor moves a weight matrix by the rate times its root mean square (Shazeer and Stern 2018, arXiv:1804.04235,
    section 8), AdamW by the rate itself.
    """
    if settings.optimizer != "adafactor":
        return None
    sizes = [float(m.detach().norm()) / m.numel() ** 0.5 for m in master if m.dim() > 1]
    if not sizes:
        return None
    size = statistics.median(sizes)
    return (
        f"adafactor's learning rate is relative to the size of a weight, {size:.2g} here (median of the matrices): "
        f"{settings.lr:g} is about {settings.lr * size:.1g} of adamw"
    )


def _groups(settings: Train, live: Sequence[nn.Parameter], master: Sequence[Tensor]) -> Any:
    """Return the tensors that the optimiser moves; in two groups if norms and biases do not decay."""
    if settings.decayed == "all":
        return list(master)
    ranks = [len(getattr(p, "ds_shape", p.shape)) for p in live]  # ZeRO-3 keeps the true shape there
    matrices = [m for m, rank in zip(master, ranks, strict=True) if rank > 1]
    others = [m for m, rank in zip(master, ranks, strict=True) if rank <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
