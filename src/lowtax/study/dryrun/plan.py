"""A recipe resolved, checked and counted offline: nothing is trained, sampled, downloaded or written.

Placements are tried, rows are read and requests are planned by the code of a run. Memory and disk are arithmetic.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lowtax.common.log import say
from lowtax.engines import base
from lowtax.engines.sampling import few_tokens, reply_tokens, tokens_for
from lowtax.engines.settings import EMBEDDED
from lowtax.judges import base as judges
from lowtax.models import embedded, loading
from lowtax.study import attacking
from lowtax.study.dryrun.counts import Counter, RequestCount, TrainingCount
from lowtax.study.offline import OfflineSource, offline
from lowtax.study.recipe import EditedArm, Recipe
from lowtax.study.skeleton import Model
from lowtax.training import zero_config
from lowtax.training.memory import BYTES, first_layout
from lowtax.training.packing import MAX_ROW


@dataclass(frozen=True)
class ArmPlan:
    """An arm. The last three are None if the model's configuration is not available.

    what: its mode, or its edits. runs: a count for each seed; none of an edited arm. checkpoints: of all seeds.
    disk_bytes: of these. An edited arm counts as the arms that it is made of; `rank` or an edit may change that.
    memory: the first layout that fits GPUs of 80 GB (`memory.Layout.as_json`); None also if none does.
    """

    arm: str
    what: str
    runs: list[TrainingCount]
    checkpoints: int
    trainable_parameters: int | None = None
    disk_bytes: int | None = None
    memory: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """A recipe's plan; its fields are the JSON.

    subjects: the base and every checkpoint. requests: replies to draw; what two tasks ask alike is drawn once.
    tokens_at_most: of these replies. verdicts: texts for the judge, at most. disk_bytes: of all checkpoints.
    """

    recipe: str
    model: str
    parameters: int | None
    precision: str
    engine: str
    judge: str
    seeds: list[int]
    arms: list[ArmPlan]
    edited: list[ArmPlan]
    sheets: list[RequestCount]
    subjects: int
    requests: int
    tokens_at_most: int
    verdicts: int
    disk_bytes: int | None
    missing: dict[str, str]


def plan(recipe: Recipe) -> Plan:
    """Resolve a recipe and count what a run of it would do.

    Raises:
        UserError: The recipe is broken: a run would refuse it at once, or fail after hours.
    """
    with offline():
        source = OfflineSource()
        precision = _precision(recipe)
        model = Model(recipe.model, source)
        tokenizer = model.tokenizer()
        recipe = _with_tokens(recipe, tokenizer)
        counter = Counter(recipe, tokenizer, source)
        arms = {name: _arm(name, recipe, model, counter, precision) for name in recipe.arms}
        edited = [_edited(name, arm, recipe, model, arms) for name, arm in recipe.edited.items()]
        every = [*arms.values(), *edited]
        subjects = 1 + sum(arm.checkpoints for arm in every)
        sheets = counter.requests(
            subjects, all("checkpoints" in run.exact for arm in arms.values() for run in arm.runs)
        )
        _check_tools(recipe, source)
        _warn(recipe, tokenizer)
    texts = {"harmful": len({recipe.judged_text, *recipe.judged_also}), "ordinary": 1, "attack": 1}
    return Plan(
        recipe=recipe.name,
        model=recipe.model,
        parameters=model.parameters,
        precision=precision,
        engine=recipe.engine,
        judge=recipe.judge,
        seeds=recipe.seeds,
        arms=[*arms.values()],
        edited=edited,
        sheets=sheets,
        subjects=subjects,
        requests=sum(sheet.requests - sheet.repeated for sheet in sheets),
        tokens_at_most=sum((sheet.requests - sheet.repeated) * sheet.max_new_tokens for sheet in sheets),
        verdicts=sum(sheet.requests * texts.get(sheet.kind, 0) for sheet in sheets),
        disk_bytes=sum(arm.disk_bytes or 0 for arm in every) if model.parameters else None,
        missing=source.missing,
    )


def _with_tokens(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> Recipe:
    """Return the recipe with the most tokens of a reply that a new study would have."""
    if embedded.is_small(recipe.model):
        return recipe.with_tokens(EMBEDDED, EMBEDDED)
    if recipe.model.startswith(embedded.BUILTIN):
        return recipe.with_tokens(reply_tokens(recipe.model, recipe.engine))
    return recipe.with_tokens(tokens_for(tokenizer, recipe.thinking_tags))


def _warn(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Warn about replies that are cut in their thoughts."""
    if tokenizer is None or recipe.model.startswith(embedded.BUILTIN) or not (recipe.harmful or recipe.ordinary):
        return
    needed = tokens_for(tokenizer, recipe.thinking_tags)
    if sentence := few_tokens(recipe.model, recipe.sampling.max_new_tokens, needed):
        say(sentence)


def _precision(recipe: Recipe) -> str:
    """Return the precision on the GPUs that are planned for: `auto` is bfloat16, even if this machine has none."""
    deepspeed = recipe.execution.deepspeed
    if deepspeed is not None:
        zero_config.read(Path(deepspeed))
    precision = loading.precision(recipe.precision, deepspeed)
    return "bfloat16" if (recipe.precision, precision) == ("auto", "float32") else precision


def _arm(name: str, recipe: Recipe, model: Model, counter: Counter, precision: str) -> ArmPlan:
    arm, execution, batch = recipe.arms[name], recipe.execution, recipe.train_of(name).batch_size
    (parameters, lora), placement = model.trained(arm), arm.where()
    what = arm.mode or ("full" if placement.kind == "full" else f"{' '.join(placement.modules)} r{placement.rank}")
    what += f" from {arm.start}" if arm.start else ""
    runs = [counter.training(name, seed) for seed in recipe.seeds]
    checkpoints, longest = sum(run.checkpoints for run in runs), max(run.longest for run in runs)
    if model.shape is None or parameters is None:
        return ArmPlan(name, what, runs, checkpoints)

    def row(gpus: int) -> int:
        examples = min(-(-batch // gpus), execution.micro_batch_size or batch)
        return max(longest, min(execution.row_tokens or MAX_ROW["cuda"], examples * longest))

    checkpointing, methods = execution.gradient_checkpointing, bool(arm.acts())
    layout = first_layout(model.shape, row, lora, precision, checkpointing=checkpointing, methods=methods)
    memory = layout.as_json() if layout else None
    saved, settings = "float32", recipe.train_of(name)
    if placement.kind == "full":
        saved = precision if settings.save_dtype == "auto" else settings.save_dtype
    limit = execution.save_total_limit
    stored = checkpoints if limit is None else sum(min(run.checkpoints, limit) for run in runs)
    return ArmPlan(name, what, runs, checkpoints, parameters, BYTES[saved] * parameters * stored, memory)


def _edited(name: str, arm: EditedArm, recipe: Recipe, model: Model, arms: dict[str, ArmPlan]) -> ArmPlan:
    model.check_edits(name, arm, recipe.arms[arm.of])
    source = arms[arm.of]
    checkpoints = source.checkpoints if arm.checkpoints == "all" else len(source.runs)
    if recipe.arms[arm.of].where().kind == "full":
        what = f"{', '.join(str(edit['name']) for edit in arm.edits)} of {arm.of}"
        return ArmPlan(name, what, [], checkpoints)  # the rank is the edit's
    parameters = sum(arms[of].trainable_parameters or 0 for of in (arm.of, *arm.ends()))
    what = f"{', '.join(str(edit['name']) for edit in arm.edits)} of {arm.of}"
    return ArmPlan(name, what, [], checkpoints, disk_bytes=BYTES["float32"] * parameters * checkpoints or None)


def _check_tools(recipe: Recipe, source: OfflineSource) -> None:
    """List what engine, judge and checkers need and this machine lacks.

    Raises:
        UserError: There is no such engine or judge.
    """
    base.find(recipe.engine)
    needed = {"vllm": recipe.engine == "vllm", "openai": recipe.engine == "openai"}
    needed["deepspeed"] = recipe.execution.deepspeed is not None
    for package in (name for name, is_needed in needed.items() if is_needed and find_spec(name) is None):
        source.missing[package] = f"`pip install 'lowtax[{package}]'`"
    attacking.check_decoding(recipe.sampling, [plan.attack for plan in attacking.planned(recipe).values()])
    talks = [attack for attack, _ in attacking.conversations(recipe)]
    for name in dict.fromkeys([recipe.judge, *recipe.judges, *(a.judge for a in talks if a.judge)]):
        source.need_model(getattr(judges.load(name), "model", ""), f"the judge {name}:")
    for attack in talks:
        base.find(attack.attacker_engine)
        if attack.attacker_engine in ("hf", "vllm"):
            source.need_model(str(attack.attacker), f"the attacker of {attack.name}:")
    for name, task in recipe.tasks.items():
        source.need_model(task.checker or "", f"the checker of {name}:")
