"""A study on a Ray cluster of three nodes on this machine: killed workers, a removed node, and no shared folder.

Minutes: `make test-ray` runs them.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_study import run, write_recipe
from worked import SMALL, Killer, by_workers, events, measured, process_of

from lowtax.common.errors import UserError

ray = pytest.importorskip("ray", reason="the package ray is not installed: make test-ray")
if not os.environ.get("LOWTAX_RAY"):
    pytest.skip("minutes: make test-ray runs them", allow_module_level=True)

os.environ.setdefault("RAY_worker_niceness", "0")  # else other processes come first
from ray.cluster_utils import Cluster as Nodes  # noqa: E402

from lowtax.study.units.on_ray import Cluster  # noqa: E402

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


def wait_for(out: Path, happened: Callable[[dict], bool]) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until and not any(map(happened, events(out))):
        time.sleep(0.02)


def test_a_cluster_that_is_too_small_is_one_sentence(nodes, tmp_path):
    with pytest.raises(UserError, match="--workers 9 needs 9 cores, 1 for each, and the Ray cluster has 3"):
        on(nodes, tmp_path, 9)


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
    command = [sys.executable, "-m", "lowtax", "run", path, "--out", out, "--on", f"ray://{nodes.address}"]
    driver = subprocess.Popen([*map(str, command), "--workers", "2"], stdout=subprocess.DEVNULL)
    wait_for(out, lambda event: event["unit"].startswith("sample/r1"))
    driver.kill()
    driver.wait()
    by_workers(path, out, lambda: on(nodes, out))
    assert measured(out) == expected


def test_a_worker_that_never_returns(nodes, one, tmp_path):
    path, expected = one
    out = tmp_path / "out"

    def stop() -> None:
        wait_for(out, lambda event: event["unit"].startswith("sample/") and event["state"] == "begun")
        begun = [event for event in events(out) if event["unit"].startswith("sample/")][-1]
        os.kill(process_of(begun), signal.SIGSTOP)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    by_workers(path, out, lambda: on(nodes, out), patience=40)
    thread.join()
    assert measured(out) == expected


def test_a_node_that_is_removed(nodes, one, tmp_path):
    path, expected = one
    out = tmp_path / "out"

    def remove() -> None:
        wait_for(out, lambda event: event["unit"].startswith("sample/"))
        nodes.remove_node(sorted(nodes.worker_nodes, key=lambda node: node.node_id)[-1], allow_graceful=False)

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
