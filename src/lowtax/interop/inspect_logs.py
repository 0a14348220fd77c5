"""Logs of Inspect (inspect_ai) from stored answers and their grades, for `inspect view` and Inspect's data frames.

Format   one JSON file for every task and checkpoint, built with the classes of `inspect_ai.log`.
Names    TIME_TASK_ID.json, as Inspect expects them; TIME is when the grades were written, so that a second export
         gives the same files.
Sample   a reply to a question; the replies to one question are Inspect's epochs. The thought is reasoning content, the
         answer text. The score `lowtax` is C, I, or N without a final answer; a failed reply has an error and no score.
Results  accuracy and stderr, computed by Inspect: the mean over a question's epochs, then over questions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.files import read_json, read_rows
from lowtax.common.records import Grade, Reply, row_id
from lowtax.study import recipe

try:
    from inspect_ai import log as logs
    from inspect_ai import model as models
    from inspect_ai.scorer import Score
except ImportError as error:
    raise UserError("Inspect logs need inspect_ai: install it with `pip install 'lowtax[inspect]'`.") from error

Json = dict[str, Any]
STOP = {"stop": "stop", "length": "max_tokens", "failed": "unknown"}
METRICS = ({"name": "inspect_ai/accuracy"}, {"name": "inspect_ai/stderr"})


@dataclass(frozen=True)
class TaskAnswers:
    """The answers to one task and their grades by reply id; `settings` are the task's, {} if they were not stored."""

    task: str
    created: datetime
    replies: list[Reply]
    grades: dict[str, Grade]
    settings: Json


def write(where: Path, out: Path) -> Iterator[str]:
    """Write a log for every task and checkpoint of a study, or of a folder of `lowtax evaluate`; yield a line for each.

    Raises:
        UserError: there are no answers, or some are not graded.
    """
    model, packages, settings = _origin(where)
    files = sorted((where / "answers").glob("*.jsonl"))
    if not files:
        raise UserError(f"{where} has no answers/*.jsonl: give the folder of a study or of `lowtax evaluate --out`.")
    for file in files:
        answers = _read(file, where / "grades" / file.name, settings)
        groups: dict[tuple[Any, ...], list[Reply]] = {}
        for reply in answers.replies:
            groups.setdefault((reply.arm, reply.seed, reply.checkpoint), []).append(reply)
        for replies in groups.values():
            log = _log(answers, replies, model, packages)
            task = file.stem.replace("_", "-")
            path = out / f"{answers.created:%Y-%m-%dT%H-%M-%S}+00-00_{task}_{log.eval.task_id}.json"
            logs.write_eval_log(log, path)
            yield f"{path}: {_sentence(log, len(replies))}"


def _origin(where: Path) -> tuple[str, Json, Json]:
    """Return the model, package versions, and the settings of each task by name, as far as the folder has them."""
    card: Json = read_json(where / "card.json") if (where / "card.json").exists() else {}
    packages = card.get("versions", {})
    if (where / "recipe.yaml").exists():
        study = recipe.load(where / "recipe.yaml")
        return study.model, packages, {name: task.model_dump(mode="json") for name, task in study.tasks.items()}
    return str(card.get("model", "unknown")), packages, card.get("tasks", {})


def _read(answers: Path, grades: Path, settings: Json) -> TaskAnswers:
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
    created = datetime.fromtimestamp((grades if grades.exists() else answers).stat().st_mtime, UTC)
    return TaskAnswers(task, created, replies, by_reply, settings.get(task, {}))


def _log(answers: TaskAnswers, replies: Sequence[Reply], model: str, packages: Json) -> logs.EvalLog:
    spec = _spec(answers, replies, model, packages)
    graded = [answers.grades[reply.id] for reply in replies if reply.id in answers.grades]
    counts = {
        "unfinished": sum(not grade.finished for grade in graded),
        "no_answer": sum(grade.finished and grade.extracted is None for grade in graded),
        "failed": len(replies) - len(graded),
    }
    usage = _usage(sum(reply.tokens for reply in replies))
    log = logs.EvalLog(
        status="success",
        eval=spec,
        plan=logs.EvalPlan(steps=[logs.EvalPlanStep(solver="generate")], config=spec.model_generate_config),
        results=logs.EvalResults(metadata=counts),
        stats=logs.EvalStats(started_at=spec.created, completed_at=spec.created, model_usage={spec.model: usage}),
        samples=[_sample(reply, answers.grades.get(reply.id), spec.model) for reply in replies],
    )
    logs.recompute_metrics(log)
    return log


def _spec(answers: TaskAnswers, replies: Sequence[Reply], model: str, packages: Json) -> logs.EvalSpec:
    first, name = replies[0], _name(model, replies[0])
    created, task_id = answers.created.isoformat(timespec="seconds"), row_id(answers.task, name)
    ids = list(dict.fromkeys(reply.prompt_id for reply in replies))
    sampling = answers.settings.get("sampling") or {}
    return logs.EvalSpec(
        created=created,
        run_id=row_id(created),
        eval_id=row_id(task_id, answers.created),
        task=answers.task,
        task_id=task_id,
        task_args={key: value for key, value in answers.settings.items() if key != "sampling" and value},
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
        scorers=[{"name": "lowtax", "metrics": list(METRICS)}],
    )


def _name(model: str, reply: Reply) -> str:
    """Return the model and, for an adapter, its arm, seed and checkpoint as one name."""
    if reply.arm == "base":
        return model
    parts = [reply.arm, *([] if reply.seed is None else [f"seed-{reply.seed}"])]
    return f"{model}@{'/'.join([*parts, *([] if reply.checkpoint is None else [reply.checkpoint])])}"


def _sample(reply: Reply, grade: Grade | None, model: str) -> logs.EvalSample:
    thought = [models.ContentReasoning(reasoning=reply.thought)] if reply.thought else []
    answer = [models.ContentText(text=reply.answer)] if reply.answer else []
    output = models.ModelOutput.from_content(model, [*thought, *answer] or "", STOP[reply.finish])
    output.usage = _usage(reply.tokens)
    output.message.id = row_id(reply.id, "assistant")
    question = models.ChatMessageUser(id=row_id(reply.id, "user"), content=reply.prompt, source="input")
    failure = reply.error or "failed"
    return logs.EvalSample(
        id=reply.prompt_id,
        epoch=reply.sample + 1,
        input=reply.prompt,
        target=grade.gold if grade else "",
        messages=[question, output.message],
        output=output,
        scores={"lowtax": _score(grade)} if grade else {},
        metadata={"reply_id": reply.id, "category": reply.category, "source": reply.source},
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


def _sentence(log: logs.EvalLog, n: int) -> str:
    accuracy = log.results.scores[0].metrics["accuracy"].value  # NaN if no reply has a score
    rate = "none of them graded" if math.isnan(accuracy) else f"accuracy {accuracy:.4f}"
    return f"{log.eval.model}, {n} answers, {rate}"
