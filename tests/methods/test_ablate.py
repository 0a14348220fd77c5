"""Edits that attack an adapter: `subtract` and `ablate`."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import make_model, save_adapter

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.methods.base import Probe
from lowtax.methods.editing import EditProbe, OfflineProbe, edit
from lowtax.methods.running import writers
from lowtax.methods.sites import Site
from lowtax.methods.subtract import Subtract
from lowtax.models import loading
from lowtax.models.adapters import read_adapter
from lowtax.models.weights import open_weights

IDS = torch.tensor([[7, 3, 200, 4, 90, 12, 5]])


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return Path(save_adapter(base / "adapter", base, 3, ["up_proj", "down_proj"], 1))


def site(out: int = 9, inp: int = 7, rank: int = 4) -> Site:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(rank, inp, generator=generator), torch.randn(out, rank, generator=generator)
    return Site("0", torch.randn(out, inp, generator=generator), a, b, 0.5)


# --- subtract


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("share", [0.5, 1.0, 1.5])
def test_the_strongest_directions_shrink(k, share):
    """Against a decomposition of the dense update in float64."""
    one = site()
    D = one.factors().dense().double()
    U, S, Vh = torch.linalg.svd(D)
    S[:k] *= 1 - share
    new: Factors = Subtract(share=share, k=k).edit({"0": one}, None)["0"]
    torch.testing.assert_close(new.dense().double(), U[:, : len(S)] @ torch.diag(S) @ Vh, rtol=1e-5, atol=1e-5)
    assert new.rank == 4


@pytest.mark.parametrize("k", [0, 4, 9])
def test_all_directions_are_a_scaling(k):
    one = site()
    new = Subtract(share=0.25, k=k).edit({"0": one}, None)["0"]
    torch.testing.assert_close(new.dense(), 0.75 * one.factors().dense())


def test_subtracting_everything_gives_the_base(base, adapter, tmp_path):
    edit({"name": "subtract"}, adapter, tmp_path / "out", base=str(base))
    with torch.no_grad():
        plain = loading.load_model(str(base))(IDS).logits
        assert torch.equal(
            PeftModel.from_pretrained(loading.load_model(str(base)), tmp_path / "out")(IDS).logits, plain
        )


# --- ablate

ABLATE = {"name": "ablate", "n": 4}


def direction(base: Path, adapter: Path, layer: int) -> torch.Tensor:
    """The difference of means, from transformers' own hidden states in float64 sums."""
    from lowtax.data import chat, prompt_sets, special_tokens

    model = PeftModel.from_pretrained(loading.load_model(str(base)), str(adapter)).eval()
    tokenizer, means = loading.load_tokenizer(str(base)), []
    for source in ("builtin:harmful", "builtin:ordinary"):
        last = []
        for prompt in prompt_sets.load(source, split="train", n=4, seed=0).prompts:
            text = chat.generation_prompt(tokenizer, [{"role": "user", "content": prompt.text}])
            with torch.no_grad():
                ids = torch.tensor([special_tokens.encode(tokenizer, text)])
                last.append(model(ids, output_hidden_states=True).hidden_states[layer][0, -1].double())
        means.append(torch.stack(last).mean(0))
    r = means[0] - means[1]
    return r / r.norm()


def test_nothing_is_written_along_the_direction(base, adapter, tmp_path):
    result = edit(ABLATE, adapter, tmp_path / "out", base=str(base))
    r, weights = direction(base, adapter, 1), open_weights(str(base))
    before, after = read_adapter(adapter).factors, read_adapter(tmp_path / "out").factors
    written = writers(weights)
    assert {name.rpartition(".")[2] for name in written} == {"o_proj", "down_proj"}
    assert len(written) == 4
    for name in written:
        W = weights[name].double()
        old = W + before[name].dense().double() if name in before else W
        new = W + after[name].dense().double()
        assert float((r @ old).norm() / W.norm()) > 1e-2
        assert float((r @ new).norm() / W.norm()) < 1e-5
        torch.testing.assert_close(new, old - torch.outer(r, r @ old), rtol=1e-4, atol=1e-5)
    for name in before.keys() - set(written):
        torch.testing.assert_close(after[name].dense(), before[name].dense())
    assert {after[name].rank for name in written} == {1, 4}
    assert 0 < result.card["sites"][written[0]]["share"] < 1


def test_the_model_writes_nothing_along_the_direction(base, adapter, tmp_path):
    """The states after a layer differ from the embedding by what the layers write."""
    edit(ABLATE, adapter, tmp_path / "out", base=str(base))
    model = PeftModel.from_pretrained(loading.load_model(str(base)), str(tmp_path / "out"))
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
    r = direction(base, adapter, 1).float()
    assert float(((states[1] - states[0]) @ r).abs().max()) < 1e-5 * float(states[1].norm())


def test_two_equal_sets_have_no_direction(base, adapter, tmp_path):
    with pytest.raises(UserError, match="have the same mean state after layer 1"):
        edit({**ABLATE, "ordinary": "builtin:harmful"}, adapter, tmp_path / "out", base=str(base))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(UserError, match="no linear layers that are named o_proj, down_proj"):
        writers(["model.layers.0.mlp.up_proj", "lm_head"])


def test_the_probe_of_an_edit_reads_the_base(base, adapter):
    probe: Probe = EditProbe(open_weights(str(base)), adapter)
    assert probe.weight("model.layers.0.mlp.up_proj").shape == (64, 32)
    assert probe.mean_states("builtin:ordinary", 2).shape == (1, 32)
    for call in (lambda: OfflineProbe().mean_states("builtin:ordinary", 2), lambda: OfflineProbe().writers()):
        with pytest.raises(UserError, match=r"needs .* of a running model"):
            call()
