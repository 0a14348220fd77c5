"""Measure workers with the fake engine at a fixed cost for each token: speed-up, overhead of a unit, and a large plan.

    python bench/workers.py
    python bench/workers.py --requests 1920 --plan 10000 --out /tmp/workers.json
    python bench/workers.py --model

The engine sleeps, so that eight workers on few cores behave as on eight GPUs. It says what it does, with a line of
workers every ten seconds; the usual size takes two minutes on free cores, and a tenth of it 20 seconds, after the
import of the libraries. A part that is not over after `--most` seconds is ended, and not in the results. Writes
bench/results/workers.json.

--model: the embedded model instead, one process with all cores beside as many workers with one each, in turn; writes
bench/results/workers_model.json.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType

import yaml

from lowtax.common.files import write_json
from lowtax.common.log import say, show_progress
from lowtax.common.provenance import provenance

ENGINE = '''
import time
from lowtax.engines.fake import Fake

class Slow(Fake):
    """The fake engine; each token takes 0.2 ms."""

    def generate(self, requests):
        for completion in super().generate(requests):
            time.sleep(0.0002 * completion.tokens)
            yield completion
'''
REQUESTS, WORKERS, PLAN = 19200, 8, 100_000
MOST = 600  # seconds of a part
RESULT = Path(__file__).parent / "results" / "workers.json"


def recipe(folder: Path, engine: str, n: int) -> Path:
    """Write a recipe without arms that draws so many replies."""
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(n)))
    settings = {
        "name": "workers",
        "model": "builtin:smollm2-135m-reasoner",
        "engine": engine,
        "precision": "float32",
        "batch_size": 16,
        "judge": "refusal_words",
        "judged_also": [],
        "sampling": {"max_new_tokens": 64},
        "ordinary": [{"source": str(folder / "prompts.jsonl")}],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def sampled(path: Path, out: Path, workers: int) -> dict:
    """Return the seconds of sampling, from the first share that begins to the last that ends, and of scheduling."""
    from lowtax.study import recipe as recipes
    from lowtax.study import study
    from lowtax.study.units.driver import Driver
    from lowtax.study.units.pools import open_pool

    with study.Study(recipes.load(path, trust=True), out) as work, open_pool(workers, None, out) as pool:
        driver, began = Driver(work, pool), time.time()
        driver.run()
    events = [json.loads(line) for line in (out / "units.jsonl").read_text().splitlines()]
    shares = [event for event in events if event["unit"].startswith("sample/")]
    begun = {e["unit"]: datetime.fromisoformat(e["at"]).timestamp() for e in shares if e["state"] == "begun"}
    ends = [begun[event["unit"]] + event["seconds"] for event in shares if event["state"] == "done"]
    scheduler, first = driver.scheduler, min(begun.values())
    return {
        "workers": workers,
        "seconds": round(max(ends) - first, 2),
        "units": scheduler.ended,
        "start_seconds": round(first - began, 2),
        "scheduling_cpu_ms": round(1000 * scheduler.scheduling / scheduler.ended, 2),
        "storing_cpu_ms": round(1000 * scheduler.storing / scheduler.ended, 2),
    }


def of_model(folder: Path, requests: int, repeats: int) -> dict:
    """Return the seconds in which one process, and a worker for each core, draw the same replies."""
    cores = len(os.sched_getaffinity(0))
    path = recipe(folder, "hf", requests)
    settings = yaml.safe_load(path.read_text()) | {"batch_size": 24, "sampling": {"max_new_tokens": 32}}
    path.write_text(yaml.safe_dump(settings))
    seconds: dict[str, list[float]] = {"one process": [], f"{cores} workers": []}
    for number in range(repeats):
        program = (
            "import sys, time; from pathlib import Path; from lowtax.study import recipe, study\n"
            "with study.Study(recipe.load(sys.argv[1]), sys.argv[2]) as s:\n"
            "    began = time.perf_counter()\n"
            "    s.sample([*s.reply_sheets().values()])\n"
            "    print(time.perf_counter() - began)"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
        say(f"{requests} replies of the embedded model by one process, {number + 1} of {repeats} ...")
        command = [sys.executable, "-c", program, str(path), str(folder / f"one-{number}")]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        seconds["one process"].append(round(float(done.stdout.split()[-1]), 1))
        say(f"  {seconds['one process'][-1]} s; now by {cores} workers ...")
        seconds[f"{cores} workers"].append(sampled(path, folder / f"several-{number}", cores)["seconds"])
    return seconds


def planned(folder: Path, n: int) -> dict:
    """Return seconds and memory of a plan of n requests."""
    from lowtax.common.records import Prompt, Subject
    from lowtax.engines.sampling import Sheet, planned
    from lowtax.engines.settings import EngineSettings, Sampling
    from lowtax.study.units.base import cut, sampling_size

    base = Subject("base", None, None, 0, "any", None, "any")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prompts = [Prompt(id=f"{i:016x}", source="bench", text=f"Say {i}.") for i in range(n)]
    began, cpu = time.perf_counter(), time.process_time()
    sheet = Sheet(folder / "replies.jsonl", prompts, Sampling(max_new_tokens=64))
    plan, todo = planned([sheet], [base], EngineSettings("fake", "float32", 16), {sheet.path: set()})
    shares = cut(plan["any"], sampling_size("fake", 16), lambda ask: ask.id)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "requests": len(todo["any"]),
        "shares": len(shares),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "megabytes": round(grown),
    }


class Over(Exception):
    """The time of a part is over."""


@contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    """End the block after so many seconds, and go on after it."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Over

    say(f"{what} ...")
    before, began = signal.signal(signal.SIGALRM, end), time.perf_counter()
    signal.alarm(seconds)
    try:
        yield
        say(f"  {time.perf_counter() - began:.0f} s")
    except Over:
        say(f"  ended after {seconds} s: give a smaller --requests, or a larger --most")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="store_true", help="the embedded model instead of an engine that sleeps")
    parser.add_argument("--requests", type=int, help=f"requests to draw; {REQUESTS}, with --model 576")
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"workers beside one; {WORKERS}")
    parser.add_argument("--plan", type=int, default=PLAN, help=f"requests of the plan; {PLAN}")
    parser.add_argument("--repeats", type=int, default=2, help="of --model; 2")
    parser.add_argument("--most", type=int, default=MOST, help=f"seconds after which a part is ended; {MOST}")
    parser.add_argument("--out", type=Path, help="the file of the results")
    return parser.parse_args()


def main() -> None:
    """Measure and write the results."""
    chosen = options()
    show_progress()
    results: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.model:
            with at_most(chosen.most, "the embedded model"):
                results = of_model(folder, chosen.requests or 576, chosen.repeats)
        else:
            n, numbers = chosen.requests or REQUESTS, (1, chosen.workers)
            with at_most(chosen.most, f"a plan of {chosen.plan:,} requests"):
                results["plan"] = planned(folder, chosen.plan)
            (folder / "slow.py").write_text(ENGINE)
            path, results["sampling"] = recipe(folder, f"{folder}/slow.py:Slow", n), []
            for workers in numbers:
                with at_most(chosen.most, f"{n:,} replies by {workers} workers"):
                    results["sampling"].append(sampled(path, folder / f"out-{workers}", workers))
            if len(results["sampling"]) == len(numbers):
                one, several = (row["seconds"] for row in results["sampling"])
                results["speed_up"] = round(one / several, 2)
    out = chosen.out or (RESULT.with_stem("workers_model") if chosen.model else RESULT)
    write_json(out, results | {"requests": chosen.requests or (576 if chosen.model else REQUESTS)} | provenance())
    say(f"written to {out}")


if __name__ == "__main__":
    main()
