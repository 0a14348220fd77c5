"""The safety landscape: how refusal changes as the weights move, along a line or over a plane.

    harmful = [prompts.load("builtin:harmful", "test")]
    ask = Ask("org/model", None, None, sliced("random"), harmful, Sampling(max_new_tokens=512), EngineSettings(...))
    result = landscape(ask, Path("landscape"), print)

Source: Peng et al., arXiv:2405.17374, and their code: Gaussian directions, scaled to the norm of each tensor; the
weights of normalisation layers do not move. A point is the model in memory with other weights (`landscape_weights`); no
model is written. At each point greedy replies to harmful prompts are drawn and the perplexity of ordinary answers is
measured, so that a model that no longer writes English counts neither as safe nor as broken into. `replies.jsonl` and
`points.jsonl` grow point by point, and a killed run resumes at the next one. A judge reads the replies at the end.

Departures: a direction depends on names, not on the order of tensors; a second one is orthogonal; every point starts
from the origin; shared weights move once; any judge of ours replaces the 29 strings. With a fixed adapter, a random
direction has the norms of W, not of W + dW.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowtax.analysis.landscape.moves import Walk
from lowtax.analysis.landscape.report import Point, perplexity, report
from lowtax.analysis.landscape.slices import Place, Slice, check_ends
from lowtax.common.borders import expanded
from lowtax.common.files import append_rows, beside, read_rows, write_json
from lowtax.common.log import say
from lowtax.common.names import refuse_foreign
from lowtax.common.provenance import provenance
from lowtax.common.records import Reply, Row, Subject, Verdict, row_id
from lowtax.data import readers, shipped, special_tokens
from lowtax.data.prompt_sets import PromptList
from lowtax.engines.hf import likelihood
from lowtax.engines.hf.engine import HF
from lowtax.engines.sampling import Ask as ReplyAsk
from lowtax.engines.sampling import Sheet, asks, reply_of
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.judges import base as judges
from lowtax.judges.base import Text
from lowtax.judges.verdicts import judge_replies
from lowtax.models import quantised
from lowtax.models.adapters import check_adapter, check_base, fingerprint, is_adapter
from lowtax.models.fingerprint import BEGUN, base_in, identity, record_base

TEXTS = 24  # ordinary answers, for the perplexity
LONGEST = 4096  # tokens at once, for a model without a stated limit
REPORT, REPLIES, POINTS = "landscape.json", "replies.jsonl", "points.jsonl"


@dataclass(frozen=True)
class Ask:
    """A request for a landscape: the model and the slice, the prompts at each point, and the judge.

    adapter: an adapter of the model: the slice follows it, it is one end of a slice between two, or it is fixed.
    to: the other end of a slice between two checkpoints. third: the third point of a plane between checkpoints.
    """

    model: str
    adapter: Path | None
    to: str | None
    slice: Slice
    prompts: list[PromptList]
    sampling: Sampling
    engine: EngineSettings
    judge: str = "refusal"
    on: Text = "answer"
    third: str | None = None


class Measured(Row):
    """The stored figure of a point: the texts' mean negative log-likelihood in nats a token, or None."""

    nll: float | None


@dataclass(frozen=True)
class Stop:
    """A place with its subject: `id` is its row in points.jsonl, `plan` has its replies by id."""

    place: Place
    subject: Subject
    id: str
    plan: dict[str, ReplyAsk]


def landscape(ask: Ask, out: Path) -> dict[str, Any]:
    """Measure the points of a slice that are missing, and write and return `landscape.json`.

    Raises:
        UserError: The ends do not fit each other or the slice, an adapter is no plain LoRA, or there is no such judge.
    """
    check_ends(ask.slice.along, ask.adapter, ask.to, ask.third, ask.slice.two)
    judges.check(ask.judge)
    adapters = [ask.adapter, *(expanded(end) for end in (ask.to, ask.third) if end and is_adapter(end))]
    for folder in filter(None, adapters):
        check_adapter(folder)
        if not ask.engine.base_is_the_same:
            check_base(folder, ask.model)
    refuse_foreign(out, BEGUN, (REPORT, "landscape.png"))
    record_base(out, base_in(out, ask.model, same=ask.engine.base_is_the_same))
    stops = _stops(ask, out)
    replies, measured = _walked(ask, out, stops)
    verdicts = _judged(ask, out, [replies[id_] for stop in stops for id_ in stop.plan])
    points = [
        Point(stop.place, [(replies[id_], verdicts[id_]) for id_ in stop.plan], measured[stop.id].nll) for stop in stops
    ]
    result = {**_facts(ask), **report(ask.slice, points), **provenance()}
    write_json(out / REPORT, result)
    return result


def _facts(ask: Ask) -> dict[str, Any]:
    """Return how a landscape was made."""
    return {
        "model": ask.model,
        "adapter": str(ask.adapter) if ask.adapter else None,
        "to": ask.to,
        **({"third": ask.third} if ask.third else {}),
        "prompts": [set_.describe() for set_ in ask.prompts],
        "sampling": ask.sampling.model_dump(mode="json"),
        "engine": {
            "name": "hf",
            "precision": ask.engine.precision,
            "thinking": ask.engine.thinking,
            **({"chat_template_kwargs": dict(variables)} if (variables := ask.engine.chat_template_kwargs) else {}),
        },
        "judge": ask.judge,
        "on": ask.on,
        "texts": {"source": "builtin:chat", "rows": TEXTS},
    }


def _judged(ask: Ask, out: Path, replies: Sequence[Reply]) -> dict[str, Verdict]:
    """Return verdicts by reply id. The origin, which several seeds share, is judged once."""
    settings = EngineSettings("hf", ask.engine.precision, ask.engine.batch_size)
    return judge_replies({r.id: r for r in replies}.values(), out / "verdicts.jsonl", ask.judge, ask.on, settings)


def _stops(ask: Ask, out: Path) -> list[Stop]:
    """Return every place of the slice. `made_by` of its subject is a hash of what the weights are made of."""
    kind = ask.slice.along
    base = base_in(out, ask.model, same=ask.engine.base_is_the_same).made_by
    ends = [None if end is None else _identity(str(end)) for end in (ask.adapter, ask.to)]
    ends += [_identity(ask.third)] if ask.third else []
    prompts = {p.id: p for set_ in ask.prompts for p in set_.prompts}
    sheet = Sheet(out / REPLIES, list(prompts.values()), ask.sampling)
    how: tuple[Any, ...] = (ask.engine.precision, ask.engine.thinking, ask.sampling.system, _texts())
    if ask.engine.chat_template_kwargs:
        how += (dict(ask.engine.chat_template_kwargs),)

    def stop(place: Place) -> Stop:
        steps = place.steps(kind)
        random = [place.seed, *steps] if any(steps) else None
        at = None if kind == "random" else [place.alpha, place.beta] if ask.third else place.alpha
        made_by = row_id("landscape", base, ends, kind, at, random)
        where = f"alpha={place.alpha:g}" + (f" beta={place.beta:g}" if ask.slice.two else "")
        subject = Subject(kind, place.seed, where, 0, ask.model, None, made_by)
        return Stop(place, subject, row_id(made_by, *how), {a.id: a for a in asks(sheet, [subject], ask.engine)})

    return [stop(place) for place in ask.slice.places()]


def _identity(end: str) -> str:
    """Return a text that differs between versions of an adapter or a model."""
    if is_adapter(end):
        return fingerprint(expanded(end))
    return row_id(end, identity(end))


def _walked(ask: Ask, out: Path, stops: Sequence[Stop]) -> tuple[dict[str, Reply], dict[str, Measured]]:
    """Visit the stops whose replies or figures are missing; return all replies, and the figures of every stop."""
    replies, measured = read_rows(out / REPLIES, Reply), read_rows(out / POINTS, Measured)
    once: dict[str, Stop] = {}
    for stop in stops:
        once.setdefault(stop.id, stop)  # every seed has the origin
    todo = [stop for stop in once.values() if stop.id not in measured or stop.plan.keys() - replies.keys()]
    if not todo:
        return replies, measured
    say(f"sampling {len(todo[0].plan)} replies at each of {len(todo)} points")
    quantised.refuse(ask.engine.precision, "A walk through weights", "set precision to bfloat16")
    engine = HF(ask.model, ask.engine.precision, ask.engine.batch_size)
    with beside(out / "adapters") as scratch:
        walk = Walk(engine, ask.slice, ask.adapter, ask.to, ask.engine.precision, scratch, ask.third)
        _visit(ask, out, walk, todo, replies)
    return read_rows(out / REPLIES, Reply), read_rows(out / POINTS, Measured)


def _visit(ask: Ask, out: Path, walk: Walk, todo: Sequence[Stop], replies: Mapping[str, Reply]) -> None:
    """Draw the missing replies at every stop, and measure the model there."""
    engine, pairs = walk.engine, _pairs(walk.engine, ask)
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


def _texts() -> list[tuple[str, str]]:
    """Return ordinary questions with their answers."""
    rows = readers.read_table(shipped.FOLDER / "chat.jsonl")[:TEXTS]
    return [(str(row["prompt"]), str(row["answer"])) for row in rows]


def _pairs(engine: HF, ask: Ask) -> list[likelihood.Pair]:
    """Return each ordinary question and its answer as tokens."""
    system = [{"role": "system", "content": ask.sampling.system}] if ask.sampling.system else []
    tokenizer, thinking, variables = engine.tokenizer, ask.engine.thinking, ask.engine.chat_template_kwargs
    return [
        (
            special_tokens.prompt_ids(
                tokenizer, [*system, {"role": "user", "content": question}], thinking, variables=variables
            ),
            special_tokens.encode(tokenizer, answer),
        )
        for question, answer in _texts()
    ]


def _nll(engine: HF, adapter: str | None, pairs: Sequence[likelihood.Pair]) -> float | None:
    """Return the mean negative log-likelihood of a token; None if it is not finite."""
    scores = likelihood.score(engine, adapter, pairs, engine.positions or LONGEST)
    mean = -sum(value for value, _ in scores) / sum(len(answer) for _, answer in pairs)
    return mean if math.isfinite(mean) else None
