"""A dry run's plan as tables for people, within 120 columns."""

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowtax.dryrun.cost import ASSUMED, CARDS, Hours, training_hours
from lowtax.dryrun.counts import Known, least
from lowtax.dryrun.plan import Plan

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
Left out: attention among tokens, what the frozen prefix saves, validation, what methods and edits compute, reading \
prompts, loading models, judging and grading."""
CARD_HOURS = [f"{name} hours" for name in CARDS]


def show(plan: Plan, console: Console | None = None) -> None:
    """Print a plan."""
    console = console or Console(width=WIDTH, highlight=False, soft_wrap=False)
    console.print(Group(*_parts(plan)))


def _parts(plan: Plan) -> list[RenderableType]:
    recipe, shape, arms = plan.recipe, plan.model.shape, len(plan.arms) + len(plan.edited)
    size = f"{plan.model.parameters:,} parameters" if plan.model.parameters else "its shape is not known here"
    head = f"{recipe.name}: {recipe.model}, {size}, {plan.precision}, engine {recipe.engine}"
    checkpoints = _marked(plan.subjects - 1, plan.subjects_known)
    seeds = f"{len(recipe.seeds)} seed{'s' if recipe.seeds[1:] else ''}"
    counts = f"Subjects: the base and {checkpoints} checkpoints of {arms} arms with {seeds} each."
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
        first, known = arm.runs[0], arm.known
        table.add_row(
            arm.name,
            arm.what,
            f"{arm.trained.parameters:,}" if arm.trained else "-",
            _marked(first.rows, known.rows),
            _marked(first.steps, known.steps),
            _marked(first.checkpoints, known.checkpoints),
            _marked(first.tokens, known.tokens),
            f"{first.longest:,}",
        )
    return table


def _memory(plan: Plan) -> Table:
    columns = ("arm", "first setting that fits cards of 80 GB", "GB a card", "host GB", "TFLOP", *CARD_HOURS, "disk")
    table = _table("Training, all seeds: memory and GPU hours", *columns)
    for arm in plan.arms:
        memory = arm.setting.memory if arm.setting else None
        where = arm.setting.describe() if arm.setting else "none of those tried" if arm.flops else "-"
        sizes = [f"{size / 1e9:,.1f}" if size else "-" for size in ((memory.gpu, memory.host) if memory else (0, 0))]
        table.add_row(
            arm.name,
            where,
            *sizes,
            _tflop(arm.flops),
            *_hours(training_hours(arm.flops), arm.known.tokens),
            _disk(arm.disk),
        )
    return table


def _edited(plan: Plan) -> Table:
    table = _table("Edited, not trained", "arm", "of", "edits", "checkpoints", "disk")
    for arm in plan.edited:
        table.add_row(arm.name, arm.of, ", ".join(arm.edits), f"{arm.checkpoints:,}", _disk(arm.disk))
    return table


def _sampling(plan: Plan) -> Table:
    columns = ("what", "set or task", "prompts", "samples", "subjects", "requests", "tokens each", "tokens, at most")
    table = _table("Sampling", *columns)
    for sheet in plan.sheets:
        table.add_row(
            sheet.kind,
            sheet.name,
            _marked(sheet.prompts, sheet.known),
            f"{sheet.samples:,}",
            f"{sheet.subjects:,}",
            _marked(sheet.requests, sheet.requests_known),
            f"{sheet.max_new_tokens:,}",
            f"{sheet.tokens:,}",
        )
    table.add_section()
    known = least(sheet.requests_known for sheet in plan.sheets)
    total = (_marked(plan.requests, known), "", f"{plan.tokens:,}")
    table.add_row("all", "", "", "", "", *total, style="bold")
    return table


def _cost(plan: Plan) -> Table:
    table = _table("GPU hours in all", "what", "TFLOP", *CARD_HOURS, "")
    known, blank = least(arm.known.tokens for arm in plan.arms), [""] * len(CARDS)
    table.add_row("training", _tflop(plan.flops), *_hours(training_hours(plan.flops), known), "")
    sampling = (_tflop(plan.sampling_flops), *_hours(plan.sampling(), "at most"))
    table.add_row("sampling, every reply of full length", *sampling, "")
    share = ASSUMED.reply_share
    table.add_row(f"sampling, replies of {share:.0%} of it", "", *_hours(plan.sampling(share), "counted"), "")
    table.add_row(f"judging by {plan.recipe.judge}", "", *blank, f"{plan.verdicts:,} texts at most")
    meanwhile = max((arm.meanwhile or 0 for arm in plan.arms), default=0)
    more = f" and, while an arm trains, {_disk(meanwhile)}" if meanwhile else ""
    table.add_row("checkpoints on disk", "", *blank, _disk(plan.disk) + more)
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in columns:
        words = name in ("trains", "of", "edits", "set or task", "") or name.startswith("first")
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    return table


def _marked(number: int, known: Known) -> str:
    return f"{MARKS[known]}{number:,}"


def _tflop(flops: float | None) -> str:
    return "-" if flops is None else f"{flops / 1e12:,.0f}"


def _hours(hours: Hours | None, known: Known) -> list[str]:
    if hours is None:
        return ["-"] * len(CARDS)
    mark = MARKS[known]
    return [
        f"{mark}{hour:,.0f}" if hour >= 10 else f"{mark}{hour:.2f}" if hour >= 0.01 else "< 0.01"
        for hour in hours.values()
    ]


def _disk(size: float | None) -> str:
    if size is None:
        return "-"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
