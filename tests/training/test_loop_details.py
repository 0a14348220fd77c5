"""Parts of the loop: validation, early stopping, logs, methods, the frozen prefix, and failures."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from progress import progress_to
from safetensors.torch import load_file, save_file
from tiny import make_model

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.models import loading
from lowtax.models.placement import parse_mode
from lowtax.training import free_memory
from lowtax.training import loop as training
from lowtax.training.job import Job
from lowtax.training.loop import train
from lowtax.training.objective import unwrap
from lowtax.training.packing import Row
from lowtax.training.settings import Execution, Train

ROWS = [Conversation(f"What is {i} + {i * i}?", f"{i} + {i * i}.", f"It is {i + i * i}, I think.") for i in range(9)]
LORA = "lora_up_proj_only_from1_to1_r1"


def job(model: Path, mode: str = LORA, execution: dict[str, object] | None = None, **settings: object) -> Job:
    values = {"lr": 1e-2, "steps": 12, "batch_size": 4, "checkpoint_steps": 4} | settings
    return Job(
        model=str(model),
        placement=parse_mode(mode),
        settings=Train.model_validate(values),
        seed=0,
        precision="float32",
        rows=ROWS,
        execution=Execution.model_validate(execution or {}),
    )


def without_dropout(this_job: Job) -> Job:
    """Return the job without dropout, so that the layout of rows changes rounding only."""
    return replace(this_job, placement=this_job.placement.model_copy(update={"dropout": 0.0}))


def adapter(out: Path, step: int = 12) -> dict[str, torch.Tensor]:
    return load_file(out / f"checkpoint-{step}" / "adapter_model.safetensors")


def largest_difference(one: Path, two: Path) -> float:
    """Return the largest difference of two adapters, relative to the largest weight."""
    a, b = adapter(one), adapter(two)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / b[name].abs().max()) for name in a)


def steps(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "execution",
    [
        {"prefix": "off"},
        {"prefix": "disk"},
        {"micro_batch_size": 1},
        {"row_tokens": 130},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "prefix": "off", "micro_batch_size": 2},
    ],
    ids=str,
)
def test_how_it_runs_changes_no_more_than_rounding(tmp_path: Path, kind: str, execution: dict[str, object]):
    folder = make_model(tmp_path / "m", kind)
    train(without_dropout(job(folder)), tmp_path / "one")
    train(without_dropout(job(folder, execution=execution)), tmp_path / "two")
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-4
    assert largest_difference(tmp_path / "one", tmp_path / "one") == 0
    losses = [[row["loss"] for row in steps(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_full_training_adds_up_rows_in_float32(tiny_model: Path, tmp_path: Path):
    for name, execution in (("one", {}), ("many", {"micro_batch_size": 1})):
        train(replace(job(tiny_model, "full", execution, lr=1e-3), precision="bfloat16"), tmp_path / name)
    one, many = (load_file(tmp_path / name / "checkpoint-12" / "model.safetensors") for name in ("one", "many"))
    base = load_file(tiny_model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    moved = torch.stack([one[name] - base[name], many[name] - base[name]]).flatten(1)
    assert torch.nn.functional.cosine_similarity(moved[0], moved[1], dim=0) > 0.98


def test_the_log_has_a_line_a_step(tiny_model: Path, tmp_path: Path):
    checkpoints = train(job(tiny_model), tmp_path)
    rows = steps(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] == pytest.approx(checkpoints[-1].loss, abs=1e-4)
    assert all(row["grad_norm"] > 0 and row["tokens"] > 100 and row["penalty"] == 0 for row in rows)
    assert [row["lr"] for row in rows[:5]] == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3, 1e-2])
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(rows))


class Killed(BaseException):
    pass


def test_a_resumed_log_repeats_no_step(tiny_model: Path, tmp_path: Path):
    def kill(text: str) -> None:
        if "step 10/" in text:
            raise Killed

    with pytest.raises(Killed), progress_to(kill):
        train(job(tiny_model), tmp_path)
    assert len(steps(tmp_path)) == 10
    with (tmp_path / "steps.jsonl").open("a") as handle:
        handle.write('{"step": 11, "lo')  # cut short by the kill
    train(job(tiny_model), tmp_path)
    assert [row["step"] for row in steps(tmp_path)] == list(range(1, 13))


def test_validation_rows_are_held_out_and_measured(tiny_model: Path, tmp_path: Path):
    messages: list[str] = []
    with progress_to(messages.append):
        checkpoints = train(job(tiny_model, validation=3), tmp_path)
    values = [c.validation for c in checkpoints]
    assert all(v is not None and v > 0 for v in values)
    assert values[-1] < values[0]
    assert sum("validation loss" in text for text in messages) == 3
    run = training.TrainingRun(job(tiny_model, validation=3), tmp_path / "again")
    assert len(run.examples) == 6
    assert len(run.held_out) == 3
    assert not {tuple(e.prompt) for e in run.examples} & {tuple(e.prompt) for e in run.held_out}
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["checkpoints"][-1]["validation"] == values[-1]
    assert f"{values[-1]:.4f}"[:5] in (tmp_path / "checkpoint-12" / "README.md").read_text()


def test_patience_stops_a_run_that_gets_no_better(tiny_model: Path, tmp_path: Path):
    this_job = job(tiny_model, lr=1e-12, steps=40, checkpoint_steps=2, validation=3, patience=2)
    messages: list[str] = []
    with progress_to(messages.append):
        checkpoints = train(this_job, tmp_path)
    assert checkpoints[-1].step < 40
    assert any("no better validation loss in 2 checkpoints" in text for text in messages)
    assert train(this_job, tmp_path) == checkpoints  # finished, so not started again


def test_all_rows_held_out(tiny_model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="holds out 9 of 9 rows"):
        train(job(tiny_model, validation=9), tmp_path)


def test_a_method_acts_on_the_run_and_survives_a_kill(tiny_model: Path, tmp_path: Path):
    method = [{"name": "orthogonal", "beta": 3.0, "k": 4, "only": ["up_proj"]}]
    this_job = replace(job(tiny_model), methods=method)
    train(job(tiny_model), tmp_path / "without")
    train(this_job, tmp_path / "with")
    assert largest_difference(tmp_path / "with", tmp_path / "without") > 1e-3
    penalties = [row["penalty"] for row in steps(tmp_path / "with")]
    assert penalties[0] == 0  # B begins at zero
    assert max(penalties) > 0

    def kill(text: str) -> None:
        if "step 10/" in text:
            raise Killed

    with pytest.raises(Killed), progress_to(kill):
        train(this_job, tmp_path / "killed")
    train(this_job, tmp_path / "killed")
    one, two = adapter(tmp_path / "with"), adapter(tmp_path / "killed")
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UserError, match="methods was"):
        train(job(tiny_model), tmp_path / "with")


@pytest.fixture
def small_memory() -> Iterator[list[int]]:
    """Simulate a device on which rows of more than 150 tokens do not fit; yields the sizes of the rows tried."""
    tried: list[int] = []
    forward = Row.to

    def to(row: Row, device: torch.device) -> Row:
        tried.extend([len(row.ids)] if row.members else [])  # rows of the check before training have no members
        if row.members and len(row.ids) > 150:
            raise torch.OutOfMemoryError("no more than 150 tokens")
        return forward(row, device)

    Row.to = to  # type: ignore[method-assign]
    yield tried
    Row.to = forward  # type: ignore[method-assign]


def test_out_of_memory_halves_the_rows_and_keeps_the_batch(tmp_path: Path, small_memory: list[int]):
    folder = make_model(tmp_path / "m")
    messages: list[str] = []
    with progress_to(messages.append):
        train(without_dropout(job(folder, execution={"prefix": "off"})), tmp_path / "one")
    warnings = [text for text in messages if "out of memory" in text]
    assert warnings
    assert all("still 4 examples per step" in text for text in warnings)
    assert len(warnings) < 4
    small_memory.clear()
    again = without_dropout(job(folder, execution={"prefix": "off", "row_tokens": 140}))
    train(again, tmp_path / "two")
    assert all(n <= 150 for n in small_memory)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-3


def test_rows_on_a_cpu_are_as_long_as_the_free_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without an error to catch: Linux ends a process that uses more than there is."""
    folder = make_model(tmp_path / "m")
    this_job = without_dropout(job(folder, batch_size=8, execution={"prefix": "off"}))
    sizes, forward, messages = list[int](), Row.to, list[str]()

    def to(row: Row, device: torch.device) -> Row:
        sizes.extend([len(row.ids)] if row.members else [])
        return forward(row, device)

    monkeypatch.setattr(Row, "to", to)
    train(this_job, tmp_path / "one")
    monkeypatch.setattr(free_memory, "FEWEST", 16)
    model = training.TrainingRun(this_job, tmp_path / "two").model
    shape = free_memory.shape_of(model.base_model.model.config, sum(p.numel() for p in model.parameters()))
    half = free_memory._bytes(this_job, model, shape, max(sizes) // 2)
    monkeypatch.setattr(free_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=half))
    before, _ = max(sizes), sizes.clear()
    with progress_to(messages.append):
        train(this_job, tmp_path / "two")
    assert 0 < max(sizes) <= before // 2
    assert sum("GB are free, and a whole batch" in text for text in messages) == 1
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-3


def test_out_of_memory_for_one_example_is_a_user_error(tmp_path: Path, small_memory: list[int]):
    folder = make_model(tmp_path / "m")
    long = replace(job(folder, execution={"prefix": "off"}), rows=[Conversation("x" * 150, None, "y" * 50)])
    with pytest.raises(UserError, match=r"Out of memory at step 1 .*single example of \d+ tokens.*gradient_checkpoint"):
        train(long, tmp_path / "out")


def test_a_loss_that_is_no_number_names_the_example_and_what_is_kept(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    token = loading.load_tokenizer(str(folder))("~")["input_ids"][0]
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    rows = [*ROWS[:8], Conversation("Is ~ odd?", "It is.", "Yes.")]
    this_job = replace(job(folder, batch_size=1, checkpoint_steps=1, steps=9), rows=rows)
    bad = next(step for step in range(9) if training.Batches(9, 1, 0)[step] == [8])
    with pytest.raises(UserError, match=rf"step {bad + 1} \(loss nan, first on the example .*Is ~ odd") as caught:
        train(this_job, tmp_path / "out")
    assert (f"checkpoint-{bad} is kept" if bad else "no checkpoint") in str(caught.value)
    saved = [p.name for p in (tmp_path / "out").glob("checkpoint-*")]
    assert len(saved) == bad
    assert all(torch.isfinite(t).all() for name in saved for t in adapter(tmp_path / "out", int(name[11:])).values())


def test_a_rising_loss_stops_the_run(tiny_model: Path, tmp_path: Path):
    this_job = job(tiny_model, "full", lr=3.0, steps=200, warmup_steps=12, max_grad_norm=1e9, checkpoint_steps=10)
    with pytest.raises(UserError, match=r"diverged at step \d+ \(the loss rose to .*lower the learning rate"):
        train(this_job, tmp_path)
    assert (tmp_path / "checkpoint-10").exists()


def test_a_tracker_that_is_not_installed(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lowtax.training.distributed.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        train(job(tiny_model, execution={"report_to": ["tensorboard"]}), tmp_path)


def test_attention_dropout_turns_the_prefix_off(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    assert training.TrainingRun(job(folder), tmp_path / "out").prefix is None
    (folder / "config.json").write_text(json.dumps(config))
    assert training.TrainingRun(job(folder), tmp_path / "out").prefix is not None
    assert training.TrainingRun(job(folder, steps=2), tmp_path / "out").prefix is None  # less than two epochs
    assert training.TrainingRun(job(folder, "full"), tmp_path / "out").prefix is None


def test_the_attention_of_a_saved_model_is_its_own(tiny_model: Path, tmp_path: Path):
    train(job(tiny_model, "full"), tmp_path)
    config = json.loads((tmp_path / "checkpoint-12" / "config.json").read_text())
    assert "lowtax" not in json.dumps(config)
    assert unwrap(loading.load_model(str(tmp_path / "checkpoint-12"))).config._attn_implementation == "sdpa"


def test_order_and_factors_have_seeds_of_their_own(tmp_path: Path, tiny_model: Path):
    """The tokens of the steps show the order of rows, and the gradient of the first step the factors."""

    def run(name: str, seed: int, **settings: int) -> list[dict[str, float]]:
        own = replace(job(tiny_model, steps=6, batch_size=2, **settings), seed=seed)
        train(own, tmp_path / name)
        return [json.loads(line) for line in (tmp_path / name / "steps.jsonl").read_text().splitlines()]

    plain, same = run("plain", 0), run("same", 0, order_seed=0)
    assert [row["loss"] for row in plain] == [row["loss"] for row in same]
    other_order, other_factors = run("order", 0, order_seed=5), run("factors", 5, order_seed=0, data_seed=0)
    tokens = [[row["tokens"] for row in rows] for rows in (plain, other_order, other_factors)]
    assert tokens[0] == tokens[2] != tokens[1]
    assert other_factors[0]["loss"] == plain[0]["loss"]  # an adapter that has not moved yet changes nothing
    assert other_factors[0]["grad_norm"] != plain[0]["grad_norm"]
    assert tokens[1] == [row["tokens"] for row in run("both", 5)]
