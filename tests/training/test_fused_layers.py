"""Fused layers compute the loss and gradients of the layers they replace; layers that do not fit are left alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cards import cards, without_values
from peft import LoraConfig, get_peft_model
from tiny import make_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import Placement
from lowtax.training import fused_layers
from lowtax.training.encoding import Example
from lowtax.training.objective import SLICE_BYTES, Objective, choose_objective, unwrap
from lowtax.training.packing import Row, pack, use_packed_attention

EXAMPLES = [Example([1, 2, 3], [4, 5]), Example([7, 8, 9, 10, 11] * 3, [4, 5, 6, 9]), Example([3], [4])]
PLACES = [
    ("up_proj",),
    ("k_proj", "o_proj"),
    ("down_proj", "gate_proj"),
    (*fused_layers.ATTENTION, *fused_layers.NETWORK),
]


def adapted_model(
    folder: Path, modules: tuple[str, ...], dtype: str = "float32", layers: tuple[int, int] = (0, 2), **more: Any
):
    """Return a model with random norms, biases and adapters, so that no factor is one or zero."""
    torch.manual_seed(0)
    model = adapt(
        loading.load_model(str(folder), dtype), Placement(modules=modules, layers=layers, rank=2, **more), str(folder)
    )
    for name, p in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(p, 0.5, 1.5)
        elif "bias" in name or "lora_" in name:
            nn.init.normal_(p, std=0.2)
    use_packed_attention(unwrap(model))
    return model.train()


def layers_of(model: nn.Module) -> nn.ModuleList:
    return unwrap(model).get_decoder().layers


def loss_and_gradients(model: Any, row: Row, seed: int = 0) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(seed)
    model.zero_grad()
    loss = Objective(model)(row)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest relative difference of any gradient."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the relative difference of all gradients as one vector."""
    assert ours.keys() == theirs.keys()
    norms = [[(ours[name] - theirs[name]).norm().double(), theirs[name].norm().double()] for name in theirs]
    apart, size = torch.tensor(norms).norm(dim=0).tolist()
    return apart / size


@pytest.mark.parametrize("modules", PLACES, ids="-".join)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_loss_and_gradients_are_those_of_the_layer(tmp_path: Path, kind: str, modules: tuple[str, ...]):
    folder = make_model(tmp_path / "m", kind, layers=3)
    for layers in ((0, 2), (1, 2)):  # with a trained layer at the bottom, and with a frozen one below
        model, row = adapted_model(folder, modules, layers=layers), pack(EXAMPLES)
        _, exact = loss_and_gradients(adapted_model(folder, modules, layers=layers).double(), row)
        expected, gradients = loss_and_gradients(model, row)
        assert fused_layers.fuse(layers_of(model)) == 3
        loss, ours = loss_and_gradients(model, row)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert difference(ours, exact) < 8 * difference(gradients, exact) + 1e-7  # 3.7 was seen with AVX2
        assert largest_difference(ours, exact) < 1e-3  # those of keys nearly cancel, and rounding is most of them


def test_in_bfloat16_it_is_as_near_to_float32_as_the_layer_is(tmp_path: Path):
    folder, row = make_model(tmp_path / "m", layers=3), pack(EXAMPLES)
    modules = (*fused_layers.ATTENTION, *fused_layers.NETWORK)
    _, exact = loss_and_gradients(adapted_model(folder, modules), row)
    model = adapted_model(folder, modules, "bfloat16")
    _, stock = loss_and_gradients(model, row)
    fused_layers.fuse(layers_of(model))
    _, ours = loss_and_gradients(model, row)

    def error(loss: dict[str, Tensor]) -> float:
        pairs = [(loss[name], expected) for name, expected in exact.items()]
        return float(torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).median())

    assert error(ours) < 1.3 * error(stock)


def test_dropout_is_drawn_as_peft_draws_it_and_off_in_evaluation(tmp_path: Path):
    folder, row = make_model(tmp_path / "m", layers=3), pack(EXAMPLES)
    model = adapted_model(folder, ("up_proj",), dropout=0.4)
    expected, gradients = loss_and_gradients(model, row, seed=3)
    other, _ = loss_and_gradients(model, row, seed=4)
    with torch.no_grad():
        still = float(Objective(model.eval())(row))
    assert fused_layers.fuse(layers_of(model)) == 3
    loss, ours = loss_and_gradients(model.train(), row, seed=3)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert largest_difference(ours, gradients) < 1e-5
    assert abs(other - expected) > 1e-4
    with torch.no_grad():
        assert float(Objective(model.eval())(row)) == pytest.approx(still, rel=1e-6)


def test_gradient_checkpointing_goes_with_it(tmp_path: Path):
    folder, row = make_model(tmp_path / "m", layers=3), pack(EXAMPLES)
    model = adapted_model(folder, ("up_proj", "q_proj"), dropout=0.4)
    assert fused_layers.fuse(layers_of(model)) == 3
    expected, gradients = loss_and_gradients(model, row)
    unwrap(model).gradient_checkpointing_enable({"use_reentrant": False})
    loss, ours = loss_and_gradients(model, row)
    assert loss == expected
    assert largest_difference(ours, gradients) == 0


def test_weights_keep_their_values_and_undo_gives_the_layer_back(tmp_path: Path):
    model, row = adapted_model(make_model(tmp_path / "m", "qwen2", layers=3), ("up_proj",)), pack(EXAMPLES)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    expected, _ = loss_and_gradients(model, row)
    fused_layers.fuse(layers_of(model))
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    fused_layers.undo(layers_of(model))
    assert not any("forward" in vars(layer) for layer in layers_of(model))
    assert loss_and_gradients(model, row)[0] == expected


@contextmanager
def hooked(module: nn.Module) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: None)
    yield
    handle.remove()


def test_what_does_not_fit_keeps_its_own_forward_pass(tmp_path: Path):
    folder = make_model(tmp_path / "m", layers=3)
    dora = LoraConfig(r=2, target_modules=["up_proj"], layers_to_transform=[1], use_dora=True)
    assert fused_layers.fuse(layers_of(get_peft_model(loading.load_model(str(folder)), dora))) == 2  # all but that one
    full = loading.load_model(str(folder))
    assert fused_layers.fuse(full.model.layers) == 0
    model = adapted_model(folder, ("up_proj",))
    with hooked(layers_of(model)[1].mlp.up_proj):
        assert fused_layers.fuse(layers_of(model)) == 2
    assert "forward" not in vars(layers_of(model)[1])


def test_a_row_with_a_long_example_takes_the_layer_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = adapted_model(make_model(tmp_path / "m", layers=3), ("up_proj",))
    fused_layers.fuse(layers_of(model))
    calls: list[int] = []
    apply = fused_layers.FusedNetwork.apply
    monkeypatch.setattr(fused_layers.FusedNetwork, "apply", lambda *args: calls.append(1) or apply(*args))
    short, _ = loss_and_gradients(model, pack(EXAMPLES))
    assert len(calls) == 3
    monkeypatch.setattr(fused_layers, "LONGEST", 8)
    assert loss_and_gradients(model, pack(EXAMPLES))[0] == pytest.approx(short, rel=1e-6)
    assert len(calls) == 3


def test_a_layer_that_only_looks_alike_is_found_out_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = adapted_model(make_model(tmp_path / "m", layers=3), ("up_proj",))
    objective, note = choose_objective(model, EXAMPLES, sharded=False)
    assert objective.direct
    assert note == ""
    assert all("forward" in vars(layer) for layer in layers_of(model))
    fused_layers.undo(layers_of(model))
    monkeypatch.setattr(
        fused_layers, "_norm", lambda module: fused_layers.Norm(module.weight.data + 1, module.variance_epsilon)
    )
    objective, _ = choose_objective(model, EXAMPLES, sharded=False)
    assert objective.direct
    assert not any("forward" in vars(layer) for layer in layers_of(model))


class Saved:
    """What autograd would keep of an operation."""

    needs_input_grad = (False, True, True, False, False)

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_fused_operations_are_not_bound_to_the_cpu(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    """On a fake accelerator, which refuses a tensor that is made on the CPU by mistake, forward and backward."""
    card, gradients = cards()[0], list[tuple[Tensor | None, ...]]()

    def both(operation: Any, *inputs: Any) -> Tensor:
        saved = Saved()
        with torch.no_grad():
            out: Tensor = operation.forward(saved, *inputs)
            gradients.append(operation.backward(saved, torch.ones_like(out)))
        return out

    for operation in (fused_layers.FusedAttention, fused_layers.FusedNetwork):
        monkeypatch.setattr(operation, "apply", partial(both, operation))
    monkeypatch.setitem(SLICE_BYTES, "card", 1 << 20)
    model = adapted_model(make_model(tmp_path / "m", kind, layers=3), (*fused_layers.ATTENTION, "up_proj"), dropout=0.1)
    with FakeTensorMode() as mode:
        without_values(model, mode, card)
        assert fused_layers.fuse(layers_of(model)) == 0, "on an accelerator on request only"
        assert fused_layers.fuse(layers_of(model), anywhere=True) == 3
        assert Objective(model)(pack(EXAMPLES).to(card)).device == card
    assert len(gradients) == 6
    assert {d.device for each in gradients for d in each if d is not None} == {card}
    assert sum(d is not None for each in gradients for d in each) == 3 * (1 + 8 + 1 + 2)
