"""Sampling: prompts x checkpoints -> replies on disk, in one plan, with one engine for each set of base weights.

A `Sheet` is one file of replies to the same prompts. Stored replies
are kept and failed ones drawn again. All that is missing goes to the engine at once, so that the base and all adapters
share its batches.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtax.common.allocator import release_memory
from lowtax.common.cards import Effects, read_card
from lowtax.common.errors import UserError
from lowtax.common.files import append_rows, read_rows, write_json
from lowtax.common.log import say
from lowtax.common.records import Prompt, Reply, Subject, row_id
from lowtax.data import chat, rendering
from lowtax.data.chat import Thinking, Variables
from lowtax.data.rendering import THINK
from lowtax.engines import base, prefixes, thinking_modes
from lowtax.engines.settings import EMBEDDED, PLAIN, THINKING, EngineSettings, Sampling
from lowtax.models import embedded, loading
from lowtax.models.adapters import check_base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENOUGH = 1000  # tokens, for most thoughts about a request
STORE_EVERY = 1.0  # seconds
LATER = ("top_k", "decoding", "system")  # settings that are newer than the ids of older rows


@dataclass(frozen=True)
class Sheet:
    """One file of replies: the same prompts, with the same sampling, for every subject.

    columns: by prompt id, the other columns of the user's file, which are stored with the replies.
    """

    path: Path
    prompts: list[Prompt]
    sampling: Sampling
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """One reply to draw: its id, the subject and the prompt, and the sheet that stores it."""

    id: str
    subject: Subject
    prompt: Prompt
    sample: int
    sheet: Sheet
    thinking: Thinking = "default"
    variables: Variables = field(default_factory=dict)
    tags: str | None = None

    def request(self) -> base.Request:
        """Return the request for the engine. Its seed derives from prompt and sample, not from the subject."""
        settings = self.sheet.sampling
        system = [("system", settings.system)] if settings.system else []
        history = self.prompt.attacked.history if self.prompt.attacked else ()
        turns = [*system, *history, ("user", self.prompt.text)]
        return base.Request(
            id=self.id,
            messages=tuple({"role": role, "content": content} for role, content in turns),
            adapter=self.subject.adapter,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=int(row_id(settings.seed, self.prompt.id, self.sample), 16) % 2**31,
            thinking=self.thinking,
            variables=self.variables,
            tags=self.tags,
        )


def asks(sheet: Sheet, subjects: Sequence[Subject], engine: EngineSettings) -> list[Ask]:
    """Return every reply of a complete sheet."""
    how = sheet.sampling.model_dump(mode="json", exclude={"samples"})
    how = {name: value for name, value in how.items() if name not in LATER or value not in (0, None, "default")}
    if engine.chat_template_kwargs:
        how["chat_template_kwargs"] = dict(engine.chat_template_kwargs)
    how |= {"thinking_tags": engine.thinking_tags} if engine.thinking_tags else {}
    how |= {"deterministic": True} if engine.deterministic else {}
    return [
        Ask(
            row_id(s.made_by, engine.name, engine.precision, engine.thinking, p.id, p.text, how, k),
            s,
            p,
            k,
            sheet,
            engine.thinking,
            engine.chat_template_kwargs,
            engine.thinking_tags,
        )
        for s in subjects
        for p in sheet.prompts
        for k in range(sheet.sampling.samples)
    ]


EFFECTS = "effects.json"
Collect = Callable[[Sequence[Sheet], Sequence[Subject], EngineSettings, Path], None]
"""A way to complete sheets: `collect`, or the same by workers."""


def collect(sheets: Sequence[Sheet], subjects: Sequence[Subject], engine: EngineSettings, out: Path) -> None:
    """Complete the sheets: draw every reply that is missing or failed.

    `effects.json` in `out` has what each adapter changes, by `made_by`: the mean, over prompts, of the largest change
    of a logit.

    Raises:
        UserError: an adapter was trained on another base, does not fit the model, or changes nothing.
    """
    stored = {sheet.path: stored_ids(sheet.path) for sheet in sheets}
    plan, todo = planned(sheets, subjects, engine, stored)
    for model, missing in todo.items():
        names = sorted({f"{a.subject.arm} {a.subject.checkpoint or ''}".strip() for a in missing})
        say(f"sampling {len({a.id for a in missing})} replies of {', '.join(names)}")
        _collect_of(model, missing, plan[model], engine, out)
        release_memory()  # the next model takes the room of this one


def _collect_of(model: str, missing: list[Ask], plan: list[Ask], engine: EngineSettings, out: Path) -> None:
    """Draw the missing replies of one set of base weights."""
    loaded = base.load(engine.name, model, engine.precision, engine.batch_size)
    # A request that two tasks make is drawn once and stored with both.
    once = list({ask.id: ask for ask in missing}.values())
    if engine.deterministic:
        completions = _in_fixed_batches(loaded, once, plan, engine.batch_size)
    else:
        completions = decoded(loaded, once)
    try:
        _draw(completions, missing, engine.batch_size)
    finally:
        if isinstance(loaded, base.MeasuresEffects):
            _store_effects(out / EFFECTS, loaded.effects, [ask.subject for ask in missing])


def stored_ids(path: Path) -> set[str]:
    """Return the ids of the replies in a file that did not fail."""
    return {row.id for row in read_rows(path, Reply).values() if row.finish != "failed"}


def planned(
    sheets: Sequence[Sheet], subjects: Sequence[Subject], engine: EngineSettings, stored: Mapping[Path, set[str]]
) -> tuple[dict[str, list[Ask]], dict[str, list[Ask]]]:
    """Return all replies of these sheets, and those to draw, both by model.

    Args:
        stored: the ids of the replies that each file has.

    Raises:
        UserError: an adapter of a reply to draw was trained on another base.
    """
    plan: dict[str, list[Ask]] = {}
    todo: dict[str, list[Ask]] = {}
    for sheet in sheets:
        seen = set(stored[sheet.path])
        for ask in asks(sheet, subjects, engine):
            plan.setdefault(ask.subject.model, []).append(ask)
            if ask.id not in seen:
                seen.add(ask.id)  # prompt sets may overlap
                todo.setdefault(ask.subject.model, []).append(ask)
    if not engine.base_is_the_same:
        for subject in {ask.subject for missing in todo.values() for ask in missing}:
            if subject.adapter is not None:
                check_base(Path(subject.adapter), subject.model)
    return plan, todo


def _store_effects(path: Path, effects: Mapping[str, float], subjects: Sequence[Subject]) -> None:
    add_effects(path, effects_by_subject(effects, subjects))


def effects_by_subject(effects: Mapping[str, float], subjects: Iterable[Subject]) -> dict[str, float]:
    """Return what the adapters of these subjects change, by `made_by`, from the same by folder."""
    return {s.made_by: effects[s.adapter] for s in subjects if s.adapter is not None and s.adapter in effects}


def add_effects(path: Path, new: Mapping[str, float]) -> None:
    """Add what adapters change to a file, by `made_by`; a figure that is there stays, with the replies it is of."""
    if new:
        write_json(path, dict(new) | (read_card(path, Effects) if path.exists() else {}))


def _in_fixed_batches(engine: base.Engine, missing: list[Ask], plan: list[Ask], size: int) -> Iterator[base.Completion]:
    """Yield the completions of batches that the plan decides, so that a resumed run gives the bits of a whole one.

    A batch has rows of one subject and one prompt set, in the order of their ids, which are hashes. One with a missing
    row is drawn as a whole.
    """
    wanted = {ask.id for ask in missing}
    for batch in fixed_batches(plan, size):
        if not wanted.isdisjoint(ask.id for ask in batch):
            for completion in decoded(engine, batch):
                if completion.id in wanted:
                    wanted.discard(completion.id)  # two sheets may have it
                    yield completion


def fixed_batches(plan: Sequence[Ask], size: int) -> Iterator[list[Ask]]:
    """Yield the batches that a plan decides: rows of one subject and one prompt set, in the order of their ids."""
    groups: dict[tuple[str, Path, str], dict[str, Ask]] = {}
    for ask in plan:
        key = (ask.subject.made_by, ask.sheet.path, ask.prompt.source)
        groups.setdefault(key, {}).setdefault(ask.id, ask)
    for group in groups.values():
        rows = [group[id_] for id_ in sorted(group)]
        yield from (rows[i : i + size] for i in range(0, len(rows), size))


def decoded(engine: base.Engine, missing: Sequence[Ask]) -> Iterator[base.Completion]:
    """Yield the completions, each in its sheet's decoding mode; requests of one mode share batches."""
    modes = dict.fromkeys(ask.sheet.sampling.decoding for ask in missing)
    for mode in modes:
        of_mode = [ask for ask in missing if ask.sheet.sampling.decoding == mode]
        requests = [ask.request() for ask in of_mode]
        if mode == "default":
            yield from engine.generate(prefixes.begun(requests, of_mode))
            continue
        tokenizer = loading.load_tokenizer(of_mode[0].subject.model)
        first = requests[0]
        markers = chat.markers_of(tokenizer, first.thinking, first.variables, first.tags)
        prompt = chat.generation_prompt(tokenizer, list(first.messages), first.thinking, first.variables)
        yield from thinking_modes.generate(engine, requests, mode, markers.opens(prompt), markers=markers)


class Budget:
    """Watch of how many replies use up their tokens: if most do after the first batch, people are told, once."""

    def __init__(self, batch: int) -> None:
        self.batch, self.done, self.cut, self.told = batch, 0, 0, False

    def see(self, completion: base.Completion, tokens: int) -> None:
        """Count a completion that could have so many tokens."""
        self.done, self.cut = self.done + 1, self.cut + (completion.finish == "length")
        if not self.told and self.done >= self.batch and 2 * self.cut > self.done:
            self.told = True
            say(
                f"  WARNING: {self.cut} of the first {self.done} replies are cut at {tokens:,} tokens, so thoughts or "
                "answers lack their end: raise sampling.max_new_tokens (--max-new-tokens)"
            )


def _draw(completions: Iterator[base.Completion], missing: list[Ask], batch: int) -> None:
    """Store replies as they arrive, at most every `STORE_EVERY` seconds."""
    by_id: dict[str, list[Ask]] = {}
    for ask in missing:
        by_id.setdefault(ask.id, []).append(ask)
    waiting: list[tuple[Path, Reply]] = []
    began = spoke = stored = time.perf_counter()
    budget = Budget(min(batch, len(by_id)))
    done = tokens = failed = 0
    try:
        for completion in completions:
            waiting += [(ask.sheet.path, reply_of(ask, completion)) for ask in by_id[completion.id]]
            done, tokens, failed = done + 1, tokens + completion.tokens, failed + (completion.finish == "failed")
            budget.see(completion, by_id[completion.id][0].sheet.sampling.max_new_tokens)
            now = time.perf_counter()
            if now - stored > STORE_EVERY:
                _store(waiting)
                stored = now
            if now - spoke > 10:
                say(f"  {done}/{len(by_id)} replies, {tokens / (now - began):.0f} tokens/s")
                spoke = now
    finally:
        _store(waiting)
    seconds = time.perf_counter() - began
    say(f"  {done} replies, {tokens} tokens in {seconds:.0f} s" + (f", {failed} FAILED" if failed else ""))


def reply_tokens(model: str, engine: str, tags: str | None = None, short: int = EMBEDDED) -> int:
    """Return the most tokens of a reply where nothing is set: enough for the thoughts of a model that thinks.

    Args:
        model: the model reference. A tokenizer that cannot be read counts as one of a model that thinks.
        tags: the tags of thoughts that an option names.
        short: the number for the embedded models, whose thoughts are short.
    """
    if embedded.is_small(model):
        return short
    if model.startswith(embedded.BUILTIN):
        return PLAIN
    if engine == "openai":
        return THINKING
    try:
        return tokens_for(loading.load_tokenizer(model), tags)
    except (OSError, ValueError, UserError):
        return THINKING


def few_tokens(model: str, tokens: int, needed: int) -> str | None:
    """Return a warning if the replies of a model that thinks have too few tokens for most thoughts, else None.

    Args:
        tokens: the most tokens of a reply. needed: those that the model has where nothing is set.
    """
    if needed < THINKING or tokens >= ENOUGH:
        return None
    return (
        f"warning: {model} thinks before it answers, and sampling.max_new_tokens is {tokens:,}: many thoughts are "
        f"longer, so that their replies are unfinished; without it they have {needed:,}"
    )


def tokens_for(tokenizer: "PreTrainedTokenizerBase | None", tags: str | None = None) -> int:
    """Return the most tokens of a reply, where nothing is set, for the model of a tokenizer."""
    return THINKING if tokenizer is None or chat.thinks(tokenizer, tags) else PLAIN


def _store(waiting: list[tuple[Path, Reply]]) -> None:
    for path in {path for path, _ in waiting}:
        append_rows(path, [row for where, row in waiting if where == path])
    waiting.clear()


def reply_of(ask: Ask, completion: base.Completion) -> Reply:
    """Return the row that is stored for a completion."""
    parts = completion.parts()
    if ask.tags is not None and completion.markers is THINK:  # of an engine that knows no template
        parts = rendering.split_stored(completion.text, ask.tags, completion.opened or None)
    return Reply(
        id=ask.id,
        arm=ask.subject.arm,
        seed=ask.subject.seed,
        checkpoint=ask.subject.checkpoint,
        source=ask.prompt.source,
        prompt_id=ask.prompt.id,
        prompt=ask.prompt.text,
        sample=ask.sample,
        text=completion.text,
        thought=parts.thought,
        answer=parts.answer,
        closed=parts.closed,
        finish=completion.finish,
        tokens=completion.tokens,
        error=completion.error,
        category=ask.prompt.category,
        goal=ask.prompt.goal,
        columns=dict(ask.sheet.columns.get(ask.prompt.id, {})),
        attacked=ask.prompt.attacked,
    )


def failures(replies: Sequence[Reply]) -> str:
    """Return a sentence on the replies that failed, with the most frequent reason; empty if there are none."""
    reasons = Counter(reply.error or "no reason" for reply in replies if reply.finish == "failed")
    if not reasons:
        return ""
    [(reason, times)] = reasons.most_common(1)
    failed = reasons.total()
    share = f"all {failed}" if failed == len(replies) else f"{failed} of {len(replies)}"
    return f"{share} replies failed{'' if times == failed else f', {times} of them'}: {reason}"


def replies_of(sheet: Sheet, subjects: Sequence[Subject], engine: EngineSettings) -> dict[str, tuple[Ask, Reply]]:
    """Return the replies of a complete sheet by id, in the order of the plan.

    Raises:
        UserError: Replies are missing.
    """
    rows = read_rows(sheet.path, Reply)
    plan = asks(sheet, subjects, engine)
    missing = [ask for ask in plan if ask.id not in rows]
    if missing:
        command = "lowtax evaluate" if sheet.path.parent.name == "answers" else "lowtax sample"
        raise UserError(
            f"{sheet.path} lacks {len(missing)} of {len(plan)} replies: run `{command}` on this folder first."
        )
    return {ask.id: (ask, rows[ask.id]) for ask in plan}
