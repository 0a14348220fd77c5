"""Agreement of a study with stored results of the same recipe, arm by arm.

Processors round differently, and a training run amplifies that. So a stored result is the rates of many runs, over
training seeds and arithmetics, and a new study agrees if the mean of its seeds lies where one more mean of so many runs
would lie (95 % prediction interval: mean +- t s sqrt(1/m + 1/N) of N stored runs for m new ones). The prompts are the
same, so that they add nothing to the spread. A difference of one prompt always agrees.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lowtax.common import stats
from lowtax.common.cards import Card, Text, read_card
from lowtax.common.errors import UserError
from lowtax.common.tables import markdown_table

FEWEST = 3  # stored runs
NAMES = {"safety": "harmful refused", "over_refusal": "ordinary refused"}
Rate = Annotated[float, Field(ge=0, le=1)]


class StoredRate(Card):
    """One rate of an arm's last checkpoint: how the runs were made -> training seed -> rate."""

    arm: Text
    step: Annotated[int, Field(strict=True, ge=0)]
    measure: Text
    values: dict[Text, dict[Text, Rate]]


class Expected(Card):
    """Stored results of a recipe. made: by the same names, the processor, the precision and the instructions."""

    recipe: Text
    made: dict[Text, dict[str, Any]] = Field(default_factory=dict)
    rates: list[StoredRate]


@dataclass(frozen=True)
class Agreement:
    """One rate beside the stored ones: `low` and `high` are where a mean of so many seeds lies in 95 % of studies."""

    arm: str
    step: int
    measure: str
    value: float
    low: float
    high: float
    stored: int

    @property
    def agrees(self) -> bool:
        """Return whether the rate lies where the stored runs say."""
        return self.low <= self.value <= self.high


def last_rates(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rates of the last checkpoint of every arm: arm, step, measure, n of a seed, and `seeds`."""
    last = {row["arm"]: row for row in sorted(table["rows"], key=lambda row: row["step"])}
    rates = []
    for arm, row in last.items():
        cells = {name: row[name] for name in NAMES} | row["reasoning"]
        for measure, cell in cells.items():
            if seeds := cell.get("seeds"):
                per_seed = cell["n"] / len(seeds)
                rates.append({"arm": arm, "step": row["step"], "measure": measure, "n": per_seed, "seeds": seeds})
    return rates


def agreement(table: Mapping[str, Any], path: Path) -> list[Agreement]:
    """Compare the last checkpoints of a study's table with stored results.

    Raises:
        UserError: The file cannot be read, or is of another recipe, or no rate of it is in the table.
    """
    stored = Expected.model_validate(read_card(path, Expected))
    if stored.recipe != table["recipe"]:
        raise UserError(f"{path} has results of the recipe {stored.recipe!r}, and this study is {table['recipe']!r}.")
    known = {(rate.arm, rate.step, rate.measure): rate for rate in stored.rates}
    rows = []
    for rate in last_rates(table):
        if (match := known.get((rate["arm"], rate["step"], rate["measure"]))) is None:
            continue
        values = [value for by_seed in match.values.values() for value in by_seed.values()]
        if len(values) < FEWEST:
            continue
        seeds = list(rate["seeds"].values())
        low, high = stats.prediction_interval(values, len(seeds))
        one = 1 / rate["n"] + 1e-9
        middle = (low + high) / 2
        low, high = max(0.0, min(low, middle - one)), min(1.0, max(high, middle + one))
        value = math.fsum(seeds) / len(seeds)
        rows.append(Agreement(match.arm, match.step, match.measure, value, low, high, len(values)))
    if not rows:
        raise UserError(f"{path} has no rate of an arm and a last step of this study: were its steps changed?")
    return rows


def markdown(rows: Sequence[Agreement]) -> str:
    """Return a table with a row for each arm, and a last sentence with the number of rates that agree."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    lines = [["arm", "step", *(NAMES.get(measure, measure) for measure in measures)]]
    for arm in dict.fromkeys(row.arm for row in rows):
        own = {row.measure: row for row in rows if row.arm == arm}
        step = next(iter(own.values())).step
        lines.append([arm, f"{step:,}", *(_shown(own.get(measure)) for measure in measures)])
    number, stored = sum(row.agrees for row in rows), max(row.stored for row in rows)
    return (
        f"{markdown_table(lines)}\n\nBeside the stored results of this recipe: the mean of the seeds here, and where "
        f"such a mean lies in 95 of 100 repetitions, of {stored} stored runs with other seeds and other arithmetics. "
        f"{number} of {len(rows)} rates agree.\n"
    )


def _shown(row: Agreement | None) -> str:
    if row is None:
        return "-"
    return f"{row.value:.2f}, {'agrees' if row.agrees else 'DIFFERS'} ({row.low:.2f} to {row.high:.2f})"
