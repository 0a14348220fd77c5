"""The tasks of units. Each does its work by the functions that one process uses, and returns rows or writes folders."""

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from lowtax.benchmarks import evaluate
from lowtax.benchmarks.base import Task as Exam
from lowtax.benchmarks.base import load as load_benchmark
from lowtax.common.errors import Busy
from lowtax.common.files import append_rows, locked
from lowtax.common.records import Grade, Prompt, Reply, Subject, Verdict
from lowtax.engines import base
from lowtax.engines.sampling import Ask, decoded, effects_by_subject
from lowtax.engines.settings import EngineSettings
from lowtax.judges import base as judges
from lowtax.judges.verdicts import Reading, read_here
from lowtax.study import attacking, own_answers
from lowtax.study.arms import EditPlan
from lowtax.study.recipe import Recipe
from lowtax.study.units.messages import Desk
from lowtax.training import group, loop
from lowtax.training.job import Job

DATA, ATTACKS = Path("data"), Path("attacks")  # folders of a study
TELL_EVERY = 1.0  # seconds
PATIENCE = 60.0  # seconds that a task waits for a folder whose last worker is about to end


def _moved(path: str | None, before: Path, after: Path) -> str | None:
    """Return a path below one folder as the same path below another; others stay."""
    if path is None or not Path(path).is_relative_to(before):
        return path
    return str(after / Path(path).relative_to(before))


def _there(subject: Subject, before: Path, after: Path) -> Subject:
    """Return a subject whose adapter and whole model are in another folder."""
    model, adapter = _moved(subject.model, before, after), _moved(subject.adapter, before, after)
    return replace(subject, model=model or subject.model, adapter=adapter)


def _folders(subjects: Iterable[Subject], out: Path) -> list[Path]:
    """Return the folders of adapters and whole models that are in the study's."""
    paths = {path for subject in subjects for path in (subject.adapter, subject.model)}
    return sorted(Path(path).relative_to(out) for path in paths if path and Path(path).is_relative_to(out))


@dataclass(frozen=True)
class Training:
    """The training of one arm with one seed, in its folder.

    processes: those that train it together, on a GPU each; None is this one alone.
    machines: the place of this machine among those of the processes.
    """

    out: Path
    folder: Path
    job: Job
    processes: int | None = None
    machines: group.Machines = group.ALONE

    def run(self, desk: Desk) -> None:
        """Train, or resume. The folder is locked, since the worker of a driver that was killed may still be in it.

        Of several machines the first has the lock.
        """
        desk.clear()
        if self.machines.rank:
            return self._train()
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with locked(self.out / self.folder):
                    self._train()
                return
            except Busy:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def _train(self) -> None:
        if self.processes is None:
            loop.train(self.job, self.out / self.folder)
        else:
            group.train(self.job, self.out / self.folder, self.processes, self.machines)

    def part(self, rank: int, number: int, address: str, port: int) -> "Training":
        """Return the training as one of several machines does it."""
        return replace(self, machines=group.Machines(rank, number, address, port))

    def at(self, root: Path) -> "Training":
        """Return the task with the study's folder somewhere else."""
        start = self.job.start and self.job.start.moved(self.out, root)
        return replace(self, out=root, job=replace(self.job, start=start))

    def inputs(self) -> list[Path]:
        """Return the folders of the arms that it starts from; a job has its rows."""
        return [folder.relative_to(self.out) for folder in (self.job.start.folders() if self.job.start else [])]

    def outputs(self) -> list[Path]:
        """Return the folder of the arm and seed."""
        return [self.folder]


@dataclass(frozen=True)
class Editing:
    """The edits of one arm with one seed.

    base: the weights that its adapters are on. model: that of the study.
    """

    out: Path
    plan: EditPlan
    base: str
    model: str

    def run(self, desk: Desk) -> None:
        """Make the checkpoints."""
        desk.clear()
        self.plan.make(self.base, self.model)

    def at(self, root: Path) -> "Editing":
        """Return the task with the study's folder somewhere else."""
        base = _moved(self.base, self.out, root) or self.base
        return replace(self, out=root, plan=replace(self.plan, arms=root / "arms"), base=base)

    def inputs(self) -> list[Path]:
        """Return the folders of the arms that it is made of, and of the whole weights that its adapters are on."""
        own = [Path("arms", arm, f"seed-{self.plan.seed}") for arm in self.plan.arm.made_of()]
        return [*own, *([Path(self.base).relative_to(self.out)] if Path(self.base).is_relative_to(self.out) else [])]

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
        return replace(ask, subject=_there(ask.subject, self.out, root))

    def inputs(self) -> list[Path]:
        """Return the folders of adapters and whole models."""
        return _folders({ask.subject for batch in self.batches for ask in batch}, self.out)

    def outputs(self) -> list[Path]:
        """Return no folder: rows are stored by the driver."""
        return []


@dataclass(frozen=True)
class Answers:
    """The answers that a model writes for training, of all sources."""

    out: Path
    plans: Sequence[own_answers.Plan]

    def run(self, desk: Desk) -> None:
        """Draw and filter them."""
        desk.clear()
        own_answers.draw(self.plans, self.out)

    def at(self, root: Path) -> "Answers":
        """Return the task with the study's folder somewhere else."""
        plans = [replace(each, path=root / each.path.relative_to(self.out)) for each in self.plans]
        return replace(self, out=root, plans=plans)

    def inputs(self) -> list[Path]:
        """Return the folder with the answers that were drawn before."""
        return [DATA] if (self.out / DATA).is_dir() else []

    def outputs(self) -> list[Path]:
        """Return the folder of the answers."""
        return [DATA]


@dataclass(frozen=True)
class Conversing:
    """The attacks that talk to models."""

    out: Path
    recipe: Recipe
    subjects: Sequence[Subject]
    engine: EngineSettings

    def run(self, desk: Desk) -> None:
        """Run all of them."""
        desk.clear()
        attacking.converse(self.recipe, self.subjects, self.engine, self.out)

    def at(self, root: Path) -> "Conversing":
        """Return the task with adapters and whole models in another folder."""
        return replace(self, out=root, subjects=[_there(subject, self.out, root) for subject in self.subjects])

    def inputs(self) -> list[Path]:
        """Return the folders of adapters and whole models, and that of the attempts so far."""
        return [*_folders(self.subjects, self.out), *([ATTACKS] if (self.out / ATTACKS).is_dir() else [])]

    def outputs(self) -> list[Path]:
        """Return the folder of the attempts."""
        return [ATTACKS]


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

    reading: Reading

    def run(self, desk: Desk) -> list[Verdict]:
        """Return the verdicts."""
        name, engine = self.reading.judge, self.reading.engine

        def load() -> judges.Judge:
            judge: judges.Judge = desk.loaded(("judge", name), lambda: judges.load(name, engine))
            return judge

        verdicts = list[Verdict]()

        def keep(rows: Sequence[Verdict]) -> None:
            verdicts.extend(rows)
            desk.progress(len(verdicts))

        read_here(self.reading, keep, load)
        return verdicts


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
