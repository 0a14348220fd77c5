"""Whatever is in a file, its rows are trained as text, skipped and counted, or refused in one sentence."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtax.common.errors import UserError
from lowtax.data import forms, tables, training_sets
from lowtax.data.conversations import Conversation
from lowtax.data.specs import Data
from lowtax.data.turns import CONTENT_KEYS, MARKS, MORE_THAN_TEXT, ROLE_KEYS, ROLES, THOUGHTS

COLUMNS = [
    *(*forms.MESSAGES, *forms.PROMPTS, *forms.ANSWERS, *forms.SYSTEMS, *forms.LABELS, *forms.BESIDE, *forms.CHOSEN),
    *(*THOUGHTS, *forms.MORE_THOUGHTS, "history", "id", "context", "Prompt ", ""),
]
TURN_KEYS = [*ROLE_KEYS, *CONTENT_KEYS, *THOUGHTS, *MARKS, *MORE_THAN_TEXT, "type", "text", "refusal", "human"]
TEXTS = st.sampled_from(
    ["", " ", "How?", "No.", "<think>Hm.</think>No.", "</think>", "[]", '[{"role": "user"}]', "\ud83d"]
)
LEAVES = TEXTS | st.sampled_from([None, True, False, 0, 1, 7.5, float("nan"), float("inf"), *ROLES])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TURN_KEYS), inner, max_size=4),
    max_leaves=12,
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from([*ROLES, "tool"]), "content": VALUES},
    optional={key: VALUES for key in TURN_KEYS if key not in ROLE_KEYS + CONTENT_KEYS[:1]},
)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS), VALUES | st.lists(TURN, max_size=4), max_size=5), min_size=1, max_size=4
)
SUFFIXES = st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet", "feather", "jsonl.gz", "txt"])


def texts(row: Conversation) -> list[Any]:
    return [row.prompt, row.answer, *(part for turn in row.history for part in turn)]


def loaded(name: str, content: bytes, **fields: Any) -> list[Conversation]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            whole = training_sets.load(Data(source=str(path), **fields), 0)
        except UserError:
            return []
    assert whole.reading is not None
    assert all("\n" not in note for note in whole.reading.notes())
    assert json.dumps(whole.describe())
    return whole.rows


@settings(deadline=None, max_examples=300)
@given(ROWS, st.sampled_from(["last", "assistant", "all"]), st.booleans())
def test_rows_of_any_content(rows: list[dict[str, Any]], train_on: str, document: bool):
    text = json.dumps(rows) if document else "\n".join(map(json.dumps, rows))
    for row in loaded("x.json", text.encode(), train_on=train_on):
        assert all(isinstance(part, str) and part.encode() is not None for part in texts(row))
        assert row.prompt.strip()
        assert row.answer.strip()
        assert row.thought is None or isinstance(row.thought, str)
        assert row.system is None or isinstance(row.system, str)
        assert not any(part.startswith(("{'", "['", "[{'")) for part in texts(row))


@settings(deadline=None, max_examples=300)
@given(SUFFIXES, st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_files_of_any_content(suffix: str, content: bytes):
    loaded(f"x.{suffix}", content)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([*tables.FOREIGN, *tables.BOMS, *tables.COMPRESSED.values(), b"PAR1", b"ARROW1"]), st.binary())
def test_files_that_begin_like_another(magic: bytes, content: bytes):
    loaded("x.jsonl", magic + content)


def test_the_programs_own_files_are_no_rows(tmp_path: Path):
    with pytest.raises(UserError):
        tables.read(tmp_path)
