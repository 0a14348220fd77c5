"""What would fail after hours fails before the first arm trains; a second mode adds an arm; empty stages say so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_study import write_recipe
from tiny import make_model

import lowtax as lt
from lowtax.cli.main import app
from lowtax.common.errors import UserError
from lowtax.models import hub
from lowtax.study import checks, recipe
from lowtax.study.study import Study
from lowtax.training import trackers

GOOD = {"mode": "lora_mlp_r2"}
SECOND = {
    "module": ({"placement": {"modules": ["up_projj"]}}, "up_proj"),
    "layers": ({"placement": {"layers": [2, 40]}}, "40"),
    "method": ({**GOOD, "methods": [{"name": "salorra"}]}, "salorra"),
    "field": ({**GOOD, "methods": [{"name": "salora", "saftey": "x"}]}, "saftey"),
    "value": ({**GOOD, "methods": [{"name": "orthogonal", "beta": -1}]}, "beta"),
    "rows of a method": ({**GOOD, "methods": [{"name": "spf", "safety": "nowhere.jsonl"}]}, "nowhere.jsonl"),
    "odd rank": ({"placement": {"rank": 3}, "methods": [{"name": "salora"}]}, "odd"),
    "method on full": ({"mode": "full", "methods": [{"name": "orthogonal", "beta": 1}]}, "LoRA"),
    "max_length": ({**GOOD, "train": {"max_length": 3}}, "max_length"),
    "validation": ({**GOOD, "train": {"validation": 8}}, "leaves none"),
    "data": ({**GOOD, "data": [{"source": "nowhere.jsonl"}]}, "nowhere.jsonl"),
    "validation file": ({**GOOD, "train": {"validation_data": ["nowhere.jsonl"]}}, "nowhere.jsonl"),
    "optimizer": ({**GOOD, "train": {"optimizer": "adamw_8bit"}}, "adamw_8bit"),
    "an edit as method": ({**GOOD, "methods": [{"name": "scale", "by": 2}]}, "edit"),
}


@pytest.mark.parametrize("name", SECOND)
def test_the_second_arm_is_checked_before_the_first_trains(tmp_path: Path, tiny_model: Path, name: str):
    arm, says = SECOND[name]
    path = write_recipe(tmp_path, tiny_model, arms={"first": GOOD, "second": arm})
    with pytest.raises(UserError, match=says):
        app(["train", str(path), "--out", str(tmp_path / "out")], standalone_mode=False)
    assert not (tmp_path / "out/arms").exists()


def test_an_arm_is_named_in_its_error(tmp_path: Path, tiny_model: Path):
    path = write_recipe(tmp_path, tiny_model, arms={"first": GOOD, "second": SECOND["module"][0]})
    with pytest.raises(UserError, match=r"^arms\.second: "), Study(recipe.load(path), tmp_path / "out") as study:
        study.check()


def test_a_judge_that_cannot_be_read_is_met_before_training(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = write_recipe(tmp_path, tiny_model, judge="llama_guard")
    with pytest.raises(UserError, match=r"the judge llama_guard needs the model .*HF_HUB_OFFLINE"):
        Study(recipe.load(path), tmp_path / "out").run()
    path = write_recipe(tmp_path, tiny_model, judge=f"llama_guard:{tmp_path}/nowhere")
    with pytest.raises(UserError, match="There is no model at"):
        Study(recipe.load(path), tmp_path / "out").run()
    assert not (tmp_path / "out/arms").exists()


@pytest.mark.parametrize("repo", ["nobody", "a/b/c", "", "owner/", "own er/name"])
def test_a_push_needs_owner_and_name(repo: str):
    with pytest.raises(UserError, match="takes OWNER/NAME"):
        hub.require_pushable(repo)


def test_a_checker_without_a_chat_template_is_met_before_training(tmp_path: Path, tiny_model: Path):
    checker = make_model(tmp_path / "checker", think=False)
    values = {"model": str(tiny_model), "judge": "refusal_words", "precision": "float32"}
    values["tasks"] = {"aime24": {"checker": str(checker)}}
    checks.require_tools(recipe.build(dict(values), [], "recipe"))
    (checker / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"tasks\.aime24: the checker .* has no chat template"):
        checks.require_tools(recipe.build(dict(values), [], "recipe"))


def test_a_push_needs_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    words = ["train", "--model", "m", "--mode", "full", "--data", "x", "--out", tmp_path / "o", "--push-to-hub", "me/x"]
    with pytest.raises(UserError, match="not logged in"):
        app(list(map(str, words)), standalone_mode=False)
    assert not (tmp_path / "o").exists()


def test_wandb_needs_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    with pytest.raises(UserError, match="needs a login"):
        trackers.check(["wandb"])
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    trackers.check(["wandb"])
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check(["wandb"])


# --- a second mode or seed in one folder


@pytest.fixture
def train(tmp_path: Path, tiny_model: Path) -> Callable[..., None]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Do {i}.", "answer": f"No, not {i}."}) + "\n" for i in range(8)))

    def run(mode: str, *words: object, model: Path = tiny_model) -> None:
        fixed = ("--model", model, "--mode", mode, "--data", rows, "--precision", "float32", "--out", tmp_path / "d")
        app(["train", *map(str, fixed), *map(str, words or ("--steps", 2))], standalone_mode=False)

    return run


def arms(out: Path) -> list[tuple[str, int, int]]:
    return [(s.arm, s.seed, s.step) for s in Study.open(out).trained()]


def test_a_second_mode_adds_an_arm(train: Callable[..., None], tmp_path: Path):
    train("lora_mlp_r1")
    train("full", "--steps", 3, "--lr", "1e-4")
    assert arms(tmp_path / "d") == [("lora_mlp_r1", 0, 2), ("full", 0, 3)]
    stored = yaml.safe_load((tmp_path / "d/recipe.yaml").read_text())
    assert stored["arms"]["full"]["train"] == {"steps": 3, "lr": 1e-4}
    card = tmp_path / "d/arms/lora_mlp_r1/seed-0/card.json"
    before = card.read_bytes()
    train("lora_mlp_r1")
    train("full", "--steps", 3, "--lr", "1e-4")
    assert card.read_bytes() == before
    assert arms(tmp_path / "d") == [("lora_mlp_r1", 0, 2), ("full", 0, 3)]


def test_epochs_beside_steps_are_the_new_arm_s(train: Callable[..., None], tmp_path: Path):
    train("lora_mlp_r1", "--steps", 2, "--warmup-steps", 1)
    train("lora_mlp_r2", "--epochs", 3, "--warmup-ratio", 0.5)
    assert arms(tmp_path / "d") == [("lora_mlp_r1", 0, 2), ("lora_mlp_r2", 0, 3)]


def test_a_second_seed_is_added_to_the_only_arm(train: Callable[..., None], tmp_path: Path):
    train("lora_mlp_r1")
    train("lora_mlp_r1", "--steps", 2, "--seed", 1)
    assert arms(tmp_path / "d") == [("lora_mlp_r1", 0, 2), ("lora_mlp_r1", 1, 2)]
    with pytest.raises(UserError, match="every arm of a study has the same seeds"):
        train("lora_mlp_r2", "--steps", 2, "--seed", 2)
    train("lora_mlp_r2")
    assert len(arms(tmp_path / "d")) == 4


def test_another_model_or_precision_is_refused(train: Callable[..., None], tmp_path: Path):
    train("lora_mlp_r1")
    other = make_model(tmp_path / "other", seed=7)
    before = (tmp_path / "d/recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=r"has model .* all arms of a study share it"):
        train("full", model=other)
    with pytest.raises(UserError, match="has precision 'float32', now 'bfloat16'"):
        train("full", "--steps", 2, "--precision", "bfloat16")
    assert (tmp_path / "d/recipe.yaml").read_bytes() == before


def test_a_refused_first_try_leaves_no_arm_behind(train: Callable[..., None], tmp_path: Path):
    with pytest.raises(UserError, match="leaves none"):
        train("lora_mlp_r1", "--steps", 2, "--validation", 8)
    train("full")
    train("lora_mlp_r1", "--steps", 2, "--validation", 2)
    assert arms(tmp_path / "d") == [("full", 0, 2), ("lora_mlp_r1", 0, 2)]


def test_prompts_of_a_study_stay(train: Callable[..., None], tmp_path: Path, tiny_model: Path):
    path = write_recipe(tmp_path, tiny_model, arms={"mine": GOOD}, seeds=[0], data=[str(tmp_path / "rows.jsonl")])
    app(["train", str(path), "--out", str(tmp_path / "d")], standalone_mode=False)
    train("lora_mlp_r1")
    stored = recipe.load(tmp_path / "d/recipe.yaml")
    assert list(stored.arms) == ["mine", "lora_mlp_r1"]
    assert stored.harmful
    assert stored.tasks


def test_options_of_measuring_are_taken_and_the_rest_stays(train: Callable[..., None], tmp_path: Path):
    train("lora_mlp_r1", "--thinking", "on", "--steps", 2)
    train("full", "--steps", 2, "--set", "tasks.arithmetic.n=3", "--set", "judge=refusal_words")
    stored = recipe.load(tmp_path / "d/recipe.yaml")
    assert (list(stored.arms), list(stored.tasks)) == (["lora_mlp_r1", "full"], ["arithmetic"])
    assert (stored.judge, stored.thinking) == ("refusal_words", "on")
    with pytest.raises(UserError, match="has thinking 'on', now 'off'"):
        train("full", "--steps", 2, "--thinking", "off")


def test_rows_of_another_file_are_measured_by_option(train: Callable[..., None], tmp_path: Path):
    train("lora_mlp_r1", "--steps", 2, "--validation-data", tmp_path / "rows.jsonl", "--scheduler", "linear")
    card = json.loads((tmp_path / "d/arms/lora_mlp_r1/seed-0/card.json").read_text())
    assert card["job"]["validation_rows"]["n"] == 8
    assert card["job"]["settings"]["scheduler"] == "linear"
    assert card["checkpoints"][-1]["validation"] > 0
    readme = (tmp_path / "d/arms/lora_mlp_r1/seed-0/checkpoint-2/README.md").read_text()
    assert "rows.jsonl |" in readme


def test_the_python_api_adds_arms_too(tmp_path: Path, tiny_model: Path):
    settings = {"data": "builtin:refusals,n=4", "out": tmp_path / "d", "steps": 1, "precision": "float32"}
    one = lt.train(str(tiny_model), mode="lora_mlp_r1", **settings)
    two = lt.train(str(tiny_model), mode="full", **settings)
    assert one != two
    assert lt.train(str(tiny_model), mode="lora_mlp_r1", **settings) == one
    assert [arm for arm, *_ in arms(tmp_path / "d")] == ["lora_mlp_r1", "full"]


# --- stages with nothing to do


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sample", ["has no prompts", "harmful: [{source: strongreject}]", "recipe.yaml", "--prompts"]),
        ("judge", ["has no prompts", "recipe.yaml"]),
        ("evaluate", ["has no tasks", "tasks: {gsm8k: {n: 100}}", "--task"]),
        ("compare", ["neither prompts nor tasks", "lowtax sample", "lowtax evaluate"]),
    ],
)
def test_a_stage_with_nothing_to_do_says_what_is_missing(
    train: Callable[..., None], tmp_path: Path, command: str, says: list[str]
):
    train("lora_mlp_r1")
    with pytest.raises(UserError) as caught:
        app([command, str(tmp_path / "d")], standalone_mode=False)
    assert all(part in str(caught.value) for part in says), caught.value
    with pytest.raises(UserError, match="nothing to compare"):
        lt.compare(tmp_path / "d")


def test_what_a_recipe_does_not_name_is_said(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    for arm in ("one", "two"):
        path = write_recipe(tmp_path, tiny_model, arms={arm: GOOD}, seeds=[0])
        app(["train", str(path), "--out", str(tmp_path / "d")], standalone_mode=False)
    assert "also has one, which this recipe does not name" in capsys.readouterr().err
    assert (tmp_path / "d/arms/one/seed-0/card.json").exists()


# --- output folders


def test_an_output_folder_that_cannot_be_one(tmp_path: Path, tiny_model: Path):
    path = write_recipe(tmp_path, tiny_model, arms={"one": GOOD}, seeds=[0])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for out, says in (
        ("file", "is a file"),
        ("file/below", "is a file"),
        ("link", "which does not exist"),
        ("n" * 300, "too long"),
    ):
        with pytest.raises(UserError, match=f"cannot be used.*{says}"):
            app(["train", str(path), "--out", str(tmp_path / out)], standalone_mode=False)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("content", [b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b"{}", b"", b"1" * 5000])
def test_a_damaged_card_is_named(tmp_path: Path, tiny_model: Path, content: bytes):
    path = write_recipe(tmp_path, tiny_model, arms={"one": GOOD}, seeds=[0])
    with Study(recipe.load(path), tmp_path / "d") as study:
        study.train()
    (tmp_path / "d/arms/one/seed-0/card.json").write_bytes(content)
    with Study.open(tmp_path / "d") as study:
        with pytest.raises(UserError, match=r"card\.json"):
            study.train()
        with pytest.raises(UserError, match=r"card\.json"):
            study.trained()


EXPERTS = {"placement": {"modules": ["attention"], "parameters": ["mlp.experts.gate_up_proj"], "dropout": 0}}


def test_experts_that_vllm_does_not_serve():
    own = recipe.Recipe.model_validate({"model": "org/moe", "engine": "vllm", "arms": {"experts": EXPERTS}})
    with pytest.raises(UserError, match=r"arms\.experts has a LoRA on parameters .* vLLM does not serve"):
        checks.require_arms(own, "float32")
