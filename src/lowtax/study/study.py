"""A study: a recipe's arms x checkpoints x seeds in one folder, stage by stage. Every stage can be repeated.

```
DIR/recipe.yaml                          the recipe, resolved; study.yaml where recipe.yaml is the user's own file
DIR/arms/ARM/seed-S/checkpoint-N/        a PEFT adapter, or a whole model for full fine-tuning; edited arms, too
DIR/data/*.jsonl                         the model's own answers, if the recipe trains on them
DIR/replies/{harmful,ordinary}.jsonl     the replies of every checkpoint
DIR/verdicts/*.JUDGE.jsonl               the judge's verdicts on them
DIR/replies/attacks.jsonl  attacks/*.jsonl  the replies to attacks on prompts, and what attackers wrote
DIR/answers/TASK.jsonl  grades/TASK.jsonl
DIR/updates.json  effects.json           the size of each checkpoint's update, and what it changes of the logits
DIR/base.json                            the fingerprint of the base
DIR/labels.jsonl                         people's labels of verdicts, exported by the page (`compare --labels`)
DIR/table.json  table.md  frontier.png  card.json
```
"""

import os
import random
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from lowtax.benchmarks import examine
from lowtax.common import launch
from lowtax.common.cards import Effects, StudyCard, read_card
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.files import locked, write_json, write_text
from lowtax.common.log import say
from lowtax.common.names import file_name, refuse_foreign
from lowtax.common.provenance import hardware, provenance, versions
from lowtax.common.records import Subject, Verdict
from lowtax.data import prompt_sets, training_sets
from lowtax.data.specs import Data, PromptSet
from lowtax.engines import base
from lowtax.engines.sampling import EFFECTS, ENOUGH, Ask, Collect, Sheet, collect, few_tokens, replies_of, reply_tokens
from lowtax.engines.settings import EMBEDDED, EXAM, EngineSettings
from lowtax.judges import base as judges
from lowtax.judges import rates
from lowtax.judges.verdicts import Read, judge_replies, read_here
from lowtax.models import embedded, loading
from lowtax.models.fingerprint import BEGUN, base_in, record_base
from lowtax.study import (
    after,
    arms,
    attack_panel,
    attacking,
    checks,
    failing,
    limits,
    lineage,
    matched,
    own_answers,
    panel,
    readings,
    recipe,
    starts,
    stored_recipe,
    thought_patterns,
)
from lowtax.study.arms import trained_subjects
from lowtax.study.compare import compare
from lowtax.study.outcomes import measures
from lowtax.study.recipe import Recipe
from lowtax.training import distributed, encoding, loop
from lowtax.training.job import Job, begun, stored_methods

RESULTS = ("table.json", "table.md", "frontier.png", "card.json")  # that a user may have files of the same name as
Judged = dict[str, tuple[Ask, Verdict]]  # by reply id


class Study:
    """A recipe bound to a folder.

    Args:
        settings: the recipe.
        out: the folder.
        same: the user's word that the model is the one that the folder's results were made with, although it differs.
        limit: work on at most so many prompts of a set and problems of a task; those that are stored stay.

    Raises:
        UserError: the folder has results of another model, tokenizer or chat template.
    """

    def __init__(self, settings: Recipe, out: str | Path, same: bool = False, limit: int | None = None) -> None:
        self.out, self.limit = Path(out), limit
        begun = any(os.path.exists(self.out / name) for name in BEGUN)
        self.place = stored_recipe.place_in(self.out, begun)
        known = _stored_recipe(self.out, begun)
        whole = _with_tokens(settings, known)
        self.recipe = limits.limited(whole, limit) if limit else whole
        self._to_store = (
            limits.as_wide(self.recipe, known, limit) if limit and known and self.place.exists() else self.recipe
        )
        self.failed: dict[tuple[str, int], str] = {}  # arm and seed -> the reason; they are left out of the table
        self._lock = ExitStack()
        self._sources: dict[tuple[str, int], training_sets.TrainingSet] = {}
        self._announced = set[str]()  # sources about whose rows people have been told
        self.is_main = launch.world()[0] == 0
        self.precision = loading.precision(settings.precision, settings.execution.deepspeed)
        self.engine = EngineSettings(
            settings.engine,
            self.precision,
            settings.batch_size,
            settings.thinking,
            same,
            settings.chat_template_kwargs,
            settings.thinking_tags,
            settings.deterministic,
        )
        self.model = base_in(self.out, settings.model, same=same)
        self.base = Subject("base", None, None, 0, settings.model, None, self.model.made_by)

    @classmethod
    def open(cls, out: str | Path, same: bool = False, trust: bool = False) -> "Study":
        """Open the study that an earlier `run` or `train` started in a folder; arms that failed there are left out.

        Args:
            trust: accept the classes in Python files that its recipe names; they run.

        Raises:
            UserError: The folder holds no study, or one that names Python files and is not trusted.
        """
        out = Path(out)
        if (path := stored_recipe.stored_in(out)) is None:
            raise UserError(f"{out} holds no study (no recipe.yaml): start one with `lowtax run RECIPE --out {out}`.")
        opened = cls(recipe.load(path, trust=trust), out, same)
        opened.failed = failing.remembered(opened)
        return opened

    def __enter__(self) -> "Study":
        """Lock the folder against other processes; of the processes of a launch, the first holds the lock."""
        self._lock.enter_context(locked(self.out) if self.is_main else nullcontext())
        if self.is_main:
            try:
                refuse_foreign(self.out, BEGUN, RESULTS)
            except UserError:
                self._lock.close()
                raise
            if self.place.exists():
                record_base(self.out, self.model)
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock the folder."""
        self._lock.close()

    def check(self) -> None:
        """Refuse a recipe that would only fail later.

        Raises:
            UserError: An engine, judge, task, prompt set, split or edit does not exist, or an arm cannot be trained.
        """
        base.find(self.engine.name)
        for name in dict.fromkeys([self.recipe.judge, *self.recipe.judges]):
            judges.check(name)
        for spec in self.recipe.sources():
            own_answers.check(spec)
        for name, arm in self.recipe.edited.items():
            arms.check(name, arm)
        for sheet in self.reply_sheets().values():
            for name in (self.recipe.judge, *self.recipe.judges):
                judges.refuse_contexts(name, ((prompt.text, prompt.goal) for prompt in sheet.prompts))
        attacking.check(self.recipe)
        self.answer_sheets()
        checks.require_arms(self.recipe, self.precision)

    def require(self, of: Literal["prompts", "tasks", "either"]) -> None:
        """Refuse a stage that has nothing to do.

        Raises:
            UserError: The recipe lacks what the stage works on.
        """
        if (sentence := checks.nothing_to_do(self.recipe, self.out, of)) is not None:
            raise UserError(sentence)

    def write_recipe(self) -> None:
        """Write the resolved recipe to the folder, and name the arms in it that the recipe does not have."""
        if not self.is_main:
            return
        named = {*self.recipe.arms, *self.recipe.edited}
        folders = sorted(folder for folder in self.out.glob("arms/*/seed-*") if begun(folder))
        if others := list(dict.fromkeys(f.parent.name for f in folders if f.parent.name not in named)):
            say(f"{self.out} also has {', '.join(others)}, which this recipe does not name: left as they are")
        if self._to_store != self.recipe:
            say(f"{self.place} has more prompts or problems than --limit allows, and stays as it is")
        if self.place.name == stored_recipe.STORED_BESIDE and not self.place.exists():
            say(f"the recipe.yaml in {self.out} is yours and stays: the study has its own in {self.place.name}")
        write_text(self.place, stored_recipe.dumped(self._to_store.model_dump(mode="json", exclude_unset=True)))
        record_base(self.out, self.model)

    # --- train

    def train(self, only: str | None = None, goes_on: bool = False) -> None:
        """Train every arm, or one and those that it starts from, trained or edited, for every seed.

        Args:
            goes_on: record an arm that fails in `failed`, and train the others.

        Raises:
            UserError: The folder holds a run with other settings, or an arm fails.
        """
        jobs, unfinished = self.jobs(only)
        for arm in self._in_order(only):
            if arm not in self.recipe.arms:
                with distributed.main_first():
                    self.edit(arm, goes_on)
                continue
            for seed in (seed for seed in self.recipe.seeds if (arm, seed) not in self.failed):
                if (arm, seed) in unfinished:
                    say(f"training {arm}, seed {seed}")
                    self.say_penalty(arm)
                with failing.recorded(self, "train", arm, seed, goes_on):
                    loop.train(jobs[arm, seed], self.arm_folder(arm, seed))

    def _in_order(self, only: str | None) -> list[str]:
        """Return the arms to train, or one, after those that they start from, trained or edited."""
        arms_of, edited = self.recipe.arms, self.recipe.edited
        names = [name for arm in self._arms(only) for name in lineage.with_ancestors(arm, arms_of, edited)]
        return list(dict.fromkeys(names))

    def jobs(self, only: str | None = None) -> tuple[dict[tuple[str, int], Job], set[tuple[str, int]]]:
        """Return the jobs of all arms, or of one with those that it starts from, and which are not finished.

        The recipe is written after all checks.

        Raises:
            UserError: The folder holds a run with other settings, or an arm has no rows that can be trained.
        """
        trained_ones = [arm for arm in self._in_order(only) if arm in self.recipe.arms]
        runs = [(arm, seed) for arm in trained_ones for seed in self.recipe.seeds]
        self._draw_answers(self._sources_of(runs))
        jobs = {(arm, seed): self.job(arm, seed) for arm, seed in runs}
        for (arm, seed), job in jobs.items():
            job.require_same(self.arm_folder(arm, seed))
        for plan in self.edit_plans():
            if plan.begun():
                jobs_of = {arm: self.job(arm, plan.seed).describe() for arm in plan.arm.made_of()}
                plan.refuse_another(jobs_of)
        unfinished = {key: job for key, job in jobs.items() if not job.finished(self.arm_folder(*key))}
        checks.require_rows(self.recipe, unfinished)
        self.write_recipe()
        return jobs, set(unfinished)

    def job(self, arm: str, seed: int) -> Job:
        """Return the training job of one arm and seed; draw the model's own answers if it trains on them.

        Raises:
            UserError: The arm has no training data.
        """
        specs = self.recipe.data_of(arm)
        if not specs:
            raise UserError(f"Arm {arm!r} has no training data: give the recipe or the arm a `data` list.")
        settings = self.recipe.train_of(arm)
        choice = settings.choice_of(seed)
        loaded = [self._loaded(spec, choice) for spec in specs]
        shares = training_sets.shares([(source.spec, source.rows) for source in loaded], choice)
        return Job(
            model=self.recipe.model,
            placement=self.recipe.arms[arm].where(),
            settings=settings,
            seed=seed,
            precision=self.precision,
            rows=self.recipe.rows(row for rows in shares for row in rows),
            methods=self._acts(arm),
            thinking=self.recipe.thinking,
            chat_template_kwargs=self.recipe.chat_template_kwargs,
            thinking_tags=self.recipe.thinking_tags,
            validation_rows=[row for spec in settings.validation_data for row in self._loaded(spec, choice).rows],
            execution=self.recipe.execution,
            sources=[source.describe(rows) for source, rows in zip(loaded, shares, strict=True)],
            mode=self.recipe.arms[arm].mode,
            system=self.recipe.system,
            start=starts.start_of(self, arm, seed),
            name=f"{self.recipe.name}/{arm}/seed-{seed}" if self.recipe.name != arm else f"{arm}/seed-{seed}",
        )

    def _acts(self, arm: str) -> list[dict[str, Any]]:
        """Return the methods of an arm; as its stored runs have them, if a mode string meant the corrected penalty."""
        now, before = (self.recipe.arms[arm].acts(published) for published in (True, False))
        stored = [methods for folder in (self.out / "arms" / arm).glob("seed-*") for methods in stored_methods(folder)]
        return before if before in stored else now

    def say_penalty(self, arm: str) -> None:
        """Say which penalty a mode string with a regulariser means."""
        now, before = (self.recipe.arms[arm].acts(published) for published in (True, False))
        if now == before:
            return
        if self._acts(arm) == before:
            say(f"  {arm} was begun with the corrected penalty, which its mode meant then, and keeps it")
            return
        say(
            f"  the penalty of {arm} is that of the reference's code: dW without alpha / r, and k directions for the "
            "first module alone (as_published in docs/reference/placements.md, which has the corrected form)"
        )

    def shown(self, arm: str | None, n: int) -> list[Text]:
        """Return the first n training examples of an arm, by default the first, as they are trained; then the notes."""
        if not self.recipe.arms:
            raise UserError("The recipe has no arms, so there is no example to show.")
        job = self.job(self._arms(arm)[0], self.recipe.seeds[0])
        tokenizer = loading.load_tokenizer(job.model)
        form = (job.settings.max_length, job.thinking, job.chat_template_kwargs, job.thinking_tags)
        encoded = encoding.encode_all(tokenizer, job.rows, *form)
        return [*(encoding.show(tokenizer, e) for e in encoded.examples[:n]), *map(Text, encoded.notes())]

    def _arms(self, only: str | None) -> list[str]:
        if only is not None and only not in self.recipe.arms:
            if only in self.recipe.edited:
                source = self.recipe.edited[only].of
                raise UserError(f"Arm {only!r} is not trained but edited: name {source!r} instead.")
            raise UserError(f"Unknown arm {only!r}; {did_you_mean(only, self.recipe.arms)}")
        return list(self.recipe.arms) if only is None else [only]

    def _loaded(self, spec: Data, seed: int) -> training_sets.TrainingSet:
        """Return the rows of a source, read once for all arms; tell people how, once for all seeds."""
        key = (spec.model_dump_json(), seed)
        if key not in self._sources:
            self._draw_answers([(spec, seed)])
        if key not in self._sources:
            self._sources[key] = training_sets.load(spec, seed)
        if key[0] not in self._announced:
            self._announced.add(key[0])
            self._sources[key].announce()
        return self._sources[key]

    def answer_plans(self) -> list[own_answers.Plan]:
        """Return the plans of all answers that a model writes for training, of all arms and seeds."""
        runs = [(arm, seed) for arm in self.recipe.arms for seed in self.recipe.seeds]
        return [*self._answer_plans(self._sources_of(runs)).values()]

    def has_drawn_answers(self) -> bool:
        """Return whether a model writes answers that an arm trains on."""
        return any(own_answers.is_drawn(spec) for arm in self.recipe.arms for spec in self.recipe.data_of(arm))

    def _sources_of(self, runs: Iterable[tuple[str, int]]) -> list[tuple[Data, int]]:
        return [
            (spec, self.recipe.train_of(arm).choice_of(seed)) for arm, seed in runs for spec in self.recipe.data_of(arm)
        ]

    def _answer_plans(self, sources: Sequence[tuple[Data, int]]) -> dict[tuple[str, int], own_answers.Plan]:
        drawn = {(spec.model_dump_json(), seed): (spec, seed) for spec, seed in sources if own_answers.is_drawn(spec)}
        maker = own_answers.Maker(self.base, self.engine)
        return {
            key: own_answers.plan(spec, seed, self.recipe.drawn(), maker, self.out)
            for key, (spec, seed) in drawn.items()
            if key not in self._sources
        }

    def _draw_answers(self, sources: Sequence[tuple[Data, int]]) -> None:
        """Draw the answers that a model writes for these sources, in one plan, and keep their rows."""
        plans = self._answer_plans(sources)
        with distributed.main_first():
            outcomes = own_answers.draw([*plans.values()], self.out)
        for (key, each), outcome in zip(plans.items(), outcomes, strict=True):
            self._sources[key] = own_answers.training_set(each, outcome)

    def arm_folder(self, arm: str, seed: int) -> Path:
        """Return the folder of an arm's checkpoints for one seed."""
        return self.out / "arms" / arm / f"seed-{seed}"

    # --- edit

    def edit(self, only: str | None = None, goes_on: bool = False) -> None:
        """Make every edited arm, or one, for every seed. Finished ones are skipped.

        Raises:
            UserError: The folder holds the result of other edits or of another training, unless the others go on.
        """
        for plan in self.edit_plans(only):
            with failing.recorded(self, "edit", plan.name, plan.seed, goes_on):
                plan.make(starts.base_of(self, plan.name, plan.seed), self.recipe.model)

    def edit_plans(self, only: str | None = None) -> list[arms.EditPlan]:
        """Return the plans of all edited arms, or of one, for every seed."""
        return [
            arms.EditPlan(name, arm, seed, self.out / "arms")
            for name, arm in self.recipe.edited.items()
            for seed in self.recipe.seeds
            if only in (None, name) and (name, seed) not in self.failed
        ]

    # --- subjects and sheets

    def subjects(self, only: str | None = None) -> list[Subject]:
        """Return the base and every checkpoint, or those of one arm; trained arms come first.

        Raises:
            UserError: A checkpoint has not been made yet.
        """
        trained_ones = [] if only in self.recipe.edited else self.trained(only)
        return [self.base, *trained_ones, *self._edited(only)]

    def _edited(self, only: str | None) -> list[Subject]:
        """Return every checkpoint of the edited arms, or of one."""
        plans = self.edit_plans(only)
        return [s for plan in plans for s in plan.subjects(self.base_of(plan.name, plan.seed))]

    def base_of(self, arm: str, seed: int) -> Subject:
        """Return the base with the reference of the weights that the adapters of an arm are on."""
        return replace(self.base, model=starts.base_of(self, arm, seed))

    def trained(self, only: str | None = None) -> list[Subject]:
        """Return every checkpoint of the trained arms, or of one."""
        full = {arm: settings.where().kind == "full" for arm, settings in self.recipe.arms.items()}
        return [
            subject
            for arm in self._arms(only)
            for seed in self.recipe.seeds
            if (arm, seed) not in self.failed
            for subject in trained_subjects(self.arm_folder(arm, seed), arm, seed, full[arm], self.base_of(arm, seed))
        ]

    def reply_sheets(self) -> dict[str, Sheet]:
        """Return the sheets of harmful and of ordinary prompts, by name; those that an attack makes are not in them."""
        sheets = {}
        for name in limits.SETS:
            specs: list[PromptSet] = [spec for spec in getattr(self.recipe, name) if spec.attack is None]
            lists = [prompt_sets.prompt_list(spec) for spec in specs]
            prompts = [prompt for each in lists for prompt in each.prompts]
            columns = {id_: of_row for each in lists for id_, of_row in each.columns.items()}
            if prompts:
                sheets[name] = Sheet(self.out / "replies" / f"{name}.jsonl", prompts, self.recipe.drawn(), columns)
        return sheets

    def attack_sheets(self) -> list[Sheet]:
        """Return the sheet of the prompts that attacks make, if the recipe has such attacks."""
        stored = attacking.sheet(self.recipe, self.out)
        return [] if stored is None else [stored]

    def answer_sheets(self) -> dict[str, Sheet]:
        """Return the sheets of all tasks, by name."""
        return examine.sheets(self.recipe.exams(), self.out)

    # --- the stages after training

    def sample(self, sheets: Sequence[Sheet], draw: Collect = collect) -> None:
        """Complete sheets of replies, all in one plan. Arms that are not edited yet are edited first."""
        _refuse_launch("sample")
        self.edit()
        draw(self.ordered(sheets), self.subjects(), self.engine, self.out)

    def ordered(self, sheets: Sequence[Sheet]) -> Sequence[Sheet]:
        """Return sheets with their prompts in the recipe's order."""
        if (seed := self.recipe.prompt_order) is None:
            return sheets
        return [replace(each, prompts=random.Random(seed).sample(each.prompts, len(each.prompts))) for each in sheets]

    def converse(self) -> None:
        """Run the attacks that talk to the models; what is stored is not repeated."""
        attacking.converse(self.recipe, self.subjects(), self.engine, self.out)

    def judge(
        self, name: str | None = None, on: judges.Text | None = None, again: bool = False, read: Read = read_here
    ) -> dict[str, Judged]:
        """Return verdicts on one text of the stored replies: set -> reply id -> (ask, verdict).

        Args:
            name: a judge other than the recipe's.
            on: a text other than the recipe's.
            again: judge anew, and replace the stored verdicts of this judge on this text.
        """
        subjects, how = self.subjects(), {"again": again, "read": read}
        return {kind: self._judged(kind, name, on, subjects, **how) for kind in self.reply_sheets()}

    def _judged(
        self, kind: str, name: str | None, on: judges.Text | None, subjects: list[Subject], **how: Any
    ) -> Judged:
        name, on = name or self.recipe.judge, on or self.recipe.judged_text
        replies = replies_of(self.reply_sheets()[kind], subjects, self.engine)
        rows, path = [reply for _, reply in replies.values()], self.verdicts_path(kind, name)
        verdicts = judge_replies(rows, path, name, on, self.engine, **how)
        return {reply_id: (ask, verdicts[reply_id]) for reply_id, (ask, _) in replies.items()}

    def verdicts_path(self, kind: str, name: str | None = None) -> Path:
        """Return the file of a judge's verdicts on the replies of a prompt set."""
        return self.out / "verdicts" / f"{kind}.{file_name(name or self.recipe.judge)}.jsonl"

    def warn(self) -> None:
        """Warn about replies that are cut in their thoughts, and about answers that do not fit the model's context."""
        tokens = self.recipe.sampling.max_new_tokens
        if (self.recipe.harmful or self.recipe.ordinary) and tokens < ENOUGH:
            needed = reply_tokens(self.recipe.model, self.engine.name, self.engine.thinking_tags)
            if sentence := few_tokens(self.recipe.model, tokens, needed):
                say(sentence)
        if sentence := examine.context_warning(self.recipe.model, self.engine.name, self.recipe.tasks):
            say(sentence)

    def grade(self) -> dict[str, examine.TaskResult]:
        """Return the grades of the stored answers, with the answers (`examine.grade`)."""
        return examine.grade(self.recipe.exams(), self.out, self.subjects(), self.engine)

    def compare(
        self, level: matched.Level | None = None, graded: dict[str, examine.TaskResult] | None = None
    ) -> dict[str, Any]:
        """Judge and grade what is stored; write the table and the picture; return the table.

        Args:
            level: the level of safety at which arms are compared, instead of the recipe's.
            graded: the grades, if they are there already.
        """
        verdicts, grades, subjects = self.judge(), graded or self.grade(), self.subjects()
        also: list[judges.Text] = [text for text in self.recipe.judged_also if text != self.recipe.judged_text]
        beside: dict[str, Judged] = {
            text: self._judged("harmful", None, text, subjects) for text in also if "harmful" in verdicts
        }
        others = panel.verdicts(self, verdicts)
        # Lazy: training needs neither the analysis nor matplotlib.
        from lowtax.study import update_norms
        from lowtax.study.frontier import frontier

        effects = read_card(self.out / EFFECTS, Effects) if (self.out / EFFECTS).exists() else {}
        moved = update_norms.measured(subjects, self.recipe.model, self.out / update_norms.FILE)
        table: dict[str, Any] = {
            "rows": [
                self._table_row(group, verdicts, beside, grades)
                | {"update": update_norms.cell(group, moved)}
                | update_norms.logit_change(group, effects)
                | panel.of_row(group[0], verdicts, others)
                for group in examine.by_checkpoint(subjects)
            ],
            "recipe": self.recipe.name,
            "model": self.recipe.model,
            "precision": self.precision,
            "seeds": self.recipe.seeds,
            "judge": self.recipe.judge,
            "judged_text": self.recipe.judged_text,
            "versions": versions(),
            "hardware": self._hardware(),
        }
        if others:
            table["judges"] = panel.agreement(verdicts, others)
        attack_panel.add(table, self.recipe, subjects, self.engine, self.out)
        if self.failed:
            table["failed"] = [{"arm": a, "seed": s, "reason": reason} for (a, s), reason in self.failed.items()]
        curves = self.curves(verdicts, grades)
        level = level or self.level()
        places = {arm: matched.at_level(curve, level) for arm, curve in curves.items()}
        for row in table["rows"]:
            if row["arm"] in places:
                row["at_matched_safety"] = places[row["arm"]]
        thought_patterns.add(table["rows"], self.out)
        table["matched_safety"] = level.model_dump()
        if marked := readings.measured(self.out):
            table["your_reading"] = marked
        after.add(table["rows"], self.recipe, subjects, measures(verdicts, grades, self.recipe.seeds))
        table = compare(self.out, table)
        frontier(table, self.out / "frontier.png")
        return table

    def level(self, safety: float | None = None, over_refusal: float | None = None) -> matched.Level:
        """Return the level of safety at which arms are compared: the recipe's, with the numbers that are not None."""
        own = (self.recipe.matched_safety or matched.Level()).model_dump()
        changes = {"safety": safety, "over_refusal": over_refusal}
        return matched.Level(**own | {name: value for name, value in changes.items() if value is not None})

    def curves(
        self, verdicts: dict[str, Judged], grades: dict[str, examine.TaskResult]
    ) -> dict[str, list[matched.Checkpoint]]:
        """Return the curve of every arm; that of a trained one begins at the base. Empty if no safety was measured."""
        refusals, solved = measures(verdicts, grades, self.recipe.seeds)
        if "harmful" not in refusals:
            return {}
        names = {"harmful": matched.SAFETY, "ordinary": matched.OVER_REFUSAL}
        read = {names[kind]: measure for kind, measure in refusals.items()} | solved
        points: dict[str, list[matched.Checkpoint]] = {}
        for first, *_ in examine.by_checkpoint(self.subjects()):
            point = matched.Checkpoint(first.step, {name: measure(first) for name, measure in read.items()})
            points.setdefault(first.arm, []).append(point)
        ordered = {arm: sorted(curve, key=lambda point: point.step) for arm, curve in points.items()}
        return {arm: self._before(arm, points) + curve for arm, curve in ordered.items()}

    def _before(self, arm: str, points: dict[str, list[matched.Checkpoint]]) -> list[matched.Checkpoint]:
        """Return the point at which the curve of a trained arm begins: the base, or nothing of an arm that starts."""
        is_first = arm in self.recipe.arms and self.recipe.arms[arm].start is None
        return points[examine.BASE] if is_first else []

    def _table_row(
        self,
        group: list[Subject],
        verdicts: dict[str, Judged],
        beside: dict[str, Judged],
        grades: dict[str, examine.TaskResult],
    ) -> dict[str, Any]:
        first = group[0]
        row: dict[str, Any] = {
            "arm": first.arm,
            "checkpoint": first.checkpoint,
            "step": first.step,
            "trainable_parameters": first.trainable_parameters,
            "train_seconds": round(sum(s.train_seconds for s in group) / len(group), 1),
            **arms.cost(group),
        }
        for column, kind in (("safety", "harmful"), ("over_refusal", "ordinary")):
            judged = verdicts.get(kind, {})
            prompts = {ask.prompt.id: ask.prompt for ask, _ in judged.values()}
            categories = {id_: prompt.category for id_, prompt in prompts.items()}
            sets = {id_: rates.set_name(prompt.source, prompt.category) for id_, prompt in prompts.items()}
            row[column] = rates.cell(examine.by_seed(judged, first.arm, first.checkpoint), categories, sets)
        row["texts"] = {
            text: rates.cell(examine.by_seed(judged, first.arm, first.checkpoint)) for text, judged in beside.items()
        }
        row["reasoning"], row["tax"] = examine.rates(grades, first)
        return row

    def run(self, train: bool = True) -> dict[str, Any]:
        """Run every stage, from the recipe to the picture, and return the table.

        With several trainings, one that fails is recorded in the table (`failed`), and the others go on.

        Args:
            train: train what is not trained yet; else the checkpoints in the folder are measured, whatever the
                recipe's settings of training are.

        Raises:
            UserError: The recipe cannot be run, or a checkpoint is not there and may not be trained.
        """
        began = time.perf_counter()
        self.check_run()
        goes_on = len(self.recipe.arms) * len(self.recipe.seeds) > 1
        if train:
            self.train(goes_on=goes_on)
        else:
            self.write_recipe()
        self.edit(goes_on=goes_on)
        self.warn()
        failing.sample_all(self, goes_on)
        self.converse()
        table = self.compare()
        self.write_card(time.perf_counter() - began)
        return table

    def check_run(self) -> None:
        """Refuse a run that would only fail later, and say it if there is nothing to measure. No arm has failed yet.

        Raises:
            UserError: The recipe cannot be run, or the command runs in several processes.
        """
        _refuse_launch("run")
        self.failed.clear()
        self.check()
        checks.require_tools(self.recipe)
        if (sentence := checks.nothing_to_do(self.recipe, self.out, "either")) is not None:
            say(sentence)

    def _hardware(self) -> dict[str, Any]:
        """Return the machine that made the study: as its card says, or this one."""
        path = self.out / "card.json"
        return (read_card(path, StudyCard).get("hardware") if path.exists() else None) or hardware()

    def write_card(self, seconds: float) -> None:
        """Write how the study was made. `seconds` has one entry for each call."""
        path = self.out / "card.json"
        earlier = read_card(path, StudyCard).get("seconds", []) if path.exists() else []
        write_json(
            path,
            {
                "recipe": self.recipe.resolved(),
                "questions": examine.questions(self.recipe.tasks),
                "precision": self.precision,
                "seconds": [*earlier, round(seconds, 1)],
                **provenance(),
            },
        )


def _refuse_launch(stage: str) -> None:
    if launch.world()[1] > 1:
        raise UserError(f"Only `lowtax train` runs in several processes: run `lowtax {stage}` without a launcher.")


def _stored_recipe(out: Path, begun: bool) -> Recipe | None:
    """Return the recipe of the study in a folder; None if it has none, a damaged one, or a new one of the user's."""
    path = stored_recipe.stored_in(out)
    if path is None or not (begun or stored_recipe.is_as_dumped(path)):
        return None
    with suppress(UserError):
        return recipe.load(path, trust=True)  # it is compared only: no class of it is used
    return None


def _with_tokens(settings: Recipe, known: Recipe | None) -> Recipe:
    """Return a recipe with the most tokens of a reply where it does not say: as stored, or what the model needs.

    A stored recipe without a number is of a version that had 96 for all models; its replies stay valid.
    """
    drawn = [settings.sampling, *(task.sampling for task in settings.tasks.values())]
    if all("max_new_tokens" in sampling.model_fields_set for sampling in drawn):
        return settings
    answers = EMBEDDED if embedded.is_small(settings.model) else EXAM
    replies = EMBEDDED if known else reply_tokens(settings.model, settings.engine, settings.thinking_tags)
    return settings.with_tokens(replies, answers, known)
