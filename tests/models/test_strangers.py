"""Models, tokenizers, templates and adapters of strangers: whatever is wrong with one, loading it is one sentence."""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from safetensors.torch import load_file, save_file
from sentences import refused
from tiny import make_model, make_tokenizer, save_adapter

from lowtax.common.errors import UserError
from lowtax.data import chat
from lowtax.engines.base import Prompter, Request
from lowtax.models import adapters, loading, tensor_files
from lowtax.models.adapter_fit import fitted
from lowtax.models.fingerprint import fingerprint
from lowtax.models.merging import merge
from lowtax.models.weights import open_weights


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    return Path(save_adapter(folder, tiny_model, 2, ["up_proj", "down_proj"], 0))


HEADERS: list[Any] = [
    [], None, 5, {"a": 5}, {"a": {}}, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
    {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}},
    {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
]  # fmt: skip


def test_safetensors_files_that_are_none(tmp_path: Path, adapter: Path):
    path = tmp_path / "x.safetensors"
    whole = (adapter / adapters.WEIGHTS).read_bytes()
    texts = [json.dumps(header).encode() for header in HEADERS] + [b"[" * 200_000, b"\xff", b"9" * 5000]
    files = [struct.pack("<Q", len(text)) + text + bytes(8) for text in texts]
    files += [b"", b"x", whole[:9], whole[: len(whole) // 2], whole + b"x", b"\xff" * 100, b"PK\x03\x04" + bytes(99)]
    for data in files:
        path.write_bytes(data)
        refused(lambda: dict(tensor_files.tensors(path)), "x.safetensors")
    path.unlink()
    os.mkfifo(path)
    refused(lambda: tensor_files.header(path), "is a pipe")


CONFIGS: dict[str, Any] = {
    "r": ["2", 0, -1, 10**9, None, 2.5, [], True],
    "lora_alpha": ["4", None, [], float("nan"), float("inf"), 1e300],
    "lora_dropout": ["0.1", 1, -0.1, 5, None],
    "target_modules": [5, [5], {"a": 1}, "(", "(?P<a", "x{99999999999}", "a" * 20_000, "(" * 2000, "nowhere", []],
    "exclude_modules": [5, "("],
    "rank_pattern": [5, [], {"(": 2}, {"up_proj": "2"}, {"up_proj": 0}, {"up_proj": 10**9}],
    "alpha_pattern": [5, {"(": 2}, {"up_proj": "2"}],
    "layers_to_transform": ["0", -1, [10**9], {"a": 1}, 1.5],
    "layers_pattern": [5, ["("]],
    "use_rslora": ["yes", 5],
    "bias": [5, "some"],
    "init_lora_weights": [5, "kasa", []],
    "peft_type": [None, 5, "IA3", ["LORA"]],
    "base_model_name_or_path": [5, ["a"], "a" * 5000],
    "modules_to_save": [5, "a"],
    "runtime_config": [5],
    "megatron_config": [5],
}


def test_adapter_configs_that_peft_cannot_have_written(tmp_path: Path, adapter: Path, tiny_model: Path):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    config = json.loads((adapter / adapters.CONFIG).read_text())
    whole: list[Any] = [config | {name: value} for name, values in CONFIGS.items() for value in values]
    texts = [json.dumps(value).encode() for value in [*whole, [], None, 5, "x", {}]]
    for text in [*texts, b"", b"{", b"\xff", b"[" * 200_000]:
        (folder / adapters.CONFIG).write_bytes(text)
        refused(lambda: fitted(folder, str(tiny_model)))


def test_weights_of_an_adapter_that_are_none(tmp_path: Path, adapter: Path, tiny_model: Path):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    tensors = load_file(adapter / adapters.WEIGHTS)
    name = next(iter(tensors))
    for changed in (
        {},
        {"x": torch.ones(2, 2)},
        {**tensors, "x": torch.ones(2, 2)},
        {key: tensor for key, tensor in tensors.items() if key != name},
        {**tensors, name: torch.ones(3, 3)},
        {**tensors, name: torch.full_like(tensors[name], float("nan"))},
        {**tensors, name: tensors[name].flatten()},
    ):
        save_file(changed, folder / adapters.WEIGHTS)
        refused(lambda: fitted(folder, str(tiny_model)))
    data = (adapter / adapters.WEIGHTS).read_bytes()
    (folder / adapters.WEIGHTS).write_bytes(data[:-1])
    refused(lambda: fitted(folder, str(tiny_model)), "is cut")
    refused(lambda: adapters.is_zero(folder), "is cut")


def test_cards_of_an_adapter_that_are_none(tmp_path: Path, adapter: Path, tiny_model: Path):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    for number, text in enumerate(
        (b"\xff\xfe", b"---\ntags: 5\n---\nx", b"---\ntags: [lowtax]\nlicense: {a: 1}\n---\nx")
    ):
        (folder / "README.md").write_bytes(text)
        merged = merge(folder, tmp_path / str(number), base=str(tiny_model), dtype="float32")
        assert (merged.folder / "README.md").read_text().startswith("---")


def changed(name: str, **fields: Any) -> Callable[[Path], None]:
    """A change of the fields of a JSON file in a model's folder."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def replaced(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes(data))


def void(_: object) -> None: ...


def piped(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


CONFIG = "config.json"
MODELS: dict[str, Callable[[Path], None]] = {
    **{
        f"config {data[:9]!r}": replaced(CONFIG, data)
        for data in (b"", b"[]", b"null", b"5", b"{", b"\xff", b"[" * 10**5)
    },
    **{
        f"{name} {value!r}"[:40]: changed(CONFIG, **{name: value})
        for name, values in {
            "num_hidden_layers": ("2", 10**6, -1, 2.5, None, 0),
            "hidden_size": ("a", 10**12, -32, 0, [32]),
            "vocab_size": (10**12, "300", -1),
            "num_attention_heads": (0, 7, 10**6, "4"),
            "model_type": ("nothing", None, 5, ["llama"]),
            "rope_parameters": (5, {"rope_type": "x"}),
            "quantization_config": (5, "x", {"quant_method": 5}, {"quant_method": "gptq"}),
            "hidden_act": ("nothing", 5),
            "intermediate_size": (10**12, 7),
        }.items()
        for value in values
    },
    "index of nothing": replaced("model.safetensors.index.json", b"[]"),
    "index outside": replaced("model.safetensors.index.json", b'{"weight_map": {"a": "../x.safetensors"}}'),
    "index of zero byte": replaced("model.safetensors.index.json", b'{"weight_map": {"a": "\\u0000"}}'),
    "index of absent file": replaced("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}'),
    "weights cut": replaced("model.safetensors", b"x" * 20),
    "weights empty": replaced("model.safetensors", b""),
    "pipe of weights": piped("model.safetensors"),
    "pipe of config": piped(CONFIG),
    "code": changed(CONFIG, model_type="evil", auto_map={"AutoConfig": "evil.C"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_loaded(tmp_path: Path, tiny_model: Path, name: str):
    shutil.copytree(tiny_model, tmp_path / "m")
    MODELS[name](tmp_path / "m")
    refused(lambda: loading.load_model(str(tmp_path / "m")))
    for read in (fingerprint, open_weights, loading.load_tokenizer):
        try:
            read(str(tmp_path / "m"))
        except UserError:
            continue


TOKENIZERS: dict[str, Callable[[Path], None]] = {
    **{f"{name} {data[:9]!r}": replaced(name, data)
       for name in ("tokenizer.json", "tokenizer_config.json")
       for data in (b"", b"[]", b"null", b"{", b"\xff", b"[" * 10**5)},
    "regex": changed("tokenizer.json", pre_tokenizer={
        "type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
    "huge number": changed("tokenizer.json", added_tokens=[{
        "id": 10**9, "content": "x", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True}]),
    "merges": changed("tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}),
    "padding": changed("tokenizer.json", padding={"strategy": {"Fixed": 10**9}}),
    "template of a number": changed("tokenizer_config.json", chat_template=5),
    "class": changed("tokenizer_config.json", tokenizer_class=5),
    "eos": changed("tokenizer_config.json", eos_token=[5]),
    "pipe": piped("tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_that_cannot_be_loaded(tmp_path: Path, name: str):
    make_tokenizer().save_pretrained(tmp_path / "t")
    (tmp_path / "t" / CONFIG).write_text('{"model_type": "llama"}')
    if name == "template of a number":
        (tmp_path / "t" / "chat_template.jinja").unlink(missing_ok=True)
    TOKENIZERS[name](tmp_path / "t")
    refused(lambda: loading.load_tokenizer(str(tmp_path / "t")))


TEMPLATES = [
    "{{ raise_exception('no') }}",
    "{% if enable_thinking is defined %}{{ 1 / 0 }}{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "{{ 1 / 0 }}",
    "{{ nothing.attribute }}",
    "{{ messages[99]['content'] }}",
    "{{ messages[0]['content'] + 5 }}",
    "{% for m in messages %}{{ m['nothing'] | upper | int + 'x' }}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ 'a' * 10 ** 20 }}",
    "{{ '%d' % 'x' }}",
    "{{ messages | map(attribute='x') | sum }}",
    "{{ strftime_now(5) }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{% for",
    "{{ 10 ** 10 ** 3 }}",
    "{{ none.x.y }}",
    "{% if messages[-1]['role'] == 'assistant' %}{{ 1 / 0 }}{% endif %}{{ messages[0]['content'] }}",
    "",
]


def test_templates_that_fail(tmp_path: Path):
    tokenizer = make_tokenizer()
    request, reasons = Request("a", ({"role": "user", "content": "How?"},), None, 8), list[str]()
    for template in TEMPLATES:
        tokenizer.chat_template = template
        for read in (lambda: chat.stops(tokenizer, {1}), lambda: Prompter(tokenizer).prompt(request)):
            began = time.process_time()
            try:
                read()
            except (UserError, TemplateError) as error:
                reasons.append(str(error))
            assert time.process_time() - began < 2, template
    assert all(reasons)


def test_references_that_cannot_be_models(tmp_path: Path):
    os.mkfifo(tmp_path / "x.gguf")
    for ref in (
        "a" * 5000,
        "a\0b",
        "~nobody-has-this-name/x/y",
        "a" * 200 + "/" + "b" * 300,
        str(tmp_path / "x.gguf"),
        "",
    ):
        refused(lambda ref=ref: loading.load_tokenizer(ref))
        refused(lambda ref=ref: loading.load_config(ref))
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    for data in (b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"GGUF\x03\0\0\0" + bytes(16), b"x" * 99):
        (tmp_path / "y.gguf").write_bytes(data)
        refused(lambda: loading.load_config(str(tmp_path / "y.gguf")))
        refused(lambda: loading.load_tokenizer(str(tmp_path / "y.gguf")))


def test_a_model_is_loaded_as_before(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    assert loading.load_model(str(folder)).config.num_hidden_layers == 2
    assert fingerprint(str(folder))
