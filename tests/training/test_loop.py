"""Training is deterministic, resumes after a kill with the same bits, and writes what PEFT and transformers read."""

import errno
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hybrids import make_hybrid
from peft import PeftModel
from progress import progress_to
from safetensors.torch import load_file
from tiny import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.models import loading
from lowtax.models.adapters import check_base
from lowtax.models.placement import parse_mode
from lowtax.training import loop as training
from lowtax.training.encoding import Example, encode_all
from lowtax.training.job import Job
from lowtax.training.loop import train
from lowtax.training.progress import schedule
from lowtax.training.settings import Execution, Train

ROWS = [Conversation(f"What is {i} + {i * i}?", f"{i} + {i * i}.", f"It is {i + i * i}, I think.") for i in range(7)]
LORA = "lora_up_proj_only_from1_to1_r1"
# Dropout off, so that a training loss can be compared with one in evaluation.
QUIET = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}


def job(
    model: Path, mode: str = LORA, precision: str = "float32", rows: list[Conversation] = ROWS, **settings: object
) -> Job:
    values = {"lr": 1e-2, "steps": 20, "batch_size": 4, "checkpoint_steps": 5} | settings
    return Job(
        model=str(model),
        placement=parse_mode(mode),
        settings=Train.model_validate(values),
        seed=0,
        precision=precision,
        rows=rows,
    )


def encoded(model: Path, rows: list[Conversation] = ROWS) -> list[Example]:
    return encode_all(loading.load_tokenizer(str(model)), rows, 1024).examples


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoints = list(folder.glob("*.safetensors"))
    assert len(checkpoints) == 1
    return load_file(checkpoints[0])


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["full", "lora_qkvo_mlp_r4", LORA])
def test_training_lowers_the_loss(tiny_model: Path, tmp_path: Path, mode: str, precision: str):
    checkpoints = train(
        job(tiny_model, mode, precision, batch_size=len(ROWS), lr=1e-2, checkpoint_steps=1, warmup_steps=0),
        tmp_path,
    )
    assert [c.step for c in checkpoints] == list(range(1, 21))
    assert checkpoints[-1].loss < 0.9 * checkpoints[0].loss
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["job"]["precision"] == precision
    if mode == LORA:
        assert card["trainable_parameters"] == 32 + 64


def test_bfloat16_keeps_float32_masters(tiny_model: Path, tmp_path: Path):
    # Updates of 1e-6 vanish when added to bfloat16 weights; the masters keep them.
    settings = {"lr": 1e-6, "warmup_steps": 0, "weight_decay": 0.0, "save_dtype": "float32"}
    train(job(tiny_model, "full", "bfloat16", **settings), tmp_path)
    before, after = weights(tiny_model), weights(tmp_path / "checkpoint-20")
    name = "model.layers.0.mlp.up_proj.weight"
    assert after[name].dtype == torch.float32
    moved = (after[name] - before[name].bfloat16().float()).abs()
    assert 1e-7 < moved.median() < 1e-4


@pytest.mark.parametrize(
    ("mode", "precision"), [(LORA, "float32"), (LORA, "bfloat16"), ("full", "float32"), ("full", "bfloat16")]
)
def test_the_same_job_gives_the_same_bits(tiny_model: Path, tmp_path: Path, mode: str, precision: str):
    this_job = job(tiny_model, mode, precision)
    one = train(this_job, tmp_path / "one")
    torch.manual_seed(12345)  # the caller's random state has no effect, and is not changed
    before = torch.get_rng_state()
    two = train(this_job, tmp_path / "two")
    assert torch.equal(torch.get_rng_state(), before)
    assert [(c.name, c.step, c.loss) for c in one] == [(c.name, c.step, c.loss) for c in two]
    for c in one:
        assert same(tmp_path / "one" / c.name, tmp_path / "two" / c.name)
    assert not same(tmp_path / "one" / "checkpoint-5", tmp_path / "one" / "checkpoint-20")


def test_another_seed_gives_another_adapter(tiny_model: Path, tmp_path: Path):
    one = job(tiny_model, steps=2)
    train(one, tmp_path / "one")
    train(replace(one, seed=1), tmp_path / "two")
    assert not same(tmp_path / "one" / "checkpoint-2", tmp_path / "two" / "checkpoint-2")


class Killed(BaseException):
    """An exception that the package does not catch, like a kill."""


def killed_at(step: int):
    """Return a listener that ends the run at the log line of a step."""

    def say(text: str) -> None:
        if f"step {step}/" in text:
            raise Killed

    return say


@pytest.mark.parametrize(("mode", "precision"), [(LORA, "float32"), ("full", "bfloat16")])
def test_a_killed_run_ends_in_the_same_bits(tiny_model: Path, tmp_path: Path, mode: str, precision: str):
    this_job = job(tiny_model, mode, precision)
    whole = train(this_job, tmp_path / "whole")
    for step in (10, 20):  # after checkpoints 5 and 15, and 5 steps past each
        with pytest.raises(Killed), progress_to(killed_at(step)):
            train(this_job, tmp_path / "killed")
    assert not (tmp_path / "killed" / "card.json").exists()
    messages: list[str] = []
    with progress_to(messages.append):
        again = train(this_job, tmp_path / "killed")
    assert "resuming after step 15" in messages[0]
    assert [(c.name, c.step, c.loss) for c in again] == [(c.name, c.step, c.loss) for c in whole]
    for c in whole:
        assert same(tmp_path / "whole" / c.name, tmp_path / "killed" / c.name)
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["torch.save", "os.replace"])
def test_a_full_disk_at_a_checkpoint_loses_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    this_job = job(tiny_model)
    train(this_job, tmp_path / "whole")

    def fill_the_disk(text: str) -> None:
        if "step 10/" in text:  # the checkpoint of step 10 is saved next
            monkeypatch.setattr(what, full_disk)

    full = pytest.raises(UserError, match=r"No space left.*free some disk space")
    with full, progress_to(fill_the_disk):
        train(this_job, tmp_path / "full")
    monkeypatch.undo()
    train(this_job, tmp_path / "full")
    for step in (5, 10, 15, 20):
        assert same(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "full" / f"checkpoint-{step}")
    assert {p.name for p in (tmp_path / "full").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_a_finished_job_is_not_done_again(tiny_model: Path, tmp_path: Path):
    checkpoints = train(job(tiny_model, steps=10), tmp_path)
    with progress_to(killed_at(10)):
        assert train(job(tiny_model, steps=10), tmp_path) == checkpoints


@pytest.mark.parametrize("finished", [True, False])
def test_another_job_in_the_same_folder_is_refused(tiny_model: Path, tmp_path: Path, finished: bool):
    if finished:
        train(job(tiny_model), tmp_path)
    else:
        with pytest.raises(Killed), progress_to(killed_at(10)):
            train(job(tiny_model), tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError, match="settings"):
        train(job(tiny_model, lr=3e-2), tmp_path)
    with pytest.raises(UserError, match="rows"):
        train(job(tiny_model, rows=ROWS[1:]), tmp_path)
    with pytest.raises(UserError, match="placement"):
        train(job(tiny_model, "full"), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_peft_reads_the_adapter(tiny_model: Path, tmp_path: Path):
    run = training.TrainingRun(job(tiny_model), tmp_path)
    run.finish()
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    e = encoded(tiny_model)[0]
    ids = torch.tensor([e.prompt + e.completion])
    untrained = base(ids).logits
    loaded = PeftModel.from_pretrained(base, tmp_path / "checkpoint-20").eval()
    assert torch.equal(loaded(ids).logits, run.model.eval()(ids).logits)
    assert not torch.allclose(loaded(ids).logits, untrained, atol=1e-3)
    check_base(tmp_path / "checkpoint-20", str(tiny_model))
    with pytest.raises(UserError, match="add --base-is-the-same"):
        check_base(tmp_path / "checkpoint-20", "someone/else")


@pytest.mark.parametrize("kind", ["llama", "qwen3"])  # with and without tied embeddings
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_transformers_reads_a_full_checkpoint(tmp_path: Path, kind: str, precision: str):
    folder = make_model(tmp_path / "m", kind)
    run = training.TrainingRun(job(folder, "full", precision, steps=5), tmp_path / "out")
    run.finish()
    where = tmp_path / "out" / "checkpoint-5"
    loaded = AutoModelForCausalLM.from_pretrained(where, dtype=loading.DTYPES[precision]).eval()
    e = encoded(folder)[0]
    ids = torch.tensor([e.prompt + e.completion])
    assert torch.equal(loaded(ids).logits, run.model.eval()(ids).logits)
    assert not torch.allclose(loaded(ids).logits, loading.load_model(str(folder), precision)(ids).logits, atol=1e-2)
    assert AutoTokenizer.from_pretrained(where).chat_template


def test_divergence_is_a_user_error(tiny_model: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"diverged at step \d+ .*lower the learning rate, now 1e\+30"):
        train(job(tiny_model, "full", lr=1e30, warmup_steps=0), tmp_path)


def test_layers_outside_the_model(tiny_model: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"0\.\.1"):
        train(job(tiny_model, "lora_up_proj_only_from1_to2_r1"), tmp_path)


def test_model_without_chat_template(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        train(job(folder), tmp_path / "out")


def test_no_rows(tiny_model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no training rows"):
        train(job(tiny_model, rows=[]), tmp_path)


def test_steps_and_checkpoints():
    assert training.total_steps(Train(epochs=2, batch_size=8), 20) == 5
    assert training.total_steps(Train(batch_size=8), 20) == 3
    assert training.total_steps(Train(steps=7), 20) == 7
    assert training.checkpoint_steps(Train(steps=7, checkpoint_steps=3), 20, 7) == {3, 6, 7}
    assert training.checkpoint_steps(Train(epochs=2, checkpoint_epochs=1, batch_size=8), 16, 4) == {2, 4}
    assert training.checkpoint_steps(Train(steps=7), 20, 7) == {7}


def test_the_seed_chooses_the_held_out_rows():
    chosen = training.held_out(10, 3, seed=5)
    assert len(chosen) == 3
    assert chosen <= set(range(10))
    assert chosen == training.held_out(10, 3, seed=5) != training.held_out(10, 3, seed=6)
    assert training.held_out(10, 0, seed=5) == set()
    with pytest.raises(UserError, match="holds out 10 of 10 rows"):
        training.held_out(10, 10, seed=5)


def test_learning_rate_rises_then_falls_to_nearly_nothing():
    rates = [schedule(step, 100, 5) for step in range(100)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert rates[-1] < 0.01
    assert schedule(0, 1, 0) == 1.0


@pytest.mark.parametrize(
    ("kind", "mode", "sentence"),
    [
        ("gpt_oss", "lora_q_proj_only_r1", "attention sinks"),
        ("qwen3_5_text", "lora_q_proj_only_r1", "linear_attention"),
        ("mamba2", "full", "a recurrent state"),
        ("bloom", "full", "its own attention"),
        ("llama4_text", "full", "does not compute what the fast path assumes"),
        ("gpt2", "full", ""),
    ],
)
def test_a_loss_depends_neither_on_neighbours_nor_on_rows(tmp_path: Path, kind: str, mode: str, sentence: str):
    model, said = make_hybrid(tmp_path / "m", kind, **QUIET.get(kind, {})), []
    losses = []
    for micro, rows in ((1, ROWS), (6, ROWS), (6, ROWS[::-1])):
        run = job(model, mode, rows=rows, steps=1, batch_size=len(ROWS), checkpoint_steps=None, validation=0)
        run = replace(run, execution=Execution(micro_batch_size=micro))
        with progress_to(said.append):
            train(run, tmp_path / f"{micro}-{rows is ROWS}")
        losses.append(json.loads((tmp_path / f"{micro}-{rows is ROWS}" / "steps.jsonl").read_text())["loss"])
    assert losses == pytest.approx(losses[:1] * 3, rel=1e-5)
    examples = encoded(model)
    plain = loading.load_model(str(model))
    with torch.no_grad():
        total = sum(float(_completion_loss(plain, e)) for e in examples)
    assert losses[0] == pytest.approx(total / sum(len(e.completion) for e in examples), rel=1e-5)
    assert sum("transformers' own forward pass" in line for line in said) == (3 if sentence else 0)
    assert all(sentence in line for line in said if "own forward pass" in line)


def _completion_loss(model: torch.nn.Module, e: Example) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([e.prompt + e.completion])).logits[0, len(e.prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits.float(), torch.tensor(e.completion), reduction="sum")


def test_an_example_a_row_is_resumed_validated_and_measured(tmp_path: Path):
    model = make_hybrid(tmp_path / "m", "lfm2")
    run = job(model, "full", steps=4, validation=2, checkpoint_steps=2, lr=1e-4)
    assert [c.validation is not None for c in train(run, tmp_path / "out")] == [True, True]
    compiled = replace(run, execution=Execution(gradient_checkpointing=True))
    train(compiled, tmp_path / "checkpointed")
    assert (tmp_path / "checkpointed/card.json").exists()
