"""What a recipe needs that is not at hand: looked up in the caches of this machine, never on a network.

`Looked.read` is the only place where an error of reading becomes a line of the list "not at hand"; all other errors
are the recipe's and stay errors.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lowtax import data, prompts, promptsets, sources, tables, taskdata, tasksets
from lowtax.errors import UserError
from lowtax.recipe import Data, PromptSet, Task
from lowtax.sources import Conversation

T = TypeVar("T")
OFFLINE = "HF_HUB_OFFLINE"
ELSEWHERE = [name for name, named in promptsets.NAMED.items() if not named.hub]  # sets that only their makers have


@contextmanager
def offline() -> Iterator[None]:
    """Let the hub's libraries read their caches and nothing else meanwhile."""
    was = {name: os.environ[name] for name in (OFFLINE,) if name in os.environ}
    os.environ[OFFLINE] = "1"  # for what is imported from here on
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        del os.environ[OFFLINE]
        os.environ.update(was)


@dataclass
class Looked:
    """What was looked for and is not here, a line each, with the step that brings it."""

    missing: list[str] = field(default_factory=list)

    def lacks(self, what: str, step: str) -> None:
        """Note it once."""
        line = f"{what}: {step}"
        if line not in self.missing:
            self.missing.append(line)

    def read(self, how: Callable[[], T], what: str, step: str) -> T | None:
        """What `how` reads; None, and noted, if only a download or an installation would bring it."""
        try:
            return how()
        except UserError as error:
            if not _could_be_had(error) and what not in ELSEWHERE:
                raise
            self.lacks(what, step or str(error))
            return None

    def model(self, ref: str, what: str) -> None:
        """Note a model of the hub whose weights are not in the cache."""
        if not here(ref):
            step = f"`hf download {ref}`; where it is gated, accept its terms and `hf auth login` first"
            self.lacks(f"{what} {ref}", step)

    def rows(self, spec: Data, seed: int) -> list[Conversation] | None:
        """Training rows whose answers are given; None, and noted, if they are not here."""
        return self.read(lambda: data.load(spec, seed).rows, spec.source, step_for_data(spec))


def here(ref: str) -> bool:
    """Whether a model is none of the hub, or the hub's cache has weights of it."""
    from huggingface_hub import try_to_load_from_cache

    if not tables.is_hub_id(ref) or Path(ref).exists():
        return True
    names = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
    return any(isinstance(try_to_load_from_cache(ref, name), str) for name in names)


def _could_be_had(error: BaseException) -> bool:
    """Whether a download or an installation would take the error away."""
    from huggingface_hub import errors as hub

    away = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ImportError)
    return isinstance(error, away) or (error.__cause__ is not None and _could_be_had(error.__cause__))


def step_for_data(spec: Data) -> str:
    """How a training source comes to this machine."""
    named = sources.NAMED.get(spec.source)
    return f"{_download(named.hub if named else spec.source, spec.revision)}, or give a copy as `path`"


def step_for_prompts(spec: PromptSet) -> str:
    """How a prompt set comes to this machine."""
    source = spec.source.partition(":")[0]
    named = promptsets.NAMED.get(source)
    if named is None:
        return _download(source)
    copy = f"a copy as {source}.csv in the folder that {prompts.FOLDER} names"
    if not named.hub:
        return f"{copy}, from {named.page}"
    return f"{_download(named.hub, gated=named.gated)}, or {copy}"


def step_for_task(name: str, task: Task) -> str:
    """How an exam comes to this machine; empty where its own error says so."""
    benchmark = task.benchmark or name
    named = tasksets.NAMED.get(benchmark)
    if named is None:
        return _download(task.file) if task.file else ""
    copy = f"a copy as {benchmark}.jsonl or .csv in the folder that {taskdata.FOLDER} names"
    return f"{_download(named.hub, named.revision, named.gated)}, or {copy}"


def _download(hub: str, revision: str | None = None, gated: bool = False) -> str:
    command = f"hf download --repo-type dataset {hub}" + (f" --revision {revision}" if revision else "")
    terms = f"accept the terms at https://huggingface.co/datasets/{hub}, `hf auth login`, " if gated else ""
    return f"{terms}`{command}`"
