"""Read a user's DeepSpeed JSON, check it against the recipe, and fill in what lowtax's loop does itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.files import read_mapping
from lowtax.training.settings import Train

SIZES: dict[str, Callable[[int], int]] = {  # hidden size -> elements
    "reduce_bucket_size": lambda n: n * n,
    "stage3_prefetch_bucket_size": lambda n: n * n * 9 // 10,
    "stage3_param_persistence_threshold": lambda n: 10 * n,
}


def ds_config(
    path: Path, settings: Train, precision: str, processes: int, micro_batch_size: int | None = None
) -> dict[str, Any]:
    """Return the user's DeepSpeed JSON with every "auto" filled from the recipe.

    The loop itself divides examples, accumulates gradients and schedules the learning rate. To DeepSpeed every forward
    pass is a batch of one per process; the file's optimiser and schedule are checked and removed.

    Raises:
        UserError: The file is not a DeepSpeed JSON, or contradicts the recipe.
    """
    config = read(path)
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3):
        stage = zero.get("stage") if isinstance(zero, dict) else zero
        raise UserError(f"{path}: zero_optimization.stage is {stage!r}; lowtax trains with stage 1, 2 or 3.")
    _require_agreement(path, config, settings, precision, processes, micro_batch_size)
    scaling = _without_auto(config.get("fp16") or {})
    for section in ("optimizer", "scheduler", "fp16", "bf16"):
        config.pop(section, None)
    if precision == "float16":
        config["fp16"] = scaling | {"enabled": True}
    if precision == "bfloat16":
        config["bf16"] = {"enabled": True}
    config["zero_optimization"] = zero | {"round_robin_gradients": False}  # DeepSpeed reads such weights out scrambled
    return _without_auto(config) | {
        "gradient_clipping": settings.max_grad_norm,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": processes,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def _require_agreement(
    path: Path, config: dict[str, Any], settings: Train, precision: str, processes: int, micro: int | None
) -> None:
    """Check every value against the recipe.

    Raises:
        UserError: One contradicts it; the first is named.
    """
    passes = None if micro is None else -(-settings.batch_size // (micro * processes))
    expected = {  # key of the file: (its name in lowtax, the recipe's value)
        "optimizer.type": ("the optimizer", "AdamW"),
        "optimizer.params.lr": ("train.lr", settings.lr),
        "optimizer.params.weight_decay": ("train.weight_decay", settings.weight_decay),
        "optimizer.params.betas": ("AdamW's betas", [0.9, 0.999]),
        "optimizer.params.eps": ("AdamW's eps", 1e-8),
        "scheduler.params.warmup_max_lr": ("train.lr", settings.lr),
        "scheduler.params.warmup_num_steps": ("train.warmup_steps", settings.warmup_steps),
        "train_batch_size": ("train.batch_size", settings.batch_size),
        "train_micro_batch_size_per_gpu": ("execution.micro_batch_size", micro),
        "gradient_accumulation_steps": (f"the number of forward passes on {processes} processes", passes),
        "gradient_clipping": ("train.max_grad_norm", settings.max_grad_norm),
        "fp16.enabled": ("float16 as precision", precision == "float16"),
        "bf16.enabled": ("bfloat16 as precision", precision == "bfloat16"),
    }
    for key, (name, value) in expected.items():
        in_file = _value_at(config, key)
        free = key == "gradient_accumulation_steps" and micro is None
        if in_file not in (None, "auto", value) and not free:
            raise UserError(
                f"{path} has {key} = {json.dumps(in_file)}, but {name} is {json.dumps(value)}: make them agree, or "
                'write "auto" there.'
            )


def read(path: Path) -> dict[str, Any]:
    """Return a DeepSpeed JSON as it is in the file.

    Raises:
        UserError: The file cannot be read or holds no JSON object.
    """
    return read_mapping(path, advice="correct it")


def _value_at(config: dict[str, Any], key: str) -> Any:
    """Return the value at a dotted key; None if there is none."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, dict):
            return None
        node = node.get(part)
    return node


def fill_sizes(zero: dict[str, Any], hidden: int) -> dict[str, Any]:
    """Return the zero_optimization section with sizes for "auto", from the hidden size, as transformers does."""
    return {key: SIZES[key](hidden) if value == "auto" else value for key, value in zero.items()}


def _without_auto(config: dict[str, Any]) -> dict[str, Any]:
    """Return a section without its "auto" values, which DeepSpeed decides; sizes stay until the model is known."""
    explicit = {key: value for key, value in config.items() if value != "auto" or key in SIZES}
    return {key: _without_auto(value) if isinstance(value, dict) else value for key, value in explicit.items()}
