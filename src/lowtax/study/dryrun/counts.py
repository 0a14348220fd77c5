"""Counts of training rows, steps and checkpoints, and of requests, by the code that a run uses.

A count is exact where all that decides it was read. Otherwise it is an estimate, at most as large as the sizes below:
a set that is not available has its published or requested size, an example whose text is not known fills `max_length`,
an answer that the model will write is as long as its draw allows, it finishes all of them, and patience ends no run
early.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lowtax.attacks.base import Wrapping
from lowtax.benchmarks.base import Task
from lowtax.benchmarks.base import load as load_benchmark
from lowtax.benchmarks.catalog import QUESTION_SETS
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt, Subject
from lowtax.data.catalog import PROMPT_SETS, TRAINING_SETS
from lowtax.data.chat import generation_prompt
from lowtax.data.conversations import Conversation
from lowtax.data.own_answers import DRAWN
from lowtax.data.prompt_sets import prompt_set
from lowtax.data.specs import Data
from lowtax.data.training_sets import load, shares
from lowtax.engines.sampling import Sheet, asks
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.study import attacking
from lowtax.study.offline import OfflineSource
from lowtax.study.own_answers import answered_prompts
from lowtax.study.recipe import Recipe
from lowtax.training.encoding import encode_all
from lowtax.training.loop import checkpoint_steps, held_out, total_steps
from lowtax.training.packing import Batches, length

TRAINING_ROWS, PROMPTS = 1000, 100  # of a set that is not available and has neither a published nor a requested size
ANY_ENGINE = EngineSettings("any", "any", 1)
ANY_SUBJECT = Subject("base", None, None, 0, "any", None, "any")


@dataclass(frozen=True)
class TrainingCount:
    """One training run. `tokens`: all that pass through the model; `longest`: of one example; `exact`: which fields."""

    rows: int
    steps: int
    checkpoints: int
    tokens: int
    longest: int
    exact: list[str]


@dataclass(frozen=True)
class RequestCount:
    """The requests of one prompt set or task.

    samples: replies to each prompt by each subject. requests: replies of all subjects; a repeated prompt counts once.
    repeated: those of them that an earlier set or task makes too, and that are drawn once.
    """

    kind: str
    name: str
    prompts: int
    samples: int
    subjects: int
    max_new_tokens: int
    requests: int
    repeated: int
    exact: bool


@dataclass(frozen=True)
class Unknown:
    """A training row whose text is not known. `prompt`: what the model will answer, with `tokens` at most, if read."""

    prompt: str | None = None
    tokens: int = 0


TrainingRow = Conversation | Unknown


class Counter:
    """Counts of a recipe. Rows that several arms train on are encoded once."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, source: OfflineSource) -> None:
        self.recipe, self.tokenizer, self.source = recipe, tokenizer, source
        self._own: dict[str, dict[str, bool]] = {}  # file of own answers -> prompt -> whether it was read
        self._most: dict[str, int] = {}  # file of own answers -> tokens of an answer, at most
        self._sizes: dict[tuple[str, int, int], tuple[list[int], bool]] = {}
        self._announced = set[str]()  # sources about whose rows people have been told

    def training(self, arm: str, seed: int) -> TrainingCount:
        """Count one training run.

        Raises:
            UserError: The arm has no data, or data that cannot be trained on.
        """
        settings = self.recipe.train_of(arm)
        sizes, all_read = self._lengths(arm, settings.choice_of(seed), settings.max_length)
        apart = held_out(len(sizes), settings.validation, settings.choice_of(seed))
        rows = [size for i, size in enumerate(sizes) if i not in apart]
        steps = total_steps(settings, len(rows))
        checkpoints = len(checkpoint_steps(settings, len(rows), steps))
        batches = Batches(len(rows), settings.batch_size, settings.order_of(seed))
        tokens = sum(rows[i] for step in range(steps) for i in batches[step])
        only_last = not (settings.checkpoint_steps or settings.checkpoint_epochs)
        to_the_end, by_steps = only_last or not settings.patience, bool(settings.steps)
        exact = {
            **dict.fromkeys(("rows", "longest"), all_read),
            "steps": to_the_end and (all_read or by_steps),
            "checkpoints": only_last or (to_the_end and (all_read or (by_steps and not settings.checkpoint_epochs))),
            "tokens": to_the_end and all_read,
        }
        return TrainingCount(len(rows), steps, checkpoints, tokens, max(sizes), [n for n in exact if exact[n]])

    def _lengths(self, arm: str, seed: int, max_length: int) -> tuple[list[int], bool]:
        """Return the tokens of every example, and whether all of their texts are known."""
        specs = self.recipe.data_of(arm)
        if not specs:
            raise UserError(f"Arm {arm!r} has no training data: give the recipe or the arm a `data` list.")
        if (key := (str(specs), seed, max_length)) not in self._sizes:
            parts = [(spec, self._rows(spec, seed)) for spec in specs]
            mix = shares(parts, seed)  # type: ignore[arg-type]  # it does not look into rows
            self._sizes[key] = self._tokens([row for part in mix for row in part], max_length)
        return self._sizes[key]

    def _tokens(self, rows: list[TrainingRow], max_length: int) -> tuple[list[int], bool]:
        """Return the tokens of every example that are run, which are all but its last."""
        texts = [row for row in rows if isinstance(row, Conversation)]
        unknown = [row for row in rows if isinstance(row, Unknown)]
        if self.tokenizer is None:
            return [max_length - 1] * len(rows), False
        recipe = self.recipe
        form = (max_length, recipe.thinking, recipe.chat_template_kwargs, recipe.thinking_tags)
        encoded = encode_all(self.tokenizer, recipe.rows(texts), *form).examples if texts else []
        most = [self._most_tokens(self.tokenizer, row, max_length) for row in unknown]
        return [*map(length, encoded), *most], not unknown

    def _most_tokens(self, tokenizer: PreTrainedTokenizerBase, row: Unknown, max_length: int) -> int:
        """Return the tokens of a row whose answer is not known, at most."""
        if row.prompt is None:
            return max_length - 1
        turns = [{"role": "system", "content": self.recipe.system}] if self.recipe.system else []
        messages = [*turns, {"role": "user", "content": row.prompt}]
        prompt = generation_prompt(tokenizer, messages, self.recipe.thinking, self.recipe.chat_template_kwargs)
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        return min(len(ids) + row.tokens, max_length - 1)

    def _rows(self, spec: Data, seed: int) -> list[TrainingRow]:
        """Return the rows of a source, as far as they are known."""
        published = TRAINING_SETS.get(spec.source)
        size = _size(published.rows if published else None, spec.first, spec.n, otherwise=TRAINING_ROWS)
        if spec.answers not in DRAWN:
            loaded = self.source.read(spec.source, load, spec, seed)
            if loaded is not None and str(spec) not in self._announced:
                self._announced.add(str(spec))
                loaded.announce(unusual=True)
            return [Unknown()] * size if loaded is None else [*loaded.rows]
        prompts = self.source.read(spec.source, answered_prompts, spec, seed)
        of = f"seed {seed}, " if spec.n else ""  # each seed chooses its own n
        drawn = spec.model_dump(include={"steer", "steer_as", "teacher", "draw"})
        of += f"{drawn}, " if drawn else ""  # the same prompts, drawn in another way
        ids = {f"{of}{i}": False for i in range(size)} if prompts is None else {p.id: True for p in prompts}
        again = {f"{of}attempt {i}, {id_}": False for i in range(2, spec.draw.attempts + 1) for id_ in ids}
        file = "".join(c if c.isalnum() else "_" for c in spec.source)
        most = spec.draw.max_new_tokens or self.recipe.sampling.max_new_tokens
        self._most[file] = max(most, self._most.get(file, 0))
        own = self._own.setdefault(file, {})
        own.update({f"{of}{id_}" if drawn else id_: read for id_, read in ids.items()} | again)
        if prompts is None:
            return [Unknown()] * size
        return list({p.id: Unknown(p.text, most) for p in prompts}.values())

    def requests(self, subjects: int, subjects_exact: bool) -> list[RequestCount]:
        """Count the base's own answers that `training` has come upon, and the requests to all subjects."""
        counts, seen = list[RequestCount](), set[str]()
        for name, read in sorted(self._own.items()):
            settings = (1, 1, self._most[name])
            counts.append(RequestCount("own answers", name, len(read), *settings, len(read), 0, all(read.values())))
        for kind, name, prompts, unread, how in self._sheets():
            ids = {ask.id for ask in asks(Sheet(Path(name), prompts, how), [ANY_SUBJECT], ANY_ENGINE)}
            size, settings = len({p.id for p in prompts}) + unread, (how.samples, subjects, how.max_new_tokens)
            number, repeated = subjects * (len(ids) + unread * how.samples), subjects * len(ids & seen)
            counts.append(RequestCount(kind, name, size, *settings, number, repeated, subjects_exact and not unread))
            seen |= ids
        return counts

    def _sheets(self) -> Iterator[tuple[str, str, list[Prompt], int, Sampling]]:
        """Yield kind, name, the prompts that were read, how many are not available, and how to sample."""
        for kind, specs in (("harmful", self.recipe.harmful), ("ordinary", self.recipe.ordinary)):
            prompts, unread = list[Prompt](), 0
            specs = [spec for spec in specs if spec.attack is None]
            for spec in specs:
                named = PROMPT_SETS.get(spec.source.partition(":")[0])
                rows = self.source.read(spec.source, prompt_set, spec)
                prompts += rows or []
                unread += _size(named.rows if named else None, spec.n, otherwise=PROMPTS) if rows is None else 0
            if specs:
                yield kind, ", ".join(spec.source for spec in specs), prompts, unread, self.recipe.sampling
        yield from self._attacks()
        for name, task in self.recipe.tasks.items():
            exam = QUESTION_SETS.get(task.benchmark or name)
            published = exam.rows if exam and task.split in (None, exam.split) else None
            rows = self.source.read(name, _questions, name, task)
            unread = _size(published, task.n, otherwise=PROMPTS) if rows is None else 0
            yield "task", name, rows or [], unread, task.sampling

    def _attacks(self) -> Iterator[tuple[str, str, list[Prompt], int, Sampling]]:
        """Yield the attacks like sheets; those that talk with as many unknown prompts as their budget allows."""
        for name, plan in attacking.planned(self.recipe).items():
            prompts, unread, queries = list[Prompt](), 0, plan.attack.queries
            for spec in plan.specs:
                named = PROMPT_SETS.get(spec.source.partition(":")[0])
                rows = self.source.read(spec.source, prompt_set, spec)
                if rows is None:
                    unread += queries * _size(named.rows if named else None, spec.n, otherwise=PROMPTS)
                elif isinstance(plan.attack, Wrapping):
                    prompts += plan.attack.prompts(rows)
                else:
                    unread += queries * len(rows)
            yield "attack", name, prompts, unread, self.recipe.drawn()


def _questions(name: str, task: Task) -> list[Prompt]:
    return load_benchmark(name, task).rows()


def _size(*sizes: int | None, otherwise: int) -> int:
    """Return the least of the published and the requested sizes of a set that is not available."""
    return min((size for size in sizes if size), default=otherwise)
