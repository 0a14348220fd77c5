"""The driver of a study: it turns stages into units for workers, stores what they return, and writes the table.

The rows are those of one process. Sampling of a checkpoint begins when its arm is trained, whatever the other arms do,
so batches have the rows of one arm and seed: in float32 replies are those of one process; in other precisions they
differ from those in rounding alone, and not with the number of workers, since shares do not depend on that.
"""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lowtax.benchmarks import evaluate, examine
from lowtax.common.errors import UserError
from lowtax.common.files import append_rows, read_rows
from lowtax.common.names import file_name
from lowtax.common.records import Grade, Reply, Subject, Verdict
from lowtax.engines.sampling import Budget, Sheet, asks, planned, replies_of
from lowtax.judges.base import Text
from lowtax.judges.verdicts import Reading, verdict_ids
from lowtax.study import attacking, failing, lineage
from lowtax.study.arms import EditPlan, trained_subjects
from lowtax.study.study import Study
from lowtax.study.units import requests, tasks
from lowtax.study.units.base import TEXTS_AT_ONCE, Group, cut, judging_size, share_ids
from lowtax.study.units.messages import Pool
from lowtax.study.units.scheduler import PATIENCE, Owner, Scheduler, Work
from lowtax.training import distributed
from lowtax.training.job import Job

BASE: Owner = (examine.BASE, 0)


class Driver:
    """A study in its folder, and the workers that do its units.

    Args:
        group: the number of processes in which a worker trains an arm whose weights are sharded, one for each of its
            GPUs; None refuses such a recipe.
    """

    def __init__(self, study: Study, pool: Pool, patience: float = PATIENCE, group: int | None = None) -> None:
        self.study, self.recipe = study, study.recipe
        self.group = group if study.recipe.execution.deepspeed or distributed.by_fsdp() else None
        self.scheduler = Scheduler(pool, study.out, self._failed, patience)
        self.replies: dict[Path, dict[str, Reply]] = {}
        self.verdicts: dict[Path, set[str]] = {}
        self.grades: dict[str, dict[str, Grade]] = {}
        self.jobs: dict[Owner, Job] = {}
        self.finished: set[Owner] = set()
        self.shares_left: dict[Owner, int] = {}
        self.full = {arm: settings.where().kind == "full" for arm, settings in self.recipe.arms.items()}
        self.budget = Budget(self.recipe.batch_size)
        self.reply_sheets: dict[str, Sheet] = {}
        self.answer_sheets: dict[str, Sheet] = {}
        self.attack_sheets: list[Sheet] = []

    def run(self, train: bool = True) -> dict[str, Any]:
        """Run every stage and return the table; `failed` in it has the arms that failed.

        Raises:
            UserError: The recipe cannot be run, or the base cannot be sampled or judged.
        """
        began = time.perf_counter()
        self.study.check_run()
        if train and self.recipe.execution.deepspeed and not self.group:
            raise UserError(
                "Workers train an arm in one process each, and this recipe trains with execution.deepspeed: give "
                "--gpus-each N, the GPUs on which a worker trains an arm in N processes."
            )
        self.reply_sheets, self.answer_sheets = self.study.reply_sheets(), self.study.answer_sheets()
        self.attack_sheets = self.study.attack_sheets()
        with self.scheduler.board:
            self._units(train)
        if (reason := self.scheduler.failed.get(BASE)) is not None:
            raise UserError(f"The base could not be measured, so there is no table ({reason}).")
        table = self.study.compare(graded=self._graded())
        self.study.write_card(time.perf_counter() - began)
        return table

    def _units(self, train: bool) -> None:
        if train and self.study.has_drawn_answers():
            self.scheduler.run([self._answers()])
        if BASE in self.scheduler.failed:
            return
        if train:
            self.jobs, unfinished = self.study.jobs()
        else:
            self.study.write_recipe()
            unfinished = set[Owner]()
            self.study.trained()  # raises if one is not there
        self.study.warn()
        all_seeds = [(arm, seed) for arm in self.recipe.arms for seed in self.recipe.seeds]
        self.finished = set(all_seeds) - unfinished
        works = self._trainings()
        works += self._sampled(BASE, [self.study.base])
        for owner in (owner for owner in all_seeds if owner in self.finished):
            works += self._trained(owner)
        works += self._edits()
        self.scheduler.run(works)
        if BASE not in self.scheduler.failed and any(attacking.conversations(self.recipe)):
            self.scheduler.run([self._conversing()])

    def _failed(self, owner: Owner, reason: str) -> None:
        """Leave an arm and seed out, with the edited arms that are made of it and the arms that start from it."""
        if owner != BASE:
            self.study.failed[owner] = reason
            for arm, why in failing.dependents(self.recipe, owner[0]):
                self.scheduler.fail((arm, owner[1]), why)

    # --- own answers and conversations: one unit each, since a request follows from the replies before

    def _answers(self) -> Work:
        task = partial(tasks.Answers, self.study.out, self.study.answer_plans())
        return Work("answers/base", "answers", BASE, task, lambda _: [], "training")

    def _conversing(self) -> Work:
        task = partial(tasks.Conversing, self.study.out, self.recipe, self.study.subjects(), self.study.engine)
        return Work("sample/conversations", "sample", BASE, task, lambda _: [], "training")

    # --- training and edits

    def _trainings(self, after: Owner | None = None) -> list[Work]:
        """Return the trainings that can begin now; with `after`, those that start from that arm and seed."""
        works = list[Work]()
        for arm, seed in self.jobs:
            parent = lineage.parent_of(self.recipe.arms[arm])
            ready = parent is None or (parent, seed) in self.finished
            if (arm, seed) not in self.finished and ready and after in (None, (parent, seed)):
                works.append(self._training((arm, seed)))
        return works

    def _training(self, owner: Owner) -> Work:
        arm, seed = owner
        folder = self.study.arm_folder(arm, seed).relative_to(self.study.out)

        def task() -> tasks.Training:
            self.study.say_penalty(arm)
            return tasks.Training(self.study.out, folder, self.jobs[owner], self.group)

        def store(_: None) -> Iterable[Work]:
            return [*self._trained(owner), *self._follow(owner)]

        return Work(f"train/{arm}/seed-{seed}", "train", owner, task, store, "training")

    def _follow(self, owner: Owner) -> list[Work]:
        """Return the trainings and edits that can begin when an arm and seed is made."""
        self.finished.add(owner)
        return [*self._trainings(owner), *self._edits(owner)]

    def _trained(self, owner: Owner) -> list[Work]:
        arm, seed = owner
        folder = self.study.arm_folder(arm, seed)
        return self._sampled(owner, trained_subjects(folder, arm, seed, self.full[arm], self.study.base_of(arm, seed)))

    def _plans(self) -> list[EditPlan]:
        return self.study.edit_plans()

    def _edits(self, after: Owner | None = None) -> list[Work]:
        """Return the edits that can be made now; with `after`, those that were waiting for this training."""
        works = list[Work]()
        for plan in self._plans():
            sources = {(arm, plan.seed) for arm in plan.arm.made_of()}
            if sources <= self.finished and (after is None or after in sources):
                owner = (plan.name, plan.seed)
                base = self.study.base_of(plan.name, plan.seed).model
                task = partial(tasks.Editing, self.study.out, plan, base, self.recipe.model)
                store = partial(self._edited, owner, plan)
                works.append(Work(f"edit/{plan.name}/seed-{plan.seed}", "edit", owner, task, store, "training"))
        return works

    def _edited(self, owner: Owner, plan: EditPlan, _: None) -> list[Work]:
        subjects = plan.subjects(self.study.base_of(plan.name, plan.seed))
        return [*self._sampled(owner, subjects), *self._follow(owner)]

    # --- sampling

    def _sampled(self, owner: Owner, subjects: Sequence[Subject]) -> list[Work]:
        """Return the sampling of an arm and seed; if all of it is stored, what follows."""
        every = [*self.reply_sheets.values(), *self.attack_sheets, *self.answer_sheets.values()]
        sheets = self.study.ordered(every)
        works = self._sampling(sheets, subjects, owner)
        self.shares_left[owner] = len(works)
        return works or self._measured(owner, subjects)

    def _sampling(self, sheets: Sequence[Sheet], subjects: Sequence[Subject], owner: Owner) -> list[Work]:
        stored = {
            sheet.path: {i for i, r in self._rows(sheet.path).items() if r.finish != "failed"} for sheet in sheets
        }
        plan, missing = planned(sheets, subjects, self.study.engine, stored)
        works = list[Work]()
        for model, every in plan.items():
            places = requests.places(missing.get(model, []))
            of_model = next(ask.subject for ask in every)
            group = Group(owner[0], owner[1], of_model.checkpoint if model != self.recipe.model else None)
            store = partial(self._drawn, owner, subjects, places)
            prefix = f"sample/{group.name}"
            for id_, task in requests.tasks_of(prefix, every, places, self.study.engine, self.study.out):
                if task is not None:
                    works.append(Work(id_, "sample", owner, task, store, f"engine {model}"))
        return works

    def _drawn(
        self, owner: Owner, subjects: Sequence[Subject], places: requests.Places, drawn: tasks.Drawn
    ) -> list[Work]:
        for path, new in requests.store(self.study.out, places, drawn, self.budget).items():
            self._rows(path).update({row.id: row for row in new})
        self.shares_left[owner] -= 1
        return [] if self.shares_left[owner] else self._measured(owner, subjects)

    def _rows(self, path: Path) -> dict[str, Reply]:
        if path not in self.replies:
            self.replies[path] = read_rows(path, Reply)
        return self.replies[path]

    def _of(self, sheet: Sheet, subjects: Sequence[Subject]) -> list[Reply]:
        rows = self._rows(sheet.path)
        return [rows[id_] for id_ in dict.fromkeys(ask.id for ask in asks(sheet, subjects, self.study.engine))]

    # --- judging and grading

    def _measured(self, owner: Owner, subjects: Sequence[Subject]) -> list[Work]:
        """Return the judging and grading of an arm and seed."""
        also: list[Text] = [text for text in self.recipe.judged_also if text != self.recipe.judged_text]
        works = list[Work]()
        for kind, sheet in self.reply_sheets.items():
            replies = self._of(sheet, subjects)
            for on in [self.recipe.judged_text, *(also if kind == "harmful" else [])]:
                works += self._judging(owner, kind, on, replies, self.recipe.judge)
            for judge in dict.fromkeys(self.recipe.judges):
                if judge != self.recipe.judge:
                    works += self._judging(owner, kind, self.recipe.judged_text, replies, judge)
        for name, sheet in self.answer_sheets.items():
            works += self._grading(owner, name, sheet, self._of(sheet, subjects))
        return works

    def _judging(self, owner: Owner, kind: str, on: Text, replies: Sequence[Reply], judge: str) -> list[Work]:
        path = self.study.verdicts_path(kind, judge)
        if path not in self.verdicts:
            self.verdicts[path] = {v.id for v in read_rows(path, Verdict).values() if v.label != "failed"}
        ids, stored = verdict_ids(replies, judge, on), self.verdicts[path]

        def store(verdicts: list[Verdict]) -> list[Work]:
            append_rows(path, verdicts)
            stored.update(v.id for v in verdicts if v.label != "failed")
            return []

        engine = self.study.engine
        shares = cut(replies, judging_size(judge, engine.name, engine.batch_size), lambda reply: reply.id)
        of_judge = "" if judge == self.recipe.judge else f"-{file_name(judge)}"
        prefix = f"judge/{Group(*owner).name}/{kind}-{on}{of_judge}"
        works = list[Work]()
        for id_, share in zip(share_ids(prefix, len(shares)), shares, strict=True):
            if new := [reply for reply in share if ids[reply.id] not in stored]:
                task = partial(tasks.Judging, Reading(new, judge, on, engine))
                works.append(Work(id_, "judge", owner, task, store, f"judge {judge}"))
        return works

    def _grading(self, owner: Owner, name: str, sheet: Sheet, replies: Sequence[Reply]) -> list[Work]:
        exam, questions = self.recipe.exams()[name], {prompt.id: prompt for prompt in sheet.prompts}
        earlier = read_rows(self._grades_path(name), Grade) if exam.checker else {}
        grades = self.grades.setdefault(name, {})

        def store(rows: list[Grade]) -> list[Work]:
            grades.update({row.reply_id: row for row in rows})
            return []

        shares = cut(replies, max(len(replies), 1) if exam.checker else TEXTS_AT_ONCE, lambda reply: reply.id)
        works = list[Work]()
        for id_, share in zip(share_ids(f"grade/{Group(*owner).name}/{name}", len(shares)), shares, strict=True):
            ids = {reply.id for reply in share}
            of_share = [grade for grade in earlier.values() if grade.reply_id in ids]
            needed = {reply.prompt_id: questions[reply.prompt_id] for reply in share}
            task = partial(tasks.Grading, share, name, exam, needed, self.study.engine, of_share)
            works += [Work(id_, "grade", owner, task, store, "grading")] if share else []
        return works

    def _grades_path(self, name: str) -> Path:
        return self.study.out / "grades" / f"{file_name(name)}.jsonl"

    def _graded(self) -> dict[str, examine.TaskResult]:
        """Write the grades of all tasks, and return them with their answers."""
        results, subjects = {}, self.study.subjects()
        for name, sheet in self.answer_sheets.items():
            stored, path = replies_of(sheet, subjects, self.study.engine), self._grades_path(name)
            grades = {id_: self.grades[name][id_] for id_ in stored if id_ in self.grades[name]}
            checked = self.recipe.exams()[name].checker is not None
            evaluate.store(path, grades, read_rows(path, Grade), opinions=not checked)
            results[name] = examine.result(stored, grades)
        return results
