"""Answers that a model writes for training: of the untrained model to prompts, steered and filtered as ThinkSafe does.

    DIR/data/SOURCE.jsonl           the replies
    DIR/data/SOURCE.JUDGE.jsonl     the verdicts of the filter on them

Lee et al. 2026, ThinkSafe (arXiv:2601.23143): a harmful request is sampled below an instruction to refuse, an ordinary
one alone; a guard reads the request, the thought and the answer; what it calls safe is trained on the request alone.
DGR (arXiv:2602.02136; its code is not published): `answers: rewrite` has the model write a given answer in its words.

All sources of all arms and seeds are drawn in one plan of one engine, and judged after it. Replies and verdicts have
ids, so a killed run resumes, and nothing is drawn twice.

A reply is dropped, and counted with the first reason that holds, if it failed, its thought has no end, it is cut, its
answer is empty, it quotes the instruction (`steering.quotes`), or the filter does not pass it. No verdict (unparsed,
failed) does not pass; a tie between two labels is what the judge makes of it. The published code passes both.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.common.names import file_name
from lowtax.common.records import Prompt, Reply, Subject, row_id
from lowtax.data import steering, training_sets
from lowtax.data.conversations import Conversation
from lowtax.data.own_answers import DRAWN
from lowtax.data.specs import Data
from lowtax.data.training_sets import Reading, TrainingSet
from lowtax.engines import base as engines
from lowtax.engines.sampling import Sheet, collect, replies_of
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.judges import base as judges
from lowtax.judges.verdicts import judge_replies
from lowtax.models.fingerprint import base_in

NEXT_ATTEMPT = 1_000_003  # between the seeds of two attempts at a prompt


@dataclass(frozen=True)
class Maker:
    """The model that writes answers: the base of a study, or a teacher."""

    subject: Subject
    engine: EngineSettings


@dataclass(frozen=True)
class Plan:
    """The answers of one source: what is drawn, by whom, and what passes.

    prompts: the requests that are trained. sampling: of the first attempt.
    instruction: the steering text, empty without one. references: prompt id -> the given answer to rewrite.
    chosen: prompt id -> the row whose answer is preferred to the one that is drawn (`rejected: self`).
    path: the file of the replies. maker: the model that draws. engine: the engine of the filter's judge.
    """

    spec: Data
    prompts: list[Prompt]
    sampling: Sampling
    path: Path
    maker: Maker
    engine: EngineSettings
    instruction: str = ""
    references: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, Conversation] = field(default_factory=dict)

    def sheet(self, attempt: int, prompts: Sequence[Prompt]) -> Sheet:
        """Return the requests of an attempt. The instruction is part of them, and `goal` is the plain request."""
        sampling, as_turn = self.sampling, self.spec.steer_as == "user"
        if attempt:
            sampling = sampling.model_copy(update={"seed": sampling.seed + NEXT_ATTEMPT * attempt})
        if self.instruction and not as_turn and not self.references:
            system = "\n\n".join(part for part in (sampling.system, self.instruction) if part)
            sampling = sampling.model_copy(update={"system": system})
        return Sheet(self.path, [self._request(prompt) for prompt in prompts], sampling)

    def _request(self, prompt: Prompt) -> Prompt:
        if self.references:
            text = steering.rewriting(prompt.text, self.references[prompt.id], self.instruction or steering.REWRITE)
        elif self.instruction and self.spec.steer_as == "user":
            text = steering.steered(prompt.text, self.instruction)
        else:
            return prompt
        return prompt.model_copy(update={"text": text, "goal": prompt.goal or prompt.text})

    def fault(self, reply: Reply, prompt: Prompt) -> str | None:
        """Return the reason why a reply cannot be trained, whatever a judge says; None if it can."""
        if reply.finish == "failed":
            return f"the reply failed: {reply.error}"
        if not reply.closed:
            return "the thought has no end"
        if reply.finish == "length":
            return f"the answer is cut at {self.sampling.max_new_tokens} tokens"
        if not reply.answer.strip():
            return "the answer is empty"
        instruction = self.instruction or (steering.REWRITE if self.references else "")
        if instruction and steering.quotes(f"{reply.thought}\n{reply.answer}", instruction, prompt.text):
            return "it quotes the instruction"
        return None

    def row(self, reply: Reply, prompt: Prompt) -> Conversation:
        """Return the training row of a reply: the plain request, the thought and the answer; or a pair."""
        if self.chosen:
            return replace(self.chosen[prompt.id], rejected=(reply.thought or None, reply.answer))
        style = training_sets.rendering_of(self.spec)
        return Conversation(
            prompt.text, reply.thought or None, reply.answer, rendering=style, ordinary=self.spec.ordinary
        )


@dataclass
class Outcome:
    """The replies that are trained by prompt id, and for each other prompt the reason why it has none."""

    trained: dict[str, Reply] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def is_drawn(spec: Data) -> bool:
    """Return whether a model writes answers of this source, the rejected ones of pairs included."""
    return spec.answers in DRAWN or spec.rejected == "self"


def check(spec: Data) -> None:
    """Refuse a source whose judge or engine does not exist; no model is loaded.

    Raises:
        UserError: There is no such judge or engine.
    """
    if spec.filter:
        judges.check(spec.filter.judge)
    if spec.teacher_engine:
        engines.find(spec.teacher_engine)


def plan(spec: Data, seed: int, sampling: Sampling, base: Maker, out: Path) -> Plan:
    """Return the plan of one source. `sampling` is the recipe's, `base` the untrained model.

    Raises:
        UserError: The source cannot be read.
    """
    prompts, answered = _prompts(spec, seed)
    references = {id_: row.answer for id_, row in answered.items()} if spec.answers == "rewrite" else {}
    name = "".join(c if c.isalnum() else "_" for c in spec.source)
    how = sampling.model_copy(update={"samples": 1, **spec.draw.changes()})
    maker = base
    if spec.teacher:
        engine = replace(base.engine, name=spec.teacher_engine or base.engine.name)
        teacher = base_in(out / "data", spec.teacher)
        maker = Maker(Subject("teacher", None, None, 0, spec.teacher, None, teacher.made_by), engine)
    instruction = steering.text_of(spec.steer) if spec.steer else ""
    path, chosen = out / "data" / f"{name}.jsonl", {} if references else answered
    return Plan(spec, prompts, how, path, maker, base.engine, instruction, references, chosen)


def answered_prompts(spec: Data, seed: int) -> list[Prompt]:
    """Return the prompts of a source that a model answers."""
    return _prompts(spec, seed)[0]


def _prompts(spec: Data, seed: int) -> tuple[list[Prompt], dict[str, Conversation]]:
    """Return the requests of a source, and by prompt id the rows that it has for them if their answers are used."""
    if spec.answers == "self":
        return training_sets.self_prompts(spec, seed), {}
    rows = training_sets.load(spec.model_copy(update={"answers": "given"}), seed).rows
    if any(row.history or row.system for row in rows):
        what = "rewrites" if spec.answers == "rewrite" else "answers again"
        raise UserError(
            f"{spec.source} has rows with earlier turns or a system text, and the model {what} single requests alone: "
            "select rows with `where`."
        )
    answered = {row_id(spec.source, row.prompt, row.answer): row for row in rows}
    return [Prompt(id=id_, source=spec.source, text=row.prompt) for id_, row in answered.items()], answered


def draw(plans: Sequence[Plan], out: Path) -> list[Outcome]:
    """Draw and judge the answers of all plans; what is stored is not drawn again. One engine draws for all sources.

    Raises:
        UserError: A model, an engine or a judge cannot be used.
    """
    outcomes = [Outcome() for _ in plans]
    for attempt in range(max((each.spec.draw.attempts for each in plans), default=0)):
        waiting = [
            (each, outcome, [p for p in each.prompts if p.id not in outcome.trained])
            for each, outcome in zip(plans, outcomes, strict=True)
            if attempt < each.spec.draw.attempts
        ]
        waiting = [(each, outcome, prompts) for each, outcome, prompts in waiting if prompts]
        sheets = [each.sheet(attempt, prompts) for each, _, prompts in waiting]
        for maker in dict.fromkeys(_key(each.maker) for each, _, _ in waiting):
            own = [
                (each, sheet) for (each, _, _), sheet in zip(waiting, sheets, strict=True) if _key(each.maker) == maker
            ]
            collect([sheet for _, sheet in own], [own[0][0].maker.subject], own[0][0].maker.engine, out)
        for (each, outcome, prompts), sheet in zip(waiting, sheets, strict=True):
            _sort(each, outcome, prompts, sheet)
    return outcomes


def _key(maker: Maker) -> str:
    return row_id(maker.subject.model, maker.subject.made_by, maker.engine.name)


def _sort(each: Plan, outcome: Outcome, prompts: Sequence[Prompt], sheet: Sheet) -> None:
    """Add the replies of one attempt to those that are trained, or to those that are not."""
    replies = replies_of(sheet, [each.maker.subject], each.maker.engine)
    by_prompt = {ask.prompt.id: reply for ask, reply in replies.values()}
    faults = {prompt.id: each.fault(by_prompt[prompt.id], prompt) for prompt in prompts}
    sound = {prompt.id: by_prompt[prompt.id] for prompt in prompts if faults[prompt.id] is None}
    labels = _labels(each, sound.values())
    filtered = each.spec.filter
    passes = filtered.passing(each.spec.ordinary, bool(each.chosen)) if filtered else ()
    for prompt in prompts:
        reason = faults[prompt.id]
        if reason is None and filtered and (label := labels[sound[prompt.id].id]) not in passes:
            reason = f"{filtered.judge}: {label}"
        if reason is None:
            outcome.trained[prompt.id] = by_prompt[prompt.id]
            outcome.dropped.pop(prompt.id, None)
        else:
            outcome.dropped[prompt.id] = reason


def _labels(each: Plan, replies: Iterable[Reply]) -> dict[str, str]:
    """Return the label of each reply by the filter; nothing without one."""
    replies = list(replies)
    if each.spec.filter is None or not replies:
        return {}
    path = each.path.with_name(f"{each.path.stem}.{file_name(each.spec.filter.judge)}.jsonl")
    verdicts = judge_replies(replies, path, each.spec.filter.judge, each.spec.filter.text, each.engine)
    return {reply.id: verdicts[reply.id].label for reply in replies}


def training_set(each: Plan, outcome: Outcome) -> TrainingSet:
    """Return the rows that are trained, with counts of what was dropped and why.

    Raises:
        UserError: No row is left.
    """
    reasons, total = Counter(outcome.dropped.values()), len(each.prompts)
    if not outcome.trained:
        raise UserError(_empty(each, reasons))
    _say_few(each, outcome)
    rows = [each.row(outcome.trained[prompt.id], prompt) for prompt in each.prompts if prompt.id in outcome.trained]
    reading = Reading(each.spec.source, total, skipped=reasons, with_thought=len(rows))
    return TrainingSet(each.spec, rows, total, total - len(rows), reading=reading)


def _say_few(each: Plan, outcome: Outcome) -> None:
    """Say so if the filter drops more than half of the answers."""
    judge, total = each.spec.filter and each.spec.filter.judge, len(each.prompts)
    failing = sum(reason.startswith(f"{judge}: ") for reason in outcome.dropped.values())
    if judge and 2 * failing > total:
        say(
            f"the filter {judge} passes {len(outcome.trained)} of {total} answers to {each.spec.source}: read them in "
            f"{each.path}, since among few the errors of a judge weigh much"
        )


def _empty(each: Plan, reasons: Counter[str]) -> str:
    """Return the sentence on a source of which nothing can be trained."""
    listed = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common(5))
    total, judge = len(each.prompts), each.spec.filter and each.spec.filter.judge
    if judge and any(reason.startswith(f"{judge}: ") for reason in reasons):
        return (
            f"0 of {total} rows passed the filter of {each.spec.source}: {listed}; steer the answers, raise "
            "draw.attempts, or choose another judge."
        )
    unfinished = sum(n for reason, n in reasons.items() if reason.startswith(("the thought", "the answer is cut")))
    if 2 * unfinished > total:
        return f"The model finished none of the answers to train on; raise sampling.max_new_tokens ({listed})."
    return f"0 of {total} answers to {each.spec.source} can be trained on: {listed}."
