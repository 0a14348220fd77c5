"""A site shows PEFT's layer as two matrices: the same update, live parameters, names of the base model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora.layer import Linear
from tiny import make_model
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from lowtax.common.errors import UserError
from lowtax.methods.sites import Site, sites_of
from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import Placement

IDS = torch.arange(2, 14)[None]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., nn.Module]:
    """Return a function that places LoRA in a three-layer Qwen2, with B nonzero."""
    folder = str(make_model(tmp_path_factory.mktemp("qwen2"), "qwen2", layers=3))

    def make(**fields: object) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = adapt(loading.load_model(folder), Placement(**fields), "ref")
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(p, std=0.1)
        return model

    return make


def random_site(out: int, inp: int, rank: int, scale: float, seed: int) -> Site:
    g = torch.Generator().manual_seed(seed)
    W, A, B = (torch.randn(shape, generator=g) for shape in ((out, inp), (rank, inp), (out, rank)))
    return Site("layer", W, A.requires_grad_(), B.requires_grad_(), scale)


@settings(deadline=None, max_examples=30)
@given(
    out=st.integers(1, 9), inp=st.integers(1, 9), rank=st.integers(1, 5), k=st.integers(1, 4), seed=st.integers(0, 9)
)
def test_products_are_those_of_the_dense_update(out: int, inp: int, rank: int, k: int, seed: int):
    site = random_site(out, inp, rank, scale=4.0, seed=seed)
    dense = 4.0 * site.b @ site.a
    g = torch.Generator().manual_seed(seed + 1)
    L, R = torch.randn(k, out, generator=g), torch.randn(inp, k, generator=g)
    close = {"atol": 1e-3, "rtol": 1e-4}
    torch.testing.assert_close(site.delta(), dense, **close)
    torch.testing.assert_close(site.left(L), L @ dense, **close)
    torch.testing.assert_close(site.right(R), dense @ R, **close)
    torch.testing.assert_close(site.sq_norm(), dense.square().sum(), **close)
    assert site.rank == rank


def test_shapes_are_those_of_the_annotations():
    beartype = pytest.importorskip("beartype", reason="beartype is not installed")
    from jaxtyping import TypeCheckError, jaxtyped

    site, check = random_site(7, 5, 2, 1.0, 0), jaxtyped(typechecker=beartype.beartype)
    check(Site.left)(site, torch.ones(3, 7))
    check(Site.right)(site, torch.ones(5, 3))
    check(Site.delta)(site)
    check(Site.sq_norm)(site)
    with pytest.raises(TypeCheckError):
        check(Site.left)(site, torch.ones(7))


@pytest.mark.parametrize("fields", [{"rank": 2}, {"rank": 4, "alpha": 6, "rslora": True}, {"alpha_per_rank": 3}])
def test_the_update_is_pefts(fields: dict[str, object], adapted):
    model = adapted(modules=["up_proj", "q_proj"], layers=(1, 2), **fields)
    sites = sites_of(model)
    assert list(sites) == [f"model.layers.{i}.{m}" for i in (1, 2) for m in ("self_attn.q_proj", "mlp.up_proj")]
    for name, site in sites.items():
        layer = model.get_submodule(f"base_model.model.{name}")
        assert isinstance(layer, Linear)
        torch.testing.assert_close(site.delta(), layer.get_delta_weight("default"))
        assert site.weight is layer.base_layer.weight
        assert site.name == name


def test_parameters_are_the_live_ones_and_the_weight_is_frozen(adapted):
    model = adapted(modules="up_proj", layers=(1, 1))
    (site,) = sites_of(model).values()
    assert {id(site.a), id(site.b)} == {id(p) for p in model.parameters() if p.requires_grad}
    assert not site.weight.requires_grad
    assert site.grads() is None
    model(input_ids=IDS, labels=IDS).loss.backward()
    site.grads()[0].zero_()
    assert site.a.grad.abs().sum() == 0 < site.b.grad.abs().sum()
    before = site.delta().detach()
    torch.optim.SGD([site.a, site.b], lr=1.0).step()
    assert not torch.equal(site.delta(), before)


def test_only_some_by_the_same_rules_as_everywhere(adapted):
    model = adapted(layers=(0, 1))
    every = list(sites_of(model))
    assert len(every) == 6
    assert list(sites_of(model, ["down_proj"])) == [n for n in every if n.endswith("down_proj")]
    assert list(sites_of(model, ["mlp"])) == every
    assert list(sites_of(model, ["layers.1.mlp.up_proj", "gate_proj"])) == [every[0], every[3], every[4]]
    with pytest.raises(UserError, match=r"'down_prj' matches no module with LoRA; did you mean 'down_proj'"):
        sites_of(model, ["up_proj", "down_prj"])


def test_names_do_not_change_inside_a_wrapper(adapted):
    model = adapted(modules="up_proj")
    wrapped = nn.ModuleDict({"module": model})
    assert list(sites_of(wrapped)) == list(sites_of(model))


def test_no_sites_without_lora_on_linear_layers(adapted, tmp_path: Path):
    with pytest.raises(UserError, match="remove it, or use LoRA"):
        sites_of(adapted(kind="full"))
    embedding = adapted(modules=["up_proj", "embed_tokens"])
    with pytest.raises(UserError, match=r"model\.embed_tokens is not linear"):
        sites_of(embedding)
    assert len(sites_of(embedding, ["up_proj"])) == 3
    shape = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_local_experts": 2}
    experts = MixtralForCausalLM(MixtralConfig(**shape, num_attention_heads=4, num_key_value_heads=2, vocab_size=300))
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.experts is not linear"):
        sites_of(adapt(experts, Placement(parameters="mlp.experts.down_proj", dropout=0), "ref"))
