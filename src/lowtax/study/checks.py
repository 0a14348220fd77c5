"""Checks of a study before its first arm trains: whatever would only fail after hours fails at once, in a sentence."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec, TypeVar

from lowtax.common import launch
from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.engines.settings import EngineSettings
from lowtax.judges import base as judges
from lowtax.methods.loading import load_all
from lowtax.models import hub, loading, quantised
from lowtax.study import attacking, lineage
from lowtax.study.offline import EMBEDDED, OfflineSource, is_local
from lowtax.study.recipe import Arm, Recipe
from lowtax.study.stored_recipe import STORED, stored_in
from lowtax.training import loop, optimizers, trackers, zero_config
from lowtax.training.job import Job

P = ParamSpec("P")
T = TypeVar("T")
PACKAGES = {"vllm": "vllm", "openai": "openai"}  # engine -> package


class OnlineSource(OfflineSource):
    """A reader of everything that a run needs, which refuses what cannot be read."""

    def read(self, name: str, load: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what `load` reads."""
        return load(*args, **kwargs)

    def need_model(self, ref: str, role: str) -> None:
        """Refuse a model of the hub that is not on this machine and cannot be downloaded."""
        if ref and ref not in EMBEDDED and not is_local(loading.resolve(ref)):
            hub.require_readable(ref, role)


def require_arms(recipe: Recipe, precision: str) -> None:
    """Check optimisers, trackers, methods, placements and edits of all arms. No weights are loaded.

    Raises:
        UserError: An arm cannot be trained or edited; the error names the arm if there are several.
    """
    trackers.check(recipe.execution.report_to)
    _require_measurable(recipe)
    if precision in quantised.COMPUTED and recipe.edited:
        say(f"edits read the weights of {recipe.model} as they are stored, not in the 4 bits of {precision}")
    for name, arm in recipe.arms.items():
        with_name(recipe, name, _require_settings, recipe, name, precision)
        with_name(recipe, name, _require_methods, recipe, name, arm)
    if len(recipe.arms) < 2 and not recipe.edited:
        return  # the only arm is refused at once by its training
    from lowtax.study.skeleton import Model  # lazy: PEFT and transformers take seconds

    source = OnlineSource()
    model = Model(recipe.model, source)
    for name, arm in recipe.arms.items():
        with_name(recipe, name, model.trained, arm)
    for name, edited in recipe.edited.items():
        model.check_edits(name, edited, recipe.arms[edited.of])


def _require_methods(recipe: Recipe, name: str, arm: Arm) -> None:
    methods = load_all(arm.acts())
    if lineage.continues(name, recipe.arms, recipe.edited):
        methods.require_new_factors(str(lineage.parent_of(arm)))


def _require_measurable(recipe: Recipe) -> None:
    """Refuse what vLLM does not serve: LoRA on fused experts, and 4-bit bases."""
    if recipe.engine == "vllm":
        quantised.refuse(recipe.precision, *quantised.VLLM)
        for name in (name for name, arm in recipe.arms.items() if arm.where().parameters):
            raise UserError(
                f"arms.{name} has a LoRA on parameters (fused experts), which vLLM does not serve: use the engine hf, "
                "or place it on modules."
            )


def _require_settings(recipe: Recipe, arm: str, precision: str) -> None:
    settings, execution = recipe.train_of(arm), recipe.execution
    optimizers.check(settings)
    if recipe.arms[arm].where().kind == "full":
        quantised.refuse(precision, *quantised.FULL)
    if execution.deepspeed:
        processes = launch.world()[1]
        zero_config.ds_config(Path(execution.deepspeed), settings, precision, processes, execution.micro_batch_size)


def require_rows(recipe: Recipe, jobs: Mapping[tuple[str, int], Job]) -> None:
    """Check that the rows of all jobs but the first can be trained; the first is about to find out itself.

    Raises:
        UserError: No row fits `max_length`, or validation leaves none.
    """
    tokenizer, seen = None, set[str]()
    for number, ((arm, _), job) in enumerate(jobs.items()):
        key = f"{job.describe()['rows']} {job.settings.max_length} {job.settings.validation} {job.thinking}"
        if number and key not in seen:
            tokenizer = tokenizer or loading.load_tokenizer(job.model)
            with_name(recipe, arm, loop.split_rows, job, tokenizer)
        seen.add(key)


def require_tools(recipe: Recipe) -> None:
    """Check that the engine is installed, and that the models of judge and checkers can be read.

    Raises:
        UserError: One of them cannot be used, or a checker on this machine has no chat template.
    """
    package = PACKAGES.get(recipe.engine)
    if package and find_spec(package) is None:
        raise UserError(f"The engine {recipe.engine!r} needs a package: pip install 'lowtax[{package}]'.")
    if recipe.engine not in ("hf", "vllm"):
        return  # a server has its own models
    source, talks = OnlineSource(), [attack for attack, _ in attacking.conversations(recipe)]
    for name in dict.fromkeys([recipe.judge, *recipe.judges, *(a.judge for a in talks if a.judge)]):
        judge = judges.load(name, EngineSettings(recipe.engine))
        source.need_model(getattr(judge, "model", ""), f"the judge {name}")
    for attack in talks:
        if attack.attacker_engine in ("hf", "vllm"):
            source.need_model(str(attack.attacker), f"the attacker of {attack.name}")
    for name, task in recipe.tasks.items():
        source.need_model(task.checker or "", f"the checker of {name}")
        if task.checker and is_local(loading.resolve(task.checker)):
            _require_template(task.checker, name)


def _require_template(checker: str, task: str) -> None:
    """Refuse a checker that cannot be asked: it would only be found out after all answers are drawn."""
    if not loading.load_tokenizer(checker).chat_template:
        raise UserError(
            f"tasks.{task}: the checker {checker!r} has no chat template, so it cannot be asked: name an instruct "
            "model, such as Qwen/Qwen2.5-32B-Instruct."
        )


def with_name(recipe: Recipe, arm: str, check: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a check, and name the arm in its error if the recipe has several.

    Raises:
        UserError: The check refuses.
    """
    try:
        check(*args, **kwargs)
    except UserError as error:
        raise (UserError(f"arms.{arm}: {error}") if len(recipe.arms) > 1 else error) from error


def nothing_to_do(recipe: Recipe, out: Path, of: str) -> str | None:
    """Return the sentence about a study that lacks prompts, tasks or both; None if it has them.

    Args:
        of: prompts, tasks or either.
    """
    prompts, tasks = bool(recipe.harmful or recipe.ordinary), bool(recipe.tasks)
    add = {
        "prompts": "`harmful: [{source: strongreject}]` and `ordinary: [{source: xstest}]`",
        "tasks": "`tasks: {gsm8k: {n: 100}}`",
    }
    adapters = sorted(path.parent for path in out.glob("arms/*/seed-*/checkpoint-*/adapter_config.json"))
    subject = " ".join([f"--model {recipe.model}", *(f"--adapter {adapter}" for adapter in adapters[-1:])])
    alone = {
        "prompts": f"give --prompts without a study: `lowtax sample {subject} --prompts strongreject --out DIR`",
        "tasks": f"give --task without a study: `lowtax evaluate {subject} --task gsm8k --out DIR`",
    }
    where = stored_in(out) or out / STORED
    if of == "either":
        if prompts or tasks:
            return None
        return (
            f"The study in {out} has neither prompts nor tasks, so there is nothing to compare: add {add['prompts']}, "
            f"or {add['tasks']}, to {where}, then `lowtax sample {out}` and `lowtax evaluate {out}`."
        )
    if prompts if of == "prompts" else tasks:
        return None
    return f"The study in {out} has no {of}: add {add[of]} to {where} and repeat the command, or {alone[of]}."
