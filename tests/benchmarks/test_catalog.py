"""Exams by name: real copies have the published rows, a pinned commit is read, errors say what to do."""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from datahub import COMMIT, hub, write_jsonl, write_parquet
from places import ROOT

from lowtax.benchmarks import catalog
from lowtax.benchmarks.base import TABLE, Task, load
from lowtax.benchmarks.catalog import QUESTION_SETS
from lowtax.cli import main
from lowtax.common.errors import UserError
from lowtax.data import readers

DOCS = ROOT / "docs"
GENERATED_OR_FILE = {"arithmetic", "reasoning_gym", "multiple_choice", "math"}


# --- local copies


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("name", "note"), [("aime24", ""), ("gsm8k", ""), ("humaneval", ""), ("mmlu", "1051 rows")])
def test_real_copies_have_the_published_rows(name: str, note: str):
    found = catalog.read(name, Task())
    assert found.note.startswith(note)
    assert bool(found.note) == bool(note) == (len(found.rows) != QUESTION_SETS[name].rows)
    assert found.revision is None
    assert found.describe()["licence"] == QUESTION_SETS[name].licence
    assert found.describe()["rows"] == len(found.rows)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("aime25", "aime25.jsonl"),
        ("math500", "MATH-500.jsonl"),
        ("humaneval_plus", "HumanEvalPlus.jsonl.gz"),
        ("humaneval_plus", "HumanEvalPlus-v0.1.10.jsonl"),
        ("mbpp_plus", "MbppPlus-v0.2.0.jsonl.gz"),
        ("gpqa_diamond", "gpqa_diamond.csv"),
    ],
)
def test_copies_are_found_under_the_names_they_have(copies: Path, name: str, file: str):
    path = copies / file
    text = "task_id\nown\n" if path.suffix == ".csv" else json.dumps({"task_id": "own"}) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    found = catalog.read(name, Task())
    assert (found.rows, found.origin) == ([{"task_id": "own"}], file)
    assert found.note == f"1 rows instead of the {QUESTION_SETS[name].rows} published"


def test_what_a_task_names_goes_before_the_folder(copies: Path, tmp_path: Path):
    write_jsonl(copies / "gsm8k.jsonl", {"question": "folder"})
    own = write_jsonl(tmp_path / "own.jsonl", {"question": "file"})
    assert catalog.rows("gsm8k", Task()) == [{"question": "folder"}]
    assert catalog.rows("gsm8k", Task(file=str(own))) == [{"question": "file"}]


def test_a_copy_where_evalplus_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(catalog.TASK_COPIES.variable, raising=False)
    monkeypatch.setenv("MBPP_OVERRIDE_PATH", str(write_jsonl(tmp_path / "mine.jsonl", {"task_id": "Mbpp/2"})))
    assert catalog.rows("mbpp_plus", Task()) == [{"task_id": "Mbpp/2"}]


def test_another_split_is_another_file(copies: Path):
    write_jsonl(copies / "gsm8k.jsonl", {"question": "test"})
    write_jsonl(copies / "gsm8k_train.jsonl", {"question": "train"})
    found = catalog.read("gsm8k", Task(split="train"))
    assert (found.rows, found.note) == ([{"question": "train"}], "")
    with pytest.raises(UserError, match="is a file, which is one split"):
        catalog.rows("gsm8k", Task(file=str(copies / "gsm8k.jsonl"), split="train"))


def test_a_folder_as_the_hub_lays_them_out(tmp_path: Path):
    write_parquet(tmp_path / "copy" / "data" / "test-00000-of-00001.parquet", [{"problem": "1+1", "answer": "2"}])
    assert catalog.rows("math500", Task(file=str(tmp_path / "copy"))) == [{"problem": "1+1", "answer": "2"}]


def test_a_file_of_ones_own_may_hold_several_splits_and_subjects(tmp_path: Path):
    rows = [
        {"problem": "a", "split": "train", "subject": "x"},
        {"problem": "b", "split": "test", "subject": "x"},
        {"problem": "c", "split": "test", "subject": "y"},
    ]
    file = str(write_jsonl(tmp_path / "own.jsonl", *rows))
    assert catalog.rows("math", Task(file=file)) == rows
    assert catalog.rows("math", Task(file=file, split="test")) == rows[1:]
    assert catalog.rows("math", Task(file=file, split="test", subset="y")) == rows[2:]
    for wrong, sentence in (
        (Task(file=file, split="dev"), "has no rows whose column `split` is 'dev'"),
        (Task(file=file, subset="z"), "own.jsonl has no subject 'z'; known are: x, y."),
        (Task(), "The task math comes without questions: give its file"),
        (Task(file=str(tmp_path / "none.jsonl")), "none.jsonl' cannot be read: No such file"),
    ):
        with pytest.raises(UserError) as error:
            catalog.rows("math", wrong)
        assert sentence in str(error.value)


def test_a_subject_whose_name_is_part_of_another_s(tmp_path: Path):
    rows = [{"problem": "a", "subject": "physics"}, {"problem": "b", "subject": "high_school_physics"}]
    file = str(write_jsonl(tmp_path / "own.jsonl", *rows))
    assert catalog.rows("math", Task(file=file, subset="high_school_physics")) == rows[1:]


def test_a_folder_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(catalog.TASK_COPIES.variable, str(tmp_path / "none"))
    with pytest.raises(UserError, match="which is no folder: set it to the one that holds your task files"):
        catalog.rows("aime24", Task())


def test_only_mmlu_has_subsets():
    with pytest.raises(UserError, match="The task aime24 has no subsets: remove 'algebra'"):
        catalog.rows("aime24", Task(subset="algebra"))


def test_columns_are_found_whatever_their_capitals():
    row = {"ID": "1", "Problem": "p", "empty": None}
    assert readers.cell(row, ("question", "problem"), "x") == "p"
    with pytest.raises(UserError, match=r"x has no column answer or gold; its columns are ID, Problem, empty\."):
        readers.cell(row, ("answer", "gold"), "x")
    with pytest.raises(UserError, match="x: the column 'empty' is empty"):
        readers.cell(row, ("Empty",), "x")


# --- the hub

READING = """
import dataclasses, json, os, sys
from lowtax.benchmarks import catalog
from lowtax.benchmarks.base import Task
from lowtax.common.errors import UserError
for name in sys.argv[1:]:
    name, _, split = name.partition(":")
    if pin := os.environ.get("PIN"):
        catalog.QUESTION_SETS[name] = dataclasses.replace(catalog.QUESTION_SETS[name], revision=pin)
    try:
        found = catalog.read(name, Task(split=split or None))
        print(json.dumps({"questions": found.rows, **found.describe()}))
    except UserError as error:
        print(json.dumps(str(error)))
"""
GSM8K = b"""---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train.jsonl
  - split: test
    path: main/test.jsonl
- config_name: socratic
  data_files:
  - split: test
    path: socratic/test.jsonl
---
"""


def read(home: Path, *names: str, **environment: str) -> list[object]:
    """The rows or errors of a separate process with a cache at `home`."""
    variables = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", catalog.TASK_COPIES.variable))
    }
    done = subprocess.run(
        [sys.executable, "-c", READING, *names],
        env={**variables, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def snapshot(home: Path, name: str, files: dict[str, bytes]) -> None:
    """Put a data set into the hub's cache, at the commit that is pinned for it."""
    root = (
        home
        / "hub"
        / f"datasets--{QUESTION_SETS[name].hub.replace('/', '--')}"
        / "snapshots"
        / QUESTION_SETS[name].revision
    )
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)


def test_the_hub_s_cache_is_read_at_the_pinned_commit(tmp_path: Path):
    files = {
        "README.md": GSM8K,
        "main/train.jsonl": b'{"question": "train"}\n',
        "main/test.jsonl": b'{"question": "test"}\n',
        "socratic/test.jsonl": b'{"question": "no"}\n',
    }
    snapshot(tmp_path, "gsm8k", files)
    usual, train, wrong = read(tmp_path, "gsm8k", "gsm8k:train", "gsm8k:dev", HF_HUB_OFFLINE="1")
    assert isinstance(usual, dict)
    assert isinstance(train, dict)
    assert usual["questions"] == [{"question": "test"}]
    assert (usual["origin"], usual["revision"]) == ("openai/gsm8k", QUESTION_SETS["gsm8k"].revision)
    assert usual["note"] == "1 rows instead of the 1319 published"
    assert (train["questions"], train["note"]) == ([{"question": "train"}], "")
    assert "openai/gsm8k has no split 'dev'" in str(wrong)


def test_what_is_not_here_says_how_it_is_had(tmp_path: Path):
    gpqa, mbpp = read(tmp_path, "gpqa_diamond", "mbpp_plus", HF_HUB_OFFLINE="1")
    for part in (
        f"`hf download --repo-type dataset Idavidrein/gpqa --revision {QUESTION_SETS['gpqa_diamond'].revision}`",
        "accept its terms at https://huggingface.co/datasets/Idavidrein/gpqa",
        "`hf auth login`",
        "gpqa_diamond.csv",
        '"Question", "Correct Answer" and "Incorrect Answer 1" to "Incorrect Answer 3"',
        catalog.TASK_COPIES.variable,
    ):
        assert part in str(gpqa)
    assert "gated" not in str(mbpp)
    assert "mbpp_plus.csv or .jsonl into a folder" in str(mbpp)


def test_a_hub_that_answers_and_one_that_refuses(tmp_path: Path):
    files = {"README.md": b"# aime25", "test.jsonl": b'{"problem": "1+1?", "answer": "2"}\n'}
    with hub(files, {"Idavidrein/gpqa": (403, "GatedRepo")}) as endpoint:
        gated, open_ = read(tmp_path, "gpqa_main", "aime25", HF_ENDPOINT=endpoint, PIN=COMMIT)
    assert str(gated).startswith("The data set Idavidrein/gpqa is gated: accept its terms at https://")
    assert "gpqa_main.csv" in str(gated)
    assert isinstance(open_, dict)
    assert (open_["questions"], open_["revision"]) == ([{"problem": "1+1?", "answer": "2"}], COMMIT)


# --- the table and the guide


def test_every_exam_of_the_table_has_questions():
    for name in set(TABLE) - GENERATED_OR_FILE:
        assert name in QUESTION_SETS
    assert set(QUESTION_SETS) <= set(TABLE)
    for name, named in QUESTION_SETS.items():
        assert len(named.revision) == 40, name
        assert int(named.revision, 16) > 0, name
    assert load("aime24", Task()).workers == "processes"


def test_the_guide_has_a_line_for_every_exam():
    lines = (DOCS / "reference/benchmarks.md").read_text().splitlines()
    table = {cells[1].strip(" `"): line for line in lines if len(cells := line.split("|")) > 5}
    for name, named in QUESTION_SETS.items():
        line = table[name]
        for said in (f"{named.rows:,}", named.hub, named.revision[:8], named.subset or "", named.licence):
            assert said in line, (name, said)
        assert named.split in line, name
        assert ("gated" in line) == named.gated, name
    assert set(TABLE) <= set(table)


def blocks(language: str) -> list[str]:
    text = (DOCS / "reference/benchmarks.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_tasks_of_the_guide_are_tasks():
    found = [Task(**settings) for block in blocks("yaml") for settings in yaml.safe_load(block)["tasks"].values()]
    assert len(found) == 5
    assert [task.benchmark for task in found] == [None, None, "mmlu", "multiple_choice", "reasoning_gym"]


def test_the_commands_of_the_guide_are_understood():
    group = typer.main.get_command(main.app)
    [block] = blocks("bash")
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line.startswith("lowtax ")]
    assert len(lines) == 4
    for line in lines:
        _, command, *words = shlex.split(line)
        group.commands[command].make_context(command, words)  # type: ignore[attr-defined]
