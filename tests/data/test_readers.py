"""Files, folders and data sets of the hub become rows; the hub online and offline; errors that say what to do."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from datahub import COMMIT, cached, hub, write_jsonl, write_parquet

from lowtax.common.errors import UserError
from lowtax.data import readers
from lowtax.data.readers import DataNotAvailable

ROWS = [{"prompt": "a", "answer": "1", "split": "train"}, {"prompt": "b, c", "answer": "2\n3", "split": "test"}]


# --- files and folders


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path):
    write_jsonl(tmp_path / "x.jsonl", *ROWS)
    write_jsonl(tmp_path / "x.jsonl.gz", *ROWS)
    write_jsonl(tmp_path / "lines.json", *ROWS)  # lines, despite the name
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    (tmp_path / "x.csv").write_text('prompt,answer,split\na,1,train\n"b, c","2\n3",test\n')
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b'prompt,answer,split\r\na,1,train\r\n"b, c","2\n3",test\r\n'))
    (tmp_path / "x.tsv").write_text('prompt\tanswer\tsplit\na\t1\ttrain\nb, c\t"2\n3"\ttest\n')
    write_parquet(tmp_path / "x.parquet", ROWS)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 9
    for file in files:
        assert readers.read_table(file) == ROWS, file.name
        test = readers.load(str(file), split="test")
        assert (test.rows, test.origin, test.revision) == (ROWS[1:], file.name, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", b"not gzip", "cannot be read: Not a gzipped file"),
        (
            "x.jsonl.gz",
            gzip.compress(b'{"prompt": "x"}\n' * 99, mtime=0)[:-20],
            "cannot be read: Compressed file ended",
        ),
        ("x.json", b'[{"prompt": "x"', "not valid JSON"),
        ("x.json", b"[1]", "item 1 is not a JSON object"),
        ("x.json", b"{}{}", "line 1 is not valid JSON"),
        ("x.parquet", b"PAR0", "not a parquet file"),
        ("x.parquet", b"", "not a parquet file"),
        ("x.csv", b"", "no rows"),
        ("x.tsv", b"a\tb\n", "no rows"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        readers.read_table(tmp_path / name)
    assert name in str(caught.value)


def test_a_folder_of_files_in_the_hub_s_layout(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", *ROWS[:1])
    write_jsonl(tmp_path / "test.jsonl", *ROWS[1:])
    assert readers.load(str(tmp_path)).rows == ROWS[:1]
    assert readers.load(str(tmp_path), split="test").rows == ROWS[1:]
    with pytest.raises(UserError, match=r"no split 'validation'; known are: test, train"):
        readers.load(str(tmp_path), split="validation")
    with pytest.raises(UserError, match="cannot be read: BuilderConfig 'en' not found"):
        readers.load(str(tmp_path), subset="en")


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        readers.load(str(tmp_path))


def test_a_folder_as_datasets_saves_it(tmp_path: Path):
    import datasets

    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert readers.load(str(tmp_path / "one")).rows == readers.load(str(tmp_path / "two")).rows == ROWS
    assert readers.load(str(tmp_path / "two"), split="test").rows == ROWS[1:]


def test_a_folder_with_a_missing_shard(tmp_path: Path):
    for number in (0, 2):
        write_parquet(tmp_path / f"train-{number:05d}-of-00003.parquet", ROWS)
    with pytest.raises(UserError, match=r"only 2 of the 3 files train-\*\.parquet are here"):
        readers.load(str(tmp_path))
    write_parquet(tmp_path / "train-00001-of-00003.parquet", ROWS)
    assert len(readers.load(str(tmp_path)).rows) == 6


@pytest.mark.parametrize(
    "source", ["rows.jsonl", "data/rows.csv", "data/rows.tsv", "./owner/name", "a/b/c", "~/x/y.parquet", "star2"]
)
def test_a_source_that_neither_exists_nor_is_a_hub_id(source: str):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        readers.load(source)


# --- columns


def test_a_column_is_found_in_any_case_and_the_first_name_wins():
    row = {"Question": "q", "PROMPT": "p", "empty": None}
    assert readers.find_column(row, ["prompt", "question"]) == "PROMPT"
    assert readers.find_column(row, ["goal"]) is None
    assert readers.cell(row, ("goal", "QUESTION"), "x") == "q"
    with pytest.raises(UserError, match=r"^x has no column goal or text; its columns are Question, PROMPT, empty\.$"):
        readers.cell(row, ("goal", "text"), "x")
    with pytest.raises(UserError, match="x: the column 'empty' is empty"):
        readers.cell(row, ("Empty",), "x")


def test_the_column_of_a_training_row_has_exactly_the_name_that_is_given():
    assert readers.text({"prompt": 1}, "prompt", "x") == "1"
    with pytest.raises(UserError, match="x: the column 'prompt' is not there; its columns are Prompt"):
        readers.text({"Prompt": "p"}, "prompt", "x")


# --- the hub

LOADING = """
import json, sys
from lowtax.data import readers
from lowtax.common.errors import UserError
for source in sys.argv[1:]:
    name, _, revision = source.partition("@")
    try:
        table = readers.load(name, revision=revision or None)
        print(json.dumps({"rows": table.rows, "origin": table.origin, "revision": table.revision}))
    except readers.DataNotAvailable as error:
        print(json.dumps([error.source, error.kind, str(error), error.reason + error.remedy + "."]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def loaded(home: Path, *sources: str, **environment: str) -> list[object]:
    """The tables or errors of a process with a cache at `home`: rows, or source, kind and sentence of the error."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *sources],
        env={**variables, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_cached_data_set_is_read_offline_and_its_commit_recorded(tmp_path: Path):
    snapshot = cached(tmp_path, "some/set", [ROWS[:1], ROWS[1:]])
    cached(tmp_path, "half/set", [ROWS, ROWS]).joinpath("data", "train-00001-of-00002.parquet").unlink()
    newest, pinned, absent, unknown, half = loaded(
        tmp_path, "some/set", f"some/set@{COMMIT}", "other/set", "some/set@v9", "half/set", HF_HUB_OFFLINE="1"
    )
    assert snapshot.name == COMMIT
    assert newest == pinned == {"rows": ROWS, "origin": "some/set", "revision": COMMIT}
    source, kind, message, sentence = absent
    assert (source, kind) == ("other/set", "offline")
    assert message == sentence
    for part in (
        "other/set is not completely in this machine's cache,",
        "HF_HUB_OFFLINE is set",
        "`hf download --repo-type dataset other/set`",
        "`path`",
    ):
        assert part in message
    assert unknown[:2] == ["some/set", "offline"]
    assert "some/set at v9 is not" in unknown[2]
    assert "only 1 of the 2 files train-*.parquet" in half


def test_a_data_set_is_downloaded_once_and_errors_of_the_hub_have_a_kind(tmp_path: Path):
    write_parquet(tmp_path / "x.parquet", ROWS)
    files = {"data/train-00000-of-00001.parquet": (tmp_path / "x.parquet").read_bytes(), "weights.bin": b"not wanted"}
    refusals = {
        "gated/set": (403, "GatedRepo"),
        "nobody/nothing": (404, "RepoNotFound"),
        "broken/set": (500, "Broken"),
    }
    with hub(files, refusals) as endpoint:
        table, *errors = loaded(
            tmp_path / "home",
            "open/set",
            "gated/set",
            "nobody/nothing",
            "open/set@v9",
            "broken/set",
            HF_ENDPOINT=endpoint,
        )
    assert table == {"rows": ROWS, "origin": "open/set", "revision": COMMIT}
    assert [path.name for path in (tmp_path / "home").rglob("*.bin")] == []
    assert [(source, kind) for source, kind, _, _ in errors] == [
        ("gated/set", "gated"),
        ("nobody/nothing", "missing"),
        ("open/set", "missing"),
        ("broken/set", "offline"),
    ]
    gated, missing, revision, broken = (message for _, _, message, _ in errors)
    assert "gated: accept its terms at https://huggingface.co/datasets/gated/set" in gated
    assert "`hf auth login`" in gated
    assert "no data set 'nobody/nothing'" in missing
    assert "no revision 'v9'" in revision
    assert "`path`" not in revision
    assert "the hub cannot be reached (Server error" in broken
    again, offline = loaded(tmp_path / "home", "open/set", "gated/set", HF_ENDPOINT=endpoint)  # which is gone
    assert again == table
    assert offline[1] == "offline"
    assert "the hub cannot be reached" in offline[2]


FORKED = """
import os, sys
from lowtax.data import readers
import datasets, pyarrow.parquet
for _ in range(20):
    if os.fork() == 0:
        assert len(readers.load(sys.argv[1]).rows) == 2
        sys.exit()  # the interpreter ends as after any command
    if os.wait()[1]:
        sys.exit("aborted")
"""


def test_a_process_that_read_parquet_ends_well(tmp_path: Path):
    # pyarrow's threads may outlive a read, and abort the process when they find Python gone: it was every fourth time.
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", ROWS)
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_error_survives_the_way_to_another_process():
    error = pickle.loads(pickle.dumps(DataNotAvailable("a/b", "gated", "It is gated", remedy="")))
    assert (error.source, error.kind, str(error)) == ("a/b", "gated", "It is gated.")
    assert isinstance(error, UserError)
