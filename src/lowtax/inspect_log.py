"""Stored answers and their grades as logs of Inspect (inspect_ai), which `inspect view` and its data frames read.

Format   EvalLog, schema version 2, one JSON file for every task and checkpoint; checked with inspect_ai 0.3.285.
Names    TIME_TASK_ID.json, as Inspect looks for them; TIME is when the grades were written, so that exporting twice
         gives the same files.
Sample   a question; its samples are Inspect's epochs. The thought is reasoning content, the answer text. The score of
         `lowtax` is C, I, or N where there is no final answer; a failed reply is a sample with an error and no score.
Results  accuracy and stderr as Inspect computes them: the mean of a question's epochs first, then over questions.

Nothing of inspect_ai is imported.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowtax import recipe
from lowtax.errors import UserError
from lowtax.files import read_json, read_rows, write_text
from lowtax.records import Grade, Reply, row_id

Json = dict[str, Any]
VALUES = {"C": 1.0, "I": 0.0, "N": 0.0}
METRICS = ({"name": "inspect_ai/accuracy"}, {"name": "inspect_ai/stderr"})


@dataclass(frozen=True)
class Sheet:
    """The answers to one task and their grades by reply id; `settings` are the task's, {} if nobody wrote them down."""

    task: str
    created: datetime
    replies: list[Reply]
    grades: dict[str, Grade]
    settings: Json


def write(where: Path, out: Path) -> Iterator[str]:
    """Write a log for every task and checkpoint of a study, or of a folder of `lowtax evaluate`, and say what it has.

    Raises:
        UserError: There are no answers, or some are not graded.
    """
    model, packages, settings = _made_by(where)
    files = sorted((where / "answers").glob("*.jsonl"))
    if not files:
        raise UserError(f"{where} has no answers/*.jsonl: give the folder of a study or of `lowtax evaluate --out`.")
    for file in files:
        sheet = _sheet(file, where / "grades" / file.name, settings)
        groups: dict[tuple[Any, ...], list[Reply]] = {}
        for reply in sheet.replies:
            groups.setdefault((reply.arm, reply.seed, reply.checkpoint), []).append(reply)
        for replies in groups.values():
            log = _log(sheet, replies, model, packages)
            name = (
                f"{sheet.created:%Y-%m-%dT%H-%M-%S}+00-00_{file.stem.replace('_', '-')}_{log['eval']['task_id']}.json"
            )
            path = out / name
            write_text(path, json.dumps(log, indent=2, ensure_ascii=False) + "\n")
            found = log["results"]["scores"][0]["metrics"]["accuracy"]["value"]
            yield f"{path}: {log['eval']['model']}, {len(replies)} answers, accuracy {found:.4f}"


def _made_by(where: Path) -> tuple[str, Json, Json]:
    """The model, package versions, and the settings of every task by name, as far as the folder says."""
    card: Json = read_json(where / "card.json") if (where / "card.json").exists() else {}
    packages = card.get("versions", {})
    if (where / "recipe.yaml").exists():
        study = recipe.load(where / "recipe.yaml")
        return study.model, packages, {name: task.model_dump(mode="json") for name, task in study.tasks.items()}
    return str(card.get("model", "unknown")), packages, card.get("tasks", {})


def _sheet(answers: Path, grades: Path, settings: Json) -> Sheet:
    found = {grade.reply_id: grade for grade in read_rows(grades, Grade).values()}
    replies = list(read_rows(answers, Reply).values())
    missing = sum(reply.finish != "failed" and reply.id not in found for reply in replies)
    if missing or not replies:
        raise UserError(
            f"{answers} has {len(replies)} answers, {missing} of them not graded in {grades}: "
            "repeat `lowtax evaluate`, which grades what is stored."
        )
    # The file has the task's name, save for characters that no file name may have; the grades have it as it is.
    task = next((grade.task for grade in found.values()), answers.stem)
    when = datetime.fromtimestamp((grades if grades.exists() else answers).stat().st_mtime, UTC)
    return Sheet(task, when, replies, found, settings.get(task, {}))


def _log(sheet: Sheet, replies: Sequence[Reply], model: str, packages: Json) -> Json:
    """One EvalLog."""
    name, created = _who(model, replies[0]), sheet.created.isoformat(timespec="seconds")
    samples = [_sample(reply, sheet.grades.get(reply.id), name) for reply in replies]
    drawn = _drawn(sheet.settings.get("sampling") or {})
    tokens = sum(reply.tokens for reply in replies)
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "created": created,
            "run_id": row_id(created),
            "model_generate_config": drawn,
            "packages": {key: value for key, value in packages.items() if isinstance(value, str)},
            **_spec(sheet, replies, name, model),
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": drawn},
        "results": _results(samples, sheet.grades, replies),
        "stats": {
            "started_at": created,
            "completed_at": created,
            "model_usage": {name: {"input_tokens": 0, "output_tokens": tokens, "total_tokens": tokens}},
        },
        "samples": samples,
    }


def _spec(sheet: Sheet, replies: Sequence[Reply], name: str, model: str) -> Json:
    """What was evaluated on what."""
    first, task_id = replies[0], row_id(sheet.task, name)
    ids = list(dict.fromkeys(reply.prompt_id for reply in replies))
    return {
        "eval_id": row_id(task_id, sheet.created),
        "task": sheet.task,
        "task_id": task_id,
        "task_args": {key: value for key, value in sheet.settings.items() if key != "sampling" and value},
        "dataset": {"name": first.source, "samples": len(ids), "sample_ids": ids},
        "model": name,
        "model_args": {"model": model, "arm": first.arm, "seed": first.seed, "checkpoint": first.checkpoint},
        "config": {"epochs": max(reply.sample for reply in replies) + 1, "epochs_reducer": ["mean"]},
        "scorers": [{"name": "lowtax", "metrics": list(METRICS)}],
    }


def _who(model: str, reply: Reply) -> str:
    """The model, and the adapter where there is one, as one name."""
    if reply.arm == "base":
        return model
    parts = [reply.arm, *([] if reply.seed is None else [f"seed-{reply.seed}"])]
    return f"{model}@{'/'.join([*parts, *([] if reply.checkpoint is None else [reply.checkpoint])])}"


def _drawn(sampling: Mapping[str, Any]) -> Json:
    """How answers were drawn, in Inspect's words."""
    names = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "system": "system_message"}
    found = {theirs: sampling[ours] for ours, theirs in names.items() if sampling.get(ours) is not None}
    return found | ({"top_k": sampling["top_k"]} if sampling.get("top_k") else {})


def _sample(reply: Reply, grade: Grade | None, model: str) -> Json:
    """One reply to one question."""
    thought = [{"type": "reasoning", "reasoning": reply.thought}] if reply.thought else []
    answer = [{"type": "text", "text": reply.answer}] if reply.answer else []
    message = {
        "id": row_id(reply.id, "assistant"),
        "role": "assistant",
        "content": [*thought, *answer] or "",
        "source": "generate",
        "model": model,
    }
    asked = {"id": row_id(reply.id, "user"), "role": "user", "content": reply.prompt, "source": "input"}
    usage = {"input_tokens": 0, "output_tokens": reply.tokens, "total_tokens": reply.tokens}
    stop = {"stop": "stop", "length": "max_tokens"}.get(reply.finish, "unknown")
    sample: Json = {
        "id": reply.prompt_id,
        "epoch": reply.sample + 1,
        "input": reply.prompt,
        "target": grade.gold if grade else "",
        "messages": [asked, message],
        "output": {
            "model": model,
            "choices": [{"message": message, "stop_reason": stop}],
            "completion": reply.answer,
            "usage": usage,
        },
        "scores": {"lowtax": _score(grade)} if grade else {},
        "metadata": {"reply_id": reply.id, "category": reply.category, "source": reply.source},
        "model_usage": {model: usage},
    }
    if reply.finish == "failed":
        why = reply.error or "failed"
        sample["error"] = {"message": why, "traceback": why, "traceback_ansi": why}
    return sample


def _score(grade: Grade) -> Json:
    value = "C" if grade.correct else "N" if grade.extracted is None else "I"
    return {
        "value": value,
        "answer": grade.extracted,
        "explanation": grade.rule,
        "metadata": {"finished": grade.finished, "checked": grade.checked},
    }


def _results(samples: Sequence[Json], grades: Mapping[str, Grade], replies: Sequence[Reply]) -> Json:
    """Accuracy and its standard error by question, and the shares of answers that are unfinished or have no result."""
    questions: dict[str, list[float]] = {}
    for sample in samples:
        for score in sample["scores"].values():
            questions.setdefault(sample["id"], []).append(VALUES[score["value"]])
    means = [statistics.fmean(values) for values in questions.values()]
    graded = [grades[reply.id] for reply in replies if reply.id in grades]
    found = {
        "accuracy": statistics.fmean(means) if means else 0.0,
        "stderr": statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0,
    }
    return {
        "total_samples": len(samples),
        "completed_samples": len(graded),
        "scores": [
            {
                "name": "lowtax",
                "scorer": "lowtax",
                "reducer": "mean",
                "scored_samples": len(means),
                "unscored_samples": len({sample["id"] for sample in samples}) - len(means),
                "metrics": {name: {"name": name, "value": value} for name, value in found.items()},
            }
        ],
        "metadata": {
            "unfinished": sum(not grade.finished for grade in graded),
            "no_answer": sum(grade.finished and grade.extracted is None for grade in graded),
            "failed": len(replies) - len(graded),
        },
    }
