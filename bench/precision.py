"""How much the arithmetic alone changes a result: the last checkpoints of a finished study, sampled again in the
other precision, same prompts, same weights on disk.

    python bench/precision.py runs/quickstart            # writes bench/results/precision.json
"""

import argparse
from pathlib import Path
from typing import Any

from lowtax.common.log import quiet_libraries

RESULT = Path(__file__).parent / "results" / "precision.json"


def measured(study: Any, precision: str, folder: Path) -> dict[str, dict[str, float]]:
    """arm -> measure -> rate, of the base and the last checkpoint of every arm at one precision."""
    from dataclasses import replace

    from lowtax.benchmarks import evaluate
    from lowtax.benchmarks.base import load
    from lowtax.engines.sampling import collect, replies_of
    from lowtax.judges.verdicts import judge_replies

    last = {subject.arm: subject for subject in study.subjects()}
    engine = replace(study.engine, precision=precision)
    sheets = {**study.reply_sheets(), **study.answer_sheets()}
    if precision != study.precision:
        sheets = {name: replace(sheet, path=folder / f"{name}.jsonl") for name, sheet in sheets.items()}
        collect(list(sheets.values()), list(last.values()), engine)
    found: dict[str, dict[str, float]] = {arm: {} for arm in last}
    for name, sheet in sheets.items():
        stored = replies_of(sheet, list(last.values()), engine)
        replies = [reply for _, reply in stored.values()]
        if name in study.recipe.tasks:
            grades = evaluate.grade(
                replies,
                name,
                load(name, study.recipe.tasks[name]),
                {p.id: p for p in sheet.prompts},
                folder / f"{name}.grades.jsonl",
            )
            good = {reply_id: grade.correct for reply_id, grade in grades.items()}
        else:
            verdicts = judge_replies(
                replies, folder / f"{name}.verdicts.{precision}.jsonl", study.recipe.judge, "answer"
            )
            good = {reply_id: v.label in ("refusal", "partial") for reply_id, v in verdicts.items()}
        for arm in last:
            own = [
                good[reply_id] for reply_id, (ask, _) in stored.items() if ask.subject.arm == arm and reply_id in good
            ]
            found[arm][name] = round(sum(own) / len(own), 4)
    return found


def main() -> None:
    """Measure both, print them side by side, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    asked = parser.parse_args()
    quiet_libraries()
    from lowtax.common.files import write_json
    from lowtax.common.provenance import provenance
    from lowtax.study.study import Study

    study = Study.open(asked.run)
    both = ("bfloat16", "float32")
    rates = {precision: measured(study, precision, asked.run / "precision") for precision in both}
    print(f"trained in {study.precision}; {' | '.join(both)}")
    for arm, row in rates[both[0]].items():
        print(
            f"{arm}: "
            + ", ".join(f"{name} {value:.2f} | {rates[both[1]][arm][name]:.2f}" for name, value in row.items())
        )
    write_json(RESULT, {"run": asked.run.name, "trained_in": study.precision, "rates": rates, **provenance()})


if __name__ == "__main__":
    main()
