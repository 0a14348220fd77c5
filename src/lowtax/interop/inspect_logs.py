"""Logs of Inspect (inspect_ai) from stored replies, verdicts, answers and grades, for `inspect view` and data frames.

Format   one JSON file for every task or prompt set and checkpoint, built with the classes of `inspect_ai.log`.
Names    TIME_TASK_ID.json, as Inspect expects them; TIME is when the grades or verdicts were written, so that a second
         export gives the same files.
Sample   a reply to a question; the replies to one question are Inspect's epochs. The thought is reasoning content, the
         answer text. A failed reply has an error and no score.
Exam     the score `lowtax` is C, I, or N without a final answer; accuracy and stderr are computed by Inspect: the mean
         over a question's epochs, then over questions.
Verdict  a score by the name of its judge: 1 if the reply refuses, in full or in part, or is safe, else 0; the label is
         its answer. Verdicts that are unparsed or failed are no scores.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowtax.common.cards import FolderCard, SafetyCard, read_card
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.files import read_rows
from lowtax.common.records import Grade, Reply, Verdict, row_id
from lowtax.judges.own_replies import Columns
from lowtax.judges.rates import APART, SAFE, prompt_set
from lowtax.study import recipe, stored_recipe
from lowtax.study.api import stored_replies

try:
    from inspect_ai import log as logs
    from inspect_ai import model as models
    from inspect_ai.scorer import Score
except ImportError as error:
    raise UserError("Inspect logs need inspect_ai: install it with `pip install 'lowtax[inspect]'`.") from error

Json = dict[str, Any]
EXAM = "lowtax"  # the scorer of answers
SETS = ""  # the settings of prompt sets, among those of tasks
STOP = {"stop": "stop", "length": "max_tokens", "failed": "unknown"}
ACCURACY = ({"name": "inspect_ai/accuracy"}, {"name": "inspect_ai/stderr"})
MEAN = ({"name": "inspect_ai/mean"}, {"name": "inspect_ai/stderr"})


@dataclass(frozen=True)
class Part:
    """Replies to one task or prompt set, with their scores by reply id and scorer.

    settings: the task's, with its sampling; {} if they were not stored. metrics: of every scorer.
    """

    task: str
    created: datetime
    replies: list[Reply]
    scores: dict[str, dict[str, Score]]
    settings: Json
    metrics: Sequence[Json]
    targets: dict[str, str] = field(default_factory=dict)

    @property
    def exam(self) -> bool:
        """True for the answers to a task, False for replies with verdicts."""
        return self.metrics is ACCURACY

    @property
    def scorers(self) -> list[str]:
        """The names of all scorers; that of an exam has a name though all answers failed."""
        return [EXAM] if self.exam else list(dict.fromkeys(name for scores in self.scores.values() for name in scores))


def write(
    where: Path, out: Path, prompts: str | None = None, judge: str | None = None, on: str | None = None
) -> Iterator[str]:
    """Write a log for every task, prompt set and checkpoint of a study or folder, and yield a line for each.

    Args:
        where: a study, or a folder of `lowtax evaluate`, `sample` or `judge`.
        prompts: this prompt set alone, and no tasks.
        judge, on: the verdicts of this judge, or on this text, alone.

    Raises:
        UserError: there are no replies, some answers are not graded, or there is no such set, judge or text.
    """
    model, packages, settings = _origin(where)
    parts = [] if prompts else [_exam(file, where / "grades" / file.name, settings) for file in _answers(where)]
    parts += _prompt_sets(where, prompts, judge, on, settings)
    if not parts:
        raise UserError(
            f"{where} has no answers/*.jsonl and no replies: give the folder of a study, or the --out of `lowtax "
            "evaluate`, `sample` or `judge`."
        )
    for part in parts:
        groups: dict[tuple[Any, ...], list[Reply]] = {}
        for reply in part.replies:
            groups.setdefault((reply.arm, reply.seed, reply.checkpoint), []).append(reply)
        for replies in groups.values():
            log = _log(part, replies, model, packages)
            name = re.sub(r"[^\w.-]|_", "-", part.task)
            path = out / f"{part.created:%Y-%m-%dT%H-%M-%S}+00-00_{name}_{log.eval.task_id}.json"
            logs.write_eval_log(log, path)
            yield f"{path}: {_sentence(log, part, len(replies))}"


def _answers(where: Path) -> list[Path]:
    return sorted((where / "answers").glob("*.jsonl"))


def _origin(where: Path) -> tuple[str, Json, Json]:
    """Return the model, package versions, and settings by task and prompt set, as far as the folder has them."""
    card: Json = read_card(where / "card.json", FolderCard) if (where / "card.json").exists() else {}
    packages = card.get("versions", {})
    if (path := stored_recipe.stored_in(where)) is not None:
        study = recipe.load(path, trust=True)  # it is read only: no class of it is used
        tasks = {name: task.model_dump(mode="json") for name, task in study.tasks.items()}
        return study.model, packages, {SETS: {"sampling": study.sampling.model_dump(mode="json")}, **tasks}
    return (
        str(card.get("model", "unknown")),
        packages,
        {SETS: {"sampling": card.get("sampling")}, **card.get("tasks", {})},
    )


def _exam(answers: Path, grades: Path, settings: Json) -> Part:
    by_reply = {grade.reply_id: grade for grade in read_rows(grades, Grade).values()}
    replies = list(read_rows(answers, Reply).values())
    missing = sum(reply.finish != "failed" and reply.id not in by_reply for reply in replies)
    if missing or not replies:
        raise UserError(
            f"{answers} has {len(replies)} answers, {missing} of them not graded in {grades}: "
            "repeat `lowtax evaluate`, which grades stored answers."
        )
    # A file's name lacks the characters of the task's name that no file name may have; the grades have all of it.
    task = next((grade.task for grade in by_reply.values()), answers.stem)
    scores = {id_: {EXAM: _score(grade)} for id_, grade in by_reply.items()}
    targets = {id_: grade.gold for id_, grade in by_reply.items()}
    return Part(task, _written(grades, answers), replies, scores, settings.get(task, {}), ACCURACY, targets)


def _prompt_sets(where: Path, prompts: str | None, judge: str | None, on: str | None, settings: Json) -> list[Part]:
    """Return the replies of every prompt set with their verdicts."""
    verdicts: list[tuple[Path, Verdict]] = []
    by_set: dict[str, list[Reply]] = {}
    if stored_recipe.stored_in(where) is not None or (where / "replies").is_dir():
        for file in sorted((where / "replies").glob("*.jsonl")):
            by_set[file.stem] = list(read_rows(file, Reply).values())
        files = sorted((where / "verdicts").glob("*.jsonl"))
    else:
        for reply in _judged(where):
            by_set.setdefault(prompt_set(reply), []).append(reply)
        files = [where / "verdicts.jsonl"]
    verdicts = [(file, verdict) for file in files for verdict in read_rows(file, Verdict).values()]
    for name, wanted, known in (
        ("set of prompts", prompts, by_set),
        ("judge", judge, {v.judge for _, v in verdicts}),
        ("text with verdicts", on, {v.on for _, v in verdicts}),
    ):
        if wanted is not None and wanted not in known:
            raise UserError(f"{where} has no {name} {wanted!r}; {did_you_mean(wanted, map(str, known))}")
    chosen = [(f, v) for f, v in verdicts if judge in (None, v.judge) and on in (None, v.on)]
    several = len({v.on for _, v in chosen}) > 1
    scores: dict[str, dict[str, Score]] = {}
    for _, verdict in chosen:
        if verdict.label not in APART:
            name = f"{verdict.judge} on {verdict.on}" if several else verdict.judge
            scores.setdefault(verdict.reply_id, {})[name] = _of_verdict(verdict)
    times = [*(file for file, _ in chosen), *files, *(where / "replies").glob("*.jsonl"), where / "replies.jsonl"]
    return [
        Part(
            name,
            _written(*times, where),
            replies,
            {r.id: scores[r.id] for r in replies if r.id in scores},
            settings[SETS],
            MEAN,
        )
        for name, replies in by_set.items()
        if replies and prompts in (None, name)
    ]


def _judged(where: Path) -> list[Reply]:
    """Return the replies in a folder of `sample`, or those that the verdicts in a folder of `judge` are about."""
    if (where / "replies.jsonl").exists() or not (where / "safety.json").exists():
        return list(read_rows(where / "replies.jsonl", Reply).values())
    origin = read_card(where / "safety.json", SafetyCard).get("replies")
    if not origin:
        raise UserError(
            f"{where} has verdicts and no replies: judge again with --out {where}, or give the replies' folder."
        )
    replies, _ = stored_replies(Path(origin["file"]), Columns(**origin["columns"]))
    return replies


def _written(*paths: Path) -> datetime:
    """Return when the first of these files that exists was written."""
    path = next(path for path in paths if path.exists())
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _log(part: Part, replies: Sequence[Reply], model: str, packages: Json) -> logs.EvalLog:
    spec = _spec(part, replies, model, packages)
    scored = [scores for reply in replies if (scores := part.scores.get(reply.id))]
    counts = {
        "unfinished": sum(
            not (reply.closed and reply.finish == "stop") for reply in replies if reply.finish != "failed"
        ),
        "failed": sum(reply.finish == "failed" for reply in replies),
    }
    if part.exam:
        marks = [scores[EXAM] for scores in scored]
        counts["unfinished"] = sum(not (mark.metadata or {})["finished"] for mark in marks)
        counts["no_answer"] = sum((mark.metadata or {})["finished"] and mark.answer is None for mark in marks)
    usage = _usage(sum(reply.tokens for reply in replies))
    log = logs.EvalLog(
        status="success",
        eval=spec,
        plan=logs.EvalPlan(steps=[logs.EvalPlanStep(solver="generate")], config=spec.model_generate_config),
        results=logs.EvalResults(metadata=counts),
        stats=logs.EvalStats(started_at=spec.created, completed_at=spec.created, model_usage={spec.model: usage}),
        samples=[_sample(reply, part, spec.model) for reply in replies],
    )
    if part.scorers:
        logs.recompute_metrics(log)
    return log


def _spec(part: Part, replies: Sequence[Reply], model: str, packages: Json) -> logs.EvalSpec:
    first, name = replies[0], _name(model, replies[0])
    created, task_id = part.created.isoformat(timespec="seconds"), row_id(part.task, name)
    ids = list(dict.fromkeys(reply.prompt_id for reply in replies))
    sampling = part.settings.get("sampling") or {}
    return logs.EvalSpec(
        created=created,
        run_id=row_id(created),
        eval_id=row_id(task_id, part.created),
        task=part.task,
        task_id=task_id,
        task_args={key: value for key, value in part.settings.items() if key != "sampling" and value},
        dataset=logs.EvalDataset(name=first.source, samples=len(ids), sample_ids=ids),
        model=name,
        model_args={"model": model, "arm": first.arm, "seed": first.seed, "checkpoint": first.checkpoint},
        model_generate_config=models.GenerateConfig(
            max_tokens=sampling.get("max_new_tokens"),
            temperature=sampling.get("temperature"),
            top_p=sampling.get("top_p"),
            top_k=sampling.get("top_k") or None,
            system_message=sampling.get("system"),
        ),
        config=logs.EvalConfig(epochs=max(reply.sample for reply in replies) + 1, epochs_reducer=["mean"]),
        packages={key: value for key, value in packages.items() if isinstance(value, str)},
        scorers=[{"name": scorer, "metrics": list(part.metrics)} for scorer in part.scorers],
    )


def _name(model: str, reply: Reply) -> str:
    """Return the model and, for an adapter, its arm, seed and checkpoint as one name."""
    if reply.arm == "base":
        return model
    parts = [reply.arm, *([] if reply.seed is None else [f"seed-{reply.seed}"])]
    return f"{model}@{'/'.join([*parts, *([] if reply.checkpoint is None else [reply.checkpoint])])}"


def _sample(reply: Reply, part: Part, model: str) -> logs.EvalSample:
    thought = [models.ContentReasoning(reasoning=reply.thought)] if reply.thought else []
    answer = [models.ContentText(text=reply.answer)] if reply.answer else []
    output = models.ModelOutput.from_content(model, [*thought, *answer] or "", STOP[reply.finish])
    output.usage = _usage(reply.tokens)
    output.message.id = row_id(reply.id, "assistant")
    question = models.ChatMessageUser(id=row_id(reply.id, "user"), content=reply.prompt, source="input")
    failure = reply.error or "failed"
    columns = {"columns": reply.columns} if reply.columns else {}
    return logs.EvalSample(
        id=reply.prompt_id,
        epoch=reply.sample + 1,
        input=reply.prompt,
        target=part.targets.get(reply.id, ""),
        messages=[question, output.message],
        output=output,
        scores=part.scores.get(reply.id, {}),
        metadata={"reply_id": reply.id, "category": reply.category, "source": reply.source, **columns},
        model_usage={model: output.usage},
        error=logs.EvalError(message=failure, traceback=failure, traceback_ansi=failure)
        if reply.finish == "failed"
        else None,
    )


def _usage(tokens: int) -> models.ModelUsage:
    return models.ModelUsage(output_tokens=tokens, total_tokens=tokens)


def _score(grade: Grade) -> Score:
    return Score(
        value="C" if grade.correct else "N" if grade.extracted is None else "I",
        answer=grade.extracted,
        explanation=grade.rule,
        metadata={"finished": grade.finished, "checked": grade.checked},
    )


def _of_verdict(verdict: Verdict) -> Score:
    return Score(
        value=float(verdict.label in SAFE),
        answer=verdict.label,
        explanation=verdict.detail or verdict.category or verdict.label,
        metadata={"label": verdict.label, "score": verdict.score, "category": verdict.category, "on": verdict.on},
    )


def _sentence(log: logs.EvalLog, part: Part, n: int) -> str:
    values = {score.name: next(iter(score.metrics.values())).value for score in log.results.scores}
    rates = {name: value for name, value in values.items() if not math.isnan(value)}  # NaN if no reply has a score
    if part.exam:
        rate = f"accuracy {rates[EXAM]:.4f}" if rates else "none of them graded"
        return f"{log.eval.model}, {n} answers, {rate}"
    shares = ", ".join(f"{value:.4f} refused or safe by {name}" for name, value in rates.items())
    return f"{log.eval.model}, {n} replies to {part.task}, {shares or 'no verdicts'}"
