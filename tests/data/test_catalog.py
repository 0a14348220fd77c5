"""Named data sets: local copies before the hub, and errors that keep their kind and say what to do instead."""

from dataclasses import replace
from pathlib import Path

import pytest
from datahub import write_jsonl, write_parquet

from lowtax.common.errors import UserError
from lowtax.data import readers
from lowtax.data.catalog import PROMPT_COPIES, PROMPT_SETS, TRAINING_SETS, NamedDataset
from lowtax.data.readers import DataNotAvailable, Table

SET = NamedDataset(
    name="set",
    hub="owner/set",
    rows=2,
    licence="MIT",
    citation="Nobody 2020",
    revision="v1",
    split="test",
    copies=PROMPT_COPIES,
    stems=("their_name",),
)


def unavailable(named: NamedDataset) -> DataNotAvailable:
    with pytest.raises(DataNotAvailable) as caught:
        named.open()
    return caught.value


def test_a_path_comes_before_a_local_copy_and_a_copy_before_the_hub(copies: Path, tmp_path: Path):
    write_jsonl(copies / "their_name.jsonl", {"prompt": "copy"})
    assert SET.open() == Table([{"prompt": "copy"}], "their_name.jsonl")
    write_jsonl(copies / "set.jsonl", {"prompt": "own name"})
    assert SET.open().origin == "set.jsonl"
    assert SET.open(split="test").origin == "set.jsonl"
    path = write_jsonl(tmp_path / "other.jsonl", {"prompt": "path"})
    assert SET.open(path) == Table([{"prompt": "path"}], "other.jsonl")


def test_a_folder_is_read_at_the_usual_split(tmp_path: Path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "folder" / "data" / f"{split}-00000-of-00001.parquet", [{"prompt": split}])
    assert SET.open(tmp_path / "folder").rows == [{"prompt": "test"}]
    assert SET.open(tmp_path / "folder", split="train").rows == [{"prompt": "train"}]


def test_another_split_is_another_copy(copies: Path):
    write_jsonl(copies / "set.jsonl", {"prompt": "test"})
    write_jsonl(copies / "set_train.jsonl", {"prompt": "train"})
    assert SET.open(split="train").rows == [{"prompt": "train"}]


def test_a_set_that_is_not_here_keeps_the_kind_of_the_error_and_names_the_folder_of_copies(copies: Path):
    error = unavailable(SET)
    assert (error.source, error.kind) == ("owner/set", "offline")
    assert "`hf download --repo-type dataset owner/set --revision v1`" in str(error)
    assert str(error).endswith("set LOWTAX_PROMPTS to that, or give its file as FILE:COLUMN.")
    assert "`path`" not in str(error)
    assert "gated" not in str(error)
    assert isinstance(error.__cause__, DataNotAvailable)


def test_a_gated_set_says_so_once(copies: Path, monkeypatch: pytest.MonkeyPatch):
    gated = replace(SET, gated=True)
    assert "(gated: accept its terms at https://huggingface.co/datasets/owner/set" in str(unavailable(gated))

    def refuse(name: str, revision: str | None = None) -> Path:
        raise DataNotAvailable(name, "gated", f"The data set {name} is gated: {readers.terms(name)}")

    monkeypatch.setattr(readers, "snapshot", refuse)
    error = unavailable(gated)
    assert error.kind == "gated"
    assert str(error).count("accept its terms") == 1


def test_a_set_that_is_not_on_the_hub(copies: Path):
    error = unavailable(replace(SET, hub="", page="https://example.org/set"))
    assert (error.source, error.kind) == ("set", "missing")
    assert "is not on the hub: get it from https://example.org/set, put it as set.csv" in str(error)


def test_rows_that_count_and_the_note_of_their_number():
    part = replace(SET, where={"Kind": "harmful"})
    table = Table([{"kind": "Harmful", "n": 1}, {"kind": "benign", "n": 2}, {"kind": "harmful", "n": 3}], "x.csv")
    assert [row["n"] for row in part.select(table)] == [1, 3]
    assert (part.size_note(2), part.size_note(3)) == ("", "3 rows instead of the 2 published")
    with pytest.raises(UserError, match=r"x.csv has no rows with kind = harmful"):
        part.select(Table([{"kind": "benign"}], "x.csv"))
    with pytest.raises(UserError, match=r"x.csv has no column Kind; its columns are n\.$"):
        part.select(Table([{"n": 1}], "x.csv"))
    assert replace(part, subset="harmful").select(Table([{"n": 1}], "x.csv")) == [{"n": 1}]


def test_names_are_keys_and_no_set_is_in_two_tables():
    for table in (TRAINING_SETS, PROMPT_SETS):
        assert all(name == named.name for name, named in table.items())
    assert not set(TRAINING_SETS) & set(PROMPT_SETS)
