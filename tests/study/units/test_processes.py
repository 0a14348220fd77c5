"""What each worker gets of a machine, and a worker that cannot start."""

import os

import pytest

from lowtax.common import launch
from lowtax.common.errors import UserError
from lowtax.study.units.on_ray import passed_on, places, spread
from lowtax.study.units.processes import Processes, environments, visible_gpus


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_cores_and_memory_are_divided():
    one, two = environments(2, [], 8)
    assert one == two
    assert (one["OMP_NUM_THREADS"], one["VLLM_CPU_KVCACHE_SPACE"]) == ("4", "2")
    assert environments(8, [], 2)[7]["OMP_NUM_THREADS"] == "1"


def test_the_number_of_threads_of_a_user_is_that_of_each_worker(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environments(2, [], 8)[1]["OMP_NUM_THREADS"] == "3"


def test_every_worker_has_its_own_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,6,7")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(4, visible_gpus(), 8)] == ["4", "5", "6", "7"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(2, visible_gpus(), 8, 2)] == ["4,5", "6,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_too_few_gpus_are_one_sentence():
    with pytest.raises(UserError, match="--workers 3 needs 3 GPUs, 1 for each, and there are 2 here: give --workers 2"):
        environments(3, ["0", "1"], 8)
    with pytest.raises(UserError, match="--gpus-each 4 needs 4 GPUs, and there are 2 here"):
        environments(1, ["0", "1"], 8, 4)


def test_a_cluster_with_too_few_gpus_is_one_sentence():
    assert places(None, 64, 8, 2) == 4
    assert places(None, 64, 0, 2) == 64
    with pytest.raises(UserError, match="--workers 5 needs 10 GPUs, 2 for each, and the Ray cluster has 8: give --w"):
        places(5, 64, 8, 2)
    with pytest.raises(UserError, match="The Ray cluster has 1 GPUs, and a worker needs 2: add a node"):
        places(None, 64, 1, 2)


def test_workers_on_several_nodes_each_have_room():
    assert spread(None, [8, 8, 8], 2) == 12
    assert spread(None, [1, 1, 1], 2) == 1
    assert spread(None, [3, 1, 1], 2) == 2
    assert spread(1, [1, 1], 2) == 1
    with pytest.raises(
        UserError, match=r"--workers 2 with --nodes-each 2 needs more than the Ray .*: give --workers 1"
    ):
        spread(2, [1, 1], 2)
    with pytest.raises(UserError, match=r"--nodes-each 3 needs as many nodes .*, and there are 2: add nodes"):
        spread(None, [4, 4, 0], 3)


def test_the_variables_of_a_launcher_are_passed_on_to_other_machines():
    own = passed_on({"FSDP_VERSION": "2", "ACCELERATE_USE_FSDP": "true", "HOME": "/root", "PYTHONPATH": "/mine"})
    assert own.pop("PYTHONPATH").endswith("/src:/mine")
    assert own == {"FSDP_VERSION": "2", "ACCELERATE_USE_FSDP": "true"}


def test_tables_in_memory_are_divided_by_the_workers_of_a_machine(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    monkeypatch.setenv(launch.WORKERS, "4")
    assert launch.on_this_machine() == 4


def test_a_worker_that_cannot_start_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "multiprocessing").mkdir()
    (tmp_path / "multiprocessing" / "__init__.py").write_text("raise ImportError('it is broken')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    pool = Processes([{"PYTHONPATH": path}], copied=False)

    def until_it_is_over() -> None:
        for _ in range(100):
            pool.poll(1.0)

    try:
        with pytest.raises(UserError, match=r"could not be started, 3 times in a row \(ImportError: it is broken\)"):
            until_it_is_over()
    finally:
        pool.close()
