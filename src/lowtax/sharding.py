"""Weights, optimisers and precision where a framework keeps them: DeepSpeed's ZeRO, or FSDP2."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from lowtax import models
from lowtax.errors import UserError
from lowtax.methods import Methods
from lowtax.objective import bare
from lowtax.zero import fill_sizes


def sharded(acc: Accelerator) -> bool:
    """Whether no process holds whole weights."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        return bool(acc.deepspeed_plugin.zero_stage == 3)
    return bool(acc.distributed_type == DistributedType.FSDP)


def keeps_masters(acc: Accelerator) -> bool:
    """Whether the framework itself keeps float32 copies of 16-bit weights, and each process a part of them."""
    return acc.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def keeper(acc: Accelerator) -> str:
    """Who keeps the state of an unfinished run, and in how many parts; a run can go on only with the same."""
    if not keeps_masters(acc):
        return "lowtax"
    name = f"ZeRO-{acc.deepspeed_plugin.zero_stage}" if acc.deepspeed_plugin else "FSDP2"
    return f"{name} on {acc.num_processes} processes"


def loader(acc: Accelerator) -> Callable[[str, str], PreTrainedModel]:
    """How a model is loaded: for FSDP into the host's memory, from where it is cut into shards."""
    return partial(models.load_model, on=torch.device("cpu") if acc.distributed_type == DistributedType.FSDP else None)


def refuse(acc: Accelerator, chosen: Methods, ref: str) -> None:
    """UserError for methods, and for a model, that cannot be trained this way."""
    if sharded(acc) and acc.deepspeed_plugin and ref.endswith(".gguf"):
        raise UserError(
            f"ZeRO-3 shards weights while it reads them, which no GGUF file allows (found {ref!r}): use ZeRO-2."
        )
    by_fsdp = acc.distributed_type == DistributedType.FSDP
    if chosen and by_fsdp and isinstance(acc.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):
        raise UserError(
            "Methods need adapters on the GPU: set fsdp_offload_params: false in accelerate's configuration."
        )
    if chosen and _in_float16(acc):
        raise UserError("Methods need adapters in float32, which float16 training rounds: set precision to bfloat16.")


def _in_float16(acc: Accelerator) -> bool:
    return bool(acc.deepspeed_plugin and acc.deepspeed_plugin.deepspeed_config.get("fp16", {}).get("enabled"))


@torch.no_grad()
def whole(acc: Accelerator, p: Tensor) -> Tensor:
    """A trained parameter, whole, in float32 if the framework keeps it so. All processes ask for it together."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(p)  # type: ignore[no-any-return]
    p = p.detach()
    return p.full_tensor() if isinstance(p, DTensor) else p


@torch.no_grad()
def as_live(p: Tensor) -> Tensor:
    """A parameter, moved or frozen, whole and as the model has it. All processes ask for it together."""
    if "ds_id" in vars(p):  # ZeRO-3's
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([p]):
            return p.detach().clone()
    p = p.detach()
    return p.full_tensor() if isinstance(p, DTensor) else p


@torch.no_grad()
def whole_gradient(acc: Accelerator, p: Tensor) -> Tensor:
    """The gradient of a trained parameter, averaged over processes, whole, in float32. All ask for it together."""
    if acc.deepspeed_plugin:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(p).float()  # type: ignore[no-any-return]
    if p.grad is None:
        return torch.zeros(p.shape, device=p.device)
    return (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).float()


@torch.no_grad()
def set_gradient(acc: Accelerator, p: Tensor, value: Tensor) -> None:
    """Put a whole gradient, the same in all processes, in the place of what the framework has."""
    if not acc.deepspeed_plugin:
        p.grad = _as_kept(p, value)
    elif "ds_id" in vars(p):
        from deepspeed.utils import safe_set_local_grad

        safe_set_local_grad(p, _own_part(acc, p, value))
    elif (whole := getattr(p, "_hp_grad", None)) is not None:  # of ZeRO-1 that adds up bfloat16 gradients in float32
        whole.copy_(value.view_as(whole))
    else:
        p.set_full_hp_grad(value)  # type: ignore[attr-defined]  # DeepSpeed's


@torch.no_grad()
def set_weight(acc: Accelerator, p: Tensor, value: Tensor) -> None:
    """Put a whole weight, the same in all processes, in the place of what the framework and the model have."""
    if not acc.deepspeed_plugin:
        p.copy_(_as_kept(p, value))
    elif "ds_id" in vars(p):
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(p, _own_part(acc, p, value))
        with GatheredParameters([p], modifier_rank=0):
            p.copy_(value)
    else:
        p.set_full_hp_param(value)  # type: ignore[attr-defined]
        p.copy_(value)


def _as_kept(p: Tensor, value: Tensor) -> Tensor:
    """The value, sharded as FSDP shards the parameter."""
    return distribute_tensor(value, p.device_mesh, p.placements).to(p.dtype) if isinstance(p, DTensor) else value


def _own_part(acc: Accelerator, p: Any, value: Tensor) -> Tensor:
    """What this process has of it under ZeRO-3, which fills up the last part."""
    size = p.ds_tensor.numel()
    flat = nn.functional.pad(value.flatten(), (0, size * acc.num_processes - value.numel()))
    return flat.narrow(0, size * acc.process_index, size)


def fit(acc: Accelerator, model: nn.Module, seen: bool) -> None:
    """Make the weights what the framework can shard, and undo where it computes otherwise than one process.

    - ZeRO-3 rounds rotary frequencies to 16 bits as it loads; at position 1,000 that is an angle of its own.
    - DeepSpeed would round adapters too. Beside bfloat16 weights they stay in float32; beside float16 ones its
      optimiser keeps the float32 copies, since only that one scales the loss.
    - Where methods see the gradients, lowtax clips them.

    Raises:
        UserError: accelerate would untie the model's embeddings.
    """
    inner: Any = bare(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    if acc.distributed_type == DistributedType.FSDP:
        takes_apart = (
            acc.state.fsdp_plugin.cpu_ram_efficient_loading and inner.config.get_text_config().tie_word_embeddings
        )
        if takes_apart and inner.get_input_embeddings().weight.requires_grad:
            raise UserError(
                "The model's input and output share their weights, which accelerate would take apart: set "
                "fsdp_cpu_ram_efficient_loading: false in its configuration."
            )
    if acc.distributed_type != DistributedType.DEEPSPEED:
        return
    for module in list(inner.modules()):
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name in ("inv_freq", "original_inv_freq") and buffer.dtype != torch.float32:
                exact = type(module)(module.config).get_buffer(name)
                module.register_buffer(name, exact.to(buffer.device), persistent=False)
    config = acc.deepspeed_plugin.deepspeed_config
    if seen:
        config["gradient_clipping"] = 0.0
    config["zero_optimization"] = fill_sizes(config["zero_optimization"], inner.config.get_text_config().hidden_size)
    if _in_float16(acc):
        for p in trained:
            p.data = p.data.half()
    elif all(p.dtype == torch.float32 for p in trained):
        config["bf16"] = {"enabled": False}


def save_parts(acc: Accelerator, wrapped: Any, optimizer: Any, folder: Path) -> bool:
    """Let each process write its part of weights and optimiser; False if the main process has them whole."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        wrapped.save_checkpoint(str(folder), "zero", exclude_frozen_parameters=True)
    elif acc.distributed_type == DistributedType.FSDP:
        moved = [p for p in wrapped.parameters() if p.requires_grad]
        torch.save({"moved": moved, "optimizer": optimizer.state_dict()}, folder / f"part-{acc.process_index}.pt")
    return keeps_masters(acc)


def load_parts(acc: Accelerator, wrapped: Any, optimizer: Any, folder: Path) -> bool:
    """Give each process back what `save_parts` wrote; False if it wrote nothing."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        wrapped.load_checkpoint(str(folder), "zero", load_module_strict=False)
    elif acc.distributed_type == DistributedType.FSDP:
        own = torch.load(folder / f"part-{acc.process_index}.pt", map_location="cpu", weights_only=True)
        with torch.no_grad():
            for p, saved in zip((p for p in wrapped.parameters() if p.requires_grad), own["moved"], strict=True):
                p.copy_(saved)
        optimizer.load_state_dict(own["optimizer"])
    return keeps_masters(acc)


def release(acc: Accelerator, model: nn.Module) -> None:
    """Give back what DeepSpeed holds on to after a run; of ZeRO-3 that is all weights, and buffers of gigabytes."""
    acc.free_memory()
    if acc.distributed_type == DistributedType.DEEPSPEED:
        for p in model.parameters():
            p.data = p.data.new_empty(0)
            vars(p).clear()
