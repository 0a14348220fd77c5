"""Matrices read one at a time are those of the whole model, from one file, from shards, tied or not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model
from transformers import AutoModelForCausalLM

from lowtax.common.errors import UserError
from lowtax.models import embedded, loading
from lowtax.models.weights import open_weights


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    """Of the loaded model, under their own names."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name.removesuffix(".weight"): p.detach() for name, p in model.named_parameters() if p.ndim == 2}


def resaved(folder: Path, target: Path, dtype: torch.dtype, shard: str = "5GB") -> Path:
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(target, max_shard_size=shard)
    return target


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_the_matrices_of_the_model(tmp_path: Path, kind: str, shard: str):
    folder = resaved(make_model(tmp_path / "whole", kind), tmp_path / "base", torch.float32, shard)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard == "20KB")
    found, wanted = open_weights(str(folder)), matrices(folder)
    assert set(found) == set(found.names()) == set(wanted)
    assert len(found) == len(wanted)
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name
        assert found.shape(name) == tuple(weight.shape)
        assert found.dtype(name) == "float32"
    assert "model.norm" not in found


def test_half_precision_is_read_as_float32(tmp_path: Path, tiny_model: Path):
    folder = resaved(tiny_model, tmp_path / "half", torch.bfloat16)
    found, name = open_weights(str(folder)), "model.layers.1.mlp.up_proj"
    assert found.dtype(name) == "bfloat16"
    assert found[name].dtype == torch.float32
    assert torch.equal(found[name], matrices(tiny_model)[name].bfloat16().float())


def test_a_tied_head_is_the_embedding(tmp_path: Path, tiny_model: Path):
    found = open_weights(str(tiny_model))
    assert "lm_head" not in found.names()
    assert "lm_head" in found
    assert found.shape("lm_head") == (300, 32)
    assert torch.equal(found["lm_head"], found["model.embed_tokens"])
    assert "lm_head" in open_weights(str(make_model(tmp_path, "qwen3"))).names()


def test_what_a_user_does_to_a_matrix_stays_with_the_user(tiny_model: Path):
    found, name = open_weights(str(tiny_model)), "model.layers.0.mlp.down_proj"
    kept = (tiny_model / "model.safetensors").read_bytes()
    found[name].add_(1)
    assert torch.equal(found[name], matrices(tiny_model)[name])
    assert (tiny_model / "model.safetensors").read_bytes() == kept


def test_only_what_is_asked_for_is_read(tmp_path: Path):
    folder = resaved(make_model(tmp_path / "whole"), tmp_path / "base", torch.float32, "20KB")
    listed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    one, other = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
    assert listed[f"{one}.weight"] != listed[f"{other}.weight"]
    found = open_weights(str(folder))
    (folder / listed[f"{other}.weight"]).unlink()
    assert found[one].shape == (32, 32)
    with pytest.raises(UserError, match=r"lacks .*: download it again"):
        open_weights(str(folder))


def test_a_gguf_file_is_dequantised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path):
    """The reading of GGUF itself is that of transformers, which makes the embedded model in the tests of `builtin`."""
    whole = AutoModelForCausalLM.from_pretrained(tiny_model)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(loading, "load_model", lambda ref, dtype, on: whole)
    found, wanted = open_weights(str(file)), matrices(tiny_model)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
    assert torch.equal(found["lm_head"], wanted["model.embed_tokens"])


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, tiny_model: Path):
    with pytest.raises(UserError, match=r"stores no matrix 'model.layers.0.mlp.upproj'; did you mean .*up_proj"):
        open_weights(str(tiny_model))["model.layers.0.mlp.upproj"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither model.safetensors nor"):
        open_weights(str(tmp_path / "empty"))
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"is not a safetensors file"):
        open_weights(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"could not be found"):
        open_weights("nobody/no-such-model-at-all")


def test_quantised_weights_are_refused(tmp_path: Path, tiny_model: Path):
    tensors = load_file(tiny_model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"is quantised \(model.layers.0.mlp.up_proj is float8_e4m3fn\)"):
        open_weights(str(tmp_path))[name]


def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch):
    found = open_weights("builtin:smollm2-135m")
    assert len(found) == 211
    name = "model.layers.3.mlp.up_proj"
    stored = load_file(embedded.folder("smollm2-135m") / "model.safetensors")[f"{name}.weight"]
    assert torch.equal(found[name], stored)
