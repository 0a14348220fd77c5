"""Options that users of other trainers look for: schedules, optimisers, what is saved, evaluation rows, trackers."""

import gc
import json
import os
import shutil
import sys
import types
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from progress import collected, progress_to
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import make_model
from transformers import AutoModelForCausalLM

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.models.placement import parse_mode
from lowtax.training import loop, optimizers, trackers
from lowtax.training.job import Job
from lowtax.training.loop import TrainingRun, train
from lowtax.training.progress import schedule
from lowtax.training.released import ReleasedParameters
from lowtax.training.settings import Execution, Train

ROWS = [Conversation(f"What is {i} + {i * i}?", f"{i} + {i * i}.", f"It is {i + i * i}, I think.") for i in range(9)]
OTHERS = [Conversation(f"What is {i} times 2?", None, f"It is {2 * i}.") for i in range(4)]


def job(
    model: Path,
    mode: str = "lora_mlp_r2",
    precision: str = "float32",
    execution: dict[str, Any] | None = None,
    **more: Any,
) -> Job:
    return Job(
        model=str(model),
        placement=parse_mode(mode).model_copy(update={} if mode == "full" else {"dropout": 0.0}),
        settings=Train.model_validate({"lr": 1e-2, "steps": 12, "batch_size": 4} | more),
        seed=0,
        precision=precision,
        rows=ROWS,
        execution=Execution.model_validate(execution or {}),
    )


def weights(out: Path, step: int = 12) -> dict[str, torch.Tensor]:
    (file,) = (out / f"checkpoint-{step}").glob("*.safetensors")
    return load_file(file)


def steps(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


# --- schedules


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_schedules(kind: Any):
    rates = [schedule(step, 100, 10, kind, 0.2) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(0 < rate <= 1 for rate in rates)
    expected = {
        "cosine": (0.5, 0.0003),
        "linear": (0.5, 1 / 90),
        "constant": (1.0, 1.0),
        "wsd": (1.0, 1 / 20),
    }[kind]
    assert (rates[55], rates[-1]) == pytest.approx(expected, abs=1e-3)
    if kind == "wsd":
        assert rates[80] == 1.0
        assert rates[90] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 5), (2, 5), (5, 5), (6, 5)])
def test_short_schedules_have_no_rate_of_zero(kind: Any, total: int, warmup: int):
    assert all(0 < schedule(step, total, warmup, kind) <= 1 for step in range(total))


def test_the_rates_of_a_run_are_those_of_its_schedule(tiny_model: Path, tmp_path: Path):
    train(job(tiny_model, scheduler="linear", warmup_ratio=0.25), tmp_path)
    rates = [row["lr"] / 1e-2 for row in steps(tmp_path)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, *[(12 - i) / 9 for i in range(3, 12)]])


@pytest.mark.parametrize(("more", "every"), [({"lowered_every": 3}, 3), ({"lowered_by": 0.5}, None)])
def test_the_rate_of_the_scheduler_step_falls_at_intervals(
    tiny_model: Path, tmp_path: Path, more: dict[str, Any], every: int | None
):
    settings = {"scheduler": "step", "warmup_steps": 2, **more}
    given = job(tiny_model, **settings)
    train(given, tmp_path)
    every = every or -(-len(given.rows) // given.settings.batch_size)
    by = given.settings.lowered_by
    rates = [row["lr"] / 1e-2 for row in steps(tmp_path)]
    assert rates == pytest.approx([0.5, 1.0, *(by ** (i // every) for i in range(2, 12))])
    assert len({round(rate, 9) for rate in rates}) > 3


def test_a_warm_up_longer_than_the_run_is_said(tiny_model: Path, tmp_path: Path):
    with collected() as lines:
        train(job(tiny_model, steps=2), tmp_path)
    assert any("the warm-up of 5 steps is longer than the run of 2" in line and "0.004" in line for line in lines)


def test_defaults_are_written_as_before():
    written = Train(epochs=10).model_dump(mode="json")
    assert not {"scheduler", "warmup_ratio", "optimizer", "betas", "save_dtype", "validation_data"} & written.keys()
    changed = Train(scheduler="wsd", betas=(0.9, 0.95)).model_dump(mode="json")
    assert (changed["scheduler"], changed["betas"]) == ("wsd", [0.9, 0.95])
    assert "save_state_minutes" not in Execution().model_dump(mode="json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup_steps": 3, "warmup_ratio": 0.1},
        {"warmup_ratio": 1.0},
        {"warmup_ratio": -0.1},
        {"scheduler": "cosin"},
        {"betas": [0.9, 1.0]},
        {"betas": [0.9]},
        {"optimizer": "sgd"},
        {"patience": 2},
        {"decay_ratio": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        Train.model_validate(wrong)


# --- what is saved


def test_only_the_newest_and_the_best_checkpoints_stay(tiny_model: Path, tmp_path: Path):
    settings = {"steps": 12, "checkpoint_steps": 2, "validation": 3, "lr": 0.3, "warmup_steps": 0}
    whole = train(job(tiny_model, **settings), tmp_path / "whole")
    least = min(whole, key=lambda c: c.validation)
    with collected() as lines:
        kept = train(job(tiny_model, execution={"save_total_limit": 2}, **settings), tmp_path / "out")
    expected = sorted({least.step, 10, 12})
    assert [c.step for c in kept] == expected
    assert sorted(int(p.name[11:]) for p in (tmp_path / "out").glob("checkpoint-*")) == expected
    assert any(f"{least.name} is the best" in line for line in lines)
    assert json.loads((tmp_path / "out/card.json").read_text())["best"] == least.name
    assert all(
        torch.equal(weights(tmp_path / "out", s)[k], w)
        for s in expected
        for k, w in weights(tmp_path / "whole", s).items()
    )


class Killed(BaseException):
    pass


def test_a_killed_run_with_a_limit_keeps_what_an_undisturbed_one_keeps(tiny_model: Path, tmp_path: Path):
    this_job = job(tiny_model, steps=20, checkpoint_steps=2, execution={"save_total_limit": 3})

    def kill(text: str) -> None:
        if "step 10/" in text:
            raise Killed

    with pytest.raises(Killed), progress_to(kill):
        train(this_job, tmp_path)
    assert [c.step for c in train(this_job, tmp_path)] == [16, 18, 20]
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3


@pytest.mark.parametrize(
    ("precision", "saved", "expected"),
    [
        ("bfloat16", "auto", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
        ("float32", "auto", torch.float32),
        ("float32", "bfloat16", torch.bfloat16),
    ],
)
def test_the_precision_of_saved_models(
    tiny_model: Path, tmp_path: Path, precision: str, saved: str, expected: torch.dtype
):
    run = TrainingRun(job(tiny_model, "full", precision, save_dtype=saved, steps=3), tmp_path)
    run.finish()
    stored = weights(tmp_path, 3)
    assert {w.dtype for w in stored.values()} == {expected}
    config = json.loads((tmp_path / "checkpoint-3/config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == str(expected).removeprefix("torch.")
    live = dict(run.model.named_parameters())
    masters = {id(p): m for p, m in zip(run.parameters.live, run.parameters.master, strict=True)}
    assert all(torch.equal(w, masters[id(live[name])].to(expected)) for name, w in stored.items() if name in live)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3", dtype="auto")
    assert loaded.dtype == expected


def test_adapters_stay_float32(tiny_model: Path, tmp_path: Path):
    train(job(tiny_model, precision="bfloat16", save_dtype="bfloat16"), tmp_path)
    assert {w.dtype for w in weights(tmp_path).values()} == {torch.float32}


# --- optimisers


def test_weight_decay_on_matrices_alone(tiny_model: Path, tmp_path: Path):
    strong = {"weight_decay": 30.0, "lr": 1e-2, "steps": 4, "warmup_steps": 0}
    before = load_file(tiny_model / "model.safetensors")
    for decayed in ("all", "matrices"):
        train(job(tiny_model, "full", decayed=decayed, **strong), tmp_path / decayed)
    norm, matrix = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
    everything, matrices = (weights(tmp_path / name, 4) for name in ("all", "matrices"))
    assert everything[norm].norm() < 0.7 * before[norm].norm()
    assert matrices[norm].norm() > 0.9 * before[norm].norm()
    assert matrices[matrix].norm() < 0.8 * before[matrix].norm()


def test_the_rate_of_adafactor_is_relative_and_said_to_be(tiny_model: Path, tmp_path: Path):
    size, settings = 0.02, Train(lr=1e-3, optimizer="adafactor", weight_decay=0.0)
    weight = torch.nn.Parameter(size * torch.randn(256, 256))
    before, weight.grad = weight.detach().clone(), torch.randn(256, 256)
    optimizers.make(settings, [weight], [weight], fused=False).step()
    assert float((weight.detach() - before).pow(2).mean().sqrt()) == pytest.approx(settings.lr * size, rel=0.05)
    note = optimizers.relative_rate(settings, [weight, torch.ones(3)])
    assert note
    assert "0.02 here" in note
    assert "0.001 is about 2e-05 of adamw" in note
    assert optimizers.relative_rate(Train(lr=1e-3), [weight]) is None
    with collected() as said:
        train(job(tiny_model, "full", optimizer="adafactor", steps=1), tmp_path)
    assert sum("relative to the size of a weight" in line for line in said) == 1


def test_adafactor_learns_with_almost_no_state(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model, "full", optimizer="adafactor", lr=0.05, steps=20), tmp_path)
    run.finish()
    losses = [row["loss"] for row in steps(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]
    numbers = sum(t.numel() for s in run.optimizer.state.values() for t in s.values() if torch.is_tensor(t))
    assert numbers < 0.2 * sum(p.numel() for p in run.parameters.live)


def test_betas_and_epsilon_reach_the_optimiser(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model, betas=(0.8, 0.9), epsilon=1e-6), tmp_path)
    assert {(group["betas"], group["eps"]) for group in run.optimizer.param_groups} == {((0.8, 0.9), 1e-6)}


def test_8_bit_adamw_needs_its_package_and_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lowtax\[8bit\]'"):
        optimizers.check(Train(optimizer="adamw_8bit"))
    monkeypatch.setattr(optimizers, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="GPU"):
        optimizers.check(Train(optimizer="adamw_8bit"))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_an_optimiser_s_state_resumes_to_the_bit(tiny_model: Path, tmp_path: Path, optimizer: str):
    this_job = job(tiny_model, "full", optimizer=optimizer, decayed="matrices", steps=20, checkpoint_steps=9)

    def kill(text: str) -> None:
        if "step 10/" in text:
            raise Killed

    train(this_job, tmp_path / "whole")
    with pytest.raises(Killed), progress_to(kill):
        train(this_job, tmp_path / "out")
    train(this_job, tmp_path / "out")
    a, b = weights(tmp_path / "whole", 20), weights(tmp_path / "out", 20)
    assert all(torch.equal(a[name], b[name]) for name in a)


# --- gradients released during backward


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_released_gradients_train_the_same_bits(tiny_model: Path, tmp_path: Path, precision: str, checkpointing: bool):
    how = {"gradient_checkpointing": checkpointing}
    settings = {"max_grad_norm": 0.5, "save_dtype": "float32"}
    for name, released in (("stored", False), ("released", True)):
        execution = how | {"release_gradients": released}
        train(job(tiny_model, "full", precision, execution, **settings), tmp_path / name)
    a, b = weights(tmp_path / "stored"), weights(tmp_path / "released")
    assert all(torch.equal(a[name], b[name]) for name in a)
    norms = [[row["grad_norm"] for row in steps(tmp_path / name)] for name in ("stored", "released")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_released_gradients_never_exist_together(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = TrainingRun(job(tiny_model, "full", "bfloat16", {"release_gradients": True}, steps=2), tmp_path)
    alive = []
    step = torch.optim.AdamW.step

    def counted(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        alive.append(sum(p.grad is not None for p in (*run.parameters.live, *run.parameters.master)))
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    run.finish()
    assert len(alive) >= 2 * len(run.parameters.live)
    assert max(alive) == 1


def test_memory_is_returned_after_each_step_that_releases_gradients(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They come and go in all sizes, and the gaps between them grow: at 1.5B from 15 GB to 23."""
    returned = []
    monkeypatch.setattr(loop, "return_memory", lambda: returned.append(1))
    train(job(tiny_model, "full", execution={"release_gradients": True}, steps=3), tmp_path / "released")
    assert len(returned) == 3
    train(job(tiny_model, "full", steps=3), tmp_path / "stored")
    assert len(returned) == 3


@pytest.mark.parametrize(("mode", "released"), [("full", True), ("full", False), ("lora_mlp_r2", False)])
def test_a_run_that_has_ended_holds_no_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, released: bool
):
    """The next run begins at once: at 1.5B the weights of two are more than 24 GB."""
    held = []

    class Seen(TrainingRun):
        def finish(self, *args: Any) -> None:
            held.extend(weakref.ref(p) for p in (*self.parameters.live, *self.parameters.master))
            super().finish(*args)

    monkeypatch.setattr(loop, "TrainingRun", Seen)
    how = {"release_gradients": released}
    gc.disable()
    try:
        train(job(tiny_model, mode, "bfloat16", how, steps=2, optimizer="adafactor"), tmp_path)
        assert held
        assert not any(ref() is not None for ref in held)
    finally:
        gc.enable()


def test_gradients_of_a_lora_are_not_released(tiny_model: Path, tmp_path: Path):
    """They are small, and backward would run twice for nothing: a study may have arms of both kinds."""
    run = TrainingRun(job(tiny_model, "lora_mlp_r2", execution={"release_gradients": True}, steps=2), tmp_path)
    assert not isinstance(run.parameters, ReleasedParameters)


def test_released_gradients_survive_a_kill(tiny_model: Path, tmp_path: Path):
    this_job = job(tiny_model, "full", execution={"release_gradients": True}, steps=20, checkpoint_steps=9)

    def kill(text: str) -> None:
        if "step 10/" in text:
            raise Killed

    train(this_job, tmp_path / "whole")
    with pytest.raises(Killed), progress_to(kill):
        train(this_job, tmp_path / "out")
    train(this_job, tmp_path / "out")
    a, b = weights(tmp_path / "whole", 20), weights(tmp_path / "out", 20)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_released_gradients_refuse_what_needs_all_of_them(tiny_model: Path, tmp_path: Path):
    several = job(tiny_model, "full", execution={"release_gradients": True, "micro_batch_size": 2})
    with pytest.raises(UserError, match=r"needs each batch in one forward pass.*step 1 has \d+ tokens"):
        train(several, tmp_path)
    methods = [{"name": "ssah", "safety": "builtin:refusals,n=4", "utility": "builtin:chat,n=4"}]
    with_method = replace(job(tiny_model, "full", execution={"release_gradients": True}), methods=methods)
    with pytest.raises(UserError, match="one process and no methods"):
        train(with_method, tmp_path)


# --- evaluation rows and trackers


def test_rows_of_another_file_are_measured_and_not_trained(tiny_model: Path, tmp_path: Path):
    this_job = replace(job(tiny_model, checkpoint_steps=4), validation_rows=OTHERS)
    checkpoints = train(this_job, tmp_path / "out")
    assert all(c.validation for c in checkpoints)
    run = TrainingRun(this_job, tmp_path / "again")
    assert (len(run.examples), len(run.held_out)) == (9, 4)
    plain = train(job(tiny_model, checkpoint_steps=4), tmp_path / "plain")
    assert [c.loss for c in plain] == [c.loss for c in checkpoints]
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["job"]["validation_rows"]["n"] == 4
    with pytest.raises(UserError, match="validation_rows"):
        train(replace(this_job, validation_rows=OTHERS[1:]), tmp_path / "out")


class Recorder:
    """What an accelerator's trackers receive."""

    log_with = ("tensorboard",)

    def __init__(self) -> None:
        self.started: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    def init_trackers(self, project: str, config: dict[str, Any], init_kwargs: dict[str, Any]) -> None:
        self.started.append((project, config, init_kwargs))


def test_a_tracker_gets_name_and_settings():
    acc: Any = Recorder()
    trackers.start(acc, "study/arm/seed-1", {"settings": {"lr": 1e-3, "steps": None, "betas": [0.9, 0.99]}, "seed": 1})
    ((project, config, how),) = acc.started
    assert project == "lowtax"
    assert config == {"settings.lr": 1e-3, "settings.betas": "[0.9, 0.99]", "seed": 1}
    assert how["wandb"]["name"] == how["trackio"]["name"] == "study/arm/seed-1"


def test_a_tracker_that_refuses_is_one_sentence():
    class Refusing(Recorder):
        def init_trackers(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("api_key not configured (no-tty).\ncall wandb.login()\n" * 20)

    acc: Any = Refusing()
    with pytest.raises(UserError, match="does not start: api_key not configured") as caught:
        trackers.start(acc, "x", {})
    assert "\n" not in str(caught.value)


def test_validation_losses_reach_the_trackers(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent: list[tuple[str, int]] = []
    monkeypatch.setattr(trackers, "check", lambda names: None)
    monkeypatch.setattr(trackers, "start", lambda *_: None)
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda log_with, _: list(log_with or []))
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: sent.extend((key, step) for key in values))
    train(job(tiny_model, checkpoint_steps=6, validation=2, execution={"report_to": ["tensorboard"]}), tmp_path)
    assert [step for key, step in sent if key == "validation/loss"] == [6, 12]
    assert [step for key, step in sent if key == "train/loss"] == list(range(1, 13))


def test_tensorboard_receives_a_run(tiny_model: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    assert isinstance(sys.modules["tensorboard"], types.ModuleType)
    train(job(tiny_model, checkpoint_steps=6, validation=2, execution={"report_to": ["tensorboard"]}), tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in tmp_path.rglob("events*") if path.parent.name == "lowtax"}
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("validation/loss")] == [6, 12]


# --- compiled layers


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
@pytest.mark.skipif("LOWTAX_COMPILE" not in os.environ, reason="half a minute of compiling: `make test-compile`")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_train_as_those_that_are_not(tmp_path: Path):
    """Fused operations round otherwise: losses and weights agree to a few units in the last place of float32."""
    base = make_model(tmp_path / "base", layers=1)
    for name in ("eager", "compiled"):
        train(job(base, execution={"compile": name == "compiled"}, steps=4), tmp_path / name)
    one, other = ([step["loss"] for step in steps(tmp_path / name)] for name in ("eager", "compiled"))
    assert one == pytest.approx(other, rel=1e-5)
    a, b = (weights(tmp_path / name, 4) for name in ("eager", "compiled"))
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)
