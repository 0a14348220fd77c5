"""Cells of a consistency study on a tiny model: what they share, what they make anew, kills, failures and mistakes."""

import json
import random
from pathlib import Path

import forks
import pytest
import yaml
from consistent import InThisProcess, stamps
from kills import kill_at_random
from sentences import refused
from small_study import write_recipe

from lowtax.cli.main import app
from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Reply, Verdict
from lowtax.study import recipe
from lowtax.study.consistency.cells import grid, parsed, read
from lowtax.study.consistency.run import consistency
from lowtax.study.study import Study

AXES = {"judge": ["refusal_words", "FILE"], "judged_text": None, "max_new_tokens": ["x0.5"], "factors": ["0", "7"]}
ARMS = {"full": {"mode": "full"}, "r1": {"mode": "lora_up_proj_only_from1_to1_r1"}}
LENIENT = """
from lowtax.judges.base import Opinion

class Lenient:
    name, kind = "lenient", "refusal"

    def judge(self, prompts, texts):
        return [Opinion("refusal" if "sorry" in text and len(text) % 2 else "compliance") for text in texts]
"""


def small(folder: Path, base: Path, **changes: object) -> Path:
    """A recipe of two arms whose replies come from the fake engine."""
    own = {
        "seeds": [0],
        "engine": "fake",
        "arms": ARMS,
        "sampling": {"max_new_tokens": 40},
        "harmful": [{"source": "builtin:harmful", "split": "test", "n": 12}],
        "ordinary": [{"source": "builtin:ordinary", "split": "test", "n": 12}],
        "tasks": {"arithmetic": {"n": 8, "sampling": {"max_new_tokens": 40}}},
    }
    return write_recipe(folder, base, **own | changes)


def axes(folder: Path) -> dict[str, list[str] | None]:
    (folder / "lenient.py").write_text(LENIENT)
    own = f"{folder}/lenient.py:Lenient"
    return {name: levels and [own if each == "FILE" else each for each in levels] for name, levels in AXES.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model):
    """The recipe, the folder, the result and the order of the cells of a whole study."""
    folder = tmp_path_factory.mktemp("consistency")
    path, run = small(folder, tiny_model), InThisProcess()
    result = consistency(path, out=folder / "out", axes=axes(folder), run=run)
    return path, folder / "out", result, run.cells


def test_every_cell_is_a_study_and_the_result_has_the_contract(finished):
    _, out, result, cells = finished
    assert [cell.partition("=")[0] for cell in cells] == [
        "reference",
        "judge",
        "judged_text",
        "max_new_tokens",
        "factors",
    ]
    for cell in cells:
        assert Study.open(out / "cells" / cell, trust=True).compare()["rows"]
    assert json.loads((out / "consistency.json").read_text()) == json.loads(json.dumps(result))
    for component in result["components"].values():
        assert component["low"] <= component["sd"] <= component["high"]
        assert component["measures"]["harmful refused"]["arms"].keys() == {"full", "r1"}
        assert next(iter(component["levels"].values()))["reference"]
    assert "arithmetic" not in result["components"]["judge"]["measures"]
    assert result["components"]["judged_text"]["kind"] == "reading"
    for row in result["conclusions"]:
        assert row["holds"] + row["undecided"] + row["reversed"] == row["of"] == len(row["cells"])
    for name in ("consistency.md", "consistency.png"):
        assert (out / name).stat().st_size > 500
    coherent = result["cells"]["max_new_tokens=x0.5"]["coherence"]["r1"]["harmful"]
    assert coherent["n"] == 12
    assert coherent["unfinished"] > result["cells"]["reference"]["coherence"]["r1"]["harmful"]["unfinished"]


def test_evaluation_cells_train_nothing_and_reading_cells_draw_nothing(finished):
    _, out, result, _ = finished
    reference = out / "cells/reference"
    weights = stamps(reference, "arms/*/*/*/*.safetensors")
    assert weights
    for cell in result["cells"]:
        own = out / "cells" / cell
        shared = result["cells"][cell]["kind"] in ("evaluation", "reading")
        assert (stamps(own, "arms/*/*/*/*.safetensors") == weights) is (shared or cell == "reference")
        rows = {name: read_rows(own / f"replies/{name}.jsonl", Reply) for name in ("harmful", "ordinary")}
        before = {name: read_rows(reference / f"replies/{name}.jsonl", Reply) for name in rows}
        if result["cells"][cell]["kind"] == "reading":
            assert rows == before
        if cell == "max_new_tokens=x0.5":
            assert not rows["harmful"].keys() & before["harmful"].keys()
    # No file that is appended to is shared; of a reading cell, not even by its inode.
    files = [stamps(out / "cells" / cell, "*/*.jsonl", "arms/*/*/steps.jsonl") for cell in result["cells"]]
    inodes = [inode for each in files for inode, _ in each.values()]
    assert len(inodes) == len(set(inodes)) > 20


def test_the_replies_of_the_base_are_drawn_once_for_all_seeds_of_training(finished):
    _, out, _, _ = finished
    rows = [read_rows(out / f"cells/{cell}/replies/harmful.jsonl", Reply) for cell in ("reference", "factors=7")]
    base = [{id_ for id_, row in each.items() if row.arm == "base"} for each in rows]
    assert base[0] == base[1]
    assert len(base[0]) == 12
    job = json.loads((out / "cells/factors=7/arms/r1/seed-7/card.json").read_text())["job"]
    assert (job["settings"]["order_seed"], job["settings"]["data_seed"], job["seed"]) == (0, 0, 7)


def test_a_component_is_that_of_the_stored_verdicts(finished):
    """The second judge refuses where the answer is odd in length: its rate is counted here by hand."""
    _, out, result, _ = finished
    level = next(name for name in result["components"]["judge"]["levels"] if "Lenient" in name)
    rates = result["components"]["judge"]["levels"][level]["rates"]["r1"]["harmful refused"]
    folder = out / "cells" / result["components"]["judge"]["levels"][level]["cell"]
    replies = read_rows(folder / "replies/harmful.jsonl", Reply)
    last = {id_: row for id_, row in replies.items() if (row.arm, row.checkpoint) == ("r1", "checkpoint-4")}
    verdicts = [
        row
        for path in folder.glob("verdicts/harmful.*enient*.jsonl")
        for row in read_rows(path, Verdict).values()
        if row.reply_id in last and row.on == "answer"
    ]
    assert len(verdicts) == rates["n"] == 12
    assert rates["value"] == pytest.approx(sum(v.label == "refusal" for v in verdicts) / 12, abs=1e-4)
    assert result["components"]["judge"]["sd"] > 0


def test_a_repeated_command_runs_nothing_and_changes_nothing(finished):
    path, out, result, _ = finished
    before, run = stamps(out, "cells/*/*/*.jsonl", "cells/*/table.json", "cells/*/arms/*/*/*/*"), InThisProcess()
    again = consistency(path, out=out, axes=axes(path.parent), run=run)
    assert run.cells == []
    assert stamps(out, "cells/*/*/*.jsonl", "cells/*/table.json", "cells/*/arms/*/*/*/*") == before
    assert {name: again[name] for name in ("components", "conclusions")} == {
        name: result[name] for name in ("components", "conclusions")
    }


def test_a_study_is_the_reference_and_stays_as_it_is(finished, tmp_path):
    _, out, result, _ = finished
    study, run = out / "cells/reference", InThisProcess()
    before = stamps(study, "**/*")
    mine = consistency(study, out=tmp_path / "of-study", axes={"judged_text": ["both"]}, run=run)
    assert stamps(study, "**/*") == before
    assert run.cells == ["reference", "judged_text=both"]
    assert mine["components"]["judged_text"] == result["components"]["judged_text"]
    card = json.loads((tmp_path / "of-study/cells/reference/arms/r1/seed-0/card.json").read_text())
    assert card == json.loads((study / "arms/r1/seed-0/card.json").read_text())


def test_training_seeds_of_a_study_are_levels_without_a_cell(tmp_path, tiny_model):
    settings = recipe.load(small(tmp_path, tiny_model, seeds=[0, 1]))
    planned = grid(settings, {"seed": ["0", "1", "2"], "order": ["0", "5"]})
    assert [(level.cell, level.seed) for level in planned.levels["seed"]] == [
        ("reference", 0),
        ("reference", 1),
        ("seed=2", None),
    ]
    assert [(level.cell, level.seed) for level in planned.levels["order"]] == [("reference", 0), ("order=5", None)]
    order = planned.cells["order=5"].change.recipe
    assert (order.seeds, order.train.order_seed, order.train.data_seed) == ([0], 5, None)
    assert grid(settings, {"rows": ["9"]}).cells["rows=9"].change.recipe.train.data_seed == 9


def test_one_factor_at_a_time(tmp_path, tiny_model):
    """Every cell has a recipe that differs from the reference in what its axis names, and in nothing else."""
    settings = recipe.load(small(tmp_path, tiny_model, sampling={"max_new_tokens": 40, "temperature": 0.7}))
    chosen = dict.fromkeys(("evaluation_seed", "temperature", "system", "batch_size", "prompt_order", "arithmetic"))
    planned = grid(settings, chosen | {"threads": ["3"], "evaluation_arithmetic": ["float32@AVX2"]})
    own = settings.model_dump()
    for cell in planned.cells.values():
        now = cell.change.recipe.model_dump()
        changed = {name for name in own if own[name] != now[name]}
        if cell.axis in ("evaluation_seed", "temperature", "system"):
            assert changed <= {"sampling", "tasks"}
        else:
            assert changed <= {"batch_size", "prompt_order", "precision"}
    assert planned.cells["threads=3"].change.environment == {"OMP_NUM_THREADS": "3"}
    isa = planned.cells["evaluation_arithmetic=float32@AVX2"]
    assert (isa.change.environment, isa.same_arithmetic) == ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, False)
    # The task is greedy, so that the seed of sampling leaves its answers alone.
    assert planned.cells["evaluation_seed=1"].moves == {"harmful", "ordinary"}
    assert planned.cells["temperature=0"].moves == {"harmful", "ordinary"}
    assert planned.cells["system=neutral"].moves == {"harmful", "ordinary", "arithmetic"}


def test_a_cell_that_fails_is_recorded_and_the_others_run(finished, tmp_path):
    path, out, _, _ = finished
    (path.parent / "broken.py").write_text(LENIENT.replace("return [", "raise OSError('no disk')\n        return ["))
    wrong, run = f"{path.parent}/broken.py:Lenient", InThisProcess()

    def failing(command, environment, log):
        try:
            return run(command, environment, log)
        except OSError as error:
            return str(error)

    chosen = {"judge": ["refusal_words", wrong], "judged_text": ["both"]}
    result = consistency(out / "cells/reference", out=tmp_path / "out", axes=chosen, run=failing)
    broken = next(name for name in result["cells"] if name.startswith("judge="))
    assert result["cells"][broken]["error"] == "no disk"
    assert result["cells"]["judged_text=both"]["error"] is None
    assert result["components"]["judge"]["sd"] is None
    assert "FAILED" in (tmp_path / "out/consistency.md").read_text()
    assert "no disk" in (tmp_path / "out/consistency.md").read_text()


def test_the_command_prints_the_contract_alone(finished, capsys):
    path, out, _, _ = finished
    named = [
        f"--axis={name}" + (f"={','.join(levels)}" if levels else "") for name, levels in axes(path.parent).items()
    ]
    capsys.readouterr()
    app(["consistency", str(path), "--out", str(out), *named, "--json"], standalone_mode=False)
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"components", "conclusions"}
    assert printed["components"]["judge"].keys() >= {"sd", "low", "high"}
    assert all(row.keys() >= {"text", "holds", "of"} for row in printed["conclusions"])
    app(["consistency", str(path), "--out", str(out), *named], standalone_mode=False)
    assert "| judged_text | 2 |" in capsys.readouterr().out


def test_the_plan_counts_the_work_and_writes_nothing(tmp_path, tiny_model, capsys):
    path = small(tmp_path, tiny_model)
    named = ["--axis", "judge=refusal_words,refusal", "--axis", "factors=0,1", "--axis", "batch_size=4"]
    before = sorted(tmp_path.iterdir())
    app(["consistency", str(path), "--out", str(tmp_path / "out"), *named, "--plan", "--json"], standalone_mode=False)
    cells = {cell.pop("name"): cell for cell in json.loads(capsys.readouterr().out)["cells"]}
    assert sorted(tmp_path.iterdir()) == before
    counts = {name: (cell["runs"], cell["replies"], cell["texts"]) for name, cell in cells.items()}
    of_one, texts = 12 + 12 + 8, 3 * 12 + 12  # each subject: replies and answers; answer, thought and both; answer
    assert counts == {
        "reference": (2, 5 * of_one, 5 * texts),
        "judge=refusal": (0, 0, 5 * texts),
        "factors=1": (2, 4 * of_one, 4 * texts),
        "batch_size=4": (0, 5 * of_one, 5 * texts),
    }


def _child(path: Path, out: Path) -> None:
    consistency(path, out=out, axes=axes(path.parent), run=InThisProcess())


def test_kills_at_random_moments_lose_and_repeat_nothing(finished, tmp_path):
    """The command, killed with SIGKILL wherever it is, ends in the results of an undisturbed one."""
    path, out, result, _ = finished
    rng = random.Random(3)
    waits = (rng.uniform(0.1, 0.6 + 0.4 * attempt) for attempt in range(4))
    assert kill_at_random(forks.context(), _child, (path, tmp_path / "out"), waits) >= 2
    again = consistency(path, out=tmp_path / "out", axes=axes(path.parent), run=InThisProcess())
    assert [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".tmp")] == []
    # The fake engine answers the path of an adapter, too, so that rates differ; what was made does not.
    for cell in result["cells"]:
        for name in ("replies/harmful.jsonl", "answers/arithmetic.jsonl"):
            one, two = (read_rows(folder / "cells" / cell / name, Reply) for folder in (out, tmp_path / "out"))
            assert one.keys() == two.keys(), (cell, name)
            assert len((tmp_path / "out/cells" / cell / name).read_text().splitlines()) == len(two)
    assert again["components"].keys() == result["components"].keys()


def test_a_cell_runs_in_a_process_with_its_environment(finished, tmp_path):
    """The one test that starts a process for a cell: its threads are those of the level."""
    _, out, _, _ = finished
    first = InThisProcess()
    settings = recipe.load(out / "recipes/reference.yaml").model_copy(update={"arms": {}, "tasks": {}})

    def run(command, environment, log):
        from lowtax.study.consistency.running import in_process

        return in_process(command, environment, log) if environment else first(command, environment, log)

    result = consistency(settings, out=tmp_path / "out", axes={"evaluation_arithmetic": ["float32@AVX2"]}, run=run)
    assert result["cells"]["evaluation_arithmetic=float32@AVX2"]["error"] is None
    assert "sampling 24 replies of base" in (tmp_path / "out/logs/evaluation_arithmetic=float32@AVX2.log").read_text()
    assert result["components"]["evaluation_arithmetic"]["sd"] == 0  # the fake engine computes nothing
    assert result["components"]["evaluation_arithmetic"]["high"] > 0


MISTAKES = {
    "unknown axis": ({}, {"juge": None}, "There is no axis 'juge'; did you mean 'judge'?"),
    "no number": ({}, {"max_new_tokens": ["many"]}, "has no level 'many': a level is a whole number"),
    "no factor": ({}, {"max_new_tokens": ["xx"]}, "a factor such as x0.5"),
    "temperature": ({}, {"temperature": ["hot"]}, "a level is a number from 0"),
    "precision": ({}, {"arithmetic": ["float8"]}, "PRECISION@INSTRUCTIONS"),
    "instructions": ({}, {"arithmetic": ["bfloat16@AVX512_CORE_BF"]}, "did you mean 'AVX512_CORE_BF16'?"),
    "judge": ({}, {"judge": ["refusal_word"]}, "did you mean 'refusal_words'?"),
    "text": ({}, {"judged_text": ["answers"]}, "did you mean 'answer'?"),
    "one level": ({}, {"temperature": ["0", "0.0"]}, "needs two levels that differ"),
    "greedy": ({}, {"evaluation_seed": None}, "set sampling.temperature"),
    "server": ({"engine": "openai"}, {"evaluation_arithmetic": None}, "the server decides its arithmetic"),
    "sorted": ({"engine": "hf"}, {"prompt_order": None}, "sorts requests by length"),
    "no arm": ({"arms": {}}, {"seed": None}, "the recipe trains no arm"),
    "no prompts": ({"harmful": [], "ordinary": []}, {"judge": None}, "no prompts to judge"),
    "nothing": ({"harmful": [], "ordinary": [], "tasks": {}}, {"seed": None}, "neither prompts nor tasks"),
}


def said_to(call, words: str) -> None:
    """The error is one sentence with these words; it may end in the question of a near name."""
    with pytest.raises(UserError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value)[-1] in ".?"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name, tmp_path, tiny_model):
    changes, chosen, sentence = MISTAKES[name]
    settings = recipe.load(small(tmp_path, tiny_model, **changes))
    said_to(lambda: grid(settings, chosen), sentence)


def test_a_folder_without_a_study_and_options_of_axes_are_refused(tmp_path, tiny_model):
    path = small(tmp_path, tiny_model)
    (tmp_path / "empty").mkdir()
    refused(lambda: consistency(tmp_path / "empty"), "holds no study")
    refused(lambda: consistency(path), "give --out DIR")
    Study(recipe.load(path), tmp_path / "begun").write_recipe()
    refused(lambda: consistency(tmp_path / "begun"), "is not finished", "lowtax run")
    refused(lambda: parsed(["judge="]), "names no level")
    refused(lambda: parsed(["judge", "judge=refusal"]), "is there twice")
    said_to(lambda: parsed(["jugde"]), "did you mean 'judge'?")


def test_axes_of_a_file(tmp_path):
    def of(text: str, trust: bool = False) -> object:
        (tmp_path / "axes.yaml").write_text(text)
        return read(tmp_path / "axes.yaml", trust)

    expected = {"judge": ["refusal"], "temperature": ["0", "0.7"], "seed": None, "system": ["none", "Be kind, please."]}
    text = yaml.safe_dump({"consistency": expected | {"temperature": [0, 0.7], "system": [None, "Be kind, please."]}})
    assert of(text) == expected
    refused(lambda: of("judge: refusal"), "must be a list")
    refused(lambda: of("[judge]"), "names no axes")
    said_to(lambda: of("jugde: [refusal]"), "did you mean 'judge'?")
    refused(lambda: of("judge: [own.py:Judge]"), "own.py:Judge", "--trust")
    assert of("judge: [own.py:Judge]", trust=True) == {"judge": ["own.py:Judge"]}


def test_more_prompts_reach_the_cells_that_share_replies(tmp_path, tiny_model):
    """A study of the base alone is repeated with one prompt more: no cell draws a reply of the reference cell again."""
    for n in (4, 5):
        prompts = [{"source": "builtin:harmful", "split": "test", "n": n}]
        path = small(tmp_path, tiny_model, arms={}, harmful=prompts, ordinary=[])
        result = consistency(path, out=tmp_path / "out", axes={"judged_text": None}, run=InThisProcess())
    shared = [(tmp_path / f"out/cells/{cell}/replies/harmful.jsonl").read_text() for cell in result["cells"]]
    assert shared[0] == shared[1]
    assert len(shared[0].splitlines()) == 5
    assert result["arms"] == ["base"]
