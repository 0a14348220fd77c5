"""The state of all units, shown as a table that changes on a terminal, and as lines elsewhere."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from lowtax.common import log
from lowtax.study.units.base import KINDS, Kind

SPEAK_EVERY = 10.0  # seconds between lines, if a unit began or ended meanwhile
REPEAT_EVERY = 120.0  # seconds between lines else
DRAW_EVERY = 0.5  # seconds between tables
LINES = 3  # the last lines of workers under the table
End = Literal["done", "again", "failed"]


@dataclass
class _Now:
    unit: str
    kind: Kind
    items: int = 0
    tokens: int = 0


@dataclass
class Board:
    """Counts of units by kind and state, and what every worker does."""

    live: bool = False
    counts: dict[Kind, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    seconds: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    now: dict[str, _Now] = field(default_factory=dict)
    tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    sampling_since: float | None = None
    _lines: list[str] = field(default_factory=list)
    _shown: float = 0.0
    _spoken: tuple[Any, ...] = ()
    _display: Any = None

    def __enter__(self) -> "Board":
        """Begin to show a table if the standard error is a terminal."""
        self.live = sys.stderr.isatty()
        if self.live:
            from rich.live import Live

            self._display = Live(console=log.console(sys.stderr), auto_refresh=False, transient=True)
            self._display.start()
            self._before, log.OUTPUTS[:] = log.OUTPUTS[:], [self._remember]
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the table, and say how all ended."""
        if self._display is not None:
            self._display.stop()
            log.OUTPUTS[:] = self._before
        if any(self.counts[kind].total() for kind in KINDS):
            log.say(self.line())

    def _remember(self, text: str) -> None:
        self._lines = [*self._lines, text][-LINES:]

    def waits(self, kind: Kind) -> None:
        """Count a unit that can be done now."""
        self.counts[kind]["waiting"] += 1

    def dropped(self, kind: Kind) -> None:
        """Count a unit that is not done after all, since its arm failed."""
        self.counts[kind]["waiting"] -= 1

    def begins(self, unit: str, kind: Kind, worker: str) -> None:
        """Count a unit that a worker begins."""
        self.counts[kind]["waiting"] -= 1
        self.now[worker] = _Now(unit, kind)
        if kind == "sample" and self.sampling_since is None:
            self.sampling_since = time.monotonic()

    def progress(self, worker: str, items: int, tokens: int) -> None:
        """Note how far a worker is."""
        if worker in self.now:
            self.tokens += tokens - self.now[worker].tokens
            self.now[worker].items, self.now[worker].tokens = items, tokens

    def ends(self, worker: str, kind: Kind, how: End, seconds: float) -> None:
        """Count a unit that has ended; one that is begun again waits."""
        self.now.pop(worker, None)
        self.counts[kind]["waiting" if how == "again" else how] += 1
        self.seconds[kind] += seconds if how == "done" else 0.0

    def said(self, unit: str, text: str) -> None:
        """Repeat a line of a worker."""
        log.say(f"  {unit}: {text.strip()}")

    def left(self) -> float | None:
        """Return the seconds that the units which are known need, at the pace of those of their kind; None if unknown.

        A unit that runs counts as half a unit.
        """
        total = 0.0
        for kind in KINDS:
            number = self.counts[kind]["waiting"] + 0.5 * sum(now.kind == kind for now in self.now.values())
            if number and not self.counts[kind]["done"]:
                return None
            total += number * self.seconds[kind] / max(1, self.counts[kind]["done"])
        return total / max(1, len(self.now))

    def line(self) -> str:
        """Return the state of all units as a line."""
        states = {s: sum(self.counts[kind][s] for kind in KINDS) for s in ("waiting", "done", "failed")}
        parts = [f"{states['waiting']} waiting", f"{len(self.now)} running", f"{states['done']} done"]
        parts += [f"{states['failed']} FAILED"] * (states["failed"] > 0)
        return f"units: {', '.join(parts)}{self._pace()}"

    def _pace(self) -> str:
        text = ""
        if self.tokens and self.sampling_since is not None:
            text += f"; {self.tokens / max(0.1, time.monotonic() - self.sampling_since):,.0f} tokens/s"
        if self.now and (left := self.left()) is not None:
            text += f"; about {left / 60:.0f} min for those" if left > 90 else f"; about {left:.0f} s for those"
        return text

    def show(self) -> None:
        """Show the table, or say the line, unless it was shown a moment ago; one with the same units waits longer."""
        now = time.monotonic()
        if now - max(self._shown, self.began) < (DRAW_EVERY if self.live else SPEAK_EVERY):
            return
        if self._display is not None:
            self._shown = now
            self._display.update(self._table(), refresh=True)
            return
        units = tuple((worker, at.unit) for worker, at in self.now.items())
        if units == self._spoken and now - self._shown < REPEAT_EVERY:
            return
        self._shown, self._spoken = now, units
        log.say(self.line())
        for worker, at in self.now.items():
            log.say(f"  {worker}: {at.unit}" + (f", {at.items:,} done" if at.items else ""))

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        states = ("waiting", "running", "done", "failed")
        for name in ("units", *states):
            table.add_column(name, justify="left" if name == "units" else "right")
        for kind in KINDS:
            running = sum(at.kind == kind for at in self.now.values())
            if self.counts[kind].total() or running:
                numbers = {**self.counts[kind], "running": running}
                table.add_row(kind, *(str(numbers.get(state, 0)) for state in states))
        workers = [Text(f"{w}: {at.unit}" + f", {at.items:,} done" * bool(at.items)) for w, at in self.now.items()]
        return Group(table, *workers, *map(Text, self._lines), Text(self._pace().removeprefix("; ")))
