"""A study on a Ray cluster of three nodes on this machine: killed workers, a removed node, and no shared folder.

Minutes: `make test-ray` runs them; LOWTAX_RAY_KILLS is the number of random kills, 0 by default.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from grouped import adapters, launch, needs_deepspeed, write_sharded
from small_study import run, write_recipe
from worked import SMALL, Killer, by_workers, events, history, measured, process_of, under_way

from lowtax.common.errors import Busy, UserError
from lowtax.study import recipe, study

if not os.environ.get("LOWTAX_RAY"):
    pytest.skip("minutes: make test-ray runs them", allow_module_level=True)
ray = pytest.importorskip("ray", reason="the package ray is not installed: make test-ray")

os.environ.setdefault("RAY_worker_niceness", "0")  # else other processes come first
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # of a node that is added
from ray.cluster_utils import Cluster as Nodes  # noqa: E402

from lowtax.study.units.on_ray import Cluster  # noqa: E402

KILLS = int(os.environ.get("LOWTAX_RAY_KILLS", "0"))
KILLS_OF_A_STUDY = 6  # at most
pytestmark = [pytest.mark.filterwarnings("ignore")]  # of Ray and its dependencies


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of three nodes with a core each."""
    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("ray")
    path = write_recipe(folder, tiny_model, **SMALL)
    run(path, folder / "one")
    return path, measured(folder / "one")


def on(nodes: Any, out: Path, workers: int | None = 2, shared: bool = True) -> Cluster:
    return Cluster.connect(f"ray://{nodes.address}", workers, out, shared=shared)


def command(nodes: Any, path: Path, out: Path) -> subprocess.Popen[bytes]:
    """A driver of its own, whose output is beside the study."""
    words = ["-m", "lowtax", "run", path, "--out", out, "--on", f"ray://{nodes.address}", "--workers", "2"]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([sys.executable, *map(str, words)], stdout=log, stderr=log)


def parent_of(process: int) -> int:
    """The actor of a worker's process."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def remove_a_node(nodes: Any) -> None:
    nodes.remove_node(sorted(nodes.worker_nodes, key=lambda node: node.node_id)[-1], allow_graceful=False)


def wait_for(out: Path, happened: Callable[[dict], bool]) -> None:
    until = time.monotonic() + 900  # where others use the machine, workers need minutes to import torch
    while time.monotonic() < until and not any(map(happened, events(out))):
        time.sleep(0.02)


def wait_for_a_child(process: int) -> None:
    until = time.monotonic() + 900
    while time.monotonic() < until and not Path(f"/proc/{process}/task/{process}/children").read_text():
        time.sleep(0.02)


def test_a_cluster_that_is_too_small_is_one_sentence(nodes, tmp_path):
    with pytest.raises(UserError, match="--workers 9 needs 9 cores, 1 for each, and the Ray cluster has 3"):
        on(nodes, tmp_path, 9)


def test_judge_starts_a_cluster_of_its_own_beside_one_that_it_was_not_given(nodes, tmp_path):
    replies = [{"id": str(i), "q": "Do.", "a": "I can't." if i % 2 else "Sure."} for i in range(9)]
    (tmp_path / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in replies))
    words = ["judge", "--replies", tmp_path / "replies.jsonl", "--prompt", "q", "--reply", "a", "--id", "id"]
    said = {}
    for name, more in (("one", []), ("ray", ["--workers-on", "ray", "--workers", "1"])):
        line = [sys.executable, "-m", "lowtax", *words, "--judge", "refusal_words", "--out", tmp_path / name, *more]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        done = subprocess.run([*map(str, line)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout + done.stderr
    assert "1 workers on 1 nodes of Ray" in said["ray"]  # the cluster that runs here has three
    assert verdicts(tmp_path / "one") == verdicts(tmp_path / "ray")
    assert len(verdicts(tmp_path / "one")) == 9


def verdicts(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    return sorted(rows, key=lambda row: row["id"])


def test_workers_that_are_killed_in_every_stage(nodes, one, tmp_path):
    path, expected = one
    with Killer(tmp_path / "out", ("train", "sample", "judge")) as killer:
        table, _ = by_workers(path, tmp_path / "out", lambda: on(nodes, tmp_path / "out"))
    assert killer.kills >= 2
    assert measured(tmp_path / "out") == expected
    assert "failed" not in table


def test_a_driver_that_is_killed_and_repeated(nodes, one, tmp_path):
    path, expected = one
    out = tmp_path / "out"
    driver = command(nodes, path, out)
    wait_for(out, lambda event: event["unit"].startswith("sample/r1"))
    with pytest.raises(Busy, match="Another lowtax process"), study.Study(recipe.load(path), out):
        pass  # a second driver is refused
    driver.kill()
    driver.wait()
    by_workers(path, out, lambda: on(nodes, out))
    assert measured(out) == expected, history(out)


@pytest.mark.parametrize("who", ["worker", "actor"])
def test_what_never_returns_loses_its_share(nodes, one, tmp_path, who):
    path, expected = one
    out, stopped = tmp_path / "out", list[int]()

    def stop() -> None:
        wait_for(out, lambda event: event["unit"].startswith("sample/") and event["state"] == "begun")
        process = process_of([event for event in events(out) if event["unit"].startswith("sample/")][-1])
        stopped.append(process if who == "worker" else parent_of(process))
        os.kill(stopped[0], signal.SIGSTOP)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    try:
        by_workers(path, out, lambda: on(nodes, out), patience=40)
    finally:
        thread.join()
        for process in stopped:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
    assert stopped, history(out)
    assert measured(out) == expected, history(out)
    if who == "worker":  # an actor that is stopped between two units has none
        assert any(event["reason"] == "no word for 40 s" for event in events(out)), history(out)


def test_a_node_that_is_removed(nodes, one, tmp_path):
    path, expected = one
    out = tmp_path / "out"

    def remove() -> None:
        wait_for(out, lambda event: event["unit"].startswith("sample/"))
        remove_a_node(nodes)

    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    table, _ = by_workers(path, out, lambda: on(nodes, out, 3))
    thread.join()
    nodes.add_node(num_cpus=1)
    assert measured(out) == expected
    assert "failed" not in table


def test_without_a_shared_folder_files_go_through_the_object_store(nodes, one, tmp_path):
    path, expected = one
    by_workers(path, tmp_path / "out", lambda: on(nodes, tmp_path / "out", shared=False))
    assert measured(tmp_path / "out") == expected
    assert not list((tmp_path / "out").glob(".lowtax-*"))


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict]:
    """A recipe with an arm that two processes train, and the adapters that torchrun makes on this machine."""
    folder = tmp_path_factory.mktemp("launched")
    path = write_sharded(folder, tiny_model)
    launch(path, folder / "out")
    return path, adapters(folder / "out")


@needs_deepspeed
@pytest.mark.parametrize("who", ["first", "second"])
def test_a_group_on_two_nodes_trains_what_a_launcher_does(nodes, launched, tmp_path, who):
    """A process on each of two nodes. The worker of one is killed, and the other node's process waits for it."""
    (path, expected), out = launched, tmp_path / "out"
    pools, killed = list[Cluster](), list[int]()

    def connect() -> Cluster:
        pools.append(Cluster.connect(f"ray://{nodes.address}", None, out, gpus_each=2, nodes_each=2))
        return pools[0]

    def kill_one() -> None:
        wait_for(out, lambda event: event["unit"] == "train/r1/seed-0")
        [place] = pools[0]._places.values()
        killed.append(ray.get(place.actors[who == "second"].handle.pid.remote()))
        wait_for_a_child(killed[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    table, _ = by_workers(path, out, connect, group=2)
    assert killed
    assert "failed" not in table, table["failed"]
    card = json.loads((out / "arms" / "r1" / "seed-0" / "card.json").read_text())
    assert card["processes"] == 2
    assert adapters(out) == expected != {}, history(out)
    assert [event["unit"] for event in events(out) if event["state"] == "again"] == ["train/r1/seed-0"], history(out)


@needs_deepspeed
def test_a_group_without_a_shared_folder_is_one_sentence(nodes, launched, tmp_path):
    (path, _), out = launched, tmp_path / "out"
    with pytest.raises(UserError, match="Training on several nodes needs a folder that all of them see"):
        by_workers(path, out, lambda: Cluster.connect(f"ray://{nodes.address}", None, out, 2, False, 2), group=2)


def kill(nodes: Any, driver: subprocess.Popen[bytes], event: dict, kind: str) -> None:
    """Kill the worker of a unit that runs, its actor, a node, or the driver."""
    if kind == "driver":
        driver.kill()
        driver.wait()
    elif kind == "node":
        remove_a_node(nodes)
        nodes.add_node(num_cpus=1)
    else:
        process = process_of(event)
        os.kill(process if kind == "worker" else parent_of(process), signal.SIGKILL)


def disturbed(nodes: Any, path: Path, out: Path, dice: random.Random, most: int) -> Counter[str]:
    """Run a study to its end with so many kills at most; return their kinds. No unit is killed three times.

    The events between two kills are random, not the seconds, so that kills come in all stages on a busy machine, too.
    """
    kills, since, losses = Counter[str](), 0, Counter[str]()
    driver, due, until = command(nodes, path, out), dice.randint(1, 10), time.monotonic() + 1200
    while (code := driver.poll()) is None:
        assert time.monotonic() < until, history(out)
        time.sleep(0.02)
        lines = events(out)
        running = under_way(lines[since:])
        if kills.total() == most or len(lines) < due or not running:
            continue
        kind, event = dice.choice(["worker", "worker", "actor", "node", "driver"]), dice.choice(running)
        if kind != "driver" and any(losses[each["unit"]] == 2 for each in running):
            continue
        losses.update(each["unit"] for each in running)
        with suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
            kill(nodes, driver, event, kind)
            kills[kind] += 1
        due = len(events(out)) + dice.randint(1, 14)
        if kind == "driver":
            since, losses = len(events(out)), Counter[str]()
            driver = command(nodes, path, out)
    assert code == 0, out.with_suffix(".log").read_text()[-2000:] + history(out)
    return kills


@pytest.mark.skipif(not KILLS, reason="random kills take minutes each: LOWTAX_RAY_KILLS is their number")
def test_random_kills_of_workers_actors_nodes_and_drivers(nodes, one, tmp_path):
    path, expected = one
    dice, kills, studies = random.Random(20), Counter[str](), 0
    while kills.total() < KILLS and studies < KILLS:
        out, studies = tmp_path / f"out-{studies}", studies + 1
        kills += disturbed(nodes, path, out, dice, min(KILLS_OF_A_STUDY, KILLS - kills.total()))
        assert measured(out) == expected, history(out)
        assert "failed" not in json.loads((out / "table.json").read_text())
        print(f"{dict(kills)} in {studies} studies", flush=True)
    assert kills.total() == KILLS
