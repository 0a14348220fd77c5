"""Adapters that fit a model: every weight is of that model; other tools' names are mapped; the rest is one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_model, save_adapter
from transformers import AutoModelForCausalLM

from lowtax.common.errors import UserError
from lowtax.engines.base import Request
from lowtax.engines.hf.engine import HF
from lowtax.methods.editing import edit
from lowtax.models import adapter_fit
from lowtax.models.adapter_fit import fitted
from lowtax.models.adapters import read_adapter
from lowtax.models.loading import load_model
from lowtax.models.merging import merge

Tensors = dict[str, torch.Tensor]
MLP = ["gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("fit") / "base", "qwen2")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return Path(save_adapter(tmp_path / "adapter", base, 2, MLP, 0))


def rewrite(adapter: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(adapter / "adapter_model.safetensors")), adapter / "adapter_model.safetensors")


def configure(adapter: Path, **fields: Any) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | fields))


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


def replies(base: Path, *adapters: Path | None) -> list[str]:
    engine = HF(str(base), "float32", 8)
    requests = [
        Request(str(n), ({"role": "user", "content": "Tell me a story."},), path and str(path), 12)
        for n, path in enumerate(adapters)
    ]
    texts = {done.id: done.text for done in engine.generate(requests)}
    return [texts[str(n)] for n in range(len(adapters))]


MAPPED = {
    "adapter name": renamed(".weight", ".default.weight"),
    "other adapter name": renamed(".weight", ".my_run.weight"),
    "no prefix": renamed("base_model.model.", ""),
    "wrapper": renamed("model.model.layers", "model.model.language_model.layers"),
    "old wrapper": renamed("model.model.layers", "model.language_model.model.layers"),
    "both": lambda tensors: renamed("base_model.model.model.layers", "model.language_model.layers")(
        renamed(".weight", ".default.weight")(tensors)
    ),
}


@pytest.mark.parametrize("kind", MAPPED)
def test_names_of_other_tools_are_the_same_adapter(tmp_path: Path, base: Path, adapter: Path, kind: str):
    other = shutil.copytree(adapter, tmp_path / "other")
    rewrite(other, MAPPED[kind])
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    fit = fitted(other, str(base))
    assert fit.renamed
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), fit.folder)), logits(expected)
    )
    assert replies(base, None, other, adapter)[1:] == [replies(base, adapter)[0]] * 2
    merge(other, tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "merged"))), logits(expected), atol=1e-4, rtol=1e-4)
    edit({"name": "scale", "by": 1}, other, tmp_path / "edited")
    edited, own = read_adapter(tmp_path / "edited").factors, read_adapter(adapter).factors
    for name in own:
        torch.testing.assert_close(edited[name].dense(), own[name].dense())


def test_patterns_of_mapped_names_stay_with_their_modules(tmp_path: Path, base: Path):
    config = LoraConfig(
        r=2,
        target_modules=MLP,
        rank_pattern={"up_proj": 4},
        alpha_pattern={"layers.1.mlp.down_proj": 16},
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    expected = get_peft_model(load_model(str(base)), config)
    expected.save_pretrained(tmp_path / "adapter")
    rewrite(tmp_path / "adapter", renamed("model.model.layers", "model.model.language_model.layers"))
    again = PeftModel.from_pretrained(load_model(str(base)), fitted(tmp_path / "adapter", str(base)).folder)
    torch.testing.assert_close(logits(again), logits(expected))


def layer(n: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if f"layers.{n}." in name}


def only(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part in name}


def broken(value: float) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        next(iter(tensors.values()))[0, 0] = value
        return tensors

    return change


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensor}


EMBEDDINGS = "base_model.model.model.embed_tokens.weight"
WRONG = {
    "another model": (renamed("mlp", "feed_forward"), "0 of 12 weights"),
    "one name": (renamed("layers.0.mlp.up_proj", "layers.0.mlp.up"), "10 of 12 weights .* belong to"),
    "half": (layer(0), r"lacks 6 of 12 weights .*layers\.1"),
    "one factor": (only("lora_A"), "lacks 6 of 12 weights"),
    "nothing": (lambda tensors: {"x": torch.ones(2, 2)}, "no LoRA factors, but for example x"),
    "empty": (lambda tensors: {}, "no LoRA factors"),
    "more layers": (renamed("layers.1.", "layers.7."), "6 of 12 weights"),
    "a norm": (with_tensor("base_model.model.model.norm.weight", torch.zeros(32)), "not LoRA factors"),
    "another embedding": (with_tensor(EMBEDDINGS, torch.ones(300, 32)), "it changes the base"),
    "two more tokens": (with_tensor(EMBEDDINGS, torch.ones(302, 32)), "302 rows for 300"),
    "shape": (lambda tensors: {n: t[:, :3].clone() if "lora_A" in n else t for n, t in tensors.items()}, "must be"),
    "rank": (lambda tensors: {n: (t[:1] if "_A" in n else t[:, :1]).clone() for n, t in tensors.items()}, "must be"),
    "sharded": (lambda tensors: {n: torch.zeros(0) for n in tensors}, r"is \[0\], and must be"),
    "nan": (broken(float("nan")), "not finite"),
    "infinite": (broken(float("inf")), "not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_not_of_the_model_is_refused_everywhere(tmp_path: Path, base: Path, adapter: Path, kind: str):
    change, sentence = WRONG[kind]
    rewrite(adapter, change)
    with pytest.raises(UserError, match=sentence):
        fitted(adapter, str(base))
    for use in (
        lambda: replies(base, adapter),
        lambda: merge(adapter, tmp_path / "merged"),
        lambda: edit({"name": "scale", "by": 1}, adapter, tmp_path / "edited"),
        lambda: read_adapter(adapter, str(base)),
    ):
        with pytest.raises(UserError):
            use()


def test_equal_copies_of_the_embeddings_are_no_change(base: Path, adapter: Path):
    rewrite(adapter, with_tensor(EMBEDDINGS, load_model(str(base)).get_input_embeddings().weight.detach().clone()))
    assert fitted(adapter, str(base)).folder == adapter


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"target_modules": "(((a+)+)+"}, "does not fit|cannot be read"),
    ],
    ids=str,
)
def test_configurations_that_change_the_base_or_are_no_lora(base: Path, adapter: Path, fields, sentence: str):
    configure(adapter, **fields)
    with pytest.raises(UserError, match=sentence):
        fitted(adapter, str(base))


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_would_never_end_is_refused(
    base: Path, adapter: Path, field: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(adapter_fit, "PATIENCE", 2.0)
    pattern = "(([a-z._0-9])+)+X"
    configure(adapter, **{field: {pattern: 4} if field.endswith("pattern") else pattern})
    with pytest.raises(UserError, match="takes too long"):
        fitted(adapter, str(base))


@pytest.mark.parametrize("text", ["[]", "null", "{", '"x"'])
def test_a_configuration_that_is_none(base: Path, adapter: Path, text: str):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(UserError):
        fitted(adapter, str(base))


@pytest.mark.parametrize("fields", [{"r": "many"}, {"lora_alpha": "x"}, {"lora_dropout": "x"}, {"r": None}], ids=str)
def test_a_configuration_with_wrong_types(base: Path, adapter: Path, fields: dict[str, Any]):
    configure(adapter, **fields)
    with pytest.raises(UserError):
        fitted(adapter, str(base))


def test_a_pattern_that_would_never_end_is_refused_without_a_model(adapter: Path, base: Path):
    configure(adapter, alpha_pattern={"(([a-z._0-9])+)+X": 2})
    with pytest.raises(UserError, match="takes too long"):
        read_adapter(adapter)
    configure(adapter, target_modules=r".*\.(gate|up|down)_proj", alpha_pattern={r"layers\.[0-9]+\.mlp\.up_proj": 4})
    assert fitted(adapter, str(base)).folder == adapter
