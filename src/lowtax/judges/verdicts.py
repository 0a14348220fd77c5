"""Turn stored replies into verdicts: the judged part of each reply goes to a judge, and its opinion is stored."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lowtax.common.files import append_rows, read_rows, write_text
from lowtax.common.log import counted, say
from lowtax.common.records import Reply, Verdict, require_texts, row_id
from lowtax.common.tables import passage
from lowtax.engines.base import well_formed
from lowtax.engines.settings import EngineSettings
from lowtax.judges import base
from lowtax.judges.base import Judge, Opinion, Reader, Text, load, refuse_contexts

T = TypeVar("T")

DETAIL = 300  # characters of the judge's own text that are stored
CHUNK = 512  # texts that a judge gets at once, after which their verdicts are on disk
CHUNK_RULES = 128  # the same for a judge that is no language model, which does not say how far it is
READ = 8192  # texts that a judge gets at once if it tells each opinion; many, so that its batches are seldom emptied
STORE_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Reading:
    """Replies for a judge by its name, and the text of each that it reads.

    engine: of a judge that is a model.
    ids_of_users: see `judge_replies`.
    """

    replies: Sequence[Reply]
    judge: str
    on: Text
    engine: EngineSettings | None = None
    ids_of_users: bool = False

    def texts(self) -> dict[str, str]:
        """Return the texts that reach the judge, by reply id."""
        produced = (reply for reply in self.replies if reply.finish != "failed")
        return {reply.id: text for reply in produced if (text := judged_text(reply, self.on)).strip()}


Keep = Callable[[Sequence[Verdict]], None]  # store verdicts
Read = Callable[[Reading, Keep], None]  # judge all replies, and store the verdicts as they come


def read_here(reading: Reading, keep: Keep, load_judge: Callable[[], Judge] | None = None) -> None:
    """Judge replies in this process; verdicts are stored a second after they were made.

    load_judge: return the judge that the name means, for callers that keep it loaded.
    """
    texts, ids = reading.texts(), verdict_ids(reading.replies, reading.judge, reading.on, reading.ids_of_users)
    model = (load_judge() if load_judge else load(reading.judge, reading.engine)) if texts else None
    how = {"judge": reading.judge, "on": reading.on, "version": base.version(reading.judge)}
    rows = list[Verdict]()
    written = time.monotonic()
    try:
        for reply, opinion in counted(_opinions(reading.replies, texts, model), len(ids), "replies judged"):
            rows.append(Verdict(id=ids[reply.id], reply_id=reply.id, **how, **_fields(reply, opinion)))
            if time.monotonic() - written > STORE_EVERY:
                keep(rows)
                rows, written = [], time.monotonic()
    finally:
        keep(rows)


def judge_replies(
    replies: Iterable[Reply],
    path: Path,
    name: str,
    on: Text,
    engine: EngineSettings | None = None,
    ids_of_users: bool = False,
    again: bool = False,
    read: Read = read_here,
) -> dict[str, Verdict]:
    """Return verdicts by reply id. Those in `path` are reused, new ones are appended, and failed ones are repeated.

    Verdicts of another version of a judge of ours are replaced.

    A reply that was never produced is `failed`. One without the judged text is `unfinished` if its thought has no end,
    else `unparsed`. None of these reaches the judge. If a prompt wraps a plain request, the judge sees the request.

    ids_of_users: the ids of the replies are not hashes of what made them, so that the request decides, too.
    again: judge all replies. A stored verdict is replaced when there is a new one; those of other judges and on other
        texts stay.
    read: judge the replies without a verdict, in this process or elsewhere.

    Raises:
        UserError: A prompt has a context, and the judge cannot be shown one; or replies are kept as hashes.
    """
    replies = list(replies)
    stored = {id_: v for id_, v in read_rows(path, Verdict).items() if v.label != "failed"}
    verdicts = {} if again else dict(stored)
    version = base.version(name)
    ids = verdict_ids(replies, name, on, ids_of_users)
    new = [r for r in replies if ids[r.id] not in verdicts]
    require_texts(new, str(path))
    refuse_contexts(name, ((r.prompt, r.goal) for r in new))
    reading = Reading(new, name, on, engine, ids_of_users)
    if texts := len(reading.texts()):
        say(f"judging {texts:,} replies with {name}, on the {on}")
    if new:
        read(reading, lambda rows: _store(path, rows, stored, verdicts))
    older = any((v.judge, v.on) == (name, on) and v.version != version and v.reply_id in ids for v in stored.values())
    if again or older:
        _drop_replaced(path, name, on, ids, None if again else version)
    return {r.id: verdicts[ids[r.id]] for r in replies}


def verdict_ids(replies: Iterable[Reply], name: str, on: Text, ids_of_users: bool = False) -> dict[str, str]:
    """Return the ids of a judge's verdicts by reply id (see `judge_replies`)."""
    version = base.version(name)
    of_ours = [f"version {version}"] if version else []
    return {
        r.id: row_id(r.id, r.text, r.finish, name, on, *([r.prompt] if ids_of_users else []), *of_ours) for r in replies
    }


def _opinions(
    replies: Sequence[Reply], texts: Mapping[str, str], judge: Judge | None
) -> Iterator[tuple[Reply, Opinion | None]]:
    """Yield all replies with their opinions, as soon as the judge has them; None for those without a text."""
    size = READ if isinstance(judge, Reader) else _size(judge)
    for chunk in (replies[start : start + size] for start in range(0, len(replies), size)):
        judged = [r for r in chunk if r.id in texts]
        if not (judge and judged):
            yield from ((r, None) for r in chunk)
            continue
        pairs = [r.goal or r.prompt for r in judged], [texts[r.id] for r in judged]
        if isinstance(judge, Reader):
            yield from ((r, None) for r in chunk if r.id not in texts)
            yield from ((judged[number], opinion) for number, opinion in judge.opinions(*pairs))
        else:
            opinions = dict(zip([r.id for r in judged], judge.judge(*pairs), strict=True))
            yield from ((r, opinions.get(r.id)) for r in chunk)


def _store(path: Path, rows: Sequence[Verdict], stored: Mapping[str, Verdict], verdicts: dict[str, Verdict]) -> None:
    """Append new rows to a file and to the verdicts. A failed one does not replace a stored one."""
    if new := [v for v in rows if v.label != "failed" or v.id not in stored]:
        append_rows(path, new)
    verdicts |= {v.id: v for v in rows}


def _drop_replaced(path: Path, name: str, on: Text, ids: Mapping[str, str], version: str | None) -> None:
    """Drop earlier verdicts of a judge on a text of these replies. `ids` has the present one of each by reply id.

    version: keep other verdicts of this version.
    """
    rows = [
        v
        for v in read_rows(path, Verdict).values()
        if (v.judge, v.on) != (name, on) or ids.get(v.reply_id, v.id) == v.id or v.version == version
    ]
    if path.exists():
        write_text(path, "".join(v.model_dump_json() + "\n" for v in rows))


def chunks(items: Sequence[T], judge: Judge | None) -> Iterator[Sequence[T]]:
    """Yield as many items at once as a judge gets, and say how many are done."""
    size = _size(judge)
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return counted(parts, len(items), "replies judged", size)


def _size(judge: Judge | None) -> int:
    return CHUNK if getattr(judge, "is_model", False) else min(CHUNK, CHUNK_RULES)


def judged_text(reply: Reply, on: Text) -> str:
    """Return the judged text; `both` is the reply exactly as it was written, with the marks of its thought."""
    if on == "both":
        return reply.text if reply.thought or reply.answer else ""
    return reply.answer if on == "answer" else reply.thought


def excerpts(replies: Sequence[Reply], verdicts: Mapping[str, Verdict], n: int, seed: int = 0) -> str:
    """Return n replies beside their verdicts as Markdown, drawn by seed, in their order."""
    with_verdict = [reply for reply in replies if reply.id in verdicts]
    drawn = sorted(random.Random(seed).sample(range(len(with_verdict)), min(n, len(with_verdict))))
    parts = []
    for place in drawn:
        reply = with_verdict[place]
        verdict = verdicts[reply.id]
        score = "" if verdict.score is None else f", score {verdict.score:.3f}"
        who = " ".join(part for part in (reply.arm, reply.checkpoint, reply.category) if part)
        texts = {"Request": reply.goal or reply.prompt, "Text": judged_text(reply, verdict.on)}
        wrote = {"The judge wrote": verdict.error or verdict.detail}
        parts.append(passage(f"{reply.id}, {who}: {verdict.label}{score}", texts | wrote))
    return "\n".join(parts)


def _fields(reply: Reply, opinion: Opinion | None) -> dict[str, Any]:
    if opinion is None:
        label = "unparsed" if reply.closed else "unfinished"
        return {"label": "failed" if reply.finish == "failed" else label, "error": reply.error}
    detail = well_formed(opinion.detail)
    return {
        "label": opinion.label,
        "score": opinion.score,
        "category": opinion.category,
        "detail": detail[:DETAIL],
        "error": detail if opinion.label == "failed" else None,
    }
