"""Losses that compare a model with its frozen base: dense float64 oracles, zero at the start, and runs that resume."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import fake_cards
import pytest
import torch
from progress import collected
from tiny import make_model
from torch import nn

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import parse_mode
from lowtax.training import loop, on_policy
from lowtax.training.companions import with_companions
from lowtax.training.encoding import Example, encode_all
from lowtax.training.frozen_base import frozen_base
from lowtax.training.job import Job
from lowtax.training.objective import choose_objective, unwrap
from lowtax.training.settings import Execution, Rollouts, Train
from lowtax.training.terms import Loss, Terms

STEER = "Refuse the request below, please."
ROWS = [
    *(Conversation(f"Do bad thing {i}.", "No.", f"I can't do {i}." * (i + 1)) for i in range(3)),
    *(Conversation(f"What is {i}?" * (i + 1), "Hm.", f"It is {i}, I think.", ordinary=True) for i in range(3)),
]
PAIRS = [
    Conversation(f"Do {i}.", "No.", f"I can't do {i}.", rejected=("Yes.", f"Sure, {i} and {i}.")) for i in range(5)
]
FORM = (1024, "default", {}, None)


def encoded(folder: Path, rows: list[Conversation]) -> list[Example]:
    tokenizer = loading.load_tokenizer(str(folder))
    return with_companions(tokenizer, rows, encode_all(tokenizer, rows, *FORM), FORM).examples


def trained(folder: Path, moved: bool = True) -> nn.Module:
    """A model with LoRA on all matrices; with `moved` both factors are random."""
    torch.manual_seed(0)
    model = adapt(loading.load_model(str(folder)), parse_mode("lora_qkvo_mlp_r2"), str(folder))
    for name, p in model.named_parameters():
        if "lora_B" in name and moved:
            nn.init.normal_(p, std=0.1)
    return model.eval()


def dense(model: nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The float64 log-probabilities of the completion's positions, by transformers alone."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def oracle_kl(model: nn.Module, e: Example, direction: str) -> torch.Tensor:
    log_q = dense(model, e.prompt, e.completion)
    with torch.no_grad(), model.disable_adapter():
        log_p = dense(model, e.teacher or [], e.completion)
    if direction == "forward":
        return (log_p.exp() * (log_p - log_q)).sum()
    return (log_q.exp() * (log_q - log_p)).sum()


def oracle_ce(model: nn.Module, e: Example) -> torch.Tensor:
    return -dense(model, e.prompt, e.completion).gather(1, torch.tensor(e.completion)[:, None]).sum()


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone().double() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: nn.Module, ours: torch.Tensor, stock: str, expected: list[torch.Tensor]) -> None:
    """Compare value and gradients with a sum of dense losses, which transformers' own attention computes."""
    mine, value = gradients(model, ours), ours.detach().item()
    inner = unwrap(model)
    packed = inner.config._attn_implementation
    layers = [layer for layer in inner.get_decoder().layers if "forward" in layer.__dict__]
    forwards = [layer.__dict__.pop("forward") for layer in layers]
    inner.set_attn_implementation(stock)
    total = torch.stack([part() for part in expected]).sum()
    theirs = gradients(model, total)
    inner.set_attn_implementation(packed)
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward
    assert value == pytest.approx(total.detach().item(), rel=1e-5, abs=1e-6)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert (mine[name] - theirs[name]).abs().max() <= 2e-5 * max(1e-2, float(theirs[name].abs().max())), name


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize(("direction", "beside"), [("forward", False), ("forward", True), ("reverse", False)])
def test_kl_is_the_dense_formula_in_value_and_gradient(tmp_path: Path, kind: str, direction: str, beside: bool):
    folder = make_model(tmp_path / "m", kind)
    model, examples = trained(folder), encoded(folder, ROWS)
    objective, note = choose_objective(model, examples, sharded=False)
    assert objective.direct, note
    model.eval()
    settings = Train(steps=1, penalty="kl", penalty_weight=0.7, penalty_beside=beside, divergence=direction)
    terms = Terms(settings)
    ours = Loss(objective, settings)(terms.pack(examples, range(len(examples))))
    expected = [lambda e=e: oracle_ce(model, e) for e in examples if beside or e.teacher is None]
    expected += [lambda e=e: 0.7 * oracle_kl(model, e, direction) for e in examples if e.teacher]
    assert sum(e.teacher is not None for e in examples) == 3
    assert_same(model, ours, "eager", expected)


def test_kl_without_the_fast_path_and_one_example_at_a_time(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    model, examples = trained(folder), encoded(folder, ROWS)
    settings = Train(steps=1, penalty="kl")
    objective, _ = choose_objective(model, examples, sharded=False)
    model.eval()
    rows = [Terms(settings).pack([e], [i]) for i, e in enumerate(examples)]
    fast = [Loss(objective, settings)(row).detach().item() for row in rows]
    objective.direct = False
    slow = [Loss(objective, settings)(row).detach().item() for row in rows]
    objective.alone = True
    alone = [Loss(objective, settings)(row).detach().item() for row in rows]
    assert slow == pytest.approx(fast, rel=1e-4)
    assert alone == pytest.approx(fast, rel=1e-4)


def test_kl_is_zero_at_the_start_and_on_the_frozen_base(tmp_path: Path):
    folder = make_model(tmp_path / "m", "qwen3")
    model, examples = trained(folder, moved=False), encoded(folder, ROWS[3:])
    objective, _ = choose_objective(model, examples, sharded=False)
    settings = Train(steps=1, penalty="kl")
    loss = Loss(objective, settings)(Terms(settings).pack(examples, range(3)))
    assert abs(loss.detach().item()) < 1e-6
    moved = trained(folder)
    before = {name: p.requires_grad for name, p in moved.named_parameters()}
    ids = torch.tensor([examples[0].prompt])
    plain = loading.load_model(str(folder))(input_ids=ids).logits
    with frozen_base(moved):
        assert torch.equal(moved(input_ids=ids).logits, plain)
    assert not torch.equal(moved(input_ids=ids).logits, plain)
    assert {name: p.requires_grad for name, p in moved.named_parameters()} == before


def test_a_slice_of_logits_exists_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_model(tmp_path / "m")
    model, examples = trained(folder), encoded(folder, ROWS)
    objective, _ = choose_objective(model, examples, sharded=False)
    model.eval()
    settings = Train(steps=1, penalty="kl")
    row = Terms(settings).pack(examples, range(6))
    whole = Loss(objective, settings)(row)
    expected = gradients(model, whole)
    monkeypatch.setattr("lowtax.training.divergence.SLICE_BYTES", {"cpu": 8 * 300 * 7})  # 7 positions
    sliced = Loss(objective, settings)(row)
    assert sliced.detach().item() == pytest.approx(whole.detach().item(), rel=1e-5)
    again = gradients(model, sliced)
    assert all(torch.allclose(again[name], expected[name], atol=1e-6) for name in expected)


def test_dpo_is_the_dense_formula_in_value_and_gradient(tmp_path: Path):
    folder = make_model(tmp_path / "m", "qwen3")
    model, examples = trained(folder), encoded(folder, PAIRS)
    objective, _ = choose_objective(model, examples, sharded=False)
    model.eval()
    settings = Train(steps=1, loss="dpo", dpo_beta=0.3)
    row = Terms(settings).pack(examples, range(5))
    ours = Loss(objective, settings)(row)

    def pair(e: Example) -> torch.Tensor:
        own = [-oracle_ce(model, side) for side in (e, e.rejected)]
        with torch.no_grad(), model.disable_adapter():
            base = [-oracle_ce(model, side) for side in (e, e.rejected)]
        return -nn.functional.logsigmoid(0.3 * ((own[0] - base[0]) - (own[1] - base[1])))

    assert_same(model, ours, "eager", [lambda e=e: pair(e) for e in examples])
    objective.direct = False
    assert Loss(objective, settings)(row).detach().item() == pytest.approx(ours.detach().item(), rel=1e-4)


def job(folder: Path, rows: list[Conversation], **settings: object) -> Job:
    train = Train(**{"steps": 6, "batch_size": 4, "lr": 1e-2, "warmup_steps": 0} | settings)
    return Job(
        model=str(folder),
        placement=parse_mode("lora_up_proj_only_from1_to1_r2"),
        settings=train,
        seed=0,
        precision="float32",
        rows=rows,
        execution=Execution(save_state_minutes=1e-9),
    )


def rollouts() -> list[Conversation]:
    return [
        *(Conversation(f"Do bad thing {i}.", None, "", steer=STEER) for i in range(4)),
        *(Conversation(f"What is {i}?", None, "", ordinary=True) for i in range(4)),
    ]


CASES = {
    "kl": (ROWS, {"penalty": "kl"}),
    "dpo": (PAIRS, {"loss": "dpo"}),
    "on_policy": (rollouts(), {"loss": "on_policy", "rollouts": Rollouts(every=4, max_new_tokens=6)}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    folder = make_model(tmp_path / "m", layers=3)
    rows, settings = CASES[name]
    loop.train(job(folder, rows, **settings), tmp_path / "whole")
    steps = itertools.count()
    one_step = loop.TrainingRun._one_step

    def killed(run: loop.TrainingRun, batch: list[int]) -> dict[str, object]:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return one_step(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingRun, "_one_step", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.train(job(folder, rows, **settings), tmp_path / "cut")
    loop.train(job(folder, rows, **settings), tmp_path / "cut")
    weights = [(tmp_path / run / "checkpoint-6" / "adapter_model.safetensors").read_bytes() for run in ("whole", "cut")]
    assert weights[0] == weights[1]
    figures = [json.loads(line) for line in (tmp_path / "cut" / "steps.jsonl").read_text().splitlines()]
    assert len(figures) == 6
    assert len({row["loss"] for row in figures}) > 3


def test_rollouts_are_the_model_s_and_the_base_alone_reads_the_instruction(tmp_path: Path):
    fake_cards.cards()  # an accelerator of the process that the model is not on is left alone
    folder = make_model(tmp_path / "m")
    rows, settings = CASES["on_policy"]
    tokenizer = loading.load_tokenizer(str(folder))
    run = loop.TrainingRun(job(folder, rows, **settings), tmp_path / "out")
    read = list[tuple[int, bool]]()  # what the output matrix reads: positions, and whether torch folds it
    head = unwrap(run.model).lm_head
    hook = head.register_forward_pre_hook(lambda _, of: read.append((of[0].shape[1], of[0].is_contiguous())))
    run.rollouts.refresh()
    hook.remove()
    assert read
    assert set(read) == {(1, True)}  # others take gigabytes: of the whole prompt, or a copy of the matrix for each row
    for example, row in zip(run.examples, rows, strict=True):
        trained_text = tokenizer.decode(example.prompt + example.completion)
        assert STEER not in trained_text
        assert row.prompt in trained_text
        assert (STEER in tokenizer.decode(example.teacher)) == (row.steer is not None)
        assert 1 <= len(example.completion) <= 6
    stored = json.loads((tmp_path / "out" / "rollouts" / "step-0.json").read_text())
    assert {int(i): ids for i, ids in stored["replies"].items()} == {
        i: e.completion for i, e in enumerate(run.examples)
    }
    path = tmp_path / "out" / "rollouts" / "step-0.json"
    path.write_text(path.read_text().replace('"0": [', '"0": ["x", ', 1))
    with pytest.raises(UserError, match=r"step-0.json is damaged or forged: .*; delete the folder rollouts"):
        loop.TrainingRun(job(folder, rows, **settings), tmp_path / "out").rollouts.refresh()
    run.finish()
    assert sorted(p.name for p in (tmp_path / "out" / "rollouts").iterdir()) == ["step-0.json", "step-4.json"]
    assert on_policy._until([5, 2, 9, 2], [2]) == [5, 2]


@pytest.mark.parametrize(
    ("rows", "settings", "sentence"),
    [
        (ROWS[:3], {"penalty": "kl"}, "marked `ordinary: true`, and no source is"),
        (ROWS, {"loss": "dpo"}, "no row has a rejected answer"),
        (rollouts(), {}, "set train.loss to on_policy"),
        ([*rollouts(), *ROWS[:2]], {"loss": "on_policy"}, "draws the answers itself, and 2 of 10 rows have one"),
    ],
)
def test_rows_that_a_loss_cannot_use_are_refused(tmp_path: Path, rows: list, settings: dict, sentence: str):
    folder = make_model(tmp_path / "m")
    with pytest.raises(UserError, match=sentence):
        loop.train(job(folder, rows, **settings), tmp_path / "out")


def test_cross_entropy_trains_the_preferred_answers_of_pairs_and_says_so(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    with collected() as lines:
        loop.train(job(folder, PAIRS), tmp_path / "pairs")
    assert [line for line in lines if f"of {len(PAIRS)} pairs the preferred answers are trained alone" in line]
    loop.train(job(folder, [replace(row, rejected=None) for row in PAIRS]), tmp_path / "alone")
    one, two = ((tmp_path / name / "steps.jsonl").read_text() for name in ("pairs", "alone"))
    assert [json.loads(line)["loss"] for line in one.splitlines()] == [
        json.loads(line)["loss"] for line in two.splitlines()
    ]


def test_whole_weights_have_no_frozen_base(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    whole = job(folder, ROWS, penalty="kl")
    whole = Job(**{**whole.__dict__, "placement": parse_mode("full")})
    with pytest.raises(UserError, match="this arm trains whole weights: use a LoRA"):
        loop.train(whole, tmp_path / "out")


def test_settings_that_do_not_go_together():
    with pytest.raises(ValueError, match="penalty goes with the loss cross_entropy"):
        Train(steps=1, loss="dpo", penalty="kl")
    assert "penalty" not in Train(steps=1).model_dump()
