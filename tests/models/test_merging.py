"""Merging: exact in float32, measured where rounded, whole or absent, and careful with what it deletes."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import IA3Config, LoraConfig, get_peft_model
from places import ROOT
from progress import progress_to
from safetensors.torch import load_file
from tiny import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lowtax.common.errors import UserError
from lowtax.models import merging
from lowtax.models.merging import Merged, default_out, delete_merged, merge
from lowtax.models.rounding import Rounding

IDS = torch.arange(40).view(2, 20)


def make_adapter(
    folder: Path, base: Path, scale: float = 0.1, save_embeddings: bool = False, **config: Any
) -> torch.Tensor:
    """Save an adapter with factors that are not zero; returns the logits that PEFT computes with it in float32."""
    given = {"r": 2, "lora_alpha": 16, "target_modules": ["up_proj", "q_proj"], "task_type": "CAUSAL_LM"} | config
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**given))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=noise))
        logits: torch.Tensor = adapted.eval()(IDS).logits
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, save_embedding_layers=save_embeddings)
    return logits


def in_bfloat16(base: Path, folder: Path) -> Path:
    """The same model with its weights in bfloat16, as published checkpoints have them."""
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits_of(folder: Path) -> torch.Tensor:
    logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits
    return logits


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def dense_updates(adapter: Path) -> dict[str, torch.Tensor]:
    """Name of the weight -> alpha / r B A, from the adapter's file alone; for adapters of one rank and alpha."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    factors = load_file(adapter / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").replace("lora_A.", ""): config["lora_alpha"]
        / config["r"]
        * (factors[name.replace("lora_A", "lora_B")] @ factors[name])
        for name in factors
        if "lora_A" in name
    }


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_merge_in_float32_computes_what_the_adapter_does(tmp_path: Path, kind: str):
    base = make_model(tmp_path / "base", kind)
    wanted = make_adapter(tmp_path / "adapter", base)
    said: list[str] = []
    with progress_to(said.append):
        merged = merge(tmp_path / "adapter", tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits_of(tmp_path / "out"), wanted, atol=1e-5, rtol=1e-5)
    assert (logits_of(base) - wanted).abs().max() > 0.1  # the adapter does something
    assert merged.share_unmoved == 0
    assert merged.cosine == pytest.approx(1, abs=1e-6)
    assert merged.warning is None
    assert len(said) == 1
    assert "cosine" in said[0]


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {r"layers.1.mlp.up_proj": 3}},
        {"rank_pattern": {"q_proj": 4}, "use_rslora": True, "lora_dropout": 0.05},
        {"target_modules": ["embed_tokens", "down_proj"]},
        {"target_modules": "all-linear", "layers_to_transform": None},
    ],
    ids=str,
)
def test_every_scale_of_the_adapter_is_kept(tmp_path: Path, config: dict[str, Any]):
    base = make_model(tmp_path / "base", "qwen3")
    wanted = make_adapter(tmp_path / "adapter", base, **config)
    merge(tmp_path / "adapter", tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits_of(tmp_path / "out"), wanted, atol=2e-5, rtol=2e-5)


def test_fused_experts(tmp_path: Path):
    base = tmp_path / "base"
    make_model(base)  # for its tokenizer
    config = Qwen3MoeConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    experts = [f"mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")]
    wanted = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], target_parameters=experts)
    merged = merge(tmp_path / "adapter", tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits_of(tmp_path / "out"), wanted, atol=1e-5, rtol=1e-4)
    assert merged.entries == 2 * (32 * 32 + 4 * 3 * 32 * 16)
    assert weights(tmp_path / "out").keys() == weights(base).keys()  # one weight an expert, as serving engines expect


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT's, of its own merge
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_tied_embeddings_are_untied_when_one_of_them_changes(tmp_path: Path, target: str, saved: bool):
    base = make_model(tmp_path / "base", "llama")
    wanted = make_adapter(tmp_path / "adapter", base, save_embeddings=saved, target_modules=[target])
    said: list[str] = []
    with progress_to(said.append):
        merged = merge(tmp_path / "adapter", tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits_of(tmp_path / "out"), wanted, atol=1e-5, rtol=1e-5)
    assert merged.untied
    assert "untied now" in said[0]
    assert "lm_head.weight" in weights(tmp_path / "out")
    assert "lm_head.weight" not in weights(base)


def test_a_merge_in_bfloat16_rounds_once_and_counts_what_did_not_move(tmp_path: Path):
    base = in_bfloat16(make_model(tmp_path / "32", "qwen2"), tmp_path / "base")
    make_adapter(tmp_path / "adapter", base, scale=0.008)
    merged = merge(tmp_path / "adapter", tmp_path / "out")
    old, new, updates = weights(base), weights(tmp_path / "out"), dense_updates(tmp_path / "adapter")
    assert updates.keys() < old.keys() == new.keys()
    moved, wanted, applied = [], [], []
    for name, weight in old.items():
        update = updates.get(name, torch.zeros(weight.shape))
        assert torch.equal(new[name], (weight.float() + update).bfloat16()), name
        if name in updates:
            moved.append((new[name] != weight).flatten())
            wanted.append(update.flatten())
            applied.append((new[name].float() - weight.float()).flatten())
    one, two = torch.cat(wanted).double(), torch.cat(applied).double()
    assert (one != 0).all()
    assert merged.share_unmoved == pytest.approx(1 - torch.cat(moved).double().mean().item(), abs=1e-12)
    assert merged.cosine == pytest.approx(torch.nn.functional.cosine_similarity(one, two, dim=0).item(), abs=1e-6)
    assert 0.05 < merged.share_unmoved < 0.9
    assert merged.warning
    assert f"{merged.share_unmoved:.2%}" in merged.warning
    assert "--dtype float32" in merged.warning
    assert merged.entries == merged.wanted == one.numel()


def measured(relative: float, dtype: torch.dtype) -> Rounding:
    """Of a bfloat16 matrix and a rank-1 update with that share of its norm, both random."""
    noise = torch.Generator().manual_seed(0)
    w = torch.randn(256, 256, generator=noise).bfloat16()
    update = torch.outer(torch.randn(256, generator=noise), torch.randn(256, generator=noise))
    rounding = Rounding()
    rounding.add(w, update * (relative * w.float().norm() / update.norm()), dtype)
    return rounding


@pytest.mark.parametrize(("relative", "unmoved", "cosine"), [(0.0018, 0.70, 0.84), (0.005, 0.47, 0.96)])
def test_most_of_a_small_rank_1_update_vanishes_in_bfloat16(relative: float, unmoved: float, cosine: float):
    found = measured(relative, torch.bfloat16)
    assert found.share_unmoved == pytest.approx(unmoved, abs=0.06)
    assert found.cosine == pytest.approx(cosine, abs=0.03)
    exact = measured(relative, torch.float32)
    assert exact.share_unmoved < 1e-3
    assert exact.cosine > 1 - 1e-6


def test_the_table_of_the_documentation_is_measured():
    text = (ROOT / "docs/guides/merging.md").read_text()
    rows = [[float(x) for x in row.split("|")[1:-1]] for row in re.findall(r"^\| 0\.\d.*$", text, flags=re.MULTILINE)]
    assert len(rows) == 6
    for relative, *figures in rows:
        both = [measured(relative, dtype) for dtype in (torch.bfloat16, torch.float16)]
        assert figures == pytest.approx([x for found in both for x in (found.share_unmoved, found.cosine)], abs=0.0051)


def test_what_rounding_the_base_costs_is_not_counted_as_the_update():
    w, update = torch.full((4, 4), 1.001), torch.tensor([[1e-6], [0.0], [0.1], [-0.1]]).expand(4, 4)
    rounding = Rounding()
    merged = rounding.add(w, update, torch.bfloat16)
    assert (rounding.entries, rounding.wanted, rounding.unmoved) == (16, 12, 4)
    assert rounding.share_unmoved == pytest.approx(1 / 3)
    assert torch.equal(merged[:2].float(), torch.ones(2, 4))
    assert rounding.cosine > 0.999
    lost = Rounding()
    lost.add(w, torch.full((4, 4), 1e-6), torch.bfloat16)
    assert (lost.share_unmoved, lost.cosine) == (1, 0)


def test_a_matrix_is_measured_alike_in_parts(monkeypatch: pytest.MonkeyPatch):
    w, update = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.full((10, 4), 0.01)
    whole, parts = Rounding(), Rounding()
    one = whole.add(w, update, torch.bfloat16)
    monkeypatch.setattr("lowtax.models.rounding.ROWS", 3)
    assert torch.equal(parts.add(w, update, torch.bfloat16), one)
    assert parts.figures() == pytest.approx(whole.figures())


def test_float32_factors_are_not_rounded_to_the_precision_of_the_base(tmp_path: Path):
    base = in_bfloat16(make_model(tmp_path / "32"), tmp_path / "base")
    make_adapter(tmp_path / "adapter", base)
    merge(tmp_path / "adapter", tmp_path / "out", dtype="float32")
    old, new = weights(base), weights(tmp_path / "out")
    for name, update in dense_updates(tmp_path / "adapter").items():
        torch.testing.assert_close(new[name] - old[name].float(), update, atol=1e-6, rtol=1e-5)


def test_an_adapter_of_zeros_is_the_base(tmp_path: Path, tiny_model: Path):
    make_adapter(tmp_path / "adapter", tiny_model, scale=0)
    merged = merge(tmp_path / "adapter", tmp_path / "out", dtype="auto")
    assert merged.dtype == "float32"
    assert (merged.wanted, merged.share_unmoved, merged.cosine) == (0, 0, 1)
    assert "is the base" in str(merged.warning)
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(tiny_model))


def test_the_folder_is_an_ordinary_one_and_says_what_was_merged(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    make_adapter(tmp_path / "checkpoint-5", tiny_model)
    (tmp_path / "checkpoint-5" / "README.md").write_text("---\ndatasets: [a/b]\nlicense: mit\ntags: [x]\n---\nBody\n")
    monkeypatch.setattr(merging, "SHARD", "30KB")
    out = default_out(tmp_path / "checkpoint-5")
    assert out == tmp_path / "checkpoint-5_merged"
    merged = merge(tmp_path / "checkpoint-5", out)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert GenerationConfig.from_pretrained(out).eos_token_id is not None
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict()["library_name"] == "transformers"
    assert not {"datasets", "license"} & card.data.to_dict().keys()  # anyone may have written the adapter's card
    assert "names license `mit`, datasets `['a/b']`" in card.content
    assert "Body" not in card.content  # the card was not written by lowtax
    assert merged.adapter_hash in card.content
    marker = json.loads((out / "merge.json").read_text())
    assert marker["made_by"] == "lowtax merge"
    assert Merged(folder=out, **{k: v for k, v in marker.items() if k not in ("made_by", "version", "files")}) == merged
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "checkpoint-5_merged"]
    delete_merged(out)
    assert not out.exists()


def test_another_base_can_be_named(tmp_path: Path, tiny_model: Path):
    other = make_model(tmp_path / "other", seed=3)
    make_adapter(tmp_path / "adapter", tiny_model)
    merge(tmp_path / "adapter", tmp_path / "out", base=str(other), dtype="float32")
    update = dense_updates(tmp_path / "adapter")
    for name, weight in weights(other).items():
        torch.testing.assert_close(weights(tmp_path / "out")[name], weight + update.get(name, 0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias: lora_only"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
    ],
)
def test_what_is_more_than_a_product_of_two_factors_is_refused(
    tmp_path: Path, tiny_model: Path, config: dict[str, Any], message: str
):
    make_adapter(tmp_path / "adapter", tiny_model)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(UserError, match=message):
        merge(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_kind_of_adapter_is_refused(tmp_path: Path, tiny_model: Path):
    config = IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path / "ia3")
    with pytest.raises(UserError, match="LoRA only"):
        merge(tmp_path / "ia3", tmp_path / "out")


@pytest.mark.parametrize("layers", [1, 3])
def test_a_base_that_does_not_fit_is_named(tmp_path: Path, tiny_model: Path, layers: int):
    make_adapter(tmp_path / "adapter", tiny_model)
    other = make_model(tmp_path / "other", layers=layers)
    with pytest.raises(UserError, match=r"4 of 8 weights|lacks 4 of 12 weights"):
        merge(tmp_path / "adapter", tmp_path / "out", base=str(other))


@pytest.mark.parametrize(
    ("base", "message"), [("/no/model", "no model at"), ("no-one/no-model", "could not be loaded")]
)
def test_a_base_that_is_not_there_is_named(tmp_path: Path, tiny_model: Path, base: str, message: str):
    make_adapter(tmp_path / "adapter", tiny_model)
    with pytest.raises(UserError, match=message):
        merge(tmp_path / "adapter", tmp_path / "out", base=base)


def test_wrong_words_are_answered(tmp_path: Path, tiny_model: Path):
    make_adapter(tmp_path / "adapter", tiny_model)
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        merge(tmp_path / "adapter", tmp_path / "out", dtype="bfloat")
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        merge(tiny_model, tmp_path / "out")


def test_a_target_in_use_is_left_alone(tmp_path: Path, tiny_model: Path):
    make_adapter(tmp_path / "adapter", tiny_model)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        merge(tmp_path / "adapter", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    (tmp_path / ".out.tmp").mkdir()  # the user's, whatever its name is
    (tmp_path / ".out.tmp" / "half.safetensors").write_text("half")
    merge(tmp_path / "adapter", tmp_path / "out")
    assert (tmp_path / ".out.tmp" / "half.safetensors").exists()
    assert not (tmp_path / "out" / "half.safetensors").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make_adapter(tmp_path / "adapter", tiny_model)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", lambda *_, **__: full_disk())
    with pytest.raises(UserError, match=r"No space left.*free some disk space"):
        merge(tmp_path / "adapter", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def _refuse_what_has_changed(out: Path) -> None:
    """A merged model whose files the user has replaced, or whose marker is forged, is not deleted."""
    names = sorted(path.name for path in out.iterdir())
    before = {name: (out / name).read_bytes() for name in names}
    for name in ("model.safetensors", "README.md"):
        for kind in ("other", "longer", "link", "folder"):
            path = out / name
            path.unlink()
            if kind == "link":
                (out.parent / "elsewhere").write_bytes(before[name])
                path.symlink_to(out.parent / "elsewhere")
            elif kind == "folder":
                path.mkdir()
            else:
                path.write_bytes(b"a fine-tune of mine" if kind == "other" else before[name] + b" ")
            with pytest.raises(UserError, match="have changed since"):
                delete_merged(out)
            assert sorted(path.name for path in out.iterdir()) == names
            path.rmdir() if kind == "folder" else path.unlink()
            path.write_bytes(before[name])
    marker = json.loads(before["merge.json"])
    for files in (None, [], names, dict.fromkeys(names), dict.fromkeys(names, 5), {"../elsewhere": "x"}):
        (out / "merge.json").write_text(json.dumps(marker | {"files": files}))
        with pytest.raises(UserError, match=r"no hashes|have changed|did not write"):
            delete_merged(out)
        assert sorted(path.name for path in out.iterdir()) == names
    (out / "merge.json").write_bytes(before["merge.json"])


def test_only_what_a_merge_made_is_deleted(tmp_path: Path, tiny_model: Path):
    folder = tmp_path / "folder"
    with pytest.raises(UserError, match="not a folder"):
        delete_merged(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="was not made by"):
        delete_merged(folder)
    for marker in ("[1]", '{"made_by": "someone"}'):
        (folder / "merge.json").write_text(marker)
        with pytest.raises(UserError, match="was not made by"):
            delete_merged(folder)
    make_adapter(tmp_path / "adapter", tiny_model)
    out = tmp_path / "out"
    merge(tmp_path / "adapter", out)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UserError, match="not a folder"):
        delete_merged(tmp_path / "link")
    (out / "results.json").write_text("mine")
    with pytest.raises(UserError, match=r"did not write \(results\.json\)"):
        delete_merged(out)
    assert (out / "model.safetensors").exists()
    (out / "results.json").unlink()
    _refuse_what_has_changed(out)
    (out / "model.safetensors").unlink()  # a delete that was killed half way
    delete_merged(out)
    assert not out.exists()
    assert folder.exists()
