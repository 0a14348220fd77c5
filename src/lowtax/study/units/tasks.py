"""The tasks of units. Each does its work by the functions that one process uses, and returns rows or writes folders."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from lowtax.benchmarks import evaluate
from lowtax.benchmarks.base import Task as Exam
from lowtax.benchmarks.base import load as load_benchmark
from lowtax.common.errors import Busy
from lowtax.common.files import append_rows, locked
from lowtax.common.records import Grade, Prompt, Reply, Verdict
from lowtax.engines import base
from lowtax.engines.sampling import Ask, decoded, effects_by_subject
from lowtax.engines.settings import EngineSettings
from lowtax.judges import base as judges
from lowtax.judges.verdicts import judge_replies
from lowtax.study.arms import EditPlan
from lowtax.study.units.messages import Desk
from lowtax.training import loop
from lowtax.training.job import Job

TELL_EVERY = 1.0  # seconds
PATIENCE = 60.0  # seconds that a task waits for a folder whose last worker is about to end


def _moved(path: str | None, before: Path, after: Path) -> str | None:
    """Return a path below one folder as the same path below another; others stay."""
    if path is None or not Path(path).is_relative_to(before):
        return path
    return str(after / Path(path).relative_to(before))


@dataclass(frozen=True)
class Training:
    """The training of one arm with one seed, in its folder."""

    out: Path
    folder: Path
    job: Job

    def run(self, desk: Desk) -> None:
        """Train, or resume. The folder is locked, since the worker of a driver that was killed may still be in it."""
        desk.clear()
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with locked(self.out / self.folder):
                    loop.train(self.job, self.out / self.folder)
                return
            except Busy:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def at(self, root: Path) -> "Training":
        """Return the task with the study's folder somewhere else."""
        return replace(self, out=root)

    def inputs(self) -> list[Path]:
        """Return no folder: a job has its rows."""
        return []

    def outputs(self) -> list[Path]:
        """Return the folder of the arm and seed."""
        return [self.folder]


@dataclass(frozen=True)
class Editing:
    """The edits of one arm with one seed."""

    out: Path
    plan: EditPlan

    def run(self, desk: Desk) -> None:
        """Make the checkpoints."""
        desk.clear()
        self.plan.make()

    def at(self, root: Path) -> "Editing":
        """Return the task with the study's folder somewhere else."""
        return replace(self, out=root, plan=replace(self.plan, arms=root / "arms"))

    def inputs(self) -> list[Path]:
        """Return the folders of the trained arms that it is made of."""
        return [Path("arms", arm, f"seed-{self.plan.seed}") for arm in self.plan.arm.made_of()]

    def outputs(self) -> list[Path]:
        """Return the folder of the edited arm."""
        return [Path("arms", self.plan.name, f"seed-{self.plan.seed}")]


@dataclass(frozen=True)
class Drawn:
    """The completions of a share, and what its adapters change, by `made_by`."""

    completions: list[base.Completion]
    effects: Mapping[str, float]


@dataclass(frozen=True)
class Sampling:
    """A share of requests to one model, in batches that are drawn one after the other.

    measures: return what the adapters change, by their first requests in this share.
    """

    out: Path
    engine: EngineSettings
    batches: Sequence[Sequence[Ask]]
    measures: bool = True

    def run(self, desk: Desk) -> Drawn:
        """Draw all completions of the share."""
        model, settings = self.batches[0][0].subject.model, self.engine
        how = (settings.name, model, settings.precision, settings.batch_size)
        engine = desk.loaded(("engine", *how), lambda: base.load(*how))
        if self.measures and isinstance(engine, base.MeasuresEffects):
            engine.effects.clear()  # of another share, which this worker had before
        completions, tokens, told = list[base.Completion](), 0, 0.0
        for batch in self.batches:
            for completion in decoded(engine, list(batch)):
                completions.append(completion)
                tokens += completion.tokens
                if time.monotonic() - told > TELL_EVERY:
                    desk.progress(len(completions), tokens)
                    told = time.monotonic()
        effects = engine.effects if self.measures and isinstance(engine, base.MeasuresEffects) else {}
        subjects = {ask.subject for batch in self.batches for ask in batch}
        return Drawn(completions, effects_by_subject(effects, subjects))

    def at(self, root: Path) -> "Sampling":
        """Return the task with adapters and whole models in another folder."""
        return replace(self, out=root, batches=[[self._there(ask, root) for ask in batch] for batch in self.batches])

    def _there(self, ask: Ask, root: Path) -> Ask:
        subject = ask.subject
        model, adapter = _moved(subject.model, self.out, root), _moved(subject.adapter, self.out, root)
        return replace(ask, subject=replace(subject, model=model or subject.model, adapter=adapter))

    def inputs(self) -> list[Path]:
        """Return the folders of adapters and whole models."""
        paths = {path for batch in self.batches for ask in batch for path in (ask.subject.adapter, ask.subject.model)}
        own = [Path(path).relative_to(self.out) for path in paths if path and Path(path).is_relative_to(self.out)]
        return sorted(own)

    def outputs(self) -> list[Path]:
        """Return no folder: rows are stored by the driver."""
        return []


@dataclass(frozen=True)
class OfRows:
    """A task on rows alone, which has no folders."""

    def at(self, root: Path) -> Self:
        """Return the same task."""
        return self

    def inputs(self) -> list[Path]:
        """Return no folder."""
        return []

    def outputs(self) -> list[Path]:
        """Return no folder."""
        return []


@dataclass(frozen=True)
class Judging(OfRows):
    """A share of replies that a judge reads."""

    replies: Sequence[Reply]
    judge: str
    on: judges.Text
    engine: EngineSettings

    def run(self, desk: Desk) -> list[Verdict]:
        """Return the verdicts."""

        def load() -> judges.Judge:
            judge: judges.Judge = desk.loaded(("judge", self.judge), lambda: judges.load(self.judge, self.engine))
            return judge

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "verdicts.jsonl"
            return [*judge_replies(self.replies, path, self.judge, self.on, self.engine, load_judge=load).values()]


@dataclass(frozen=True)
class Grading(OfRows):
    """A share of the answers to one task.

    questions: by prompt id. earlier: stored grades of these answers, for the opinions of a checker.
    """

    replies: Sequence[Reply]
    name: str
    exam: Exam
    questions: Mapping[str, Prompt]
    engine: EngineSettings
    earlier: Sequence[Grade] = ()

    def run(self, desk: Desk) -> list[Grade]:
        """Return the grades."""
        checker = self.exam.checker
        if checker:
            desk.clear()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "grades.jsonl"
            append_rows(path, self.earlier)
            second = evaluate.Checker(checker, self.engine, self.exam.preset) if checker else None
            benchmark = load_benchmark(self.name, self.exam)
            return [*evaluate.grade(self.replies, self.name, benchmark, self.questions, path, second).values()]
