"""Compute rates from grades: accuracy over samples and seeds, length of thoughts, and the tax.

Answers that are not right are counted by kind: an unfinished answer is wrong, an answer without a final answer is
wrong, and a failed reply is in no rate. Intervals cover questions and, with several of them, training seeds.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from lowtax.common import stats
from lowtax.common.records import Grade, Reply
from lowtax.common.tables import Cell, markdown_table, rate_over_seeds, shown

Key = tuple[str, int]  # question, sample
Answer = tuple[Grade | None, Reply]  # a failed reply has no grade
Answers = Mapping[int, Mapping[Key, Answer]]  # by training seed
Graded = tuple[Grade, Reply]
CAPTION = (
    "Right: of n answers, with 95 % intervals; unfinished answers and those without a final answer are wrong, failed "
    "ones are not in n. Tax: the base's share minus the other's, paired by question. Thought: by characters."
)
RUNS_CAPTION = (
    "Each run: the share of right answers among the k-th samples of all questions, as of an evaluation with a separate "
    "seed; sd is over the runs of a row."
)
NO_TAX = {"value": 0.0, "low": 0.0, "high": 0.0}  # the base's, by definition


def cell(answers: Answers) -> Cell:
    """Return the rates of one checkpoint on one task.

    Returns:
        value, low, high (None if n is 0), n and `seeds`: the share of right answers over all samples and training
        seeds, and of each seed (`tables.rate_over_seeds`);
        `unfinished` and its share of n, `no_answer` (finished, without a final answer) and `failed` (not in n);
        `pass_at_k` for k = "1", "2", "4" ... and the number of samples: one of k samples is right, unbiased;
        `maj_at_k`, if there are several samples: the most frequent final answer is right. Of equally frequent ones
        the earliest counts; unfinished answers and those without a final answer have no vote;
        `tokens` per answer, and `thought_tokens`: the thought's share of them by characters; `samples` per question;
        `checked`, if a model was asked about answers that the rules reject: the share that the rules or the model
        accept, with the numbers `asked` and `accepted`;
        `categories`, if there are any: the rate of each.
    """
    everything = [(seed, key, answer) for seed, by_key in answers.items() for key, answer in by_key.items()]
    graded = [(seed, key, (grade, reply)) for seed, key, (grade, reply) in everything if grade is not None]
    groups: dict[tuple[int, str], list[Graded]] = {}
    for seed, (question, _), answer in sorted(graded, key=lambda item: item[:2]):
        groups.setdefault((seed, question), []).append(answer)
    grades = [grade for _, _, (grade, _) in graded]
    unfinished = sum(not grade.finished for grade in grades)
    samples = max(map(len, groups.values()), default=0)
    rates: Cell = rate_over_seeds((seed, question, float(grade.correct)) for seed, (question, _), (grade, _) in graded)
    rates |= {
        "unfinished": unfinished,
        "unfinished_share": round(unfinished / len(grades), 4) if grades else None,
        "no_answer": sum(grade.finished and grade.extracted is None for grade in grades),
        "failed": len(everything) - len(graded),
        "samples": samples,
        "pass_at_k": {str(k): _pass_at(groups, k) for k in _ks(samples)},
    }
    if samples > 1:
        rates["maj_at_k"] = rate_over_seeds((*key, float(_majority(group))) for key, group in groups.items())
    return rates | _lengths([reply for _, _, (_, reply) in graded]) | _parts(graded)


def _ks(samples: int) -> list[int]:
    """Return 1, 2, 4 ... and the number of samples."""
    powers = [2**i for i in range(samples.bit_length()) if 2**i < samples]
    return [*powers, samples] if samples else []


def _pass_at(groups: Mapping[tuple[int, str], Sequence[Graded]], k: int) -> Cell:
    """Return pass@k over the questions with k samples or more; a question with a failed reply has fewer."""
    return rate_over_seeds(
        (*key, stats.pass_at_k(len(group), sum(grade.correct for grade, _ in group), k))
        for key, group in groups.items()
        if len(group) >= k
    )


def _majority(group: Sequence[Graded]) -> bool:
    """Return True if the most frequent final answer is right; no answer at all is wrong."""
    votes = [grade for grade, _ in group if grade.finished and grade.extracted is not None]
    if not votes:
        return False
    (chosen, _), *_ = Counter(grade.extracted for grade in votes).most_common(1)  # the first of equals
    return next(grade.correct for grade in votes if grade.extracted == chosen)


def _lengths(replies: Sequence[Reply]) -> Cell:
    """Return the mean tokens of an answer and of its thought; only the whole reply has a count of tokens."""
    if not replies:
        return {"tokens": None, "thought_tokens": None}
    thoughts = [r.tokens * len(r.thought) / max(1, len(r.thought) + len(r.answer)) for r in replies]
    return {
        "tokens": round(sum(r.tokens for r in replies) / len(replies), 1),
        "thought_tokens": round(sum(thoughts) / len(replies), 1),
    }


def _parts(graded: Sequence[tuple[int, Key, Graded]]) -> Cell:
    """Return the rates of a checker and of categories, if there are any."""
    parts: Cell = {}
    checked = [grade for _, _, (grade, _) in graded if grade.checked is not None]
    if checked:
        parts["checked"] = rate_over_seeds(
            (seed, q, float(grade.correct or grade.checked is True)) for seed, (q, _), (grade, _) in graded
        )
        parts["checked"] |= {"asked": len(checked), "accepted": sum(grade.checked is True for grade in checked)}
    names = sorted({reply.category for _, _, (_, reply) in graded})
    if any(names):
        parts["categories"] = {
            name: rate_over_seeds(
                (seed, q, float(g.correct)) for seed, (q, _), (g, reply) in graded if reply.category == name
            )
            for name in names
        }
    return parts


def runs(answers: Answers) -> list[dict[str, Any]]:
    """Return a row for every run of one checkpoint on one task: a training seed, and the k-th sample of each question.

    Returns:
        `seed`, `sample`, `n`, `right`, `value` (right / n), `unfinished`, and, if a checker was asked about one of the
        answers, `with_checker`: the share that the rules or the checker accept. Failed replies are in no number.
    """
    groups: dict[tuple[int, int], list[Grade]] = {}
    for seed, by_key in answers.items():
        for (_, sample), (grade, _) in by_key.items():
            if grade is not None:
                groups.setdefault((seed, sample), []).append(grade)
    asked = any(grade.checked is not None for grades in groups.values() for grade in grades)
    rows = []
    for (seed, sample), grades in sorted(groups.items()):
        right, accepted = (
            sum(grade.correct or (checker and grade.checked is True) for grade in grades) for checker in (False, True)
        )
        row = {"seed": seed, "sample": sample, "n": len(grades), "right": right, "value": round(right / len(grades), 4)}
        row["unfinished"] = sum(not grade.finished for grade in grades)
        rows.append(row | ({"with_checker": round(accepted / len(grades), 4)} if asked else {}))
    return rows


def outcomes(answers: Answers) -> dict[int, dict[str, list[float]]]:
    """Return training seed -> question -> 1 or 0 for each sample that was graded."""
    by_seed: dict[int, dict[str, list[float]]] = {}
    for seed, by_key in answers.items():
        for (question, _), (grade, _) in by_key.items():
            if grade is not None:
                by_seed.setdefault(seed, {}).setdefault(question, []).append(float(grade.correct))
    return by_seed


def taxes(base: Mapping[str, Answers], arm: Mapping[str, Answers]) -> tuple[dict[str, Cell], Cell]:
    """Return the tax of an arm (`stats.tax`) for every task that it shares with the base, and the mean over these."""
    pairs = {task: (_one(outcomes(base[task])), outcomes(arm[task])) for task in arm if task in base}
    by_task = {task: tax_cell([pair]) for task, pair in pairs.items()}
    return by_task, next(iter(by_task.values())) if len(by_task) == 1 else tax_cell(list(pairs.values()))


def _one(seeds: Mapping[int, Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Join the outcomes of the base over seeds; it is not trained, so they all belong to one model."""
    joined: dict[str, list[float]] = {}
    for by_question in seeds.values():
        for question, values in by_question.items():
            joined.setdefault(question, []).extend(values)
    return joined


def tax_cell(pairs: list[tuple[dict[str, list[float]], dict[int, dict[str, list[float]]]]]) -> Cell:
    """Return `value`, `low` and `high` of `stats.tax`, rounded; None where it is not defined."""
    interval = dict(zip(("value", "low", "high"), stats.tax(pairs), strict=True))
    return {name: None if math.isnan(x) else round(x, 4) for name, x in interval.items()}


def tax_shown(tax: Cell | None) -> str:
    """Format a tax with its interval and signs, for a table."""
    if tax is None or tax["value"] is None:
        return "-"
    return f"{tax['value']:+.2f} [{tax['low']:+.2f}, {tax['high']:+.2f}]"


def who(row: Mapping[str, Any]) -> str:
    """Name a checkpoint, for a table."""
    return f"{row['arm']} {row['step']:,}" if row["step"] else str(row["arm"])


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a table: for every task and checkpoint its accuracy and tax, how answers end, and their length."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["reasoning"]))
    pairs = [(task, row, row["reasoning"][task]) for task in tasks for row in rows if task in row["reasoning"]]
    several, checked = (any(name in cell for _, _, cell in pairs) for name in ("maj_at_k", "checked"))
    head = ["task", "who", "right", "tax", *["pass@k", "maj@k"] * several, *["with checker"] * checked]
    head += ["unfinished", "no answer", "failed", "tokens", "of them thought", "n"]
    lines = [head]
    for task, row, cell in pairs:
        lost = "-" if row["arm"] == "base" else tax_shown(cell.get("tax"))
        at_k = [_largest(cell["pass_at_k"]), _at(cell["samples"], cell.get("maj_at_k"))] * several
        share = cell["unfinished_share"]
        ends = ["-" if share is None else f"{share:.1%}", f"{cell['no_answer']:,}", f"{cell['failed']:,}"]
        lengths = ["-" if cell[name] is None else f"{cell[name]:,.0f}" for name in ("tokens", "thought_tokens")]
        second = [shown(cell.get("checked"))] * checked
        lines.append([task, who(row), shown(cell), lost, *at_k, *second, *ends, *lengths, f"{cell['n']:,}"])
    for row in rows if len(tasks) > 1 else []:
        lost = "-" if row["arm"] == "base" else tax_shown(row.get("tax"))
        line = [f"mean of {len(row['reasoning'])}", who(row), shown(_mean(row["reasoning"])), lost]
        lines.append(line + ["-"] * (len(head) - len(line)))
    return markdown_table(lines, left=2)


def runs_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a table with a column for every run, a row for each task, checkpoint and training seed; or nothing.

    It is empty if no question was answered more than once.
    """
    tasks = list(dict.fromkeys(task for row in rows for task in row["runs"]))
    lines: list[list[str]] = []
    for task in tasks:
        for row in rows:
            by_seed: dict[int, list[float]] = {}
            for run in row["runs"].get(task, ()):
                by_seed.setdefault(run["seed"], []).append(run["value"])
            for seed, values in by_seed.items():
                spread = f"{stdev(values):.3f}" if len(values) > 1 else "-"
                name = "-" if row["arm"] == "base" else str(seed)
                lines.append([task, who(row), name, f"{mean(values):.3f}", spread, *(f"{v:.3f}" for v in values)])
    width = max(map(len, lines), default=0)
    head = ["task", "who", "training seed", "mean", "sd"]
    if width <= len(head) + 1:
        return ""
    head += [f"run {number}" for number in range(1, width - len(head) + 1)]
    return markdown_table([head, *(line + ["-"] * (width - len(line)) for line in lines)], left=2)


def _mean(cells: Mapping[str, Cell]) -> Cell | None:
    """Return the mean accuracy over tasks; None if a task has no value."""
    if not cells or any(cell["value"] is None for cell in cells.values()):
        return None
    interval = stats.mean_interval([(cell["value"], cell["low"], cell["high"]) for cell in cells.values()])
    return dict(zip(("value", "low", "high"), interval, strict=True))


def _largest(pass_at: Mapping[str, Cell]) -> str:
    """Format pass@k for the largest k."""
    return _at(*list(pass_at.items())[-1]) if pass_at else "-"


def _at(k: int | str, rates: Cell | None) -> str:
    return "-" if rates is None else f"@{k} {shown(rates)}"
