"""A run that is killed, stopped or damaged at any moment ends in the bits of an undisturbed one; longer runs resume."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import forks
import pytest
import torch
from progress import collected, progress_to
from safetensors.torch import load_file

from lowtax.common.errors import Stopped, UserError
from lowtax.data.conversations import Conversation
from lowtax.models.placement import parse_mode
from lowtax.training import loop, stopping
from lowtax.training.job import Job
from lowtax.training.loop import train
from lowtax.training.settings import Execution, Train

ROWS = [Conversation(f"What is {i} + {i * i}?", f"{i} + {i * i}.", f"It is {i + i * i}, I think.") for i in range(7)]
OFTEN = 1e-5  # minutes


def job(model: Path, mode: str = "lora_mlp_r2", execution: dict[str, object] | None = None, **settings: object) -> Job:
    values = {"lr": 1e-2, "steps": 12, "batch_size": 4} | settings
    return Job(
        model=str(model),
        placement=parse_mode(mode),
        settings=Train.model_validate(values),
        seed=0,
        precision="float32",
        rows=ROWS,
        execution=Execution.model_validate(execution or {}),
    )


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    (file,) = (out / f"checkpoint-{step}").glob("*.safetensors")
    return load_file(file)


def same(one: Path, two: Path, step: int) -> bool:
    a, b = weights(one, step), weights(two, step)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps(out: Path) -> list[int]:
    lines = (out / "steps.jsonl").read_text().splitlines() if (out / "steps.jsonl").exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Killed(BaseException):
    """An exception that the package does not catch, like a kill."""


def at(text: str, act: Callable[[], None]) -> Callable[[str], None]:
    def listen(line: str) -> None:
        if text in line:
            act()

    return listen


def kill() -> None:
    raise Killed


def _train(this_job: Job, out: Path) -> None:
    try:
        train(this_job, out)
    except Stopped as stopped:
        sys.exit(128 + stopped.number)


def test_a_kill_between_checkpoints_loses_moments(tiny_model: Path, tmp_path: Path):
    """The defaults save no checkpoint before the end; the state is saved by the clock."""
    long = job(tiny_model, "full", {"save_state_minutes": OFTEN}, steps=200, lr=1e-3)
    train(long, tmp_path / "whole")
    out, resumed = tmp_path / "killed", []
    for number in (signal.SIGKILL, signal.SIGTERM):
        child = forks.context().Process(target=_train, args=(long, out))
        begun = max(steps(out), default=0)
        child.start()
        until(lambda begun=begun: (out / ".state").exists() and max(steps(out), default=0) > begun + 20)
        os.kill(child.pid, number)
        child.join()
        assert child.exitcode == (-9 if number == signal.SIGKILL else 143)
        resumed.append(max(steps(out)))
    assert resumed[1] < 200
    with collected() as lines:
        train(long, out)
    assert f"resuming after step {resumed[1]}" in "\n".join(lines)  # SIGTERM lost nothing
    assert same(tmp_path / "whole", out, 200)
    assert steps(out) == list(range(1, 201))
    assert {p.name for p in out.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step(tiny_model: Path, tmp_path: Path, number: signal.Signals):
    train(job(tiny_model, steps=30), tmp_path / "whole")
    before = [signal.getsignal(each) for each in stopping.SIGNALS]
    stop = at("step 10/", lambda: signal.raise_signal(number))
    with pytest.raises(Stopped, match="stopped after step 10, with its state saved") as caught, progress_to(stop):
        train(job(tiny_model, steps=30), tmp_path / "stopped")
    assert caught.value.number == number
    assert [signal.getsignal(each) for each in stopping.SIGNALS] == before
    assert steps(tmp_path / "stopped") == list(range(1, 11))
    train(job(tiny_model, steps=30), tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped", 30)


def test_a_signal_at_the_last_step_finishes_the_run(tiny_model: Path, tmp_path: Path):
    stop = at("step 12/12", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="finished"), progress_to(stop):
        train(job(tiny_model), tmp_path)
    assert (tmp_path / "card.json").exists()
    assert not (tmp_path / ".state").exists()


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "TOGETHER", 0.0)
    with stopping.signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_one_signal_from_terminal_and_launcher_is_one():
    with stopping.signals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.number == signal.SIGINT


def test_the_command_says_that_it_stopped(tiny_model: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": r.prompt, "answer": r.answer}) + "\n" for r in ROWS))
    words = [
        "--model",
        tiny_model,
        "--mode",
        "lora_mlp_r2",
        "--data",
        rows,
        "--steps",
        100_000,
        "--out",
        tmp_path / "o",
    ]
    folder = tmp_path / "o/arms/lora_mlp_r2/seed-0"
    with forks.Command("train", *words) as child:
        until(lambda: child.poll() is not None or max(steps(folder), default=0) > 5)
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 143, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("lowtax: stopped after step ")
    assert last.endswith("repeat the command to resume.")
    assert json.loads((folder / ".state/progress.json").read_text())["step"] == steps(folder)[-1]


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "gone": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def killed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a whole run, and of one killed at step 10; both save checkpoints after every fifth."""
    root = tmp_path_factory.mktemp("killed")
    train(job(tiny_model, steps=20, checkpoint_steps=5), root / "whole")
    with pytest.raises(Killed), progress_to(at("step 10/", kill)):
        train(job(tiny_model, steps=20, checkpoint_steps=5), root / "out")
    return root


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["own.pt", "progress.json"])
def test_a_damaged_state_is_named_and_not_used(tiny_model: Path, killed: Path, tmp_path: Path, damage: str, file: str):
    out = tmp_path / "out"
    shutil.copytree(killed / "out", out)
    shutil.copytree(out / ".state", out / ".state.old")
    DAMAGES[damage](out / ".state" / file)
    with collected() as lines:
        train(job(tiny_model, steps=20, checkpoint_steps=5), out)
    assert any(".state is damaged and not used" in line for line in lines)
    assert any("resuming after step 5" in line for line in lines)
    assert same(killed / "whole", out, 20)


def test_without_a_whole_state_the_run_starts_again(tiny_model: Path, killed: Path, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(killed / "out", out)
    DAMAGES["cut"](out / ".state" / "own.pt")
    with collected() as lines:
        train(job(tiny_model, steps=20, checkpoint_steps=5), out)
    assert not any("resuming" in line for line in lines)
    assert all(same(killed / "whole", out, step) for step in (5, 10, 15, 20))


def test_a_deleted_checkpoint_is_not_listed(tiny_model: Path, tmp_path: Path):
    this_job = job(tiny_model, steps=20, checkpoint_steps=5)
    with pytest.raises(Killed), progress_to(at("step 20/", kill)):
        train(this_job, tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-5")
    with collected() as lines:
        checkpoints = train(this_job, tmp_path)
    assert any("checkpoint-5 is no longer in" in line for line in lines)
    assert [c.name for c in checkpoints] == ["checkpoint-10", "checkpoint-15", "checkpoint-20"]


def test_other_settings_are_noticed_without_job_json(tiny_model: Path, tmp_path: Path):
    with pytest.raises(Killed), progress_to(at("step 10/", kill)):
        train(job(tiny_model, steps=20, checkpoint_steps=5), tmp_path)
    (tmp_path / "job.json").unlink()
    for state, moved in ((".state", ".state"), (".state", ".state.old"), (".state.old", ".stable")):
        (tmp_path / state).rename(tmp_path / moved)
        with pytest.raises(UserError, match=r"an unfinished run with other settings \(settings.lr was 0.01, now 0.5"):
            train(job(tiny_model, steps=20, checkpoint_steps=5, lr=0.5), tmp_path)
    shutil.rmtree(tmp_path / ".stable")
    for settings in ({"lr": 0.5}, {}):
        with pytest.raises(UserError, match="settings are lost"):
            train(job(tiny_model, steps=20, checkpoint_steps=5, **settings), tmp_path)
    assert (tmp_path / "checkpoint-5" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"validation": 7}, "leaves none to train on"),
        ({"max_length": 5}, "longer than train.max_length"),
        ({"execution": {"report_to": ["wandb"]}}, "wandb"),
        ({"mode": "lora_up_proj_only_from1_to7_r1"}, "7"),
        ({"optimizer": "adamw_8bit"}, "adamw_8bit"),
    ],
)
def test_a_refused_first_try_leaves_the_folder_usable(
    tiny_model: Path, tmp_path: Path, wrong: dict[str, object], sentence: str
):
    with pytest.raises(UserError, match=sentence):
        train(job(tiny_model, **wrong), tmp_path)  # type: ignore[arg-type]
    train(job(tiny_model), tmp_path)


def test_a_model_that_cannot_be_loaded_leaves_the_folder_usable(tiny_model: Path, tmp_path: Path):
    with pytest.raises(UserError):
        train(replace(job(tiny_model), model=str(tmp_path / "nowhere")), tmp_path / "out")
    train(job(tiny_model), tmp_path / "out")


def test_a_run_that_left_nothing_behind_blocks_nothing(tiny_model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="diverged"):
        train(job(tiny_model, "full", lr=1e30, warmup_steps=0), tmp_path)
    train(job(tiny_model, "full", lr=1e-3), tmp_path)


def test_a_full_disk_between_checkpoints_does_not_end_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with collected() as lines:
        train(job(tiny_model, execution={"save_state_minutes": OFTEN}), tmp_path)
    assert sum("the training state could not be saved" in line for line in lines) == 1


# --- longer than planned


@pytest.mark.parametrize("scheduler", ["constant", "step", "wsd"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_longer_run_has_the_bits_of_one_that_was_planned(
    tiny_model: Path, tmp_path: Path, scheduler: str, finished: bool
):
    settings = {"scheduler": scheduler, "checkpoint_steps": 4, "decay_ratio": 0.5}
    train(job(tiny_model, steps=20, **settings), tmp_path / "whole")
    first, out = job(tiny_model, steps=10, **settings), tmp_path / "out"
    if finished:
        train(first, out)
    else:
        with pytest.raises(Killed), progress_to(at("step 10/", kill)):
            train(first, out)
    with collected() as lines:
        checkpoints = train(job(tiny_model, steps=20, **settings), out)
    assert any("resuming after step" in line for line in lines)
    assert checkpoints[-1].step == 20
    for step in (4, 12, 16, 20):
        assert same(tmp_path / "whole", out, step)
    assert steps(out) == list(range(1, 21))
    card = json.loads((out / "card.json").read_text())
    assert card["job"]["settings"]["steps"] == 20
    assert card["jobs"]["checkpoint-4"]["settings"]["steps"] == 10
    assert train(job(tiny_model, steps=20, **settings), out) == checkpoints


def test_epochs_can_be_raised(tiny_model: Path, tmp_path: Path):
    settings = {"scheduler": "constant", "steps": None}
    train(job(tiny_model, epochs=2, **settings), tmp_path / "out")
    train(job(tiny_model, epochs=4, **settings), tmp_path / "out")
    train(job(tiny_model, epochs=4, **settings), tmp_path / "whole")
    assert same(tmp_path / "whole", tmp_path / "out", 7)


@pytest.mark.parametrize("scheduler", ["cosine", "linear"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_schedule_that_depends_on_the_length_is_not_made_longer(
    tiny_model: Path, tmp_path: Path, scheduler: str, finished: bool
):
    settings = {"scheduler": scheduler, "checkpoint_steps": 5}
    if finished:
        train(job(tiny_model, steps=10, **settings), tmp_path)
    else:
        with pytest.raises(Killed), progress_to(at("step 10/", kill)):
            train(job(tiny_model, steps=10, **settings), tmp_path)
    with pytest.raises(UserError, match=f"settings.steps was 10, now 12.*{scheduler}.*only constant, step and wsd"):
        train(job(tiny_model, steps=12, **settings), tmp_path)
    with pytest.raises(UserError, match=r"settings.steps was 10, now 8\); choose another"):
        train(job(tiny_model, steps=8, **settings), tmp_path)


def test_only_the_length_may_differ(tiny_model: Path, tmp_path: Path):
    train(job(tiny_model, steps=6, scheduler="constant"), tmp_path)
    with pytest.raises(UserError, match=r"settings\.lr was 0\.01, now 0\.1"):
        train(job(tiny_model, steps=8, scheduler="constant", lr=0.1), tmp_path)
    shutil.rmtree(tmp_path / ".stable")
    with pytest.raises(UserError, match=r"settings\.steps was 6, now 8"):
        train(job(tiny_model, steps=8, scheduler="constant"), tmp_path)


def test_the_prefix_of_a_resumed_run_is_that_of_an_undisturbed_one(tiny_model: Path, tmp_path: Path):
    this_job = job(tiny_model, "lora_up_proj_only_from1_to1_r1", steps=20, checkpoint_steps=19)
    with pytest.raises(Killed), progress_to(at("step 20/", kill)):
        train(this_job, tmp_path)
    assert loop.TrainingRun(this_job, tmp_path).prefix is not None
