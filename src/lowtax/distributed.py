"""Many devices: what accelerate and DeepSpeed are told, and how whole weights come back from them.

One process needs nothing of this. `accelerate launch`, `torchrun` and `deepspeed` start several, and then an
optimiser step's examples are dealt out to them: data parallel, or sharded by ZeRO (a DeepSpeed JSON) or by FSDP2
(an accelerate configuration).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import Tensor, nn

from lowtax import models
from lowtax.errors import UserError
from lowtax.recipe import Execution, Train
from lowtax.zero import ds_config


def world() -> tuple[int, int]:
    """(rank, number of processes), as the launcher said."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def main_first() -> Iterator[None]:
    """What follows is done by the first process, and then by the others, which find it done."""
    if world()[1] == 1:
        yield
    else:
        with PartialState(cpu=models.device().type == "cpu").main_process_first():
            yield


def accelerator(execution: Execution, settings: Train, precision: str, folder: Path) -> Accelerator:
    """The Accelerator of a training run, on whatever the launcher gave.

    What an accelerate configuration says of precision and accumulation is overruled: the loop does both.

    Raises:
        UserError: What the recipe, the DeepSpeed JSON and the launcher ask for does not go together.
    """
    cpu = models.device().type == "cpu"
    if cpu and precision == "float16":
        raise UserError("float16 trains on GPUs only, and there is none here: write bf16 or no precision into the JSON.")
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would find out, and complain
    zero = _zero(execution, settings, precision)
    by_fsdp = _launcher_asks("FSDP")
    state = PartialState(cpu=cpu)
    later = state.distributed_type == DistributedType.DEEPSPEED  # a second arm; accelerate takes one plugin a process
    acc = Accelerator(
        cpu=cpu and zero is None,  # where accelerate is told of a CPU, it forgets DeepSpeed
        mixed_precision="bf16" if by_fsdp and precision == "bfloat16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        deepspeed_plugins=DeepSpeedPlugin(hf_ds_config=zero) if zero and not later else None,
        log_with=_trackers(execution.report_to),
        project_dir=folder,
    )
    if zero and later:
        plugin = acc.state.deepspeed_plugin
        plugin.deepspeed_config.clear()
        plugin.deepspeed_config.update(zero)
        plugin.set_deepspeed_weakref()  # for transformers, which asks how it shall load
    _refuse_other(acc, "DEEPSPEED" if zero else "FSDP" if by_fsdp else None)
    return acc


def _launcher_asks(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


def _zero(execution: Execution, settings: Train, precision: str) -> dict[str, Any] | None:
    """DeepSpeed's configuration, if the recipe asks for it; DeepSpeed is made ready then."""
    if not execution.deepspeed:
        if _launcher_asks("DEEPSPEED"):
            raise UserError("accelerate's configuration asks for DeepSpeed: give lowtax its JSON, with --ds_config FILE.")
        return None
    found = ds_config(Path(execution.deepspeed), settings, precision, world()[1], execution.micro_batch_size)
    if find_spec("deepspeed") is None:
        raise UserError("A DeepSpeed configuration needs the deepspeed package: pip install 'lowtax[deepspeed]'.")
    if "LOCAL_RANK" not in os.environ:
        raise UserError("DeepSpeed needs a launcher, also for one device: torchrun --nproc-per-node 1 -m lowtax train ...")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU it would compile collectives of its own, for minutes; gloo has all that is needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    state = PartialState(cpu=models.device().type == "cpu")
    deepspeed.init_distributed(state.backend, auto_mpi_discovery=False, verbose=False)
    return found


def _refuse_other(acc: Accelerator, asked: str | None) -> None:
    """UserError if accelerate did not make what was asked for, which it may do without a word."""
    if acc.num_processes != world()[1]:
        raise UserError(
            f"accelerate sees {acc.num_processes} processes and the environment {world()[1]}: start lowtax with torchrun, "
            "accelerate launch or deepspeed."
        )
    if asked and acc.distributed_type != DistributedType[asked]:
        raise UserError(
            f"{asked} was asked for and accelerate runs {acc.distributed_type.value}: it shards by FSDP on several GPUs "
            "only, and by DeepSpeed only if that was asked for from the start of the process."
        )
    if asked == "FSDP" and not acc.is_fsdp2:
        raise UserError("lowtax trains with FSDP2: set fsdp_version: 2 in accelerate's configuration.")


def _trackers(names: list[str]) -> list[str] | None:
    packages = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
    for name in names:
        if find_spec(packages[name]) is None:
            raise UserError(f"report_to {name!r} needs a package that is not installed: pip install {packages[name]}.")
    return names or None


def sharded(acc: Accelerator) -> bool:
    """Whether no process holds whole weights."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        return bool(acc.state.deepspeed_plugin.zero_stage == 3)
    return bool(acc.distributed_type == DistributedType.FSDP)


def keeps_masters(acc: Accelerator) -> bool:
    """Whether the framework itself keeps float32 copies of 16-bit weights, and each process a part of them."""
    return acc.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def keeper(acc: Accelerator) -> str:
    """Who keeps the state of an unfinished run, and in how many parts; a run can go on only with the same."""
    if not keeps_masters(acc):
        return "lowtax"
    name = f"ZeRO-{acc.state.deepspeed_plugin.zero_stage}" if acc.deepspeed_plugin else "FSDP2"
    return f"{name} on {acc.num_processes} processes"


def everyone(acc: Accelerator, number: int) -> list[int]:
    """The number that each process has."""
    return acc.gather(torch.tensor([number], device=acc.device)).tolist()  # type: ignore[no-any-return]


@torch.no_grad()
def whole(acc: Accelerator, p: Tensor) -> Tensor:
    """A trained parameter, whole, in float32 if the framework keeps it so. All processes ask for it together."""
    if acc.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(p)  # type: ignore[no-any-return]
    p = p.detach()
    return p.full_tensor() if isinstance(p, torch.distributed.tensor.DTensor) else p


def fit_precision(acc: Accelerator, model: nn.Module) -> None:
    """Undo what DeepSpeed does to the precision of a model, where one process computes otherwise.

    - ZeRO-3 rounds rotary frequencies to 16 bits as it loads; at position 1,000 that is an angle of its own.
    - It would round adapters too. Beside bfloat16 weights they stay in float32; beside float16 ones DeepSpeed keeps the
      float32 copies, since only its optimiser scales the loss.
    """
    if acc.distributed_type != DistributedType.DEEPSPEED:
        return
    for module in list(model.modules()):
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name in ("inv_freq", "original_inv_freq") and buffer.dtype != torch.float32:
                exact = type(module)(module.config).get_buffer(name)
                module.register_buffer(name, exact.to(buffer.device), persistent=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    if acc.state.deepspeed_plugin.deepspeed_config.get("fp16", {}).get("enabled"):
        for p in trained:
            p.data = p.data.half()
    elif all(p.dtype == torch.float32 for p in trained):
        acc.state.deepspeed_plugin.deepspeed_config["bf16"] = {"enabled": False}


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
