"""Requests to an engine in shares, one task each, and the rows of what is drawn; of a study or of a single command."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lowtax.common.errors import UserError
from lowtax.common.files import append_rows
from lowtax.common.records import Reply, Subject
from lowtax.engines.sampling import (
    EFFECTS,
    Ask,
    Budget,
    Sheet,
    add_effects,
    fixed_batches,
    planned,
    reply_of,
    stored_ids,
)
from lowtax.engines.settings import EngineSettings
from lowtax.study.units import tasks
from lowtax.study.units.base import cut, sampling_size, share_ids
from lowtax.study.units.messages import Pool
from lowtax.study.units.scheduler import PATIENCE, Owner, Scheduler, Work

PROMPTS = 2  # by which an engine measures what an adapter changes
Places = Mapping[str, Sequence[Ask]]  # by id of a request, the rows that it makes
ALL: Owner = ("all", 0)


def collect(
    pool: Pool,
    sheets: Sequence[Sheet],
    subjects: Sequence[Subject],
    engine: EngineSettings,
    out: Path,
    patience: float = PATIENCE,
) -> None:
    """Complete sheets as `sampling.collect` does, by workers. Batches of a share have the rows of all subjects.

    Raises:
        UserError: An adapter does not fit the model, or a share failed.
    """
    stored = {sheet.path: stored_ids(sheet.path) for sheet in sheets}
    plan, missing = planned(sheets, subjects, engine, stored)
    budget, works = Budget(engine.batch_size), list[Work]()
    for number, (model, every) in enumerate(plan.items()):
        of_model = places(missing.get(model, []))

        def keep(drawn: tasks.Drawn, of_model: Places = of_model) -> list[Work]:
            store(out, of_model, drawn, budget)
            return []

        prefix = f"sample/{number}" if number else "sample"
        for id_, task in tasks_of(prefix, every, of_model, engine, out):
            if task is not None:
                works.append(Work(id_, "sample", ALL, task, keep, f"engine {model}"))
    scheduler = Scheduler(pool, out, lambda owner, reason: None, patience)
    with scheduler.board:
        scheduler.run(works)
    if reason := scheduler.failed.get(ALL):
        raise UserError(f"A share of the requests could not be drawn, and what was drawn is stored ({reason}).")


def places(missing: Iterable[Ask]) -> Places:
    """Return the rows to make by request: one that two sheets have is drawn once."""
    rows: dict[str, list[Ask]] = {}
    for ask in missing:
        rows.setdefault(ask.id, []).append(ask)
    return rows


def tasks_of(
    prefix: str, every: Sequence[Ask], missing: Places, engine: EngineSettings, out: Path
) -> Iterator[tuple[str, Callable[[], tasks.Sampling] | None]]:
    """Yield the id of each share of all requests, with the maker of its task; None if nothing of it is missing."""
    shares = _shares(every, engine)
    ids = share_ids(prefix, len(shares))
    for id_, share in zip(ids, shares, strict=True):
        batches = [[_slim(ask) for ask in batch] for batch in _open(share, missing, engine)]
        batches = [batch for batch in batches if batch]
        yield id_, partial(tasks.Sampling, out, engine, batches, id_ == ids[0]) if batches else None


def store(out: Path, missing: Places, drawn: tasks.Drawn, budget: Budget) -> dict[Path, list[Reply]]:
    """Append the rows of a share to their files, and return them."""
    rows: dict[Path, list[Reply]] = {}
    for completion in drawn.completions:
        for ask in missing.get(completion.id, []):
            rows.setdefault(ask.sheet.path, []).append(reply_of(ask, completion))
            budget.see(completion, ask.sheet.sampling.max_new_tokens)
    add_effects(out / EFFECTS, drawn.effects)  # first: a kill may not leave replies without them
    for path, new in rows.items():
        append_rows(path, new)
    return rows


def _shares(plan: Sequence[Ask], engine: EngineSettings) -> list[list[list[Ask]]]:
    """Return shares as lists of batches: of one batch each, unless batches are fixed."""
    size = sampling_size(engine.name, engine.batch_size)
    if engine.deterministic:
        batches = [*fixed_batches(plan, engine.batch_size)]
        first = {rows[0].subject.made_by: rows[0].id for rows in reversed(batches)}
        return cut(batches, max(1, size // engine.batch_size), lambda rows: rows[0].id, set(first.values()))
    once = {ask.id: ask for ask in plan}
    shares = cut(once.values(), size, lambda ask: ask.id, _measuring(once.values()))
    return [[share] for share in shares]


def _open(share: list[list[Ask]], missing: Places, engine: EngineSettings) -> Iterator[list[Ask]]:
    """Yield the batches of a share without stored rows; fixed ones stay whole."""
    for batch in share:
        new = [ask for ask in batch if ask.id in missing]
        yield batch if new and engine.deterministic else new


def _measuring(plan: Iterable[Ask]) -> set[str]:
    """Return the ids of the first requests of each adapter, by which an engine measures what it changes."""
    texts: dict[str, set[str]] = {}
    ids = set[str]()
    for ask in plan:
        own = texts.setdefault(ask.subject.made_by, set())
        if len(own) < PROMPTS:
            own.add(ask.prompt.text)
            ids.add(ask.id)
    return ids


def _slim(ask: Ask) -> Ask:
    """Return a request without the other prompts of its sheet."""
    return replace(ask, sheet=replace(ask.sheet, prompts=[], columns={}))
