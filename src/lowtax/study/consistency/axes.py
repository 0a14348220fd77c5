"""The axes of a consistency study: what a level of each changes in a recipe, or in the process that runs it.

An axis is of one of three kinds. Levels of a training axis are trained and measured anew; those of an evaluation axis
measure the same checkpoints again; those of a reading axis judge the same replies again.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import ValidationError

from lowtax.common.errors import UserError, did_you_mean
from lowtax.engines.settings import Sampling
from lowtax.judges import base as judges
from lowtax.models import loading
from lowtax.study.recipe import Recipe

Kind = Literal["training", "evaluation", "reading"]
NEUTRAL = "You are a helpful assistant."
ISA, THREADS = "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS"
# The values of ONEDNN_MAX_CPU_ISA of oneDNN 3, but for those of single steps between them.
ISAS = (
    "SSE41 AVX AVX2 AVX2_VNNI AVX2_VNNI_2 AVX512_CORE AVX512_CORE_VNNI AVX512_CORE_BF16 AVX512_CORE_FP16 "
    "AVX512_CORE_AMX AVX512_CORE_AMX_FP16 AVX10_1_512 DEFAULT"
).split()
PRECISIONS = ("float32", "bfloat16")
ARITHMETICS = ("arithmetic", "evaluation_arithmetic", "threads")


@dataclass(frozen=True)
class Change:
    """The change that a level makes: the recipe, and variables of the process's environment."""

    recipe: Recipe
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Axis:
    """An axis. All functions take the recipe of the reference cell.

    about: the part of the docs and of the plan that says what its levels change.
    change: (recipe, level) -> the change; it raises ValueError with the reason if the text is no level.
    own: recipe -> the level that the reference cell has; None if it is none that can be named.
    default: recipe -> the levels, if the user names none.
    refuse: recipe -> the reason for which the axis does not apply, with what to do; None if it does.
    cheap: it belongs to the default set.
    """

    name: str
    kind: Kind
    about: str
    change: Callable[[Recipe, str], Change]
    own: Callable[[Recipe], str | None]
    default: Callable[[Recipe], Sequence[str]]
    refuse: Callable[[Recipe], str | None] = lambda recipe: None
    cheap: bool = False


def axis(name: str) -> Axis:
    """Return an axis by its name.

    Raises:
        UserError: There is no such axis.
    """
    if name not in AXES:
        raise UserError(f"There is no axis {name!r}; {did_you_mean(name, AXES)}")
    return AXES[name]


def levels_of(chosen: Axis, recipe: Recipe, texts: Iterable[str] | None) -> list[tuple[str, Change]]:
    """Return the levels of an axis with their changes, that of the reference cell first if it has a name.

    Args:
        texts: the levels that the user names; None takes those of the axis.

    Raises:
        UserError: The axis does not apply to the recipe, a level is none, or all of them are one.
    """
    if (reason := chosen.refuse(recipe)) is not None:
        raise UserError(f"The axis {chosen.name} does not apply: {reason}.")
    named = list(chosen.default(recipe) if texts is None else texts)
    own = chosen.own(recipe)
    if own is None and chosen.kind == "training":  # of several training seeds of the reference, the first is a level
        named = [*chosen.default(recipe)[:1], *named]
    levels: dict[str, Change] = {} if own is None else {own: Change(recipe)}
    for text in named:
        try:
            made = chosen.change(recipe, text)
        except (ValueError, UserError) as error:
            reason = str(error).removesuffix(".")
            raise UserError(f"The axis {chosen.name} has no level {text!r}: {reason}.") from error
        level = own if own is not None and _same(made, Change(recipe)) else text
        levels.setdefault(level, made)
    if len(levels) < 2:
        only = f"the reference cell's own, {own}" if own else ", ".join(levels) or "none"
        raise UserError(
            f"The axis {chosen.name} needs two levels that differ, the reference cell's counted (the only one is "
            f"{only}): name another by --axis {chosen.name}=LEVEL,LEVEL."
        )
    return list(levels.items())


def _same(one: Change, other: Change) -> bool:
    return one.recipe == other.recipe and one.environment == other.environment


# --- levels as text


def _whole(text: str, least: int = 0, most: int = 10**9) -> int:
    if not text.strip().isdecimal() or not least <= (number := int(text)) <= most:
        raise ValueError(f"a level is a whole number from {least}")
    return number


def _copied(recipe: Recipe, **changes: Any) -> Recipe:
    """Return the recipe with changed fields, which count as set, as those of a file do."""
    return recipe.model_copy(update=changes)


def _sampled(recipe: Recipe, change: Callable[[Sampling], Mapping[str, Any]]) -> Recipe:
    """Return the recipe with changed sampling of prompts and of problems."""
    tasks = {
        name: task.model_copy(update={"sampling": task.sampling.model_copy(update=dict(change(task.sampling)))})
        for name, task in recipe.tasks.items()
    }
    return _copied(recipe, sampling=recipe.sampling.model_copy(update=dict(change(recipe.sampling))), tasks=tasks)


def _samplings(recipe: Recipe) -> list[Sampling]:
    """Return how prompts and problems are sampled, where the recipe has some."""
    prompts = [recipe.sampling] if recipe.harmful or recipe.ordinary else []
    return [*prompts, *(task.sampling for task in recipe.tasks.values())]


def _common(recipe: Recipe, read: Callable[[Sampling], object]) -> str | None:
    """Return what all samplings of a recipe have, as text; None if they differ."""
    values = {str(read(sampling)) for sampling in _samplings(recipe)}
    return values.pop() if len(values) == 1 else None


# --- training axes


def _trained(recipe: Recipe, seed: int, order: int | None = None, rows: int | None = None) -> Change:
    """Return the recipe with one training seed, and the seeds of order and choice of rows that are not None."""
    seeds = {"order_seed": order, "data_seed": rows}
    changes = {name: value for name, value in seeds.items() if value is not None}
    train = recipe.train.model_copy(update=changes)
    return Change(_copied(recipe, seeds=[seed], train=train) if changes else _copied(recipe, seeds=[seed]))


def _order(recipe: Recipe) -> int:
    return recipe.train.order_of(recipe.seeds[0])


def _choice(recipe: Recipe) -> int:
    return recipe.train.choice_of(recipe.seeds[0])


def _of_factors(recipe: Recipe, text: str) -> Change:
    level = _whole(text)
    own = level == recipe.seeds[0]
    return _trained(recipe, level) if own else _trained(recipe, level, _order(recipe), _choice(recipe))


def _of_order(recipe: Recipe, text: str) -> Change:
    level, seed = _whole(text), recipe.seeds[0]
    return _trained(recipe, seed) if level == _order(recipe) else _trained(recipe, seed, order=level)


def _of_rows(recipe: Recipe, text: str) -> Change:
    level, seed = _whole(text), recipe.seeds[0]
    return _trained(recipe, seed) if level == _choice(recipe) else _trained(recipe, seed, rows=level)


def _of_seed(recipe: Recipe, text: str) -> Change:
    return _trained(recipe, _whole(text))


def _own_seed(read: Callable[[Recipe], int]) -> Callable[[Recipe], str | None]:
    """Return the reference's level of a seed; None if it has several training seeds, which are levels by themselves."""
    return lambda recipe: str(read(recipe)) if len(recipe.seeds) == 1 else None


def _five(read: Callable[[Recipe], int]) -> Callable[[Recipe], list[str]]:
    """Return five seeds that begin with the reference's."""
    return lambda recipe: [str(read(recipe) + more) for more in range(5)]


def _five_seeds(recipe: Recipe) -> list[str]:
    more = [seed for seed in range(max(recipe.seeds) + 1, max(recipe.seeds) + 6)]
    return [str(seed) for seed in [*recipe.seeds, *more][: max(5, len(recipe.seeds))]]


def _no_arms(recipe: Recipe) -> str | None:
    return None if recipe.arms else "the recipe trains no arm; add one under `arms`"


def _no_arithmetic(recipe: Recipe) -> str | None:
    if recipe.engine == "openai":
        return "with the engine openai the server decides its arithmetic; use the engine hf or vllm"
    return None


def _arithmetic(recipe: Recipe, text: str) -> Change:
    precision, at, isa = text.strip().partition("@")
    if precision not in PRECISIONS:
        raise ValueError(f"a level is PRECISION or PRECISION@INSTRUCTIONS; {did_you_mean(precision, PRECISIONS)}")
    if at and isa not in ISAS:
        raise ValueError(f"{ISA} has no value {isa!r}; {did_you_mean(isa, ISAS)}")
    same = _resolved(recipe) == precision
    changed = recipe if same else _copied(recipe, precision=precision)
    return Change(changed, {ISA: isa} if at and isa != os.environ.get(ISA) else {})


def _resolved(recipe: Recipe) -> str:
    return loading.precision(recipe.precision, recipe.execution.deepspeed)


def _own_arithmetic(recipe: Recipe) -> str:
    isa = os.environ.get(ISA)
    return _resolved(recipe) + (f"@{isa}" if isa else "")


def _other_arithmetics(recipe: Recipe) -> list[str]:
    return ["float32", "bfloat16"]


def _threads(recipe: Recipe, text: str) -> Change:
    number = _whole(text, least=1, most=4096)
    return Change(recipe, {} if str(number) == os.environ.get(THREADS) else {THREADS: str(number)})


# --- evaluation axes


def _drawn_apart(recipe: Recipe, text: str) -> Change:
    seed = _whole(text)
    return Change(_sampled(recipe, lambda sampling: {"seed": seed} if sampling.temperature > 0 else {}))


def _greedy(recipe: Recipe) -> str | None:
    if any(sampling.temperature > 0 for sampling in _samplings(recipe)):
        return None
    return (
        "every reply of the recipe is greedy, so that its seed changes nothing; set sampling.temperature, such as 0.7, "
        "in the recipe, or use the axis temperature"
    )


def _own_evaluation_seed(recipe: Recipe) -> str | None:
    drawn = {str(sampling.seed) for sampling in _samplings(recipe) if sampling.temperature > 0}
    return drawn.pop() if len(drawn) == 1 else None


def _temperature(recipe: Recipe, text: str) -> Change:
    try:
        value = Sampling(temperature=float(text)).temperature
    except (ValidationError, ValueError) as error:
        raise ValueError("a level is a number from 0") from error
    return Change(_sampled(recipe, lambda sampling: {"temperature": value}))


def _prompt_order(recipe: Recipe, text: str) -> Change:
    return Change(_copied(recipe, prompt_order=_whole(text, least=1)))


def _sorted(recipe: Recipe) -> str | None:
    if recipe.engine != "hf":
        return None
    return (
        "the engine hf sorts requests by length before it batches them, so that their order changes nothing; use the "
        "axis batch_size, or another engine"
    )


def _cap(recipe: Recipe, text: str) -> Change:
    if not text.startswith("x"):
        tokens = _whole(text, least=1)
        return Change(_sampled(recipe, lambda sampling: {"max_new_tokens": tokens}))
    try:
        factor = float(text[1:])
    except ValueError as error:
        raise ValueError("a level is a number of tokens, or a factor such as x0.5 or x2") from error
    if not 0 < factor <= 1000:
        raise ValueError("a factor is above 0 and at most 1000")
    return Change(
        _sampled(recipe, lambda sampling: {"max_new_tokens": max(1, round(factor * sampling.max_new_tokens))})
    )


def _system(recipe: Recipe, text: str) -> Change:
    spoken = {"none": "", "neutral": NEUTRAL}.get(text, text)
    if not spoken.strip() and text != "none":
        raise ValueError("a level is none, neutral, or a system prompt")

    def changed(sampling: Sampling) -> dict[str, str]:
        now = recipe.system if sampling.system is None else sampling.system
        return {} if (now or "") == spoken else {"system": spoken}

    return Change(_sampled(recipe, changed))


def _own_system(recipe: Recipe) -> str | None:
    spoken = _common(recipe, lambda sampling: (recipe.system if sampling.system is None else sampling.system) or "")
    return {None: None, "": "none", NEUTRAL: "neutral"}.get(spoken, "own")


def _batch(recipe: Recipe, text: str) -> Change:
    return Change(_copied(recipe, batch_size=_whole(text, least=1, most=1_000_000)))


# --- reading axes


def _judge(recipe: Recipe, text: str) -> Change:
    judges.check(text)
    return Change(_copied(recipe, judge=text))


def _judged_text(recipe: Recipe, text: str) -> Change:
    if text not in get_args(judges.Text):
        raise ValueError(did_you_mean(text, get_args(judges.Text)))
    return Change(_copied(recipe, judged_text=text))


def _no_prompts(recipe: Recipe) -> str | None:
    return (
        None if recipe.harmful or recipe.ordinary else "the recipe has no prompts to judge; add `harmful` or `ordinary`"
    )


AXES: dict[str, Axis] = {
    each.name: each
    for each in (
        Axis(
            "seed",
            "training",
            "the training seed: initial factors, dropout, order and choice of rows",
            _of_seed,
            _own_seed(lambda recipe: recipe.seeds[0]),
            _five_seeds,
            _no_arms,
        ),
        Axis(
            "factors",
            "training",
            "the seed of initial factors and dropout; order and choice of rows are fixed",
            _of_factors,
            _own_seed(lambda recipe: recipe.seeds[0]),
            _five(lambda recipe: recipe.seeds[0]),
            _no_arms,
        ),
        Axis(
            "order",
            "training",
            "the order of examples; factors and rows are fixed",
            _of_order,
            _own_seed(_order),
            _five(_order),
            _no_arms,
        ),
        Axis(
            "rows",
            "training",
            "the choice of rows, of sources with `n` and of mixes; factors are fixed",
            _of_rows,
            _own_seed(_choice),
            _five(_choice),
            _no_arms,
        ),
        Axis(
            "arithmetic",
            "training",
            "precision, and the instructions of matrix products, in training and evaluation",
            _arithmetic,
            _own_arithmetic,
            _other_arithmetics,
            _no_arithmetic,
        ),
        Axis(
            "threads",
            "training",
            "the threads of a process, in training and evaluation",
            _threads,
            lambda recipe: os.environ.get(THREADS, "default"),
            lambda recipe: ["1", "2"],
            _no_arithmetic,
        ),
        Axis(
            "evaluation_arithmetic",
            "evaluation",
            "precision, and the instructions of matrix products, in evaluation alone",
            _arithmetic,
            _own_arithmetic,
            _other_arithmetics,
            _no_arithmetic,
        ),
        Axis(
            "evaluation_seed",
            "evaluation",
            "the seed of sampling: repeats of the same checkpoints",
            _drawn_apart,
            _own_evaluation_seed,
            lambda recipe: [str(number) for number in range(5)],
            _greedy,
            cheap=True,
        ),
        Axis(
            "temperature",
            "evaluation",
            "the temperature of replies and answers",
            _temperature,
            lambda recipe: _common(recipe, lambda sampling: f"{sampling.temperature:g}"),
            lambda recipe: ["0", "0.7"],
        ),
        Axis(
            "max_new_tokens",
            "evaluation",
            "the tokens after which replies and answers are cut, as a number or a factor",
            _cap,
            lambda recipe: "x1",
            lambda recipe: ["x0.5", "x2"],
            cheap=True,
        ),
        Axis(
            "system",
            "evaluation",
            "the system prompt in evaluation",
            _system,
            _own_system,
            lambda recipe: ["none", "neutral"],
            cheap=True,
        ),
        Axis(
            "batch_size",
            "evaluation",
            "the rows that the engine decodes together",
            _batch,
            lambda recipe: str(recipe.batch_size),
            lambda recipe: [str(max(1, recipe.batch_size // 4) if recipe.batch_size > 1 else 8)],
            cheap=True,
        ),
        Axis(
            "prompt_order",
            "evaluation",
            "the order in which requests reach the engine",
            _prompt_order,
            lambda recipe: str(recipe.prompt_order or "file"),
            lambda recipe: ["1", "2"],
            _sorted,
        ),
        Axis(
            "judge",
            "reading",
            "the judge of replies",
            _judge,
            lambda recipe: recipe.judge,
            lambda recipe: ["refusal", "refusal_words"],
            _no_prompts,
            cheap=True,
        ),
        Axis(
            "judged_text",
            "reading",
            "the text that the judge reads",
            _judged_text,
            lambda recipe: recipe.judged_text,
            lambda recipe: ["answer", "both"],
            _no_prompts,
            cheap=True,
        ),
    )
}
