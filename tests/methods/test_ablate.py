"""Edits that attack an adapter: `subtract` and `ablate`."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import make_model, save_adapter

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.data import chat, prompt_sets, special_tokens
from lowtax.methods import running
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


# --- the search for a layer

DEEP = 6  # layers; a search tries 2, 3 and 4, from 0.2 to 0.8 of them


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("deep"), "qwen3", layers=DEEP)


@pytest.fixture(scope="module")
def deep_adapter(deep: Path) -> Path:
    return Path(save_adapter(deep / "adapter", deep, 2, ["up_proj", "down_proj"], 1))


SEARCH = {"name": "ablate", "n": 4, "layer": "search", "held_out": 3, "harm": 1e3}


def answers(model: torch.nn.Module, ref: Path, source: str) -> list[torch.Tensor]:
    """Log-probabilities of the first token of an answer, after the prompts of the validation split."""
    tokenizer = loading.load_tokenizer(str(ref))
    rows = []
    for prompt in prompt_sets.load(source, split="validation", n=3, seed=0).prompts:
        text = chat.generation_prompt(tokenizer, [{"role": "user", "content": prompt.text}]) + "\n</think>\n\n"
        assert text.endswith("<think>\n\n</think>\n\n")
        with torch.no_grad():
            ids = torch.tensor([special_tokens.encode(tokenizer, text)])
            rows.append(model(ids).logits[0, -1].double().log_softmax(-1))
    return rows


def log_odds(rows: list[torch.Tensor], ref: Path) -> float:
    """The mean of log p / (1 - p) of an answer that begins with I, A, S or U: tokens are bytes."""
    p = torch.stack([row.exp()[loading.load_tokenizer(str(ref))("IASU")["input_ids"]].sum() for row in rows])
    return float((p / (1 - p)).log().mean())


def test_a_search_measures_what_the_edits_would_do(deep, deep_adapter, tmp_path):
    """Each figure is that of the adapter which naming the layer gives; the best harmless layer is taken."""
    card = edit(SEARCH, deep_adapter, tmp_path / "search", base=str(deep)).card
    search = card["search"]
    assert [one["layer"] for one in search["candidates"]] == [2, 3, 4]
    assert search["depth"] == DEEP
    before = PeftModel.from_pretrained(loading.load_model(str(deep)), str(deep_adapter)).eval()
    good, bad = (answers(before, deep, source) for source in ("builtin:ordinary", "builtin:harmful"))
    assert search["refusal_before"] == pytest.approx(log_odds(bad, deep), abs=1e-4)
    for one in search["candidates"]:
        share = one["layer"] / (DEEP - 1)
        named = {**ABLATE, "layer": share}
        edit(named, deep_adapter, tmp_path / str(one["layer"]), base=str(deep))
        model = PeftModel.from_pretrained(loading.load_model(str(deep)), str(tmp_path / str(one["layer"]))).eval()
        assert one["refusal"] == pytest.approx(log_odds(answers(model, deep, "builtin:harmful"), deep), abs=1e-3)
        pairs = zip(good, answers(model, deep, "builtin:ordinary"), strict=True)
        divergence = sum(float((old.exp() * (old - new)).sum()) for old, new in pairs) / 3
        assert one["harm"] == pytest.approx(divergence, rel=1e-3, abs=1e-5)
        assert one["harm"] > 1e-4
    best = min(search["candidates"], key=lambda one: one["refusal"])
    assert search["layer"] == best["layer"]
    same, other = (read_adapter(tmp_path / name).factors for name in ("search", str(best["layer"])))
    for name, x in other.items():
        torch.testing.assert_close(same[name].dense(), x.dense())
    assert json.loads((tmp_path / "search" / "card.json").read_text())["search"] == search
    limit = sorted(one["harm"] for one in search["candidates"])[0]
    least = edit({**SEARCH, "harm": limit * 1.0001}, deep_adapter, tmp_path / "least", base=str(deep)).card["search"]
    assert min(search["candidates"], key=lambda one: one["harm"])["layer"] == least["layer"]


def test_a_search_that_harms_everywhere_says_so(deep, deep_adapter, tmp_path):
    with pytest.raises(UserError, match=r"each of the 3 layers .* more than 1e-09 nats \(layer \d by .*raise harm, or"):
        edit({**SEARCH, "harm": 1e-9}, deep_adapter, tmp_path / "out", base=str(deep))
    with pytest.raises(UserError, match="have the same mean state after layer"):
        edit({**SEARCH, "ordinary": "builtin:harmful"}, deep_adapter, tmp_path / "out", base=str(deep))
    with pytest.raises(UserError, match="layer"):
        edit({**SEARCH, "layer": "serach"}, deep_adapter, tmp_path / "out", base=str(deep))


def test_prompts_of_a_search_did_not_give_the_direction(deep, tmp_path):
    rows = [{"prompt": f"Request number {number}."} for number in range(10)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = str(tmp_path / "own.jsonl")
    first = {prompt.id for prompt in prompt_sets.load(own, n=6, seed=0).prompts}
    more = running.held_out(own, 6, 32)
    assert len(more) == 4
    assert not {prompt.id for prompt in more} & first
    trained = {prompt.text for prompt in prompt_sets.load("builtin:harmful", split="train").prompts}
    assert not {prompt.text for prompt in running.held_out("builtin:harmful", 64, 32)} & trained
    with pytest.raises(UserError, match=r"All 10 prompts of .* give the directions"):
        running.held_out(own, 10, 4)
