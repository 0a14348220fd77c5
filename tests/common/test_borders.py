"""Files of strangers: whatever is wrong with one, its reader raises one sentence, in bounded time and memory."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from sentences import refused

from lowtax.common.borders import border, brief, parse_json, read_text, reason
from lowtax.common.cards import Progress, TrainedCard, Updates, read_card
from lowtax.common.errors import UserError
from lowtax.common.files import read_json, read_rows
from lowtax.common.records import Verdict
from lowtax.common.yaml_files import parse_yaml
from lowtax.data import prompt_sets, tables
from lowtax.judges import rubric
from lowtax.study import recipe

DEEP, LONG = 200_000, "9" * 5000
BOMB = "a: &a [" + ", ".join("x" * 10) + "]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}], {new}{new}: 1}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


YAML = {  # text -> part of the reason
    BOMB: "aliases",
    MERGES: "aliases",
    f"name: &n [x, y]\n{BOMB}train: *i\n": "aliases",
    "[" + "1," * 100_000 + "1]": "more than",
    "- " * 20_000: "deep",
    "? " * 20_000: "deep",
    "x: " + "&a " * 5000: "expected",
    "'" + "a\n" * 50_000: "quoted scalar",
    "%" * 5000: "expected",
    "a: &a [*a]": "repeats itself",
    "a: &a {b: *a}": "repeats itself",
    "[" * 5000: "deep",
    "[" * 101 + "]" * 101: "deep",
    f"model: {LONG}": "too long",
    f"model: 0x{'f' * 5000}": "too long",
    "model: " + "1:" * 2000 + "1": "too long",
    "model: 2001-99-99": "a value cannot be read",
    "model: !!timestamp x": "a value cannot be read",
    "model: !!bool x": "a value cannot be read",
    "model: !!int ''": "a value cannot be read",
    "model: !!python/object/apply:os.system [x]": "could not determine a constructor",
    '{"model": "a\\ud800"}': "no file can hold",
    '{"model": "a\\0"}': "no file can hold",
    "x" * 300_000: "at most",
    "model: a\nmodel: b": "twice",
    "train:\n  lr: 1\n  lr: 2": "line 2",
    "model: [": "expected",
    "model: a\x00": "not allowed",
    "? [a]\n: b": "unhashable",
}


@pytest.mark.parametrize("text", YAML, ids=lambda text: text[:20])
def test_yaml_that_is_no_recipe(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match=YAML[text]):
        parse_yaml(text)
    (tmp_path / "r.yaml").write_text(text)
    refused(lambda: recipe.load(tmp_path / "r.yaml"), "r.yaml", "YAML")


def test_yaml_that_is_no_rubric(tmp_path: Path):
    for text in (BOMB, "[" * 200, "model: !!bool x", "\xff", "prompt: 5", "5", ""):
        (tmp_path / "r.yaml").write_text(text, encoding="latin-1")
        refused(lambda: rubric.load(str(tmp_path / "r.yaml")), "r.yaml")
    assert rubric.load("").low == 1


def test_yaml_that_is_a_recipe(tmp_path: Path):
    text = "model: m\narms: {a: &a {mode: full}, b: *a, c: {<<: *a}}\nsampling: {temperature: 0.5}\n"
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(recipe.load(tmp_path / "r.yaml").arms) == ["a", "b", "c"]
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None


NUMBERS = {  # of a recipe that no study has
    "sampling": [{"samples": 10**9}, {"max_new_tokens": 10**12}, {"temperature": float("inf")}, {"top_k": 10**20}],
    "seeds": [[2**63], [-1], list(range(20_000))],
    "batch_size": [10**9],
    "train": [{"steps": 10**10}, {"epochs": float("inf")}, {"lr": float("nan")}, {"max_length": 10**10}],
    "execution": [{"row_tokens": 10**12}, {"prefix_gb": float("inf")}, {"save_state_minutes": 1e300}],
    "data": [[{"source": "a"} | more] for more in ({"n": 10**10}, {"ratio": float("inf")}, {"first": 10**12})],
    "harmful": [[{"source": "a", "n": 10**10}], [{"source": "a", "seed": 2**64}]],
    "tasks": [{"arithmetic": {"n": 10**7}}, {"arithmetic": {"sampling": {"samples": 10**9}}}],
    "arms": [
        {"a": {"placement": place}}
        for place in ({"rank": 10**9}, {"layers": "0-99999999999"}, {"layers": [0, 10**9]}, {"alpha": float("inf")},
                      {"layers": "1," * 5000}, {"ranks": {"up_proj": 10**12}})
    ] + [{"a": {"mode": f"lora_mlp_r{LONG}"}}, {"a": {"mode": "lora_up_proj_only_from1_to9999999999_r1"}}],
}  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_of_a_recipe_have_bounds(key: str):
    for value in NUMBERS[key]:
        refused(lambda value=value: recipe.build({"model": "m", key: value}, [], "r.yaml"))


JSON = {
    b"[" * DEEP: "deep",
    b"[" * 101 + b"]" * 101: "deep",
    b'{"a":' * 500 + b"1" + b"}" * 500: "deep",
    LONG.encode(): "digits",
    b"\xff": "UTF-8",
    b"": "Expecting value",
    b'{"a": 1': "Expecting",
}


@pytest.mark.parametrize("data", JSON, ids=lambda data: str(data[:9]))
def test_json_that_is_none(tmp_path: Path, data: bytes):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    refused(lambda: read_json(path), "x.json", JSON[data])
    with pytest.raises(ValueError, match=JSON[data]):
        parse_json(data)


def test_json_with_a_byte_order_mark(tmp_path: Path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [[{}]]}')
    assert read_json(tmp_path / "x.json") == {"a": [[{}]]}
    assert parse_json("[" * 100 + "]" * 100) == json.loads("[" * 100 + "]" * 100)
    assert parse_json('"' + "[" * 500 + '"') == "[" * 500  # brackets in a text


TABLES = {  # name of a file -> its bytes
    "deep.jsonl": b'{"prompt": ' + b"[" * DEEP,
    "deep_whole.jsonl": b'{"prompt": ' + b"[" * 300 + b"]" * 300 + b"}\n",
    "deep.json": b"[" * DEEP,
    "long.jsonl": b'{"prompt": ' + LONG.encode() + b"}\n",
    "empty.jsonl": b"",
    "nul.csv": b"\0\0\0",
    "bad.csv.gz": b"\x1f\x8b",
    "bad.csv.bz2": b"BZh9",
    "bad.csv.xz": b"\xfd7zXZ\0",
    "bad.csv.zst": b"\x28\xb5\x2f\xfd",
    "bad.parquet": b"PAR1" + b"\xff" * 40 + b"PAR1",
    "bad.feather": b"ARROW1\0\0" + b"\xff" * 40 + b"ARROW1",
    "bomb.csv.gz": gzip.compress(b"a" * (300 << 20), 1),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(TABLES[name])
    refused(lambda: tables.read(path), name)


def test_tables_as_editors_leave_them(tmp_path: Path):
    mark = b"\xef\xbb\xbf"
    for name, data in {
        "a.jsonl": b'{"prompt": "x"}\r\n\r\n\n{"prompt": "y"}\n\n',
        "b.csv": b"prompt\r\nx\r\n\r\ny\r\n",
        "c.json": b'[{"prompt": "x"}, {"prompt": "y"}]',
    }.items():
        for how in (bytes, gzip.compress, bz2.compress, lzma.compress):
            (tmp_path / name).write_bytes(how(mark + data))
            assert [prompt.text for prompt in prompt_sets.load(str(tmp_path / name)).prompts] == ["x", "y"]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for read in (
        lambda: tables.read(pipe),
        lambda: prompt_sets.load(str(pipe)),
        lambda: read_rows(pipe, Verdict),
        lambda: read_json(pipe),
        lambda: recipe.load(pipe),
        lambda: read_text(pipe),
    ):
        refused(read, "is a pipe, not a file")
    refused(lambda: tables.read(Path("/dev/zero")), "is a device")
    refused(lambda: recipe.load(tmp_path), "is a folder")
    for name in ("a" * 5000, "a\0b", "~nobody-has-this-name/x", "a" * 300 + "/b"):
        refused(lambda name=name: prompt_sets.load(name))


CARDS: list[tuple[Any, Any]] = [
    (TrainedCard, value)
    for value in (
        [], None, 5, "x", {}, {"job": 5}, {"job": {}, "checkpoints": None, "trainable_parameters": 1},
        {"job": {}, "checkpoints": [5], "trainable_parameters": 1},
        *({"job": {}, "checkpoints": [{"name": name, "step": 1, "seconds": 1}], "trainable_parameters": 1}
          for name in ("/etc", "../..", "checkpoint-1/../..", "checkpoint-x", "checkpoint-1\n", "", None, ["a"])),
        {"job": {}, "checkpoints": [{"name": "checkpoint-1", "step": "1", "seconds": 1}], "trainable_parameters": 1},
        {"job": {"settings": {"steps": "a"}}, "checkpoints": [], "trainable_parameters": 1},
        {"job": {"methods": [5]}, "checkpoints": [], "trainable_parameters": 1},
    )
] + [
    (Updates, []), (Updates, {"a": None}), (Updates, {"a": {"norm": "x"}}),
    (Updates, {"a": {"norm": 1, "relative_norm": float("nan"), "rank": 1}}),
    (Progress, []), (Progress, {"step": 0, "seconds": 1, "checkpoints": []}), (Progress, {"step": 1}),
    (Progress, {"step": 10**400, "seconds": 1, "checkpoints": []}),
    (Progress, {"step": 1, "seconds": 1, "checkpoints": [{"name": "checkpoint-1", "step": 1, "seconds": 1, "x": 1}]}),
]  # fmt: skip


def test_cards_that_are_none(tmp_path: Path):
    path = tmp_path / "card.json"
    for kind, value in CARDS:
        path.write_text(json.dumps(value))
        refused(lambda kind=kind: read_card(path, kind), "card.json")
    for data in (b"\xff", b"{", b"[" * DEEP, b"null"):
        path.write_bytes(data)
        refused(lambda: read_card(path, Updates), "card.json")


def test_a_border_lets_through_what_is_no_fault_of_a_file():
    with pytest.raises(KeyboardInterrupt), border("x", "y"):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"^z\.$"), border("x", "y"):
        raise UserError("z.")
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(UserError, match=r"^x \(called on None\); y\.$"), border("x", "y"):
        raise panic("called on None")
    with pytest.raises(UserError, match=r"^x \(MemoryError\); y\.$"), border("x", "y"):
        raise MemoryError


def test_reasons_and_values_are_short():
    assert reason(ValueError("\n  a\x1b[2J \nb")) == "a [2J"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("a " * 500))) <= 200
    assert len(brief("a" * 10**6)) < 100
    assert len(brief([["a" * 10**6] * 1000] * 1000)) < 3000
