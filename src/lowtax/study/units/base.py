"""A unit of a study: a piece of work with inputs, resources and outputs, which is stored whole or not at all.

Units of one kind follow those of another: own answers, training, edits, sampling, judging, grading, comparison. Work on
many rows is cut into shares by a hash of each row's id, so that shares do not depend on the number of workers.
"""

import hashlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeVar

from lowtax.common.records import Row
from lowtax.judges.base import NO_MODEL

T = TypeVar("T")
Kind = Literal["answers", "train", "edit", "sample", "judge", "grade", "compare"]
KINDS: tuple[Kind, ...] = ("answers", "train", "edit", "sample", "judge", "grade", "compare")
REPLIES_AT_ONCE = 128  # requests of a share of sampling, at most: little is lost with a worker
BATCHES_AT_ONCE = 4  # batches of a share for large batches: the last one runs empty
OF_SERVERS = 2048  # requests of a share, for engines that schedule them themselves
TEXTS_AT_ONCE = 2048  # replies of a share of judging by rules, or of grading
SCHEDULING_ENGINES = ("vllm", "openai")


@dataclass(frozen=True)
class Resources:
    """Processor cores, GPUs, and bytes of a GPU's memory (of main memory without GPUs); None if not known."""

    cpus: int = 1
    gpus: int = 0
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Unit:
    """One unit.

    id: its place in the study, such as `train/r1/seed-0` or `sample/base/2-of-4`.
    after: ids of units, or their beginnings, that have to be done before.
    outputs: paths in the study's folder.
    rows: requests, replies or answers that it works on; None where there are none. exact: False for an estimate.
    """

    id: str
    kind: Kind
    after: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    outputs: tuple[str, ...] = ()
    rows: int | None = None
    exact: bool = True


@dataclass(frozen=True)
class Group:
    """Subjects that are sampled, judged and graded together: the base, an arm's seed, or a whole model of one."""

    arm: str
    seed: int
    checkpoint: str | None = None

    @property
    def name(self) -> str:
        """Its place in the ids of units."""
        if self.arm == "base":
            return "base"
        return "/".join([self.arm, f"seed-{self.seed}", *([self.checkpoint] if self.checkpoint else [])])


class Event(Row):
    """A line of units.jsonl: a unit begins or ends.

    at: time in UTC. worker: the process, and its machine. seconds: to the last word of its worker. tokens: that were
        drawn.
    """

    unit: str
    state: Literal["begun", "done", "again", "failed"]
    at: str
    worker: str = ""
    seconds: float | None = None
    tokens: int | None = None
    reason: str | None = None


def sampling_size(engine: str, batch_size: int) -> int:
    """Return the number of requests of a share for an engine."""
    least = OF_SERVERS if engine in SCHEDULING_ENGINES else REPLIES_AT_ONCE
    return max(least, BATCHES_AT_ONCE * batch_size)


def judging_size(judge: str, engine: str, batch_size: int) -> int:
    """Return the number of replies of a share for a judge, and for the engine if it may be a language model."""
    by_rules = judge.partition(":")[0] in NO_MODEL
    return TEXTS_AT_ONCE if by_rules else sampling_size(engine, batch_size)


def number_of_shares(items: int, size: int) -> int:
    """Return into how many shares of at most a size so many items are cut; 0 for none."""
    return -(-items // size)


def share_ids(prefix: str, shares: int) -> list[str]:
    """Return the ids of the units of all shares."""
    width = len(str(shares))
    return [f"{prefix}/{number:0{width}}-of-{shares}" for number in range(1, shares + 1)]


def cut(items: Iterable[T], size: int, key: Callable[[T], str], first: Container[str] = ()) -> list[list[T]]:
    """Return items in shares of the same size, or one item less, of at most `size`.

    Items are ordered by the hashes of their keys, and this order is divided, so that shares depend on the items alone
    and each has some of every kind. Within a share items keep their order.

    first: the keys of items that come first, in the first share if it has room for them.
    """
    items = list(items)
    hashes = [hashlib.sha256(key(item).encode()).digest() for item in items]
    order = sorted(range(len(items)), key=lambda place: (key(items[place]) not in first, hashes[place]))
    shares = number_of_shares(len(items), size)
    ends = [len(items) * number // shares for number in range(shares + 1)] if shares else []
    return [[items[place] for place in sorted(order[start:end])] for start, end in pairwise(ends)]
