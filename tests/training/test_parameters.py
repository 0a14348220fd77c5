"""Trained parameters: masters take gradients in float32, and live parameters follow them."""

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lowtax.training.parameters import TrainedParameters


def model(dtype: torch.dtype) -> nn.Module:
    """Return a frozen layer followed by a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).to(dtype)
    layers[0].requires_grad_(False)
    return layers


def backward(layers: nn.Module, seed: int) -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    layers(x.to(next(layers.parameters()).dtype)).square().sum().backward()


def test_only_what_is_trained_is_taken():
    layers = model(torch.float32)
    trained = TrainedParameters.of(layers, own_masters=True)
    assert [id(p) for p in trained.live] == [id(layers[1].weight), id(layers[1].bias)]


@pytest.mark.parametrize(
    ("dtype", "own_masters", "copied"),
    [(torch.float32, True, False), (torch.bfloat16, True, True), (torch.bfloat16, False, False)],
)
def test_16_bit_parameters_get_float32_masters_unless_a_framework_keeps_them(
    dtype: torch.dtype, own_masters: bool, copied: bool
):
    trained = TrainedParameters.of(model(dtype), own_masters)
    for live, master in zip(trained.live, trained.master, strict=True):
        assert (master is not live) == copied
        assert master.requires_grad
        assert master.dtype == (torch.float32 if copied else dtype)
        assert torch.equal(master.detach(), live.detach().to(master.dtype))


def test_gradients_of_several_rows_add_up_in_float32():
    layers = model(torch.bfloat16)
    trained = TrainedParameters.of(layers, own_masters=True)
    rows: list[list[Tensor]] = []
    for seed in range(3):
        backward(layers, seed)
        rows.append([p.grad.float() for p in trained.live])
        trained.collect_gradients()
        assert all(p.grad is None for p in trained.live)
    for i, master in enumerate(trained.master):
        assert master.grad.dtype == torch.float32
        assert torch.equal(master.grad, rows[0][i] + rows[1][i] + rows[2][i])


def test_masters_keep_updates_that_bfloat16_would_lose_and_live_parameters_follow():
    layers = model(torch.bfloat16)
    trained = TrainedParameters.of(layers, own_masters=True)
    start = [master.detach().clone() for master in trained.master]
    optimizer = torch.optim.SGD(trained.master, lr=1e-6)
    for seed in range(3):
        backward(layers, seed)
        trained.collect_gradients()
        trained.step(optimizer)
    assert all(master.grad is None for master in trained.master)
    for live, master, before in zip(trained.live, trained.master, start, strict=True):
        assert not torch.equal(master, before)
        assert torch.equal(live.detach(), master.detach().bfloat16())
        assert torch.equal(live.detach(), before.bfloat16())


def test_clipping_returns_the_norm_before():
    layers = model(torch.float32)
    trained = TrainedParameters.of(layers, own_masters=True)
    backward(layers, 0)
    norm = float(torch.cat([p.grad.flatten() for p in trained.live]).norm())
    assert norm > 1
    assert trained.clip(Accelerator(cpu=True), 1.0) == pytest.approx(norm)
    assert float(torch.cat([p.grad.flatten() for p in trained.live]).norm()) == pytest.approx(1, rel=1e-4)
    trained.clear_gradients()
    assert all(p.grad is None for p in trained.live)


def test_derivatives_leave_the_gradients_of_training_alone():
    layers = model(torch.float32)
    trained = TrainedParameters.of(layers, own_masters=True)
    backward(layers, 0)
    before = [p.grad.clone() for p in trained.live]
    (gradient,) = trained.derivatives(layers(torch.ones(1, 4)).sum(), trained.live[1:])
    assert torch.equal(gradient, torch.ones(3))
    assert all(torch.equal(p.grad, grad) for p, grad in zip(trained.live, before, strict=True))
