"""Weights, gradients and optimiser state that a framework shards: DeepSpeed's ZeRO, or FSDP2."""

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

from lowtax.common.errors import UserError
from lowtax.methods.loading import Methods
from lowtax.models import layer_split, loading, quantised
from lowtax.training.objective import unwrap
from lowtax.training.settings import Execution
from lowtax.training.zero_config import fill_sizes


def sharded(acc: Accelerator) -> bool:
    """Test whether no process holds whole weights (ZeRO-3 and FSDP2)."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        return bool(acc.deepspeed_plugin.zero_stage == 3)
    return bool(acc.distributed_type == DistributedType.FSDP)


def keeps_masters(acc: Accelerator) -> bool:
    """Test whether the framework keeps float32 copies of 16-bit weights, a part of them in each process."""
    return acc.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def state_layout(acc: Accelerator) -> str:
    """Return how the state of an unfinished run is sharded; resuming requires the same layout."""
    if not keeps_masters(acc):
        return "lowtax"
    name = f"ZeRO-{acc.deepspeed_plugin.zero_stage}" if acc.deepspeed_plugin else "FSDP2"
    return f"{name} on {acc.num_processes} processes"


def loader(acc: Accelerator, over_gpus: bool = False) -> Callable[[str, str], PreTrainedModel]:
    """Return the function that loads a model: for FSDP into the host's memory, where it is then sharded.

    Args:
        over_gpus: divide its layers over the GPUs of this process.
    """
    if over_gpus:
        return layer_split.load_divided
    return partial(loading.load_model, on=torch.device("cpu") if acc.distributed_type == DistributedType.FSDP else None)


def require_supported(acc: Accelerator, methods: Methods, ref: str) -> None:
    """Check that methods and model can be trained under this sharding.

    Raises:
        UserError: They cannot.
    """
    if sharded(acc) and acc.deepspeed_plugin and ref.endswith(".gguf"):
        raise UserError(
            f"ZeRO-3 shards weights while it reads them, which GGUF files do not allow (found {ref!r}): use ZeRO-2."
        )
    by_fsdp = acc.distributed_type == DistributedType.FSDP
    if methods and by_fsdp and isinstance(acc.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):
        raise UserError(
            "Methods need adapters on the GPU: set fsdp_offload_params: false in accelerate's configuration."
        )
    if methods and _in_float16(acc):
        raise UserError("Methods need adapters in float32, which float16 training rounds: set precision to bfloat16.")


def require_dividable(acc: Accelerator, execution: Execution, methods: bool, precision: str) -> None:
    """Check that training may divide the layers of a model over GPUs.

    Raises:
        UserError: Something else needs the whole model on one of them.
    """
    others = {
        "DeepSpeed or FSDP": keeps_masters(acc),
        "several processes": acc.num_processes > 1,
        "methods that act in training": methods,
        "execution.compile": execution.compile,
        "execution.release_gradients": execution.release_gradients,
        f"precision {precision}": precision in quantised.COMPUTED,
    }
    if names := [name for name, used in others.items() if used]:
        raise UserError(
            f"execution.layers_over_gpus divides one model over the GPUs of one process, and does not go with "
            f"{' and '.join(names)}: leave one of them out."
        )


def _in_float16(acc: Accelerator) -> bool:
    return bool(acc.deepspeed_plugin and acc.deepspeed_plugin.deepspeed_config.get("fp16", {}).get("enabled"))


@torch.no_grad()
def whole(acc: Accelerator, p: Tensor) -> Tensor:
    """Return a trained parameter as a whole, in float32 if the framework has it so; all processes call together."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(p)  # type: ignore[no-any-return]
    p = p.detach()
    return p.full_tensor() if isinstance(p, DTensor) else p


@torch.no_grad()
def as_live(p: Tensor) -> Tensor:
    """Return a parameter, trained or frozen, as a whole and in the model's precision; all processes call together."""
    if "ds_id" in vars(p):  # ZeRO-3's
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([p]):
            return p.detach().clone()
    p = p.detach()
    return p.full_tensor() if isinstance(p, DTensor) else p


@torch.no_grad()
def whole_gradient(acc: Accelerator, p: Tensor) -> Tensor:
    """Return the whole gradient of a trained parameter, averaged over processes, in float32; all call together."""
    if acc.deepspeed_plugin:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(p).float()  # type: ignore[no-any-return]
    if p.grad is None:
        return torch.zeros(p.shape, device=p.device)
    return (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).float()


@torch.no_grad()
def set_gradient(acc: Accelerator, p: Tensor, value: Tensor) -> None:
    """Replace the framework's gradient of a parameter by a whole one, which is the same in all processes."""
    if not acc.deepspeed_plugin:
        p.grad = _sharded_like(p, value)
    elif "ds_id" in vars(p):
        from deepspeed.utils import safe_set_local_grad

        safe_set_local_grad(p, _zero3_part(acc, p, value))
    elif (whole := getattr(p, "_hp_grad", None)) is not None:  # ZeRO-1, which adds up bfloat16 gradients in float32
        whole.copy_(value.view_as(whole))
    else:
        p.set_full_hp_grad(value)  # type: ignore[attr-defined]  # DeepSpeed's


@torch.no_grad()
def set_weight(acc: Accelerator, p: Tensor, value: Tensor) -> None:
    """Replace a parameter, in the framework and in the model, by a whole one, which is the same in all processes."""
    if not acc.deepspeed_plugin:
        p.copy_(_sharded_like(p, value))
    elif "ds_id" in vars(p):
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(p, _zero3_part(acc, p, value))
        with GatheredParameters([p], modifier_rank=0):
            p.copy_(value)
    else:
        p.set_full_hp_param(value)  # type: ignore[attr-defined]
        p.copy_(value)


def _sharded_like(p: Tensor, value: Tensor) -> Tensor:
    """Return a value sharded as FSDP shards the parameter."""
    return distribute_tensor(value, p.device_mesh, p.placements).to(p.dtype) if isinstance(p, DTensor) else value


def _zero3_part(acc: Accelerator, p: Any, value: Tensor) -> Tensor:
    """Return the part of a value that this process holds under ZeRO-3, which pads the last part."""
    size = p.ds_tensor.numel()
    flat = nn.functional.pad(value.flatten(), (0, size * acc.num_processes - value.numel()))
    return flat.narrow(0, size * acc.process_index, size)


def make_shardable(acc: Accelerator, model: nn.Module, with_methods: bool) -> None:
    """Prepare a loaded model for the framework, and undo what makes it compute otherwise than one process.

    - ZeRO-3 rounds rotary frequencies to 16 bits when it loads a model, which shifts the angles of late positions.
    - DeepSpeed would round adapters too. Beside bfloat16 weights they stay in float32; beside float16 weights its
      optimiser keeps the float32 copies, since only that optimiser scales the loss.
    - Where methods see the gradients, lowtax clips them.

    Raises:
        UserError: accelerate would untie the model's embeddings.
    """
    inner: Any = unwrap(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    if acc.distributed_type == DistributedType.FSDP:
        unties = acc.state.fsdp_plugin.cpu_ram_efficient_loading and inner.config.get_text_config().tie_word_embeddings
        if unties and inner.get_input_embeddings().weight.requires_grad:
            raise UserError(
                "The model's input and output embeddings share their weights, which accelerate would untie: set "
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
    if with_methods:
        config["gradient_clipping"] = 0.0
    config["zero_optimization"] = fill_sizes(config["zero_optimization"], inner.config.get_text_config().hidden_size)
    if _in_float16(acc):
        for p in trained:
            p.data = p.data.half()
    elif all(p.dtype == torch.float32 for p in trained):
        config["bf16"] = {"enabled": False}


def save_parts(acc: Accelerator, wrapped: Any, optimizer: Any, folder: Path) -> bool:
    """Let each process write its part of weights and optimiser; return False if the main process has them whole."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        wrapped.save_checkpoint(str(folder), "zero", exclude_frozen_parameters=True)
    elif acc.distributed_type == DistributedType.FSDP:
        moved = [p for p in wrapped.parameters() if p.requires_grad]
        torch.save({"moved": moved, "optimizer": optimizer.state_dict()}, folder / f"part-{acc.process_index}.pt")
    return keeps_masters(acc)


def load_parts(acc: Accelerator, wrapped: Any, optimizer: Any, folder: Path) -> bool:
    """Restore in each process what `save_parts` wrote; return False if it wrote nothing."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        wrapped.load_checkpoint(str(folder), "zero", load_module_strict=False)
    elif acc.distributed_type == DistributedType.FSDP:
        part = torch.load(folder / f"part-{acc.process_index}.pt", map_location="cpu", weights_only=True)
        with torch.no_grad():
            for p, saved in zip((p for p in wrapped.parameters() if p.requires_grad), part["moved"], strict=True):
                p.copy_(saved)
        optimizer.load_state_dict(part["optimizer"])
    return keeps_masters(acc)


def release(acc: Accelerator, model: nn.Module) -> None:
    """Free the memory that DeepSpeed keeps after a run; under ZeRO-3 these are all weights and large buffers."""
    acc.free_memory()
    if acc.distributed_type == DistributedType.DEEPSPEED:
        for p in model.parameters():
            p.data = p.data.new_empty(0)
            vars(p).clear()
