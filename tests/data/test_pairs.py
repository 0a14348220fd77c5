"""Preference pairs of a user's file: the forms of hub data sets, bad rows, and a study that trains on them by DPO."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_study import write_recipe

from lowtax.common.errors import UserError
from lowtax.data import specs, training_sets
from lowtax.data.conversations import Conversation
from lowtax.study import recipe
from lowtax.study.study import Study

PAIR = Conversation("How?", "Hm.", "No.", rejected=(None, "So."))
ASKED = {"role": "user", "content": "How?"}
NO = {"role": "assistant", "content": "<think>Hm.</think>No."}
SO = {"role": "assistant", "content": "So."}
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "How?", "chosen": "<think>Hm.</think>No.", "rejected": "So."},
    "texts, another prompt column": {"question": "How?", "chosen": "<think>Hm.</think>No.", "rejected": "So."},
    "last turns": {"prompt": [ASKED], "chosen": [NO], "rejected": [SO]},
    "all turns beside the prompt": {"prompt": "How?", "chosen": [ASKED, NO], "rejected": [ASKED, SO]},
    "all turns": {"chosen": [ASKED, NO], "rejected": [ASKED, SO], "score_chosen": 9.0},
    "turns as JSON text": {"chosen": json.dumps([ASKED, NO]), "rejected": json.dumps([ASKED, SO])},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "How?"}],
        "chosen": {"from": "gpt", "value": "<think>Hm.</think>No."},
        "rejected": {"from": "gpt", "value": "So."},
    },
    "OpenAI": {
        "input": {"messages": [ASKED]},
        "preferred_output": [NO],
        "non_preferred_output": [SO],
    },
    "Anthropic's HH": {
        "chosen": "\n\nHuman: How?\n\nAssistant: <think>Hm.</think>No.",
        "rejected": "\n\nHuman: How?\n\nAssistant: So.",
    },
}


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(folder: Path, rows: list[dict[str, Any]], more: str = "") -> training_sets.TrainingSet:
    return training_sets.load(specs.parse(f"{written(folder, rows)},rejected=given{more}"), 0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair_is_the_same_two_answers(tmp_path: Path, form: str):
    read = loaded(tmp_path, [FORMS[form]])
    assert read.rows == [PAIR]
    assert read.reading is not None
    assert read.reading.notes()[0] == "pairs.jsonl: 1 row, read as preference pairs."


def test_columns_of_other_names_and_a_constant_thought(tmp_path: Path):
    rows = [{"ask": "How?", "good": "No.", "bad": "So."}]
    columns = ",prompt=ask,answer=good,columns.rejected=bad"
    assert loaded(tmp_path, rows, columns).rows == [Conversation("How?", None, "No.", rejected=(None, "So."))]
    [row] = loaded(tmp_path, rows, f"{columns},thought=Hm.").rows
    assert (row.thought, row.rejected) == ("Hm.", ("Hm.", "So."))
    with pytest.raises(UserError, match="the column 'worse' is not there; its columns are ask, good, bad"):
        loaded(tmp_path, rows, ",prompt=ask,answer=good,columns.rejected=worse")


def test_without_the_field_the_chosen_side_is_read_as_before(tmp_path: Path):
    path = written(tmp_path, [FORMS["texts"]])
    assert training_sets.load(specs.parse(str(path)), 0).rows == [Conversation("How?", "Hm.", "No.")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "How?", "chosen": "No."}, "it has no rejected answer"),
        ({"prompt": "How?", "chosen": "No.", "rejected": ""}, "it has no rejected answer"),
        ({"prompt": "How?", "chosen": "No.", "rejected": None}, "it has no rejected answer"),
        ({"prompt": "How?", "chosen": "No.", "rejected": "No."}, "chosen and rejected are the same"),
        ({"prompt": "How?", "chosen": "No.", "rejected": 3}, "the column 'rejected' holds a number, not text"),
        ({"chosen": [ASKED, NO], "rejected": [{**ASKED, "content": "Why?"}, SO]}, "answer different requests"),
        ({"chosen": [ASKED, NO], "rejected": [ASKED]}, "the rejected side: it has no prompt"),
        ({"prompt": "How?", "chosen": "No.", "rejected": "<think>Hm."}, "thought has no end"),
        ({"messages": [ASKED, NO]}, "it has no rejected answer"),
    ],
)
def test_a_bad_row_is_skipped_with_its_reason_and_a_bad_file_is_one_sentence(
    tmp_path: Path, row: dict[str, Any], reason: str
):
    read = loaded(tmp_path, [FORMS["texts"], FORMS["texts"] | {"prompt": "When?"}, row])
    assert (len(read.rows), read.skipped) == (2, 1)
    assert read.reading is not None
    [counted] = read.reading.skipped
    assert reason in counted
    with pytest.raises(UserError, match=r"^None of the 1 rows of \S+ can be trained on: .*") as error:
        loaded(tmp_path, [row])
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("builtin:refusals,rejected=given", "builtin:refusals has no rejected answers: write rejected: self"),
        ("a.jsonl,rejected=given,answers=self", "rejected: given is for sources with answers"),
        ("a.jsonl,rejected=given,filter=refusal", "filter is for answers that a model writes"),
        ("a.jsonl,rejected=given,train_on=assistant", "remove train_on"),
        ("a.jsonl,columns.rejected=bad", "add `rejected: given`"),
        ("a.jsonl,rejected=bad", "Input should be 'self' or 'given'"),
    ],
)
def test_settings_that_do_not_go_together(line: str, message: str):
    with pytest.raises(UserError, match=message):
        specs.parse(line)


def test_a_study_trains_on_pairs_of_a_file_and_draws_nothing(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lowtax.engines.base.load", None)
    rows = [{"prompt": f"Do {i}.", "chosen": f"I can't do {i}.", "rejected": f"Sure, {i}."} for i in range(6)]
    path = written(tmp_path, [*rows, {"prompt": "Do 7.", "chosen": "No.", "rejected": "No."}])
    train = {"steps": 3, "batch_size": 2, "lr": 0.01, "loss": "dpo"}
    arms = {"r1": {"mode": "lora_up_proj_only_from1_to1_r1"}}
    data = [{"source": str(path), "rejected": "given"}]
    work = Study(recipe.load(write_recipe(tmp_path, tiny_model, data=data, train=train, arms=arms, seeds=[0])),
                 tmp_path / "out")  # fmt: skip
    work.train()
    folder = tmp_path / "out" / "arms" / "r1" / "seed-0"
    losses = [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: the model is its own reference
    assert losses[-1] != losses[0]
    [source] = json.loads((folder / "card.json").read_text())["sources"]
    assert (source["rows"], source["skipped"]) == (6, 1)
    assert source["skipped_because"] == {"chosen and rejected are the same": 1}
