"""SaLoRA starts at the base model, keeps the outputs along safety features, and saves an ordinary adapter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from progress import progress_to
from tiny import ARCHITECTURES, make_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from lowtax.common.errors import UserError
from lowtax.common.linalg import top_singular
from lowtax.data.conversations import Conversation
from lowtax.methods.editing import OfflineProbe
from lowtax.methods.salora import SaLoRA
from lowtax.methods.sites import Site, Sites, sites_of
from lowtax.models.placement import Placement
from lowtax.training.job import Job
from lowtax.training.loop import TrainingRun, train
from lowtax.training.settings import Train

ROWS = [Conversation(f"What is {i}?", f"{i}.", f"It is {i}, I think.") for i in range(6)]
SPEC = {
    "name": "salora",
    "safety": "builtin:refusals,n=4",
    "task": "builtin:chat,n=4",
    "rank_safety": 3,
    "rank_task": 8,
}
IDS = torch.arange(40, 70)[None]


def job(model: Path, spec: dict[str, Any] = SPEC, precision: str = "float32", **settings: Any) -> Job:
    values = {"lr": 1e-2, "steps": 6, "batch_size": 3, "checkpoint_steps": 3, "weight_decay": 0.5, "warmup_steps": 0}
    return Job(
        model=str(model),
        placement=Placement(modules=("q_proj", "v_proj", "up_proj", "down_proj"), rank=6, alpha=12, dropout=0.1),
        settings=Train.model_validate(values | settings),
        seed=0,
        precision=precision,
        rows=ROWS,
        methods=[spec],
    )


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS).logits.float()


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_at_the_start_the_model_is_the_base(tmp_path: Path, kind: str):
    folder = make_model(tmp_path / "m", kind)
    run = TrainingRun(job(folder), tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(run.model), logits(base), rtol=0, atol=1e-5)
    for site in sites_of(run.model).values():
        half = site.scale * site.b[:, : site.rank // 2] @ site.a[: site.rank // 2]
        assert half.norm() > 0.01 * site.weight.norm()  # not the zero of plain LoRA: two halves cancel
        assert site.delta().norm() < 1e-6 * half.norm()


def test_bfloat16_weights_are_left_as_they_are(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model, precision="bfloat16"), tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    for name, site in sites_of(run.model).items():
        assert torch.equal(site.weight, base.get_submodule(name).weight)
    torch.testing.assert_close(logits(run.model), logits(base), rtol=0, atol=0.05)


def test_the_start_is_the_paper_s(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model), tmp_path)
    sites = sites_of(run.model)
    task = run.probe.directions(SPEC["task"], sites, SPEC["rank_task"])
    for name, site in sites.items():
        safe, half = run.states[0][name]["span"], site.rank // 2
        U, S, V = top_singular(site.weight, half)
        C = torch.eye(len(safe)) - safe @ safe.T
        B, A = C @ task[name] @ task[name].T @ U @ torch.diag(S.sqrt()), torch.diag(S.sqrt()) @ V.T
        update = site.scale * site.b[:, :half] @ site.a[:half]  # whatever alpha is
        torch.testing.assert_close(update, B @ A, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(safe.T @ safe, torch.eye(3), rtol=0, atol=1e-5)


def test_safety_features_stay_and_the_constant_half_keeps_its_bits(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model), tmp_path)
    sites = sites_of(run.model)
    before = {name: (site.a.detach().clone(), site.b.detach().clone()) for name, site in sites.items()}
    run.finish()  # with a weight decay of 0.5
    for name, site in sites.items():
        half, (a, b), span = site.rank // 2, before[name], run.states[0][name]["span"]
        assert torch.equal(site.a[half:], a[half:])
        assert torch.equal(site.b[:, half:], b[:, half:])
        assert not torch.allclose(site.a[:half], a[:half], atol=1e-3)
        assert site.delta().norm() > 1e-2
        assert (span.T @ site.delta()).norm() < 1e-5 * site.delta().norm()


def test_trains_what_the_paper_s_parametrisation_trains():
    """Training B through C on W' = W - s C B0 A0, with AdamW, decay and clipping, equals our projections."""
    g = torch.Generator().manual_seed(0)
    W, X, Y = (torch.randn(shape, generator=g) for shape in ((8, 5), (20, 5), (20, 8)))
    span = torch.linalg.qr(torch.randn(8, 3, generator=g)).Q
    C, scale, half = torch.eye(8) - span @ span.T, 2.0, 2
    a0, b0 = torch.randn(half, 5, generator=g), C @ torch.randn(8, half, generator=g)
    A, B = a0.clone().requires_grad_(), b0.clone().requires_grad_()
    a, b = torch.cat([a0, a0]).requires_grad_(), torch.cat([b0, -b0], 1).requires_grad_()
    sites: Sites = {"x": Site("x", W, a, b, scale)}
    state = {"x": {"span": span, "a": a0, "b": -b0}}
    ours, theirs = (torch.optim.AdamW(ps, lr=0.05, weight_decay=0.3) for ps in ([a, b], [A, B]))
    method = SaLoRA()
    for step in range(1, 9):
        for optimizer, dW in ((ours, scale * b @ a), (theirs, scale * (C @ B @ A - b0 @ a0))):
            optimizer.zero_grad()
            (X @ (W + dW).T - Y).square().mean().backward()
        method.after_backward(sites, state)
        norms = [torch.nn.utils.clip_grad_norm_(ps, 0.5) for ps in ([a, b], [A, B])]
        torch.testing.assert_close(*norms, rtol=1e-4, atol=0)
        ours.step()
        theirs.step()
        method.after_step(sites, state, OfflineProbe(), step)
        torch.testing.assert_close(sites["x"].delta(), scale * (C @ B @ A - b0 @ a0), rtol=1e-3, atol=1e-4)
    assert sites["x"].delta().norm() > 0.5


def test_plain_peft_reads_the_adapter(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model), tmp_path)
    run.finish()
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    untrained = logits(base)
    loaded = PeftModel.from_pretrained(base, tmp_path / "checkpoint-6")
    assert torch.equal(logits(loaded), logits(run.model))
    assert not torch.allclose(logits(loaded), untrained, atol=1e-2)


class Killed(BaseException):
    pass


def test_a_killed_run_ends_in_the_same_bits(tiny_model: Path, tmp_path: Path):
    def kill(text: str) -> None:
        if "step 6: validation" in text:
            raise Killed

    this_job = job(tiny_model, validation=1)
    train(this_job, tmp_path / "whole")
    with pytest.raises(Killed), progress_to(kill):
        train(this_job, tmp_path / "killed")
    train(this_job, tmp_path / "killed")
    one, two = ((tmp_path / k / "checkpoint-6" / "adapter_model.safetensors").read_bytes() for k in ("whole", "killed"))
    assert one == two


def test_only_the_trained_half_counts(tiny_model: Path, tmp_path: Path):
    with_salora = TrainingRun(job(tiny_model), tmp_path / "1").trainable
    plain_lora = TrainingRun(replace(job(tiny_model), methods=[]), tmp_path / "2").trainable
    assert 2 * with_salora == plain_lora


@pytest.mark.parametrize(
    ("rank", "spec", "message"),
    [
        (3, SPEC, "rank 3 of model.layers.0.mlp.gate_proj is odd; set twice the rank you want"),
        (2, SPEC | {"rank_safety": 64}, "has 64 outputs .* too little for rank_safety 64"),
        (66, SPEC, "a rank of at most 32, too little for .* a trained rank of 33"),
    ],
)
def test_what_cannot_be_is_refused(tiny_model: Path, tmp_path: Path, rank: int, spec: dict[str, Any], message: str):
    bad = replace(job(tiny_model, spec), placement=Placement(rank=rank), settings=Train(steps=1))
    with pytest.raises(UserError, match=message):
        train(bad, tmp_path)
