"""A recipe's arms x checkpoints x seeds in one folder, stage by stage; every stage can be repeated.

```
DIR/recipe.yaml                          the recipe, resolved
DIR/arms/ARM/seed-S/checkpoint-N/        a PEFT adapter, or a whole model for full fine-tuning; edited arms, too
DIR/data/*.jsonl                         the model's own answers, where a recipe trains on them
DIR/replies/{harmful,ordinary}.jsonl     what every checkpoint wrote
DIR/verdicts/*.JUDGE.jsonl               whether it refused
DIR/answers/TASK.jsonl  grades/TASK.jsonl
DIR/updates.json                         how far each checkpoint is from its base
DIR/table.json  table.md  frontier.png  card.json
```
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

from lowtax import (
    data,
    distributed,
    edited,
    encoding,
    engines,
    examine,
    judge,
    judges,
    models,
    recipe,
    safety,
    train,
    trained,
)
from lowtax.compare import compare
from lowtax.errors import UserError, did_you_mean
from lowtax.files import read_json, write_json, write_text
from lowtax.provenance import provenance
from lowtax.recipe import Recipe
from lowtax.records import Verdict, row_id
from lowtax.sample import Ask, EngineChoice, Sheet, Subject, collect, replies_of
from lowtax.train import Job

Say = Callable[[str], None]
SETS = ("harmful", "ordinary")
Judged = dict[str, tuple[Ask, Verdict]]  # by reply id


class Study:
    """A recipe bound to a folder."""

    def __init__(self, settings: Recipe, out: Path, say: Say) -> None:
        self.recipe, self.out, self.say = settings, out, say
        self._sources: dict[tuple[str, int], data.Loaded] = {}
        self.is_main = distributed.world()[0] == 0
        self.precision = models.precision(settings.precision, settings.execution.deepspeed)
        self.engine = EngineChoice(settings.engine, self.precision, settings.batch_size, settings.thinking)
        self.base = Subject(
            "base", None, None, 0, settings.model, None, row_id(settings.model, models.identity(settings.model))
        )

    @classmethod
    def open(cls, out: Path, say: Say) -> "Study":
        """The study that an earlier `run` or `train` began in a folder."""
        if not (out / "recipe.yaml").exists():
            raise UserError(f"{out} holds no study (no recipe.yaml): begin one with `lowtax run RECIPE --out {out}`.")
        return cls(recipe.load(out / "recipe.yaml"), out, say)

    def check(self) -> None:
        """Refuse what could only fail later: an unknown engine, judge, task, set, split or edit."""
        engines.find(self.engine.name)
        judges.check(self.recipe.judge)
        for name, arm in self.recipe.edited.items():
            edited.check(name, arm)
        self.reply_sheets()
        self.answer_sheets()

    def write_recipe(self) -> None:
        """Keep the resolved recipe in the folder."""
        if not self.is_main:
            return
        write_text(
            self.out / "recipe.yaml",
            yaml.safe_dump(self.recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False),
        )

    # --- train

    def train(self, only: str | None = None) -> None:
        """Train every arm for every seed; what is trained already is kept, and refused if it was trained otherwise."""
        jobs = {(arm, seed): self.job(arm, seed) for arm in self._arms(only) for seed in self.recipe.seeds}
        for (arm, seed), job in jobs.items():
            job.refuse_another(self._arm_folder(arm, seed))
        for making in self.makings():
            if making.begun():
                jobs_of = {arm: self.job(arm, making.seed).describe() for arm in making.arm.made_of()}
                making.refuse_another(jobs_of)
        self.write_recipe()
        for (arm, seed), job in jobs.items():
            folder = self._arm_folder(arm, seed)
            if not (folder / "card.json").exists():
                self.say(f"training {arm}, seed {seed}")
            train.train(job, folder, self.say)

    def job(self, arm: str, seed: int) -> Job:
        """The training job of one arm and seed; the model's own answers are drawn if it needs them."""
        specs = self.recipe.data_of(arm)
        if not specs:
            raise UserError(f"Arm {arm!r} has no training data: give the recipe or the arm a `data` list.")
        loaded = [self._loaded(spec, seed) for spec in specs]
        kept = data.shares([(spec, found.rows) for spec, found in zip(specs, loaded, strict=True)], seed)
        return Job(
            model=self.recipe.model,
            placement=self.recipe.arms[arm].where(),
            settings=self.recipe.train_of(arm),
            seed=seed,
            precision=self.precision,
            rows=[row for rows in kept for row in rows],
            methods=self.recipe.arms[arm].acts(),
            thinking=self.recipe.thinking,
            execution=self.recipe.execution,
            sources=[found.described(rows) for found, rows in zip(loaded, kept, strict=True)],
            mode=self.recipe.arms[arm].mode,
        )

    def shown(self, arm: str | None, n: int) -> list[Text]:
        """The first n training examples of an arm (the first, if none is named), as they are trained."""
        if not self.recipe.arms:
            raise UserError("The recipe has no arms, so there is nothing to show.")
        job = self.job(self._arms(arm)[0], self.recipe.seeds[0])
        tokenizer = models.load_tokenizer(job.model)
        examples = encoding.encode_all(tokenizer, job.rows[:n], job.settings.max_length, self.recipe.thinking).examples
        return [encoding.show(tokenizer, e) for e in examples]

    def _arms(self, only: str | None) -> list[str]:
        if only is not None and only not in self.recipe.arms:
            if only in self.recipe.edited:
                raise UserError(
                    f"Arm {only!r} is not trained but edited: name {self.recipe.edited[only].of!r} instead."
                )
            raise UserError(f"Unknown arm {only!r}; {did_you_mean(only, self.recipe.arms)}")
        return list(self.recipe.arms) if only is None else [only]

    def _loaded(self, spec: recipe.Data, seed: int) -> data.Loaded:
        """The rows of a source, read once for all arms."""
        key = (spec.model_dump_json(), seed)
        if key not in self._sources:
            self._sources[key] = self._own_answers(spec, seed) if spec.answers == "self" else data.load(spec, seed)
        return self._sources[key]

    def _own_answers(self, spec: recipe.Data, seed: int) -> data.Loaded:
        prompts = data.self_prompts(spec, seed)
        name = "".join(c if c.isalnum() else "_" for c in spec.source)
        sheet = Sheet(
            self.out / "data" / f"{name}.jsonl", prompts, self.recipe.sampling.model_copy(update={"samples": 1})
        )
        with distributed.main_first():
            collect([sheet], [self.base], self.engine, self.say)
        replies = [reply for _, reply in replies_of(sheet, [self.base], self.engine).values()]
        rows = data.self_conversations(replies, data.rendering_of(spec))
        return data.Loaded(spec, rows, len(prompts), len(prompts) - len(rows))

    def _arm_folder(self, arm: str, seed: int) -> Path:
        return self.out / "arms" / arm / f"seed-{seed}"

    # --- edit

    def edit(self) -> None:
        """Make every edited arm for every seed; what is made already is kept, and refused if it was made otherwise."""
        for making in self.makings():
            making.make(self.say)

    def makings(self, only: str | None = None) -> list[edited.Making]:
        """The edited arms for every seed, or one of them."""
        return [
            edited.Making(name, arm, seed, self.recipe.model, self.out / "arms")
            for name, arm in self.recipe.edited.items()
            for seed in self.recipe.seeds
            if only in (None, name)
        ]

    # --- who is asked, and what

    def subjects(self, only: str | None = None) -> list[Subject]:
        """The base and every checkpoint, first of trained arms, or those of one arm; they must have been made."""
        found = [] if only in self.recipe.edited else self.trained(only)
        return [self.base, *found, *(s for making in self.makings(only) for s in making.subjects(self.base))]

    def trained(self, only: str | None = None) -> list[Subject]:
        """Every checkpoint of the trained arms, or those of one."""
        full = {arm: settings.where().kind == "full" for arm, settings in self.recipe.arms.items()}
        return [
            subject
            for arm in self._arms(only)
            for seed in self.recipe.seeds
            for subject in trained.subjects(self._arm_folder(arm, seed), arm, seed, full[arm], self.base)
        ]

    def reply_sheets(self) -> dict[str, Sheet]:
        """The harmful and the ordinary prompts."""
        sheets = {}
        for name in SETS:
            prompts = [p for spec in getattr(self.recipe, name) for p in data.prompt_set(spec)]
            if prompts:
                sheets[name] = Sheet(self.out / "replies" / f"{name}.jsonl", prompts, self.recipe.sampling)
        return sheets

    def answer_sheets(self) -> dict[str, Sheet]:
        """The problems of every task."""
        return examine.sheets(self.recipe.tasks, self.out)

    # --- the stages after training

    def sample(self, sheets: Sequence[Sheet]) -> None:
        """Complete sheets of replies, all in one plan; arms to be edited are edited first, if that is not done."""
        _refuse_launch()
        self.edit()
        collect(sheets, self.subjects(), self.engine, self.say)

    def judge(self, name: str | None = None, on: recipe.Text | None = None, again: bool = False) -> dict[str, Judged]:
        """Verdicts on one text of the stored replies, made anew with `again`: set -> reply id -> (ask, verdict)."""
        subjects = self.subjects()
        for kind in SETS if again else ():
            self._verdicts(kind, name).unlink(missing_ok=True)
        return {kind: self._judged(kind, name, on, subjects) for kind in self.reply_sheets()}

    def _judged(self, kind: str, name: str | None, on: recipe.Text | None, subjects: list[Subject]) -> Judged:
        name, on = name or self.recipe.judge, on or self.recipe.judged_text
        stored = replies_of(self.reply_sheets()[kind], subjects, self.engine)
        through = judges.Through(self.engine.name, self.engine.precision, self.engine.batch_size)
        verdicts = judge.judge([reply for _, reply in stored.values()], self._verdicts(kind, name), name, on, through)
        return {reply_id: (ask, verdicts[reply_id]) for reply_id, (ask, _) in stored.items()}

    def _verdicts(self, kind: str, name: str | None) -> Path:
        return self.out / "verdicts" / f"{kind}.{examine.file_name(name or self.recipe.judge)}.jsonl"

    def warn(self) -> None:
        """Say what will go wrong with the tasks' answers."""
        if sentence := examine.context_warning(self.recipe.model, self.engine.name, self.recipe.tasks):
            self.say(sentence)

    def grade(self) -> dict[str, examine.Found]:
        """Grades of the stored answers, beside them (`examine.grade`)."""
        return examine.grade(self.recipe.tasks, self.out, self.subjects(), self.engine)

    def compare(self) -> dict[str, Any]:
        """The table and the picture."""
        verdicts, grades, subjects = self.judge(), self.grade(), self.subjects()
        also: list[recipe.Text] = [text for text in self.recipe.judged_also if text != self.recipe.judged_text]
        beside: dict[str, Judged] = {
            text: self._judged("harmful", None, text, subjects) for text in also if "harmful" in verdicts
        }
        from lowtax import updates  # lazy, as picture below: training needs neither the analysis nor matplotlib
        from lowtax.picture import frontier

        moved = updates.measured(subjects, self.recipe.model, self.out / updates.FILE, self.say)
        table = {
            "rows": [
                self._table_row(group, verdicts, beside, grades) | {"update": updates.cell(group, moved)}
                for group in examine.by_checkpoint(subjects)
            ],
            "recipe": self.recipe.name,
            "model": self.recipe.model,
            "precision": self.precision,
            "seeds": self.recipe.seeds,
            "judge": self.recipe.judge,
            "judged_text": self.recipe.judged_text,
            "versions": provenance()["versions"],
        }
        table = compare(self.out, table)
        frontier(table, self.out / "frontier.png")
        return table

    def _table_row(
        self,
        group: list[Subject],
        verdicts: dict[str, Judged],
        beside: dict[str, Judged],
        grades: dict[str, examine.Found],
    ) -> dict[str, Any]:
        first = group[0]
        row: dict[str, Any] = {
            "arm": first.arm,
            "checkpoint": first.checkpoint,
            "step": first.step,
            "trainable_parameters": first.trainable_parameters,
            "train_seconds": round(sum(s.train_seconds for s in group) / len(group), 1),
            **edited.cost(group),
        }
        for column, kind in (("safety", "harmful"), ("over_refusal", "ordinary")):
            found = verdicts.get(kind, {})
            categories = {ask.prompt.id: ask.prompt.category for ask, _ in found.values()}
            row[column] = safety.cell(examine.by_seed(found, first.arm, first.checkpoint), categories)
        row["texts"] = {
            text: safety.cell(examine.by_seed(found, first.arm, first.checkpoint)) for text, found in beside.items()
        }
        row["reasoning"], row["tax"] = examine.rates(grades, first)
        return row

    def run(self) -> dict[str, Any]:
        """Every stage, from the recipe to the picture."""
        _refuse_launch()
        began = time.perf_counter()
        self.check()
        self.train()
        self.edit()
        self.warn()
        self.sample([*self.reply_sheets().values(), *self.answer_sheets().values()])
        table = self.compare()
        self._write_card(time.perf_counter() - began)
        return table

    def _write_card(self, seconds: float) -> None:
        """What made this study. Seconds are added up over the calls that did work in it."""
        path = self.out / "card.json"
        earlier = read_json(path)["seconds"] if path.exists() else []
        write_json(
            path,
            {
                "recipe": self.recipe.model_dump(mode="json"),
                "questions": examine.questions(self.recipe.tasks),
                "precision": self.precision,
                "seconds": [*earlier, round(seconds, 1)],
                **provenance(),
            },
        )


def _refuse_launch() -> None:
    if distributed.world()[1] > 1:
        raise UserError("Only `lowtax train` runs in several processes: do the other stages without the launcher.")


def limited(settings: Recipe, n: int) -> Recipe:
    """The recipe with at most n prompts of each set and n problems of each task."""
    sets = {
        kind: [spec.model_copy(update={"n": min(n, spec.n or n)}) for spec in getattr(settings, kind)] for kind in SETS
    }
    tasks = {name: task.model_copy(update={"n": min(n, task.n or n)}) for name, task in settings.tasks.items()}
    return settings.model_copy(update={**sets, "tasks": tasks})
