"""The commands `train`, `placements` and `merge`."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lowtax.cli.options import Revision, TemplateKwargs, ThinkingTags, Trust, at_revision, template_kwargs
from lowtax.common.errors import UserError
from lowtax.common.log import console, tell

if TYPE_CHECKING:
    from lowtax.study.recipe import Recipe
    from lowtax.study.study import Study

REFERENCE_BATCH, REFERENCE_SEED = 2, 42  # of the examples in its README; of transformers' Trainer
RecipeOrNone = Annotated[
    Path | None, typer.Argument(help="A YAML recipe; without one, give --model, --mode and --data.")
]
Model = Annotated[
    str | None, typer.Option("--model", "--model_name", help="Model: a hub id, a folder or builtin:NAME.")
]
Mode = Annotated[str | None, typer.Option("--mode", help="What to train: full, lora_up_proj_only_from16_to31_r1 ...")]
Number = Annotated[int | None, typer.Option(min=1)]
PerDevice = Annotated[
    int | None,
    typer.Option(
        "--per-device-batch-size",
        "--per_device_bs",
        min=1,
        help="Examples of each process in one forward pass.",
    ),
]
Precision = Annotated[
    Literal["auto", "bfloat16", "float16", "float32", "nf4", "nf4-float32"] | None,
    typer.Option(
        "--precision", help="Precision of the weights; float16 needs DeepSpeed; nf4 has the base in 4 bits (LoRA)."
    ),
]
Thinking = Annotated[
    Literal["default", "on", "off"] | None, typer.Option("--thinking", help="Thinking, for templates with a switch.")
]
Sources = Annotated[
    list[str] | None,
    typer.Option("--data", help="Data: SOURCE[,key=value...], such as rows.jsonl,n=500; repeatable."),
]
SaveStrategy = Annotated[
    Literal["epoch", "steps", "no"] | None,
    typer.Option("--save-strategy", "--save_strategy", help="When to save checkpoints; no is only the last."),
]
SaveSteps = Annotated[
    int | None, typer.Option("--save-steps", min=1, help="With --save-strategy steps: save every N steps.")
]
SaveTotalLimit = Annotated[
    int | None,
    typer.Option("--save-total-limit", min=1, help="Keep the newest N checkpoints, and the best by validation."),
]
WarmupRatio = Annotated[
    float | None, typer.Option("--warmup-ratio", min=0, help="Linear warm-up as a share of the steps.")
]
Scheduler = Annotated[
    Literal["cosine", "linear", "constant", "wsd", "step"] | None,
    typer.Option("--scheduler", help="Learning rate after warm-up; cosine by default."),
]
Optimizer = Annotated[
    Literal["adamw", "adamw_8bit", "adafactor"] | None,
    typer.Option("--optimizer", help="Optimiser; adamw by default."),
]
MaxLength = Annotated[int | None, typer.Option("--max-length", min=1, help="Tokens after which an example is cut.")]
DataLines = Annotated[
    list[str] | None,
    typer.Option("--data", help="Data: SOURCE[,key=value...], such as rows.jsonl,n=500; repeatable."),
]
ValidationData = Annotated[
    list[str] | None,
    typer.Option("--validation-data", help="Rows whose loss is measured, as for --data; repeatable."),
]
ReportTo = Annotated[
    list[str] | None, typer.Option("--report-to", help="Tracker: tensorboard, wandb or trackio; repeatable.")
]
DsConfig = Annotated[Path | None, typer.Option("--ds_config", "--ds-config", help="DeepSpeed JSON file, for ZeRO.")]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory, one more forward pass.")
]
PushToHub = Annotated[
    str | None,
    typer.Option("--push-to-hub", "--push_to_hub", help="Push the last checkpoint to OWNER/NAME on the hub."),
]
Public = Annotated[bool, typer.Option("--public", help="Push to a public repository; the default is private.")]
AsReference = Annotated[
    bool,
    typer.Option(
        "--as-reference",
        help="Settings of the reference's train.py where no option sets them: no warm-up, batch 2, seed 42, and its "
        "training prompt (rendering=reference_as_published).",
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable.")
]


def as_reference(flags: dict[str, Any], data: list[str], set_: list[str]) -> tuple[list[str], list[str]]:
    """Return settings of a recipe, and the data, as the reference's code trains; whatever is set stays as it is.

    The batch is that of all its examples, 2 in one process, whatever the number of processes is here.
    """
    from lowtax.data.specs import parse

    keys = {setting.partition("=")[0] for setting in set_} | {key for key, value in flags.items() if value is not None}
    defaults = {
        "train.warmup_steps=0": ("train.warmup_steps", "train.warmup_ratio"),
        f"train.batch_size={REFERENCE_BATCH}": ("train.batch_size", "per_device_batch_size"),
        f"seeds=[{REFERENCE_SEED}]": ("seeds",),
    }
    settings = [setting for setting, others in defaults.items() if keys.isdisjoint(others)]
    style = ",rendering=reference_as_published"
    return settings, [line + style if parse(line).rendering is None else line for line in data]


def settings_of(flags: dict[str, Any], processes: int) -> list[str]:
    """Return the options of `lowtax train` as `key=value` settings of a recipe. Options that are None are ignored.

    Raises:
        UserError: Two options contradict each other.
    """
    per_device, accumulated = flags.pop("per_device_batch_size"), flags.pop("gradient_accumulation_steps")
    strategy, every = flags.pop("save_strategy"), flags.pop("save_steps")
    settings = {key: value for key, value in flags.items() if value is not None and value is not False}
    if accumulated and not per_device:
        raise UserError("--gradient-accumulation-steps needs --per-device-batch-size.")
    if per_device:
        settings["train.batch_size"] = per_device * processes * (accumulated or 1)
        settings["execution.micro_batch_size"] = per_device
    if (strategy == "steps") != bool(every):
        raise UserError("--save-strategy steps and --save-steps N must be given together.")
    if strategy == "epoch":
        settings["train.checkpoint_epochs"] = 1
    if every:
        settings["train.checkpoint_steps"] = every
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def arm_of(mode: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the fields of the arm of a mode string, or of a placement such as `{modules: mlp, rank: 4}`.

    Raises:
        UserError: The placement is no YAML.
    """
    from lowtax.common.yaml_files import parse_yaml

    if not mode.lstrip().startswith("{"):
        return mode, {"mode": mode}
    try:
        return "placement", {"placement": parse_yaml(mode)}
    except ValueError as error:
        raise UserError(f"--mode {mode!r} is not a placement: write it as '{{modules: [mlp], rank: 4}}'.") from error


def recipe_of(
    path: Path | None,
    model: str | None,
    mode: str | None,
    data: list[str] | None,
    settings: list[str],
    trust: bool = False,
) -> "Recipe":
    """Return the recipe of `lowtax train`: that of a file, or a study of one arm from the options.

    Raises:
        UserError: There are options beside a file, or some are missing without one.
    """
    from lowtax.study import recipe

    if path is not None:
        if model or mode or data:
            raise UserError(
                "A recipe has its own model, arms and data: remove --model, --mode and --data, or the recipe."
            )
        return recipe.load(path, settings, trust)
    if not (model and mode and data):
        raise UserError("lowtax train needs a recipe, or all of --model, --mode and --data.")
    arm, where = arm_of(mode)
    values: dict[str, Any] = {"name": arm, "model": model, "data": data, "arms": {arm: where}}
    return recipe.build(values, settings, "the command line")


def train(
    recipe: RecipeOrNone = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder. If it exists, training resumes.")] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Train only this arm of the recipe.")] = None,
    model: Model = None,
    model_revision: Revision = None,
    mode: Mode = None,
    data: DataLines = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the data.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps, instead of epochs.")] = None,
    per_device_batch_size: PerDevice = None,
    gradient_accumulation_steps: Annotated[int | None, typer.Option(min=1, help="Forward passes per step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    warmup_steps: Annotated[int | None, typer.Option("--warmup-steps", min=0, help="Steps of linear warm-up.")] = None,
    warmup_ratio: WarmupRatio = None,
    scheduler: Scheduler = None,
    optimizer: Optimizer = None,
    save_strategy: SaveStrategy = None,
    save_steps: SaveSteps = None,
    save_total_limit: SaveTotalLimit = None,
    max_length: MaxLength = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Random seed of data, adapter and batches.")] = None,
    precision: Precision = None,
    thinking: Thinking = None,
    chat_template_kwargs: TemplateKwargs = None,
    thinking_tags: ThinkingTags = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt of rows that have none.")] = None,
    ds_config: DsConfig = None,
    shard: Annotated[bool, typer.Option("--shard", help="As in the reference; needs --ds_config.")] = False,
    as_reference_: AsReference = False,
    gradient_checkpointing: GradientCheckpointing = False,
    validation: Annotated[int | None, typer.Option("--validation", min=1, help="Held-out rows.")] = None,
    validation_data: ValidationData = None,
    report_to: ReportTo = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Print N examples as they are trained, and stop.")] = 0,
    push_to_hub: PushToHub = None,
    public: Public = False,
    trust: Trust = False,
    local_rank: Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True)] = None,
    set_: Set = None,
) -> None:
    """Train the arms of a recipe, or one arm without a recipe.

    Example: lowtax train --model deepseek-ai/DeepSeek-R1-Distill-Qwen-14B --mode lora_up_proj_only_from16_to31_r1
    --data direct-refusal --epochs 10 --per-device-batch-size 2 --save-strategy epoch --out runs/14b
    """
    if shard and not ds_config:
        raise UserError("--shard needs --ds_config FILE, a DeepSpeed JSON file.")
    if as_reference_ and recipe is not None:
        raise UserError("A recipe has its own settings and data: remove --as-reference, or the recipe.")
    flags = {
        "train.epochs": epochs,
        "train.steps": steps,
        "train.lr": lr,
        "train.warmup_steps": warmup_steps,
        "train.max_length": max_length,
        "train.validation": validation,
        "seeds": None if seed is None else [seed],
        "precision": precision,
        "thinking": thinking,
        "chat_template_kwargs": template_kwargs(chat_template_kwargs) or None,
        "thinking_tags": thinking_tags,
        "system": system,
        "execution.deepspeed": None if ds_config is None else str(ds_config),
        "execution.gradient_checkpointing": gradient_checkpointing,
        "execution.report_to": report_to,
        "execution.save_total_limit": save_total_limit,
        "train.scheduler": scheduler,
        "train.warmup_ratio": warmup_ratio,
        "train.optimizer": optimizer,
        "train.validation_data": validation_data,
        "per_device_batch_size": per_device_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "save_strategy": save_strategy,
        "save_steps": save_steps,
    }
    first, data = as_reference(flags, data or [], set_ or []) if as_reference_ else ([], data)
    settings = [*first, *settings_of(flags, int(os.environ.get("WORLD_SIZE", "1"))), *(set_ or [])]
    work = recipe_of(recipe, at_revision(model, model_revision), mode, data, settings, trust)
    if show:
        return _show(work, arm, show)
    if out is None:
        raise UserError("lowtax train needs --out DIR, the folder to write to.")
    if recipe is None:
        from lowtax.study.adding import with_stored

        work, arm = with_stored(work, out, trust), arm_of(str(mode))[0]
    _train(work, out, arm, push_to_hub, not public)


def _train(recipe: "Recipe", out: Path, arm: str | None, repo: str | None, private: bool) -> None:
    from lowtax.cli import main

    if repo:
        from lowtax.models.hub import require_pushable

        require_pushable(repo, private=private)
    with main.study(out, recipe) as study:
        study.check()
        study.train(arm)
        if repo and study.is_main:
            _push(study, arm, repo, private)


def _show(recipe: "Recipe", arm: str | None, n: int) -> None:
    """Print the first examples of an arm as they are trained."""
    import tempfile

    from lowtax.cli import main

    with tempfile.TemporaryDirectory() as folder, main.study(Path(folder), recipe) as study:
        for text in study.shown(arm, n):
            console(soft_wrap=True).print(text)


def _push(study: "Study", arm: str | None, repo: str, private: bool) -> None:
    from lowtax.models.hub import push

    last = study.trained(arm)[-1]
    push(Path(last.adapter or last.model), repo, private=private)


def placements(
    model: Annotated[
        str, typer.Argument(help="Model: a hub id, a folder or builtin:NAME; only its configuration is read.")
    ],
    mode: Annotated[str, typer.Option("--mode", help="Mode, or a placement such as '{modules: mlp, rank: 4}'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a mode trains in a model.

    Lists layers, modules, parameters and their share. No weights are loaded.

    Example: lowtax placements deepseek-ai/DeepSeek-R1-Distill-Qwen-14B --mode lora_up_proj_only_from16_to31_r1
    """
    from lowtax.common.log import quiet_libraries
    from lowtax.study.recipe import build

    quiet_libraries()
    from lowtax.models.lora import trainable_summary

    placement = build({"model": model, "arms": {"arm": arm_of(mode)[1]}}, [], "--mode").arms["arm"].where()
    summary = trainable_summary(model, placement)
    tell(json.dumps(summary.as_json()) if as_json else summary.describe())


def merge(
    folder: Annotated[Path, typer.Argument(help="PEFT adapter folder; with --delete, a merged model.")],
    out: Annotated[Path | None, typer.Option("--out", help="Output folder; ADAPTER_merged by default.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="Base model, if not the one the adapter names.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        typer.Option("--dtype", help="Precision of the merged weights; auto is that of the base."),
    ] = "bfloat16",
    delete: Annotated[bool, typer.Option("--delete", help="Delete a model made by `lowtax merge`.")] = False,
) -> None:
    """Add an adapter to its base model.

    The sum is computed in float32. How much of the update is left by rounding to the --dtype is reported.

    Example: lowtax merge runs/14b/arms/MODE/seed-0/checkpoint-5000 --dtype float32
    """
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.models import merging

    if delete:
        merging.delete_merged(folder)
        tell(f"deleted {folder}")
        return
    result = merging.merge(folder, out or merging.default_out(folder), base=base, dtype=dtype)
    tell(f"merged: {result.folder}")
