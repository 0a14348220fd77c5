"""The commands around training: without a recipe, what they show, and what they refuse in one sentence."""

import json
from pathlib import Path

import pytest
import yaml
from places import ROOT
from templates import family
from tiny import make_model

from lowtax.cli.main import app
from lowtax.cli.train import as_reference, settings_of
from lowtax.common.errors import UserError
from lowtax.study.recipe import load
from lowtax.study.study import Study

MODE = "lora_up_proj_only_from1_to1_r1"


def lowtax(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"question": f"How many is {i}?", "response": f"It is {i}."} for i in range(8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def spec(rows: Path) -> str:
    return f"{rows},prompt=question,answer=response"


def test_the_reference_s_command_does_what_it_did(model: Path, rows: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = ("--model_name", model, "--mode", MODE, "--data", spec(rows), "--epochs", 3)
    lowtax("train", *words, "--per_device_bs", 2, "--save_strategy", "epoch", "--out", out)
    folder = out / "arms" / MODE / "seed-0"
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8", "checkpoint-12"}
    card = json.loads((folder / "card.json").read_text())
    assert card["job"]["settings"]["batch_size"] == 2
    assert card["sources"][0]["rows"] == 8
    study = Study.open(out)  # so that sample, judge, evaluate and compare go on from it
    assert [s.checkpoint for s in study.subjects()] == [None, "checkpoint-4", "checkpoint-8", "checkpoint-12"]
    before = (out / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"settings\.lr was 5e-05, now 0\.01"):
        lowtax("train", *words, "--per_device_bs", 2, "--save_strategy", "epoch", "--lr", "1e-2", "--out", out)
    assert (out / "recipe.yaml").read_text() == before


def test_show_prints_examples_and_trains_nothing(model: Path, rows: Path, capsys: pytest.CaptureFixture[str]):
    lowtax("train", "--model", model, "--mode", "full", "--data", spec(rows), "--show", 2)
    said = capsys.readouterr().out
    assert said.count("--- prompt, no loss") == said.count("--- trained") == 2
    assert said.count("<|im_end|>") == 4
    assert "It is " in said


def test_show_prints_the_notes_that_a_run_prints(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]):
    model = make_model(tmp_path / "m")
    tokenizer = family("r1-first")
    tokenizer.save_pretrained(model)
    words = ("--model", model, "--mode", "full", "--set", "train.steps=1")
    thoughts = tmp_path / "thoughts.jsonl"
    thoughts.write_text(json.dumps({"prompt": "How?", "thought": "T.", "answer": "A."}) + "\n")
    for data in (spec(rows), f"{thoughts},rendering=reference"):
        lowtax("train", *words, "--data", data, "--show", 1)
        shown = capsys.readouterr().out
        lowtax("train", *words, "--data", data, "--out", tmp_path / data[-9:])
        run = capsys.readouterr()
        note = next(line for line in shown.splitlines() if "training rows" in line)
        assert note in run.out + run.err
    assert note.startswith("1 of 1 training rows lose their thought")


def test_a_system_prompt_and_variables_for_all_rows(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]):
    model = make_model(tmp_path / "m")
    family("gpt-oss").save_pretrained(model)
    words = ("--model", model, "--mode", "full", "--data", spec(rows), "--system", "Be kind.")
    lowtax("train", *words, "--chat-template-kwargs", "{reasoning_effort: low}", "--show", 1)
    shown = capsys.readouterr().out
    assert "Reasoning: low<|end|><|start|>system<|message|>Be kind.<|end|>" in shown
    with pytest.raises(UserError, match="no mapping"):
        lowtax("train", *words, "--chat-template-kwargs", "low", "--show", 1)
    with pytest.raises(UserError, match="'effort', which the chat template"):
        lowtax("train", *words, "--chat-template-kwargs", "{effort: low}", "--show", 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mode", "full", "--data", "x"], "all of --model, --mode and --data"),
        (["recipe.yaml", "--mode", "full"], "remove --model, --mode and --data"),
        (["--shard"], "--shard needs --ds_config"),
        (["--gradient-accumulation-steps", "2"], "needs --per-device-batch-size"),
        (["--save-strategy", "steps"], "must be given together"),
        (["--save-steps", "5"], "must be given together"),
        (["--model", "m", "--mode", "full", "--data", "x", "--epochs", "1", "--steps", "2"], "steps or epochs"),
        (["--model", "m", "--mode", "lora_up_r1", "--data", "x"], "Unknown mode 'lora_up_r1'"),
        (["--model", "m", "--mode", "full", "--data", "x,n=many"], "n"),
        (["--model", "/nowhere/m", "--mode", "full", "--data", "builtin:refusals"], "--out"),
    ],
)
def test_what_is_refused(words: list[str], says: str):
    with pytest.raises(UserError) as caught:
        lowtax("train", *words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mode_with_a_regulariser_is_an_arm_with_the_published_penalty(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mode = "lora_mlp_orthogonal_down_norm_r2_beta0.5_k4"
    lowtax("train", "--model", model, "--mode", mode, "--data", spec(rows), "--steps", 3, "--out", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "arms" / mode / "seed-0" / "card.json").read_text())
    assert card["job"]["methods"][0]["name"] == "orthogonal"
    assert (card["job"]["methods"][0]["beta"], card["job"]["methods"][0]["as_published"]) == (0.5, True)
    assert f"the penalty of {mode} is that of the reference's code" in capsys.readouterr().err


def test_as_reference_sets_what_nothing_else_sets():
    flags = dict.fromkeys(("train.warmup_steps", "train.warmup_ratio", "per_device_batch_size", "seeds", "train.lr"))
    own, style = ["train.warmup_steps=0", "train.batch_size=2", "seeds=[42]"], ",rendering=reference_as_published"
    data = ["direct-refusal", "x.jsonl,n=2,rendering=thinksafe"]
    assert as_reference(flags, data, []) == (own, [data[0] + style, data[1]])
    cases = [  # options, --set, what is set
        ({"train.warmup_steps": 3}, [], own[1:]), ({"train.warmup_ratio": 0.0}, [], own[1:]),
        ({"per_device_batch_size": 4}, [], [own[0], own[2]]), ({"seeds": [0]}, [], own[:2]), ({"train.lr": 1}, [], own),
        ({}, ["train.warmup_ratio=0.1", "seeds=[1, 2]"], [own[1]]), ({}, ["train.batch_size=8"], [own[0], own[2]]),
    ]  # fmt: skip
    for set_flags, set_, expected in cases:
        assert as_reference(flags | set_flags, ["direct-refusal"], set_)[0] == expected, (set_flags, set_)


def test_as_reference_trains_as_the_reference(model: Path, rows: Path, tmp_path: Path):
    words = ("--model", model, "--mode", MODE, "--data", spec(rows), "--steps", 1, "--as-reference")
    lowtax("train", *words, "--out", tmp_path / "out")
    job = json.loads((tmp_path / "out" / "arms" / MODE / "seed-42" / "card.json").read_text())["job"]
    assert (job["seed"], job["settings"]["warmup_steps"], job["settings"]["batch_size"]) == (42, 0, 2)
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["data"][0]["rendering"] == (
        "reference_as_published"
    )
    with pytest.raises(UserError, match="remove --as-reference"):
        lowtax("train", "recipe.yaml", "--as-reference", "--out", tmp_path / "out")


def test_batch_size_is_that_of_all_processes_and_passes():
    flags = {"per_device_batch_size": 2, "gradient_accumulation_steps": 3, "save_strategy": None, "save_steps": None}
    assert "train.batch_size=24" in settings_of(dict(flags), processes=4)
    assert "execution.micro_batch_size=2" in settings_of(dict(flags), processes=4)


def test_placements_prints_what_a_mode_touches(model: Path, capsys: pytest.CaptureFixture[str]):
    lowtax("placements", model, "--mode", MODE, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["modules"] == ["model.layers.1.mlp.up_proj"]
    assert found["trainable_parameters"] == 32 + 64
    assert 0 < found["share"] < 0.01
    lowtax("placements", model, "--mode", "{modules: mlp, layers: first half, rank: 2}")
    assert "mlp.down_proj in layer" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean 'up_proj'"):
        lowtax("placements", model, "--mode", "lora_up_prj_only_r1")


def test_merge_and_delete(model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ("--model", model, "--mode", MODE, "--data", spec(rows), "--steps", 2, "--lr", "1e-3")
    lowtax("train", *words, "--out", tmp_path / "out")
    adapter = tmp_path / "out" / "arms" / MODE / "seed-0" / "checkpoint-2"
    capsys.readouterr()
    lowtax("merge", adapter, "--dtype", "float32")
    said = capsys.readouterr()
    assert said.out == f"merged: {adapter}_merged\n"
    lowtax("merge", f"{adapter}_merged", "--delete")
    assert not Path(f"{adapter}_merged").exists()
    assert adapter.exists()
    with pytest.raises(UserError):
        lowtax("merge", adapter, "--delete")
    assert adapter.exists()


def test_every_recipe_that_is_shipped_can_be_read():
    for path in (ROOT / "recipes").glob("*.yaml"):
        recipe = load(path)
        assert recipe.arms
        assert yaml.safe_load(path.read_text())["name"] == path.stem
        for arm in recipe.arms.values():
            arm.where()
            arm.acts()


def test_rows_of_other_tools_are_trained_and_what_is_skipped_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    turns = [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "No."}]
    good = [{"system": f"Be {i}.", "conversations": turns} for i in range(4)]
    bad = [{"conversations": [*turns[:1], {"from": "gpt", "value": ""}]}, {"conversations": [{"from": "observation"}]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*good, *bad]) + '{"conversations": \n')
    words = ("--model", model, "--mode", MODE, "--steps", 2, "--per-device-batch-size", 2)
    lowtax("train", *words, "--data", path, "--out", out)
    assert capsys.readouterr().err.splitlines()[:2] == [
        "rows.jsonl: 7 rows, read as ShareGPT.",
        "rows.jsonl: 3 of 7 rows are skipped: the answer is empty (1), a turn has the role 'observation' (1), "
        "a line is not valid JSON (Expecting value) (1).",
    ]
    (source,) = json.loads((out / "arms" / MODE / "seed-0" / "card.json").read_text())["sources"]
    assert (source["found"], source["skipped"], source["rows"], source["read_as"]) == (7, 3, 4, {"ShareGPT": 4})
    assert source["skipped_because"]["the answer is empty"] == 1


def test_the_data_are_read_in_the_dry_run_as_in_the_run(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": str(model),
                "data": [str(rows)],
                "seeds": [0, 1],
                "arms": {"a": {"mode": MODE}, "b": {"mode": MODE}},
            }
        )
    )
    lowtax("run", path, "--dry-run")
    assert capsys.readouterr().err.splitlines() == ["rows.jsonl: 8 rows, read as question and response."]


@pytest.mark.parametrize(("train_on", "n"), [("last", 1), ("assistant", 2), ("all", 1)])
def test_the_text_that_carries_loss_is_an_option_of_a_source(model: Path, tmp_path: Path, train_on: str, n: int):
    path = tmp_path / "rows.jsonl"
    turns = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    lowtax(
        "train",
        "--model",
        model,
        "--mode",
        MODE,
        "--data",
        f"{path},train_on={train_on}",
        "--steps",
        1,
        "--out",
        path.parent / "o",
    )
    card = json.loads((path.parent / "o" / "arms" / MODE / "seed-0" / "card.json").read_text())
    assert card["job"]["rows"]["n"] == card["sources"][0]["rows"] == n
    assert card["sources"][0].get("train_on", "last") == train_on


def test_a_placement_may_be_given_as_the_mode(model: Path, rows: Path, tmp_path: Path):
    mode = "{modules: mlp, rank: 3}"
    lowtax("train", "--model", model, "--mode", mode, "--data", spec(rows), "--steps", 2, "--out", tmp_path / "out")
    config = next((tmp_path / "out/arms/placement/seed-0").glob("checkpoint-*/adapter_config.json"))
    assert json.loads(config.read_text())["r"] == 3
    with pytest.raises(UserError, match="is not a placement"):
        lowtax("train", "--model", model, "--mode", "{modules: [", "--data", spec(rows), "--out", tmp_path / "o")
