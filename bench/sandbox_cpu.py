"""How many HumanEval problems a second are graded, in the sandbox, by their canonical solutions.

    python bench/sandbox_cpu.py --file HumanEval.jsonl.gz [--threads 2] [--rounds 5]

Prints JSON: humaneval_per_second is the median over the rounds. Every round grades all problems, and all must pass.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from lowtax.benchmarks.base import Task
from lowtax.benchmarks.humaneval import HumanEval
from lowtax.benchmarks.sandbox.server import Server


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", help="a copy of HumanEval; LOWTAX_TASKS or the hub if absent")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    exam = HumanEval(Task(file=settings.file))
    rows, problems = exam.rows(), exam.problems()
    answers = [f"```python\n{problems[str(row.gold)].canonical}\n```" for row in rows]
    rates = []
    with ThreadPoolExecutor(settings.threads) as pool:
        for _ in range(settings.rounds + 1):
            began = time.perf_counter()
            scores = list(pool.map(exam.grade, rows, answers))
            rates.append(len(rows) / (time.perf_counter() - began))
            wrong = [row.gold for row, score in zip(rows, scores, strict=True) if not score.correct]
            assert not wrong, wrong
    rates = rates[1:]  # the first starts the server
    result = {
        "humaneval_per_second": round(statistics.median(rates), 1),
        "lowest": round(min(rates), 1),
        "highest": round(max(rates), 1),
        "problems": len(rows),
        "threads": settings.threads,
        "rounds": settings.rounds,
        "isolation": Server.running().mode,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
