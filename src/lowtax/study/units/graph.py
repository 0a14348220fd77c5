"""`lowtax run RECIPE --plan`: the units of a recipe, from the counts of its dry run."""

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from lowtax.common import log
from lowtax.study import attacking, lineage
from lowtax.study.dryrun.counts import RequestCount
from lowtax.study.dryrun.plan import ArmPlan, Plan
from lowtax.study.own_answers import is_drawn
from lowtax.study.recipe import Recipe
from lowtax.study.units.base import (
    TEXTS_AT_ONCE,
    Group,
    Kind,
    Resources,
    Unit,
    judging_size,
    number_of_shares,
    sampling_size,
    share_ids,
)

SHOWN = 40  # units of a kind that people are shown


def units_of(recipe: Recipe, plan: Plan) -> list[Unit]:
    """Return all units of a study that has not begun, each after those that it needs.

    Numbers of shares are those of a run where the dry run's counts are exact, else estimates.
    """
    gpu = 1 if recipe.engine in ("hf", "vllm") else 0
    units = [*_answers(recipe, gpu)]
    own = tuple(unit.id for unit in units)
    memory = {arm.arm: arm.memory["gpu"] if arm.memory else None for arm in plan.arms}
    for arm in plan.arms:
        for seed in recipe.seeds:
            resources = Resources(gpus=_gpus(arm), memory_bytes=memory[arm.arm])
            name = f"{arm.arm}/seed-{seed}"
            after = (*own, *_parent(arm.arm, seed, recipe))
            units.append(Unit(f"train/{name}", "train", after, resources, (f"arms/{name}",)))
    for name, edited in recipe.edited.items():
        for seed in recipe.seeds:
            after = tuple(f"train/{source}/seed-{seed}" for source in edited.made_of())
            units.append(Unit(f"edit/{name}/seed-{seed}", "edit", after, Resources(), (f"arms/{name}/seed-{seed}",)))
    groups = [*_groups(recipe, plan)]
    for group, checkpoints, after, exact in groups:
        units += _sampling(group, checkpoints, after, exact, recipe, plan, gpu)
    reading: tuple[Kind, ...] = ("judge", "grade")
    for kind in reading:
        for group, checkpoints, _, exact in groups:
            units += _reading(kind, group, checkpoints, exact, recipe, plan)
    if any(attacking.conversations(recipe)):
        units.append(Unit("sample/conversations", "sample", ("train/", "edit/"), Resources(gpus=gpu), ("attacks/",)))
    units.append(Unit("compare", "compare", ("judge/", "grade/"), outputs=("table.json", "table.md", "frontier.png")))
    return units


def _gpus(arm: ArmPlan) -> int:
    return 1 if arm.memory is not None else 0


def _answers(recipe: Recipe, gpu: int) -> Iterator[Unit]:
    """Yield the drawing of the answers that a model writes for training, if there is one."""
    specs = {spec.model_dump_json(): spec for arm in recipe.arms for spec in recipe.data_of(arm) if is_drawn(spec)}
    if specs:
        rows = None if any(spec.n is None for spec in specs.values()) else sum(spec.n or 0 for spec in specs.values())
        yield Unit("answers/base", "answers", (), Resources(gpus=gpu), ("data/",), rows, exact=False)


def _parent(arm: str, seed: int, recipe: Recipe) -> tuple[str, ...]:
    """Return the unit that makes the weights from which an arm starts; none if that is the model."""
    parent = lineage.parent_of(recipe.arms[arm])
    return (f"{'edit' if parent in recipe.edited else 'train'}/{parent}/seed-{seed}",) if parent else ()


def _groups(recipe: Recipe, plan: Plan) -> Iterator[tuple[Group, int, tuple[str, ...], bool]]:
    """Yield each group with its checkpoints, the unit that makes them, and whether their number is exact."""
    yield Group("base", 0), 1, (), True
    for arm in [*plan.arms, *plan.edited]:
        kind = "edit" if arm.arm in recipe.edited else "train"
        for number, seed in enumerate(recipe.seeds):
            checkpoints = arm.runs[number].checkpoints if arm.runs else arm.checkpoints // len(recipe.seeds)
            exact = all("checkpoints" in run.exact for run in arm.runs)
            yield Group(arm.arm, seed), checkpoints, (f"{kind}/{arm.arm}/seed-{seed}",), exact


def _of_one_subject(sheet: RequestCount) -> int:
    return (sheet.requests - sheet.repeated) // max(1, sheet.subjects)


def _sampling(
    group: Group, checkpoints: int, after: tuple[str, ...], exact: bool, recipe: Recipe, plan: Plan, gpu: int
) -> Iterator[Unit]:
    each = sum(map(_of_one_subject, plan.sheets))
    exact = exact and all(sheet.exact for sheet in plan.sheets)
    whole_models = group.arm in recipe.arms and recipe.arms[group.arm].where().kind == "full"
    memory = 2 * plan.parameters if plan.parameters else None
    parts = [f"{group.name}/checkpoint {n}" for n in range(1, checkpoints + 1)] if whole_models else [group.name]
    for part in parts:
        requests = each if whole_models else each * checkpoints
        ids = share_ids(f"sample/{part}", number_of_shares(requests, sampling_size(recipe.engine, recipe.batch_size)))
        for id_ in ids:
            outputs = ("replies/", "answers/")
            yield Unit(id_, "sample", after, Resources(1, gpu, memory), outputs, requests // len(ids), exact)


def _reading(kind: Kind, group: Group, checkpoints: int, exact: bool, recipe: Recipe, plan: Plan) -> Iterator[Unit]:
    """Yield the judging (`judge`) or grading (`grade`) of a group."""
    after = (f"sample/{group.name}/",)
    of_judge = judging_size(recipe.judge, recipe.engine, recipe.batch_size)
    size = of_judge if kind == "judge" else TEXTS_AT_ONCE
    for sheet in plan.sheets:
        rows = checkpoints * sheet.requests // max(1, sheet.subjects)
        if not rows or (sheet.kind in ("harmful", "ordinary")) != (kind == "judge"):
            continue
        texts = [recipe.judged_text, *(t for t in recipe.judged_also if t != recipe.judged_text)]
        names = [f"{sheet.kind}-{on}" for on in (texts if sheet.kind == "harmful" else texts[:1])]
        for name in names if kind == "judge" else [sheet.name]:
            shares = share_ids(f"{kind}/{group.name}/{name}", number_of_shares(rows, size))
            for id_ in shares:
                output = "verdicts/" if kind == "judge" else "grades/"
                yield Unit(id_, kind, after, Resources(), (output,), rows // len(shares), exact and sheet.exact)


def show(units: Sequence[Unit]) -> None:
    """Print units as a table; of many of a kind, the first ones."""
    table = Table(box=None, pad_edge=False)
    for name in ("unit", "after", "GPUs", "memory", "rows", "writes"):
        table.add_column(name, justify="left" if name in ("unit", "after", "writes") else "right", overflow="fold")
    hidden: dict[str, int] = {}
    for kind, of_kind in _by_kind(units):
        for unit in of_kind[:SHOWN]:
            table.add_row(*_cells(unit))
        if more := len(of_kind) - SHOWN:
            hidden |= {kind: more} if more > 0 else {}
    console = log.console(width=120)
    console.print(table)
    for name, more in hidden.items():
        console.print(Text(f"and {more:,} more of {name} (--json prints all)"))
    console.print(Text(f"{len(units):,} units; ~ is an estimate"))


def _by_kind(units: Iterable[Unit]) -> list[tuple[Kind, list[Unit]]]:
    kinds: dict[Kind, list[Unit]] = {}
    for unit in units:
        kinds.setdefault(unit.kind, []).append(unit)
    return [*kinds.items()]


def _cells(unit: Unit) -> list[str]:
    memory, rows = unit.resources.memory_bytes, unit.rows
    return [
        unit.id,
        ", ".join(unit.after) or "-",
        str(unit.resources.gpus),
        f"{memory / 1e9:.1f} GB" if memory else "-",
        "-" if rows is None else f"{rows:,}" if unit.exact else f"~{rows:,}",
        " ".join(unit.outputs),
    ]
