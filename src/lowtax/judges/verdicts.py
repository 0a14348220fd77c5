"""Replies x judge -> verdicts: does the answer refuse? The thought is removed first unless asked for."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lowtax import judges
from lowtax.files import append_rows, read_rows
from lowtax.recipe import Text as Judged
from lowtax.records import Reply, Verdict, row_id

DETAIL = 300  # characters of what a judge wrote that are kept
CHUNK = 512  # texts that a judge gets at once; their verdicts are then on disk


def judge(
    replies: Iterable[Reply], path: Path, name: str, judged: Judged, through: judges.Through | None = None
) -> dict[str, Verdict]:
    """Verdicts by reply id; those in `path` are kept, new ones appended, failed ones made again.

    A reply whose text was never produced is `failed`; one without the judged text is `unfinished` where its thought
    never ended, else `unparsed`. None of them goes to the judge, which sees the plain goal of a prompt that wraps one.
    """
    known = {row_id_: v for row_id_, v in read_rows(path, Verdict).items() if v.label != "failed"}
    replies = list(replies)
    ids = {r.id: row_id(r.id, r.text, r.finish, name, judged) for r in replies}
    new = [r for r in replies if ids[r.id] not in known]
    texts = {r.id: _text(r, judged) for r in new}
    asked = {r.id for r in new if r.finish != "failed" and texts[r.id].strip()}
    who = judges.load(name, through) if asked else None
    for start in range(0, len(new), CHUNK):
        part = new[start : start + CHUNK]
        given = [r for r in part if r.id in asked]
        opinions = who.judge([r.goal or r.prompt for r in given], [texts[r.id] for r in given]) if who and given else []
        found = dict(zip([r.id for r in given], opinions, strict=True))
        made = [
            Verdict(id=ids[r.id], reply_id=r.id, judge=name, on=judged, **_verdict(r, found.get(r.id))) for r in part
        ]
        append_rows(path, made)
        known |= {v.id: v for v in made}
    return {r.id: known[ids[r.id]] for r in replies}


def _text(reply: Reply, judged: Judged) -> str:
    if judged == "both":
        return f"{reply.thought}\n\n{reply.answer}".strip()
    return reply.answer if judged == "answer" else reply.thought


def _verdict(reply: Reply, opinion: judges.Opinion | None) -> dict[str, Any]:
    if opinion is None:
        written = "unparsed" if reply.closed else "unfinished"
        return {"label": "failed" if reply.finish == "failed" else written, "error": reply.error}
    return {
        "label": opinion.label,
        "score": opinion.score,
        "category": opinion.category,
        "detail": opinion.detail[:DETAIL],
        "error": opinion.detail if opinion.label == "failed" else None,
    }
