"""Studies that workers do: a small recipe, a run of it, and kills of workers while it runs."""

import atexit
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from small_study import contents

from lowtax.study import recipe, study
from lowtax.study.units.driver import Driver
from lowtax.study.units.messages import Pool
from lowtax.study.units.processes import Processes
from lowtax.study.units.scheduler import LOG

SMALL: dict[str, Any] = {
    "seeds": [0],
    "arms": {"r1": {"mode": "lora_up_proj_only_from1_to1_r1"}, "full": {"mode": "full"}},
    "edited": {"half": {"of": "r1", "edits": [{"name": "scale", "by": 0.5}]}},
    "judged_also": ["thought"],
}


@dataclass
class OfOneTemplate(Processes):
    """Workers of this machine whose template serves all pools, one after the other: it imports torch once."""

    idle: ClassVar[list[tuple[Any, Any, Any]]] = []

    def __post_init__(self) -> None:
        if self.idle:
            self._template, self._control, self._template_errors = self.idle.pop()
        super().__post_init__()

    def close(self) -> None:
        """End all workers, and leave the template to the next pool."""
        if self._template is not None:
            self.idle.append((self._template, self._control, self._template_errors))
        self._template = self._control = self._template_errors = None
        super().close()


@atexit.register
def _end_templates() -> None:
    for process, control, errors in OfOneTemplate.idle:
        control.close()
        process.kill()
        process.wait()
        errors.close()


def by_workers(
    path: Path, out: Path, make: Callable[[], Pool], patience: float = 7200.0, group: int | None = None
) -> tuple[dict, Driver]:
    """Run a study by the workers of a pool, which is closed at the end."""
    with study.Study(recipe.load(path), out) as work:
        pool = make()
        try:
            driver = Driver(work, pool, patience, group)
            return driver.run(), driver
        finally:
            pool.close()


def measured(out: Path) -> dict:
    """All that a study has found out, without seconds."""
    found = contents(out)
    found["table"] = [{k: v for k, v in row.items() if k != "edit_seconds"} for row in found["table"]]
    return found


def events(out: Path) -> list[dict]:
    """The whole lines of units.jsonl."""
    text = (out / LOG).read_text() if (out / LOG).exists() else ""
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


def process_of(event: dict) -> int:
    """The process id of the worker in a line of units.jsonl."""
    return int(re.search(r"process (\d+)", event["worker"])[1])


def under_way(lines: list[dict]) -> list[dict]:
    """The lines with which the units began that have not ended."""
    running: dict[str, dict] = {}
    for event in lines:
        running.pop(event["unit"], None)
        if event["state"] == "begun":
            running[event["unit"]] = event
    return [*running.values()]


def history(out: Path) -> str:
    """The units of a study as they came, for the message of a test that fails."""
    lines = (f"{e['at']} {e['unit']} {e['state']} {e['worker']} {e.get('reason') or ''}" for e in events(out))
    return "\n".join(["units.jsonl:", *lines])


class Killer(threading.Thread):
    """Kill the worker of the first unit of each of these kinds, a moment after it has begun."""

    def __init__(self, out: Path, kinds: tuple[str, ...], after: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.out, self.left, self.after, self.kills = out, list(kinds), after, 0
        self.over = threading.Event()

    def run(self) -> None:
        seen = 0
        while self.left and not self.over.is_set():
            new = events(self.out)[seen:]
            seen += len(new)
            for event in new:
                kind = event["unit"].partition("/")[0]
                if event["state"] == "begun" and kind in self.left:
                    self.left.remove(kind)
                    time.sleep(self.after)
                    try:
                        os.kill(process_of(event), signal.SIGKILL)
                        self.kills += 1
                    except ProcessLookupError:
                        pass
            time.sleep(0.005)

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
