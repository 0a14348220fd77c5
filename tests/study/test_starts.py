"""Arms that start from other arms in a study: order, bases, the table, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_study import contents, write_recipe
from tiny import make_model

from lowtax.common import stats
from lowtax.common.errors import UserError
from lowtax.common.files import read_json
from lowtax.models.adapters import read_adapter
from lowtax.models.weights import open_weights
from lowtax.study import lineage, recipe, stored_recipe, study
from lowtax.study.dryrun.plan import plan

R2 = "lora_mlp_r2"
ARMS: dict[str, Any] = {
    "more": {"start": "r2"},  # before its parent: the order of training is not that of the recipe
    "r2": {"mode": R2, "train": {"checkpoint_steps": 1}},
    "full": {"mode": "full"},
    "wider": {"start": "r2@1", "mode": "lora_qkvo_mlp_r4"},
    "whole": {"start": "r2", "mode": "full"},
    "on_full": {"start": "full", "mode": R2},
    "on_half": {"start": "half"},
    "on_lox": {"start": "whole_lox", "mode": "lora_mlp_r1"},
    "deeper": {"start": "on_full", "mode": "lora_up_proj_only_from1_to1_r1"},
}
EDITED = {
    "half": {"of": "r2", "edits": [{"name": "scale", "by": 0.5}]},
    "half_on_full": {"of": "on_full", "edits": [{"name": "scale", "by": 0.5}]},
    "whole_lox": {"of": "full", "edits": [{"name": "lox", "k": 2, "coef": 0.5}]},
    "projected": {
        "of": "full",
        "edits": [{"name": "safe_lora", "aligned": "ALIGNED", "unaligned": "MODEL", "projector": "exact", "number": 4}],
    },
    "gone": {"of": "r2", "edits": [{"name": "subtract", "share": 1.0}]},
}
ATTACKED = {"again": {"of": ["full", "half"], "train": {"steps": 1}, "mode": "lora_mlp_r1"}}
CHANGES: dict[str, Any] = {
    "arms": ARMS,
    "edited": EDITED,
    "attacked": ATTACKED,
    "tasks": {},
    "judged_also": [],
    "train": {"steps": 2, "batch_size": 2, "lr": 0.01},
    "harmful": [{"source": "builtin:harmful", "split": "test", "n": 3}],
    "ordinary": [{"source": "builtin:ordinary", "split": "test", "n": 1}],
    "sampling": {"max_new_tokens": 6},
}
LAST = "checkpoint-2"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("starts")
    named = {"ALIGNED": str(make_model(folder / "aligned", seed=3)), "MODEL": str(tiny_model)}
    projected = EDITED["projected"]["edits"][0]
    edit = {key: named.get(value, value) for key, value in projected.items()}
    edited = EDITED | {"projected": {"of": "full", "edits": [edit]}}
    path = write_recipe(folder, tiny_model, **CHANGES | {"edited": edited})
    study.Study(recipe.load(path), folder / "out").run()
    return path, folder / "out"


def row(out: Path, arm: str, checkpoint: str | None = LAST) -> dict[str, Any]:
    [one] = [r for r in read_json(out / "table.json")["rows"] if (r["arm"], r["checkpoint"]) == (arm, checkpoint)]
    return one


def test_every_arm_has_its_base(finished, tiny_model):
    _, out = finished
    work = study.Study.open(out)
    bases = {(s.arm, s.seed): s.model for s in work.subjects()}
    for seed in (0, 1):
        full = str(out / "arms" / "full" / f"seed-{seed}" / "checkpoint-2")
        for arm in ("on_full", "deeper", "half_on_full", "full.again", "whole_lox", "on_lox"):
            assert bases[arm, seed] == full
        for arm in ("more", "wider", "on_half", "gone", "half.again"):
            assert bases[arm, seed] == str(tiny_model)


def test_ranks_add_up_where_the_placement_is_another(finished):
    _, out = finished
    ranks = {
        arm: {x.rank for x in read_adapter(next((out / "arms" / arm / "seed-0").glob("checkpoint-*"))).factors.values()}
        for arm in ("more", "wider", "on_half", "deeper", "half.again", "whole_lox", "on_lox")
    }
    assert ranks == {
        "more": {2},
        "wider": {4, 6},
        "on_half": {2},
        "deeper": {2, 3},
        "half.again": {3},
        "whole_lox": {2},
        "on_lox": {2, 3},
    }


def test_children_have_the_parent_in_the_table_and_parents_what_became_of_them(finished):
    _, out = finished
    assert row(out, "more")["parent"] == "r2@checkpoint-2"
    assert row(out, "wider")["parent"] == "r2@checkpoint-1"
    assert "parent" not in row(out, "r2")
    assert row(out, "r2")["after"].keys() == {"more", "whole", "gone"}
    assert row(out, "r2", "checkpoint-1")["after"].keys() == {"wider"}
    assert row(out, "full")["after"].keys() == {"on_full", "full.again"}
    assert row(out, "half")["after"].keys() == {"on_half", "half.again"}
    assert "Safety after" in (out / "table.md").read_text()


def test_the_change_is_paired_by_prompt_over_the_seeds(finished):
    """Against outcomes that are read from the files."""
    _, out = finished
    verdicts = {}
    for line in (out / "verdicts" / "harmful.refusal_words.jsonl").read_text().splitlines():
        verdict = json.loads(line)
        verdicts[verdict["reply_id"]] = verdict["label"]
    outcomes: dict[str, dict[int, dict[str, list[float]]]] = {"full": {}, "on_full": {}}
    for line in (out / "replies" / "harmful.jsonl").read_text().splitlines():
        reply = json.loads(line)
        label = verdicts.get(reply["id"])
        if reply["arm"] in outcomes and reply["checkpoint"] == LAST and label != "unfinished":
            of_seed = outcomes[reply["arm"]].setdefault(reply["seed"], {})
            of_seed.setdefault(reply["prompt_id"], []).append(float(label in ("refusal", "partial")))
    each = row(out, "full")["after"]["on_full"]["safety"]
    cell = each["difference"]
    value, low, high = stats.difference([(outcomes["on_full"], outcomes["full"])])
    if outcomes["full"] and value == value:
        assert (cell["value"], cell["low"], cell["high"]) == (round(value, 4), round(low, 4), round(high, 4))
    for part, arm in (("before", "full"), ("after", "on_full")):
        assert each[part].items() <= row(out, arm)["safety"].items()


def test_subtracting_everything_gives_the_base(finished):
    _, out = finished
    base = {k: v["value"] for k, v in row(out, "base", None).items() if k in ("safety", "over_refusal")}
    assert {k: v["value"] for k, v in row(out, "gone").items() if k in base} == base
    assert row(out, "gone")["update"]["norm"] == 0


def test_lox_of_full_fine_tuning_is_the_formula(finished, tiny_model):
    """W + coef U_k S_k V_k' with D = W - W_base, in float64."""
    _, out = finished
    full = open_weights(str(out / "arms" / "full" / "seed-0" / LAST))
    base = open_weights(str(tiny_model))
    updates = read_adapter(out / "arms" / "whole_lox" / "seed-0" / LAST).factors
    assert len(updates) == 14
    for name, update in updates.items():
        U, S, Vh = torch.linalg.svd((full[name] - base[name]).double(), full_matrices=False)
        expected = 0.5 * U[:, :2] @ torch.diag(S[:2]) @ Vh[:2]
        torch.testing.assert_close(update.dense().double(), expected, rtol=1e-4, atol=1e-6)


def test_safe_lora_of_full_fine_tuning_projects_the_difference_to_the_model(finished, tiny_model):
    """W_base + C (W - W_base) with C = U U' of aligned - unaligned, at the tall matrices; others keep their weights."""
    path, out = finished
    full = open_weights(str(out / "arms" / "full" / "seed-0" / LAST))
    base, aligned = open_weights(str(tiny_model)), open_weights(str(path.parent / "aligned"))
    updates = read_adapter(out / "arms" / "projected" / "seed-0" / LAST).factors
    assert len(updates) == 4
    for name, update in updates.items():
        W, V = base[name].double(), (aligned[name] - base[name]).double()
        assert W.shape[0] > W.shape[1]
        U = torch.linalg.svd(V, full_matrices=False).U
        expected = W + U @ (U.T @ (full[name].double() - W))
        torch.testing.assert_close(full[name].double() + update.dense(), expected, rtol=1e-4, atol=1e-5)


def test_a_finished_study_is_not_made_again(finished, tmp_path):
    path, out = finished
    copy = Path(shutil.copytree(out, tmp_path / "moved"))
    for folder in ("on_full", "half.again", "half"):
        shutil.rmtree(copy / "arms" / folder / "seed-1")
    study.Study(recipe.load(path), copy).run()
    again, before = contents(copy), contents(out)
    for table in (again["table"], before["table"]):
        for each in table:
            each.pop("edit_seconds", None)
    assert again == before
    stored = recipe.load(copy / "recipe.yaml").model_dump(mode="json", exclude_unset=True)
    assert stored_recipe.dumped(stored) == (copy / "recipe.yaml").read_text()


def test_only_trains_the_arms_that_it_starts_from_first(tiny_model, tmp_path):
    path = write_recipe(tmp_path, tiny_model, **CHANGES, seeds=[0])
    study.Study(recipe.load(path), tmp_path / "out").train("on_half")
    assert {folder.name for folder in (tmp_path / "out" / "arms").iterdir()} == {"r2", "half", "on_half"}


def test_another_training_of_the_parent_is_refused(finished, tmp_path):
    path, out = finished
    shutil.copytree(out, tmp_path / "out")
    changed = recipe.load(path, ["arms.r2.train.lr=0.02"])
    with pytest.raises(UserError, match=r"r2/seed-0 was trained with other settings \(settings.lr"):
        study.Study(changed, tmp_path / "out").train()
    shutil.rmtree(tmp_path / "out" / "arms" / "r2")
    with pytest.raises(UserError, match=r"trained with other settings \(start.made_by|made of another training"):
        study.Study(changed, tmp_path / "out").train()


def test_the_dry_run_counts_every_arm(finished):
    path, _ = finished
    planned = plan(recipe.load(path))
    assert {arm.arm for arm in planned.arms} == {*ARMS, "full.again", "half.again"}
    assert next(arm.what for arm in planned.arms if arm.arm == "more").endswith("from r2")
    assert planned.subjects == 1 + 2 * (len(ARMS) + 1 + 2 + len(EDITED))


def test_an_attack_has_the_training_settings_of_the_arm_that_it_starts_from(tmp_path, tiny_model):
    arms = {"r2": {"mode": R2, "train": {"lr": 0.3, "epochs": 2}}}
    path = write_recipe(tmp_path, tiny_model, arms=arms, attacked={"a": {"of": ["r2"], "train": {"steps": 3}}})
    values = yaml.safe_load(path.read_text())
    values["train"] = {"batch_size": 2}
    path.write_text(yaml.safe_dump(values))
    settings = recipe.load(path).train_of("r2.a")
    assert (settings.lr, settings.steps, settings.epochs, settings.batch_size) == (0.3, 3, None, 2)
    values["train"], values["arms"]["r2"]["train"] = {"steps": 9}, {"lr": 0.3}
    values["attacked"]["a"]["train"] = {"epochs": 1}
    path.write_text(yaml.safe_dump(values))
    settings = recipe.load(path).train_of("r2.a")
    assert (settings.lr, settings.steps, settings.epochs) == (0.3, None, 1)


# --- refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arms": {"a": {"start": "b"}, "b": {"start": "a"}}}, r"a starts from b starts from a, in a circle"),
        ({"arms": {"a": {"start": "a"}}}, r"a starts from a, in a circle"),
        ({"arms": {"r2": {"mode": R2}, "a": {"start": "r3"}}}, r"arms.a.start: there is no arm 'r3'; known are: a, r2"),
        ({"arms": {"r2": {"mode": R2}, "a": {"start": "r2@last"}}}, r"'last' is no checkpoint; write r2@checkpoint-60"),
        ({"arms": {"a": {}}}, r"an arm needs either mode or placement"),
        ({"attacked": {"x": {"of": ["r9"]}}}, r"arms.r9.x.start: there is no arm 'r9'"),
        ({"attacked": {"x": {"of": ["r2"], "dat": []}}}, r"unknown key 'attacked.x.dat'; did you mean 'data'"),
        (
            {"arms": {"r2": {"mode": R2}, "r2.x": {"mode": R2}}, "attacked": {"x": {"of": ["r2"]}}},
            r"makes an arm 'r2.x'",
        ),
        (
            {
                "arms": {"full": {"mode": "full"}, "a": {"start": "full", "mode": R2}, "r2": {"mode": R2}},
                "edited": {"e": {"of": "r2", "edits": [{"name": "interpolate", "to": "arm:a", "at": 0.5}]}},
            },
            r"edited.e: 'r2' is an adapter on the model and 'a' on the weights of 'full', and an edit needs one base",
        ),
        (
            {"edited": {"e": {"of": "full", "edits": [{"name": "subtract"}]}}},
            r"'full' is fine-tuned in full, and subtract makes an adapter of its k strongest directions: set k to 1",
        ),
        (
            {
                "arms": {"r2": {"mode": R2}, "a": {"start": "e"}},
                "edited": {"e": {"of": "a", "edits": [{"name": "scale", "by": 0.5}]}},
            },
            r"in a circle",
        ),
    ],
)
def test_refused(tmp_path, tiny_model, changes, sentence):
    path = write_recipe(tmp_path, tiny_model, **changes)
    with pytest.raises(UserError, match=sentence) as caught:
        recipe.load(path)
    assert str(caught.value).count(". ") == 0


def test_a_method_that_begins_the_factors_is_refused_before_the_training(tmp_path, tiny_model):
    arms = {"r2": {"mode": R2}, "a": {"start": "r2", "methods": [{"name": "pissa"}]}}
    work = study.Study(recipe.load(write_recipe(tmp_path, tiny_model, arms=arms)), tmp_path / "out")
    with pytest.raises(UserError, match=r"arms\.a: PiSSA gives the factors their first values"):
        work.check()


def test_a_checkpoint_that_was_not_made_is_refused(tmp_path, tiny_model):
    arms = {"r2": {"mode": R2}, "a": {"start": "r2@3"}}
    work = study.Study(recipe.load(write_recipe(tmp_path, tiny_model, arms=arms, seeds=[0])), tmp_path / "out")
    with pytest.raises(UserError, match="no checkpoint-3 to start from; it has checkpoint-2, checkpoint-4"):
        work.train()


def test_ancestors_come_first():
    recipe_ = recipe.build({"model": "m", "arms": ARMS, "edited": EDITED}, [], "test")
    order = lineage.order(recipe_.arms, recipe_.edited)
    assert sorted(order) == sorted([*ARMS, *EDITED])
    for child, parents in {"more": ["r2"], "on_half": ["half"], "half": ["r2"], "deeper": ["on_full"]}.items():
        assert all(order.index(parent) < order.index(child) for parent in parents)
    assert lineage.with_ancestors("on_half", recipe_.arms, recipe_.edited) == ["r2", "half", "on_half"]
