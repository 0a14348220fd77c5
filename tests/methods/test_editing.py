"""Edits of adapters on disk: PEFT computes with the method's updates, and the card describes what is stored."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from random_adapters import Make
from random_adapters import base as base  # fixtures
from random_adapters import make as make
from tiny import make_model
from torch import Tensor, nn

from lowtax.common.errors import UserError
from lowtax.common.linalg import overlap, top_singular
from lowtax.methods.editing import edit, sites_from
from lowtax.methods.loading import catalog
from lowtax.models import loading
from lowtax.models.adapters import BASE, CONFIG, WEIGHTS, read_adapter
from lowtax.models.weights import open_weights

IDS = torch.arange(2, 14)[None]
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("aligned"), "qwen2", seed=1))


@pytest.fixture(scope="module")
def adapter(make: Make) -> Path:
    """Return an adapter of rank 3, with rank 2 in one module."""
    return make(rank=3, ranks={UP: 2})


def logits(base: str, adapter: Path) -> Tensor:
    """Return the logits of PEFT with an adapter."""
    with torch.no_grad():
        return PeftModel.from_pretrained(loading.load_model(base), str(adapter)).eval()(IDS).logits


def by_hand(base: str, updates: dict[str, Tensor]) -> Tensor:
    """Return the logits of the base with dense updates added."""
    model = loading.load_model(base)
    with torch.no_grad():
        for name, D in updates.items():
            model.get_submodule(name).weight += D.float()
        return model(IDS).logits


def test_peft_computes_with_the_updates_of_the_method(base: str, adapter: Path, tmp_path: Path):
    edited = edit({"name": "project", "k": 4, "side": "block"}, adapter, tmp_path / "new")
    weights, original = open_weights(base), read_adapter(adapter).factors
    expected = {}
    for name, D in original.items():
        U, _, Vh = torch.linalg.svd(weights[name].double())
        D = D.dense().double()
        expected[name] = D - U[:, :4] @ U[:, :4].T @ D @ Vh[:4].T @ Vh[:4]
    torch.testing.assert_close(logits(base, edited.folder), by_hand(base, expected), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(logits(base, edited.folder), logits(base, adapter), atol=1e-3)
    assert {path.name for path in edited.folder.iterdir()} == {CONFIG, WEIGHTS, BASE, "card.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_card_says_what_was_done(base: str, adapter: Path, tmp_path: Path):
    spec = {"name": "project", "k": 4, "only": ["up_proj"]}
    card = edit(spec, adapter, tmp_path / "new").card
    assert card == json.loads((tmp_path / "new" / "card.json").read_text()) | {"only": ("up_proj",)}
    assert card["fields"]["k"] == 4
    assert card["fields"]["side"] == "left"
    assert "arXiv:2507.17075" in card["source"]
    assert (card["base"], card["modules"], card["changed"], card["rank"]) == (base, 6, 2, 3)
    assert card["lost"] < 1e-6
    old, new, weights = read_adapter(adapter).factors, read_adapter(tmp_path / "new").factors, open_weights(base)
    for name, one in card["sites"].items():
        D, X = old[name].dense(), new[name].dense()
        assert one["norm_before"] == pytest.approx(D.norm().item(), rel=1e-5)
        assert one["norm_after"] == pytest.approx(X.norm().item(), rel=1e-5)
        assert one["cosine"] == pytest.approx(((D * X).sum() / D.norm() / X.norm()).item(), rel=1e-4)
        assert one["changed"] == name.endswith("up_proj") == (not torch.equal(D, X))
        if one["changed"]:
            U, _, V = top_singular(weights[name], 4)
            assert one["share"] == pytest.approx(overlap(old[name], U, V)["left"])
        assert one["rank"] == one["rank_before"] == (2 if name == UP else 3)
    assert card["norm_before"] == pytest.approx(sum(x.dense().square().sum() for x in old.values()).sqrt().item())


def test_every_edit_of_the_table_writes_an_adapter_that_peft_loads(
    base: str, aligned: str, adapter: Path, make: Make, tmp_path: Path
):
    fields = {
        "interpolate": {"to": str(make(seed=1, rank=2)), "at": 0.3},
        "safe_lora": {"aligned": aligned, "number": 2},
        "splora": {"aligned": aligned, "number": 2},
        "scale": {"by": 0.5},
        "s3lora": {"number": 2},
        "intruders": {"threshold": 1.0, "keep": 0.5},
    }
    before = logits(base, adapter)
    names = [one["name"] for one in catalog() if one["moments"] in (["edit"], ["prepare", "edit"])]
    assert {*fields, "lox", "project"} <= set(names)
    for name in {*fields, "lox", "project"}:
        edited = edit({"name": name, **fields.get(name, {})}, adapter, tmp_path / name)
        after = logits(base, edited.folder)
        assert after.isfinite().all(), name
        assert not torch.allclose(after, before, atol=1e-4), name
        expected = by_hand(base, {n: x.dense() for n, x in read_adapter(edited.folder).factors.items()})
        torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)


def test_scale_zero_is_the_base_and_one_is_the_adapter(base: str, adapter: Path, tmp_path: Path):
    for by, expected in ((0, by_hand(base, {})), (1, logits(base, adapter))):
        edited = edit({"name": "scale", "by": by}, adapter, tmp_path / str(by))
        torch.testing.assert_close(logits(base, edited.folder), expected, rtol=1e-4, atol=1e-5)
    assert edited.card["cosine"] == pytest.approx(1)
    assert json.loads((tmp_path / "0" / "card.json").read_text())["cosine"] is None


def test_interpolation_has_both_ends_and_the_union_of_sites(base: str, adapter: Path, make: Make, tmp_path: Path):
    other = make(seed=2, rank=2, modules=["q_proj", "up_proj"])
    spec = {"name": "interpolate", "to": str(other)}
    ends = [edit(spec | {"at": at}, adapter, tmp_path / str(at)) for at in (0, 1, 0.25)]
    torch.testing.assert_close(logits(base, ends[0].folder), logits(base, adapter), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(base, ends[1].folder), logits(base, other), rtol=1e-4, atol=1e-5)
    one, two = read_adapter(adapter).factors, read_adapter(other).factors
    mixed = read_adapter(ends[2].folder).factors
    assert set(mixed) == set(one) | set(two)
    assert mixed[UP].rank == 4
    torch.testing.assert_close(mixed[UP].dense(), 0.75 * one[UP].dense() + 0.25 * two[UP].dense())
    q = "model.layers.0.self_attn.q_proj"
    assert ends[2].card["sites"][q]["norm_before"] == 0
    torch.testing.assert_close(mixed[q].dense(), 0.25 * two[q].dense())
    alone = edit(spec | {"at": 0.5, "only": ["down_proj"]}, adapter, tmp_path / "only")
    assert set(read_adapter(alone.folder).factors) == set(one)


def test_a_requested_rank_reports_what_it_loses(adapter: Path, make: Make, tmp_path: Path):
    spec = {"name": "interpolate", "to": str(make(seed=1, rank=3)), "at": 0.5}
    whole = edit(spec, adapter, tmp_path / "whole")
    short = edit(spec, adapter, tmp_path / "short", rank=2)
    assert (whole.card["rank"], short.card["rank"]) == (6, 2)
    exact, truncated = (read_adapter(one.folder).factors for one in (whole, short))
    lost = sum((exact[n].dense() - truncated[n].dense()).square().sum() for n in exact).sqrt()
    norm = sum(x.dense().square().sum() for x in exact.values()).sqrt()
    assert short.card["lost"] == pytest.approx((lost / norm).item(), rel=1e-4)
    assert short.card["lost"] > 0.1 > 1e-6 > whole.card["lost"]


def test_weights_are_read_one_at_a_time_and_only_when_asked_for(base: str, adapter: Path):
    weights = open_weights(base)
    reads = []

    class Counted(type(weights)):  # type: ignore[misc]
        def __getitem__(self, name: str) -> Tensor:
            reads.append(name)
            return super().__getitem__(name)

    weights.__class__ = Counted
    sites = sites_from(read_adapter(adapter), weights)
    assert reads == []
    assert torch.equal(sites[UP].weight, loading.load_model(base).get_submodule(UP).weight)
    assert reads == [UP]
    assert sites[UP].weight is not sites[UP].weight
    original = read_adapter(adapter)
    assert sites[UP].scale == original.scales[UP] != 1  # B and A are the stored ones, which published forms read
    torch.testing.assert_close(sites[UP].delta(), original.factors[UP].dense())


OWN = """
import torch
from lowtax.common.linalg import Factors
from lowtax.methods import Edit

class Broken(Edit):
    '''Return NaN.'''
    def edit(self, sites, state):
        return {name: Factors(site.b * float("nan"), site.a) for name, site in sites.items()}

class Curious(Edit):
    '''Ask for a running model.'''
    def prepare(self, sites, probe):
        return probe.gradients("builtin:refusals,n=2", sites)
"""


def test_what_is_refused_leaves_nothing_behind(adapter: Path, tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    small, new = str(make_model(tmp_path / "small", "qwen2", layers=1)), tmp_path / "new"
    for spec, to, options, message in (
        ({"name": "scale", "by": 2}, tmp_path / "full", {}, "is not empty"),
        ({"name": "orthogonal", "beta": 1}, new, {}, "'orthogonal' acts in training"),
        ({"name": "project", "only": ["gate"]}, new, {}, "'gate' matches no module"),
        ({"name": f"{tmp_path}/own.py:Broken"}, new, {}, "not finite"),
        (
            {"name": f"{tmp_path}/own.py:Curious"},
            new,
            {},
            "needs gradients of a running model, and an edit reads stored weights only",
        ),
        ({"name": "interpolate", "to": str(tmp_path / "none"), "at": 1}, new, {}, "not a PEFT adapter folder"),
        ({"name": "scale", "by": 2}, new, {"base": str(tmp_path / "nothing")}, "There is no model"),
        ({"name": "scale", "by": 2}, new, {"base": small}, "belong to"),
    ):
        with pytest.raises(UserError, match=message):
            edit(spec, adapter, to, **options)
    remaining = {path.name for path in tmp_path.iterdir()}
    assert remaining <= {"own.py", "full", "small", "__pycache__"}


def test_a_base_that_has_moved_is_the_one_the_result_names(base: str, adapter: Path, tmp_path: Path):
    moved = str(shutil.copytree(base, tmp_path / "moved"))
    edited = edit({"name": "scale", "by": 2}, adapter, tmp_path / "new", base=moved)
    assert edited.card["base"] == read_adapter(edited.folder).base == moved != read_adapter(adapter).base


def test_a_base_of_other_shapes_is_refused(make: Make, tmp_path: Path):
    adapter = make(rank=1, modules=["q_proj"])
    model = loading.load_model(str(make_model(tmp_path / "wide", "qwen3")))
    for layer in model.model.layers:
        layer.self_attn.q_proj = nn.Linear(32, 48, bias=False)
    model.save_pretrained(tmp_path / "wider")
    with pytest.raises(UserError, match="q_proj is 48 x 32 there, and 32 x 32 in the adapter"):
        edit({"name": "scale", "by": 2}, adapter, tmp_path / "new", base=str(tmp_path / "wider"))
