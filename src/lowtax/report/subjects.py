"""The columns of the page: the base and the checkpoints of one study or several, each with its colour and mark."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lowtax.common.display import as_line
from lowtax.common.names import CHECKPOINT, is_checkpoint
from lowtax.common.palette import COLOURS, MARKS
from lowtax.report.stored import Stored

BASE = "base"
BASE_MARK = "*"


@dataclass
class Columns:
    """The columns, numbered in the order in which they are first named: by study, arm and checkpoint."""

    studies: Sequence[Stored]
    numbers: dict[tuple[int, str, str | None], int] = field(default_factory=dict)

    def number(self, study: int, arm: str, checkpoint: str | None) -> int:
        """Return the number of a column; it is made if it is new."""
        return self.numbers.setdefault((study, arm, checkpoint), len(self.numbers))

    def add_rows(self) -> None:
        """Name the rows of all tables, which come first."""
        for study, stored in enumerate(self.studies):
            for row in stored.rows:
                self.number(study, row["arm"], row["checkpoint"])

    def described(self) -> list[dict[str, Any]]:
        """Return a description of each column: `study`, `arm`, `name`, `step`, `last`, `base`, `colour`, `mark`."""
        looks = self._looks()
        last = {(study, arm): number for (study, arm, _), number in sorted(self._by_step())}
        listed = []
        for (study, arm, checkpoint), number in self.numbers.items():
            colour, mark = looks[study, arm]
            label = as_line(arm) if len(self.studies) == 1 else f"{self.studies[study].name}: {as_line(arm)}"
            listed.append(
                {
                    "study": study,
                    "arm": as_line(arm),
                    "name": label,
                    "step": step_of(checkpoint),
                    "last": last[study, arm] == number,
                    "base": arm == BASE,
                    "colour": colour,
                    "mark": mark,
                }
            )
        return listed

    def _by_step(self) -> list[tuple[tuple[int, str, int], int]]:
        return [
            ((study, arm, step_of(checkpoint)), number) for (study, arm, checkpoint), number in self.numbers.items()
        ]

    def _looks(self) -> dict[tuple[int, str], tuple[str, str]]:
        """Return the colour and the mark of every arm, as in frontier.png; the base has the colour of text."""
        arms = list(dict.fromkeys((study, arm) for study, arm, _ in self.numbers if arm != BASE))
        looks = {key: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, key in enumerate(arms)}
        return looks | {(study, BASE): ("", BASE_MARK) for study in range(len(self.studies))}


def step_of(checkpoint: str | None) -> int:
    """Return the step of a checkpoint by its name; 0 for the base."""
    return int(checkpoint.removeprefix(CHECKPOINT)) if is_checkpoint(checkpoint) and checkpoint else 0
