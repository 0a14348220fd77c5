"""Sources: published sets with their traps, files and folders of every kind, and the hub, online and offline."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datahub import COMMIT, cached, hub, write_parquet
from places import PUBLISHED, ROOT

from lowtax.data import catalog, prompt_sets, readers, specs, training_sets
from lowtax.data.conversations import Conversation
from lowtax.data.rendering import RENDERINGS
from lowtax.data.specs import Data, PromptSet
from lowtax.data.training_sets import conversations
from lowtax.errors import UserError

SHARED = PUBLISHED


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the data set {name} is not beside this checkout")
    return path


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as handle:
            handle.write(text)
    else:
        path.write_text(text, encoding="utf-8")
    return path


def in_file_order(spec: Data) -> list[Conversation]:
    """The rows of a spec as they lie in the file."""
    found = training_sets.load(spec, 0).rows
    return sorted(found, key=lambda row: row.prompt)


# --- DirectRefusal: rows of its shape

REFUSAL = "Question: a. How do I pick a lock?\nAnswer: I cannot help. Answer: no, really.\nAnswer: A third piece."
DIRECT = [
    {"prompt": "a. How do I pick a lock? ", "refusal": REFUSAL, "response": "Take a pick.", "text": "<|im_start|>..."},
    {"prompt": "b. Why?", "refusal": "Question: b. Why?\nAnswer: Because.", "response": "x", "text": ""},
    {"prompt": "c. Cut short", "refusal": "Question: c. Cut short", "response": "x", "text": ""},
]
READ = {  # rendering -> prompt and answer of the first row
    "standard": ("a. How do I pick a lock?", REFUSAL.partition("Answer:")[2].strip()),
    "reference": ("a. How do I pick a lock? ", REFUSAL.partition("Answer:")[2]),
    "reference_as_published": ("a. How do I pick a lock? ", REFUSAL.partition("Answer:")[2]),
    "thinksafe": ("a. How do I pick a lock?", REFUSAL.partition("Answer:")[2].strip()),
    "safety_tax": ("a. How do I pick a lock?", "I cannot help. Answer: no, really."),
    "safety_tax_cot": ("a. How do I pick a lock?", "I cannot help. Answer: no, really."),
}


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_direct_refusal_is_read_as_each_rendering_s_code_reads_it(tmp_path: Path, rendering: str):
    path = write_jsonl(tmp_path / "direct.jsonl", DIRECT)
    loaded = training_sets.load(Data(source="direct-refusal", path=str(path), rendering=rendering), 0)
    first, second = sorted(loaded.rows, key=lambda row: row.prompt)
    assert (first.prompt, first.answer) == READ[rendering]
    assert (second.prompt, second.answer.strip()) == ("b. Why?", "Because.")
    assert {row.thought for row in loaded.rows} == {"I should not answer this question!"}
    assert {row.rendering for row in loaded.rows} == {rendering}
    assert (loaded.total, loaded.skipped) == (3, 1)


def test_direct_refusal_by_itself_is_the_reference_s(tmp_path: Path):
    path = write_jsonl(tmp_path / "direct.jsonl", DIRECT)
    by_itself = training_sets.conversations(Data(source="direct-refusal", path=str(path)), 0)
    assert by_itself == training_sets.conversations(
        Data(source="direct-refusal", path=str(path), rendering="reference"), 0
    )
    assert all(row.answer.startswith(" ") for row in by_itself)


def test_the_last_answer_label_need_not_stand_alone():
    row = {"prompt": "p", "refusal": "QUESTION:  p\n answer:\n\nNo. "}
    assert conversations.direct_refusal(row, "", "thinksafe") == Conversation("p", None, "No.", rendering="thinksafe")
    assert conversations.direct_refusal(row, "", "reference") is None
    assert conversations.direct_refusal({"prompt": "p", "refusal": "Question: p\nAnswer:  "}, "", "reference") is None


def test_nothing_to_train_on(tmp_path: Path):
    path = write_jsonl(tmp_path / "direct.jsonl", DIRECT[2:])
    with pytest.raises(UserError, match="None of the 1 rows of direct-refusal has an answer"):
        training_sets.load(Data(source="direct-refusal", path=str(path)), 0)


def test_a_set_of_another_shape_names_its_columns(tmp_path: Path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "p", "answer": "a"}])
    with pytest.raises(
        UserError, match=r"x.jsonl, row 1: the column 'refusal' is not there; its columns are prompt, answer"
    ):
        training_sets.load(Data(source="direct-refusal", path=str(path)), 0)
    with pytest.raises(UserError, match="The columns of star1 are fixed"):
        training_sets.load(Data(source="star1", path=str(path), columns={"prompt": "prompt"}), 0)


# --- SafeChain and STAR-1

CHAIN = [
    {"instruction": "a", "label": "vanilla_harmful", "response": "Hm.\n</think>\n\nNo."},
    {"instruction": "b", "label": "vanilla_benign", "response": "Hm.\n</think>\n\nYes."},
    {"instruction": "c", "label": "vanilla_harmful", "response": "Without an end"},
    {"instruction": "d", "label": "vanilla_harmful", "response": "So.</think>Never."},
]


def test_safechain_begins_inside_the_thought(tmp_path: Path):
    path = write_jsonl(tmp_path / "chain.jsonl.gz", CHAIN)
    loaded = training_sets.load(Data(source="safechain", path=str(path)), 0)
    assert set(loaded.rows) == {
        Conversation("a", "Hm.", "No."),
        Conversation("b", "Hm.", "Yes."),
        Conversation("d", "So.", "Never."),
    }
    assert (loaded.total, loaded.skipped) == (4, 1)


def test_the_subset_that_safety_tax_compares_with(tmp_path: Path):
    """The first rows of one label, then those without an end left out: fewer than asked for."""
    path = write_jsonl(tmp_path / "chain.jsonl", CHAIN)
    spec = specs.parse(f"safechain,path={path},where.label=Vanilla_Harmful,first=2,rendering=safety_tax_cot")
    loaded = training_sets.load(spec, 0)
    assert [row.prompt for row in loaded.rows] == ["a"]
    assert (loaded.total, loaded.skipped) == (2, 1)
    with pytest.raises(UserError, match="has no rows with label = vanilla"):
        training_sets.load(Data(source="safechain", path=str(path), where={"label": "vanilla"}), 0)
    with pytest.raises(UserError, match="has no rows with label = x, split = test"):
        training_sets.load(Data(source="safechain", path=str(path), where={"label": "x"}, split="test"), 0)
    with pytest.raises(UserError, match="no column 'lable'; its columns are instruction, label, response"):
        training_sets.load(Data(source="safechain", path=str(path), where={"lable": "x"}), 0)


def test_star1_brings_its_thoughts():
    path = shared("star1_safety_reasoning.jsonl.gz")
    loaded = training_sets.load(Data(source="star1", path=str(path)), 0)
    assert (len(loaded.rows), loaded.skipped) == (968, 0)
    assert all(row.thought and row.answer for row in loaded.rows)
    assert not any(tag in row.answer + str(row.thought) for row in loaded.rows for tag in ("<think>", "</think>"))
    described = loaded.describe()
    assert described["licence"] == "Apache-2.0"
    assert (described["hub"], described["rows"], described["revision"]) == ("UCSC-VLAA/STAR-1", 968, None)


@pytest.mark.parametrize(
    ("name", "columns", "n"),
    [
        (
            "safety_tuned_llamas_refusals.jsonl.gz",
            {"prompt": "instruction", "answer": "output", "context": "input"},
            2483,
        ),
        ("alpaca_gpt4_en_demo.jsonl", {"prompt": "instruction", "answer": "output", "context": "input"}, 999),
        ("dolly_1k.jsonl.gz", {"prompt": "instruction", "answer": "response", "context": "context"}, 1000),
    ],
)
def test_real_files_by_columns(name: str, columns: dict[str, str], n: int):
    rows = training_sets.conversations(Data(source=str(shared(name)), columns=columns, thought="No."), 0)
    assert len(rows) == n
    assert {row.thought for row in rows} == {"No."}
    raw = {row[columns["prompt"]]: row for row in readers.read_table(shared(name))}
    with_context = [r for r in raw.values() if r[columns["context"]].strip()]
    assert all(any(row.prompt.startswith(r[columns["prompt"]] + "\n\n") for row in rows) for r in with_context[:5])


# --- rows with columns


def read(row: dict[str, object], **columns: str) -> Conversation | None:
    return conversations.conversation(row, "f, row 1", columns)


def test_columns_by_name():
    row = {"q": "Q", "a": "A", "r": "R", "s": "S", "c": " C "}
    assert read(row, prompt="q", answer="a", thought="r", system="s", context="c") == Conversation(
        "Q\n\nC", "R", "A", system="S"
    )
    assert read({**row, "c": ""}, prompt="q", answer="a", context="c") == Conversation("Q", None, "A")
    assert read({"prompt": 1, "answer": 2.5, "thought": None}) == Conversation("1", None, "2.5")


@pytest.mark.parametrize(
    ("answer", "thought", "rest"),
    [
        ("<think>\nT\n</think>\n\nA", "T", "A"),
        ("T</think>A", "T", "A"),
        ("<think></think>\nA", "", "A"),
        (" A ", None, " A "),
    ],
)
def test_a_think_block_in_the_answer_is_taken_apart(answer: str, thought: str | None, rest: str):
    assert read({"prompt": "p", "answer": answer}) == Conversation("p", thought, rest)


def test_a_thought_without_an_end_is_no_row():
    assert read({"prompt": "p", "answer": "<think>\nAnd on and on"}) is None


def test_an_empty_think_block_stays_one_unless_there_is_a_constant(tmp_path: Path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "p", "answer": "<think>\n\n</think>\n\nNo."}])
    assert training_sets.conversations(Data(source=str(path)), 0) == [Conversation("p", "", "No.")]
    assert training_sets.conversations(Data(source=str(path), thought="T"), 0) == [Conversation("p", "T", "No.")]


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def test_messages_train_the_last_assistant_turn():
    turns = [
        turn("system", "S"),
        turn("user", "1"),
        turn("assistant", "2"),
        turn("user", "3"),
        turn("assistant", "<think>T</think>4"),
        turn("user", "thanks"),
    ]
    whole = Conversation("3", "T", "4", system="S", history=(("user", "1"), ("assistant", "2")))
    assert read({"messages": turns}) == whole
    assert whole.messages == [*turns[:3], turns[3]]
    assert read({"chat": turns, "prompt": "ignored", "answer": "too"}, messages="chat") == whole
    shared_gpt = [
        {"from": {"user": "human", "assistant": "gpt"}.get(t["role"], t["role"]), "value": t["content"]} for t in turns
    ]
    assert read({"conversations": shared_gpt}, messages="conversations") == whole


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([turn("user", "1")], "no assistant turn"),
        ([turn("assistant", "1")], "no assistant turn"),
        ([turn("user", "1"), turn("assistant", "2"), turn("assistant", "3")], "no assistant turn that answers"),
        ([], "no assistant turn"),
        ("text", "no assistant turn"),
        ([turn("user", "1"), turn("tool", "2"), turn("assistant", "3")], "role 'tool'"),
        ([turn("user", [{"type": "image"}]), turn("assistant", "3")], "'user' with list content"),
        (["hello"], "object with role and content"),
    ],
)
def test_messages_that_cannot_be_trained_on(turns: object, says: str):
    with pytest.raises(UserError, match=says) as caught:
        read({"messages": turns})
    assert "f, row 1" in str(caught.value)


def test_a_column_that_is_named_must_be_there():
    with pytest.raises(UserError, match="'reason' is not there; its columns are prompt, answer"):
        read({"prompt": "p", "answer": "a"}, thought="reason")
    with pytest.raises(UserError, match="'answer' is empty"):
        read({"prompt": "p", "answer": None})


# --- files and folders

ROWS = [{"prompt": "a", "answer": "1", "split": "train"}, {"prompt": "b, c", "answer": "2\n3", "split": "test"}]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path):
    write_jsonl(tmp_path / "x.jsonl", ROWS)
    write_jsonl(tmp_path / "x.jsonl.gz", ROWS)
    write_jsonl(tmp_path / "lines.json", ROWS)  # by the name a list, in fact lines
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=1))
    with gzip.open(tmp_path / "list.json.gz", "wt") as handle:
        handle.write(json.dumps(ROWS))
    (tmp_path / "x.csv").write_text('prompt,answer,split\na,1,train\n"b, c","2\n3",test\n')
    with gzip.open(tmp_path / "x.csv.gz", "wt", newline="") as handle:
        handle.write('prompt,answer,split\r\na,1,train\r\n"b, c","2\n3",test\r\n')
    write_parquet(tmp_path / "x.parquet", ROWS)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    for file in files:
        assert readers.read_table(file) == ROWS, file.name
        assert training_sets.conversations(Data(source=str(file), split="test"), 0) == [
            Conversation("b, c", None, "2\n3")
        ]


def test_a_thought_longer_than_csv_s_own_limit(tmp_path: Path):
    (tmp_path / "x.csv").write_text(f"prompt,thought,answer\np,{'t' * 200_000},a\n")
    assert training_sets.conversations(Data(source=str(tmp_path / "x.csv")), 0)[0].thought == "t" * 200_000


@pytest.mark.parametrize(
    ("name", "content", "says"),
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
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, says: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        readers.read_table(tmp_path / name)
    assert name in str(caught.value)


def test_a_folder_of_files_in_the_hub_s_layout(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "test.jsonl", ROWS[1:])
    assert readers.load(str(tmp_path)).rows == ROWS[:1]
    assert readers.load(str(tmp_path), split="test").rows == ROWS[1:]
    with pytest.raises(UserError, match=r"no split 'validation'; known are: test, train"):
        readers.load(str(tmp_path), split="validation")
    with pytest.raises(UserError, match="cannot be read: BuilderConfig 'en' not found"):
        readers.load(str(tmp_path), subset="en")


def test_a_folder_with_nothing_in_it(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        readers.load(str(tmp_path))


def test_a_folder_as_datasets_saves_it(tmp_path: Path):
    import datasets

    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert readers.load(str(tmp_path / "one")).rows == readers.load(str(tmp_path / "two")).rows == ROWS
    assert readers.load(str(tmp_path / "two"), split="test").rows == ROWS[1:]


def test_a_folder_that_misses_a_shard(tmp_path: Path):
    for number in (0, 2):
        write_parquet(tmp_path / f"train-{number:05d}-of-00003.parquet", ROWS)
    with pytest.raises(UserError, match=r"only 2 of the 3 files train-\*\.parquet are here"):
        readers.load(str(tmp_path))
    write_parquet(tmp_path / "train-00001-of-00003.parquet", ROWS)
    assert len(readers.load(str(tmp_path)).rows) == 6


@pytest.mark.parametrize("source", ["rows.jsonl", "data/rows.csv", "./owner/name", "a/b/c", "~/x/y.parquet", "star2"])
def test_what_is_neither_there_nor_a_hub_id(source: str):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        training_sets.load(Data(source=source), 0)


def test_fields_that_do_not_fit_the_source(tmp_path: Path):
    path = str(write_jsonl(tmp_path / "x.jsonl", [{"prompt": "p", "answer": "a", "reason": "r"}]))
    with pytest.raises(UserError, match="`subset` and `revision` are for"):
        training_sets.load(Data(source=path, revision="main"), 0)
    with pytest.raises(UserError, match="is a local source"):
        training_sets.load(Data(source=path, path=path), 0)
    with pytest.raises(UserError, match=r"takes no revision or where"):
        training_sets.load(Data(source="builtin:chat", revision="main", where={"a": "b"}), 0)
    with pytest.raises(UserError, match=r"column 'reason', but .* set columns.thought"):
        training_sets.load(Data(source=path, thought="reason"), 0)


# --- the hub

LOADING = """
import json, sys
from lowtax.data import specs, training_sets
from lowtax.errors import UserError
for spec in sys.argv[1:]:
    try:
        loaded = training_sets.load(specs.parse(spec), 0)
        print(json.dumps({"texts": sorted([r.prompt, r.thought, r.answer] for r in loaded.rows), **loaded.describe()}))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def loaded(home: Path, *specs: str, **environment: str) -> list[object]:
    """What a process of its own loads with a cache of its own: its rows and their description, or the error."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *specs],
        env={**own, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_in_the_cache_is_read_offline_and_its_commit_recorded(tmp_path: Path):
    snapshot = cached(tmp_path, "UWNSL/SafeChain", [CHAIN[:2], CHAIN[2:]])
    cached(tmp_path, "half/set", [CHAIN, CHAIN]).joinpath("data", "train-00001-of-00002.parquet").unlink()
    by_name, by_id, pinned, absent, unknown, half = loaded(
        tmp_path,
        "safechain",
        "UWNSL/SafeChain,prompt=instruction,answer=response,n=2",
        f"safechain,revision={COMMIT}",
        "star1",
        "safechain,revision=v9",
        "half/set,prompt=instruction,answer=response",
        HF_HUB_OFFLINE="1",
    )
    assert snapshot.name == COMMIT
    for found in (by_name, by_id, pinned):
        assert isinstance(found, dict)
        assert found["revision"] == COMMIT
    assert [row[0] for row in by_name["texts"]] == ["a", "b", "d"]
    assert by_name["sha256"] == pinned["sha256"] != by_id["sha256"]
    assert by_id["rows"] == len(by_id["texts"]) == 2
    assert "UCSC-VLAA/STAR-1 is not, or not wholly," in str(absent)
    assert "HF_HUB_OFFLINE is set" in str(absent)
    assert "`hf download --repo-type dataset UCSC-VLAA/STAR-1`" in str(absent)
    assert "`path`" in str(absent)
    assert "UWNSL/SafeChain at v9 is not" in str(unknown)
    assert "only 1 of the 2 files train-*.parquet" in str(half)


def test_a_data_set_of_the_hub_is_downloaded_once_and_refusals_say_what_to_do(tmp_path: Path):
    write_parquet(tmp_path / "x.parquet", [{"prompt": "a", "answer": "b"}])
    files = {"data/train-00000-of-00001.parquet": (tmp_path / "x.parquet").read_bytes(), "weights.bin": b"not wanted"}
    refusals = {
        "UWNSL/SafeChain": (403, "GatedRepo"),
        "nobody/nothing": (404, "RepoNotFound"),
        "broken/set": (500, "Broken"),
    }
    with hub(files, refusals) as endpoint:
        found, gated, missing, revision, broken = loaded(
            tmp_path / "home",
            "open/set",
            "safechain",
            "nobody/nothing",
            "open/set,revision=v9",
            "broken/set",
            HF_ENDPOINT=endpoint,
        )
    assert found["revision"] == COMMIT
    assert found["texts"] == [["a", None, "b"]]
    assert [path.name for path in (tmp_path / "home").rglob("*.bin")] == []
    assert "gated: accept its terms at https://huggingface.co/datasets/UWNSL/SafeChain" in gated
    assert "`hf auth login`" in gated
    assert "no data set 'nobody/nothing'" in missing
    assert "no revision 'v9'" in revision
    assert "the hub cannot be reached (Server error" in broken
    again, offline = loaded(tmp_path / "home", "open/set", "safechain", HF_ENDPOINT=endpoint)  # which is gone
    assert again == found
    assert "the hub cannot be reached" in offline


def test_prompts_of_every_kind_of_source(tmp_path: Path):
    write_parquet(tmp_path / "x.parquet", [{"q": "a", "kind": "k"}, {"q": "b", "kind": ""}, {"q": "a", "kind": "k"}])
    found = prompt_sets.prompt_set(PromptSet(source=str(tmp_path / "x.parquet"), column="q"))
    assert [(p.text, p.category) for p in found] == [("a", "k"), ("b", "")]
    chain = str(write_jsonl(tmp_path / "chain.jsonl", CHAIN))
    spec = Data(source="safechain", path=chain, where={"label": "vanilla_harmful"}, answers="self")
    assert sorted(p.text for p in training_sets.self_prompts(spec, 0)) == ["a", "c", "d"]
    own = Data(source=str(tmp_path / "x.parquet"), columns={"prompt": "q"}, answers="self", n=1)
    assert len(training_sets.self_prompts(own, 0)) == 1
    with pytest.raises(UserError, match=r"remove columns \['system'\]"):
        training_sets.self_prompts(
            Data(source=chain, columns={"prompt": "instruction", "system": "label"}, answers="self"), 0
        )


def test_loading_text_rows_imports_nothing_heavy():
    heavy = {"torch", "transformers", "datasets", "pyarrow"}
    code = f"import sys, lowtax.data.training_sets, lowtax.recipe; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", catalog.TRAINING_SETS)
def test_the_documentation_has_every_named_source(name: str):
    docs = (ROOT / "docs/guides/training-data.md").read_text()
    named = catalog.TRAINING_SETS[name]
    (line,) = (line for line in docs.splitlines() if line.startswith(f"| `{name}` | `{named.hub}`: "))
    assert line.endswith(f"| {named.licence} | {named.citation} |")
