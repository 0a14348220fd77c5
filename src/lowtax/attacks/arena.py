"""The place where an attack that talks meets its models: the attacker, the target, and the judge that steers.

Every text and every score is stored by an id, the hash of what it depends on. An attack is then a function of what is
stored: repeated, it finds its earlier rounds and continues after the last; a kill loses what was under way alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from lowtax.attacks.attempts import Attempt
from lowtax.attacks.base import Conversation
from lowtax.common.allocator import release_memory
from lowtax.common.errors import UserError
from lowtax.common.files import append_rows, read_rows
from lowtax.common.log import say
from lowtax.common.records import Attacked, Prompt, Reply, Row, Subject, row_id
from lowtax.engines import base, prefixes
from lowtax.engines.sampling import Ask, Sheet, asks, reply_of
from lowtax.engines.settings import EngineSettings, Sampling

STORE = 16  # rows after which they are on disk


class Call(Row):
    """A text of the attacker, or the score of a reply.

    role: attacker or judge. text: the attacker's words, with the beginning that was written for it.
    score: from 0 to 1; None if the judge gave no verdict. refused: the reply refuses.
    """

    role: Literal["attacker", "judge"]
    text: str = ""
    tokens: int = 0
    finish: Literal["stop", "length", "failed"] = "stop"
    score: float | None = None
    refused: bool = False


@dataclass(frozen=True)
class Score:
    """The judge's opinion of a reply. value: from 0 to 1, 1 is a success; None without a verdict."""

    value: float | None
    refused: bool = False


class Referee(Protocol):
    """The judges that steer an attack. `name` is part of the ids of scores."""

    name: str

    def score(self, goals: list[str], texts: list[str]) -> list[Score]:
        """Return the scores of replies to the plain requests."""
        ...

    def unusable(self, texts: list[str]) -> list[str]:
        """Return, for each text of the attacker, why it is no prompt (it refuses, it repeats itself); else empty."""
        ...


@dataclass(frozen=True)
class Case:
    """One model that is attacked with one request."""

    subject: Subject
    prompt: Prompt

    @property
    def goal(self) -> str:
        """The plain request."""
        return self.prompt.goal or self.prompt.text


@dataclass(frozen=True)
class Draft:
    """A request to the attacker. key: what distinguishes it from others with the same words, for its seed."""

    messages: tuple[dict[str, str], ...]
    key: tuple[object, ...]
    prefix: str = ""


@dataclass(frozen=True)
class Query:
    """A prompt for the target: the last turn, and the turns before it."""

    case: Case
    text: str
    attempt: int
    variant: str = ""
    history: tuple[tuple[str, str], ...] = ()


class Engines:
    """The engines of an attack, loaded when they are needed. An attacker that is the target's base shares its engine.

    One target is loaded at a time: the base with all its adapters, or a whole model.
    """

    def __init__(self) -> None:
        self._attackers: dict[tuple[str, str], base.Engine] = {}
        self._target: tuple[tuple[str, str], base.Engine] | None = None

    def attacker(self, name: str, model: str, precision: str, batch_size: int) -> base.Engine:
        """Return the engine of an attacker."""
        if self._target is not None and self._target[0] == (name, model):
            return self._target[1]
        if (name, model) not in self._attackers:
            self._attackers[name, model] = base.load(name, model, precision, batch_size)
        return self._attackers[name, model]

    def target(self, how: EngineSettings, model: str) -> base.Engine:
        """Return the engine of a target."""
        key = (how.name, model)
        if key in self._attackers:
            return self._attackers[key]
        if self._target is None or self._target[0] != key:
            self._target = None
            release_memory()  # before the next one is loaded
            self._target = (key, base.load(how.name, model, how.precision, how.batch_size))
        return self._target[1]


@dataclass
class Arena:
    """The models of one attack, and the files that hold what they wrote.

    sampling, how: of the target. folder: of the files. engines: None if everything must be stored already.
    """

    attack: Conversation
    sampling: Sampling
    how: EngineSettings
    referee: Referee
    folder: Path
    engines: Engines | None = None
    _calls: dict[str, Call] = field(default_factory=dict)
    _replies: dict[str, Reply] = field(default_factory=dict)
    _lead: str | None = None

    def __post_init__(self) -> None:
        """Read what is stored; replies that failed are drawn again."""
        self._calls = {id_: row for id_, row in read_rows(self.calls_file, Call).items() if row.finish != "failed"}
        stored = read_rows(self.replies_file, Reply)
        self._replies = {id_: row for id_, row in stored.items() if row.finish != "failed" or self.engines is None}

    @property
    def calls_file(self) -> Path:
        """The file of what the attacker wrote and of the scores."""
        return self.folder / f"{self.attack.name}.calls.jsonl"

    @property
    def replies_file(self) -> Path:
        """The file of the target's replies."""
        return self.folder / f"{self.attack.name}.replies.jsonl"

    # --- the attacker

    def write(self, drafts: Sequence[Draft]) -> list[Call]:
        """Return what the attacker writes, in order. Failed calls are not stored."""
        requests = [self._request(draft) for draft in drafts]
        new = {r.id: r for r in requests if r.id not in self._calls}
        failed: dict[str, Call] = {}
        if new:
            engine, waiting = self._attacker(), list[Call]()
            for done in engine.generate([self._begun(request) for request in new.values()]):
                words = done.parts().answer if done.parts().closed else ""
                text = new[done.id].prefix + (words if done.finish != "failed" else "")
                call = Call(id=done.id, role="attacker", text=text, tokens=done.tokens, finish=done.finish)
                (failed if done.finish == "failed" else self._calls)[done.id] = call
                if done.finish == "failed" and len(failed) == 1:
                    say(f"  the attacker of {self.attack.name} failed: {done.error}")
                waiting += [] if done.finish == "failed" else [call]
                if len(waiting) >= STORE:
                    self._store(waiting)
            self._store(waiting)
        return [self._calls.get(r.id) or failed[r.id] for r in requests]

    def _request(self, draft: Draft) -> base.Request:
        attack = self.attack
        seed = int(row_id(attack.seed, *draft.key), 16) % 2**31
        how = (attack.attacker, attack.attacker_engine, attack.attacker_tokens, attack.temperature, attack.top_p)
        return base.Request(
            id=row_id("attacker", how, draft.messages, draft.prefix, seed),
            messages=draft.messages,
            adapter=None,
            max_new_tokens=attack.attacker_tokens,
            temperature=attack.temperature,
            top_p=attack.top_p,
            seed=seed,
            thinking="off_if_possible",
            prefix=draft.prefix,
        )

    def _begun(self, request: base.Request) -> base.Request:
        """Return a request whose prefix is in the answer, also where the attacker's template opens a thought."""
        if not request.prefix:
            return request
        if self._lead is None:
            self._lead = prefixes.answer_lead(str(self.attack.attacker), request)
        return replace(request, prefix=self._lead + request.prefix)

    def _attacker(self) -> base.Engine:
        attack, how = self.attack, self.how
        return self._engines().attacker(attack.attacker_engine, str(attack.attacker), how.precision, how.batch_size)

    def unusable(self, texts: list[str]) -> list[str]:
        """Return why each text is no prompt; empty if it is one."""
        empty = ["" if any(c.isalnum() for c in text) else "empty" for text in texts]
        judged = iter(self.referee.unusable([t for t, reason in zip(texts, empty, strict=True) if not reason]))
        return [reason or next(judged) for reason in empty]

    # --- the target

    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Return the target's replies to queries, in order; they may be of several models."""
        planned = [self._ask(query) for query in queries]
        new = {ask.id: ask for ask in planned if ask.id not in self._replies}
        by_model: dict[str, list[Ask]] = {}
        for ask in new.values():
            by_model.setdefault(ask.subject.model, []).append(ask)
        for model, missing in by_model.items():
            engine, waiting = self._engines().target(self.how, model), list[Reply]()
            for done in engine.generate([ask.request() for ask in missing]):
                row = reply_of(new[done.id], done)
                self._replies[row.id] = row
                waiting.append(row)
                if len(waiting) >= STORE:
                    append_rows(self.replies_file, waiting)
                    waiting.clear()
            append_rows(self.replies_file, waiting)
        return [self._replies[ask.id] for ask in planned]

    def _ask(self, query: Query) -> Ask:
        request, name = query.case.prompt, self.attack.name
        prompt = Prompt(
            id=row_id(request.id, name, query.text, query.history, query.attempt),
            source=request.source,
            text=query.text,
            category=request.category,
            goal=query.case.goal,
            attacked=Attacked(
                attack=name,
                request=request.id,
                attempt=query.attempt,
                variant=query.variant,
                history=query.history,
            ),
        )
        sheet = Sheet(self.replies_file, [prompt], self.sampling.model_copy(update={"samples": 1}))
        return asks(sheet, [query.case.subject], self.how)[0]

    # --- the judge

    def score(self, replies: Sequence[Reply]) -> list[Score]:
        """Return the scores of replies, in order. A reply that failed, or that has no answer, has none."""
        ids = {r.id: row_id("judge", self.referee.name, r.id, r.answer) for r in replies}
        answered = [r for r in replies if r.finish != "failed" and r.answer.strip()]
        new = list({r.id: r for r in answered if ids[r.id] not in self._calls}.values())
        if new:
            self._engines()
            scores = self.referee.score([r.goal or r.prompt for r in new], [r.answer for r in new])
            calls = [
                Call(id=ids[r.id], role="judge", score=s.value, refused=s.refused)
                for r, s in zip(new, scores, strict=True)
            ]
            self._calls |= {call.id: call for call in calls}
            self._store(calls)
        kept = [self._calls.get(ids[r.id]) for r in replies]
        return [Score(None) if call is None else Score(call.score, call.refused) for call in kept]

    def attempt(self, case: Case, number: int, **fields: object) -> Attempt:
        """Return the row of an attempt on a case."""
        s, request = case.subject, case.prompt.id
        place = (fields.get("stream", 0), fields.get("depth", 0), fields.get("variant", ""))
        return Attempt(
            id=row_id(self.attack.name, s.made_by, request, number, *place),
            arm=s.arm,
            seed=s.seed,
            checkpoint=s.checkpoint,
            request=request,
            goal=case.goal,
            attempt=number,
            **fields,  # type: ignore[arg-type]
        )

    def replies(self) -> dict[str, Reply]:
        """Return all replies of the target by id."""
        return self._replies

    def tell(self, depth: int, queries: int) -> None:
        """Tell people how far the attack is, unless everything is stored."""
        if self.engines is not None:
            say(f"  {self.attack.name}: round {depth + 1}, {queries} queries")

    def _engines(self) -> Engines:
        if self.engines is None:
            raise UserError(
                f"{self.folder} lacks a part of the attack {self.attack.name}: run `lowtax sample` on the study, or "
                "repeat `lowtax attack`."
            )
        return self.engines

    def _store(self, calls: list[Call]) -> None:
        if calls:
            append_rows(self.calls_file, calls)
        calls.clear()
