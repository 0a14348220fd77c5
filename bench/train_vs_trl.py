"""Training speed beside TRL's `SFTTrainer` at its defaults: the same base, adapter, rows and batch size.

Both train the rank-1 `up_proj` adapter of the middle layers on 64 of the built-in refusals, 8 a step. TRL gets the
same text as prompt and completion, and nothing else is set (only where it writes, when it stops, and
the CPU where there is no GPU); the benchmark checks that it trains on the very same tokens.

Each run is a process of its own, so that neither profits from the other's settings, and the two take turns. The
clock runs from a loaded model to the saved adapter; before it starts, each trains one step unmeasured.

    python bench/train_vs_trl.py            # needs: pip install 'lowtax[bench]'
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from lowtax.data import Conversation, conversations
from lowtax.placement import parse_mode
from lowtax.recipe import Data, Train
from lowtax.records import provenance, write_json

RESULTS = Path(__file__).parent / "results"
BATCH = 8
SIDES = ("lowtax", "trl")


def lowtax_seconds(asked: argparse.Namespace, rows: list[Conversation], steps: int, out: Path) -> float:
    """Seconds of our training loop, from a loaded model to the saved adapter."""
    from lowtax.packing import kept_memory
    from lowtax.train import Job, _Run

    settings = Train(steps=steps, batch_size=BATCH)
    run = _Run(Job(asked.model, parse_mode(asked.mode), settings, 0, asked.precision, rows), out, lambda _: None)
    with kept_memory():  # as `train` does
        began = time.perf_counter()
        run.to_the_end()
        return time.perf_counter() - began


def trl_seconds(asked: argparse.Namespace, rows: list[Conversation], steps: int, out: Path) -> float:
    """Seconds of TRL's `train()`, which too ends in saving the adapter."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from lowtax import chat, models

    tokenizer = models.load_tokenizer(asked.model)
    messages = [[{"role": "user", "content": row.prompt}] for row in rows]
    prompts = [chat.generation_prompt(tokenizer, m) for m in messages]
    texts = [
        {"prompt": prompt, "completion": chat.completion_text(prompt, row.thought, row.answer)}
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    trainer = SFTTrainer(
        model=models.resolve(asked.model),
        args=SFTConfig(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=1, lora_alpha=16, lora_dropout=0.05, target_modules=targets(asked), task_type="CAUSAL_LM"
        ),
    )
    ours = [chat.example(tokenizer, m, row.thought, row.answer) for m, row in zip(messages, rows, strict=True)]
    assert [list(row["input_ids"]) for row in trainer.train_dataset] == [e.prompt + e.completion for e in ours]
    began = time.perf_counter()
    trainer.train()
    return time.perf_counter() - began


def targets(asked: argparse.Namespace) -> list[str]:
    """The modules that the mode string means in this model."""
    from lowtax import models

    model = models.load_model(asked.model)
    return parse_mode(asked.mode).target_modules(models.linear_names(model), models.n_layers(model))


def one_side(asked: argparse.Namespace) -> None:
    """In a process of its own: one unmeasured step, then the measured ones; prints the seconds as JSON."""
    from lowtax import models

    asked.precision = models.precision(asked.precision)
    rows = conversations(Data(source="builtin:refusals", n=asked.n), 0)
    measure = lowtax_seconds if asked.side == "lowtax" else trl_seconds
    with tempfile.TemporaryDirectory() as folder:
        measure(asked, rows, 1, Path(folder) / "unmeasured")
        found = measure(asked, rows, steps_of(asked), Path(folder) / "measured")
    print(json.dumps({"seconds": found, "precision": asked.precision}))


def steps_of(asked: argparse.Namespace) -> int:
    """Steps of one pass over the rows."""
    return math.ceil(asked.n / BATCH)


def rate(side: str, asked: argparse.Namespace) -> tuple[float, str]:
    """Examples a second of one run, and the precision that `auto` became."""
    command = [sys.executable, __file__, "--side", side, "--model", asked.model, "--mode", asked.mode]
    command += ["--precision", asked.precision, "--n", str(asked.n)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return steps_of(asked) * BATCH / found["seconds"], found["precision"]


def main() -> None:
    """Let the two sides take turns; print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m-reasoner")
    parser.add_argument("--mode", default="lora_up_proj_only_from10_to19_r1")
    parser.add_argument("--precision", default="auto", help="of lowtax; TRL's own default is bfloat16 autocast")
    parser.add_argument("--n", type=int, default=64, help="conversations")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "train_vs_trl.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        return one_side(asked)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    precision = asked.precision
    for number in range(1, asked.repeats + 1):
        for side in SIDES:
            found, precision = rate(side, asked)
            rates[side].append(found)
            print(f"run {number}: {side} {found:.2f} examples/s", flush=True)
    ratios = [a / b for a, b in zip(rates["lowtax"], rates["trl"], strict=True)]
    result: dict[str, Any] = {
        "examples_per_second": {side: [round(r, 3) for r in found] for side, found in rates.items()},
        "ratio": {
            "min": round(min(ratios), 2),
            "median": round(statistics.median(ratios), 2),
            "max": round(max(ratios), 2),
        },
        "settings": {
            "model": asked.model,
            "mode": asked.mode,
            "precision": precision,
            "n": asked.n,
            "batch_size": BATCH,
        },
        "trl": metadata.version("trl"),
    }
    write_json(asked.out, {**result, **provenance()})
    ratio = result["ratio"]
    print(f"lowtax / TRL: median {ratio['median']} (from {ratio['min']} to {ratio['max']}); written to {asked.out}")


if __name__ == "__main__":
    main()
