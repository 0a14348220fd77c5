"""Many devices: what accelerate and DeepSpeed are told, and how whole weights come back from them.

One process needs nothing of this. `accelerate launch`, `torchrun` and `deepspeed` start several, and then an
optimiser step's examples are dealt out to them: data parallel, or sharded by ZeRO (a DeepSpeed JSON) or by FSDP2
(an accelerate configuration).
"""

import json
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

    Raises:
        UserError: What the recipe, the DeepSpeed JSON and the launcher ask for does not go together.
    """
    cpu = models.device().type == "cpu"
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # which DeepSpeed would find out by itself, and complain
    by_fsdp = _asked("ACCELERATE_USE_FSDP")
    first = PartialState(cpu=cpu).distributed_type != DistributedType.DEEPSPEED
    zero = _zero(execution, settings, precision)
    acc = Accelerator(
        cpu=cpu and zero is None,  # DeepSpeed is asked for only where accelerate is not told of a CPU
        mixed_precision="bf16" if by_fsdp and precision == "bfloat16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        deepspeed_plugins=DeepSpeedPlugin(hf_ds_config=zero) if zero and first else None,
        log_with=_trackers(execution.report_to),
        project_dir=folder,
    )
    if zero and not first:  # a second arm: accelerate has one DeepSpeed plugin a process
        acc.state.deepspeed_plugin.deepspeed_config.update(zero)
    return acc


def _asked(variable: str) -> bool:
    """Whether `accelerate launch` asked for something."""
    return os.environ.get(variable, "false").lower() == "true"


def _zero(execution: Execution, settings: Train, precision: str) -> dict[str, Any] | None:
    """The configuration of DeepSpeed, if the recipe asks for it."""
    if not execution.deepspeed:
        return None
    if find_spec("deepspeed") is None:
        raise UserError("A DeepSpeed configuration needs the deepspeed package: pip install 'lowtax[deepspeed]'.")
    import deepspeed

    # On a CPU it would compile a collective of its own for minutes; gloo has all that is needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(PartialState().backend, auto_mpi_discovery=False, verbose=False)
    return ds_config(Path(execution.deepspeed), settings, precision, world()[1])


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
    """Whether the framework itself keeps float32 copies of bfloat16 weights."""
    return acc.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def ds_config(path: Path, settings: Train, precision: str, processes: int) -> dict[str, Any]:
    """The user's DeepSpeed JSON with every "auto" filled from the recipe, and refused where the two disagree.

    The loop deals out examples, accumulates and schedules the learning rate by itself: to DeepSpeed every forward
    pass is a batch of one a process, and what the file says about optimiser and schedule is checked and left out.
    """
    config = _read(path)
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise UserError(
            f"{path}: zero_optimization.stage is {zero.get('stage')!r}; lowtax trains with stage 1, 2 or 3."
        )
    wanted = {
        "train_batch_size": settings.batch_size,
        "gradient_clipping": settings.max_grad_norm,
        "optimizer.params.lr": settings.lr,
        "optimizer.params.weight_decay": settings.weight_decay,
        "fp16.enabled": precision == "float16",
        "bf16.enabled": precision == "bfloat16",
    }
    for key, value in wanted.items():
        found = _at(config, key)
        if found not in (None, "auto", value):
            raise UserError(
                f'{path} says {key} = {found!r}, but the recipe says {value!r}; make them agree, or write "auto" there.'
            )
    kind = config.get("optimizer", {}).get("type", "AdamW")
    if kind not in ("AdamW", "Adam"):
        raise UserError(f"{path} asks for the optimizer {kind!r}; lowtax trains with AdamW: leave that section out.")
    for section in ("optimizer", "scheduler", "fp16", "bf16"):
        config.pop(section, None)
    if precision == "float16":
        config["fp16"] = {"enabled": True}
    if precision == "bfloat16":
        config["bf16"] = {"enabled": True}
    if zero["stage"] == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    for key in [key for key, value in zero.items() if value == "auto"]:
        del zero[key]  # DeepSpeed's own default
    return config | {
        "gradient_clipping": settings.max_grad_norm,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": processes,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "zero_optimization": zero,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"The DeepSpeed configuration {str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"The DeepSpeed configuration {str(path)!r} is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"The DeepSpeed configuration {str(path)!r} is not a JSON object.")
    return found


def _at(config: dict[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, dict):
            return None
        node = node.get(part)
    return node


@contextmanager
def whole(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Meanwhile these parameters are whole in every process, as ZeRO-3 shards them; else nothing happens."""
    if any(getattr(p, "ds_id", None) is not None for p in parameters):  # DeepSpeed marks what it shards
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            yield
    else:
        yield


def full_tensor(p: Tensor) -> Tensor:
    """A whole, detached copy on CPU of a parameter, from a DTensor (FSDP2) or a plain one."""
    p = p.detach()
    if isinstance(p, torch.distributed.tensor.DTensor):
        p = p.full_tensor()
    return p.cpu().clone()
