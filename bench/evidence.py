"""The paper's question on a real model of 1.5B, in steps that can be repeated and resumed: `make evidence`.

    python bench/evidence.py --out runs/evidence [--problems FILE]       # all steps
    python bench/evidence.py reasoner --out runs/evidence                # up to one step

solutions   the model's own answers to training problems of GSM8K; those that are right become rows
reasoner    recipes/reasoner_1_5b.yaml on these rows, merged in float32, with a template that opens the thought
before      the requests and problems of recipes/evidence_1_5b.yaml, put to the model that the reasoner was made of
study       recipes/evidence_1_5b.yaml on the reasoner

The data sets come from the hub, or from the folders that LOWTAX_PROMPTS and LOWTAX_TASKS name; FILE is a local copy of
the training problems of GSM8K.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.files import read_rows, write_text
from lowtax.common.log import tell
from lowtax.common.records import Grade, Reply
from lowtax.data import readers
from lowtax.models.merging import merge

ROOT = Path(__file__).parent.parent
STEPS = ("solutions", "reasoner", "before", "study")
BASE = "builtin:qwen2.5-coder-1.5b"
TURN = "<|im_start|>assistant\\n' }}"  # the generation prompt, in the model's template
TOKENS, TEMPERATURE = 400, 0.7  # of a solution


def main() -> None:
    """Run the steps that are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=STEPS, default=STEPS[-1])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--problems", type=Path, help="training problems of GSM8K, instead of those of the hub")
    parser.add_argument("--tried", type=int, default=600, help="the number of problems that are tried")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for step in STEPS[: STEPS.index(options.step) + 1]:
        {"solutions": solutions, "reasoner": reasoner, "before": before, "study": study}[step](options)


def solutions(options: argparse.Namespace) -> None:
    """Draw one answer to each problem, and write those that are right as training rows."""
    own = options.out / "own"
    problems = options.problems
    if problems is None:
        problems = options.out / "gsm8k_train.jsonl"
        rows = readers.load("openai/gsm8k", "main", "train").rows
        write_text(problems, "".join(json.dumps(row) + "\n" for row in rows))
    _lowtax(
        *("evaluate", "--model", BASE, "--task", "gsm8k", "--file", str(problems), "--limit", str(options.tried)),
        *("--max-new-tokens", str(TOKENS), "--temperature", str(TEMPERATURE), "--out", str(own)),
    )
    answers = read_rows(own / "answers" / "gsm8k.jsonl", Reply).values()
    grades = {grade.reply_id: grade for grade in read_rows(own / "grades" / "gsm8k.jsonl", Grade).values()}
    solved = [
        {"prompt": answer.prompt, "thought": answer.text.strip(), "answer": f"The answer is \\boxed{{{grade.gold}}}."}
        for answer in answers
        if (grade := grades[answer.id]).correct and grade.finished
    ]
    write_text(options.out / "solutions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in solved))
    tell(f"{len(solved)} of {len(grades)} solutions are right")


def reasoner(options: argparse.Namespace) -> None:
    """Train the reasoner and write it as a model whose template opens the thought."""
    run, target = options.out / "reasoner_run", options.out / "reasoner"
    data = json.dumps([{"source": str(options.out / "solutions.jsonl")}])
    _lowtax("train", str(ROOT / "recipes" / "reasoner_1_5b.yaml"), "--out", str(run), "--set", f"data={data}")
    [folder] = (run / "arms" / "reasoner").glob("seed-*")
    card = json.loads((folder / "card.json").read_text())
    if not (target / "merge.json").exists():
        merge(folder / card["checkpoints"][-1]["name"], target, base=BASE, dtype="float32")
    template = (target / "chat_template.jinja").read_text()
    if "<think>" not in template:
        write_text(target / "chat_template.jinja", _opening(template))


def before(options: argparse.Namespace) -> None:
    """Measure the model that the reasoner was made of."""
    _study(options, "before", {"model": BASE, "arms": "{}"})


def study(options: argparse.Namespace) -> None:
    """Run the study."""
    _study(options, "study", {"model": str(options.out / "reasoner")})


def _study(options: argparse.Namespace, name: str, settings: dict[str, Any]) -> None:
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    _lowtax("run", str(ROOT / "recipes" / "evidence_1_5b.yaml"), "--out", str(options.out / name), *changes)
    results = ROOT / "bench" / "results" / "evidence_1_5b"
    results.mkdir(parents=True, exist_ok=True)
    for file in ("table.json", "card.json", "frontier.png"):
        if (options.out / name / file).exists():
            shutil.copyfile(options.out / name / file, results / f"{name}.{file}")


def _opening(template: str) -> str:
    """Return the model's template with a generation prompt that opens a thought."""
    before, turn, after = template.rpartition(TURN)
    if not turn:
        raise UserError(f"The template of {BASE} has no generation prompt that ends in {TURN!r}.")
    return before + turn.replace("\\n' }}", "\\n<think>\\n' }}") + after


def _lowtax(*arguments: str) -> None:
    """Run a command of lowtax, and end as it ends if it fails."""
    done = subprocess.run([sys.executable, "-m", "lowtax", *arguments], env=os.environ, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"lowtax: {error}")
