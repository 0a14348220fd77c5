"""A dry run's plan as tables for people, within 120 columns."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowtax.dryrun_cost import ASSUMED, CARDS, sampling_flops
from lowtax.dryrun_plan import ArmPlan, Hours, Plan
from lowtax.dryrun_train import Known, least

WIDTH = 120
MARKS: dict[Known, str] = {"counted": "", "at most": "<= ", "stated": "~", "assumed": "?"}
LEGEND = "~ stated or asked for, not read here   ? assumed   <= at most"
NOTES = f"""\
GPU hours are an estimate for one card of each kind, and nothing in it was measured. Assumed: {{cards}}; \
{ASSUMED.training_utilisation:.0%} of the operations in training (batches of few tokens reach less), \
{ASSUMED.decoding_utilisation:.0%} of the bandwidth in decoding, prompts of {ASSUMED.context} tokens.
Training: 6 N operations a token in full; with LoRA 2 N + 2 N_above + 6 P, frozen weights needing no weight gradients \
(N: weights that multiply a token, N_above: those from the first trained block on, P: factors); checkpointing repeats \
the forward pass of the blocks that are trained through. Sampling: 2 N a token.
Decoding: tokens/s = rows x bandwidth / (weights + rows x cache), rows at most batch_size and what a card of 80 GB \
holds; a model that leaves no room for {ASSUMED.rows} rows is spread over more cards, whose hours are added up.
Left out: attention among tokens, what the frozen prefix saves, reading prompts, loading models, judging and grading."""


def show(plan: Plan, console: Console | None = None) -> None:
    """Print a plan."""
    console = console or Console(width=WIDTH, highlight=False, soft_wrap=False)
    console.print(Group(*_parts(plan)))


def _parts(plan: Plan) -> list[RenderableType]:
    recipe, shape = plan.recipe, plan.model.shape
    size = f"{plan.model.parameters:,} parameters" if plan.model.parameters else "its shape is not known here"
    head = f"{recipe.name}: {recipe.model}, {size}, {plan.precision}, engine {recipe.engine}"
    counts = (
        f"Subjects: the base and {plan.subjects - 1} checkpoints of {len(plan.arms) + len(plan.edited)} arms "
        f"with {len(recipe.seeds)} seed{'s' if recipe.seeds[1:] else ''} each."
    )
    parts: list[RenderableType] = [Text(head, style="bold"), Text(counts), Text()]
    parts += [_training(plan), _memory(plan)] if plan.arms else []
    parts += [_edited(plan)] if plan.edited else []
    parts += [_sampling(plan), _cost(plan), Text(LEGEND, style="dim")]
    if shape is not None:
        cards = ", ".join(
            f"{n} {c.flops / 1e12:.0f} TFLOP/s and {c.bandwidth / 1e12:.2f} TB/s" for n, c in CARDS.items()
        )
        parts += [Text(), *(Text(line, style="dim") for line in NOTES.format(cards=cards).splitlines())]
    if recipe.engine == "hf":
        parts.append(Text("The hours of sampling are those of an engine like vllm: hf is slower (docs/engines.md)."))
    parts += [Text(), Text("Not at hand:" if plan.missing else "Everything is at hand.", style="bold")]
    return [*parts, *(Padding(Text(f"- {line}", overflow="fold"), (0, 0, 0, 2)) for line in plan.missing)]


def _training(plan: Plan) -> Table:
    table = _table("Training, each seed", "arm", "trains", "trainable", "rows", "steps", "saved", "tokens", "longest")
    for arm in plan.arms:
        first, known = arm.runs[0], least(run.steps_known for run in arm.runs)
        trainable = f"{arm.trained.parameters:,}" if arm.trained else "-"
        rows = _marked(first.rows, least(run.known for run in arm.runs))
        counts = (rows, _marked(first.steps, known), _marked(first.checkpoints, known))
        table.add_row(
            arm.name, arm.what, trainable, *counts, _marked(first.tokens, first.tokens_known), f"{first.longest:,}"
        )
    return table


def _memory(plan: Plan) -> Table:
    columns = ("arm", "first setting that fits cards of 80 GB", "GB a card", "host GB", "TFLOP", *_cards(), "disk")
    table = _table("Training, all seeds: memory and GPU hours", *columns)
    for arm in plan.arms:
        memory = arm.setting.memory if arm.setting else None
        where = arm.setting.describe() if arm.setting else "none of those tried" if arm.flops else "-"
        sizes = (_gb(memory.gpu) if memory else "-", _gb(memory.host) if memory and memory.host else "-")
        flops = f"{arm.flops / 1e12:,.0f}" if arm.flops is not None else "-"
        table.add_row(arm.name, where, *sizes, flops, *_hours(arm.hours, _bound(arm)), _disk(arm.disk))
    return table


def _edited(plan: Plan) -> Table:
    table = _table("Edited, not trained", "arm", "of", "edits", "checkpoints", "disk")
    for arm in plan.edited:
        table.add_row(arm.name, arm.of, ", ".join(arm.edits), f"{arm.checkpoints:,}", _disk(arm.disk))
    return table


def _sampling(plan: Plan) -> Table:
    columns = ("what", "set or task", "prompts", "samples", "subjects", "requests", "tokens each", "tokens, at most")
    table = _table("Sampling", *columns)
    for sheet in plan.asked.sheets:
        table.add_row(
            sheet.kind,
            sheet.name,
            _marked(sheet.prompts, sheet.known),
            f"{sheet.samples:,}",
            f"{sheet.subjects:,}",
            _marked(sheet.requests, sheet.known),
            f"{sheet.max_new_tokens:,}",
            f"{sheet.tokens:,}",
        )
    table.add_section()
    known = least(sheet.known for sheet in plan.asked.sheets)
    total = (_marked(plan.asked.requests, known), "", f"{plan.asked.tokens:,}")
    table.add_row("all", "", "", "", "", *total, style="bold")
    return table


def _cost(plan: Plan) -> Table:
    table = _table("GPU hours in all", "what", "TFLOP", *_cards(), "")
    shape = plan.model.shape
    sampled = f"{sampling_flops(shape, plan.asked.tokens) / 1e12:,.0f}" if shape else "-"
    trained = [arm.flops for arm in plan.arms]
    flops = "-" if None in trained else f"{sum(f or 0 for f in trained) / 1e12:,.0f}"
    share = f"{ASSUMED.reply_share:.0%}"
    table.add_row("training", flops, *_hours(plan.training(), ""), "")
    table.add_row("sampling, every reply of full length", sampled, *_hours(plan.sampling(), "<= "), "")
    table.add_row(f"sampling, replies of {share} of it", "", *_hours(plan.sampling(ASSUMED.reply_share), ""), "")
    table.add_row(f"judging by {plan.recipe.judge}", "", *([""] * len(CARDS)), f"{plan.verdicts:,} texts at most")
    meanwhile = max((arm.meanwhile or 0 for arm in plan.arms), default=0)
    more = f" and, while an arm trains, {_disk(meanwhile)}" if meanwhile else ""
    table.add_row("checkpoints on disk", "", *([""] * len(CARDS)), _disk(plan.disk) + more)
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in columns:
        words = name in ("trains", "of", "edits", "set or task", "") or name.startswith("first")
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    return table


def _cards() -> Sequence[str]:
    return [f"{name} hours" for name in CARDS]


def _bound(arm: ArmPlan) -> str:
    return "" if all(run.tokens_known == "counted" for run in arm.runs) else "<= "


def _marked(number: int, known: Known) -> str:
    return f"{MARKS[known]}{number:,}"


def _hours(hours: Hours | None, mark: str) -> list[str]:
    if hours is None:
        return ["-"] * len(CARDS)
    return [
        f"{mark}{hour:,.0f}" if hour >= 10 else f"{mark}{hour:.2f}" if hour >= 0.01 else "< 0.01"
        for hour in hours.values()
    ]


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}"


def _disk(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
