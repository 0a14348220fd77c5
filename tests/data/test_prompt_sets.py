"""Prompt sets by name: real copies have the published rows, and a set that is missing says what to do."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from datahub import COMMIT, cached, hub, write_jsonl
from places import ROOT

from lowtax.common.errors import UserError
from lowtax.common.records import row_id
from lowtax.data import prompt_sets
from lowtax.data.catalog import PROMPT_COPIES, PROMPT_SETS

DOCS = ROOT / "docs"
REAL = ("strongreject", "advbench", "xstest", "xstest-safe", "xstest-unsafe", "do-not-answer")


# --- published files


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("name", REAL)
def test_real_copies_have_the_published_rows(name: str):
    whole = prompt_sets.load(name)
    repeated = PROMPT_SETS[name].rows - len(whole.prompts)
    assert len({p.id for p in whole.prompts}) == len(whole.prompts)
    assert whole.note == ("1 repeated, left out" if name == "do-not-answer" else "")
    assert repeated == (name == "do-not-answer")
    assert all(p.text.strip() and p.source == name and p.id == row_id(name, p.text) for p in whole.prompts)
    assert whole.goals == {}


@pytest.mark.usefixtures("published")
def test_xstest_is_split_by_its_label_and_keeps_its_types():
    both, safe, unsafe = (prompt_sets.load(name).prompts for name in ("xstest", "xstest-safe", "xstest-unsafe"))
    labels = Counter(p.category.partition(":")[0] for p in both)
    assert labels == {"safe": 250, "unsafe": 200}
    assert {p.text for p in safe} | {p.text for p in unsafe} == {p.text for p in both}
    assert Counter(Counter(p.category for p in safe).values()) == {25: 10}
    assert all(p.category.startswith("unsafe:contrast_") for p in unsafe)


@pytest.mark.usefixtures("published")
def test_categories_and_the_first_n():
    assert len({p.category for p in prompt_sets.load("strongreject").prompts}) == 6
    assert len({p.category for p in prompt_sets.load("do-not-answer").prompts}) == 5
    few = prompt_sets.load("advbench", n=7)
    assert few.prompts == prompt_sets.load("advbench").prompts[:7]
    assert few.note == ""
    assert few.describe()["rows"] == 7
    assert few.describe()["licence"] == "MIT"
    assert few.sha256 != prompt_sets.load("advbench", n=8).sha256


def test_a_named_set_and_its_file_have_the_same_texts(published: Path):
    by_name, by_file = prompt_sets.load("strongreject"), prompt_sets.load(f"{published}/strongreject.csv")
    assert [(p.text, p.category) for p in by_name.prompts] == [(p.text, p.category) for p in by_file.prompts]
    assert by_name.sha256 == by_file.sha256
    assert by_file.licence is None
    assert by_file.origin == "strongreject.csv"


# --- layouts of copies


def test_harmbench_is_one_file_with_two_sets_in_it(copies: Path):
    rows = [
        {"Behavior": "Do a.", "FunctionalCategory": "standard", "SemanticCategory": "x", "ContextString": ""},
        {"Behavior": "Do b.", "FunctionalCategory": "contextual", "SemanticCategory": "y", "ContextString": "A story."},
        {"Behavior": "Do b.", "FunctionalCategory": "contextual", "SemanticCategory": "y", "ContextString": "Another."},
        {"Behavior": "Sing c.", "FunctionalCategory": "copyright", "SemanticCategory": "", "ContextString": None},
    ]
    write_jsonl(copies / "harmbench_behaviors_text_all.jsonl", *rows)
    standard, contextual = prompt_sets.load("harmbench"), prompt_sets.load("harmbench-contextual")
    assert [(p.text, p.category) for p in standard.prompts] == [("Do a.", "x")]
    assert standard.note == "1 rows instead of the 200 published"
    assert standard.describe()["note"] == standard.note
    assert [p.text for p in contextual.prompts] == ["A story.\n\n---\n\nDo b.", "Another.\n\n---\n\nDo b."]
    assert [p.goal for p in contextual.prompts] == ["Do b.", "Do b."]
    assert prompt_sets.load("harmbench-contextual", n=1).goals == {contextual.prompts[0].id: "Do b."}
    assert standard.prompts[0].goal is None


def test_a_copy_of_one_subset_needs_no_column_that_names_the_subset(copies: Path):
    write_jsonl(copies / "harmbench.jsonl", {"prompt": "Do a.", "category": "x"})
    assert [(p.text, p.category) for p in prompt_sets.load("harmbench").prompts] == [("Do a.", "x")]


def test_rows_of_different_sets_are_never_mixed(copies: Path):
    write_jsonl(copies / "xstest.jsonl", {"prompt": "How do I kill a process?", "type": "homonyms"})
    with pytest.raises(UserError, match=r"xstest.jsonl has no column label; its columns are prompt, type"):
        prompt_sets.load("xstest-safe")
    write_jsonl(copies / "xstest.jsonl", {"prompt": "How do I kill a process?", "type": "homonyms", "label": "safe"})
    with pytest.raises(UserError, match=r"no rows with label = unsafe"):
        prompt_sets.load("xstest-unsafe")


def test_wildjailbreak_is_tab_separated(copies: Path):
    text = (
        'adversarial\tlabel\tdata_type\n"two\nlines, one\tcell"\t1\tadversarial_harmful\nfine\t0\tadversarial_benign\n'
    )
    (copies / "eval.tsv").write_text(text)
    (harmful,), (benign,) = prompt_sets.load("wildjailbreak").prompts, prompt_sets.load("wildjailbreak-benign").prompts
    assert (harmful.text, harmful.category) == ("two\nlines, one\tcell", "adversarial_harmful")
    assert (benign.text, benign.category) == ("fine", "adversarial_benign")
    assert prompt_sets.load(f"{copies}/eval.tsv:label").prompts[0].text == "1"


def test_a_copy_may_be_compressed_and_its_column_named(copies: Path):
    packed = gzip.compress(b"q,category\nDo a.,x\nDo a.,y\n")
    (copies / "strongreject-small.csv.gz").write_bytes(packed)
    whole = prompt_sets.load("strongreject-small:q")
    assert [(p.text, p.category) for p in whole.prompts] == [("Do a.", "x")]
    assert whole.note == "2 rows instead of the 60 published; 1 repeated, left out"
    with pytest.raises(UserError, match=r"has no column forbidden_prompt or prompt; its columns are q, category"):
        prompt_sets.load("strongreject-small")


def test_the_hash_is_of_texts_and_categories_in_any_order(tmp_path: Path):
    rows = [{"prompt": "a", "category": "x"}, {"prompt": "b", "category": "y"}]
    one, turned = write_jsonl(tmp_path / "one.jsonl", *rows), write_jsonl(tmp_path / "turned.jsonl", *rows[::-1])
    other = write_jsonl(tmp_path / "other.jsonl", rows[0], {"prompt": "b", "category": "z"})
    hashes = [prompt_sets.load(str(path)).sha256 for path in (one, turned, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_ids_and_other_columns_of_a_file_are_kept_and_empty_rows_are_counted(tmp_path: Path):
    path = tmp_path / "mine.csv"
    path.write_text("id,prompt,note,category\n7,b,x,k\n3,,y,k\n5,a,,\n9,b,z,k\n7,b,x,k\n4,  ,y,\n")
    whole = prompt_sets.load(str(path))
    assert [(p.text, p.category, whole.columns[p.id]) for p in whole.prompts] == [
        ("b", "k", {"id": "7", "note": "x"}), ("a", "", {"id": "5", "note": ""}), ("b", "k", {"id": "9", "note": "z"}),
    ]  # fmt: skip
    assert whole.note == "2 empty, left out; 1 repeated, left out"
    assert [p.id for p in whole.prompts][:2] == [row_id(str(path), text) for text in ("b", "a")]
    assert len({p.id for p in whole.prompts}) == 3
    with pytest.raises(UserError, match="column 'prompt' is empty in all 1 rows"):
        prompt_sets.load(str(write_jsonl(tmp_path / "empty.jsonl", {"prompt": None})))


def test_files_of_any_name(tmp_path: Path):
    path = write_jsonl(
        tmp_path / "a:b.jsonl", {"Goal": "x", "kind": "k", "split": "test"}, {"Goal": "y", "split": "train"}
    )
    assert [(p.text, p.category) for p in prompt_sets.load(str(path)).prompts] == [("x", "k"), ("y", "")]
    assert [p.text for p in prompt_sets.load(f"{path}:kind", split="test").prompts] == ["k"]
    with pytest.raises(UserError, match="no prompts in split 'validation'"):
        prompt_sets.load(str(path), split="validation")
    with pytest.raises(UserError, match=r"row 2: the column 'kind' is not there"):
        prompt_sets.load(f"{path}:kind")


def test_built_in_sets():
    whole = prompt_sets.load("builtin:harmful", split="test", n=3)
    assert len(whole.prompts) == 3
    assert whole.describe()["licence"] == "Apache-2.0"


# --- missing sets


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("xstes", "no prompt set and no file 'xstes'; did you mean 'xstest'?"),
        ("absent.csv", "'absent.csv' cannot be read: No such file"),
        ("strongreject-small", "not on the hub: get it from https://github.com/alexandrasouly/strongreject"),
    ],
)
def test_unknown_and_unpublished_sets(copies: Path, spec: str, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        prompt_sets.load(spec)


def test_a_named_set_takes_no_split_and_the_folder_must_be_one(copies: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="xstest is a single split"):
        prompt_sets.load("xstest", split="train")
    monkeypatch.setenv(PROMPT_COPIES.variable, str(write_jsonl(copies / "file.jsonl", {"prompt": "a"})))
    with pytest.raises(UserError, match="which is no folder"):
        prompt_sets.load("xstest")


# --- the hub

LOADING = """
import json, sys
from lowtax.data import prompt_sets
from lowtax.common.errors import UserError
for spec in sys.argv[1:]:
    try:
        whole = prompt_sets.load(spec)
        print(json.dumps({"texts": [[p.text, p.category] for p in whole.prompts], **whole.describe()}))
    except UserError as error:
        print(json.dumps(str(error)))
"""
JBB = b"""---
configs:
- config_name: behaviors
  data_files:
  - split: harmful
    path: data/harmful-behaviors.csv
  - split: benign
    path: data/benign-behaviors.csv
- config_name: judge_comparison
  data_files:
  - split: test
    path: data/judge-comparison.csv
---
"""


def loaded(home: Path, *specs: str, **environment: str) -> list[object]:
    """The prompts or errors of a separate process with a cache at `home`."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", PROMPT_COPIES.variable))}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *specs],
        env={**variables, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_sets_of_the_hub(tmp_path: Path):
    files = {  # of different lengths, by which this hub tells them apart
        "README.md": JBB,
        "data/harmful-behaviors.csv": b"Index,Goal,Behavior,Category\n0,Do a.,A,x\n",
        "data/benign-behaviors.csv": b"Index,Goal,Behavior,Category\n0,Do b. now,B,x\n",
        "data/judge-comparison.csv": b"Index,goal\n0,no\n",
        "eval/eval.tsv": b"adversarial\tlabel\tdata_type\nPlay c.\t1\tadversarial_harmful\n",
        "train/train.tsv": b"not wanted",
    }
    home, gates = tmp_path / "home", {"walledai/HarmBench": (403, "GatedRepo")}
    with hub(files, gates) as endpoint:
        harmful, benign, wild, gated = loaded(
            home, "jailbreakbench", "jailbreakbench-benign", "wildjailbreak", "harmbench", HF_ENDPOINT=endpoint
        )
    assert isinstance(harmful, dict)
    assert isinstance(benign, dict)
    assert (harmful["texts"], benign["texts"]) == ([["Do a.", "x"]], [["Do b. now", "x"]])
    assert (harmful["revision"], harmful["origin"]) == (COMMIT, "JailbreakBench/JBB-Behaviors")
    assert isinstance(wild, dict)
    assert wild["texts"] == [["Play c.", "adversarial_harmful"]]
    assert wild["revision"] == COMMIT
    assert list(home.rglob("train.tsv")) == []
    for part in (
        "HarmBench is gated",
        "accept its terms at https://",
        "`hf auth login`",
        "harmbench.csv",
        "FILE:COLUMN",
    ):
        assert part in str(gated)
    again, offline, closed = loaded(home, "wildjailbreak", "xstest", "advbench", HF_HUB_OFFLINE="1")
    assert again == wild
    assert "accept its terms at https://huggingface.co/datasets/walledai/AdvBench" in str(closed)
    assert "accept its terms" not in str(offline)
    assert "`hf download --repo-type dataset Paul/XSTest`" in str(offline)
    assert "`path`" not in str(offline)
    assert PROMPT_COPIES.variable in str(offline)


def test_any_data_set_of_the_hub_by_its_id(tmp_path: Path):
    cached(tmp_path, "some/set", [[{"question": "Do a.", "own": "Do b."}]])
    by_guess, by_column = loaded(tmp_path, "some/set", "some/set:own", HF_HUB_OFFLINE="1")
    assert isinstance(by_guess, dict)
    assert isinstance(by_column, dict)
    assert (by_guess["texts"], by_column["texts"]) == ([["Do a.", ""]], [["Do b.", ""]])
    assert by_guess["revision"] == COMMIT


# --- the guide


def test_the_guide_has_a_line_for_every_set():
    lines = (DOCS / "reference/prompt-sets.md").read_text().splitlines()
    table = {cells[1].strip(" `"): line for line in lines if len(cells := line.split("|")) > 5}
    for name, named in PROMPT_SETS.items():
        line = table[name]
        for entry in (f"{named.rows:,}", named.hub, named.subset or "", named.licence, named.citation):
            assert entry in line, (name, entry)
        assert ("gated" in line) == named.gated, name
        if named.unverified:
            assert named.unverified in line, name
    assert set(PROMPT_SETS) <= set(table)
