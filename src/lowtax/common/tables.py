"""Table cells: rates with their interval and n, and the Markdown tables that show them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowtax.common import stats
from lowtax.common.display import as_markdown, as_quoted

Cell = dict[str, Any]


def rate(outcomes: Iterable[tuple[str, float]]) -> Cell:
    """Return the share of outcomes that are 1, with its interval.

    Args:
        outcomes: the prompt, which is the cluster, and 0 or 1 for each outcome.

    Returns:
        `value`, `low` and `high` (None if there is no outcome), and `n`.
    """
    clusters: dict[str, list[float]] = {}
    for prompt, value in outcomes:
        clusters.setdefault(prompt, []).append(value)
    interval = zip(("value", "low", "high"), stats.cluster_interval(clusters), strict=True)
    rounded = {name: None if math.isnan(x) else round(x, 4) for name, x in interval}
    return rounded | {"n": sum(map(len, clusters.values()))}


def rate_over_seeds(outcomes: Iterable[tuple[int, str, float]]) -> Cell:
    """Return the share of outcomes that are 1, with an interval that covers training seeds and prompts.

    Args:
        outcomes: the training seed, the prompt, and 0 or 1 for each outcome.

    Returns:
        As `rate`, and `seeds`: the share of each training seed.
    """
    by_seed: dict[int, dict[str, list[float]]] = {}
    for seed, prompt, value in outcomes:
        by_seed.setdefault(seed, {}).setdefault(prompt, []).append(value)
    interval = zip(("value", "low", "high"), stats.seeds_interval(by_seed), strict=True)
    rounded = {name: None if math.isnan(x) else round(x, 4) for name, x in interval}
    values = {seed: [x for several in by_seed[seed].values() for x in several] for seed in sorted(by_seed)}
    shares = {str(seed): round(sum(each) / len(each), 4) for seed, each in values.items()}
    return rounded | {"n": sum(map(len, values.values())), "seeds": shares}


def shown(rate: Cell | None) -> str:
    """Return a rate with its interval as text; `-` if it was not measured."""
    if rate is None or rate["value"] is None:
        return "-"
    return f"{rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"


def passage(head: str, texts: Mapping[str, str], most: int = 1500) -> str:
    """Return texts under a heading as Markdown, for people who read what a model wrote. No markup in them acts.

    Args:
        texts: by name; empty ones are left out.
        most: characters of each text that are shown.
    """
    parts = [f"## {as_markdown(head)}\n"]
    for name, text in texts.items():
        if text:
            rest = f" ... ({len(text) - most} more characters)" if len(text) > most else ""
            parts.append(f"{as_markdown(name)}:\n\n{as_quoted(text[:most] + rest)}\n")
    return "\n".join(parts)


def markdown_table(rows: Iterable[Sequence[object]], left: int = 1, padded: bool = False) -> str:
    """Return a GitHub table.

    Args:
        rows: the head, then the body. A cell is shown as text, unless it is `display.Markup`.
        left: the first so many columns are aligned to the left, the others to the right.
        padded: pad the cells, so that the columns line up as plain text.
    """
    head, *body = [[str(as_markdown(cell)) for cell in row] for row in rows]
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    lines = [head, rule, *body]
    if padded:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule[:] = [mark[0] * (width - len(mark)) + mark for mark, width in zip(rule, widths, strict=True)]
        lines = [
            [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
            for line in lines
        ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
