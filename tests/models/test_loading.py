"""Loading: damaged, incomplete, foreign and quantised checkpoints are one sentence; nothing is random or left out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from progress import collected
from safetensors.torch import load_file, save_file
from tiny import make_model

from lowtax.common.errors import UserError
from lowtax.models import loading
from lowtax.models.tensor_files import header
from lowtax.models.weights import open_weights

UP = "model.layers.1.mlp.up_proj.weight"
READERS = {"model": loading.load_model, "weights": open_weights}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", "qwen2")


def change(model: Path, change) -> None:
    weights = load_file(model / "model.safetensors")
    save_file(change(weights), model / "model.safetensors", {"format": "pt"})


def mark(model: Path, **fields: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (lambda data: b"", "is empty"),
        (lambda data: data[: len(data) // 2], "is cut"),
        (lambda data: data[:100], "is cut"),
        (lambda data: data[:5], "not a safetensors file"),
        (lambda data: data + b"more", "more bytes"),
        (lambda data: b"<html>404 Not Found</html>" * 9, "not a safetensors file"),
        (lambda data: (30).to_bytes(8, "little") + b"{" * 30, "not a safetensors file"),
    ],
    ids=["pointer", "empty", "half", "header", "bytes", "longer", "page", "json"],
)
def test_a_damaged_file_is_told_from_weights(model: Path, reader: str, content, sentence: str):
    file = model / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(UserError, match=sentence):
        READERS[reader](str(model))


def test_a_header_has_what_the_file_has(model: Path):
    weights = load_file(model / "model.safetensors")
    stored = header(model / "model.safetensors")
    assert {name: (entry.dtype, entry.shape) for name, entry in stored.items()} == {
        name: ("float32", tuple(tensor.shape)) for name, tensor in weights.items()
    }


def test_a_missing_shard_is_named(model: Path):
    whole = loading.load_model(str(model))
    whole.save_pretrained(model, max_shard_size="20KB")
    (model / "model.safetensors").unlink(missing_ok=True)
    loading.load_model(str(model))
    shard = sorted(model.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks {shard.name}"):
        loading.load_model(str(model))


def test_an_index_stays_in_its_folder(model: Path):
    index = {"weight_map": dict.fromkeys(header(model / "model.safetensors"), "../model/model.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside"):
        loading.load_model(str(model))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (lambda w: {k: v for k, v in w.items() if k != UP}, f"lacks 1 weights of Qwen2ForCausalLM, for example {UP}"),
        (lambda w: {f"x.{k}": v for k, v in w.items()}, "lacks"),
        (lambda w: {k: v for k, v in w.items() if "layers.1" not in k}, "lacks 12 weights"),
        (
            lambda w: w | {"model.layers.1.mlp.extra.weight": torch.ones(2, 2)},
            "1 weights that Qwen2ForCausalLM does not",
        ),
        (lambda w: w | {"model.layers.0.self_attn.o_proj.bias": torch.ones(32)}, "o_proj.bias"),
        (lambda w: w | {"v_head.weight": torch.ones(1, 32)}, "v_head"),
        (lambda w: w | {UP: torch.ones(3, 32)}, "could not be loaded"),
    ],
    ids=["matrix", "renamed", "layer", "extra", "bias", "head", "shape"],
)
def test_an_incomplete_or_foreign_checkpoint_is_refused(model: Path, changed, sentence: str):
    change(model, changed)
    with pytest.raises(UserError, match=sentence):
        loading.load_model(str(model))


def test_a_tied_head_may_be_absent_and_parts_beside_the_text_model_are_said(tmp_path: Path):
    tied = make_model(tmp_path / "tied", "llama")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    more = {"mtp.layers.0.up.weight": torch.ones(1), "model.layers.2.norm.weight": torch.ones(1)}
    change(tied, lambda w: w | more | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    with collected() as lines:
        loading.load_model(str(tied))
    assert [line for line in lines if "are not used" in line and "tensors beside the text model" in line]


@pytest.mark.parametrize("method", ["bitsandbytes", "compressed-tensors", "gptq", "awq", "unheard-of"])
def test_quantised_checkpoints_are_refused(model: Path, method: str):
    mark(model, quantization_config={"quant_method": method, "load_in_4bit": True})
    with pytest.raises(UserError, match=rf"quantised \({method}\)"):
        loading.load_model(str(model))


def test_pickled_weights_come_with_their_cure(model: Path):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="use_safetensors=False"):
        loading.load_model(str(model))


def test_a_folder_without_weights_or_with_an_adapter(model: Path):
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        loading.load_model(str(model))
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter, not a model"):
        loading.load_model(str(model))


def test_code_from_the_hub_is_not_run(model: Path):
    mark(model, model_type="my_own", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"})
    for name in ("c.py", "m.py"):
        (model / name).write_text("raise SystemExit('ran')")
    for load in (loading.load_model, loading.load_config):
        with pytest.raises(UserError, match="its own Python code"):
            load(str(model))


@pytest.mark.parametrize("value", ["many", -1, None, [2]])
def test_a_configuration_with_wrong_values(model: Path, value: object):
    mark(model, num_hidden_layers=value)
    with pytest.raises(UserError, match=r"could not be loaded|lacks|does not have"):
        loading.load_model(str(model))


def test_a_token_without_an_embedding(model: Path):
    loaded = loading.load_model(str(model))
    loading.require_tokens(299, loaded, "m")
    with pytest.raises(UserError, match="gives token 300, but the model has 300 embeddings"):
        loading.require_tokens(300, loaded, "m")


def test_references_with_a_revision(model: Path):
    assert loading.source("owner/name@abc") == ("owner/name", {"revision": "abc"})
    assert loading.source("owner/name") == ("owner/name", {})
    at = shutil.copytree(model, model.with_name("m@1"))
    assert loading.source(str(at)) == (str(at), {})
    loading.load_model(str(at))


def test_a_configuration_asks_for_no_code_of_the_hub_and_for_a_finite_model(model: Path):
    for fields, word in (
        ({"num_hidden_layers": 1_000_000}, "more than any model"),
        ({"attn_implementation": "someone/kernel"}, "code of the hub"),
        ({"_attn_implementation": {"": "someone/kernel:f"}}, "code of the hub"),
        ({"text_config": {"experts_implementation": "someone/kernel"}}, "code of the hub"),
        ({"num_hidden_layers": 1_000, "num_local_experts": 1_000_000}, "more than any model"),
    ):
        before = (model / "config.json").read_bytes()
        mark(model, **fields)
        for load in (loading.load_config, loading.load_model):
            with pytest.raises(UserError, match=word):
                load(str(model))
        (model / "config.json").write_bytes(before)
