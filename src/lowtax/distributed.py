"""Many devices: what accelerate and DeepSpeed are told, and what is refused.

One process needs nothing of this. `accelerate launch`, `torchrun` and `deepspeed` start several, and then an
optimiser step's examples are dealt out to them: data parallel, or sharded by ZeRO (a DeepSpeed JSON) or by FSDP2
(an accelerate configuration).
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin

from lowtax import models
from lowtax.errors import UserError
from lowtax.launch import world as world
from lowtax.training_settings import Execution, Train
from lowtax.zero import ds_config

PATIENCE = timedelta(hours=3)  # for what the first process does alone: its own answers, a checkpoint of 130 GB


@contextmanager
def main_first() -> Iterator[None]:
    """What follows is done by the first process, and then by the others, which find it done."""
    if world()[1] == 1:
        yield
    else:
        with _state().main_process_first():
            yield


def _state() -> PartialState:
    """The group of all processes, made on first use."""
    return PartialState(cpu=models.device().type == "cpu", timeout=PATIENCE)


def accelerator(execution: Execution, settings: Train, precision: str, folder: Path) -> Accelerator:
    """The Accelerator of a training run, on whatever the launcher gave.

    What an accelerate configuration says of precision and accumulation is overruled: the loop does both.

    Raises:
        UserError: What the recipe, the DeepSpeed JSON and the launcher ask for does not go together.
    """
    cpu = models.device().type == "cpu"
    if cpu and precision == "float16":
        raise UserError(
            "float16 trains on GPUs only, and there is none here: write bf16 or no precision into the JSON."
        )
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would find out, and complain
    zero = _zero(execution, settings, precision)
    by_fsdp = _launcher_asks("FSDP")
    # For a second arm there is one already, and accelerate takes no other plugin in a process.
    later = _state().distributed_type == DistributedType.DEEPSPEED
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
            raise UserError(
                "accelerate's configuration asks for DeepSpeed: give lowtax its JSON, with --ds_config FILE."
            )
        return None
    found = ds_config(Path(execution.deepspeed), settings, precision, world()[1], execution.micro_batch_size)
    if find_spec("deepspeed") is None:
        raise UserError("A DeepSpeed configuration needs the deepspeed package: pip install 'lowtax[deepspeed]'.")
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            "DeepSpeed needs a launcher, also for one device: torchrun --nproc-per-node 1 -m lowtax train ..."
        )
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU it would compile collectives of its own, for minutes; gloo has all that is needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(_state().backend, auto_mpi_discovery=False, verbose=False)
    return found


def _refuse_other(acc: Accelerator, asked: str | None) -> None:
    """UserError if accelerate did not make what was asked for, which it may do without a word."""
    if acc.num_processes != world()[1]:
        raise UserError(
            f"accelerate sees {acc.num_processes} processes and the environment {world()[1]}: start lowtax with "
            "torchrun, accelerate launch or deepspeed."
        )
    made = acc.distributed_type.value
    if asked == "FSDP" and not (made == "FSDP" and acc.is_fsdp2):
        raise UserError(
            "lowtax trains with FSDP2 on GPUs: set fsdp_version: 2 in accelerate's configuration"
            + ("." if made == "FSDP" else f", or leave FSDP out of it (here accelerate would run {made}).")
        )
    if asked == "DEEPSPEED" and made != "DEEPSPEED":
        raise UserError(
            "This process has trained without DeepSpeed before, and accelerate keeps to that: start it anew."
        )


def _trackers(names: Sequence[str]) -> list[str] | None:
    packages = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
    for name in names:
        if find_spec(packages[name]) is None:
            raise UserError(f"report_to {name!r} needs a package that is not installed: pip install {packages[name]}.")
    return list(names) or None


def everyone(acc: Accelerator, number: int) -> list[int]:
    """The number that each process has."""
    return acc.gather(torch.tensor([number], device=acc.device)).tolist()  # type: ignore[no-any-return]
