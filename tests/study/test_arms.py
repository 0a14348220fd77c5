"""Edited arms in a study: what they hold, how they stand in its table, and when they are made, kept or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from places import ROOT
from progress import progress_to
from small_study import contents, run, write_recipe
from tiny import make_model
from transformers import AutoModelForCausalLM

from lowtax.analysis import geometry
from lowtax.common.errors import UserError
from lowtax.common.files import read_json, read_rows, write_json
from lowtax.common.records import Reply
from lowtax.methods import loading
from lowtax.models.adapters import read_adapter
from lowtax.models.weights import open_weights
from lowtax.study import arms as edited
from lowtax.study import recipe, study, update_norms

CHAIN = [
    {"name": "scale", "by": 0.5},
    {"name": "project", "k": 3},
    {"name": "interpolate", "to": "arm:r1", "at": 0.25},
]
EDITED = {
    "chain": {"of": "r2", "edits": CHAIN, "rank": 2},
    "half": {"of": "r2", "edits": [{"name": "scale", "by": 0.5}], "checkpoints": "all"},
}
LAST = "checkpoint-4"


def opened(out: Path) -> study.Study:
    return study.Study.open(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("edited")
    path = write_recipe(folder, tiny_model, edited=EDITED)
    run(path, folder / "out")
    return path, folder / "out"


@pytest.fixture
def copy(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """The finished study, to be changed."""
    return Path(shutil.copytree(finished[1], tmp_path / "out"))


def changed(path: Path, **arms: object) -> recipe.Recipe:
    """The recipe with other edited arms."""
    return recipe.load(path).model_copy(
        update={"edited": {name: recipe.EditedArm.model_validate(arm) for name, arm in {**EDITED, **arms}.items()}}
    )


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- what is made


def test_edits_are_applied_one_after_the_other(finished, tiny_model):
    """Against a calculation with dense matrices in float64."""
    _, out = finished
    weights = open_weights(str(tiny_model))
    for seed in (0, 1):
        r1, r2, half, chain = (
            read_adapter(out / "arms" / name / f"seed-{seed}" / LAST).factors for name in ("r1", "r2", "half", "chain")
        )
        assert chain.keys() == half.keys() == r2.keys() > r1.keys()
        for name, update in r2.items():
            D = update.dense().double()
            torch.testing.assert_close(half[name].dense().double(), D / 2)
            U = torch.linalg.svd(weights[name].double())[0][:, :3]
            D = D / 2 - U @ U.T @ D / 2
            D = 0.75 * D + (0.25 * r1[name].dense().double() if name in r1 else 0.0)
            left, values, right = torch.linalg.svd(D)
            assert name not in r1 or values[2] > 1e-5  # rank 3 there, before it was cut
            D = left[:, :2] * values[:2] @ right[:2]
            torch.testing.assert_close(chain[name].dense().double(), D, rtol=1e-3, atol=1e-6)
            assert chain[name].rank == 2


def test_the_folder_and_its_card(finished):
    _, out = finished
    parts = {"adapter_config.json", "adapter_model.safetensors", "lowtax_base.json", "card.json"}
    assert files(out / "arms/chain/seed-1") == {"card.json", *(f"{LAST}/{part}" for part in parts)}
    assert {name.split("/")[0] for name in files(out / "arms/half/seed-0")} == {"card.json", "checkpoint-2", LAST}
    source, other = (read_json(out / f"arms/{name}/seed-1/card.json") for name in ("r2", "r1"))
    card = read_json(out / "arms/chain/seed-1/card.json")
    assert (card["made_by"], card["of"], card["edits"], card["rank"]) == ("lowtax edit", "r2", CHAIN, 2)
    assert card["job"] == source["job"]
    assert card["other_jobs"] == {"r1": other["job"]}
    assert card["trainable_parameters"] == source["trainable_parameters"]
    (row,) = card["checkpoints"]
    assert (row["name"], row["step"]) == (LAST, 4)
    assert 0 < row["edit_seconds"] == card["edit_seconds"]
    trained = source["checkpoints"][-1]["seconds"] + other["checkpoints"][-1]["seconds"]
    assert row["seconds"] == pytest.approx(trained + row["edit_seconds"], abs=0.02)
    assert [one["method"] for one in row["edits"]] == ["scale", "project", "interpolate"]
    assert [one["rank"] for one in row["edits"]] == [2, 2, 2]
    assert read_json(out / "arms/chain/seed-1" / LAST / "card.json")["method"] == "interpolate"


# --- where they stand


def test_edited_arms_stand_in_the_table_after_the_trained_ones(finished):
    _, out = finished
    rows = read_json(out / "table.json")["rows"]
    trained = [("base", 0), *((arm, step) for arm in ("full", "r1", "r2") for step in (2, 4))]
    assert [(row["arm"], row["step"]) for row in rows] == [*trained, ("chain", 4), ("half", 2), ("half", 4)]
    assert all(row["reasoning"]["arithmetic"]["n"] == 6 and row["safety"]["n"] > 0 for row in rows[1:])
    assert all(row["trainable_parameters"] == rows[6]["trainable_parameters"] for row in rows[7:])
    assert ["edit_seconds" in row for row in rows] == [False] * 7 + [True] * 3
    lines = (out / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("|* ") for line in lines[2:12]] == [row["arm"] for row in rows]
    assert "and the edits" in lines[13]


def test_they_are_asked_with_their_own_weights(finished):
    _, out = finished
    subjects = opened(out).subjects()
    replies = read_rows(out / "replies/harmful.jsonl", Reply)
    asked = {(r.arm, r.seed, r.checkpoint) for r in replies.values()}
    assert asked == {(s.arm, s.seed, s.checkpoint) for s in subjects}
    texts = {arm: [r.text for r in replies.values() if (r.arm, r.checkpoint) == (arm, LAST)] for arm in ("r2", "chain")}
    assert texts["r2"] != texts["chain"]
    assert len({s.made_by for s in subjects}) == len(subjects) == 1 + 3 * 2 * 2 + 2 * (2 + 1)
    assert {s.arm for s in opened(out).subjects("half")} == {"base", "half"}
    sources = geometry.of_study(subjects, open_weights(subjects[0].model))
    assert [source.arm for source in sources[::2]] == ["full", "r1", "r2", "chain", "half"]


def test_made_by_changes_with_the_edits_and_with_the_training(copy):
    def made_by() -> list[str]:
        return [s.made_by for s in opened(copy).subjects("half")]

    before = made_by()
    assert made_by() == before
    for arm in ("r2", "half"):
        path = copy / "arms" / arm / "seed-0/card.json"
        card = read_json(path)
        card["job"]["settings"]["lr"] = 0.5
        write_json(path, card)
    after = made_by()
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, False, False, True, True]
    settings = yaml.safe_load((copy / "recipe.yaml").read_text())
    settings["edited"] = {"half": {**EDITED["half"], "edits": [{"name": "scale", "by": 0.25}]}}
    (copy / "recipe.yaml").write_text(yaml.safe_dump(settings))
    shutil.rmtree(copy / "arms/half")
    opened(copy).edit()
    assert not set(made_by()[1:]) & {*before, *after}


def test_made_by_changes_with_what_an_edit_reads_from_elsewhere(copy, tmp_path):
    """The same words about a folder whose adapter is another one by now: replies of the first must not be taken."""
    elsewhere = {"name": "interpolate", "to": str(tmp_path / "end"), "at": 0.5}
    settings = changed(copy / "recipe.yaml", half={"of": "r2", "edits": [elsewhere]})
    found = []
    for end in ("checkpoint-2", LAST, LAST):
        shutil.rmtree(tmp_path / "end", ignore_errors=True)
        shutil.rmtree(copy / "arms/half")
        shutil.copytree(copy / "arms/r1/seed-0" / end, tmp_path / "end")
        own = study.Study(settings, copy)
        own.edit()
        found.append([s.made_by for s in own.subjects("half")[1:]])
    assert found[0] != found[1] == found[2]


# --- when they are made


def test_repeating_makes_nothing_again(finished):
    path, out = finished
    before = contents(out)
    stamps = {p: p.stat().st_mtime_ns for p in [*out.glob("arms/*/*/*/*"), *out.glob("arms/*/*/card.json")]}
    run(path, out)
    after = contents(out)
    assert stamps
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    assert after == before


def test_training_alone_trains_alone_and_sampling_edits_first(finished, tmp_path):
    path, _ = finished
    own = study.Study(recipe.load(path, ["seeds=[0]"]), tmp_path)
    with pytest.raises(UserError, match="'r2', seed 0 is not trained yet"):
        own.edit()
    own.train()
    assert {folder.name for folder in (tmp_path / "arms").iterdir()} == {"full", "r1", "r2"}
    assert len(own.trained()) == 6
    with pytest.raises(UserError, match="'chain', seed 0 is not edited yet: `lowtax run` or `lowtax sample`"):
        own.subjects()
    with pytest.raises(UserError, match="'half' is not trained but edited: name 'r2'"):
        own.train("half")
    own.sample([])
    assert [s.arm for s in own.subjects()[7:]] == ["chain", "half", "half"]


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_kill_between_or_after_edits_loses_nothing(copy, monkeypatch, at):
    """The chain for `all` checkpoints has six edits; the at-th does not come back, or its folder is not yet listed."""
    settings = changed(copy / "recipe.yaml", chain=EDITED["chain"] | {"checkpoints": "all"})
    shutil.rmtree(copy / "arms/chain")
    undisturbed = study.Study(settings, copy)
    undisturbed.edit()
    wanted = {name: read_adapter(copy / "arms/chain/seed-0" / name).factors for name in ("checkpoint-2", LAST)}
    shutil.rmtree(copy / "arms/chain")
    calls = iter(range(1, 100))
    real = edited.edit

    def killed(*args: object, **fields: object) -> object:
        call, made = next(calls), real(*args, **fields)
        if call == at:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(edited, "edit", killed)
    with pytest.raises(KeyboardInterrupt):
        undisturbed.edit()
    assert not (copy / "arms/chain/seed-0/card.json").exists()
    stamps = {p: p.stat().st_mtime_ns for p in (copy / "arms/chain/seed-0/checkpoint-2").glob("*") if at > 3}
    undisturbed.edit()
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    assert len(stamps) == (4 if at > 3 else 0)
    assert {name.split("/")[0] for name in files(copy / "arms/chain/seed-0")} == {"card.json", *wanted}
    for name, factors in wanted.items():
        found = read_adapter(copy / "arms/chain/seed-0" / name).factors
        assert all(torch.equal(found[module].dense(), x.dense()) for module, x in factors.items())


# --- when they are refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"edits": [{"name": "scale", "by": 0.25}]}, "edits was .*0.5.*, now .*0.25.*"),
        ({"of": "r1"}, "of was r2, now r1"),
        ({"rank": 1}, "rank was None, now 1"),
        ({"checkpoints": "last"}, "asked_checkpoints was all, now last"),
    ],
)
def test_other_edits_in_the_same_folder_are_refused_before_anything_is_done(copy, change, says):
    before = (copy / "recipe.yaml").read_text()
    own = study.Study(changed(copy / "recipe.yaml", half=EDITED["half"] | change), copy)
    refused = f"half/seed-0 was edited with other settings .{says}.; choose another --out"
    for stage in (own.train, own.edit, own.subjects):
        with pytest.raises(UserError, match=refused):
            stage()
    assert (copy / "recipe.yaml").read_text() == before


@pytest.mark.parametrize(("again", "arm"), [("r2", "half"), ("r1", "chain")])
def test_edits_of_another_training_are_refused(copy, again, arm):
    """Also of the arm that an edit goes towards, and before that arm is trained."""
    shutil.rmtree(copy / "arms" / again)
    if again == "r2":
        shutil.rmtree(copy / "arms/chain")
    own = study.Study(recipe.load(copy / "recipe.yaml", [f"arms.{again}.train.lr=0.5"]), copy)
    with pytest.raises(UserError, match=f"{arm}/seed-0 was made of another training; choose another --out"):
        own.run()
    assert not (copy / "arms" / again).exists()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"name": "safe_laro", "aligned": "x"}, "did you mean 'safe_lora'"),
        ({"name": "scale", "by": 1, "bye": 1}, "did you mean 'by'"),
        ({"name": "scale"}, "needs a value for 'by'"),
        ({"by": 1}, "needs a name"),
        ({"name": "orthogonal", "beta": 1}, "'orthogonal' acts in training: name it under the methods"),
        ({"name": "safe_lora", "aligned": "./no/model"}, "no model at './no/model'"),
        ({"name": "interpolate", "to": "no/adapter", "at": 0.5}, "no/adapter is not a PEFT adapter folder"),
    ],
)
def test_a_study_refuses_bad_edits_before_it_trains(finished, tmp_path, edit, says):
    own = study.Study(changed(finished[0], bad={"of": "r1", "edits": [CHAIN[0], edit]}), tmp_path)
    with pytest.raises(UserError, match=f"^edited.bad: .*{says}"):
        own.run()
    assert not (tmp_path / "arms").exists()


def test_the_edits_and_methods_of_the_shipped_recipes_are_known():
    """Without the embedded models, which not every machine has."""
    names = {"pissa", "rrs", "prune_units"}  # how an arm starts, one that is only trained with, and a check of SSAH
    for file in ("methods", "lasting"):
        shipped = recipe.load(ROOT / f"recipes/{file}.yaml")
        acting = [spec for arm in shipped.arms.values() for spec in arm.acts()]
        editing = [spec for arm in shipped.edited.values() for spec in arm.edits]
        loading.load_all(acting)
        loading.load_all(editing)
        names |= {spec["name"] for spec in (*acting, *editing)}
    assert sorted(names) == sorted(loading.TABLE)


# --- how far they are from the base


def test_update_norms_are_those_of_dense_matrices(finished, tiny_model):
    """Of every checkpoint of the table: means over seeds, from whole models and from dense products, in float64."""
    _, out = finished
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    matrices = {name: W.double() for name, W in base.items() if W.ndim == 2 and name != "lm_head.weight"}  # tied
    for row in read_json(out / "table.json")["rows"][1:]:
        norms, relative = [], []
        for seed in (0, 1):
            folder = out / "arms" / row["arm"] / f"seed-{seed}" / row["checkpoint"]
            if row["arm"] == "full":
                tuned = AutoModelForCausalLM.from_pretrained(folder).state_dict()
                moved = {name: tuned[name].double() - W for name, W in matrices.items()}
            else:
                factors = read_adapter(folder).factors
                moved = {f"{name}.weight": x.b.double() @ x.a.double() for name, x in factors.items()}
            norms.append(sum(D.square().sum() for D in moved.values()).sqrt())
            relative.append(norms[-1] / sum(matrices[name].square().sum() for name in moved).sqrt())
        assert row["update"]["norm"] == pytest.approx(float(sum(norms)) / 2, rel=1e-5)
        assert row["update"]["relative_norm"] == pytest.approx(float(sum(relative)) / 2, rel=1e-5)
        assert row["update"]["rank"] == {"full": None, "r1": 1, "r2": 2, "half": 2, "chain": 2}[row["arm"]]


@pytest.fixture
def measure(copy: Path) -> Callable[[], tuple[dict[str, object], list[str]]]:
    """Update norms of the study, and what is said meanwhile."""

    def measured() -> tuple[dict[str, object], list[str]]:
        own, said = opened(copy), list[str]()
        with progress_to(said.append):
            return update_norms.measured(own.subjects(), own.recipe.model, copy / update_norms.FILE), said

    return measured


def test_update_norms_are_computed_once(copy, measure):
    before, said = measure()
    assert (said, len(before)) == ([], 3 * 2 * 2 + 2 * 3)
    for arm in ("full", "half"):
        shutil.rmtree(copy / "arms" / arm / "seed-0/checkpoint-4")
    assert measure() == (before, [])


def test_a_norm_that_cannot_be_known_is_no_zero(copy, measure):
    """A checkpoint that was deleted to save its place: its row has all but the norm."""
    (copy / update_norms.FILE).unlink()
    for arm in ("full", "half"):
        shutil.rmtree(copy / "arms" / arm / "seed-0/checkpoint-4")
    found, said = measure()
    assert len(found) == 3 * 2 * 2 + 2 * 3 - 2
    assert [sentence.split(":")[0].strip() for sentence in said] == [
        f"no update norm of {arm}, seed 0, {LAST}" for arm in ("full", "half")
    ]
    rows = {(row["arm"], row["step"]): row["update"] for row in opened(copy).compare()["rows"]}
    assert [key for key, update in rows.items() if update is None] == [("base", 0), ("full", 4), ("half", 4)]
    assert "| half | 4 | 1,152 |" in (copy / "table.md").read_text().replace("**", "")


def test_a_base_without_matrices_leaves_all_norms_out(tmp_path, copy):
    said: list[str] = []
    own, gone = opened(copy), str(tmp_path / "gone")
    with progress_to(said.append):
        found = update_norms.measured(own.subjects(), gone, tmp_path / update_norms.FILE)
    assert (found, len(said)) == ({}, 1)
    assert said[0].startswith("  no update norms: There is no model at")


def test_another_model_of_the_same_shape_is_no_zero_update(tmp_path, finished):
    """The norm of a whole model is relative to the base that the study names."""
    other = str(make_model(tmp_path / "other", seed=5))
    found = update_norms.measured(opened(finished[1]).subjects("full"), other, tmp_path / update_norms.FILE)
    assert all(1.0 < one["relative_norm"] < 2.0 for one in found.values())  # of two random models: sqrt 2
