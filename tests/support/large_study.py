"""A made study of any size: replies, verdicts, answers, grades and a table, by the writers of the project alone."""

import random
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

from lowtax.benchmarks import rates as reasoning
from lowtax.common.files import append_rows, write_json, write_text
from lowtax.common.records import Grade, Reply, Verdict, row_id
from lowtax.judges import rates as safety
from lowtax.study.compare import compare
from lowtax.study.stored_recipe import dumped

WORDS = "the a of model weight answer water paper light map bread river small old bright plan first then never".split()
CATEGORIES = ("violence", "fraud", "weapons", "privacy")
JUDGES = (("refusal", "answer"), ("llama_guard", "answer"))
BATCH = 2000


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def subjects(arms: list[str], steps: tuple[int, ...]) -> list[tuple[str, int | None, str | None, int]]:
    return [("base", None, None, 0), *((arm, 0, f"checkpoint-{step}", step) for arm, step in product(arms, steps))]


def replies(kind: str, prompts: int, of: list[tuple], rng: random.Random, words: int) -> Iterator[Reply]:
    for arm, seed, checkpoint, _ in of:
        for number in range(prompts):
            prompt = f"{kind} request {number}: {text(random.Random(number), 12)}"
            refused = rng.random() < (0.8 if kind == "harmful" and arm != "base" else 0.1)
            answer = ("I can't help with that. " if refused else "Sure. ") + text(rng, words)
            thought = text(rng, 2 * words)
            yield Reply(
                id=row_id(kind, arm, checkpoint, number),
                arm=arm, seed=seed, checkpoint=checkpoint, source=f"made-{kind}", prompt_id=row_id(kind, number),
                prompt=prompt, sample=0, text=f"{thought}\n</think>\n\n{answer}", thought=thought, answer=answer,
                closed=True, finish="stop", tokens=3 * words, category=CATEGORIES[number % 4],
            )  # fmt: skip


def verdict(reply: Reply, judge: str, on: str, rng: random.Random) -> Verdict:
    refused = reply.answer.startswith("I can't") != (rng.random() < 0.03)
    harm = judge == "llama_guard"
    label = ("safe" if refused else "unsafe") if harm else ("refusal" if refused else "compliance")
    return Verdict(id=row_id(reply.id, judge, on), reply_id=reply.id, judge=judge, on=on, label=label, score=0.5)


def make(out: Path, prompts: int, arms: int = 3, steps: tuple[int, ...] = (50, 100), words: int = 40) -> Path:
    """Write a study with so many prompts of each kind and questions, for the base and each checkpoint; return `out`."""
    rng = random.Random(0)
    names = [f"arm_{i}" for i in range(arms)]
    of = subjects(names, steps)
    recipe = {"name": "made", "model": "org/model", "arms": {name: {"mode": "full"} for name in names}}
    write_text(out / "recipe.yaml", dumped(recipe))
    rows = {
        (arm, checkpoint): {"arm": arm, "checkpoint": checkpoint, "step": step, "trainable_parameters": 1000 * step,
                            "train_seconds": float(step)}
        for arm, _, checkpoint, step in of
    }  # fmt: skip
    for kind, column in (("harmful", "safety"), ("ordinary", "over_refusal")):
        by_row: dict[tuple, dict] = {}
        every = replies(kind, prompts, of, rng, words)
        while part := list(islice(every, BATCH)):
            append_rows(out / "replies" / f"{kind}.jsonl", part)
            for judge, on in JUDGES:
                verdicts = [verdict(reply, judge, on, rng) for reply in part]
                append_rows(out / "verdicts" / f"{kind}.{judge}.jsonl", verdicts)
                if judge == "refusal":
                    for reply, each in zip(part, verdicts, strict=True):
                        by_row.setdefault((reply.arm, reply.checkpoint), {})[reply.prompt_id, 0] = each
        for key, row in rows.items():
            row[column] = safety.cell({0: by_row[key]})
    graded = answers(out, of, rng, max(1, prompts // 4), words)
    for key, row in rows.items():
        row["reasoning"] = {"sums": reasoning.cell({0: graded[key]})}
        row["tax"] = {"value": 0.01, "low": -0.05, "high": 0.07}
    compare(out, {"rows": list(rows.values()), "recipe": "made", "model": "org/model", "precision": "float32",
                  "seeds": [0], "judge": "refusal", "judged_text": "answer", "versions": {},
                  "matched_safety": {"safety": 0.7, "over_refusal": 0.3}})  # fmt: skip
    write_json(out / "card.json", {"seconds": [1.0], "versions": {"lowtax": "0"}})
    for name in names:
        folder = out / "arms" / name / "seed-0"
        write_text(folder / "steps.jsonl", "".join(
            f'{{"step": {i}, "loss": {2 / i + 0.5}, "penalty": 0.0, "lr": 0.001, "grad_norm": 1.0, "tokens": 9, '
            f'"seconds": {i}}}\n' for i in range(1, steps[-1] + 1)
        ))  # fmt: skip
        write_json(folder / "card.json", {"trainable_parameters": 5, "checkpoints": [], "job": {"methods": []}})
    return out


def answers(out: Path, of: list[tuple], rng: random.Random, questions: int, words: int) -> dict[tuple, dict]:
    """Write the answers and grades of a task; return them by arm and checkpoint, as `rates.cell` takes them."""
    by_row: dict[tuple, dict] = {}
    for arm, seed, checkpoint, _ in of:
        rows, grades = [], []
        for number in range(questions):
            right = rng.random() < 0.7
            value = number + 1 if right else number
            rows.append(Reply(
                id=row_id("sums", arm, checkpoint, number), arm=arm, seed=seed, checkpoint=checkpoint, source="sums",
                prompt_id=row_id("sums", number), prompt=f"What is {number} + 1?", sample=0, text=str(value),
                thought=text(rng, words), answer=f"\\boxed{{{value}}}", closed=True, finish="stop", tokens=words,
            ))  # fmt: skip
            grades.append(Grade(
                id=row_id("grade", rows[-1].id), reply_id=rows[-1].id, task="sums", correct=right, finished=True,
                extracted=str(value), gold=str(number + 1), rule="last box",
            ))  # fmt: skip
        append_rows(out / "answers" / "sums.jsonl", rows)
        append_rows(out / "grades" / "sums.jsonl", grades)
        pairs = zip(grades, rows, strict=True)
        by_row[arm, checkpoint] = {(reply.prompt_id, 0): (grade, reply) for grade, reply in pairs}
    return by_row
