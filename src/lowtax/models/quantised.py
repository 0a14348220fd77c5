"""4-bit bases for LoRA (QLoRA): the linear layers in NF4 by bitsandbytes, all else in the precision of computation.

Dettmers et al. 2023, arXiv:2305.14314. A block of 64 weights has 16 levels, at the quantiles of a normal distribution
(NF4), and one scale, which is quantised again (double quantisation): 4.127 bits a weight. Each product takes the
weights as they are dequantised. Embeddings, norms and the output matrix are not quantised, and neither are fused
experts, which are no linear layers.

It is a precision like the others, of training and evaluation alike: `nf4` computes in bfloat16, as published, and
`nf4-float32` in float32. An adapter belongs to the base as it is published: its files, edits and merges know nothing of
the 4 bits.
"""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from lowtax.common.borders import reason
from lowtax.common.errors import UserError
from lowtax.common.log import say

COMPUTED = {"nf4": "bfloat16", "nf4-float32": "float32"}  # precisions, with that of their computation
BITS = 4 + (8 + 32 / 256) / 64  # of a weight: its own, and its share of the scales
FULL = ("Full fine-tuning", "use a LoRA placement, or set precision to bfloat16")
VLLM = ("The engine vllm", "use the engine hf, or set precision to bfloat16")
INSTALL = "pip install 'lowtax[quantized]'"


def computed(precision: str) -> str:
    """Return the precision of computation: for `nf4` bfloat16, for plain precisions themselves."""
    return COMPUTED.get(precision, precision)


def refuse(precision: str, what: str, remedy: str) -> None:
    """Refuse a 4-bit base where only plain weights will do.

    Args:
        what: the subject of the error, such as "Full fine-tuning". remedy: what to do instead.

    Raises:
        UserError: the precision is a 4-bit one.
    """
    if precision in COMPUTED:
        raise UserError(f"{what} needs plain weights, and precision {precision} has them in 4 bits: {remedy}.")


def require(precision: str, on: torch.device) -> None:
    """Check that bitsandbytes has 4-bit weights on a device, by quantising a block.

    Raises:
        UserError: it is not installed, or too old for the device.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(f"precision {precision} needs bitsandbytes: {INSTALL}.")
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        block = torch.ones(64, 1, dtype=torch.bfloat16, device=on)
        packed, state = quantize_4bit(block, quant_type="nf4", compress_statistics=True)
        works = bool((dequantize_4bit(packed, state) == 1).all())
        why = "it does not return what it is given"
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError) as error:
        works, why = False, reason(error)
    if not works:
        raise UserError(
            f"precision {precision} does not work with the bitsandbytes that is installed, on {on.type} ({why}): "
            f"{INSTALL.replace('install', 'install --upgrade')}, or set precision to bfloat16."
        )


def arguments(precision: str, on: torch.device) -> dict[str, Any]:
    """Return the arguments with which transformers loads a model in 4 bits, on a device."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, computed(precision)),
    )
    place = torch.device("cuda", torch.cuda.current_device()) if on == torch.device("cuda") else on
    return {"quantization_config": config, "device_map": {"": place}}


def is_packed(weight: Tensor) -> bool:
    """Test whether a weight is one of bitsandbytes' 4-bit ones, whose numbers are packed in bytes."""
    return type(weight).__name__ == "Params4bit"


def plain(weight: Tensor) -> Float[Tensor, "out in"]:
    """Return a weight as the products of its layer see it: itself, or a 4-bit one dequantised, anew each time."""
    if not is_packed(weight):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(weight.detach(), weight.quant_state)  # type: ignore[attr-defined]  # bitsandbytes'
    return whole


def tell(ref: str, model: nn.Module) -> None:
    """Say how much of a model is in 4 bits, or refuse one of which nothing is.

    Raises:
        UserError: it has no linear layer inside its blocks.
    """
    packed = [p for p in model.parameters() if is_packed(p)]
    if not packed:
        raise UserError(
            f"No weight of {ref!r} is in 4 bits, since none is that of a linear layer (fused experts are none): set "
            "precision to bfloat16."
        )
    small = sum(2 * p.numel() for p in packed)  # two weights a byte
    others = sum(p.numel() for p in model.parameters() if not is_packed(p))
    say(f"  {ref}: {len(packed)} linear layers, {small / (small + others):.0%} of the weights, are in 4 bits (NF4)")
