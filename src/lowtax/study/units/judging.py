"""Replies to a judge in shares, one task each; of a study or of a single command."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from lowtax.common.errors import UserError
from lowtax.common.records import Verdict
from lowtax.engines.settings import EngineSettings
from lowtax.judges import base as judges
from lowtax.judges.verdicts import Keep, Reading
from lowtax.study.units import tasks
from lowtax.study.units.base import cut, judging_size, share_ids
from lowtax.study.units.messages import Pool
from lowtax.study.units.requests import ALL
from lowtax.study.units.scheduler import PATIENCE, Scheduler, Work


class ByWorkers:
    """The way to judge replies by the workers of a pool (`verdicts.Read`).

    Args:
        out: the folder for units.jsonl.
    """

    def __init__(self, pool: Pool, out: Path, patience: float = PATIENCE) -> None:
        self._scheduler = Scheduler(pool, out, lambda owner, reason: None, patience)  # one, which knows who is free
        self._readings = 0

    def __call__(self, reading: Reading, keep: Keep) -> None:
        """Judge replies as `verdicts.read_here` does; the verdicts of a share are stored when all of them are there.

        Raises:
            UserError: There is no such judge, or a share failed.
        """
        judges.check(reading.judge)
        scheduler = self._scheduler
        with scheduler.board:
            scheduler.run(self._works(reading, keep))
        if reason := scheduler.failed.get(ALL):
            raise UserError(
                f"A share of the replies could not be judged, and the verdicts so far are stored ({reason})."
            )

    def _works(self, reading: Reading, keep: Keep) -> list[Work]:
        engine = reading.engine or EngineSettings()
        size = judging_size(reading.judge, engine.name, engine.batch_size)
        shares = cut(reading.replies, size, lambda reply: reply.id)
        prefix = f"judge/{self._readings}" if self._readings else "judge"
        self._readings += 1

        def store(rows: list[Verdict]) -> list[Work]:
            keep(rows)
            return []

        works = list[Work]()
        for id_, share in zip(share_ids(prefix, len(shares)), shares, strict=True):
            task = partial(tasks.Judging, replace(reading, replies=share))
            works.append(Work(id_, "judge", ALL, task, store, f"judge {reading.judge}"))
        return works
