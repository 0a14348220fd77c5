"""A worker trains a sharded arm in several processes: the bits of a launch without workers, also after a kill."""

import json

from grouped import adapters, launch, needs_deepspeed, write_sharded
from worked import Killer, by_workers, events, history

from lowtax.study import recipe, study
from lowtax.study.units import pools
from lowtax.study.units.driver import Driver


@needs_deepspeed
def test_a_group_trains_what_a_launcher_does_and_survives_a_kill(tmp_path, tiny_model):
    path = write_sharded(tmp_path, tiny_model)
    launch(path, tmp_path / "launched")
    with Killer(tmp_path / "out", ("train",), after=2.0) as killer:
        table, _ = by_workers(path, tmp_path / "out", lambda: pools.local(1), group=2)
    assert killer.kills == 1
    assert "failed" not in table, table["failed"]
    assert {row["arm"] for row in table["rows"]} == {"base", "r1"}
    card = json.loads((tmp_path / "out" / "arms" / "r1" / "seed-0" / "card.json").read_text())
    assert card["processes"] == 2
    assert adapters(tmp_path / "out") == adapters(tmp_path / "launched") != {}, history(tmp_path / "out")
    assert any(event["state"] == "again" for event in events(tmp_path / "out"))


@needs_deepspeed
def test_an_arm_that_a_launcher_trained_is_measured_by_workers(tmp_path, tiny_model):
    """As where training needs machines that workers do not have."""
    path = write_sharded(tmp_path, tiny_model)
    launch(path, tmp_path / "out")
    before = adapters(tmp_path / "out")
    with pools.open_pool(1, None, tmp_path / "out") as pool, study.Study(recipe.load(path), tmp_path / "out") as work:
        table = Driver(work, pool).run(train=False)
    assert adapters(tmp_path / "out") == before != {}
    assert {row["arm"] for row in table["rows"]} == {"base", "r1"}
    assert not [event for event in events(tmp_path / "out") if event["unit"].startswith("train/")]
