"""The probe of a training run, against the same quantities computed by transformers alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from guides import blocks
from places import ROOT
from tiny import make_model
from torch import Tensor, nn

from lowtax.common.errors import UserError
from lowtax.data import specs, training_sets
from lowtax.methods.base import Method
from lowtax.methods.loading import load_all
from lowtax.methods.salora import SaLoRA
from lowtax.methods.sites import sites_of
from lowtax.methods.spf import SPF
from lowtax.methods.ssah import SSAH
from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import Placement
from lowtax.study import recipe
from lowtax.training.encoding import encode_all
from lowtax.training.objective import choose_objective, unwrap
from lowtax.training.parameters import TrainedParameters
from lowtax.training.probe import ModelProbe, attach

ROWS = "builtin:refusals,n=5"
NAMES = ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]
Make = Callable[..., tuple[nn.Module, ModelProbe]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Build a tiny model as in training, with fused layers and dropout, and its probe."""
    folder = str(make_model(tmp_path_factory.mktemp("qwen2"), "qwen2", layers=2))
    tokenizer = loading.load_tokenizer(folder)
    examples = encode_all(tokenizer, training_sets.load(specs.parse(ROWS), 0).rows, 512).examples

    def build(**fields: Any) -> tuple[nn.Module, ModelProbe]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            placement = {"modules": ["attention", "mlp"], "rank": 2, "dropout": 0.3} if "kind" not in fields else fields
            model = adapt(loading.load_model(folder), Placement.model_validate(placement), "ref")
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(p, std=0.1)
        weights = TrainedParameters.of(model, own_masters=True)
        return model, ModelProbe(choose_objective(model, examples, sharded=False)[0].train(), weights, tokenizer, 512)

    return build


@torch.no_grad()
def inputs_of(model: nn.Module, probe: ModelProbe, name: str, replies_only: bool) -> Tensor:
    """Return the inputs of a module for all tokens of all rows, by transformers alone: (tokens, in)."""
    seen: list[Tensor] = []
    inner = unwrap(model).eval()
    handle = inner.get_submodule(name).register_forward_pre_hook(lambda _, entered: seen.append(entered[0][0]))
    for e in probe.examples(ROWS):
        inner(input_ids=torch.tensor([e.prompt + e.completion]))
        seen[-1] = seen[-1][len(e.prompt) :] if replies_only else seen[-1]
    handle.remove()
    model.train()
    return torch.cat(seen).double()


@pytest.mark.parametrize("fields", [{}, {"kind": "full"}], ids=["lora", "full"])
def test_variances_are_those_of_all_tokens(make: Make, fields: dict[str, str]):
    model, probe = make(**fields)
    actual = probe.variances(ROWS, NAMES)
    for name in NAMES:
        torch.testing.assert_close(actual[name], inputs_of(model, probe, name, False).var(0), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("room", [2 << 30, 1])
def test_directions_are_the_left_singular_vectors_of_the_outputs(
    make: Make, room: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lowtax.training.probe.TABLE_BYTES", room)  # small: groups of one module
    model, probe = make()
    actual = probe.directions(ROWS, NAMES, 3)
    for name in NAMES:  # with more outputs than inputs, and with fewer
        W = probe.linear(name).weight.detach().double()
        U, S, _ = torch.linalg.svd(W @ inputs_of(model, probe, name, True).T, full_matrices=False)
        assert S[2] > 1.05 * S[3]
        torch.testing.assert_close(actual[name] @ actual[name].T, (U[:, :3] @ U[:, :3].T).float(), rtol=0, atol=1e-4)
        torch.testing.assert_close(actual[name][:, :1].abs(), U[:, :1].abs().float(), rtol=0, atol=1e-4)
        assert probe.directions(ROWS, [name], 999)[name].shape[1] <= min(W.shape)


def test_answers_are_the_same_twice_and_leave_nothing_behind(make: Make):
    model, probe = make()
    sites = sites_of(model)
    before = torch.get_rng_state()
    answers = [(probe.variances(ROWS, NAMES), probe.directions(ROWS, NAMES, 3)) for _ in range(2)]
    gradients = [probe.gradients(ROWS, sites) for _ in range(2)]
    for one, two in zip(*answers, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in NAMES)
    assert all(torch.equal(a, b) for name in sites for a, b in zip(*(g[name] for g in gradients), strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert probe.objective.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("fields", [{}, {"kind": "full"}], ids=["lora", "full"])
def test_gradients_are_those_of_the_mean_loss_of_the_replies(make: Make, fields: dict[str, str]):
    model, probe = make(**fields)
    attached = attach(load_all([{"name": "spf"}]), model, TrainedParameters.of(model, own_masters=True))
    sites = {name: site for name, site in attached.parts[0][1].items() if name in NAMES}
    actual = probe.gradients(ROWS, sites)
    model.eval()
    examples = probe.examples(ROWS)
    for e in examples:
        ids = torch.tensor([e.prompt + e.completion])
        labels = torch.tensor([[-100] * len(e.prompt) + e.completion])
        loss = unwrap(model)(input_ids=ids, labels=labels).loss * len(e.completion)
        (loss / sum(len(e.completion) for e in examples)).backward()
    for name, site in sites.items():
        expected = [site.a.grad, site.b.grad] if site.rank else [probe.linear(name).weight.grad]
        assert len(actual[name]) == len(expected)
        for mine, theirs in zip(actual[name], expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_weights_of_another_checkpoint(make: Make, tmp_path: Path):
    _, probe = make()
    other = probe.weights(str(make_model(tmp_path, "qwen2", layers=2, seed=1)))
    assert other[NAMES[0]].shape == probe.linear(NAMES[0]).weight.shape
    assert not torch.equal(other[NAMES[0]].float(), probe.linear(NAMES[0]).weight)


def test_what_is_refused(make: Make):
    _, probe = make()
    with pytest.raises(UserError, match=r"no linear layer model\.norm"):
        probe.variances(ROWS, ["model.norm"])
    with pytest.raises(UserError, match="remove answers=self"):
        load_all([{"name": "salora", "safety": "builtin:harmful,answers=self"}])
    with pytest.raises(UserError, match="unknown key 'm'"):
        load_all([{"name": "spf", "safety": "builtin:refusals,m=1"}])
    with pytest.raises(UserError, match="holds requests without answers"):
        probe.examples("builtin:harmful")
    full, _ = make(kind="full")
    trained = TrainedParameters.of(full, own_masters=True)
    for name in ("salora", "orthogonal"):
        spec = {"name": name} | ({"beta": 1} if name == "orthogonal" else {})
        with pytest.raises(UserError, match="use LoRA"):
            attach(load_all([spec]), full, trained)
    with pytest.raises(UserError, match="'down_porj' matches no linear layer"):
        attach(load_all([{"name": "ssah", "only": ["down_porj"]}]), full, trained)


def test_whole_weights_as_sites(make: Make):
    model, _ = make(kind="full")
    model.bfloat16()
    trained = TrainedParameters.of(model, own_masters=True)
    ((_, sites),), ((_, some),) = (
        attach(load_all([{"name": "ssah", **only}]), model, trained).parts
        for only in ({}, {"only": ["layers.1.self_attn.v_proj", "up_proj"]})
    )
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    biases = [f"model.layers.{i}.self_attn.{n}_proj.bias" for i in (0, 1) for n in "qkv"]
    assert sorted(sites) == sorted([*linear, *biases])
    assert all(site.rank == 0 and site.weight.dtype == torch.float32 for site in sites.values())
    assert all(any(site.weight is master for master in trained.master) for site in sites.values())
    v = "model.layers.1.self_attn.v_proj"
    assert sorted(some) == sorted([v, f"{v}.bias", *(f"model.layers.{i}.mlp.up_proj" for i in (0, 1))])


def test_a_method_that_sees_everything_has_each_parameter_once(make: Make):
    model, _ = make(kind="full")
    trained = TrainedParameters.of(model, own_masters=True)
    spec = {"name": "ssah", "freeze": "all but redundant"}
    ((_, sites),) = attach(load_all([spec]), model, trained).parts
    assert {id(site.weight) for site in sites.values()} == {id(master) for master in trained.master}
    assert len(sites) == len(trained.master)
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head", "model.layers.0.mlp.up_proj"} <= sites.keys()
    ((_, some),) = attach(load_all([spec | {"only": ["up_proj"]}]), model, trained).parts
    assert sorted(some) == [f"model.layers.{i}.mlp.up_proj" for i in (0, 1)]


PAGE = (ROOT / "docs/guides/training-methods.md").read_text()


@pytest.mark.parametrize("kind", [SaLoRA, SPF, SSAH])
def test_the_tables_of_fields_in_the_docs(kind: type[Method]):
    section = PAGE.split(f"## {kind.__name__.lower()}\n")[1].split("\n## ")[0]
    rows = [line.split(" | ")[:2] for line in section.splitlines() if line.startswith("| `")]
    assert [(name.strip("|` "), default.strip("`")) for name, default in rows] == [
        (name, str(field.default).lower()) for name, field in kind.model_fields.items()
    ]


def test_the_recipe_of_the_docs():
    (text,) = blocks("guides/training-methods.md", "yaml")
    arms = recipe.build(yaml.safe_load(text), [], "the page").arms
    kinds = [type(entry.method) for arm in arms.values() for entry in load_all(arm.acts()).configured]
    assert kinds == [SaLoRA, SPF, SSAH]
