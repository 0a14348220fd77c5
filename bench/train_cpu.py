"""Training speed on CPU beside what one would use instead: TRL at its defaults, TRL tuned, a hand-written PEFT loop.

The embedded model, the quickstart's refusals, a rank-1 adapter on `up_proj` of layers 10 to 19, five epochs. Every side
trains the same adapter on the same batches (`training`); their losses are compared. Each run is a process of its own,
and the sides take turns. The clock runs from a loaded model to the saved adapter.

    python bench/train_cpu.py               # needs: pip install 'lowtax[bench]'; about eight minutes

The file has vs_trl_default, vs_trl_tuned, vs_plain_peft, share_of_floor, same_loss and machine, and the spread of each.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from lowtax.common.files import write_json
from lowtax.common.provenance import provenance

RESULTS = Path(__file__).parent / "results"
MODEL = "builtin:smollm2-135m-reasoner"
SIDES = ("lowtax", "trl", "trl_tuned", "plain")
CLOSE = 0.03  # relative difference of mean losses that bfloat16 arithmetic explains


def one_side(asked: argparse.Namespace) -> None:
    """In a process of its own: one unmeasured step, then the measured run; prints what it found as JSON."""
    import torch
    import training

    from lowtax.data.specs import Data
    from lowtax.data.training_sets import conversations
    from lowtax.models import loading
    from lowtax.models.placement import parse_mode
    from lowtax.training.encoding import encode_all
    from lowtax.training.settings import Execution, Train

    tokenizer = loading.load_tokenizer(asked.model)
    rows = conversations(Data(source="builtin:refusals", n=asked.n), 0)
    precision = loading.precision(asked.precision)
    steps = -(-asked.n * asked.epochs // asked.batch_size)

    def task(steps: int) -> training.Task:
        return training.Task(
            load=lambda dtype: loading.load_model(asked.model, dtype),
            model=asked.model,
            tokenizer=tokenizer,
            placement=parse_mode(asked.mode).model_copy(update={"dropout": 0.0}),
            settings=Train(lr=1e-3, steps=steps, batch_size=asked.batch_size, warmup_steps=0),
            rows=rows,
            examples=encode_all(tokenizer, rows, 1024).examples,
            precision=precision,
            execution=Execution(compile=asked.compile),
        )

    # Before training, whose memory leaves large products at half the rate at times.
    rate = training.matmul_rate(loading.device(), loading.DTYPES[precision])
    side = getattr(training, asked.side)
    with tempfile.TemporaryDirectory() as folder:
        side(task(1), Path(folder) / "unmeasured")
        found = side(task(steps), Path(folder) / "measured")
    floor = training.unavoidable_flops(task(steps)) / rate
    result = {
        "examples_per_second": steps * asked.batch_size / found.seconds,
        "losses": found.losses,
        "share_of_floor": floor / found.seconds,
        "gflops_of_a_matmul": rate / 1e9,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


def run(side: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One run of one side."""
    command = [sys.executable, __file__, "--side", side, "--model", asked.model, "--mode", asked.mode]
    command += ["--precision", asked.precision, "--n", str(asked.n), "--epochs", str(asked.epochs)]
    command += ["--batch-size", str(asked.batch_size), *(["--compile"] if asked.compile else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and most."""
    return {name: round(f(values), 3) for name, f in (("min", min), ("median", statistics.median), ("max", max))}


def same_loss(runs: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether every side's mean loss is ours, to what bfloat16 explains."""
    means = {side: statistics.fmean(found[0]["losses"]) for side, found in runs.items()}
    return all(abs(mean - means["lowtax"]) <= CLOSE * means["lowtax"] for mean in means.values())


def main() -> None:
    """Let the sides take turns; print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--mode", default="lora_up_proj_only_from10_to19_r1")
    parser.add_argument("--precision", default="auto", help="of lowtax and the plain loop; TRL's default is autocast")
    parser.add_argument("--n", type=int, default=40, help="conversations")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="lowtax with execution.compile")
    parser.add_argument("--out", type=Path, default=RESULTS / "train_cpu.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        return one_side(asked)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(1, asked.repeats + 1):
        for side in SIDES:
            runs[side].append(run(side, asked))
            print(f"run {number}: {side} {runs[side][-1]['examples_per_second']:.2f} examples/s", flush=True)
    rates = {side: [found["examples_per_second"] for found in runs[side]] for side in SIDES}

    def over(side: str) -> dict[str, float]:
        return spread([ours / theirs for ours, theirs in zip(rates["lowtax"], rates[side], strict=True)])

    ratios = {"vs_trl_default": over("trl"), "vs_trl_tuned": over("trl_tuned"), "vs_plain_peft": over("plain")}
    share = spread([found["share_of_floor"] for found in runs["lowtax"]])
    result: dict[str, Any] = {
        **{name: ratio["median"] for name, ratio in ratios.items()},
        "share_of_floor": share["median"],
        "same_loss": same_loss(runs),
        "machine": provenance()["hardware"],
        "spread": {**ratios, "share_of_floor": share},
        "examples_per_second": {side: spread(found) for side, found in rates.items()},
        "mean_loss": {side: round(statistics.fmean(found[0]["losses"]), 4) for side, found in runs.items()},
        "gflops_of_a_matmul": spread([found["gflops_of_a_matmul"] for found in runs["lowtax"]]),
        "settings": {key: getattr(asked, key) for key in ("model", "mode", "n", "epochs", "batch_size", "compile")}
        | {"precision": runs["lowtax"][0]["precision"]},
        "trl": metadata.version("trl"),
    }
    write_json(asked.out, {**result, **provenance()})
    print(json.dumps({key: result[key] for key in (*ratios, "share_of_floor", "same_loss", "machine")}))


if __name__ == "__main__":
    main()
