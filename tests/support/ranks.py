"""Train in several processes, for test_distributed and test_group: `python ranks.py launches.json`.

This replaces torchrun for many short launches, and imports torch only once: for each launch it forks the processes,
sets their ranks, and waits. A launch ends with its jobs, or is killed at the point where a job freezes.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # lowtax sets this too, but DeepSpeed is imported before the fork

from lowtax.common.log import quiet_libraries

quiet_libraries()  # before transformers is imported
# ruff: noqa: E402
from progress import progress_to
from tiny import make_model

from lowtax.common.errors import Stopped, UserError
from lowtax.data.conversations import Conversation
from lowtax.models.loading import load_model
from lowtax.models.placement import parse_mode
from lowtax.study import recipe, study
from lowtax.training.job import Job
from lowtax.training.loop import train
from lowtax.training.settings import Execution, Train

ROWS = [Conversation(f"What is {i} + {i * i}?", f"{i} + {i * i}.", f"It is {i + i * i}, I think.") for i in range(7)]
LIMIT = 180.0  # seconds of a launch; on a busy machine it needs 60


def job_of(spec: dict[str, Any]) -> Job:
    return Job(
        model=spec["model"],
        placement=parse_mode(spec["mode"]).model_copy(update={"dropout": 0.0}),  # each process would draw its own mask
        settings=Train.model_validate(spec["train"]),
        seed=0,
        precision=spec.get("precision", "float32"),
        rows=ROWS,
        methods=spec.get("methods", []),
        execution=Execution.model_validate(spec.get("execution", {})),
    )


def run(jobs: list[dict[str, Any]]) -> None:
    """Train the jobs of a launch in one process; messages go to `said.txt`, errors to `error-RANK.txt`."""
    rank = os.environ.get("RANK", "0")
    if "ACCELERATE_USE_FSDP" in os.environ:
        shard_on_cpu()
    for spec in jobs:
        out = Path(spec["out"])

        (out / f"pid-{rank}").write_text(str(os.getpid()))

        def say(text: str, out: Path = out, freeze_at: str | None = spec.get("freeze_at"), spec: Any = spec) -> None:
            with (out / "said.txt").open("a") as handle:
                handle.write(f"{rank}{text}\n")
            if "signal_at" in spec and text.strip().startswith(spec["signal_at"]):
                os.kill(int((out / "pid-1").read_text()), signal.SIGTERM)
            if freeze_at and text.strip().startswith(freeze_at):
                (out / "frozen").touch()
                time.sleep(LIMIT)

        try:
            with progress_to(say):
                if "recipe" in spec:
                    train_study(spec["recipe"], out)
                else:
                    train(job_of(spec), out)
        except Stopped as stopped:
            (out / f"stopped-{rank}.txt").write_text(str(stopped))
        except UserError as error:
            (out / f"error-{rank}.txt").write_text(str(error))


def train_study(path: str, out: Path) -> None:
    """Train the arms of a recipe, as a script that a launcher starts would."""
    with study.Study(recipe.load(path), out) as work:
        work.train()


def shard_on_cpu() -> None:
    """Make accelerate use FSDP on CPU, where it would silently fall back to data parallel; torch can shard there."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def launch(jobs: list[dict[str, Any]], processes: int, environment: dict[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update(environment)
        os.environ.update({key: str(value) for key, value in (ranks | place).items() if processes > 1})
        failed = 1
        try:
            run(jobs)
            failed = 0
        finally:  # a forked process must not continue with the parent's work
            if failed:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(failed)
    wait(children, [Path(spec["out"]) / "frozen" for spec in jobs if "freeze_at" in spec])


def wait(children: list[int], frozen: list[Path]) -> None:
    """Wait until all processes have ended; kill all of them if one fails or a job is frozen."""
    end = time.monotonic() + LIMIT
    running, failed = set(children), False
    while running:
        time.sleep(0.01)
        for child in list(running):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                running.remove(child)
                failed |= os.waitstatus_to_exitcode(status) > 0
        late = time.monotonic() > end
        if failed or late or any(path.exists() for path in frozen):
            for child in running:
                os.kill(child, signal.SIGKILL)
        if late:
            sys.exit("a launch did not end")
    if failed:
        sys.exit("a process failed")


def warm_up(packages: list[str]) -> None:
    """Import and make what each process would import and make itself, which takes seconds."""
    names = ["torch._dynamo", "transformers.models.llama.modeling_llama", *packages]
    if "deepspeed" in packages:  # its optimiser imports the compiler of torch with the first model
        names += ["deepspeed.runtime.zero.muon.muon_optimizer", "lowtax.training.zero_config"]
    for name in names:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:  # with the first model transformers makes its table of old names
        load_model(str(make_model(Path(folder))))
    gc.freeze()  # garbage collection in each process would take as long as a job


def main() -> None:
    launches = json.loads(Path(sys.argv[1]).read_text())
    warm_up(sys.argv[2:])
    for number, one in enumerate(launches):
        began = time.monotonic()
        for spec in one["jobs"]:
            Path(spec["out"]).mkdir(parents=True, exist_ok=True)
        launch(one["jobs"], one["processes"], one.get("environment", {}))
        print(f"launch {number}: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
