"""The dry run: its counts are those of a real study, its formulas those worked out by hand, and it touches nothing."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from datahub import cached
from huggingface_hub import constants
from places import ROOT
from rich.console import Console
from small_study import write_recipe

from lowtax import builtin, checkpoints, cli, models, study
from lowtax.adapt import touched
from lowtax.dryrun import show as dryrun_show
from lowtax.dryrun.cost import (
    ASSUMED,
    CARDS,
    checkpoint_bytes,
    decoding,
    first_that_fits,
    multiplied,
    resume_bytes,
    sampling_hours,
    training_flops,
    training_hours,
)
from lowtax.dryrun.offline import Looked, offline
from lowtax.dryrun.plan import Plan, plan
from lowtax.dryrun.skeleton import KNOWN, Model
from lowtax.errors import UserError
from lowtax.files import read_json, write_json
from lowtax.placement import parse_mode
from lowtax.recipe import Arm, Execution, load
from lowtax.shapes import MLP, SHAPES, Lora, Shape
from lowtax.zero import ds_config

RECIPES = ROOT / "recipes"
GUIDE = (RECIPES.parent / "docs/guides/dry-run.md").read_text()
TOKENS = 400  # more than any reply of the fake engine has, which counts words
TINY = Shape(layers=2, hidden=4, mlp=8, heads=2, kv_heads=1, vocabulary=10)


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


STATES: dict[str, list[int]] = {}  # arm -> bytes of all states of its run, whenever one has been written


def weighed(path: Path, values: object) -> None:
    """Write what ends a state, and weigh it with those beside it."""
    write_json(path, values)
    run = path.parents[1]
    STATES.setdefault(run.parent.name, []).append(sum(file.stat().st_size for file in run.glob(".state*/own.pt")))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Plan, Path]:
    """What was planned, and what was then done."""
    folder = tmp_path_factory.mktemp("planned")
    path = tiny_study(folder, tiny_model)
    before = sorted(folder.rglob("*"))
    planned = plan(load(path))
    assert sorted(folder.rglob("*")) == before
    own = study.Study(load(path), folder / "out", lambda text: None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints, "write_json", weighed)
        own.train()
    own.edit()
    own.sample([*own.reply_sheets().values(), *own.answer_sheets().values()])
    assert planned.subjects == len(own.subjects())
    return planned, folder / "out"


def test_an_arm_trains_as_planned(both: tuple[Plan, Path]):
    planned, out = both
    assert [arm.name for arm in planned.arms] == ["full", "r1", "r2"]
    for arm in planned.arms:
        for seed, asked in enumerate(arm.runs):
            folder = out / f"arms/{arm.name}/seed-{seed}"
            card = read_json(folder / "card.json")
            steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
            assert asked.steps == len(steps) == card["checkpoints"][-1]["step"]
            assert asked.checkpoints == len(card["checkpoints"])
            assert arm.trained is not None
            assert arm.trained.parameters == card["trainable_parameters"]
            tokens = sum(step["tokens"] for step in steps)
            if arm.name == "full":  # its own answers are drawn by the run: what is planned is a bound
                assert asked.known == ("at most", "counted", "counted", "at most")
                assert asked.rows == 11 + 12 - 1 >= card["job"]["rows"]["n"] - 1
                assert asked.tokens >= tokens
                continue
            assert set(asked.known) == {"counted"}
            assert asked.tokens == tokens
            assert asked.rows == card["job"]["rows"]["n"] - 1  # one is held out
    assert planned.arms[2].runs[0].rows == 11 + 5 - 1  # of the chats as many as the ratio leaves


def ids(path: Path) -> set[str]:
    return {json.loads(line)["id"] for line in path.read_text().splitlines()}


def test_the_replies_are_as_many_as_planned(both: tuple[Plan, Path]):
    planned, out = both
    found = {(sheet.kind, sheet.name): sheet for sheet in planned.sheets}
    files = {
        ("own answers", "builtin_ordinary"): "data/builtin_ordinary.jsonl",
        ("harmful", "builtin:harmful, builtin:harmful"): "replies/harmful.jsonl",
        ("ordinary", "builtin:ordinary"): "replies/ordinary.jsonl",
        ("task", "sums"): "answers/sums.jsonl",
        ("task", "again"): "answers/again.jsonl",
    }
    assert found.keys() == files.keys()
    for key, file in files.items():
        assert found[key].requests == len(ids(out / file)), key
        assert found[key].known == "counted"
    assert found["harmful", "builtin:harmful, builtin:harmful"].prompts == 3  # the second entry repeats the first
    drawn = set[str]().union(*(ids(out / file) for file in files.values()))
    assert planned.requests == len(drawn) < sum(sheet.requests for sheet in planned.sheets)
    assert planned.tokens == TOKENS * planned.requests
    harmful, ordinary = (len(ids(out / f"replies/{kind}.jsonl")) for kind in ("harmful", "ordinary"))
    assert planned.verdicts == 3 * harmful + ordinary  # the answer, the thought and both


def test_the_disk_is_what_checkpoints_take(both: tuple[Plan, Path]):
    planned, out = both
    for arm in (*planned.arms, *planned.edited):
        taken = sum(path.stat().st_size for path in out.glob(f"arms/{arm.name}/*/*/*.safetensors"))
        header = 2500 * arm.checkpoints
        assert arm.disk is not None
        assert arm.disk <= taken <= arm.disk + header


def test_the_states_of_a_run_under_way_take_what_is_said(both: tuple[Plan, Path]):
    for arm in both[0].arms:
        assert arm.meanwhile is not None
        states = min(arm.runs[0].checkpoints - 1, 2)
        assert states == {"full": 2, "r1": 1, "r2": 1}[arm.name]
        assert arm.meanwhile <= max(STATES[arm.name]) <= arm.meanwhile + 20_000 * states


def test_hours_are_those_of_what_is_drawn(both: tuple[Plan, Path]):
    planned = both[0]
    assert [sheet.name for sheet in planned.sheets if sheet.repeated] == ["sums"]
    once = replace(planned, sheets=[sheet for sheet in planned.sheets if not sheet.repeated])
    assert (once.requests, once.sampling(), once.sampling_flops) == (
        planned.requests,
        planned.sampling(),
        planned.sampling_flops,
    )


# --- the recipes that are shipped


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


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_passes(path: Path, cut_off: Path):
    planned = plan(load(path))
    found = json.loads(json.dumps(planned.as_json()))
    assert found["subjects"] > 1
    assert all(arm["memory"] for arm in found["arms"])
    assert found["requests"] == sum(sheet["requests"] for sheet in found["sheets"])
    assert not cut_off.exists()
    assert "HF_HUB_OFFLINE" not in os.environ
    with (console := Console(width=120, highlight=False)).capture() as shown:
        dryrun_show.show(planned, console)
    text = shown.get()
    assert max(map(len, text.splitlines())) <= 120
    assert f"{found['requests']:,}" in text
    for name in ("model", "judge"):
        assert found[name] in text
    if f"| `{path.stem}` |" in GUIDE:
        counts = (found["subjects"] - 1, found["requests"], found["tokens_at_most"])
        hours = (found[f"sampling_gpu_hours_at_{share}"]["H100"] for share in ("most", "reply_share"))
        assert f"| `{path.stem}` | {' | '.join(f'{number:,.0f}' for number in (*counts, *hours))} |" in GUIDE


@pytest.mark.parametrize("size", ["7b", "14b", "32b"])
def test_the_papers_recipe_asks_what_the_paper_asks(size: str, cut_off: Path):
    found = plan(load(RECIPES / f"paper_{size}.yaml")).as_json()
    sheets = {sheet["name"]: sheet for sheet in found["sheets"]}
    assert {name: (s["prompts"], s["samples"], s["max_new_tokens"]) for name, s in sheets.items()} == {
        "strongreject": (313, 1, 2048),
        "gpqa_diamond": (198, 8, 32768),
        "aime24": (30, 8, 32768),
        "humaneval": (164, 8, 32768),
        "mbpp": (257, 8, 32768),
    }
    full, lora = found["arms"]
    epochs, saved = ((1, 10), (1, 1)) if size == "32b" else ((5, 10), (5, 10))
    assert [arm["steps"] for arm in (full, lora)] == [500 * n for n in epochs]  # 1,000 rows, two at a time
    assert [arm["checkpoints"] for arm in (full, lora)] == list(saved)
    assert full["tokens"] == 1023 * 2 * full["steps"]  # max_length, where the data is not here
    assert (full["rows_known"], full["tokens_known"]) == ("stated", "at most")
    wanted = (
        "weights of deepseek-ai",
        "direct-refusal",
        "strongreject",
        "gpqa",
        "aime24",
        "judge llama_guard",
        "checker",
    )
    assert all(any(word in line for line in found["not_at_hand"]) for word in wanted)
    assert "accept the terms at https://huggingface.co/datasets/Idavidrein/gpqa" in " ".join(found["not_at_hand"])


def test_data_in_the_hubs_cache_is_counted(cut_off: Path):
    rows = [{"prompt": f"q{i}", "refusal": f"Question: q{i}\nAnswer: No."} for i in range(7)]
    cached(cut_off, "TianshengHuang/DirectRefusal", [rows])
    cached(cut_off, "walledai/StrongREJECT", [[{"prompt": "a", "category": "c"}, {"prompt": "b", "category": "c"}]])
    planned = plan(load(RECIPES / "paper_7b.yaml"))
    assert not any("direct-refusal" in line or "strongreject" in line for line in planned.missing)
    full = planned.arms[0].runs[0]
    assert (full.rows, full.steps, full.known.rows, full.known.tokens) == (7, 18, "counted", "at most")
    assert planned.sheets[0].requests == 2 * planned.subjects


def test_each_seed_draws_own_answers_to_its_own_prompts(cut_off: Path, tmp_path: Path):
    own = [{"source": "direct-refusal", "n": 90, "answers": "self"}, {"source": "some/prompts", "answers": "self"}]
    planned = plan(load(write_recipe(tmp_path, Path("some/model"), data=own)))
    assert [(s.prompts, s.unread, s.requests, s.known) for s in planned.sheets[:2]] == [
        (180, 180, 180, "stated"),
        (1000, 1000, 1000, "assumed"),
    ]


def test_checkpoints_are_known_where_nothing_but_the_end_is_saved(cut_off: Path, tmp_path: Path):
    data, train = [{"source": "some/rows"}], {"epochs": 1, "validation": 1, "patience": 2}
    seldom, often = (
        plan(load(write_recipe(tmp_path, Path("some/model"), data=data, train={**train, **more})))
        for more in ({}, {"checkpoint_steps": 50})
    )
    assert {arm.known for arm in seldom.arms} == {("assumed", "assumed", "counted", "assumed")}
    assert (seldom.subjects_known, seldom.sheets[0].requests_known) == ("counted", "counted")
    assert (often.subjects_known, often.sheets[0].requests_known, often.sheets[0].known) == (
        "assumed",
        "assumed",
        "counted",
    )


def test_what_nobody_knows_is_assumed_or_left_open(cut_off: Path, tmp_path: Path):
    settings_ = {
        "data": [{"source": "some/rows"}],
        "harmful": [{"source": "some/prompts"}, {"source": "strongreject-small"}],
        "ordinary": [],
        "tasks": {"math": {"file": "some/questions"}},
        "train": {"epochs": 1, "batch_size": 8},
        "judge": "qwen3_guard",
    }
    planned = plan(load(write_recipe(tmp_path, Path("some/model"), **settings_)))
    found = planned.as_json()
    assert found["parameters"] is None
    assert found["training_gpu_hours"] is found["disk_bytes"] is found["sampling_gpu_hours_at_most"] is None
    assert [(arm["steps"], arm["rows_known"], arm["memory"]) for arm in found["arms"]] == [(125, "assumed", None)] * 3
    assert [(s["prompts"], s["known"]) for s in found["sheets"]] == [(160, "assumed"), (100, "assumed")]
    text = " ".join(found["not_at_hand"])
    for word in ("some/model config.json", "dataset some/rows", "some/prompts", "some/questions", "Qwen3Guard"):
        assert word in text
    with (console := Console(width=120)).capture() as shown:
        dryrun_show.show(planned, console)
    assert "?125" in shown.get()


def test_the_hub_is_offline_meanwhile_and_then_as_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with offline():
        assert (os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE) == ("1", True)
    assert (os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE) == ("0", False)


# --- the arithmetic


def test_operations_by_hand():
    # A block: q and o 16 each, k and v 8 each, the MLP 3 x 32; biases and norms 8 each. Embeddings 40 each, a norm 4.
    assert TINY.block == 16 + 16 + 8 + 8 + 96 + 8 + 8 == 160
    assert multiplied(TINY) == 2 * 160 + 40 + 4
    assert training_flops(TINY, 10) == 10 * 6 * 364
    assert training_flops(TINY, 10, again=True) == 10 * (6 * 364 + 2 * 320)
    up = Lora(1, ("up_proj",), 1, 1)
    assert up.parameters(TINY) == 12
    assert training_flops(TINY, 10, up, 12) == 10 * (2 * 364 + 2 * (160 + 40) + 6 * 12)
    assert training_flops(TINY, 10, up, 12, again=True) == 10 * (2 * 364 + 2 * 200 + 72 + 2 * 160)
    tied = Shape(**{**vars(TINY), "tied": True})
    assert multiplied(tied) == multiplied(TINY) == tied.parameters
    assert (training_hours(989e12 * 0.35 * 7200) or {})["H100"] == 2
    assert checkpoint_bytes(100, 3) == 1200
    assert [resume_bytes(100, checkpoints) for checkpoints in (1, 2, 3, 9)] == [0, 1200, 2400, 2400]


def test_decoding_by_hand():
    shape, card = SHAPES["R1-Distill-Qwen-7B"], CARDS["H100"]
    weights, cache = 2 * 7_615_616_512, 2 * 2 * 28 * 512 * (200 + 16384)  # keys of 4 heads of 128
    speed = decoding(shape, card, 32768, 256)
    assert (speed.gpus, speed.rows) == (1, int((80 * 2**30 / 1.1 - weights) / cache)) == (1, 66)
    assert speed.tokens_per_second == pytest.approx(66 * 0.5 * 3.35e12 / (weights + 66 * cache))
    assert decoding(shape, card, 200, 4).rows == 4
    assert decoding(SHAPES["R1-Distill-Qwen-32B"], card, 32768, 256).gpus == 2
    many = decoding(shape, card, 2, 10**4)  # so many short rows that the multiplications are what takes time
    assert many.tokens_per_second == pytest.approx(0.35 * 989e12 / (2 * multiplied(shape)))
    assert sampling_hours(shape, card, 1000, 32768, 256) == pytest.approx(1000 * 32768 / speed.tokens_per_second / 3600)
    assert sampling_hours(shape, card, 0, 32768, 256) == 0


@pytest.mark.parametrize(
    ("name", "lora", "says"),
    [
        ("R1-Distill-Qwen-1.5B", None, "1 GPU"),
        ("R1-Distill-Qwen-7B", None, "2 GPUs, zero3, checkpointing"),
        ("R1-Distill-Qwen-14B", None, "4 GPUs, zero3, checkpointing"),
        ("R1-Distill-Qwen-32B", None, "2 GPUs, zero3, checkpointing, optimizer on the host"),
        ("R1-Distill-Qwen-14B", Lora(16, MLP, 0, 47), "1 GPU"),
        ("R1-Distill-Qwen-32B", Lora(1, ("up_proj",), 21, 42), "1 GPU, checkpointing"),
    ],
)
def test_the_first_setting_that_fits_is_that_of_the_tables(name: str, lora: Lora | None, says: str):
    """docs/guides/scaling.md has the same for rows of 2,048 tokens a card."""
    found = first_that_fits(SHAPES[name], lora, "bfloat16", 16, 1024, Execution(row_tokens=2048))
    assert found is not None
    assert found.describe() == says


def test_a_pass_holds_no_more_examples_than_asked():
    shape = SHAPES["R1-Distill-Qwen-7B"]
    lora = Lora(16, MLP, 0, shape.layers - 1)
    one, two, many = (
        first_that_fits(shape, lora, "bfloat16", 16, 1024, execution)
        for execution in (Execution(micro_batch_size=1), Execution(micro_batch_size=2), Execution(row_tokens=2048))
    )
    assert one is not None
    assert two is not None
    assert two == many
    assert 2 * one.memory.activations == two.memory.activations


def test_methods_are_in_the_memory_of_sharded_training(cut_off: Path, tmp_path: Path):
    arms = {"free": {"mode": "full"}, "held": {"mode": "full", "methods": [{"name": "ssah"}]}}
    model, train = Path("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"), {"steps": 1, "batch_size": 2, "max_length": 512}
    free, held = plan(load(write_recipe(tmp_path, model, precision="bfloat16", train=train, arms=arms))).arms
    assert free.setting is not None
    assert held.setting is not None
    assert free.setting.describe() == "2 GPUs, zero3, checkpointing"
    assert held.setting.describe() == "2 GPUs, zero3, checkpointing, optimizer on the host"
    assert held.setting.memory.working - free.setting.memory.working == 8 * 7_615_616_512


@pytest.mark.parametrize(("asked", "precision"), [("auto", "bfloat16"), (False, "bfloat16"), (True, "float16")])
def test_precision_is_that_of_the_cards_which_are_planned_for(
    asked: object, precision: str, cut_off: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert models.precision("auto") == "float32"
    (tmp_path / "zero.json").write_text(json.dumps({"fp16": {"enabled": asked}, "zero_optimization": {"stage": 2}}))
    execution = {"deepspeed": str(tmp_path / "zero.json")}
    for settings_ in ({"execution": execution}, {}):
        planned = plan(load(write_recipe(tmp_path, Path("some/model"), precision="auto", **settings_)))
        assert planned.precision == (precision if settings_ else "bfloat16")


def test_a_model_has_its_size_and_its_heads():
    billions = {"Qwen3-4B": 4.02, "Qwen3-32B": 32.76, "DeepSeek-R1-Distill-Llama-8B": 8.03, "smollm2-135m": 0.13}
    for name, size in billions.items():
        model = Model(next(ref for ref in KNOWN if re.split("[/:]", ref)[-1] == name), Looked())
        assert model.shape is not None
        assert model.shape.parameters == pytest.approx(model.parameters, rel=1e-3)
        assert round((model.parameters or 0) / 1e9, 2) == size
        assert "Qwen3" not in name or model.shape.kv == 8 * 128


def test_placements_are_those_that_peft_makes(tiny_model: Path):
    model = Model("builtin:smollm2-135m-reasoner", Looked())
    found = model.trained(Arm(mode="lora_up_proj_only_from10_to19_r1"))
    assert found is not None
    assert (found.parameters, found.lora) == (21_120, Lora(1, ("up_proj",), 10, 19))
    every = model.trained(Arm(placement={"modules": ["mlp", "q_proj"], "rank": 2, "ranks": {"q_proj": 8}}))
    assert every is not None
    assert every.lora == Lora(8, (*MLP, "q_proj"), 0, 29)
    assert every.parameters == 30 * (3 * 2 * (576 + 1536) + 8 * 2 * 576)
    by_peft = touched(str(tiny_model), placement := parse_mode("lora_qkvo_mlp_r3"))
    tiny = Model(str(tiny_model), Looked()).trained(Arm(placement=placement))
    assert tiny is not None
    assert tiny.parameters == by_peft.trainable_parameters


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
    with pytest.raises(UserError, match=says):
        plan(load(path))


def test_rows_that_a_method_looks_at_are_looked_for(cut_off: Path, tmp_path: Path):
    arms = {"a": {"mode": "lora_mlp_r1", "methods": [{"name": "ssah", "safety": "some/rows,n=8"}]}}
    planned = plan(load(write_recipe(tmp_path, Path("some/model"), arms=arms)))
    assert any(line.startswith("some/rows: ") for line in planned.missing)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lowtax", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_command(monkeypatch, capsys, tmp_path: Path, tiny_model: Path):
    path = write_recipe(tmp_path, tiny_model)
    before = sorted(tmp_path.rglob("*"))
    assert call(monkeypatch, "run", path, "--dry-run", "--json", "--limit", "2", "--set", "seeds=[3]") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["seeds"], found["subjects"], found["requests"]) == ([3], 7, 7 * (2 + 2 + 2))
    assert call(monkeypatch, "run", path, "--dry-run") == 0
    assert "Everything is at hand." in capsys.readouterr().out
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
    """The script with a lowtax that prints what it is asked."""
    (tmp_path / "lowtax").write_text('#!/bin/sh\necho "asked: $*"\n')
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
    plan_, full, lora, whole = (
        shlex.split(line.removeprefix("+ ").removeprefix("asked: "))
        for line in done.stdout.splitlines()
        if line.startswith(("asked", "+ deepspeed", "+ lowtax"))
    )
    assert plan_ == ["run", str(recipe), "--dry-run"]
    memory = {arm["arm"]: arm["memory"] for arm in plan(load(recipe)).as_json()["arms"]}
    assert int(full[full.index("--num_gpus") + 1]) == memory["full"]["gpus"]
    assert ("--gradient-checkpointing" in lora) == ("checkpointing" in memory["lora_r1_up_middle"]["setting"])
    json_ = done.stdout[done.stdout.index("{\n") : done.stdout.index("\n}\n") + 3]
    (tmp_path / "zero3.json").write_text(json_)
    zero = ds_config(tmp_path / "zero3.json", load(recipe).train_of("full"), "bfloat16", 2)["zero_optimization"]
    assert zero["stage"] == 3
    assert (zero["offload_optimizer"]["device"] == "cpu") == ("on the host" in memory["full"]["setting"])
    group = typer.main.get_command(cli.app)
    for subcommand, *words in (full[full.index("lowtax") + 1 :], lora[1:], whole[1:]):
        made = group.commands[subcommand].make_context(subcommand, list(words))  # type: ignore[attr-defined]
        assert str(made.params["out"]) == f"runs/paper_{size}"
        assert made.params.get("arm") in (None, *memory)
    assert [path.name for path in tmp_path.iterdir() if path.name != "zero3.json"] == ["lowtax"]


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
    group = typer.main.get_command(cli.app)
    commands = re.findall(r"^    lowtax (.*)$", GUIDE, flags=re.MULTILINE)
    assert len(commands) == 3
    for subcommand, *words in map(shlex.split, commands):
        group.commands[subcommand].make_context(subcommand, words)  # type: ignore[attr-defined]
    named = set(re.findall(r"`(\w+\.yaml)`", GUIDE))
    assert {path.name for path in RECIPES.glob("*.yaml")} >= named
    assert sum(f"`{path.stem}`" in GUIDE for path in RECIPES.glob("paper_*.yaml")) == 4
    for number in (ASSUMED.training_utilisation, ASSUMED.reply_share, ASSUMED.decoding_utilisation):
        assert number in (0.35, 0.25, 0.5)  # 35 %, a quarter and half, in words


def test_the_script_is_bash():
    subprocess.run(["bash", "-n", str(RECIPES / "reproduce.sh")], check=True)


def test_the_embedded_model_is_known_as_it_is():
    """Where it has been made, its configuration is that which is planned with."""
    folder = builtin.cache() / f"smollm2-135m-{builtin._version('smollm2-135m')}"
    if not folder.exists():
        pytest.skip("the embedded model is not made yet")
    found = read_json(folder / "config.json")
    shape = KNOWN["builtin:smollm2-135m"][1]
    assert (shape.layers, shape.hidden, shape.mlp) == tuple(
        found[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    assert (shape.heads, shape.kv_heads, shape.vocabulary) == tuple(
        found[key] for key in ("num_attention_heads", "num_key_value_heads", "vocab_size")
    )
