"""How many replies a recipe asks for: by set and task, as the run will plan them, without a network."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from lowtax import benchmarks, data, promptsets
from lowtax.dryrun_cost import ASSUMED
from lowtax.dryrun_sources import Looked, step_for_prompts, step_for_task
from lowtax.dryrun_train import Counter, Known, least
from lowtax.recipe import PromptSet, Recipe, Sampling, Task
from lowtax.records import Prompt
from lowtax.sample import EngineChoice, Sheet, Subject, asks
from lowtax.tasksets import NAMED as EXAMS

Kind = Literal["own answers", "harmful", "ordinary", "task"]
SETS: tuple[Kind, ...] = ("harmful", "ordinary")
ANY = EngineChoice("any", "any", 1)
ONE = Subject("base", None, None, 0, "any", None, "any")


@dataclass(frozen=True)
class Asked:
    """A set or a task: its prompts, and how many replies each of so many `subjects` is asked for."""

    kind: Kind
    name: str
    prompts: int
    samples: int
    subjects: int
    max_new_tokens: int
    known: Known
    ids: frozenset[str] = field(repr=False)  # of one subject's replies to the prompts that were read
    unread: int  # prompts that are not here

    @property
    def requests(self) -> int:
        """Replies of all subjects. A prompt that stands twice is asked once."""
        return self.subjects * (len(self.ids) + self.unread * self.samples)

    @property
    def tokens(self) -> int:
        """Tokens of all replies at most."""
        return self.requests * self.max_new_tokens


@dataclass(frozen=True)
class Requests:
    """All of them. What two tasks ask alike is drawn once, so that the sums may be less than those of the rows."""

    sheets: list[Asked]

    @property
    def requests(self) -> int:
        """Replies in all."""
        return sum(asked.requests for asked in self.sheets) - sum(n for _, n in self._repeated())

    @property
    def tokens(self) -> int:
        """Tokens in all, at most."""
        return sum(asked.tokens for asked in self.sheets) - sum(size * n for size, n in self._repeated())

    def _repeated(self) -> list[tuple[int, int]]:
        """Of each sheet, the tokens of a reply and how many replies an earlier one has asked for already."""
        seen, found = set[str](), list[tuple[int, int]]()
        for asked in self.sheets:
            found.append((asked.max_new_tokens, asked.subjects * len(asked.ids & seen)))
            seen |= asked.ids
        return found


def requests(recipe: Recipe, subjects: int, counter: Counter, looked: Looked) -> Requests:
    """What is asked of the base and of all checkpoints, and the base's own answers that arms train on."""
    found = list[Asked]()
    sampling = recipe.sampling.model_copy(update={"samples": 1})
    for name in sorted({*counter.own, *counter.own_elsewhere}):
        here, away = len(counter.own.get(name, ())), counter.own_elsewhere.get(name, 0)
        ids = frozenset(f"own {name} {prompt}" for prompt in counter.own.get(name, ()))
        known: Known = "assumed" if away else "counted"
        found.append(Asked("own answers", name, here + away, 1, 1, sampling.max_new_tokens, known, ids, away))
    for kind in SETS:
        specs: list[PromptSet] = getattr(recipe, kind)
        if specs:
            found.append(_of_sets(kind, specs, recipe.sampling, subjects, looked))
    found += [_of_task(name, task, subjects, looked) for name, task in recipe.tasks.items()]
    return Requests(found)


def _of_sets(kind: Kind, specs: list[PromptSet], sampling: Sampling, subjects: int, looked: Looked) -> Asked:
    prompts, unread, known = list[Prompt](), 0, list[Known]()
    for spec in specs:
        found = looked.read(partial(data.prompt_set, spec), spec.source, step_for_prompts(spec))
        if found is None:
            named = promptsets.NAMED.get(spec.source.partition(":")[0])
            size, how = _stated(named.rows if named else None, spec.n)
            unread, known = unread + size, [*known, how]
        else:
            prompts += found
    return _asked(kind, ", ".join(spec.source for spec in specs), prompts, unread, least(known), sampling, subjects)


def _of_task(name: str, task: Task, subjects: int, looked: Looked) -> Asked:
    found = looked.read(lambda: benchmarks.load(name, task).rows(), name, step_for_task(name, task))
    if found is not None:
        return _asked("task", name, found, 0, "counted", task.sampling, subjects)
    exam = EXAMS.get(task.benchmark or name)
    size, known = _stated(exam.rows if exam and task.split in (None, exam.split) else None, task.n)
    return _asked("task", name, [], size, known, task.sampling, subjects)


def _stated(published: int | None, asked: int | None) -> tuple[int, Known]:
    """How many prompts a set has that is not here."""
    sizes = [size for size in (published, asked) if size]
    return min(sizes or [ASSUMED.prompts]), "stated" if sizes else "assumed"


def _asked(
    kind: Kind, name: str, prompts: list[Prompt], unread: int, known: Known, sampling: Sampling, subjects: int
) -> Asked:
    ids = frozenset(ask.id for ask in asks(Sheet(Path(name), prompts, sampling), [ONE], ANY))
    different = len({prompt.id for prompt in prompts})
    return Asked(
        kind, name, different + unread, sampling.samples, subjects, sampling.max_new_tokens, known, ids, unread
    )
