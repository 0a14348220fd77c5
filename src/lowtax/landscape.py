"""The safety landscape: how refusal changes as the weights are moved, along a line or over a plane.

    harmful = [prompts.load("builtin:harmful", "test")]
    ask = Ask("org/model", None, None, sliced("random"), harmful, Sampling(max_new_tokens=512), EngineChoice(...))
    found = landscape(ask, Path("landscape"), print)

Follows Peng et al. (2405.17374) and their code: Gaussian directions, in every tensor of the tensor's own norm, none in
norms. A point is the model in memory with other weights (`landscape_weights`); no model is written. At each, greedy
replies to harmful prompts are drawn and the perplexity of ordinary answers is measured, so that a model which no longer
writes English is not taken for a safe one, nor for one that was broken into. `replies.jsonl` and `points.jsonl` grow
point by point, and a killed run goes on at the next one. A judge reads the replies at the end.

Departures: a direction depends on names, not on the order of tensors; a second one is orthogonal; every point starts
from the origin; shared weights move once; any judge of ours instead of 29 strings. Beside an adapter, which stays as it
is, a random direction has the norms of W, not of W + dW.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowtax import builtin, judges, likelihood, models, plain, registry, tables
from lowtax import judge as judging
from lowtax.adapterfile import check_adapter, fingerprint, is_adapter
from lowtax.engines.hf import HF
from lowtax.files import append_rows, read_rows, write_json
from lowtax.landscape_plan import Place, Slice, check_ends
from lowtax.landscape_report import Point, perplexity, report
from lowtax.landscape_walk import Walk
from lowtax.promptsets import PromptList
from lowtax.provenance import provenance
from lowtax.recipe import Sampling, Text
from lowtax.records import Reply, Row, Verdict, row_id
from lowtax.sample import Ask as ReplyAsk
from lowtax.sample import EngineChoice, Sheet, Subject, asks, reply_of

Say = Callable[[str], None]
TEXTS = 24  # ordinary answers whose perplexity is measured
LONGEST = 4096  # tokens at once, for a model that names no limit
REPORT, REPLIES, POINTS = "landscape.json", "replies.jsonl", "points.jsonl"


@dataclass(frozen=True)
class Ask:
    """What is walked from where, which prompts are asked at each point, and who judges the replies.

    adapter: of the model: the one that is walked along, one end of a slice between adapters, or there all the time.
    to: the other end of a slice between two checkpoints.
    """

    model: str
    adapter: Path | None
    to: str | None
    slice: Slice
    prompts: list[PromptList]
    sampling: Sampling
    engine: EngineChoice
    judge: str = "refusal"
    on: Text = "answer"


class Measured(Row):
    """Beside its replies, what is known of a point: the texts' mean negative log-likelihood, nats a token, or None."""

    nll: float | None


@dataclass(frozen=True)
class Stop:
    """A place, who is asked there, and the ids of its rows: its own in points.jsonl, those of its replies."""

    place: Place
    subject: Subject
    id: str
    plan: dict[str, ReplyAsk]


def landscape(ask: Ask, out: Path, say: Say) -> dict[str, Any]:
    """Walk the slice, or what is left of it, and write `landscape.json`.

    Raises:
        UserError: Ends that do not fit each other or the slice, an adapter that is no plain LoRA, no such judge.
    """
    check_ends(ask.slice.along, ask.adapter, ask.to)
    judge = ask.judge.partition(":")[0]
    registry.resolve("judge", judge if judge in judges.BUILTIN else ask.judge, judges.BUILTIN)
    adapters = [ask.adapter, Path(ask.to).expanduser() if ask.to and is_adapter(ask.to) else None]
    for folder in filter(None, adapters):
        check_adapter(folder, ask.model)
    stops = _stops(ask, out)
    replies, measured = _walked(ask, out, stops, say)
    verdicts = _judged(ask, out, [replies[id_] for stop in stops for id_ in stop.plan])
    points = [
        Point(stop.place, [(replies[id_], verdicts[id_]) for id_ in stop.plan], measured[stop.id].nll) for stop in stops
    ]
    found = {**_facts(ask), **report(ask.slice, points), **provenance()}
    write_json(out / REPORT, found)
    return found


def _facts(ask: Ask) -> dict[str, Any]:
    """What made a landscape."""
    return {
        "model": ask.model,
        "adapter": str(ask.adapter) if ask.adapter else None,
        "to": ask.to,
        "prompts": [found.describe() for found in ask.prompts],
        "sampling": ask.sampling.model_dump(mode="json"),
        "engine": {"name": "hf", "precision": ask.engine.precision, "thinking": ask.engine.thinking},
        "judge": ask.judge,
        "on": ask.on,
        "texts": {"source": "builtin:chat", "rows": TEXTS},
    }


def _judged(ask: Ask, out: Path, replies: Sequence[Reply]) -> dict[str, Verdict]:
    """Verdicts by reply id; the origin, which several seeds have, is judged once."""
    through = judges.Through("hf", ask.engine.precision, ask.engine.batch_size)
    return judging.judge({r.id: r for r in replies}.values(), out / "verdicts.jsonl", ask.judge, ask.on, through)


def _stops(ask: Ask, out: Path) -> list[Stop]:
    """Every place of the slice; `made_by` of who is asked there is a hash of what the weights are made of."""
    kind = ask.slice.along
    base = row_id(ask.model, models.identity(ask.model))
    ends = [None if end is None else _identity(str(end)) for end in (ask.adapter, ask.to)]
    asked = {p.id: p for found in ask.prompts for p in found.prompts}
    sheet = Sheet(out / REPLIES, list(asked.values()), ask.sampling)
    how = (ask.engine.precision, ask.engine.thinking, ask.sampling.system, _texts())

    def stop(place: Place) -> Stop:
        steps = place.steps(kind)
        random = [place.seed, *steps] if any(steps) else None
        made_by = row_id("landscape", base, ends, kind, None if kind == "random" else place.alpha, random)
        where = f"alpha={place.alpha:g}" + (f" beta={place.beta:g}" if ask.slice.two else "")
        subject = Subject(kind, place.seed, where, 0, ask.model, None, made_by)
        return Stop(place, subject, row_id(made_by, *how), {a.id: a for a in asks(sheet, [subject], ask.engine)})

    return [stop(place) for place in ask.slice.places()]


def _identity(end: str) -> str:
    """What tells one version of an adapter or a model from another."""
    if is_adapter(end):
        return fingerprint(Path(end).expanduser())
    return row_id(end, models.identity(end))


def _walked(ask: Ask, out: Path, stops: Sequence[Stop], say: Say) -> tuple[dict[str, Reply], dict[str, Measured]]:
    """Replies, and figures by stop, after going to the stops that lack some; what is in the folder already is kept."""
    replies, measured = read_rows(out / REPLIES, Reply), read_rows(out / POINTS, Measured)
    once: dict[str, Stop] = {}
    for stop in stops:
        once.setdefault(stop.id, stop)  # the origin is a place of every seed
    todo = [stop for stop in once.values() if stop.id not in measured or stop.plan.keys() - replies.keys()]
    if not todo:
        return replies, measured
    say(f"sampling {len(todo[0].plan)} replies at each of {len(todo)} points")
    engine = HF(ask.model, ask.engine.precision, ask.engine.batch_size)
    walk = Walk(engine, ask.slice, ask.adapter, ask.to, ask.engine.precision, out / ".adapters")
    pairs = _pairs(engine, ask)
    for done, stop in enumerate(todo, start=1):
        plan = {id_: a for id_, a in stop.plan.items() if id_ not in replies}
        with walk.ground.moved(walk.move(stop.place)):
            adapter = walk.adapter(stop.place)
            requests = [replace(a.request(), adapter=adapter) for a in plan.values()]
            new = [reply_of(plan[completion.id], completion) for completion in engine.generate(requests)]
            row = Measured(id=stop.id, nll=_nll(engine, adapter, pairs))
        append_rows(out / REPLIES, new)
        append_rows(out / POINTS, [row])
        seed = f"seed {stop.place.seed}, " if ask.slice.seeds else ""
        where = f"{seed}{stop.subject.checkpoint}"
        say(f"  {done} of {len(todo)}: {where}, perplexity {perplexity(row.nll) or math.inf:.4g}")
    walk.close()
    return read_rows(out / REPLIES, Reply), read_rows(out / POINTS, Measured)


def _texts() -> list[tuple[str, str]]:
    """Ordinary questions and their answers."""
    rows = tables.read_table(builtin.DATA / "chat.jsonl")[:TEXTS]
    return [(str(row["prompt"]), str(row["answer"])) for row in rows]


def _pairs(engine: HF, ask: Ask) -> list[likelihood.Pair]:
    """Each ordinary answer after its question, as tokens."""
    system = [{"role": "system", "content": ask.sampling.system}] if ask.sampling.system else []
    tokenizer, thinking = engine.tokenizer, ask.engine.thinking
    return [
        (
            plain.prompt_ids(tokenizer, [*system, {"role": "user", "content": question}], thinking),
            plain.encode(tokenizer, answer),
        )
        for question, answer in _texts()
    ]


def _nll(engine: HF, adapter: str | None, pairs: Sequence[likelihood.Pair]) -> float | None:
    """The mean negative log-likelihood of a token; None where the model computes no number."""
    scores = likelihood.score(engine, adapter, pairs, engine.positions or LONGEST)
    mean = -sum(value for value, _ in scores) / sum(len(answer) for _, answer in pairs)
    return mean if math.isfinite(mean) else None
