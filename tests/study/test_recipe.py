"""Recipes: what is read, what is refused, and the sentence that says so."""

from datetime import date
from pathlib import Path

import pytest
import yaml
from places import ROOT

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.models.placement import Placement
from lowtax.study.recipe import Recipe, build, load

GOOD = {
    "model": "builtin:smollm2-135m-reasoner",
    "data": [{"source": "builtin:refusals", "n": 8}, {"source": "builtin:ordinary", "answers": "self"}],
    "train": {"lr": 1e-3, "steps": 4},
    "arms": {
        "full": {"mode": "full", "train": {"lr": 5e-5}},
        "rank_1": {"mode": "lora_up_proj_only_from10_to19_r1"},
        "spelled-out": {"placement": {"modules": ["up_proj"], "rank": 2}, "data": []},
    },
    "harmful": [{"source": "builtin:harmful", "split": "test"}],
    "tasks": {"arithmetic": {"n": 10}},
}


@pytest.fixture
def write(tmp_path: Path):
    def write(values: object) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return write


def changed(**changes: object) -> dict[str, object]:
    return {**GOOD, **changes}


def refusal(path: Path, settings: list[str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(path, settings)
    return str(caught.value)


def test_a_good_recipe(write):
    recipe = load(write(GOOD))
    assert recipe.train_of("full").lr == 5e-5
    assert recipe.train_of("full").steps == recipe.train_of("rank_1").steps == 4
    assert recipe.train_of("rank_1").lr == 1e-3
    assert recipe.arms["rank_1"].where() == Placement(modules=("up_proj",), layers=(10, 19), rank=1)
    assert recipe.arms["spelled-out"].where().rank == 2
    assert [d.source for d in recipe.data_of("full")] == ["builtin:refusals", "builtin:ordinary"]
    assert recipe.data_of("spelled-out") == []


def test_what_is_written_is_what_is_read(write):
    recipe = load(write(GOOD))
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_the_shipped_recipes_are_valid():
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert load(path).arms, path


@pytest.mark.parametrize(
    ("settings", "look", "value"),
    [
        (["train.lr=1e-4"], lambda r: r.train.lr, 1e-4),
        (["train.lr=0.0002", "train.lr=3e-4"], lambda r: r.train.lr, 3e-4),
        (["arms.full.train.lr=2e-5"], lambda r: r.train_of("full").lr, 2e-5),
        (["arms.rank_1.mode=lora_mlp_r4"], lambda r: r.arms["rank_1"].where().rank, 4),
        (["arms.new.mode=full"], lambda r: r.arms["new"].where().kind, "full"),
        (["data.1.n=5"], lambda r: r.data[1].n, 5),
        (["data.0.source=builtin:chat"], lambda r: r.data[0].source, "builtin:chat"),
        (["seeds=[1, 2]"], lambda r: r.seeds, [1, 2]),
        (["sampling.max_new_tokens=7"], lambda r: r.sampling.max_new_tokens, 7),
        (["tasks.arithmetic.sampling.temperature=0.5"], lambda r: r.tasks["arithmetic"].sampling.temperature, 0.5),
        (["name=a=b"], lambda r: r.name, "a=b"),
        (["data=[]"], lambda r: r.data, []),
    ],
)
def test_overrides(write, settings, look, value):
    assert look(load(write(GOOD), settings)) == value


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("train.lr", "key=value"),
        ("=3", "key=value"),
        ("train.lrr=3", "'lr'"),
        ("train.lr=fast", "train.lr"),
        ("train.lr=-1", "train.lr"),
        ("name.first=3", "first"),
        ("data.9.n=3", "data"),
        ("seeds=[", "YAML"),
        ("arms.full.train.stepz=3", "'steps'"),
    ],
)
def test_bad_overrides(write, settings, says):
    assert says in refusal(write(GOOD), [settings])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (changed(modle="x"), ["modle", "'model'"]),
        (changed(train={"learning_rate": 1}), ["train.learning_rate"]),
        (changed(train={"step": 1}), ["train.step", "'steps'"]),
        (changed(arms={"a": {"mode": "full", "trian": {}}}), ["arms.a.trian", "'train'"]),
        (changed(arms={"a": {"mode": "full", "train": {"epoch": 1}}}), ["epoch", "'epochs'"]),
        (changed(arms={"a": {"placement": {"rnak": 1}}}), ["rnak", "'rank'"]),
        (changed(data=[{"sorce": "builtin:chat"}]), ["data.0"]),
        (changed(harmful=[{"source": "x", "colum": "y"}]), ["colum", "'column'"]),
        (changed(tasks={"arithmetic": {"m": 1}}), ["tasks.arithmetic.m"]),
        (changed(train={"steps": 1, "epochs": 1}), ["steps or epochs"]),
        (changed(train={"checkpoint_steps": 1, "checkpoint_epochs": 1}), ["checkpoint_steps or checkpoint_epochs"]),
        (
            changed(train={"steps": 1}, arms={"a": {"mode": "full", "train": {"epochs": 1}}}),
            ["arms.a.train", "steps or epochs"],
        ),
        (changed(arms={"a": {}}), ["arms.a", "mode or placement"]),
        (changed(arms={"a": {"mode": "full", "placement": {}}}), ["arms.a", "mode or placement"]),
        (changed(arms={"a": {"mode": "lora_everything"}}), ["lora_everything", "lora_mlp_rR"]),
        (changed(arms={"a": {"placement": {"layers": [5, 3]}}}), ["5..3"]),
        (changed(arms={"base": {"mode": "full"}}), ["'base'"]),
        (changed(arms={"a/b": {"mode": "full"}}), ["'a/b'"]),
        (changed(arms={"../a": {"mode": "full"}}), ["'../a'"]),
        (changed(arms={"": {"mode": "full"}}), ["arms"]),
        (changed(precision="float64"), ["precision", "float64"]),
        (changed(seeds=[]), ["seeds"]),
        (changed(batch_size=0), ["batch_size", "0"]),
        ({"name": "x"}, ["model"]),
        ("a: [1", ["YAML"]),
        ("a\tb: {", ["YAML"]),
        ("", ["no keys"]),
        ("- 1", ["no keys"]),
        ("just words", ["no keys"]),
    ],
)
def test_what_is_refused_and_why(write, values, says):
    message = refusal(write(values))
    assert "recipe.yaml" in message or "arms" in message or "Unknown mode" in message or "layer range" in message
    for word in says:
        assert word in message
    assert "\n" not in message


LORAS = {name: GOOD["arms"][name] for name in ("full", "rank_1", "spelled-out")} | {
    "experts": {"placement": {"parameters": ["mlp.experts.down_proj"], "dropout": 0}}
}
HALF = [{"name": "scale", "by": 0.5}]


def with_edited(**edited: object) -> dict[str, object]:
    return changed(arms=LORAS, edited=edited)


def test_an_edited_arm(write):
    ends = [{"name": "interpolate", "to": f"arm:{arm}", "at": 0.5} for arm in ("spelled-out", "rank_1")]
    recipe = load(write(with_edited(half={"of": "rank_1", "edits": HALF}, mixed={"of": "rank_1", "edits": ends})))
    half, mixed = recipe.edited.values()
    assert (half.of, half.edits, half.rank, half.checkpoints) == ("rank_1", HALF, None, "last")
    assert (half.ends(), half.made_of()) == ([], ["rank_1"])
    assert (mixed.ends(), mixed.made_of()) == (["spelled-out", "rank_1"], ["rank_1", "spelled-out"])
    assert mixed.end({"name": "interpolate", "to": "a/folder"}) is mixed.end({"name": "mine", "to": "arm:x"}) is None
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    cut = load(write(with_edited(half={"of": "rank_1", "edits": HALF})), ["edited.half.rank=2"])
    assert cut.edited["half"] == half.model_copy(update={"rank": 2})


@pytest.mark.parametrize(
    ("edited", "says"),
    [
        ({"a": {"of": "rank1", "edits": HALF}}, ["edited.a", "no trained arm 'rank1'", "did you mean 'rank_1'"]),
        ({"a": {"of": "b", "edits": HALF}, "b": {"of": "rank_1", "edits": HALF}}, ["edited.a", "no trained arm 'b'"]),
        (
            {"a": {"of": "full", "edits": HALF}},
            ["edited.a", "'full' is fine-tuned in full, and scale edits adapters", "LoRA"],
        ),
        ({"a": {"of": "experts", "edits": HALF}}, ["edited.a", "mlp.experts.down_proj", "linear"]),
        ({"a": {"of": "rank_1", "edits": []}}, ["edited.a.edits", "at least 1"]),
        ({"a": {"of": "rank_1"}}, ["edited.a.edits"]),
        ({"a": {"of": "rank_1", "edits": HALF, "rnk": 1}}, ["edited.a.rnk", "'rank'"]),
        ({"a": {"of": "rank_1", "edits": HALF, "rank": 0}}, ["edited.a.rank"]),
        ({"a": {"of": "rank_1", "edits": HALF, "checkpoints": "first"}}, ["edited.a.checkpoints", "first"]),
        ({"a": {"of": "rank_1", "edits": [{"name": "interpolate", "to": "arm:rank_2", "at": 0}]}}, ["'rank_2'"]),
        ({"a": {"of": "rank_1", "edits": [{"name": "interpolate", "to": "arm:full", "at": 0}]}}, ["in full"]),
        ({"rank_1": {"of": "rank_1", "edits": HALF}}, ["edited.rank_1", "name of a trained arm"]),
        ({"base": {"of": "rank_1", "edits": HALF}}, ["'base'"]),
        ({"a/b": {"of": "rank_1", "edits": HALF}}, ["'a/b'"]),
    ],
)
def test_edited_arms_that_are_refused(write, edited, says):
    message = refusal(write(with_edited(**edited)))
    for word in says:
        assert word in message
    assert "\n" not in message


def test_a_system_prompt_and_template_variables_for_everything():
    settings = build(
        changed(
            system="Be kind.",
            chat_template_kwargs={"reasoning_effort": "low", "strftime_now": date(2026, 1, 31)},
            tasks={"gsm8k": {}, "math500": {"sampling": {"system": "Be exact."}}},
        ),
        [],
        "test",
    )
    assert settings.chat_template_kwargs == {"reasoning_effort": "low", "strftime_now": "2026-01-31"}
    assert settings.drawn().system == "Be kind."
    exams = settings.exams()
    assert [exam.sampling.system for exam in exams.values()] == ["Be kind.", "Be exact."]
    assert exams["gsm8k"].sampling.max_new_tokens == 32768
    rows = settings.rows([Conversation("q", None, "a"), Conversation("q", None, "a", system="Be quick.")])
    assert [row.system for row in rows] == ["Be kind.", "Be quick."]
    plain = build(changed(), [], "test")
    assert plain.rows(rows[:1]) == rows[:1]
    assert plain.drawn() is plain.sampling
    assert not {"system", "chat_template_kwargs"} & plain.resolved().keys()
    assert {"system", "chat_template_kwargs"} <= settings.resolved().keys()


def test_missing_file_and_folder(tmp_path: Path):
    assert "cannot be read" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00model")
    assert "recipe.yaml" in refusal(path)


def test_every_field_is_documented():
    from lowtax.benchmarks.base import Task
    from lowtax.data.specs import Data, PromptSet
    from lowtax.engines.settings import Sampling
    from lowtax.study import recipe
    from lowtax.training.settings import Train

    for section in (
        Data,
        Train,
        recipe.Arm,
        recipe.EditedArm,
        Sampling,
        PromptSet,
        Task,
        recipe.Recipe,
    ):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_a_key_that_is_there_twice_is_an_error(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\nseeds: [0]\ntrain:\n  lr: 1\n  steps: 2\n  lr: 2\n")
    with pytest.raises(
        UserError, match=r"not valid YAML: the key 'lr' is there twice in the section that begins .*line 4"
    ):
        load(path)
    path.write_text("\ufeffmodel: m\nseeds: &all [0, 1]\ntrain: {steps: 2}\n", encoding="utf-8")
    assert load(path).seeds == [0, 1]


def test_tokens_that_a_recipe_does_not_set_are_those_of_the_model_or_of_the_stored_study(write):
    recipe = load(write(GOOD), ["tasks.gsm8k={sampling: {samples: 8}}", "sampling={samples: 2}"])
    fresh = recipe.with_tokens(2048)
    assert (fresh.sampling.max_new_tokens, fresh.sampling.samples) == (2048, 2)
    assert fresh.tasks["gsm8k"].sampling.max_new_tokens == 32768
    assert "max_new_tokens" in fresh.model_dump(exclude_unset=True)["sampling"]
    assert fresh.with_tokens(7, 7) == fresh
    old = recipe.with_tokens(2048, known=recipe)
    assert (old.sampling.max_new_tokens, old.tasks["gsm8k"].sampling.max_new_tokens) == (96, 96)
    assert recipe.with_tokens(7, known=fresh) == fresh


def test_thinking_tags_are_a_family_or_a_pair(write):
    assert load(write(GOOD), ["thinking_tags=magistral"]).thinking_tags == "magistral"
    assert "thinking_tags" not in load(write(GOOD)).resolved()
    assert "neither a family nor a pair" in refusal(write(GOOD), ["thinking_tags=magistrall"])
