"""Evaluating checkpoints and seeds on CPU beside the reference's way, and how fast answers and programs are graded.

Both sides are given the same base and rank-1 adapters, problems of `arithmetic`, seeds, token limit and precision, and
grade by the same rule. Ours: `lowtax evaluate`'s own function, one engine that holds the base once, adapters unmerged,
all requests in one plan; its time includes loading, storing and the table. The reference (arXiv 2507.17075, the loop in
its README): each checkpoint merged into the base and saved, and for every checkpoint and seed the merged model loaded
and all problems answered as one batch by transformers' `generate`. Its process start for every seed is not counted.

    python bench/evaluate.py [--quick]

The file has vs_merge_reload, grades_per_second and humaneval_per_second, and the seconds behind the first.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from lowtax.benchmarks.base import Task, load
from lowtax.common.files import write_json
from lowtax.common.log import quiet_libraries
from lowtax.common.provenance import provenance
from lowtax.data import chat, rendering
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.models import loading
from lowtax.models.placement import parse_mode
from lowtax.study import adhoc
from lowtax.training.loop import adapt

MODEL = "builtin:smollm2-135m-reasoner"
MODE = "lora_up_proj_only_from10_to19_r1"
FOLDER = Path(__file__).parent
RESULT = FOLDER / "results" / "evaluate_cpu.json"
OTHERS = {"grades_per_second": "grade_cpu.py", "humaneval_per_second": "sandbox_cpu.py"}


def make_adapters(folder: Path, n: int) -> list[Path]:
    """Adapters with a small random update, as checkpoints of training have."""
    adapted = adapt(loading.load_model(MODEL), parse_mode(MODE), MODEL)
    for i in range(n):
        torch.manual_seed(i)
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p.data, std=1e-3)
        adapted.save_pretrained(folder / f"checkpoint-{i}", save_embedding_layers=False)
    return [folder / f"checkpoint-{i}" for i in range(n)]


def ours(adapters: list[Path], task: Task, precision: str, batch_size: int, out: Path) -> tuple[float, float]:
    """Seconds, and the share of right answers."""
    engine = EngineSettings("hf", precision, batch_size)
    began = time.perf_counter()
    found = adhoc.evaluate(adhoc.Exam(MODEL, adapters, {"arithmetic": task}, engine), out)
    seconds = time.perf_counter() - began
    rates = [row["reasoning"]["arithmetic"]["value"] for row in found["rows"]]
    return seconds, sum(rates) / len(rates)


def reference(adapters: list[Path], task: Task, precision: str, folder: Path) -> tuple[dict[str, float], float]:
    """Seconds of each part, and the share of right answers."""
    watch, rates, merged = Watch(), [], folder / "merged"
    for adapter in (None, *adapters):
        if adapter:
            with watch("merge"):
                merge(adapter, precision, merged)
        for seed in range(task.sampling.samples):
            with watch("load"):
                model = loading.load_model(str(merged) if adapter else MODEL, precision)
            with watch("generate"):
                rates.append(answer(model, task, seed))
        shutil.rmtree(merged, ignore_errors=True)
        print(f"reference: {adapter.name if adapter else 'base'}, {sum(watch.spent.values()):.0f} s so far", flush=True)
    return watch.spent, sum(rates) / len(rates)


class Watch:
    """Seconds of each part of some work."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {"merge": 0.0, "load": 0.0, "generate": 0.0}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[part] += time.perf_counter() - began


def merge(adapter: Path, precision: str, out: Path) -> None:
    """The merged model as a folder, by PEFT."""
    PeftModel.from_pretrained(loading.load_model(MODEL, precision), str(adapter)).merge_and_unload().save_pretrained(
        out
    )


def answer(model: Any, task: Task, seed: int) -> float:
    """The share right of one seed: all problems in one batch."""
    exam, tokenizer = load("arithmetic", task), loading.load_tokenizer(MODEL)
    rows = exam.rows()
    asked = [chat.generation_prompt(tokenizer, [{"role": "user", "content": row.text}]) for row in rows]
    inputs = tokenizer(asked, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    torch.manual_seed(seed)
    how = task.sampling
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            do_sample=True,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=0,
            max_new_tokens=how.max_new_tokens,
            eos_token_id=sorted(loading.stop_tokens(model, tokenizer) | {chat.end_of_turn(tokenizer)}),
        )
    texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    parts = [rendering.split_reply(text, rendering.opens(prompt)) for text, prompt in zip(texts, asked, strict=True)]
    right = [part.closed and exam.grade(row, part.answer).correct for part, row in zip(parts, rows, strict=True)]
    return sum(right) / len(right)


def figure(name: str) -> float | None:
    """What the bench of that figure prints last, a JSON object or the number; None if it is not here."""
    script = FOLDER / OTHERS[name]
    if not script.exists():
        print(f"{script.name} is not here: {name} is not measured")
        return None
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{script.name} failed: {name} is not measured")
        return None
    last = json.loads(done.stdout.strip().splitlines()[-1])
    return float(last[name] if isinstance(last, dict) else last)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 checkpoints and 2 seeds, for a look; writes nothing")
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--n", type=int, default=30)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--batch-size", type=int, default=192, help="of ours; the reference answers a seed's problems at once"
    )
    parser.add_argument("--precision", default="auto")
    asked = parser.parse_args()
    quiet_libraries()
    checkpoints, seeds = (3, 2) if asked.quick else (asked.checkpoints, asked.seeds)
    precision = loading.precision(asked.precision)
    how = Sampling(max_new_tokens=asked.max_new_tokens, temperature=0.6, top_p=0.95, samples=seeds)
    task = Task(n=asked.n, sampling=how)
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(Path(folder), checkpoints)
        fast, fast_right = ours(adapters, task, precision, asked.batch_size, Path(folder) / "ours")
        parts, slow_right = reference(adapters, task, precision, Path(folder))
    slow = sum(parts.values())
    once = slow - parts["load"] * (1 - 1 / seeds)
    result: dict[str, Any] = {
        "vs_merge_reload": round(slow / fast, 2),
        "vs_merge_load_once": round(once / fast, 2),
        "seconds": {"ours": round(fast, 1), **{f"reference_{name}": round(s, 1) for name, s in parts.items()}},
        "share_right": {"ours": round(fast_right, 4), "reference": round(slow_right, 4)},
        "settings": {**vars(asked), "checkpoints": checkpoints, "seeds": seeds, "precision": precision},
    }
    if not asked.quick:
        result |= {name: figure(name) for name in OTHERS}
        write_json(RESULT, {**result, **provenance()})
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
