"""The dry run: its counts are those of a real study, it needs no network, and each broken recipe is one sentence."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import typer
from datahub import COMMIT, cached
from huggingface_hub import constants
from places import ROOT
from rich.console import Console
from small_study import write_recipe
from transformers import Qwen2Config

from lowtax.cli import main
from lowtax.common.errors import UserError
from lowtax.common.files import read_json
from lowtax.models import embedded, loading
from lowtax.models import lora as adapt
from lowtax.models.names import MLP
from lowtax.models.placement import parse_mode
from lowtax.models.shapes import SHAPES, Lora
from lowtax.study import study
from lowtax.study.dryrun.counts import TrainingCount
from lowtax.study.dryrun.plan import Plan, plan
from lowtax.study.dryrun.show import show
from lowtax.study.offline import OfflineSource, offline
from lowtax.study.recipe import Arm, load
from lowtax.study.skeleton import Model
from lowtax.training.zero_config import ds_config

RECIPES = ROOT / "recipes"
GUIDE = (RECIPES.parent / "docs/guides/dry-run.md").read_text()
TOKENS = 400  # more than any reply of the fake engine has, which counts words
QWEN = "deepseek-ai/DeepSeek-R1-Distill-Qwen-"


# --- against a real study


def tiny_study(folder: Path, model: Path) -> Path:
    """Two seeds, epochs that end within a batch, held-out rows, own answers, an edited arm, and a task asked twice."""
    sampling = {"max_new_tokens": TOKENS, "samples": 2, "temperature": 1.0}
    task = {"benchmark": "arithmetic", "n": 3, "sampling": sampling}
    rows = [{"prompt": f"Do {i}.", "thought": "No." * (i % 3), "answer": "I can't." + "!" * i} for i in range(11)]
    (folder / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [{"source": str(folder / "more.jsonl")}, {"source": "builtin:ordinary", "n": 12, "answers": "self"}]
    epochs = {"epochs": 1.5, "checkpoint_epochs": 0.6}
    arms = {
        "full": {"mode": "full", "data": own, "train": {"steps": 7, "checkpoint_steps": 2}},
        "r1": {"mode": "lora_up_proj_only_from1_to1_r1", "train": epochs},
        "r2": {
            "mode": "lora_mlp_r2",
            "train": {**epochs, "batch_size": 4},
            "data": [{"source": str(folder / "more.jsonl"), "ratio": 2}, {"source": "builtin:chat", "ratio": 1}],
        },
    }
    return write_recipe(
        folder,
        model,
        engine="fake",
        train={"batch_size": 2, "validation": 1, "max_length": 200},
        arms=arms,
        edited={
            "half": {"of": "r1", "edits": [{"name": "scale", "by": 0.5}], "checkpoints": "all"},
            "between": {"of": "r1", "edits": [{"name": "interpolate", "to": "arm:r2", "at": 0.5}]},
        },
        sampling=sampling,
        harmful=[{"source": "builtin:harmful", "split": "test", "n": n} for n in (3, 2)],
        tasks={"sums": task, "again": task},
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Plan, Path]:
    """What was planned, and the folder of the study that then ran."""
    folder = tmp_path_factory.mktemp("planned")
    path = tiny_study(folder, tiny_model)
    before = sorted(folder.rglob("*"))
    planned = plan(load(path))
    assert sorted(folder.rglob("*")) == before
    own = study.Study(load(path), folder / "out")
    own.train()
    own.edit()
    own.sample([*own.reply_sheets().values(), *own.answer_sheets().values()])
    assert planned.subjects == len(own.subjects())
    return planned, folder / "out"


def test_an_arm_trains_as_planned(both: tuple[Plan, Path]):
    planned, out = both
    assert [arm.arm for arm in planned.arms] == ["full", "r1", "r2"]
    for arm in planned.arms:
        for seed, run in enumerate(arm.runs):
            folder = out / f"arms/{arm.arm}/seed-{seed}"
            card = read_json(folder / "card.json")
            steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
            assert run.steps == len(steps) == card["checkpoints"][-1]["step"]
            assert run.checkpoints == len(card["checkpoints"])
            assert arm.trainable_parameters == card["trainable_parameters"]
            tokens, rows = sum(step["tokens"] for step in steps), card["job"]["rows"]["n"] - 1  # one is held out
            if arm.arm == "full":  # its own answers are drawn by the run: what is planned is the most
                assert run.exact == ["steps", "checkpoints"]
                assert run.rows == 11 + 12 - 1 >= rows
                assert run.tokens >= tokens
            else:
                assert len(run.exact) == 5
                assert (run.tokens, run.rows) == (tokens, rows)
    assert planned.arms[2].runs[0].rows == 11 + 5 - 1  # of the chats as many as the ratio leaves


def ids(path: Path) -> set[str]:
    return {json.loads(line)["id"] for line in path.read_text().splitlines()}


def test_the_replies_are_as_many_as_planned(both: tuple[Plan, Path]):
    planned, out = both
    sheets = {(sheet.kind, sheet.name): sheet for sheet in planned.sheets}
    files = {
        ("own answers", "builtin_ordinary"): "data/builtin_ordinary.jsonl",
        ("harmful", "builtin:harmful, builtin:harmful"): "replies/harmful.jsonl",
        ("ordinary", "builtin:ordinary"): "replies/ordinary.jsonl",
        ("task", "sums"): "answers/sums.jsonl",
        ("task", "again"): "answers/again.jsonl",
    }
    assert sheets.keys() == files.keys()
    for key, file in files.items():
        assert sheets[key].requests == len(ids(out / file)), key
        assert sheets[key].exact
    assert sheets["harmful", "builtin:harmful, builtin:harmful"].prompts == 3  # the second entry repeats the first
    drawn = set[str]().union(*(ids(out / file) for file in files.values()))
    assert planned.requests == len(drawn) < sum(sheet.requests for sheet in planned.sheets)
    assert planned.tokens_at_most == TOKENS * planned.requests
    harmful, ordinary = (len(ids(out / f"replies/{kind}.jsonl")) for kind in ("harmful", "ordinary"))
    assert planned.verdicts == 3 * harmful + ordinary  # the answer, the thought and both


def test_own_answers_are_as_long_as_their_draw_allows(tmp_path: Path, tiny_model: Path):
    own = [{"source": "builtin:ordinary", "n": 4, "answers": "self", "draw": {"max_new_tokens": 7 * TOKENS}}]
    arms = {"r1": {"mode": "lora_up_proj_only_from1_to1_r1", "data": own}}
    planned = plan(load(write_recipe(tmp_path, tiny_model, arms=arms, sampling={"max_new_tokens": TOKENS})))
    assert [sheet.max_new_tokens for sheet in planned.sheets if sheet.kind == "own answers"] == [7 * TOKENS]


def test_a_row_that_the_model_will_write_is_as_long_as_its_draw(tmp_path: Path, tiny_model: Path):
    def count(tokens: int) -> TrainingCount:
        own = [{"source": "builtin:ordinary", "n": 4, "answers": "self", "draw": {"max_new_tokens": tokens}}]
        arms = {"r1": {"mode": "lora_up_proj_only_from1_to1_r1", "data": own}}
        return plan(load(write_recipe(tmp_path, tiny_model, arms=arms))).arms[0].runs[0]

    short, longer, cut = map(count, (100, 200, 5000))
    assert 100 < short.longest < 200  # with its prompt
    assert longer.longest == short.longest + 100
    assert cut.longest == 1023  # train.max_length
    assert "longest" not in short.exact


def test_the_disk_is_what_checkpoints_take(both: tuple[Plan, Path]):
    planned, out = both
    for arm in (*planned.arms, *planned.edited):
        taken = sum(path.stat().st_size for path in out.glob(f"arms/{arm.arm}/*/*/*.safetensors"))
        assert arm.disk_bytes is not None
        assert arm.disk_bytes <= taken <= arm.disk_bytes + 2500 * arm.checkpoints  # a header each
    assert planned.disk_bytes == sum(arm.disk_bytes or 0 for arm in (*planned.arms, *planned.edited))


# --- offline


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, although the hub's libraries may try; empty caches, which are returned."""

    def refuse(*_: object) -> None:
        raise AssertionError("a dry run asks no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("LOWTAX_HOME", str(tmp_path / "cache" / "home"))
    for name in ("LOWTAX_PROMPTS", "LOWTAX_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def cached_config(home: Path, size: str) -> str:
    """Put the configuration of a model of that size into the hub's cache, without weights; return its name."""
    name, shape = f"{QWEN}{size.upper()}", SHAPES[f"R1-Distill-Qwen-{size.upper()}"]
    root = home / "hub" / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=False,
    ).save_pretrained(root / "snapshots" / COMMIT)
    return name


def shown(planned: Plan) -> str:
    with (console := Console(width=120, highlight=False)).capture() as text:
        show(planned, console)
    return text.get()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_passes(path: Path, cut_off: Path, tmp_path: Path):
    own = tmp_path / "solutions.jsonl"  # which bench/evidence.py draws
    own.write_text('{"prompt": "What is 1 + 1?", "thought": "1 + 1 = 2.", "answer": "2"}\n' * 20)
    planned = plan(load(path, [f"data=[{{source: {own}}}]"] if path.stem == "reasoner_1_5b" else None))
    assert planned.subjects > 1
    assert planned.requests == sum(sheet.requests for sheet in planned.sheets)
    assert not cut_off.exists()
    assert "HF_HUB_OFFLINE" not in os.environ
    builds = planned.model.startswith("builtin:")
    assert all((arm.memory is not None) == builds for arm in planned.arms)
    text = shown(planned)
    assert max(map(len, text.splitlines())) <= 120
    assert all(word in text for word in (f"{planned.requests:,}", planned.model, planned.judge))
    if f"| `{path.stem}` |" in GUIDE:
        counts = (planned.subjects - 1, planned.requests, planned.tokens_at_most)
        assert f"| `{path.stem}` | {' | '.join(f'{number:,}' for number in counts)} |" in GUIDE


@pytest.mark.parametrize("size", ["7b", "14b", "32b"])
def test_the_papers_recipe_asks_what_the_paper_asks(size: str, cut_off: Path):
    planned = plan(load(RECIPES / f"paper_{size}.yaml"))
    sheets = {sheet.name: (sheet.prompts, sheet.samples, sheet.max_new_tokens) for sheet in planned.sheets}
    assert sheets == {
        "strongreject": (313, 1, 2048),
        "gpqa_diamond": (198, 8, 32768),
        "aime24": (30, 8, 32768),
        "humaneval_plus": (164, 8, 32768),
        "mbpp_plus": (378, 8, 32768),
    }
    full, lora = (arm.runs[0] for arm in planned.arms)
    epochs, saved = ((1, 10), (1, 1)) if size == "32b" else ((5, 10), (5, 10))
    assert [run.steps for run in (full, lora)] == [500 * n for n in epochs]  # 1,000 rows, two at a time
    assert [run.checkpoints for run in (full, lora)] == list(saved)
    assert full.tokens == 1023 * 2 * full.steps  # max_length, as the data is not available
    assert "tokens" not in full.exact
    for word in ("direct-refusal", "strongreject", "gpqa_diamond", "aime24", "the judge llama_guard", "the checker"):
        assert any(name.startswith(word) for name in planned.missing), word
    assert "accept its terms at https://huggingface.co/datasets/Idavidrein/gpqa" in planned.missing["gpqa_diamond"]
    assert "~" in shown(planned)


def test_data_in_the_hubs_cache_is_counted(cut_off: Path):
    rows = [{"prompt": f"q{i}", "refusal": f"Question: q{i}\nAnswer: No."} for i in range(7)]
    cached(cut_off, "TianshengHuang/DirectRefusal", [rows])
    cached(cut_off, "walledai/StrongREJECT", [[{"prompt": "a", "category": "c"}, {"prompt": "b", "category": "c"}]])
    planned = plan(load(RECIPES / "paper_7b.yaml"))
    assert not {"direct-refusal", "strongreject"} & planned.missing.keys()
    full = planned.arms[0].runs[0]
    assert (full.rows, full.steps) == (7, 18)
    assert planned.sheets[0].requests == 2 * planned.subjects


def test_each_seed_draws_own_answers_to_its_own_prompts(cut_off: Path, tmp_path: Path):
    own = [{"source": "direct-refusal", "n": 90, "answers": "self"}, {"source": "some/prompts", "answers": "self"}]
    planned = plan(load(write_recipe(tmp_path, Path("some/model"), data=own)))
    assert [(s.prompts, s.requests, s.exact) for s in planned.sheets[:2]] == [(180, 180, False), (1000, 1000, False)]


@pytest.mark.parametrize(
    ("train", "steps_exact", "checkpoints_exact"),
    [
        ({"epochs": 1}, False, True),  # one checkpoint, at the end, whenever that is
        ({"steps": 8, "checkpoint_steps": 2}, True, True),
        ({"steps": 8, "checkpoint_epochs": 0.5}, True, False),
        ({"epochs": 1, "checkpoint_steps": 50}, False, False),
        ({"steps": 8, "checkpoint_steps": 2, "validation": 1, "patience": 2}, False, False),
    ],
)
def test_what_is_exact_without_the_data(
    train: dict, steps_exact: bool, checkpoints_exact: bool, cut_off: Path, tmp_path: Path
):
    planned = plan(load(write_recipe(tmp_path, Path("some/model"), data=[{"source": "some/rows"}], train=train)))
    exact = planned.arms[0].runs[0].exact
    assert exact == ["steps"] * steps_exact + ["checkpoints"] * checkpoints_exact
    assert planned.sheets[0].exact == checkpoints_exact


def test_what_is_not_available_is_listed(cut_off: Path, tmp_path: Path):
    changes = {
        "data": [{"source": "some/rows"}],
        "harmful": [{"source": "some/prompts"}, {"source": "strongreject-small"}],
        "ordinary": [],
        "tasks": {"math": {"file": "some/questions"}},
        "train": {"epochs": 1, "batch_size": 8},
        "judge": "qwen3_guard",
        "arms": {"a": {"mode": "lora_mlp_r1", "methods": [{"name": "ssah", "safety": "other/rows,n=8"}]}},
    }
    planned = plan(load(write_recipe(tmp_path, Path("some/model"), **changes)))
    assert planned.parameters is planned.disk_bytes is planned.arms[0].memory is None
    assert [(s.prompts, s.exact) for s in planned.sheets] == [(160, False), (100, False)]
    assert planned.arms[0].runs[0].steps == 125
    names = "\n".join(planned.missing)
    for word in ("configuration of some/model", "weights of some/model", "other/rows", "Qwen3Guard"):
        assert word in names
    assert {"some/rows", "some/prompts", "math", "other/rows"} <= planned.missing.keys()
    text = shown(planned)
    assert "~125" in text
    assert "some/prompts" in text[text.index("Not available") :]


def test_the_hub_is_offline_meanwhile_and_then_as_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with offline():
        assert (os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE) == ("1", True)
    assert (os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE) == ("0", False)


# --- memory


def memory(cut_off: Path, folder: Path, arms: dict, **changes: object) -> list[dict]:
    model = QWEN + "7B" if (cut_off / "hub").exists() else cached_config(cut_off, "7b")
    train = {"steps": 1, "batch_size": 16, "max_length": 1025}
    data = [{"source": "some/rows"}]
    planned = plan(load(write_recipe(folder, Path(model), **{"train": train, "data": data, "arms": arms, **changes})))
    return [arm.memory or {} for arm in planned.arms]


def test_a_pass_holds_no_more_examples_than_the_recipe_says(cut_off: Path, tmp_path: Path):
    arms = {"a": {"mode": "lora_mlp_r16"}}
    executions = ({"micro_batch_size": 1}, {"micro_batch_size": 2}, {"row_tokens": 2048})
    one, two, many = (memory(cut_off, tmp_path, arms, execution=execution)[0] for execution in executions)
    assert two == many
    assert 2 * one["activations"] == two["activations"]


def test_methods_are_in_the_memory_of_sharded_training(cut_off: Path, tmp_path: Path):
    arms = {"free": {"mode": "full"}, "held": {"mode": "full", "methods": [{"name": "ssah"}]}}
    train = {"steps": 1, "batch_size": 2, "max_length": 512}
    free, held = memory(cut_off, tmp_path, arms, train=train, precision="bfloat16")
    assert free["setting"] == "2 GPUs, zero3, checkpointing"
    assert held["setting"] == "2 GPUs, zero3, checkpointing, optimizer on the host"
    assert held["working"] - free["working"] == 8 * 7_615_616_512


@pytest.mark.parametrize(("asked", "precision"), [("auto", "bfloat16"), (False, "bfloat16"), (True, "float16")])
def test_precision_is_that_of_the_gpus_which_are_planned_for(
    asked: object, precision: str, cut_off: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert loading.precision("auto") == "float32"
    (tmp_path / "zero.json").write_text(json.dumps({"fp16": {"enabled": asked}, "zero_optimization": {"stage": 2}}))
    execution = {"deepspeed": str(tmp_path / "zero.json")}
    for changes in ({"execution": execution}, {}):
        planned = plan(load(write_recipe(tmp_path, Path("some/model"), precision="auto", **changes)))
        assert planned.precision == (precision if changes else "bfloat16")


def test_placements_are_those_that_peft_makes(tiny_model: Path):
    model = Model("builtin:smollm2-135m-reasoner", OfflineSource())
    middle = model.trained(Arm(mode="lora_up_proj_only_from10_to19_r1"))
    assert middle == (21_120, Lora(1, ("up_proj",), 10, 19))
    every = model.trained(Arm(placement={"modules": ["mlp", "q_proj"], "rank": 2, "ranks": {"q_proj": 8}}))
    assert every == (30 * (3 * 2 * (576 + 1536) + 8 * 2 * 576), Lora(8, (*MLP, "q_proj"), 0, 29))
    by_peft = adapt.trainable_summary(str(tiny_model), placement := parse_mode("lora_qkvo_mlp_r3"))
    tiny = Model(str(tiny_model), OfflineSource()).trained(Arm(placement=placement))
    assert tiny[0] == by_peft.trainable_parameters


@pytest.mark.parametrize("name", embedded.DIMENSIONS)
def test_a_built_in_model_has_the_configuration_that_plans_take(name: str):
    folder = embedded.cache() / f"{name}-{embedded.version(name)}"
    if not folder.exists():
        pytest.skip(f"{name} is not made yet")
    config = read_json(folder / "config.json")
    assert {key: config[key] for key in embedded.DIMENSIONS[name]} == embedded.DIMENSIONS[name]


# --- what is refused


BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "judge": ({"judge": "nobody"}, "no judge 'nobody'"),
    "engine": ({"engine": "vlm"}, "no engine 'vlm'.*'vllm'"),
    "layers": ({"arms": {"a": {"mode": "lora_up_proj_only_from1_to7_r1"}}}, "outside the model"),
    "module": ({"arms": {"a": {"placement": {"modules": ["up_prj"]}}}}, "no linear module 'up_prj'.*'up_proj'"),
    "method": ({"arms": {"a": {"mode": "lora_mlp_r1", "methods": [{"name": "spff"}]}}}, "no method 'spff'"),
    "edit in training": (
        {"arms": {"a": {"mode": "lora_mlp_r1", "methods": [{"name": "scale", "by": 1}]}}},
        "edits adapters",
    ),
    "method on nothing": (
        {"arms": {"a": {"mode": "lora_mlp_r1", "methods": [{"name": "orthogonal", "beta": 1, "only": ["q_proj"]}]}}},
        "'q_proj' matches no module with LoRA",
    ),
    "edit's module": (
        {"edited": {"e": {"of": "r1", "edits": [{"name": "scale", "by": 1, "only": ["gate_proj"]}]}}},
        "'gate_proj' matches no module with LoRA",
    ),
    "edit that trains": ({"edited": {"e": {"of": "r1", "edits": [{"name": "spf"}]}}}, "acts in training"),
    "method's rows": (
        {"arms": {"a": {"mode": "lora_mlp_r1", "methods": [{"name": "spf", "safety": "builtin:chat,n=9999"}]}}},
        "fewer than the 9999",
    ),
    "edit of what is not made": (
        {
            "edited": {
                "e": {
                    "of": "r1",
                    "edits": [
                        {"name": "safe_lora", "aligned": "builtin:smollm2-135m", "number": 1},
                        {"name": "interpolate", "to": "no/adapter", "at": 0.5},
                    ],
                }
            }
        },
        "edited.e: no/adapter is not a PEFT adapter folder",
    ),
    "file": ({"data": [{"source": "none.jsonl"}]}, "none.jsonl"),
    "no data": ({"data": []}, "has no training data"),
    "rows": ({"data": [{"source": "builtin:chat", "n": 10**6}]}, "fewer than the 1000000"),
    "held out": ({"train": {"steps": 1, "validation": 8}}, "leaves none to train on"),
    "set": ({"harmful": [{"source": "strongrejct"}]}, "did you mean 'strongreject'"),
    "split": ({"harmful": [{"source": "builtin:harmful", "split": "tset"}]}, "no split 'tset'"),
    "task": ({"tasks": {"aime42": {}}}, "no task 'aime42'"),
    "deepspeed": ({"execution": {"deepspeed": "none.json"}}, "none.json"),
    "model": ({"model": "./nothing"}, "no model at './nothing'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recipe_is_refused(name: str, tmp_path: Path, tiny_model: Path):
    changes, says = BROKEN[name]
    path = write_recipe(tmp_path, tiny_model, **changes)
    with pytest.raises(UserError, match=says) as refused:
        plan(load(path))
    assert "\n" not in str(refused.value)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lowtax", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    return int(stop.value.code or 0)


def test_the_command(monkeypatch, capsys, tmp_path: Path, tiny_model: Path):
    path = write_recipe(tmp_path, tiny_model)
    before = sorted(tmp_path.rglob("*"))
    assert call(monkeypatch, "run", path, "--dry-run", "--json", "--limit", "2", "--set", "seeds=[3]") == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["seeds"], planned["subjects"], planned["requests"]) == ([3], 7, 7 * (2 + 2 + 2))
    assert planned["arms"][0]["runs"][0]["steps"] == 4
    assert planned == json.loads(json.dumps(asdict(plan(load(path, ["seeds=[3]"]))))) | {
        key: planned[key] for key in ("sheets", "requests", "tokens_at_most", "verdicts")
    }
    assert call(monkeypatch, "run", path, "--dry-run") == 0
    assert "Everything is available." in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    refused = {
        ("run", path): "needs --out DIR",
        ("run", path, "--json", "--out", tmp_path / "out"): "--json is for --dry-run",
        ("run", path, "--dry-run", "--set", "judge=nobody"): "no judge 'nobody'",
    }
    for arguments, says in refused.items():
        assert call(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert says in error
        assert "\n" not in error
    assert not (tmp_path / "out").exists()


# --- the script


@pytest.fixture
def script(tmp_path: Path):
    """The script with a lowtax that prints its arguments."""
    (tmp_path / "lowtax").write_text('#!/bin/sh\necho "called: $*"\n')
    (tmp_path / "lowtax").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), *os.environ["PATH"].split(os.pathsep)])

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(RECIPES / "reproduce.sh"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": path}, timeout=20
        )

    return script


@pytest.mark.parametrize("size", ["7b", "14b", "32b"])
def test_the_script_launches_what_the_plan_says(script, size: str, cut_off: Path, tmp_path: Path):
    done = script(size, "8", "--dry")
    assert done.returncode == 0, done.stderr
    recipe = RECIPES / f"paper_{size}.yaml"
    dry_run, full, lora, whole = (
        shlex.split(line.removeprefix("+ ").removeprefix("called: "))
        for line in done.stdout.splitlines()
        if line.startswith(("called", "+ deepspeed", "+ lowtax"))
    )
    assert dry_run == ["run", str(recipe), "--dry-run"]
    cached_config(cut_off, size)
    layouts = {arm.arm: arm.memory or {} for arm in plan(load(recipe)).arms}
    assert int(full[full.index("--num_gpus") + 1]) == layouts["full"]["gpus"]
    assert ("--gradient-checkpointing" in lora) == layouts["lora_r1_up_middle"]["checkpointing"]
    config = done.stdout[done.stdout.index("{\n") : done.stdout.index("\n}\n") + 3]
    (tmp_path / "zero3.json").write_text(config)
    zero = ds_config(tmp_path / "zero3.json", load(recipe).train_of("full"), "bfloat16", 2)["zero_optimization"]
    assert zero["stage"] == 3
    assert (zero["offload_optimizer"]["device"] == "cpu") == (layouts["full"]["offload"] != "none")
    group = typer.main.get_command(main.app)
    for subcommand, *words in (full[full.index("lowtax") + 1 :], lora[1:], whole[1:]):
        made = group.commands[subcommand].make_context(subcommand, list(words))  # type: ignore[attr-defined]
        assert str(made.params["out"]) == f"runs/paper_{size}"
        assert made.params.get("arm") in (None, *layouts)
    assert {path.name for path in tmp_path.iterdir()} == {"zero3.json", "lowtax", "cache"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("7b",), "it takes a size"),
        (("8b", "4"), "no size 8b"),
        (("14b", "2"), "takes 4 cards"),
        (("7b", "many"), "number of GPUs"),
        (("7b", "2", "--dyr"), "no option --dyr"),
    ],
)
def test_the_script_refuses(script, arguments: tuple[str, ...], says: str):
    done = script(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert not done.stdout


def test_the_guide_is_about_what_there_is():
    group = typer.main.get_command(main.app)
    commands = re.findall(r"^    lowtax (.*)$", GUIDE, flags=re.MULTILINE)
    assert len(commands) == 3
    for subcommand, *words in map(shlex.split, commands):
        group.commands[subcommand].make_context(subcommand, words)  # type: ignore[attr-defined]
    named = set(re.findall(r"`(\w+\.yaml)`", GUIDE))
    assert {path.name for path in RECIPES.glob("*.yaml")} >= named
    assert sum(f"| `{path.stem}` |" in GUIDE for path in RECIPES.glob("paper_*.yaml")) == 4


def test_the_script_is_bash():
    subprocess.run(["bash", "-n", str(RECIPES / "reproduce.sh")], check=True)
