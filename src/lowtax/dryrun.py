"""`lowtax run RECIPE --dry-run`: a recipe resolved, counted and costed. Nothing is trained, sampled or downloaded.

What is counted is counted by the code that a run uses: placements by PEFT on a model without values, rows and tokens by
the training data's own reader and encoder, requests by the sampling plan. The rest is arithmetic (`dryrun_cost`).
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from lowtax import edited, engines, judges, models, zero
from lowtax.dryrun_cost import CARDS, checkpoint_bytes, first_that_fits, settings, training_flops, training_hours
from lowtax.dryrun_model import Model, made
from lowtax.dryrun_plan import ArmPlan, EditedPlan, Plan, subjects
from lowtax.dryrun_sample import Requests, requests
from lowtax.dryrun_sources import Looked, offline
from lowtax.dryrun_train import Counter
from lowtax.packing import MAX_ROW
from lowtax.recipe import EditedArm, Recipe


def plan(recipe: Recipe) -> Plan:
    """Resolve a recipe and count what it asks for.

    Raises:
        UserError: The recipe is broken: what a run would refuse, now or after hours.
    """
    with offline():
        looked = Looked()
        precision = _precision(recipe)
        model = Model(recipe.model, looked)
        counter = Counter(recipe, model.tokenizer(), looked)
        arms = [_arm(name, recipe, model, counter, precision) for name in recipe.arms]
        by_name = {arm.name: arm for arm in arms}
        made_of = [_edited(name, arm, recipe, model, by_name[arm.of]) for name, arm in recipe.edited.items()]
        asked = requests(recipe, subjects(arms, made_of), counter, looked)
        _tools(recipe, looked)
    return Plan(recipe, model, precision, arms, made_of, asked, _verdicts(recipe, asked), looked.missing)


def _precision(recipe: Recipe) -> str:
    """That of the cards which are planned for, not of this machine."""
    deepspeed = recipe.execution.deepspeed
    if deepspeed is not None:
        zero._read(Path(deepspeed))
    if recipe.precision == "auto" and deepspeed is None:
        return "bfloat16"
    return models.precision(recipe.precision, deepspeed)


def _arm(name: str, recipe: Recipe, model: Model, counter: Counter, precision: str) -> ArmPlan:
    arm, shape = recipe.arms[name], model.shape
    trained = model.trained(arm)
    runs = [counter.training(name, seed) for seed in recipe.seeds]
    placement = arm.where()
    what = arm.mode or ("full" if placement.kind == "full" else f"{' '.join(placement.modules)} r{placement.rank}")
    if shape is None or trained is None:
        return ArmPlan(name, what, runs, trained, None, None, None)
    execution, settings_ = recipe.execution, recipe.train_of(name)
    longest = max(run.longest for run in runs)
    ways = settings(
        shape, trained.lora, precision, settings_.batch_size, longest, execution.row_tokens or MAX_ROW["cuda"]
    )
    asked = execution.gradient_checkpointing
    setting = first_that_fits(way for way in ways if way.checkpointing or not asked)
    again = asked or setting is None or setting.checkpointing
    flops = sum(training_flops(shape, run.tokens, trained.lora, trained.parameters, again) for run in runs)
    hours = {card: training_hours(flops, CARDS[card]) for card in CARDS}
    return ArmPlan(name, what, runs, trained, setting, flops, hours)


def _edited(name: str, arm: EditedArm, recipe: Recipe, model: Model, of: ArmPlan) -> EditedPlan:
    references = [ref for edit in arm.edits for ref in edit.values() if isinstance(ref, str)]
    if all(made(ref) for ref in references if ref.startswith("builtin:")):  # else the check would make it
        edited.check(name, arm)
    model.edits(arm, recipe.arms[arm.of])
    checkpoints = of.checkpoints if arm.checkpoints == "all" else len(of.runs)
    size = None if of.trained is None else checkpoint_bytes(of.trained.parameters, checkpoints)
    return EditedPlan(name, arm.of, [str(edit["name"]) for edit in arm.edits], checkpoints, size)


def _tools(recipe: Recipe, looked: Looked) -> None:
    """Check engine and judge, and note what they, and checkers, need.

    Raises:
        UserError: There is no such engine or judge.
    """
    engines.find(recipe.engine)
    if recipe.engine == "vllm" and find_spec("vllm") is None:
        looked.lacks("the engine vllm", "`pip install 'lowtax[vllm]'`")
    if recipe.execution.deepspeed and find_spec("deepspeed") is None:
        looked.lacks("DeepSpeed", "`pip install 'lowtax[deepspeed]'`")
    judge = judges.load(recipe.judge)
    for what, ref in [(f"the judge {judge.name}:", getattr(judge, "model", "")), *_checkers(recipe)]:
        looked.model(ref, what)


def _checkers(recipe: Recipe) -> Iterator[tuple[str, str]]:
    return ((f"the checker of {name}:", task.checker) for name, task in recipe.tasks.items() if task.checker)


def _verdicts(recipe: Recipe, asked: Requests) -> int:
    """Texts that the judge may see: one a reply, and the other texts of replies to harmful prompts."""
    also = {text for text in recipe.judged_also if text != recipe.judged_text}
    times = {"harmful": 1 + len(also), "ordinary": 1}
    return sum(sheet.requests * times.get(sheet.kind, 0) for sheet in asked.sheets)
