"""A study by workers gives the rows, adapters and table of one process, whatever happens to the workers."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from guides import blocks
from small_study import run, write_recipe
from worked import SMALL, Killer, by_workers, events, history, measured

import lowtax as lt
from lowtax.common.errors import Busy, UserError
from lowtax.study import recipe, study
from lowtax.study.dryrun.plan import plan
from lowtax.study.units import graph, pools
from lowtax.study.units.base import REPLIES_AT_ONCE
from lowtax.study.units.driver import Driver
from lowtax.study.units.processes import Processes


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict]:
    """A recipe, and all that one process makes of it."""
    folder = tmp_path_factory.mktemp("units")
    path = write_recipe(folder, tiny_model, **SMALL)
    run(path, folder / "one")
    return path, measured(folder / "one")


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch, one_template: None) -> None:
    assert REPLIES_AT_ONCE > 7
    monkeypatch.setattr("lowtax.study.units.base.REPLIES_AT_ONCE", 7)
    monkeypatch.setattr("lowtax.study.units.base.BATCHES_AT_ONCE", 0)


def kinds(ids: Iterable[str]) -> Counter[str]:
    return Counter(id_.partition("/")[0] for id_ in ids)


def test_workers_that_are_killed_in_every_stage_make_what_one_process_makes(one, tmp_path):
    path, expected = one
    out = tmp_path / "out"
    with Killer(out, ("train", "sample", "judge")) as killer:
        table, driver = by_workers(path, out, lambda: pools.local(2))
    assert killer.kills >= 1, history(out)  # a unit may have ended before
    assert measured(out) == expected, history(out)
    assert "failed" not in table, table["failed"]
    states = {event["state"] for event in events(out)}
    assert states in ({"begun", "again", "done"}, {"begun", "done"}), history(out)  # a kill right after the end
    assert driver.scheduler.scheduling / driver.scheduler.ended < 0.2  # bench/workers.py measures it
    settings = recipe.load(path)
    planned = [unit.id for unit in graph.units_of(settings, plan(settings))]
    begun = {event["unit"] for event in events(out)}
    expected_kinds = kinds(planned) - Counter(["compare"])
    assert kinds(begun) == expected_kinds, f"planned: {sorted(planned)}\nbegun: {sorted(begun)}\n{history(out)}"
    assert len([unit for unit in begun if unit.startswith("sample/r1")]) == 3  # 16 requests


def test_a_driver_that_is_killed_is_resumed_by_repeating_it(one, tmp_path, monkeypatch):
    path, expected = one
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pools, "Processes", Processes)  # a template of its own, that ends with it
        child = multiprocessing.get_context("fork").Process(target=by_workers, args=(path, out, lambda: pools.local(1)))
        child.start()
    until = time.monotonic() + 600  # where others use the machine, a template needs minutes to import torch
    while time.monotonic() < until and not any(event["unit"].startswith("sample/r1") for event in events(out)):
        time.sleep(0.02)
    with pytest.raises(Busy, match="Another lowtax process"), study.Study(recipe.load(path), out):
        pass  # a second driver is refused
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    trained = [event for event in events(out) if event["unit"] == "train/r1/seed-0" and event["state"] == "done"]
    by_workers(path, out, lambda: pools.local(1))
    assert trained
    assert measured(out) == expected
    assert sum(event["unit"] == "train/r1/seed-0" and event["state"] == "begun" for event in events(out)) == 1


def test_the_guides_example_in_python_is_the_command(one, tmp_path, capsys):
    path, expected = one
    [code] = blocks("guides/many-machines.md", "python")
    places = {"recipes/quickstart.yaml": path, "runs/quickstart": tmp_path / "out"}
    for name, place in places.items():
        assert f'"{name}"' in code
        code = code.replace(f'"{name}"', repr(str(place)))
    exec(code, {})
    assert measured(tmp_path / "out") == expected
    assert capsys.readouterr().out.startswith("base None {")
    with pytest.raises(UserError, match="patience is for workers"):
        lt.run(path, tmp_path / "out", patience=3.0)


def test_own_answers_are_drawn_by_workers_before_training(tmp_path, tiny_model):
    """The fake engine's replies of adapters depend on their folders, so what is compared is data and adapters."""
    prompts = "".join(json.dumps({"prompt": f"Tell me about thing {i}."}) + "\n" for i in range(12))
    (tmp_path / "prompts.jsonl").write_text(prompts)
    own = {"data": [{"source": str(tmp_path / "prompts.jsonl"), "answers": "self"}], "engine": "fake", "edited": {}}
    arms = {"r1": SMALL["arms"]["r1"]}
    path = write_recipe(tmp_path, tiny_model, **SMALL | own | {"arms": arms, "sampling": {"max_new_tokens": 60}})
    run(path, tmp_path / "one")
    by_workers(path, tmp_path / "two", lambda: pools.local(1))
    assert next(event["unit"] for event in events(tmp_path / "two")) == "answers/base"
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    same = [name for name in one if name.startswith(("data/", "arms/"))]
    assert len(same) == 3
    assert {name: one[name] for name in same} == {name: two[name] for name in same}


def test_arms_that_start_from_others_attacks_and_judges_are_as_in_one_process(tmp_path, tiny_model):
    arms = {"last": {"start": "half"}, "more": {"start": "r1"}, "r1": SMALL["arms"]["r1"]}
    plain = {"source": "builtin:harmful", "split": "test", "n": 4}
    talk = {"name": "pap", "attacker": str(tiny_model), "attacker_tokens": 8, "budget": 1}
    changes = {
        "arms": arms,
        "judges": ["keywords"],
        "harmful": [plain, plain | {"n": 2, "attack": "prefill"}, plain | {"n": 2, "attack": talk}],
    }
    path = write_recipe(tmp_path, tiny_model, **SMALL | changes)
    run(path, tmp_path / "one")
    by_workers(path, tmp_path / "two", lambda: pools.local(2))
    assert measured(tmp_path / "two") == measured(tmp_path / "one")
    ended = [event["unit"] for event in events(tmp_path / "two") if event["state"] == "done"]
    order = ["train/r1/seed-0", "edit/half/seed-0", "train/last/seed-0"]
    assert sorted(order, key=ended.index) == order
    assert ended.index("train/r1/seed-0") < ended.index("train/more/seed-0")
    assert "sample/conversations" in ended
    assert any(unit.endswith("-keywords/1-of-1") for unit in ended)
    settings = recipe.load(path)
    planned = {unit.id: unit.after for unit in graph.units_of(settings, plan(settings))}
    assert planned["train/last/seed-0"] == ("edit/half/seed-0",)
    assert "sample/conversations" in planned


def test_an_arm_whose_parent_fails_is_left_out(tmp_path, tiny_model):
    arms = {"r1": SMALL["arms"]["r1"], "more": {"start": "r1"}, "full": {"mode": "full"}}
    path = write_recipe(tmp_path, tiny_model, **SMALL | {"arms": arms, "edited": {}})
    (tmp_path / "out" / "arms" / "r1").mkdir(parents=True)
    (tmp_path / "out" / "arms" / "r1" / "seed-0").write_text("in the way")
    table, _ = by_workers(path, tmp_path / "out", lambda: pools.local(1))
    failed = {row["arm"]: row["reason"] for row in table["failed"]}
    assert set(failed) == {"r1", "more"}
    assert failed["more"] == "r1, from which it starts, failed"
    assert {row["arm"] for row in table["rows"]} == {"base", "full"}


def test_a_recipe_for_several_gpus_is_refused_without_a_group(one, tmp_path):
    path, _ = one
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    settings = recipe.load(path, [f"execution.deepspeed={tmp_path}/zero.json"])
    with study.Study(settings, tmp_path / "out") as work, pytest.raises(UserError, match="give --gpus-each N"):
        Driver(work, None).run()  # refused before any worker is used
