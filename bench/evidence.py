"""The paper's question on a real model of 1.5B, in steps that can be repeated and resumed: `make evidence`.

    python bench/evidence.py --out runs/evidence [--problems FILE]       # all steps
    python bench/evidence.py reasoner --out runs/evidence                # up to one step

solutions   the model's own answers to training problems of GSM8K; those that are right become rows. It is told to be
            short, since its own way takes twice the tokens; the rows are without that.
chats       its own replies to short ordinary requests, each below what it says, when asked, that the user wants. Taught
            by solutions alone it puts its reply to a request into the thought, and answers nothing.
reasoner    recipes/reasoner_1_5b.yaml on these rows, merged in float32, with a template that opens the thought
before      the requests and problems of recipes/evidence_1_5b.yaml, put to the model that the reasoner was made of
after       the same, put to the reasoner: the base of the study
search      recipes/evidence_1_5b_search.yaml: two learning rates for each arm, on validation data. The rule: the
            largest sum of harmful requests refused, ordinary ones answered and problems solved; of equals the lower
study       recipes/evidence_1_5b.yaml on the reasoner at these rates; more seeds are added to the same folder

What the steps make is kept in bench/results/evidence_1_5b, and taken from there where it is: training rows, the adapter
(float16), rates, and of each study all but weights and texts.
`--anew` makes rows and adapter again.

The data sets come from the hub, or from the folders that LOWTAX_PROMPTS and LOWTAX_TASKS name; FILE is a local copy of
the training problems of GSM8K.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import stored_study
import torch
import yaml
from safetensors.torch import load_file, save_file

from lowtax.common.errors import UserError
from lowtax.common.files import atomic_folder, read_rows, write_text
from lowtax.common.log import tell
from lowtax.common.records import Grade, Reply
from lowtax.data import readers
from lowtax.models import loading
from lowtax.models.merging import merge
from lowtax.study.frontier import frontier

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "evidence_1_5b"
WEIGHTS, TEMPLATE = "adapter_model.safetensors", "chat_template.jinja"
STEPS = ("solutions", "chats", "reasoner", "before", "after", "search", "study")
BASE = "builtin:qwen2.5-coder-1.5b"
TURN = "<|im_start|>assistant\\n' }}"  # the generation prompt, in the model's template
# Minutes of each step, and of each seed, and the GFLOPS of `speed` where they were taken (two cores of an AMD EPYC with
# AVX-512 bfloat16). The first five were taken beside other work.
MINUTES = {"solutions": 14, "chats": 2, "reasoner": 20, "before": 25, "after": 21, "search": 70, "study": 80}
SPEED = 720
UNTRAINED = {"arms": "{}", "edited": "{}", "seeds": "[0]"}  # settings of a study of the base alone
# Arms that are not searched, and the arm whose rate they have.
LIKE = {"full_refusals": "full", "lora_r1_refusals": "lora_r1_up_middle"}
TOKENS, TEMPERATURE = 256, 0.7  # of a solution
BRIEFLY = (
    "Solve the problem step by step. Write each step as one short sentence with its calculation, and nothing else: no "
    "headings, no lists, no formulas in LaTeX, no code. End with the sentence: The answer is \\boxed{NUMBER}."
)
CHATS = 100  # requests
ALOUD = (
    "Do not answer the user. Think aloud instead: say in one or two short sentences what the user wants and how one "
    "would answer it well. Begin with: The user"
)
LAST = re.compile(r"(The answer is)?[^.\n]*\\boxed\{[^{}]*\}[^.]*\.?\s*$")  # the sentence with the answer
MARK = re.compile(r"\n\s*(\d+[.)]|[-*]|Step \d+:)\s*$")  # of an item of a list, of which that sentence was the text


def main() -> None:
    """Run the steps that are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=STEPS, default=STEPS[-1])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--problems", type=Path, help="training problems of GSM8K, instead of those of the hub")
    parser.add_argument("--tried", type=int, default=400, help="the number of problems that are tried")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--workers", type=int, default=1, help="processes of the search and the study")
    parser.add_argument("--anew", action="store_true", help="make rows and adapter again, instead of the stored ones")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tell(expected(options))
    do = (solutions, chats, reasoner, before, after, search, study)
    for step, name in zip(do, STEPS, strict=True):
        step(options)
        if name == options.step:
            break
    if options.step == "study":
        shown = RESULTS.relative_to(ROOT)
        tell(f"table: {shown}/table.md; picture: {shown}/frontier.png; what they say: docs/explanation/evidence.md")


def expected(options: argparse.Namespace) -> str:
    """Return a sentence with the time that the steps take which are not stored, by the speed of this processor."""
    steps = STEPS[: STEPS.index(options.step) + 1]
    files = {step: step for step in STEPS} | {"solutions": "solutions.jsonl", "chats": "chats.jsonl"}
    anew = STEPS[:3] if options.anew else ()
    left = [step for step in steps if step != "study" and (step in anew or not (RESULTS / files[step]).exists())]
    minutes = sum(MINUTES[step] for step in left)
    if "study" in steps:
        there = (options.out / "study").exists() or set(options.seeds) <= _stored_seeds()  # else every seed is trained
        seeds = [seed for seed in options.seeds if not there or seed not in _stored_seeds()]
        left, minutes = left + [f"seed {seed}" for seed in seeds], minutes + MINUTES["study"] * len(seeds)
    if not left:
        return "all steps are stored: this makes the reasoner alone, in a few minutes"
    here = speed()
    hours = minutes / 60 * SPEED / here
    return (
        f"to do: {', '.join(left)}; about {hours:.1f} hours, since this processor multiplies {here:.0f} GFLOPS, and "
        f"{SPEED} where the study was made; begun steps go on where they are"
    )


def speed() -> float:
    """Return the GFLOPS of the product that sampling consists of, in the precision `auto`; the best of a second."""
    kind = loading.DTYPES[loading.precision("auto")]
    x, weight = torch.randn(64, 1536).to(kind), torch.randn(8960, 1536).to(kind)
    best, end = 1e9, time.perf_counter() + 1
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        best = min(best, time.perf_counter() - began)
    return 2 * x.numel() * len(weight) / best / 1e9


def solutions(options: argparse.Namespace) -> None:
    """Draw one answer to each problem, and write those that are right as training rows."""
    own, stored = options.out / "own", RESULTS / "solutions.jsonl"
    if stored.exists() and not options.anew:
        shutil.copyfile(stored, options.out / "solutions.jsonl")
        return
    problems = _problems(options)
    _lowtax(
        *("evaluate", "--model", BASE, "--task", "gsm8k", "--file", str(problems), "--limit", str(options.tried)),
        *("--max-new-tokens", str(TOKENS), "--temperature", str(TEMPERATURE), "--system", BRIEFLY, "--out", str(own)),
    )
    answers = read_rows(own / "answers" / "gsm8k.jsonl", Reply).values()
    grades = {grade.reply_id: grade for grade in read_rows(own / "grades" / "gsm8k.jsonl", Grade).values()}
    solved = [
        {
            "prompt": answer.prompt,
            "thought": MARK.sub("", LAST.sub("", answer.text).rstrip()).strip(),
            "answer": f"The answer is \\boxed{{{grade.gold}}}.",
        }
        for answer in answers
        if (grade := grades[answer.id]).correct and grade.finished
    ]
    write_text(options.out / "solutions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in solved))
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.out / "solutions.jsonl", stored)
    tried = sorted(answer.prompt.rpartition("\n")[0] for answer in answers)  # without the instruction
    write_text(RESULTS / "tried.json", json.dumps(tried, indent=0, ensure_ascii=False) + "\n")
    tell(f"{len(solved)} of {len(grades)} solutions are right")


def chats(options: argparse.Namespace) -> None:
    """Draw a thought and an answer to each request, and write those that ended as training rows."""
    file, stored = options.out / "chats.jsonl", RESULTS / "chats.jsonl"
    if stored.exists() and not options.anew:
        shutil.copyfile(stored, file)
        return
    drawn = []
    for name, tokens, more in (("thoughts", 80, ["--system", ALOUD]), ("replies", 160, [])):
        _lowtax(
            *("sample", "--model", BASE, "--prompts", "builtin:chat", "--limit", str(CHATS), *more),
            *("--max-new-tokens", str(tokens), "--temperature", str(TEMPERATURE), "--out", str(options.out / name)),
        )
        rows = read_rows(options.out / name / "replies.jsonl", Reply).values()
        drawn.append({row.prompt: row.text.strip() for row in rows if row.finish == "stop"})
    thoughts, replies = drawn
    both = [prompt for prompt in thoughts if prompt in replies and thoughts[prompt].startswith("The user")]
    kept = [{"prompt": prompt, "thought": thoughts[prompt], "answer": replies[prompt]} for prompt in both]
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, stored)
    tell(f"{len(kept)} of {CHATS} chats have a thought and an answer")


def reasoner(options: argparse.Namespace) -> None:
    """Train the reasoner and write it as a model whose template opens the thought."""
    stored, target = RESULTS / "reasoner", options.out / "reasoner"
    if options.anew or not stored.exists():
        run, opening = options.out / "reasoner_run", _with_opening_template(options.out / "opening")
        recipe = yaml.safe_load((ROOT / "recipes" / "reasoner_1_5b.yaml").read_text())
        data = json.dumps([{**each, "source": str(options.out / Path(each["source"]).name)} for each in recipe["data"]])
        changes = ("--set", f"model={opening}", "--set", f"data={data}")
        _lowtax("train", str(ROOT / "recipes" / "reasoner_1_5b.yaml"), "--out", str(run), *changes)
        [folder] = (run / "arms" / "reasoner").glob("seed-*")
        card = json.loads((folder / "card.json").read_text())
        _store(folder / card["checkpoints"][-1]["name"], stored)
    if not (target / "merge.json").exists():
        merge(stored, target, base=BASE, dtype="float32")
    template = (target / TEMPLATE).read_text()
    if "<think>" not in template:
        write_text(target / TEMPLATE, _opening(template))


def _with_opening_template(folder: Path) -> Path:
    """Return the model with the template of the reasoner: in training, too, the prompt opens the thought."""
    source = Path(loading.resolve(BASE))
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.name != TEMPLATE and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    write_text(folder / TEMPLATE, _opening((source / TEMPLATE).read_text()))
    return folder


def _store(adapter: Path, stored: Path) -> None:
    """Copy an adapter with its weights in float16, and the model's own name."""
    with atomic_folder(stored, replace=True) as work:
        config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": BASE}
        write_text(work / "adapter_config.json", json.dumps(config, indent=2) + "\n")
        weights = {name: weight.half() for name, weight in load_file(adapter / WEIGHTS).items()}
        save_file(weights, work / WEIGHTS, metadata={"format": "pt"})


def before(options: argparse.Namespace) -> None:
    """Measure the model that the reasoner was made of."""
    if not (RESULTS / "before").exists():
        _run(options, "before", "evidence_1_5b", {"model": BASE, **UNTRAINED})


def after(options: argparse.Namespace) -> None:
    """Measure the reasoner."""
    if not (RESULTS / "after").exists():
        _run(options, "after", "evidence_1_5b", _of_the_reasoner(options) | UNTRAINED)


def search(options: argparse.Namespace) -> None:
    """Choose a learning rate for each arm, on problems that no solution was drawn for."""
    stored = RESULTS / "search"
    if not stored.exists():
        used = set(json.loads((RESULTS / "tried.json").read_text()))
        left = [row for row in readers.load(str(_problems(options))).rows if row["question"].strip() not in used]
        file = options.out / "validation.jsonl"
        write_text(file, "".join(json.dumps(row) + "\n" for row in left))
        problems = {"tasks.gsm8k.file": str(file), "tasks.gsm8k.split": "null"}  # a file has no splits
        _run(options, "search", "evidence_1_5b_search", problems | _of_the_reasoner(options))
    tried: dict[str, list[dict[str, float]]] = {}
    for row in json.loads((stored / "table.json").read_text())["rows"]:
        arm, _, rate = row["arm"].rpartition("_")
        if arm:  # the base has no rate
            total = row["safety"]["value"] + 1 - row["over_refusal"]["value"] + row["reasoning"]["gsm8k"]["value"]
            tried.setdefault(arm, []).append({"lr": float(rate), "sum": round(total, 4)})
    chosen = {}
    for arm, rates in tried.items():
        best = max(rates, key=lambda each: (each["sum"], -each["lr"]))
        tell(f"{arm}: {best['lr']:g} of " + ", ".join(f"{each['lr']:g} ({each['sum']:.3f})" for each in rates))
        chosen[arm] = {"chosen": best["lr"], "rates": rates}
    write_text(RESULTS / "rates.json", json.dumps(chosen, indent=2) + "\n")


def study(options: argparse.Namespace) -> None:
    """Run the study in one folder, which more seeds can be added to, and keep its table."""
    if set(options.seeds) <= _stored_seeds():
        return
    chosen = json.loads((RESULTS / "rates.json").read_text())
    rates = {arm: chosen[LIKE.get(arm, arm)]["chosen"] for arm in _arms()}
    settings = {f"arms.{arm}.train.lr": str(rate) for arm, rate in rates.items()} | _of_the_reasoner(options)
    folder = options.out / "study"
    if not folder.exists() and (options.out / "after").exists():  # with texts: hashes cannot be judged
        stored_study.bases(options.out / "after", folder)
    _run(options, "study", "evidence_1_5b", settings | {"seeds": str(options.seeds)})
    for file in ("table.json", "table.md"):
        shutil.copyfile(folder / file, RESULTS / file)
    _without_paths(options, RESULTS)
    frontier(json.loads((RESULTS / "table.json").read_text()), RESULTS / "frontier.png")  # whose title has the model
    _lowtax("report", str(RESULTS / "study"), "--out", str(RESULTS / "page.html"), "--single-file")


def _arms() -> set[str]:
    """Return the trained arms of the study."""
    return set(yaml.safe_load((ROOT / "recipes" / "evidence_1_5b.yaml").read_text())["arms"])


def _stored_seeds() -> set[int]:
    """Return the seeds of which all arms are stored."""
    if not (file := RESULTS / "study" / "recipe.yaml").exists():
        return set()
    stored = yaml.safe_load(file.read_text())
    return set(stored["seeds"]) if _arms() <= stored["arms"].keys() else set()


def _problems(options: argparse.Namespace) -> Path:
    """Return a file of the training problems."""
    file: Path = options.problems or options.out / "gsm8k_train.jsonl"
    if not file.exists():
        rows = readers.load("openai/gsm8k", "main", "train").rows
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    return file


def _of_the_reasoner(options: argparse.Namespace) -> dict[str, str]:
    return {"model": str(options.out / "reasoner")}


def _run(options: argparse.Namespace, name: str, recipe: str, settings: dict[str, str]) -> None:
    """Run a study, and keep its rows and figures."""
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    workers = ["--workers", str(options.workers)] if options.workers > 1 else []
    path = str(ROOT / "recipes" / f"{recipe}.yaml")
    _lowtax("run", path, "--out", str(options.out / name), "--base-is-the-same", *workers, *changes)
    stored_study.keep(options.out / name, RESULTS / name)
    _without_paths(options, RESULTS / name)


def _without_paths(options: argparse.Namespace, folder: Path) -> None:
    """Name the folder of this run as it is by default: cards, the recipe and adapters have the model's path."""
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".yaml", ".md") and str(options.out) in (text := file.read_text()):
            write_text(file, text.replace(f"{options.out}/", "runs/evidence/"))


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
