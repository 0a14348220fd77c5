"""The orthogonality regularisers against dense formulas and the reference's loop; specifications of methods."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from tiny import make_model
from torch import Tensor, nn

from lowtax.common.errors import UserError
from lowtax.methods.base import Method
from lowtax.methods.editing import OfflineProbe
from lowtax.methods.loading import load, load_all
from lowtax.methods.orthogonal import Orthogonal
from lowtax.methods.sites import Site
from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import ALIASES, Placement, mode_methods, parse_mode

RANK, SCALE, K = 2, 4.0, 3
SIDES = ["left", "right", "both"]


def site(out: int = 12, inp: int = 8, seed: int = 0) -> Site:
    g = torch.Generator().manual_seed(seed)
    W, A, B = (torch.randn(s, generator=g) for s in ((out, inp), (RANK, inp), (out, RANK)))
    return Site("layer", W, A.requires_grad_(), B.requires_grad_(), SCALE)


def penalty(method: Orthogonal, *sites: Site) -> Tensor:
    named = {str(i): one for i, one in enumerate(sites)}
    return method.penalty(named, method.prepare(named, OfflineProbe()))


def dense(s: Site, k: int, side: str, weighted: bool, relative: bool) -> Tensor:
    """Return the paper's formula from dense matrices."""
    U, S, Vh = torch.linalg.svd(s.weight)
    unit = S[:k].norm() if weighted and relative else 1.0
    strength = torch.diag(S[:k]) if weighted else torch.eye(k)
    C, R, dW = strength @ U[:, :k].T / unit, Vh[:k].T @ strength / unit, s.scale * s.b @ s.a
    overlap = {"left": C @ dW, "right": dW @ R, "both": C @ dW @ R}[side]
    return overlap.square().sum() / (dW.square().sum() if relative else 1.0)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("side", SIDES)
def test_is_the_formula_written_out_densely(side: str, weighted: bool, relative: bool):
    method = Orthogonal(beta=0.5, k=K, side=side, weighted=weighted, relative=relative)
    sites = [site(), site(7, 9, seed=1)]
    expected = 0.5 * sum(dense(s, K, side, weighted, relative) for s in sites)
    torch.testing.assert_close(penalty(method, *sites), expected, rtol=1e-4, atol=1e-6)


def test_an_update_outside_the_span_costs_nothing():
    s = site()
    U, _, Vh = torch.linalg.svd(s.weight)
    outside = Site("layer", s.weight, s.a, U[:, 3:5], SCALE)
    assert penalty(Orthogonal(beta=1, k=K), outside) < 1e-6
    assert penalty(Orthogonal(beta=1, k=K, side="both"), outside) < 1e-6
    assert penalty(Orthogonal(beta=1, k=K, side="right"), outside) > 1
    assert penalty(Orthogonal(beta=1, k=K, side="right"), Site("layer", s.weight, Vh[3:5], s.b, SCALE)) < 1e-6


def test_relative_and_uniform_is_a_share_of_energy():
    s = site()
    left, right, both = (
        penalty(Orthogonal(beta=1, k=K, side=side, weighted=False, relative=True), s).item() for side in SIDES
    )
    assert 0 < both <= min(left, right)
    assert max(left, right) < 1
    whole = Orthogonal(beta=1, k=99, side="right", weighted=False, relative=True)  # more than W has: all directions
    assert penalty(whole, s).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_relative_measures_direction_and_raw_size(side: str):
    s = site()
    double = Site("layer", s.weight, s.a, 2 * s.b, SCALE)
    relative, raw = Orthogonal(beta=1, k=K, side=side, relative=True), Orthogonal(beta=1, k=K, side=side)
    torch.testing.assert_close(penalty(relative, double), penalty(relative, s))
    torch.testing.assert_close(penalty(raw, double), 4 * penalty(raw, s))


def test_relative_spans_have_unit_norm_whatever_the_size_of_the_weight():
    s = site()
    large = Site("layer", 100 * s.weight, s.a, s.b, SCALE)
    relative, raw = Orthogonal(beta=1, k=K, relative=True), Orthogonal(beta=1, k=K)
    torch.testing.assert_close(penalty(relative, large), penalty(relative, s))
    torch.testing.assert_close(penalty(raw, large), 1e4 * penalty(raw, s))


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("side", SIDES)
def test_the_start_of_training_has_neither_penalty_nor_gradient(side: str, relative: bool):
    s = site()
    start = Site("layer", s.weight, s.a, torch.zeros_like(s.b).requires_grad_(), SCALE)
    value = penalty(Orthogonal(beta=1, k=K, side=side, relative=relative), start)
    value.backward()
    assert value == 0
    assert start.a.grad.abs().sum() == start.b.grad.abs().sum() == 0


@pytest.mark.parametrize("side", SIDES)
def test_gradients_are_on_the_factors_alone_and_those_of_the_dense_formula(side: str):
    s, t = site(), site()
    s.weight.requires_grad_()
    method = Orthogonal(beta=1, k=K, side=side, relative=True)
    state = method.prepare({"0": s}, OfflineProbe())
    assert not any(span.requires_grad for span in state["0"].values())
    method.penalty({"0": s}, state).backward()
    dense(t, K, side, True, True).backward()
    assert s.weight.grad is None
    for mine, theirs in ((s.a, t.a), (s.b, t.b)):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("side", "expected"), [("left", {"left"}), ("right", {"right"}), ("both", {"left", "right"})])
def test_only_the_spans_in_use_are_kept(side: str, expected: set[str]):
    assert set(Orthogonal(beta=1, k=K, side=side).prepare({"0": site()}, OfflineProbe())["0"]) == expected


def test_shapes_are_those_of_the_annotations():
    beartype = pytest.importorskip("beartype", reason="beartype is not installed")
    from jaxtyping import jaxtyped

    method = Orthogonal(beta=1, k=K, side="both")
    assert jaxtyped(typechecker=beartype.beartype)(Orthogonal.penalty)(
        method, {"0": site()}, method.prepare({"0": site()}, OfflineProbe())
    )


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., nn.Module]:
    """Return a function that adapts a tiny model, with all factors random."""
    folder = str(make_model(tmp_path_factory.mktemp("llama"), layers=3))

    def make(placement: Placement) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = adapt(loading.load_model(folder), placement, "ref")
            for p in model.parameters():
                if p.requires_grad and placement.kind == "lora":
                    nn.init.normal_(p, std=0.2)
        return model

    return make


def buffers_of_the_reference(
    model: nn.Module, k: int, targets: list[str], weighted: bool, normalise: bool
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the spans of the reference's loop over all modules whose name has a target, LoRA's parts included."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or not any(target in name for target in targets):
            continue
        k = min(k, *weight.shape)
        U, S, Vh = torch.linalg.svd(weight.detach().float(), full_matrices=False)
        strength = torch.diag(S[:k]) if weighted else torch.eye(k)
        column, row = (strength @ U[:, :k].T).bfloat16(), (Vh[:k].T @ strength).bfloat16()
        if normalise and weighted:
            column, row = column / column.norm(), row / row.norm()
        yield name, column.float(), row.float()


def reference_penalty(model: nn.Module, beta: float, k: int, targets: list[str], side: str, weighted: bool, norm: bool):
    buffers = {name: spans for name, *spans in buffers_of_the_reference(model, k, targets, weighted, norm)}
    total = torch.zeros(())
    for name, module in model.named_modules():
        if any(target in name for target in targets) and isinstance(getattr(module, "lora_B", None), nn.ModuleDict):
            column, row = buffers[name]
            D = module.lora_B["default"].weight @ module.lora_A["default"].weight
            inner = {"left": column @ D, "right": D @ row, "both": column @ D @ row}[side].norm() ** 2
            total = total + (inner / (D.norm() ** 2 + 1e-8) if norm else inner)
    return beta * total


WORDS = [alias.form.removeprefix("lora_mlp_orthogonal").split("_rR")[0] for alias in ALIASES if alias.regulariser]


@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("words", WORDS)
def test_as_published_is_what_the_references_code_does(words: str, k: int, adapted):
    mode = f"lora_mlp_orthogonal{words}_r2_beta0.5_k{k}"
    model = adapted(parse_mode(mode))
    (spec,) = mode_methods(mode)
    targets = ["down_proj"] if "down" in words else ["gate_proj", "up_proj", "down_proj"]
    side = "both" if "both" in words else "left"
    theirs = reference_penalty(model, 0.5, k, targets, side, "uniform" not in words, "norm" in words)
    methods = load_all([spec]).on(model)
    mine = methods.penalty(methods.prepare(OfflineProbe()))
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=1e-7)
    grads = [torch.autograd.grad(value, factors(model), allow_unused=True) for value in (mine, theirs)]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def factors(model: nn.Module) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if ".lora_" in name]


def test_as_published_right_which_no_mode_reaches(adapted):
    model = adapted(Placement(rank=2))
    methods = load_all([{"name": "orthogonal", "beta": 1, "k": 5, "side": "right", "as_published": True}]).on(model)
    theirs = reference_penalty(model, 1, 5, ["gate_proj", "up_proj", "down_proj"], "right", True, False)
    torch.testing.assert_close(methods.penalty(methods.prepare(OfflineProbe())), theirs, rtol=2e-5, atol=1e-7)


def test_k_collapses_after_the_first_module_as_published_and_only_then(adapted):
    model = adapted(Placement(rank=2, ranks={"layers.1.mlp.up_proj": 1}))
    for published, expected in ((True, [6, 2, 2, 2, 2, 1, 1, 1, 1]), (False, [6] * 9)):
        (state,) = (
            load_all([{"name": "orthogonal", "beta": 1, "k": 6, "as_published": published}])
            .on(model)
            .prepare(OfflineProbe())
        )
        assert [len(span["left"]) for span in state.values()] == expected


def test_where_the_two_agree(adapted):
    """With `relative` the scale cancels, and with k below the rank only bfloat16 makes a difference."""
    model = adapted(Placement(rank=4))
    values = []
    for published in (True, False):
        spec = {"name": "orthogonal", "beta": 1, "k": 3, "relative": True, "as_published": published}
        methods = load_all([spec]).on(model)
        values.append(methods.penalty(methods.prepare(OfflineProbe())))
    torch.testing.assert_close(*values, rtol=1e-2, atol=0)
    assert not torch.equal(*values)


def test_the_table_of_fields_in_the_docs():
    page = (ROOT / "docs/reference/placements.md").read_text().split("## Regularisers\n")[1]
    rows = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| `")]
    expected = [
        [f"| `{name}`", "required" if field.is_required() else str(field.default).lower()]
        for name, field in Orthogonal.model_fields.items()
    ]
    assert rows == [*expected, ["| `only`", "all with LoRA"]]


def test_states_are_saved_and_given_back_bit_for_bit(adapted, tmp_path: Path):
    model = adapted(Placement(rank=2))
    specs = [
        {"name": "orthogonal", "beta": 1, "k": 6, "side": "both"},
        {"name": "orthogonal", "beta": 1, "only": ["up_proj"]},
    ]
    states = load_all(specs).on(model).prepare(OfflineProbe())
    torch.save(states, tmp_path / "states.pt")
    fresh = load_all(specs).on(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)  # a state computed now would differ
    back = fresh.prepare(OfflineProbe(), saved=torch.load(tmp_path / "states.pt", weights_only=True))
    for one, other in zip(states, back, strict=True):
        assert list(one) == list(other)
        assert all(torch.equal(span, other[name][side]) for name, s in one.items() for side, span in s.items())
    assert torch.equal(fresh.penalty(back), fresh.penalty(states))


def test_penalties_add_and_only_limits_what_a_method_sees(adapted):
    model = adapted(Placement(rank=2))

    def value(*specs: dict[str, Any]) -> float:
        methods = load_all(specs).on(model)
        return methods.penalty(methods.prepare(OfflineProbe())).item()

    whole = {"name": "orthogonal", "beta": 1, "k": 4}
    parts = [whole | {"only": [name]} for name in ("gate_proj", "up_proj", "down_proj")]
    assert value(whole) == pytest.approx(sum(value(part) for part in parts), rel=1e-5)
    assert value(*parts) == pytest.approx(value(whole), rel=1e-5)
    assert value(whole | {"beta": 3}) == pytest.approx(3 * value(whole), rel=1e-5)
    assert value(whole | {"beta": 0}) == 0


def test_the_penalty_pulls_the_update_out_of_the_span(adapted):
    model = adapted(Placement(rank=2))
    methods = load_all([{"name": "orthogonal", "beta": 1, "k": 4, "weighted": False, "relative": True}]).on(model)
    states = methods.prepare(OfflineProbe())
    optimizer = torch.optim.Adam(factors(model), lr=0.02)
    values = []
    for _ in range(60):
        value = methods.penalty(states)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        methods.after_backward(states)
        optimizer.step()
    assert values[-1] < 0.05 * values[0]


def test_no_methods_is_no_penalty_also_for_full_fine_tuning(adapted):
    methods = load_all([])
    assert not methods
    assert methods.on(adapted(Placement(kind="full"))).penalty([]) == 0.0
    with pytest.raises(UserError, match="use LoRA"):
        load_all([{"name": "orthogonal", "beta": 1}]).on(adapted(Placement(kind="full")))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "needs a name .*the names are .*orthogonal"),
        ({"name": "orthogonl", "beta": 1}, "no method 'orthogonl'; did you mean 'orthogonal'"),
        ({"name": "orthogonal", "beta": 1, "sied": "left"}, "no field 'sied'; did you mean 'side'"),
        ({"name": "orthogonal", "beta": 1, "onyl": ["up_proj"]}, "did you mean 'only'"),
        ({"name": "orthogonal"}, "needs a value for 'beta'"),
        ({"name": "orthogonal", "beta": -1}, r"beta: .* \(found -1\)"),
        ({"name": "orthogonal", "beta": 1, "k": 0}, "k: "),
        ({"name": "orthogonal", "beta": 1, "side": "top"}, "side: .*'left'.*found 'top'"),
        ({"name": "orthogonal", "beta": 1, "only": "up_proj"}, "only is a list"),
        ({"name": "orthogonal", "beta": 1, "only": []}, "only is a list"),
    ],
)
def test_specifications_that_are_refused(spec: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        load_all([spec])


def test_every_mode_gives_a_specification_that_loads():
    for words in WORDS:
        configured = load(mode_methods(f"lora_mlp_orthogonal{words}_r2_beta1e-3_k4")[0])
        assert isinstance(configured.method, Orthogonal)
        assert (configured.method.beta, configured.method.k, configured.method.as_published) == (1e-3, 4, True)


OUTSIDER = """
from lowtax.methods import Method

class Shrink(Method):
    by: float
    def prepare(self, sites, probe):
        return {"calls": [len(sites)]}
    def after_backward(self, sites, state):
        state["calls"].append(len(sites))
        for site in sites.values():
            for grad in site.grads():
                grad.mul_(self.by)

class Stranger:
    pass
"""


def test_a_method_of_ones_own_acts_on_gradients_in_place(adapted, tmp_path: Path):
    (tmp_path / "own.py").write_text(OUTSIDER)
    model = adapted(Placement(rank=2, dropout=0))
    ids = torch.arange(2, 14)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    before = [p.grad.clone() for p in factors(model)]
    methods = load_all([{"name": f"{tmp_path}/own.py:Shrink", "by": 0.5}]).on(model)
    states = methods.prepare(OfflineProbe())
    assert methods.penalty(states) == 0.0
    methods.after_backward(states)
    assert states == [{"calls": [9, 9]}]
    assert all(torch.equal(p.grad, 0.5 * g) for p, g in zip(factors(model), before, strict=True))
    with pytest.raises(UserError, match="is not a method"):
        load({"name": f"{tmp_path}/own.py:Stranger"})


def test_a_method_is_frozen_and_by_default_does_nothing():
    assert (Method().prepare({}, OfflineProbe()), Method().penalty({}, None), Method().edit({}, None)) == (
        None,
        0.0,
        {},
    )
    with pytest.raises(ValueError, match="frozen"):
        Orthogonal(beta=1).beta = 2
