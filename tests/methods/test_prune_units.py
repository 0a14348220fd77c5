"""Pruned units are those that `ssah` would find, and a model without them computes as one whose channels are zero."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import make_model, save_adapter
from torch import Tensor, nn

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.data import specs, training_sets
from lowtax.methods.editing import EditedAdapter, OfflineProbe, edit
from lowtax.methods.prune_units import PruneUnits
from lowtax.methods.sites import Site
from lowtax.models import loading
from lowtax.models.adapters import read_adapter
from lowtax.models.weights import open_weights
from lowtax.training.encoding import encode_all

IDS = torch.tensor([[7, 3, 200, 4, 90, 12, 5]])
ROWS = {"safety": "builtin:refusals,n=4", "utility": "builtin:chat,n=4"}
SHARES = {"scu": 0.1, "ucu": 0.2, "ru": 0.25}
SPEC: dict[str, Any] = {"name": "prune_units", **ROWS, **SHARES}
GROUPS = ("safety", "utility", "redundant", "complex")


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return Path(save_adapter(base / "adapter", base, 3, ["up_proj", "down_proj"], 1))


@pytest.fixture(scope="module")
def pruned(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EditedAdapter]:
    out = tmp_path_factory.mktemp("pruned")
    return {units: edit({**SPEC, "units": units}, adapter, out / units) for units in GROUPS}


def seconds(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the second matrices of a base model, with their LoRA if they have one."""
    return {n: m for n, m in model.named_modules() if n.endswith((".o_proj", ".down_proj"))}


def model_of(base: Path, adapter: Path | None) -> nn.Module:
    model = loading.load_model(str(base)).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, str(adapter)).get_base_model()


def weight(module: Any) -> Tensor:
    """Return W + dW by PEFT's own sum."""
    if not hasattr(module, "get_delta_weight"):
        return module.weight.detach().double()
    return (module.weight + module.get_delta_weight("default")).detach().double()


def collect(inputs: list[Tensor], _: nn.Module, entered: tuple[Tensor]) -> None:
    inputs.append(entered[0][0].double())


def scores(base: Path, adapter: Path | None) -> dict[str, list[Tensor]]:
    """Return I_S and I_U from all inputs at once, by transformers' model and torch's variance."""
    model, tokenizer = model_of(base, adapter), loading.load_tokenizer(str(base))
    result: dict[str, list[Tensor]] = {name: [] for name in seconds(model)}
    for source in ROWS.values():
        inputs: dict[str, list[Tensor]] = {name: [] for name in result}
        handles = [
            module.register_forward_pre_hook(partial(collect, inputs[name])) for name, module in seconds(model).items()
        ]
        rows = training_sets.load(specs.parse(source), 0).rows
        with torch.no_grad():
            for e in encode_all(tokenizer, rows, 4096).examples:
                model(torch.tensor([[*e.prompt, *e.completion]]))
        for handle in handles:
            handle.remove()
        for name, module in seconds(model).items():
            result[name].append(torch.cat(inputs[name]).var(0) * weight(module).square().sum(0))
    return result


def units_of(after: Path, base: Path) -> dict[str, list[int]]:
    """Return the units whose columns are exactly zero in W + dW, both in float32."""
    weights, new = open_weights(str(base)), read_adapter(after).factors
    columns = {name: (weights[name] + x.dense()).abs().amax(0) for name, x in new.items()}
    return {n: x.eq(0).nonzero()[:, 0].tolist() for n, x in columns.items() if n.endswith(("o_proj", "down_proj"))}


def without(places: Tensor, _: nn.Module, entered: tuple[Tensor]) -> tuple[Tensor]:
    return (entered[0].index_fill(-1, places, 0),)


def test_the_units_are_those_of_the_scores_of_the_pruned_model(base, adapter, pruned):
    for name, (safe, useful) in scores(base, adapter).items():
        n = len(safe)
        left = torch.arange(n)
        for units, order, share in (
            ("safety", safe - useful, 0.1),
            ("utility", useful - safe, 0.2),
            ("redundant", -safe - useful, 0.25),
        ):
            best = left[order[left].argsort(descending=True)][: round(share * n)]
            assert units_of(pruned[units].folder, base)[name] == sorted(best.tolist())
            left = left[~torch.isin(left, best)]
        assert units_of(pruned["complex"].folder, base)[name] == left.tolist()


def test_groups_are_disjoint_and_add_up(base, adapter, pruned):
    by_group = [units_of(pruned[units].folder, base) for units in GROUPS]
    for name, sizes in {
        "model.layers.1.mlp.down_proj": [6, 13, 16, 29],
        "model.layers.1.self_attn.o_proj": [3, 6, 8, 15],
    }.items():
        assert [len(group[name]) for group in by_group] == sizes
        assert sorted(unit for group in by_group for unit in group[name]) == list(range(sum(sizes)))
        assert [pruned[units].card["sites"][name]["pruned"] for units in GROUPS] == sizes


@pytest.mark.parametrize("units", GROUPS)
def test_the_model_computes_as_with_the_units_set_to_zero(base, adapter, pruned, units):
    chosen = units_of(pruned[units].folder, base)
    with torch.no_grad():
        before = model_of(base, adapter)(IDS).logits
        after = model_of(base, pruned[units].folder)(IDS).logits
        silenced = model_of(base, adapter)
        for name, module in seconds(silenced).items():
            module.register_forward_pre_hook(partial(without, torch.tensor(chosen[name])))
        torch.testing.assert_close(after, silenced(IDS).logits, rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 1e-2
    assert pruned[units].card["lost"] < 1e-6


def test_what_is_not_pruned_keeps_its_update(base, adapter, pruned):
    before, after = read_adapter(adapter).factors, read_adapter(pruned["safety"].folder).factors
    chosen = units_of(pruned["safety"].folder, base)
    for name, x in before.items():
        keep = torch.ones(x.shape[1], dtype=torch.bool)
        keep[chosen.get(name, [])] = False
        torch.testing.assert_close(after[name].dense()[:, keep], x.dense()[:, keep], rtol=0, atol=1e-6)
    assert {after[name].rank for name in chosen if name in before} == {3 + 6}
    assert {after[name].rank for name in chosen if name not in before} == {3}


def test_a_control_has_as_many_units_drawn_by_its_seed(base, adapter, pruned, tmp_path):
    by_seed = [edit({**SPEC, "control": seed}, adapter, tmp_path / f"{i}") for i, seed in enumerate((0, 0, 1))]
    one, same, other = (units_of(result.folder, base) for result in by_seed)
    group = units_of(pruned["safety"].folder, base)
    assert one == same
    assert {name: len(units) for name, units in one.items()} == {name: len(units) for name, units in group.items()}
    assert one != other
    assert one != group
    assert one["model.layers.0.mlp.down_proj"] != one["model.layers.1.mlp.down_proj"]


def test_of_a_whole_model(base, tmp_path):
    """Of a fully tuned arm, or of the base, there is an adapter of the units alone."""
    result = edit({**SPEC, "units": "redundant"}, base, tmp_path / "out")
    chosen = units_of(result.folder, base)
    for name, (safe, useful) in scores(base, None).items():
        n = len(safe)
        taken = (safe - useful).argsort(descending=True)[: round(0.1 * n)].tolist()
        taken += [i for i in (useful - safe).argsort(descending=True).tolist() if i not in taken][: round(0.2 * n)]
        rest = [i for i in (safe + useful).argsort().tolist() if i not in taken]
        assert chosen[name] == sorted(rest[: round(0.25 * n)])
    with torch.no_grad():
        silenced = model_of(base, None)
        for name, module in seconds(silenced).items():
            module.weight[:, chosen[name]] = 0
        torch.testing.assert_close(
            model_of(base, result.folder)(IDS).logits, silenced(IDS).logits, rtol=1e-4, atol=1e-4
        )
    assert read_adapter(result.folder).factors.keys() == chosen.keys()


def test_more_units_than_the_matrix_is_high(base, adapter, tmp_path):
    """The rank is then the height; nothing is left of the pairs."""
    result = edit({**SPEC, "ru": 1, "scu": 0, "ucu": 0, "units": "redundant"}, adapter, tmp_path / "out")
    factors, weights = read_adapter(result.folder).factors, open_weights(str(base))
    for name in units_of(result.folder, base):
        assert not (weights[name] + factors[name].dense()).any()
    assert factors["model.layers.0.mlp.down_proj"].rank == 3 + 32


def test_only_some_modules(base, adapter, pruned, tmp_path):
    result = edit({**SPEC, "only": ["layers.1.mlp.down_proj"]}, adapter, tmp_path / "out")
    name = "model.layers.1.mlp.down_proj"
    everywhere = units_of(pruned["safety"].folder, base)
    assert units_of(result.folder, base) == {
        name: everywhere[name],
        "model.layers.0.mlp.down_proj": [],
    }


class Fused(OfflineProbe):
    """A model whose second matrices have other names."""

    def writers(self) -> list[str]:
        return ["model.layers.0.mlp.fc2"]


def test_what_is_refused(base, adapter, tmp_path):
    for fields, message in (
        ({"units": "unsafe"}, "units: .*found 'unsafe'"),
        ({"scu": 1.5}, "scu: .*found 1.5"),
        ({"control": -1}, "control: .*found -1"),
        ({"scu": 0}, "no unit is safety, with scu 0, ucu 0.2 and ru 0.25: choose shares"),
        ({"safety": "builtin:refusals,answers=self"}, "needs rows that have answers"),
        ({"safety": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        ({"only": ["o_proj"]}, "only: 'o_proj' matches no module with LoRA"),
    ):
        with pytest.raises(UserError, match=message):
            edit({**SPEC, **fields}, adapter, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="models with down_proj or o_proj"):
        PruneUnits().prepare({}, Fused())


def test_an_update_keeps_its_rank_without_units_of_its_own():
    g = torch.Generator().manual_seed(0)
    W, A, B = (torch.randn(shape, generator=g) for shape in ((6, 9), (2, 9), (6, 2)))
    site = Site("x.o_proj", W, A, B, 0.5)
    state = {"x.o_proj": {"units": torch.tensor([1, 4]), "removed": Factors(-W[:, [1, 4]], torch.eye(9)[[1, 4]])}}
    new = PruneUnits().edit({"x.o_proj": site}, state)["x.o_proj"]
    total = W + new.dense()
    assert not total[:, [1, 4]].any()
    others = [0, 2, 3, 5, 6, 7, 8]
    torch.testing.assert_close(total[:, others], (W + 0.5 * B @ A)[:, others])
    assert new.rank == 4


def test_of_an_embedded_base(tmp_path):
    spec = {"name": "prune_units", "control": 0, "only": ["layers.3.mlp.down_proj"]}
    result = edit(spec, Path("builtin:smollm2-135m"), tmp_path / "out")
    (factors,) = read_adapter(result.folder).factors.values()
    W = open_weights("builtin:smollm2-135m")["model.layers.3.mlp.down_proj"]
    assert int((W + factors.dense()).abs().amax(0).eq(0).sum()) == factors.rank == round(0.013 * 1536)
    assert result.card["base"] == "builtin:smollm2-135m"
    with pytest.raises(UserError, match="'project' edits adapters, and builtin:smollm2-135m is a whole model"):
        edit({"name": "project"}, Path("builtin:smollm2-135m"), tmp_path / "other")
