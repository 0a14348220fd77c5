"""GGUF files are dequantised once: the copy has the same bits, is noticed if damaged, and is never half written."""

import errno
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from transformers import AutoModelForCausalLM

from lowtax.common import log
from lowtax.models import dequantised, loading

IDS = torch.tensor([[5, 80, 7, 200, 31, 9]])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GGUF file, and an empty cache."""
    monkeypatch.setenv("LOWTAX_HOME", str(tmp_path / "home"))
    return write_gguf(tmp_path / "tiny model.gguf")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said."""
    said: list[str] = []
    monkeypatch.setattr(log, "OUTPUTS", [said.append])
    return said


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each reading of weights by transformers: the file or folder."""
    seen: list[str] = []
    usual = loading._loaded
    monkeypatch.setattr(loading, "_loaded", lambda ref, *more: seen.append(Path(ref).name) or usual(ref, *more))
    return seen


def logits(ref: Path, dtype: str) -> torch.Tensor:
    with torch.inference_mode():
        return loading.load_model(str(ref), dtype)(input_ids=IDS).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_copy_is_what_transformers_makes_of_the_file(
    file: Path, dtype: str, lines: list[str], readings: list[str]
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=loading.DTYPES[dtype]).eval()
    with torch.inference_mode():
        expected = plain(input_ids=IDS).logits
    tokenizer, config = loading.load_tokenizer(str(file)), loading.load_config(str(file))
    assert torch.equal(logits(file, dtype), expected)
    folder = dequantised.place(file, dtype)
    assert readings == [file.name]
    assert [line for line in lines if "dequantised once" in line and str(folder) in line]
    model = loading.load_model(str(file), dtype)
    assert readings == [file.name, folder.name], "the copy is read"
    assert model.dtype == loading.DTYPES[dtype]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], w) for name, w in plain.state_dict().items())
    for (name, new), (_, old) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(new, old), name
        assert new.dtype == old.dtype, name
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, expected)
    again = loading.load_tokenizer(str(file))
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    assert again("hello <|im_end|> wörld")["input_ids"] == tokenizer("hello <|im_end|> wörld")["input_ids"]
    assert loading.load_config(str(file)).hidden_size == config.hidden_size == 64


def test_a_renamed_file_has_the_copy_and_another_content_has_not(file: Path, readings: list[str]) -> None:
    first = logits(file, "float32")
    other = write_gguf(file.with_name("other.gguf"), seed=1)
    assert not torch.equal(logits(other, "float32"), first)
    file.rename(moved := file.with_name("tiny_model.gguf"))  # of which the folder has the same name
    assert torch.equal(logits(moved, "float32"), first)
    assert readings == [file.name, other.name, dequantised.place(moved, "float32").name]
    readings.clear()
    logits(moved, "bfloat16")
    assert readings == [moved.name], "each precision has a copy"


@pytest.mark.parametrize("damage", ["flipped", "cut", "absent", "record", "versions"])
def test_a_damaged_copy_is_made_again(file: Path, damage: str, lines: list[str], readings: list[str]) -> None:
    expected, folder = logits(file, "float32"), dequantised.place(file, "float32")
    weights, record = folder / "model.safetensors", folder / dequantised.RECORD
    whole = weights.read_bytes()
    if damage == "flipped":
        weights.write_bytes(whole[:-50] + bytes([whole[-50] ^ 1]) + whole[-49:])
    elif damage == "cut":
        weights.write_bytes(whole[:-50])
    elif damage == "absent":
        weights.unlink()
    elif damage == "record":
        record.write_text('{"files": 3}')
    else:
        record.write_text(record.read_text().replace('"gguf": "', '"gguf": "0.0.'))
    lines.clear()
    assert torch.equal(logits(file, "float32"), expected)
    assert readings == [file.name] * 2
    assert any("damaged or of another version" in line for line in lines)
    assert weights.read_bytes() == whole
    logits(file, "float32")
    assert readings[2:] == [folder.name]


def test_a_full_disk_is_a_note_and_no_failure(
    file: Path, lines: list[str], readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(dequantised.SPARE))
    logits(file, "float32")
    assert any("do not fit into" in line for line in lines)
    monkeypatch.undo()
    monkeypatch.setenv("LOWTAX_HOME", str(file.parent / "home"))
    monkeypatch.setattr(log, "OUTPUTS", [lines.append])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dequantised, "write_json", full)
    logits(file, "float32")
    assert any("cannot be written ([Errno 28] No space left on device)" in line for line in lines)
    folder = dequantised.place(file, "float32")
    assert [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"] == [], "nothing is left"


def test_two_at_once_dequantise_once(file: Path, readings: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:  # the lock is that of an open file, so threads stand for processes
        models = list(pool.map(loading.load_model, [str(file)] * 2))
    assert readings == [file.name, dequantised.place(file, "float32").name]
    with torch.inference_mode():
        assert torch.equal(*(model(input_ids=IDS).logits for model in models))
