"""Two processes on CPU (gloo) train the weights of one process, data parallel or sharded, and resume after a kill."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from places import TESTS
from progress import progress_to
from safetensors.torch import load_file
from tiny import make_model
from transformers import AutoModelForCausalLM

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.models import loading
from lowtax.models.placement import parse_mode
from lowtax.training import distributed
from lowtax.training.job import Job
from lowtax.training.loop import train
from lowtax.training.settings import Execution, Train
from lowtax.training.zero_config import ds_config, fill_sizes

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
UPPER = "lora_up_proj_only_from1_to2_r2"  # of three layers the last two: the first is a frozen prefix
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
DECAY = {"train": {"weight_decay": 0.1}}  # would move what a method holds
LOOK = {"safety": "ROWS", "task": "OTHERS"}  # files of rows, written by `runs`
RESUMED: dict[str, Any] = {"mode": "lora_mlp_r2", "train": {"steps": 6, "validation": 2}}
JOBS: dict[str, dict[str, Any]] = {
    "adapter": {"mode": UPPER},  # 5 examples a step: 3 and 2
    "lone": {"mode": UPPER, "train": {"batch_size": 1, "validation": 2}},  # one process has no example at all
    "full": {"mode": "full"},
    "adapter_bf16": {"mode": UPPER, "precision": "bfloat16"},
    "full_bf16": {"mode": "full", "precision": "bfloat16"},
    "orthogonal": {
        "mode": "lora_mlp_r2",
        "methods": [{"name": "orthogonal", "beta": 0.1, "k": 4}],
        "execution": {"micro_batch_size": 1},  # and 3 forward passes, of which the second process has 2
    },
    "salora": {
        "mode": "lora_qkvo_mlp_r4",
        **DECAY,
        "methods": [{"name": "salora", **LOOK, "rank_safety": 4, "rank_task": 4}],
    },
    "spf": {"mode": "lora_mlp_r2", "methods": [{"name": "spf", "safety": "ROWS", "k": 2, "update": True}]},
    "ssah": {
        "mode": "lora_qkvo_mlp_r2",
        **DECAY,
        "methods": [{"name": "ssah", "safety": "ROWS", "utility": "OTHERS", "scu": 0.2}],
    },
    "spf_full": {"mode": "full", "methods": [{"name": "spf", "safety": "ROWS", "every": 2, "update": True}]},
    "ssah_full": {
        "mode": "full",
        **DECAY,
        "methods": [{"name": "ssah", "safety": "ROWS", "utility": "OTHERS", "scu": 0.2}],
    },
    "ssah_full_bf16": {
        "mode": "full",
        "precision": "bfloat16",
        "methods": [{"name": "ssah", "safety": "ROWS", "utility": "OTHERS", "scu": 0.2}],
    },
    "ssah_full_redundant": {
        "mode": "full",
        **DECAY,
        "methods": [{"name": "ssah", "safety": "ROWS", "utility": "OTHERS", "freeze": "all but redundant"}],
    },
    "undisturbed": RESUMED,
    "undisturbed_methods": RESUMED
    | {"methods": [{"name": "spf", "safety": "ROWS"}, {"name": "ssah", "safety": "ROWS", "utility": "OTHERS"}]},
}
LAUNCHES = {  # each takes a second or more: every method in the ways that differ most, the rest once
    "ddp": list(JOBS),
    "zero1": ["ssah_full", "undisturbed_methods"],
    "zero2": ["full", "ssah_full_bf16", "ssah_full_redundant", "salora"],
    "zero3": [
        *("full", "adapter_bf16", "ssah_full_bf16", "ssah_full_redundant"),
        *("spf_full", "salora", "undisturbed_methods"),  # spf and ssah
    ],
    "fsdp2": ["full", "adapter", "orthogonal", "spf", "ssah_full", "ssah_full_redundant", "salora", "undisturbed"],
    "fsdp2_bf16": ["adapter_bf16"],
}
REFUSED = {"fsdp2_bf16": ["full_bf16"]}
ENVIRONMENT = {"fsdp2": FSDP, "fsdp2_bf16": FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}}


def marked(kind: str, *more: str) -> Any:
    return pytest.param(kind, *more, marks=needs_deepspeed if kind.startswith("zero") else [])


def zero_json(stage: int, **more: Any) -> dict[str, Any]:
    """Return a DeepSpeed JSON as users write it: "auto" values, and weights and optimiser offloaded to the host."""
    auto = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
    offload: dict[str, Any] = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
    if stage == 3:
        offload |= {"offload_param": offload["offload_optimizer"], "stage3_gather_16bit_weights_on_model_save": True}
        offload["stage3_param_persistence_threshold"] = 0  # or a tiny model stays whole
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 1.0,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "optimizer": {"type": "AdamW", "params": auto},
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "round_robin_gradients": True,  # with which DeepSpeed would save scrambled weights
            **(offload if stage > 1 else {}),
        },
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own optimiser takes a minute to compile
        **more,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all jobs in all ways to train; return a folder with one folder per way (`one`: a single process)."""
    root = tmp_path_factory.mktemp("runs")
    model = make_model(root / "model", layers=3)

    for name, word in (("ROWS", "never"), ("OTHERS", "always")):
        rows = [{"prompt": f"{word} {i}?", "thought": f"{i * i}.", "answer": f"{word}, {i} times."} for i in range(4)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def spec(kind: str, name: str, **more: Any) -> dict[str, Any]:
        job = dict(JOBS[name.replace("resumed", "undisturbed")])
        job["methods"] = [
            {key: str(root / f"{value}.jsonl") if value in ("ROWS", "OTHERS") else value for key, value in one.items()}
            for one in job.get("methods", [])
        ]
        settings = {"lr": 1e-2, "steps": 4, "batch_size": 5, "checkpoint_steps": 2, "warmup_steps": 0}
        settings |= {"save_dtype": "float32"} | job.get("train", {})  # so that small differences can be seen
        execution = dict(job.get("execution", {}))
        if kind.startswith("zero"):
            execution["deepspeed"] = str(root / f"{kind}.json")
        return (
            job
            | {"model": str(model), "out": str(root / kind / name), "train": settings, "execution": execution}
            | more
        )

    launches: list[dict[str, Any]] = [{"jobs": [spec("one", name) for name in JOBS], "processes": 1}]
    for kind, names in LAUNCHES.items():
        if kind.startswith("zero"):
            if find_spec("deepspeed") is None:
                continue
            (root / f"{kind}.json").write_text(json.dumps(zero_json(int(kind[-1]))))
        environment = ENVIRONMENT.get(kind, {})
        jobs, after = [spec(kind, name) for name in [*names, *REFUSED.get(kind, [])]], []
        if resumed := [name.replace("undisturbed", "resumed") for name in names if "undisturbed" in name]:
            jobs.append(
                spec(kind, resumed[-1], freeze_at="step 4: validation")
            )  # the last one: all processes are killed
            after = [spec(kind, resumed[-1])]
        launches += [{"jobs": some, "processes": 2, "environment": environment} for some in (jobs, after) if some]
    (root / "launches.json").write_text(json.dumps(launches))
    packages = ["deepspeed"] if find_spec("deepspeed") else []
    done = subprocess.run(
        [sys.executable, str(TESTS / "support" / "ranks.py"), str(root / "launches.json"), *packages],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (root / "output.txt").write_text(done.stdout + done.stderr)
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    result = list(folder.glob("*.safetensors"))
    assert len(result) == 1
    return load_file(result[0])


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def distance(root: Path, kind: str, name: str, step: int, than: str = "one") -> float:
    """Return the distance of two runs relative to the way that training went: ||two - one|| / ||one - start||."""
    one, two = (weights(root / k / name / f"checkpoint-{step}") for k in (than, kind))
    assert one.keys() == two.keys()
    assert all(one[key].dtype == two[key].dtype == torch.float32 for key in one)
    start = weights(root / "model") if "full" in name else {k: 0 * v if "lora_B" in k else v for k, v in one.items()}
    difference = sum((one[key] - two[key]).square().sum() for key in one)
    return float(difference / sum((one[key] - start[key]).square().sum() for key in one)) ** 0.5


CASES = [marked(kind, name) for kind, names in LAUNCHES.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_two_processes_train_what_one_does(runs: Path, kind: str, name: str):
    # In bfloat16, two short rows round differently from one long row, and sharded weights use transformers' own
    # forward pass, which rounds differently from the fused one.
    tolerance = 0.2 if "bf16" in name else 1e-5
    assert all(distance(runs, kind, name, step) < tolerance for step in (2, 4))
    norms = [[step["grad_norm"] for step in steps(runs / k / name)] for k in ("one", kind)]
    assert norms[1] == pytest.approx(norms[0], rel=0.1 if "bf16" in name else 1e-3)
    cards = [json.loads((runs / k / name / "card.json").read_text()) for k in ("one", kind)]
    assert [card["processes"] for card in cards] == [1, 2]
    assert cards[0]["trainable_parameters"] == cards[1]["trainable_parameters"]
    for one, two in zip(*(card["checkpoints"] for card in cards), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=0.01 if "bf16" in name else 1e-4)
        assert (
            (one["validation"] is None)
            == (two["validation"] is None)
            == ("validation" not in JOBS[name].get("train", {}))
        )
        if one["validation"]:
            assert two["validation"] == pytest.approx(one["validation"], rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "name"), [marked(k, name) for k, names in LAUNCHES.items() for name in names if "ssah_full" in name]
)
def test_what_a_method_holds_keeps_its_bits_in_all_processes(runs: Path, kind: str, name: str):
    start, one, result = (
        weights(folder) for folder in (runs / "model", *(runs / k / name / "checkpoint-4" for k in ("one", kind)))
    )
    if "bf16" in name:
        start = {key: tensor.bfloat16().float() for key, tensor in start.items()}
    units = 0
    for key in (key for key in start if "mlp.down_proj" in key):
        held = (one[key] == start[key]).all(0)
        assert torch.equal(result[key][:, held], start[key][:, held])
        units += int(held.sum())
    assert units > 0
    if "redundant" in name:
        rest = [key for key in start if not re.search(r"(gate|up|down|v|o)_proj", key)]
        assert {"model.embed_tokens.weight", "model.norm.weight"} <= {*rest}
        assert all(torch.equal(result[key], start[key]) for key in rest)
        moved = "model.layers.1.mlp.up_proj.weight"
        assert not torch.equal(result[moved], start[moved])


@needs_deepspeed
def test_both_ways_to_shard_agree_more_closely_in_bfloat16(runs: Path):
    # Both use transformers' own forward pass. Rotary frequencies rounded to bfloat16 would raise this to 0.1.
    assert max(distance(runs, "zero3", "adapter_bf16", step, "fsdp2_bf16") for step in (2, 4)) < 0.02


@pytest.mark.parametrize("kind", [marked(kind) for kind, names in LAUNCHES.items() if "undisturbed" in "".join(names)])
def test_a_killed_launch_resumes_with_the_same_bits(runs: Path, kind: str):
    undisturbed = runs / kind / [name for name in LAUNCHES[kind] if "undisturbed" in name][-1]
    result = runs / kind / undisturbed.name.replace("undisturbed", "resumed")
    assert (result / "frozen").exists()
    messages = (result / "said.txt").read_text()
    assert messages.count("step 4: validation") == 2  # killed there, and measured again after resuming
    assert messages.count("resuming after step 2") == 1
    for step in (4, 6):
        a, b = (weights(folder / f"checkpoint-{step}") for folder in (result, undisturbed))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert [step["step"] for step in steps(result)] == list(range(1, 7))
    assert not list(result.glob(".state*"))


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path):
    """State is saved by the clock of the first process, too; the second gets the signal."""
    model = make_model(tmp_path / "model", layers=3)
    settings = {"lr": 1e-2, "steps": 30, "batch_size": 5, "warmup_steps": 0}
    base = {"mode": UPPER, "model": str(model), "train": settings}
    often = {"out": str(tmp_path / "stopped"), "execution": {"save_state_minutes": 1e-5}}
    jobs = [base | {"out": str(tmp_path / "whole")}, base | often | {"signal_at": "step 10/"}, base | often]
    launches = tmp_path / "launches.json"
    launches.write_text(json.dumps([{"jobs": [one], "processes": 2} for one in jobs]))
    ranks = [sys.executable, str(TESTS / "support" / "ranks.py"), str(launches)]
    done = subprocess.run(ranks, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "stopped"
    messages = {(out / f"stopped-{rank}.txt").read_text() for rank in (0, 1)}
    assert len(messages) == 1
    stopped = int(re.search(r"stopped after step (\d+)", messages.pop())[1])
    assert 10 <= stopped < 30
    assert f"resuming after step {stopped}" in (out / "said.txt").read_text()
    a, b = (weights(folder / "checkpoint-30") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [step["step"] for step in steps(out)] == list(range(1, 31))


@pytest.mark.parametrize("kind", [marked(kind) for kind in LAUNCHES])
def test_only_the_first_process_speaks(runs: Path, kind: str):
    messages = [line for path in (runs / kind).glob("*/said.txt") for line in path.read_text().splitlines()]
    assert messages
    assert {line[0] for line in messages} == {"0"}
    assert len(steps(runs / kind / LAUNCHES[kind][0])) == 4


def test_processes_share_the_work_of_the_prefix(runs: Path):
    messages = {name: (runs / "ddp" / name / "said.txt").read_text() for name in ("adapter", "full")}
    assert "hidden states below layer 1" in messages["adapter"]
    assert "hidden states" not in messages["full"]


@pytest.mark.parametrize("kind", [marked(kind) for kind, names in LAUNCHES.items() if "full" in names])
@torch.no_grad()
def test_checkpoints_load_in_the_usual_libraries(runs: Path, kind: str):
    ids = torch.arange(40, 60)[None]
    for name in (LAUNCHES[kind][-1], "full"):
        logits = []
        for k in ("one", kind):
            folder = runs / k / name / "checkpoint-4"
            where = folder if name == "full" else runs / "model"
            model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
            if name != "full":
                model = PeftModel.from_pretrained(model, folder)
            assert (folder / "README.md").exists()
            logits.append(model(ids).logits)
        assert torch.allclose(logits[0], logits[1], atol=1e-4)


@pytest.mark.parametrize(("kind", "name"), [marked(kind, name) for kind, names in REFUSED.items() for name in names])
def test_all_processes_refuse_what_cannot_be_sharded(runs: Path, kind: str, name: str):
    messages = [(runs / kind / name / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert messages[0].startswith("The model's input and output embeddings share")
    assert not list((runs / kind / name).glob("checkpoint-*"))


SETTINGS = Train(steps=8, batch_size=8, lr=1e-3)


def read_config(tmp_path: Path, config: Any, precision: str = "bfloat16", **more: Any) -> dict[str, Any]:
    path = tmp_path / "ds.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return ds_config(path, SETTINGS, precision, 2, **more)


def test_a_deepspeed_json_is_filled_from_the_recipe(tmp_path: Path):
    result = read_config(tmp_path, zero_json(3))
    assert "optimizer" not in result
    assert "fp16" not in result
    assert result["bf16"] == {"enabled": True}
    assert result["gradient_clipping"] == 1.0
    assert (result["train_batch_size"], result["train_micro_batch_size_per_gpu"]) == (2, 1)
    assert result["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": False}
    sizes = fill_sizes(result["zero_optimization"], 100)
    assert (sizes["reduce_bucket_size"], sizes["stage3_prefetch_bucket_size"]) == (10_000, 9_000)
    assert "bf16" not in read_config(tmp_path, zero_json(3), "float32")
    half = read_config(tmp_path, zero_json(3, bf16={"enabled": False}), "float16")
    assert half["fp16"] == {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}


def test_the_reference_json_is_taken_as_it_is(tmp_path: Path):
    # ds_config_zero3_32b.json of YihaoXue/lora-safety-reasoning, in its essence; two processes, one example each.
    zero = {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
    config = {
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
        "fp16": {"enabled": True},
        "steps_per_print": 100,
    }
    (tmp_path / "ds.json").write_text(json.dumps(config))
    settings = Train(epochs=1, batch_size=2)
    assert loading.precision("auto", str(tmp_path / "ds.json")) == "float16"
    assert ds_config(tmp_path / "ds.json", settings, "float16", 2, micro_batch_size=1)["fp16"] == {"enabled": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient_clipping": 0.5}, "gradient_clipping = 0.5, but train.max_grad_norm is 1.0"),
        ({"train_batch_size": 16}, "train_batch_size = 16, but train.batch_size is 8"),
        ({"train_micro_batch_size_per_gpu": 4}, "but execution.micro_batch_size is 2"),
        ({"gradient_accumulation_steps": 4}, "but the number of forward passes on 2 processes is 2"),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type = "Lamb", but the optimizer is "AdamW"'),
        ({"optimizer": {"params": {"lr": 1e-4}}}, "optimizer.params.lr = 0.0001, but train.lr is 0.001"),
        ({"optimizer": {"params": {"weight_decay": 0.1}}}, "but train.weight_decay is 0.0001"),
        ({"scheduler": {"params": {"warmup_num_steps": 50}}}, "but train.warmup_steps is 5"),
        ({"fp16": {"enabled": True}}, "fp16.enabled = true, but float16 as precision is false"),
        ({"bf16": {"enabled": False}}, "bf16.enabled = false, but bfloat16 as precision is true"),
        ({"zero_optimization": {}}, "zero_optimization.stage is None; lowtax trains with stage 1, 2 or 3"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage is 0"),
        ({"zero_optimization": 2}, "zero_optimization.stage is 2; "),
    ],
)
def test_a_deepspeed_json_that_contradicts_the_recipe_is_refused(tmp_path: Path, change: dict[str, Any], message: str):
    with pytest.raises(UserError) as refused:
        read_config(tmp_path, zero_json(2, **change), micro_batch_size=2)
    assert message in str(refused.value)
    assert str(tmp_path / "ds.json") in str(refused.value)


def test_agreeing_values_are_no_contradiction(tmp_path: Path):
    same = {"train_batch_size": 8, "gradient_accumulation_steps": 2, "train_micro_batch_size_per_gpu": 2}
    assert read_config(tmp_path, zero_json(2, **same), micro_batch_size=2)["train_batch_size"] == 2
    assert read_config(tmp_path, zero_json(2, gradient_accumulation_steps=1))["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("text", "message"), [("{", r"is not valid JSON \("), ("[]", "holds a list and not an object")]
)
def test_what_is_no_json_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        read_config(tmp_path, text)


def test_a_missing_deepspeed_json_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent.json cannot be read: No such file"):
        ds_config(tmp_path / "absent.json", SETTINGS, "bfloat16", 2)


def test_what_the_launcher_cannot_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def make_accelerator(precision: str = "float32", **execution: Any) -> None:
        distributed.accelerator(Execution.model_validate(execution), SETTINGS, precision, tmp_path)

    (tmp_path / "ds.json").write_text(json.dumps(zero_json(2)))
    requirement = (
        "a launcher, even for one device: torchrun" if find_spec("deepspeed") else "the deepspeed package: pip install"
    )
    with pytest.raises(UserError, match=f"needs {requirement}"):
        make_accelerator(deepspeed=str(tmp_path / "ds.json"))
    with pytest.raises(UserError, match="float16 trains on GPUs only"):
        make_accelerator("float16", deepspeed=str(tmp_path / "ds.json"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        UserError, match=r"trains with FSDP2 on GPUs.* or remove FSDP from it .here accelerate would run NO"
    ):
        make_accelerator()
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="give lowtax its JSON, with --ds_config FILE"):
        make_accelerator()


def test_a_run_resumes_only_with_the_same_sharding(tiny_model: Path, tmp_path: Path):
    (tmp_path / ".state").mkdir()
    (tmp_path / ".state" / "progress.json").write_text('{"step": 4, "seconds": 1.0, "checkpoints": []}')
    torch.save({"keeper": "ZeRO-3 on 2 processes"}, tmp_path / ".state" / "own.pt")
    job = Job(
        model=str(tiny_model),
        placement=parse_mode(UPPER.replace("2", "1")),
        settings=SETTINGS,
        seed=0,
        precision="float32",
        rows=[Conversation("a", None, "b")],
    )
    with pytest.raises(UserError, match="a run by ZeRO-3 on 2 processes, which lowtax cannot resume"):
        train(job, tmp_path)


def test_a_kill_between_two_states_leaves_the_older(tiny_model: Path, tmp_path: Path):
    settings = Train(steps=6, batch_size=2, checkpoint_steps=2, validation=1)
    rows = [Conversation(f"a{i}", None, f"b{i}") for i in range(4)]
    job = Job(
        model=str(tiny_model),
        placement=parse_mode("lora_mlp_r1"),
        settings=settings,
        seed=0,
        precision="float32",
        rows=rows,
    )
    messages: list[str] = []

    def stop(text: str) -> None:
        if "step 4: validation" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress_to(stop):
        train(job, tmp_path)
    (tmp_path / ".state").rename(tmp_path / ".state.old")
    with progress_to(messages.append):
        train(job, tmp_path)
    assert "  resuming after step 2" in messages
    assert not list(tmp_path.glob(".state*"))


def test_an_error_of_one_process_ends_the_launch_with_one_sentence(tmp_path: Path):
    # Through torchrun and the command line, with a DeepSpeed JSON if DeepSpeed is installed.
    make_model(tmp_path / "model")
    rows = [json.dumps({"prompt": f"What is {i}?", "thought": "Hm.", "answer": f"It is {i}."}) for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "ds.json").write_text(json.dumps(zero_json(2)))
    arm = tmp_path / "out" / "arms" / "lora_mlp_r2" / "seed-0"
    arm.mkdir(parents=True)
    (arm / ".state.tmp").touch()  # blocks the folder that rank 0 must create, while rank 1 waits
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2"
    command = (
        "-m lowtax train --mode lora_mlp_r2 --model model --data rows.jsonl --out out --steps 4 --save-strategy steps "
        "--save-steps 2 --per-device-batch-size 2 --precision float32"
    )
    sharded = "--ds_config ds.json" if find_spec("deepspeed") else ""
    done = subprocess.run(
        [sys.executable, *launcher.split(), *command.split(), *sharded.split()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("training lora_mlp_r2, seed 0") == 1
    messages = [line for line in done.stderr.splitlines() if line.startswith("lowtax: ")]
    assert len(messages) == 1
    assert ".state could not be saved ([Errno 17]" in messages[0]
    assert "exitcode  : 2" in done.stderr
    assert done.stderr.count("Traceback") == 1  # by torchrun itself
    assert "accelerator" not in done.stdout + done.stderr  # a warning of DeepSpeed's
    assert (arm / "checkpoint-2" / "adapter_model.safetensors").exists()
    assert [step["step"] for step in steps(arm)] == [1, 2]
    assert json.loads((arm / "job.json").read_text())["settings"]["batch_size"] == 4
