"""Folders of data that strangers wrote: nothing outside of them is read, and nothing is fetched."""

import json
import socket
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from datahub import write_jsonl

from lowtax.common.errors import UserError
from lowtax.data import data_folders, readers

SECRET = {"prompt": "TOPSECRET", "answer": "x"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a row, beside a file that is somebody's own; every connection fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "secret.jsonl", SECRET)
    write_jsonl(tmp_path / "data" / "rows.jsonl", {"prompt": "a", "answer": "b"})
    return tmp_path / "data"


def configured(folder: Path, **fields: Any) -> None:
    configs = yaml.safe_dump({"configs": [{"config_name": "default", **fields}]})
    (folder / "README.md").write_text(f"---\n{configs}---\n# Data\n")


def test_data_files_that_a_readme_names_stay_in_the_folder(folder: Path):
    outside = str(folder.parent / "secret.jsonl")
    paths = [
        outside,
        "../secret.jsonl",
        "a/../../secret.jsonl",
        "**/../../secret.jsonl",
        "~/x.jsonl",
        "..\\secret.jsonl",
    ]
    paths += ["http://127.0.0.1:9/x.jsonl", "https://h/x.jsonl", "hf://datasets/a/b/x.jsonl", "s3://b/x.jsonl"]
    paths += [f"file://{outside}", f"zip://x.jsonl::{outside}", "gzip://x::http://127.0.0.1:9/x.gz", "C:\\x.jsonl"]
    for path in paths:
        forms: list[dict[str, Any]] = [
            {"data_files": path},
            {"data_files": ["rows.jsonl", path]},
            {"data_files": [{"split": "train", "path": ["rows.jsonl", path]}]},
        ]
        if path != "../secret.jsonl":
            forms = forms[:1]
        for fields in forms:
            configured(folder, **fields)
            with pytest.raises(UserError, match="not in its folder"):
                readers.load(str(folder))
    for data_dir in ("..", str(folder.parent), "http://127.0.0.1:9"):
        configured(folder, data_dir=data_dir)
        with pytest.raises(UserError, match="not in its folder"):
            readers.load(str(folder))
    (folder / "README.md").unlink()
    configs = {"configs": [{"config_name": "default", "data_files": outside}]}
    (folder / ".huggingface.yaml").write_text(yaml.safe_dump(configs))
    with pytest.raises(UserError, match="not in its folder"):
        readers.load(str(folder))
    (folder / ".huggingface.yaml").unlink()
    for own in ("rows.jsonl", "*.jsonl", "./rows.jsonl", [{"split": "train", "path": "r*.jsonl"}]):
        configured(folder, data_files=own)
        assert readers.load(str(folder)).rows == [{"prompt": "a", "answer": "b"}]


def test_links_do_not_lead_out_of_a_folder(folder: Path):
    (folder / "rows.jsonl").unlink()
    (folder / "rows.jsonl").symlink_to(folder.parent / "secret.jsonl")
    with pytest.raises(UserError, match="not in its folder"):
        readers.load(str(folder))
    (folder / "rows.jsonl").rename(folder / "rows.ndjson")  # of a kind that the library does not know
    with pytest.raises(UserError, match=r"not in its folder|cannot be read"):
        readers.load(str(folder))
    hub = folder.parent / "datasets--a--b"
    (hub / "blobs").mkdir(parents=True)
    write_jsonl(hub / "blobs" / "abc", SECRET)
    (hub / "snapshots" / "commit").mkdir(parents=True)
    (hub / "snapshots" / "commit" / "rows.jsonl").symlink_to(Path("../../blobs/abc"))
    assert readers.load(str(hub / "snapshots" / "commit")).rows == [SECRET]  # as the hub's cache has them


def test_a_saved_data_set_lists_its_own_files(folder: Path):
    saved = folder.parent / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list([{"prompt": "a"}])}).save_to_disk(str(saved))
    datasets.Dataset.from_list([SECRET]).save_to_disk(str(folder.parent / "other"))
    assert readers.load(str(saved)).rows == [{"prompt": "a"}]
    state = json.loads((saved / "train" / "state.json").read_text())
    arrow = next((folder.parent / "other").glob("*.arrow"))
    for name in (str(arrow), f"../../other/{arrow.name}", "..", 5):
        (saved / "train" / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
        with pytest.raises(UserError, match=r"lead out|damaged"):
            readers.load(str(saved))
    (saved / "train" / "state.json").write_text(json.dumps(state))
    for names in (["../other"], [str(folder.parent / "other")]):
        (saved / "dataset_dict.json").write_text(json.dumps({"splits": names}))
        with pytest.raises(UserError, match="lead out"):
            readers.load(str(saved))


def test_pictures_are_not_opened(folder: Path):
    table = datasets.Dataset.from_list([{"prompt": "a", "picture": "http://127.0.0.1:9/x.png"}])
    rows = table.cast_column("picture", datasets.Image())
    assert next(iter(data_folders.as_stored(rows)))["picture"]["path"] == "http://127.0.0.1:9/x.png"


def test_folders_that_end_parsers_are_one_sentence(tmp_path: Path):
    deep = b"[" * 200_000
    files = {
        "lines.jsonl": b'{"prompt": "x"}\n{"prompt": ' + deep + b"]" * 200_000 + b"}\n",
        "cut.jsonl": b'{"prompt": "x"}\n{"prompt": ' + deep + b"\n",
        "whole.json": b'[{"prompt": ' + deep + b"]" * 200_000 + b"}]",
        "spread.json": b"[\n" * 300 + b"]\n" * 300,
        "script.py": b"raise SystemExit",
        "bad.tar": b"x" * 600,
        "bad.h5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "bad.parquet": b"PAR1" + b"\xff" * 50 + b"PAR1",
        "bad.zip": b"PK\x03\x04" + bytes(50),
        "bad.arrow": b"ARROW1\x00\x00" + b"\xff" * 50,
        "bad.csv": b'a,b\n"',
        "state.json": b"[]",
        "dataset_dict.json": b'{"splits": 5}',
        "README.md": b"---\nconfigs: 5\n---\n",
    }
    for name, data in files.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(data)
        with pytest.raises(UserError) as error:
            print(name, readers.load(str(folder)).rows[:2])
        assert str(error.value).endswith(".")
    (tmp_path / "good").mkdir()
    braces = json.dumps({"prompt": "[" * 500 + '"' + "{" * 500}) + "\n"
    (tmp_path / "good" / "a.jsonl").write_text(braces)
    assert readers.load(str(tmp_path / "good")).rows[0]["prompt"].startswith("[[")
