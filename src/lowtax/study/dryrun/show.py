"""A plan as tables for people, at most 120 columns wide."""

from collections.abc import Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowtax.common import log
from lowtax.study.dryrun.counts import RequestCount
from lowtax.study.dryrun.plan import ArmPlan, Plan

ARMS = ("arm", "trains or edits", "trainable", "rows", "steps", "tokens", "longest", "checkpoints")
MEMORY = ("arm", "first layout that fits GPUs of 80 GB", "a GPU", "the host", "checkpoints on disk")
REQUESTS = ("kind", "set or task", "prompts", "samples", "subjects", "requests", "tokens each, at most")
LEFT = {*ARMS[:2], *MEMORY[:2], *REQUESTS[:2]}  # columns with words
LEGEND = """\
~ an estimate: a set is not available and counts with its published or requested size, else as 1,000 rows or 100
  prompts; or it depends on the model's own answers or on an early stop"""


def show(plan: Plan, console: Console | None = None) -> None:
    """Print a plan."""
    size = f"{plan.parameters:,} parameters" if plan.parameters else "configuration not available"
    arms, n = [*plan.arms, *plan.edited], len(plan.seeds)
    disk = ["all", "", "", "", _bytes(plan.disk_bytes)]
    total = ["all", *[""] * 4, _number(plan.requests, all(sheet.exact for sheet in plan.sheets)), ""]
    most = (
        f"At most {plan.tokens_at_most:,} tokens in all replies, and {plan.verdicts:,} texts for {plan.judge} to judge."
    )
    parts: list[RenderableType] = [
        Text(f"{plan.recipe}: {plan.model}, {size}, {plan.precision}, engine {plan.engine}", style="bold"),
        Text(f"{plan.subjects:,} subjects: the base, and {len(arms)} arms with {n} seed{'s' * (n > 1)} each\n"),
        _table("Arms: each seed, and the checkpoints of all", ARMS, map(_arm, arms)),
        *([_table("Memory and disk", MEMORY, [*map(_memory, arms), disk])] if plan.parameters else []),
        _table("Sampling", REQUESTS, [*map(_requests, plan.sheets), total]),
        Text(f"{most}\n{LEGEND}\n"),
        Text("Not available on this machine:" if plan.missing else "Everything is available.", style="bold"),
        *(Padding(Text(f"- {name}: {step}"), (0, 0, 0, 2)) for name, step in plan.missing.items()),
    ]
    (console or log.console(width=120)).print(Group(*parts))


def _arm(arm: ArmPlan) -> list[str]:
    run = arm.runs[0] if arm.runs else None
    counts = [_number(getattr(run, name), name in run.exact) for name in ARMS[3:7]] if run else ["-"] * 4
    checkpoints = _number(arm.checkpoints, all("checkpoints" in run.exact for run in arm.runs))
    return [arm.arm, arm.what, _number(arm.trainable_parameters), *counts, checkpoints]


def _memory(arm: ArmPlan) -> list[str]:
    none = "none of those tried" if arm.trainable_parameters else "-"
    memory = arm.memory or {"setting": none, "gpu": 0, "host": 0}
    return [arm.arm, memory["setting"], _bytes(memory["gpu"]), _bytes(memory["host"]), _bytes(arm.disk_bytes)]


def _requests(sheet: RequestCount) -> list[str]:
    prompts, requests = (_number(n, sheet.exact) for n in (sheet.prompts, sheet.requests))
    samples, subjects, tokens = map(_number, (sheet.samples, sheet.subjects, sheet.max_new_tokens))
    return [sheet.kind, sheet.name, prompts, samples, subjects, requests, tokens]


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _number(number: int | None, exact: bool = True) -> str:
    return "-" if number is None else f"{number:,}" if exact else f"~{number:,}"


def _bytes(size: float | None) -> str:
    if not size:
        return "-"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
