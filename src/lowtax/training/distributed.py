"""Several processes: the accelerator of a training run, from the recipe, a DeepSpeed JSON and the launcher.

`accelerate launch`, `torchrun` and `deepspeed` start several processes; the examples of an optimiser step are then
divided among them, data parallel or sharded by ZeRO (a DeepSpeed JSON) or FSDP2 (an accelerate configuration).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin

from lowtax.common.errors import UserError
from lowtax.common.launch import world as world
from lowtax.models import loading, quantised
from lowtax.training import trackers
from lowtax.training.settings import Execution, Train
from lowtax.training.zero_config import ds_config

PATIENCE = timedelta(hours=3)  # while rank 0 works alone: sampling training answers, saving a checkpoint of 130 GB


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block on rank 0 first, then on the other ranks."""
    if world()[1] == 1:
        yield
    else:
        with _state().main_process_first():
            yield


def _state() -> PartialState:
    """Return the group of all processes; the first call creates it."""
    return PartialState(cpu=loading.device().type == "cpu", timeout=PATIENCE)


def accelerator(execution: Execution, settings: Train, precision: str, folder: Path) -> Accelerator:
    """Return the Accelerator of a training run.

    Precision and gradient accumulation of an accelerate configuration are ignored: the loop does both.

    Args:
        execution, settings, precision: of the job.
        folder: folder for trackers' files.

    Raises:
        UserError: The recipe, the DeepSpeed JSON and the launcher contradict each other.
    """
    trackers.check(execution.report_to)
    cpu = loading.device().type == "cpu"
    if cpu and precision == "float16":
        raise UserError("float16 trains on GPUs only, and none was found: write bf16 or no precision into the JSON.")
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it found no GPU
    zero = _zero(execution, settings, precision)
    if fsdp := by_fsdp():
        quantised.refuse(precision, "FSDP", "set precision to bfloat16, or train in one process a GPU without FSDP")
    # accelerate takes one plugin per process, so a second arm changes the one of the first
    plugin_exists = _state().distributed_type == DistributedType.DEEPSPEED
    acc = Accelerator(
        cpu=cpu and zero is None,  # with cpu=True accelerate ignores DeepSpeed
        mixed_precision="bf16" if fsdp and precision == "bfloat16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        deepspeed_plugins=DeepSpeedPlugin(hf_ds_config=zero) if zero and not plugin_exists else None,
        log_with=list(execution.report_to) or None,
        project_dir=folder,
    )
    if zero and plugin_exists:
        plugin = acc.state.deepspeed_plugin
        plugin.deepspeed_config.clear()
        plugin.deepspeed_config.update(zero)
        plugin.set_deepspeed_weakref()  # transformers reads the configuration through it when it loads a model
    _require_type(acc, "DEEPSPEED" if zero else "FSDP" if fsdp else None)
    return acc


def by_fsdp() -> bool:
    """Test whether the environment requests FSDP, as accelerate's launcher does."""
    return _launcher_requests("FSDP")


def _launcher_requests(framework: str) -> bool:
    """Test whether accelerate's launcher requests FSDP or DEEPSPEED."""
    return os.environ.get(f"ACCELERATE_USE_{framework}", "false").lower() == "true"


def _zero(execution: Execution, settings: Train, precision: str) -> dict[str, Any] | None:
    """Return DeepSpeed's configuration and initialise DeepSpeed; None if the recipe has none."""
    if not execution.deepspeed:
        if _launcher_requests("DEEPSPEED"):
            raise UserError(
                "accelerate's configuration requests DeepSpeed: give lowtax its JSON, with --ds_config FILE."
            )
        return None
    config = ds_config(Path(execution.deepspeed), settings, precision, world()[1], execution.micro_batch_size)
    if find_spec("deepspeed") is None:
        raise UserError("A DeepSpeed configuration needs the deepspeed package: pip install 'lowtax[deepspeed]'.")
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            "DeepSpeed needs a launcher, even for one device: torchrun --nproc-per-node 1 -m lowtax train ..."
        )
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On CPU DeepSpeed would compile its own collectives, for minutes; gloo has all that is needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(_state().backend, auto_mpi_discovery=False, verbose=False)
    return config


def _require_type(acc: Accelerator, requested: str | None) -> None:
    """Check that accelerate made what was requested, since it may silently make something else.

    Raises:
        UserError: It made something else.
    """
    if acc.num_processes != world()[1]:
        raise UserError(
            f"accelerate sees {acc.num_processes} processes and the environment {world()[1]}: start lowtax with "
            "torchrun, accelerate launch or deepspeed."
        )
    actual = acc.distributed_type.value
    if requested == "FSDP" and not (actual == "FSDP" and acc.is_fsdp2):
        raise UserError(
            "lowtax trains with FSDP2 on GPUs: set fsdp_version: 2 in accelerate's configuration"
            + ("." if actual == "FSDP" else f", or remove FSDP from it (here accelerate would run {actual}).")
        )
    if requested == "DEEPSPEED" and actual != "DEEPSPEED":
        raise UserError(
            "This process has trained without DeepSpeed before, and accelerate cannot change that: start a new process."
        )


def gather(acc: Accelerator, number: int) -> list[int]:
    """Return the number that each process passes."""
    return acc.gather(torch.tensor([number], device=acc.device)).tolist()  # type: ignore[no-any-return]
