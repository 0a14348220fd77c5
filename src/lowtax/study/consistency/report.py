"""The result of a consistency study as Markdown: components, rates at every level, conclusions, coherence."""

from collections.abc import Mapping, Sequence
from typing import Any

from lowtax.common.display import as_markdown
from lowtax.common.tables import markdown_table, shown

Result = Mapping[str, Any]
EXTENTS = {"every": "in every cell", "most": "in most", "few": "in few", "none": "in no other"}


def markdown(result: Result) -> str:
    """Return the page: tables that apply, each with a caption."""
    parts = [
        _head(result),
        _components(result),
        _levels(result),
        _conclusions(result),
        _coherence(result),
        _failed(result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(result: Result) -> str:
    cells = result["cells"]
    failed = sum(cell["error"] is not None for cell in cells.values())
    return (
        f"Consistency of {as_markdown(result['recipe'])}: model {as_markdown(result['model'])}. {len(cells)} cells, "
        f"one factor at a time from the reference cell{f'; {failed} FAILED' if failed else ''}."
    )


def _components(result: Result) -> str:
    components, measures = result["components"], result["measures"]
    if not components:
        return ""
    lines = [["axis", "levels", *(f"sd of {measure}" for measure in measures)]]
    for axis, component in components.items():
        cells = [_component(component["measures"].get(measure)) for measure in measures]
        lines.append([axis, f"{len(component['levels'])}", *cells])
    arms = ", ".join(as_markdown(arm) for arm in result["arms"])
    return (
        f"{markdown_table(lines)}\n\nHow far the levels of an axis move a rate: the standard deviation between levels "
        "beyond the flips of single prompts, with a 95 % bootstrap interval over prompts, pooled over the last "
        f"checkpoints of {arms}. An interval that begins at 0.000 cannot tell the axis from no effect. It is about "
        "these levels alone: with two, the sd is at most their distance over 1.41. `-`: the axis cannot move it, or it "
        "was not measured."
    )


def _component(component: Mapping[str, Any] | None) -> str:
    if component is None:
        return "-"
    return f"{component['sd']:.3f} [{component['low']:.3f}, {component['high']:.3f}]"


def _levels(result: Result) -> str:
    measures = result["measures"]
    lines = [["axis", "level", "arm", *measures]]
    for axis, component in result["components"].items():
        for label, level in component["levels"].items():
            own = " (reference)" if level["reference"] else ""
            for arm, rates in level["rates"].items():
                lines.append([axis, f"{label}{own}", arm, *(shown(rates.get(measure)) for measure in measures)])
            if not level["rates"]:
                lines.append([axis, label, "FAILED", *["-"] * len(measures)])
    if len(lines) == 1:
        return ""
    caption = "Rates at each level, with 95 % intervals that cover prompts and training seeds."
    return f"{markdown_table(lines, left=3)}\n\n{caption}"


def _conclusions(result: Result) -> str:
    rows = result["conclusions"]
    if not rows:
        return "The reference cell supports no conclusion: no paired interval between its arms excludes zero."
    lines = [["conclusion", "reference", "holds", "undecided", "reversed", "of", "so it holds"]]
    for row in rows:
        own = row["reference"]
        counts = [f"{row[name]}" for name in ("holds", "undecided", "reversed", "of")]
        told = EXTENTS[row["extent"]] if row["of"] else "no other cell measures it"
        lines.append([row["text"], f"{own['value']:+.2f} [{own['low']:+.2f}, {own['high']:+.2f}]", *counts, told])
    return (
        f"{markdown_table(lines)}\n\nConclusions that the reference cell supports, and the other cells that measure "
        "them anew: holds, the paired 95 % interval excludes zero again; reversed, it does so on the other side. "
        "Intervals are not corrected for their number."
    )


def _coherence(result: Result) -> str:
    names = ("empty", "repeats", "other_script", "unfinished")
    lines = [["cell", "arm", *(name.replace("_", " ") for name in names), "n"]]
    for cell, facts in result["cells"].items():
        if facts["kind"] == "reading":
            continue  # its replies are those of the reference cell
        for arm, shares in facts["coherence"].items():
            if (total := _pooled(list(shares.values()), names)) is not None:
                lines.append([cell, arm, *(f"{total[name]:.2f}" for name in names), f"{total['n']:,}"])
    if len(lines) == 1:
        return ""
    return (
        f"{markdown_table(lines, left=2)}\n\nShares of replies and answers, last checkpoints. Repeats: a passage of "
        "four words five times, in a fifth of the text. Other script: most letters are of a script that the prompt "
        "lacks. Both rules are coarse."
    )


def _pooled(shares: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
    n = sum(share["n"] for share in shares)
    if not n:
        return None
    return {name: sum(share[name] * share["n"] for share in shares) / n for name in names} | {"n": n}


def _failed(result: Result) -> str:
    lines = [[name, facts["error"]] for name, facts in result["cells"].items() if facts["error"] is not None]
    return "" if not lines else markdown_table([["failed cell", "reason"], *lines], left=2)
