"""How many replies a recipe asks for: by set and task, as the run will plan them, without a network."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from lowtax import benchmarks, data, promptsets
from lowtax.dryrun.cost import ASSUMED
from lowtax.dryrun.counts import Counter, Known, least, size_of
from lowtax.dryrun.offline import Looked, step_for_prompts, step_for_task
from lowtax.recipe import PromptSet, Recipe, Sampling, Task
from lowtax.records import Prompt
from lowtax.sample import EngineChoice, Sheet, Subject, asks
from lowtax.tasksets import NAMED as EXAMS

Kind = Literal["own answers", "harmful", "ordinary", "task"]
SETS: tuple[Kind, ...] = ("harmful", "ordinary")
ANY = EngineChoice("any", "any", 1)
ONE = Subject("base", None, None, 0, "any", None, "any")
Read = tuple[Kind, str, list[Prompt], int, Known, Sampling]  # the number: of prompts that are not here


@dataclass(frozen=True)
class Asked:
    """A set or a task: its prompts, and how many replies each of so many `subjects` is asked for.

    unread: prompts that are not here. requests: replies of all subjects; a prompt that stands twice is asked once.
    repeated: of these, what an earlier sheet asks alike; it is drawn once. known: of prompts; requests_known: of both
    prompts and subjects.
    """

    kind: Kind
    name: str
    prompts: int
    samples: int
    subjects: int
    max_new_tokens: int
    known: Known
    unread: int
    requests: int
    repeated: int
    requests_known: Known

    @property
    def tokens(self) -> int:
        """Tokens of all replies at most."""
        return self.requests * self.max_new_tokens

    @property
    def drawn(self) -> int:
        """Replies that no earlier sheet asks for."""
        return self.requests - self.repeated


def requests(recipe: Recipe, subjects: int, subjects_known: Known, counter: Counter, looked: Looked) -> list[Asked]:
    """What is asked of the base and of all checkpoints, and the base's own answers that arms train on."""
    found, seen = list[Asked](), set[str]()
    for name, own in sorted(counter.own.items()):
        n, unread = len(own), sum(known != "counted" for known in own.values())
        how_well, most = least(own.values()), recipe.sampling.max_new_tokens
        found.append(Asked("own answers", name, n, 1, 1, most, how_well, unread, n, 0, how_well))
    tasks = (_task(name, task, looked) for name, task in recipe.tasks.items())
    for kind, name, prompts, unread, known, how in (*_sets(recipe, looked), *tasks):
        ids = {ask.id for ask in asks(Sheet(Path(name), prompts, how), [ONE], ANY)}
        asked = Asked(
            kind=kind,
            name=name,
            prompts=len({prompt.id for prompt in prompts}) + unread,
            samples=how.samples,
            subjects=subjects,
            max_new_tokens=how.max_new_tokens,
            known=known,
            unread=unread,
            requests=subjects * (len(ids) + unread * how.samples),
            repeated=subjects * len(ids & seen),
            requests_known=least([known, subjects_known]),
        )
        found.append(asked)
        seen |= ids
    return found


def _sets(recipe: Recipe, looked: Looked) -> Iterator[Read]:
    for kind in SETS:
        specs: list[PromptSet] = getattr(recipe, kind)
        prompts, unread, known = list[Prompt](), 0, list[Known]()
        for spec in specs:
            found = looked.read(partial(data.prompt_set, spec), spec.source, step_for_prompts(spec))
            if found is None:
                named = promptsets.NAMED.get(spec.source.partition(":")[0])
                size, how = size_of(named.rows if named else None, spec.n, assumed=ASSUMED.prompts)
                unread, known = unread + size, [*known, how]
            else:
                prompts += found
        if specs:
            yield kind, ", ".join(spec.source for spec in specs), prompts, unread, least(known), recipe.sampling


def _task(name: str, task: Task, looked: Looked) -> Read:
    found = looked.read(lambda: benchmarks.load(name, task).rows(), name, step_for_task(name, task))
    if found is not None:
        return "task", name, found, 0, "counted", task.sampling
    exam = EXAMS.get(task.benchmark or name)
    published = exam.rows if exam and task.split in (None, exam.split) else None
    size, known = size_of(published, task.n, assumed=ASSUMED.prompts)
    return "task", name, [], size, known, task.sampling
