"""The plan of units: what a run does, in an order that can be followed, and quickly for a large study."""

from pathlib import Path

import pytest
from small_study import write_recipe
from worked import SMALL

from lowtax.study import recipe
from lowtax.study.dryrun.plan import plan
from lowtax.study.units import graph
from lowtax.study.units.base import KINDS, Unit


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[Unit]:
    settings = recipe.load(write_recipe(tmp_path_factory.mktemp("graph"), tiny_model, **SMALL))
    return graph.units_of(settings, plan(settings))


def test_every_unit_follows_units_that_exist_and_come_before(units):
    ids = [unit.id for unit in units]
    assert len(set(ids)) == len(ids)
    for place, unit in enumerate(units):
        for needed in unit.after:
            before = [id_ for id_ in ids[:place] if id_ == needed or id_.startswith(needed)]
            assert before, (unit.id, needed)
    assert [unit.kind for unit in units] == sorted((unit.kind for unit in units), key=KINDS.index)


def test_rows_and_what_needs_a_gpu(units):
    by_id = {unit.id: unit for unit in units}
    assert by_id["sample/base/1-of-1"].rows == 3 + 2 + 3
    assert by_id["sample/r1/seed-0/1-of-1"].rows == 2 * 8
    assert by_id["sample/r1/seed-0/1-of-1"].after == ("train/r1/seed-0",)
    assert by_id["edit/half/seed-0"].after == ("train/r1/seed-0",)
    assert by_id["judge/half/seed-0/harmful-thought/1-of-1"].rows == 3
    assert by_id["train/r1/seed-0"].resources.gpus == by_id["sample/base/1-of-1"].resources.gpus == 1
    assert by_id["train/r1/seed-0"].resources.memory_bytes > 0
    assert by_id["grade/base/arithmetic/1-of-1"].resources.gpus == 0
    assert all(unit.exact for unit in units)


def test_people_see_the_first_of_many(units, capsys):
    graph.show([*units, *(Unit(f"sample/x/{n}", "sample") for n in range(100))])
    shown = capsys.readouterr().out
    assert "train/r1/seed-0" in shown
    assert "more of sample (--json prints all)" in shown
    assert f"{len(units) + 100} units" in shown
