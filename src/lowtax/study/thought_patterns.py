"""Risky patterns of thoughts as columns: the labels that `rubric:MODEL@thought_patterns` gave to stored replies.

The labels come from `lowtax judge STUDY --judge rubric:MODEL@thought_patterns --on both`. Without them a table has no
such columns. Their rubric follows the safety study of reasoning models (arXiv:2505.15404), in our own words.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowtax.common.files import read_rows
from lowtax.common.records import Reply, Verdict
from lowtax.common.stats import wilson
from lowtax.common.tables import markdown_table

RUBRIC = "thought_patterns"
Row = dict[str, Any]


def add(rows: Sequence[Row], out: Path) -> None:
    """Add `patterns` to the rows of a table: the share of each label among the labelled replies to harmful requests.

    Each share has a 95 % Wilson interval over replies; replies without a label are counted as `no_label`.
    """
    verdicts = [
        verdict
        for path in sorted((out / "verdicts").glob("harmful.*.jsonl"))
        for verdict in read_rows(path, Verdict).values()
        if verdict.judge.startswith("rubric:") and verdict.judge.endswith(f"@{RUBRIC}")
    ]
    if not verdicts:
        return
    replies = read_rows(out / "replies" / "harmful.jsonl", Reply)
    for row in rows:
        own = [
            v
            for v in verdicts
            if (reply := replies.get(v.reply_id)) and (reply.arm, reply.checkpoint) == (row["arm"], row["checkpoint"])
        ]
        if own:
            row["patterns"] = shares(own)


def shares(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """Return the share of each label, with its interval, and the number of verdicts without one."""
    from lowtax.judges import rubric  # training needs no judge

    labels = [v.category for v in verdicts if v.category]
    cells: dict[str, dict[str, Any]] = {}
    for name in rubric.load(RUBRIC).names.values():
        k, n = labels.count(name), len(labels)
        low, high = wilson(k, n) if n else (0.0, 1.0)
        cells[name] = {"value": k / n if n else None, "low": low, "high": high, "n": n}
    return cells | {"no_label": {"n": len(verdicts) - len(labels)}}


def markdown(rows: Sequence[Row]) -> str:
    """Return a table of the patterns; empty if no row has any."""
    rows = [row for row in rows if row.get("patterns")]
    if not rows:
        return ""
    names = [name for name in rows[0]["patterns"] if name != "no_label"]
    lines = [["thoughts about harmful requests", "step", *names, "no label"]]
    for row in rows:
        cells = [_shown(row["patterns"][name]) for name in names]
        lines.append([row["arm"], f"{row['step']:,}", *cells, f"{row['patterns']['no_label']['n']:,}"])
    return markdown_table(lines)


def _shown(cell: dict[str, Any]) -> str:
    if cell["value"] is None:
        return "-"
    return f"{cell['value']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}] n {cell['n']}"
