"""The labels of thoughts become columns with intervals, of the replies that have one."""

from pathlib import Path

import pytest

from lowtax.common.files import append_rows
from lowtax.common.records import Reply, Verdict
from lowtax.engines.base import Completion
from lowtax.judges import rubric
from lowtax.study import thought_patterns


@pytest.mark.parametrize(
    ("text", "label", "category"),
    [
        ("It wavers.\nscore: 2", "unsafe", "vacillation"),
        ("It sees the harm.\nscore: 0", "safe", "none"),
        ("**Score:** 4", "unsafe", "inconsistency"),
        ("score: 1\nscore: 3", "unparsed", ""),
        ("score: 7", "unparsed", ""),
    ],
)
def test_the_rubric_names_its_numbers(text: str, label: str, category: str):
    judge = rubric.Rubric(model=f"any-model@{thought_patterns.RUBRIC}")
    opinion = judge.read(Completion("1", text, 5, "stop", opened=False))
    assert (opinion.label, opinion.category) == (label, category)
    prompt = judge.request("1", "Do it.", "<think>No.</think>No.").messages[0]["content"]
    assert "<think>No.</think>No." in prompt


def test_shares_are_of_the_replies_with_a_label(tmp_path: Path):
    name = f"rubric:m@{thought_patterns.RUBRIC}"
    own = {"source": "s", "prompt": "p", "text": "t", "thought": "t", "answer": "a", "closed": True, "finish": "stop"}
    own |= {"tokens": 1, "checkpoint": "checkpoint-1"}
    labels = ["vacillation"] * 3 + ["none"] * 5 + [""] * 2
    replies = [
        Reply(id=str(i), arm="one", seed=0, prompt_id=str(i), sample=0, **own)  # type: ignore[arg-type]
        for i in range(len(labels))
    ]
    append_rows(tmp_path / "replies" / "harmful.jsonl", replies)
    verdicts = [
        Verdict(id=f"v{i}", reply_id=str(i), judge=name, label="unsafe" if c else "unparsed", category=c)
        for i, c in enumerate(labels)
    ]
    other = Verdict(id="w", reply_id="0", judge="llama_guard", label="unsafe", category="S1")
    append_rows(tmp_path / "verdicts" / "harmful.x.jsonl", [*verdicts, other])
    rows = [{"arm": arm, "checkpoint": c, "step": 1} for arm, c in (("one", "checkpoint-1"), ("base", None))]
    thought_patterns.add(rows, tmp_path)
    cell = rows[0]["patterns"]["vacillation"]
    assert (cell["value"], cell["n"]) == (3 / 8, 8)
    assert cell["low"] < 3 / 8 < cell["high"]
    assert rows[0]["patterns"]["no_label"] == {"n": 2}
    assert "patterns" not in rows[1]
    assert "0.38 [0.14, 0.69] n 8" in thought_patterns.markdown(rows)
    assert thought_patterns.markdown([rows[1]]) == ""
