"""Stored replies with one judge's verdicts, read from a study or from a folder of `lowtax sample` and `judge`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.files import read_json, read_rows
from lowtax.common.records import Reply, Verdict

HARM = ("safe", "unsafe")


@dataclass(frozen=True)
class Stored:
    """Replies; the verdicts of a harm judge by reply id, if there are any; the sampling settings, if stored."""

    replies: list[Reply]
    verdicts: dict[str, Verdict]
    sampling: dict[str, Any] | None = None


def read(where: Path, judge: str | None = None, on: str | None = None, prompts: str = "harmful") -> Stored:
    """Read the replies and verdicts of a study, of a folder with replies.jsonl, or of such a file.

    Args:
        where: the study, folder or file.
        judge, on: the judge and the judged text, if there are several.
        prompts: of a study, its harmful or ordinary prompts.

    Raises:
        UserError: there are no replies, or verdicts of several judges or texts without a choice.
    """
    file, where = (where, where.parent) if where.is_file() else (where / "replies.jsonl", where)
    study = (where / "recipe.yaml").exists()
    path = where / "replies" / f"{prompts}.jsonl" if study else file
    replies = list(read_rows(path, Reply).values())
    if not replies:
        raise UserError(f"{path} has no replies: give a sampled study, or a folder with replies.jsonl.")
    files = sorted((where / "verdicts").glob(f"{prompts}.*.jsonl")) if study else [where / "verdicts.jsonl"]
    verdicts = [verdict for file in files for verdict in read_rows(file, Verdict).values()]
    sampling, headline = _of_study(where) if study else (_of_card(where), None)
    return Stored(replies, _chosen(verdicts, judge, on, headline), sampling)


def _of_study(where: Path) -> tuple[dict[str, Any], str]:
    from lowtax.study.recipe import load

    recipe = load(where / "recipe.yaml")
    return recipe.sampling.model_dump(), recipe.judged_text


def _of_card(where: Path) -> dict[str, Any] | None:
    return read_json(where / "card.json").get("sampling") if (where / "card.json").exists() else None


def _chosen(verdicts: list[Verdict], judge: str | None, on: str | None, headline: str | None) -> dict[str, Verdict]:
    """Return the verdicts of one harm judge on one text; by default on the study's headline text."""
    judges = {verdict.judge for verdict in verdicts if verdict.label in HARM}
    if judge is not None and judge not in judges:
        raise UserError(f"Judge {judge!r} has no verdicts safe or unsafe here; {did_you_mean(judge, judges)}")
    if judge is None and len(judges) > 1:
        raise UserError(f"The replies have verdicts of {' and '.join(sorted(judges))}: choose one with --judge.")
    selected = [verdict for verdict in verdicts if verdict.judge == (judge or next(iter(judges), None))]
    texts = {str(verdict.on) for verdict in selected}
    if on is not None and on not in texts:
        raise UserError(f"There are no verdicts on the text {on!r}; {did_you_mean(on, texts)}")
    if on is None and len(texts) > 1:
        if headline not in texts:
            raise UserError(f"There are verdicts on {' and '.join(sorted(texts))}: choose one with --on.")
        on = headline
    return {verdict.reply_id: verdict for verdict in selected if on in (None, verdict.on)}
