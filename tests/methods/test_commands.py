"""The table of methods and its page, methods in training, and the commands `lowtax edit` and `lowtax methods`."""

import json
import sys
from pathlib import Path

import pytest
import torch
import typer
from places import ROOT
from tiny import make_model
from torch import nn
from typer.testing import CliRunner

from lowtax.cli import edit
from lowtax.common.errors import UserError
from lowtax.methods.base import MOMENTS, Edit, Method, moments
from lowtax.methods.editing import OfflineProbe
from lowtax.methods.loading import TABLE, ActiveMethods, catalog, departures, fails, load, load_all, source
from lowtax.methods.s3lora import S3LoRA
from lowtax.methods.safe_lora import Pair, along
from lowtax.methods.sites import Site
from lowtax.methods.spf import SPF
from lowtax.methods.splora import SPLoRA, _standardised
from lowtax.methods.ssah import SSAH
from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import Placement


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("aligned"), "qwen2", seed=1))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    base = str(make_model(tmp_path_factory.mktemp("qwen2"), "qwen2"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = adapt(loading.load_model(base), Placement(rank=3), base)
        for name, p in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(p, std=0.1)
    model.save_pretrained(folder)
    return folder


PAGE = ROOT / "docs/reference/methods.md"


def test_every_method_of_the_table_is_listed_with_its_source_departures_and_failures():
    entries = {one["name"]: one for one in catalog()}
    assert set(entries) == set(TABLE)
    for name, one in entries.items():
        assert one["moments"], name
        assert set(one["moments"]) <= set(MOMENTS)
        assert "arXiv:" in one["source"] or one["source"].startswith("Ours"), name
        for part in ("does", "departures", "fails"):
            assert len(one[part]) > 10, (name, part)
            assert one[part].endswith("."), (name, part)
        head = (sys.modules[TABLE[name].partition(":")[0]].__doc__ or "").split("\n\n")
        assert head[0].endswith("."), name
        assert "\n" not in head[0], name
        assert [sum(text.startswith(label) for text in head) for label in ("Departures: ", "Fails: ")] == [1, 1], name
    assert entries["orthogonal"]["moments"] == ["prepare", "penalty"]
    assert entries["spf"]["moments"] == ["prepare", "after_backward", "after_step"]
    assert entries["scale"]["moments"] == ["edit"]
    assert {one["on"] for one in entries.values()} == {"LoRA", "LoRA, whole weights", "a trained adapter"}
    assert not isinstance(Method(), Edit)


def test_the_page_is_the_list():
    assert PAGE.read_text() == words("methods", "--markdown"), (
        "out of date: lowtax methods --markdown > docs/reference/methods.md"
    )
    assert "`side` left (right, both, block), `strength` 1.0, `ridge` none, `keep_norm` false." in PAGE.read_text()
    assert "`normalised` none (rows, columns)" in PAGE.read_text()
    assert "`beta` (required)" in PAGE.read_text()


def test_failures_that_the_page_names():
    g = torch.Generator().manual_seed(0)
    V, b, a = (torch.randn(shape, generator=g) for shape in ((8, 8), (8, 2), (2, 8)))
    torch.testing.assert_close(along(V, b, k=8), b, rtol=0, atol=1e-5)  # an exact projector, a square weight
    shares = [along(c * V, b).norm() / b.norm() for c in (0.01, 10.0)]
    assert shares[0] < 0.1 < 10 < shares[1]
    site = Site("x", V, a, b, 1.0)
    pair = Pair({"x": V + 1e-4 * V.flip(0)}, None)
    assert SPLoRA(aligned="aligned")._distance(site, pair) == pytest.approx((b @ a).norm().item(), rel=1e-2)
    assert _standardised({"0.up": 7.0}) == {"0.up": 0.0}
    assert _standardised({"0.up": 0.0}) == {"0.up": 0.0}
    cancelled = Site("x", V, torch.cat([a, a]), torch.cat([b, -b], dim=1), 1.0)
    assert SPLoRA(aligned="aligned", relative=True)._distance(cancelled, pair) is None
    one_direction = torch.outer(V[:, 0], V[0])
    assert torch.allclose(along(one_direction, b, 16), along(one_direction, b, 1), atol=1e-5)
    assert _standardised({"0.up": 7.0, "1.up": 1.0}) == pytest.approx({"0.up": 1.0, "1.up": -1.0}, rel=1e-5)
    units = SSAH(cu=1)._chosen(torch.rand(1000, generator=g), torch.rand(1000, generator=g))
    assert len(units) == pytest.approx(720, abs=2)
    p = torch.ones(2, 8, requires_grad=True)
    p.grad = torch.randn(2, 8, generator=g)
    before = p.grad.clone()
    nothing = {"x:0": SPF(every=0)._span(torch.zeros(2, 8))}
    SPF(every=0)._correct({"x:0": p.grad}, nothing)
    assert torch.equal(p.grad, before)
    assert S3LoRA()._score(Site("x", V, a[:1], b[:, :1], 1.0))["score"] == pytest.approx(1)


def test_methods_that_would_break_what_another_holds_are_refused():
    g = torch.Generator().manual_seed(0)
    site = Site("x", torch.randn(8, 8, generator=g), torch.zeros(2, 8), torch.zeros(8, 2), 1.0)
    here, elsewhere = {"x": site}, {"y": site}
    salora, ssah, spf = (load({"name": name}).method for name in ("salora", "ssah", "spf"))
    penalty = load({"name": "orthogonal", "beta": 1}).method
    for parts, message in (
        (
            [(ssah, here), (salora, here)],
            "SaLoRA would change what SSAH holds: remove one of them, or give each its own",
        ),
        ([(salora, here), (spf, here)], "SPF would change what SaLoRA holds: name SPF first"),
    ):
        with pytest.raises(UserError, match=message):
            ActiveMethods(parts)
    ActiveMethods([(spf, here), (ssah, here), (penalty, here)])
    ActiveMethods([(ssah, here), (salora, elsewhere)])


OWN = """
from lowtax.methods import Method

class Own(Method):
    def after_step(self, sites, state, probe, step):
        state.append(step)

    def report(self, state):
        return f"{len(state)} steps"
"""


def test_a_method_of_ones_own_says_what_it_says_and_acts_after_a_step(tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    own = load({"name": f"{tmp_path / 'own.py'}:Own"}).method
    kind = type(own)
    assert [source(kind), departures(kind), fails(kind), *moments(kind)] == ["", "", "", "after_step"]
    attached, states, published = ActiveMethods([(own, {}), (Method(), {}), (own, {})]), [[], None, []], []
    for step in (1, 2):
        attached.after_step(states, OfflineProbe(), step, lambda: published.append([*states[0], *states[2]]))
    assert states == [[1, 2], None, [1, 2]]
    assert published == [
        [1],
        [1, 1],
        [1, 2, 1],
        [1, 2, 1, 2],
    ]  # before the next method acts, and not for a method that does nothing
    assert (attached.held(states), attached.reports(states)) == (0, ["2 steps", "2 steps"])


def test_an_edit_in_training_is_refused(aligned: str):
    model = adapt(loading.load_model(aligned), Placement(rank=1), aligned)
    with pytest.raises(UserError, match="Scale edits adapters after training"):
        load_all([{"name": "scale", "by": 2}]).on(model)


def test_the_probe_of_an_edit_reads_checkpoints_and_runs_nothing(aligned: str):
    assert OfflineProbe().weights(aligned)["model.layers.1.mlp.up_proj"].shape == (64, 32)
    with pytest.raises(UserError, match="gradients"):
        OfflineProbe().gradients("builtin:refusals,n=2", {})


def app() -> typer.Typer:
    application = typer.Typer()
    application.command()(edit.edit)
    application.command()(edit.methods)
    return application


def words(*arguments: object) -> str:
    result = CliRunner().invoke(app(), [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands(aligned: str, adapter: Path, tmp_path: Path):
    assert {one["name"] for one in json.loads(words("methods", "--json"))} == set(TABLE)
    listing = words("methods")
    assert "safe_lora  (prepare, edit)\n  Project the updates" in listing
    assert listing.count("\n  departures: ") == listing.count("\n  fails: ") == len(TABLE)
    output = words("edit", "safe_lora", "--adapter", adapter, "--aligned", aligned, "--set", "number=2",
                 "--set", "only=[up_proj, down_proj]", "--out", tmp_path / "safe", "--json")  # fmt: skip
    card = json.loads(output)
    assert (card["changed"], card["fields"]["number"], card["only"]) == (2, 2, ["up_proj", "down_proj"])
    output = words("edit", "scale", "--adapter", adapter, "--sweep", "by=0.5,2", "--out", tmp_path / "s")
    assert output.splitlines() == [f"edited: {tmp_path}/s/by-0.5", f"edited: {tmp_path}/s/by-2"]
    norms = [json.loads((tmp_path / "s" / f"by-{by}" / "card.json").read_text())["norm_after"] for by in ("0.5", "2")]
    assert norms[1] == pytest.approx(4 * norms[0])


def test_words_that_are_refused():
    for setting in ("k", "=4", "k={"):
        with pytest.raises(UserError, match="--set"):
            edit.fields([setting])
    for setting in ("by", "by=", "by=1,,2", "by=1,1", "to=a/b"):
        with pytest.raises(UserError, match="--sweep"):
            edit.swept(setting)
    assert edit.fields(["k=4", "side=left", "only=[a, b]"]) == {"k": 4, "side": "left", "only": ["a", "b"]}
