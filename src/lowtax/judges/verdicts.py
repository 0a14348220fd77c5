"""Turn stored replies into verdicts: the judged part of each reply goes to a judge, and its opinion is stored."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lowtax.common.files import append_rows, read_rows
from lowtax.common.records import Reply, Verdict, row_id
from lowtax.engines.settings import EngineSettings
from lowtax.judges.base import Opinion, Text, load, refuse_contexts

DETAIL = 300  # characters of the judge's own text that are stored
CHUNK = 512  # texts that a judge gets at once, after which their verdicts are on disk


def judge_replies(
    replies: Iterable[Reply], path: Path, name: str, on: Text, engine: EngineSettings | None = None
) -> dict[str, Verdict]:
    """Return verdicts by reply id. Those in `path` are reused, new ones are appended, and failed ones are repeated.

    A reply that was never produced is `failed`. One without the judged text is `unfinished` if its thought has no end,
    else `unparsed`. None of these reaches the judge. If a prompt wraps a plain request, the judge sees the request.

    Raises:
        UserError: A prompt has a context, and the judge cannot be shown one.
    """
    replies = list(replies)
    verdicts = {id_: v for id_, v in read_rows(path, Verdict).items() if v.label != "failed"}
    ids = {r.id: row_id(r.id, r.text, r.finish, name, on) for r in replies}
    new = [r for r in replies if ids[r.id] not in verdicts]
    refuse_contexts(name, ((r.prompt, r.goal) for r in new))
    texts = {r.id: text for r in new if r.finish != "failed" and (text := _text(r, on)).strip()}
    model = load(name, engine) if texts else None
    for start in range(0, len(new), CHUNK):
        chunk = new[start : start + CHUNK]
        judged = [r for r in chunk if r.id in texts]
        opinions = dict[str, Opinion]()
        if model and judged:
            listed = model.judge([r.goal or r.prompt for r in judged], [texts[r.id] for r in judged])
            opinions = dict(zip([r.id for r in judged], listed, strict=True))
        rows = [
            Verdict(id=ids[r.id], reply_id=r.id, judge=name, on=on, **_fields(r, opinions.get(r.id))) for r in chunk
        ]
        append_rows(path, rows)
        verdicts |= {v.id: v for v in rows}
    return {r.id: verdicts[ids[r.id]] for r in replies}


def _text(reply: Reply, on: Text) -> str:
    """Return the judged text; `both` is the reply exactly as it was written, with the marks of its thought."""
    if on == "both":
        return reply.text if reply.thought or reply.answer else ""
    return reply.answer if on == "answer" else reply.thought


def _fields(reply: Reply, opinion: Opinion | None) -> dict[str, Any]:
    if opinion is None:
        label = "unparsed" if reply.closed else "unfinished"
        return {"label": "failed" if reply.finish == "failed" else label, "error": reply.error}
    return {
        "label": opinion.label,
        "score": opinion.score,
        "category": opinion.category,
        "detail": opinion.detail[:DETAIL],
        "error": opinion.detail if opinion.label == "failed" else None,
    }
