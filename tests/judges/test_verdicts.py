"""The text of a reply that a judge reads, and prompts that a judge cannot be shown."""

from pathlib import Path

import pytest
from progress import progress_to

from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Reply, Verdict
from lowtax.data.rendering import split_reply
from lowtax.judges import base
from lowtax.judges.verdicts import judge_replies

ECHO = """
from lowtax.judges.base import Opinion

class Echo:
    name, kind = "echo", "refusal"
    def judge(self, prompts, texts):
        return [Opinion("refusal", detail=text) for text in texts]
"""
READER = """
import os
from lowtax.judges.base import Opinion

class Slow:
    name, kind, seen = "slow", "refusal", []
    def judge(self, prompts, texts):
        raise AssertionError("opinions are told one by one")
    def opinions(self, prompts, texts):
        for number in reversed(range(len(texts))):
            if texts[number] == "stop" and not os.path.exists(STOP):
                os.mkdir(STOP)
                raise KeyboardInterrupt
            self.seen.append(texts[number])
            yield number, Opinion("refusal", detail=prompts[number] + texts[number])
"""
CONTEXT = "A story.\n\n---\n\nDo b."


def reply(text: str, number: int = 0, prompt: str = "?", goal: str | None = None) -> Reply:
    parts = split_reply(text, opened=True)
    own = {"arm": "base", "seed": None, "checkpoint": None, "source": "s", "sample": 0, "tokens": 3, "finish": "stop"}
    body = {"text": text, "thought": parts.thought, "answer": parts.answer, "closed": parts.closed}
    return Reply(id=f"r{number}", prompt_id="p", prompt=prompt, goal=goal, **own, **body)


def test_both_is_the_reply_as_it_was_written(tmp_path: Path):
    (tmp_path / "echo.py").write_text(ECHO)
    texts = ["Okay ...\nNo!\n</think>\n\n I can't help with that.\n", "<think>\nHm.\n</think>No.", "Hm", "</think>\n"]
    read = {
        "both": [*texts[:3], None],
        "answer": ["I can't help with that.", "No.", None, None],
        "thought": ["Okay ...\nNo!", "Hm.", "Hm", None],
    }
    for on, expected in read.items():
        replies = [reply(text, number) for number, text in enumerate(texts)]
        verdicts = judge_replies(replies, tmp_path / f"{on}.jsonl", f"{tmp_path}/echo.py:Echo", on)
        assert [v.detail if v.label == "refusal" else None for v in verdicts.values()] == expected


def test_harmbench_refuses_behaviours_with_a_context(tmp_path: Path):
    rows = [reply("No.", 0), reply("No.", 1, CONTEXT, "Do b."), reply("No.", 2, "Say: Do b.", "Do b.")]
    for name in ("harmbench", "harmbench:some/model"):
        with pytest.raises(UserError, match="there are 1 such requests"):
            judge_replies(rows, tmp_path / "v.jsonl", name, "answer")
    prompts = [(row.prompt, row.goal) for row in rows]
    base.refuse_contexts("harmbench", prompts[::2])
    base.refuse_contexts("llama_guard", prompts)


def test_what_is_judged_is_stored_before_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "slow.py").write_text(READER.replace("STOP", repr(str(tmp_path / "stopped"))))
    rows = [reply(f"</think>{text}", n, str(n)) for n, text in enumerate(["a", "b", "stop", "c", "", "d"])]
    path, name = tmp_path / "v.jsonl", f"{tmp_path}/slow.py:Slow"
    with pytest.raises(KeyboardInterrupt):
        judge_replies(rows, path, name, "answer")
    stored = {v.reply_id: v for v in read_rows(path, Verdict).values()}
    assert {id_: v.detail for id_, v in stored.items()} == {"r5": "5d", "r3": "3c", "r4": ""}
    before = path.read_bytes()
    verdicts = judge_replies(rows, path, name, "answer")
    assert path.read_bytes().startswith(before)
    assert [v.detail for v in verdicts.values()] == ["0a", "1b", "2stop", "3c", "", "5d"]
    assert len(read_rows(path, Verdict)) == len(path.read_text().splitlines()) == 6, "none is judged twice"


def test_progress_counts_all_replies_and_verdicts_are_on_disk_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "slow.py").write_text(READER.replace("STOP", repr(str(tmp_path / "stopped"))))
    for limit in ("lowtax.judges.verdicts.STORE_EVERY", "lowtax.common.log.SPEAK_EVERY"):
        monkeypatch.setattr(limit, 0.0)
    monkeypatch.setattr("lowtax.judges.verdicts.READ", 2)
    lines = list[str]()
    with progress_to(lambda line: lines.append(f"{line} {len(read_rows(tmp_path / 'v.jsonl', Verdict))}")):
        judge_replies(
            [reply(f"</think>{n}", n) for n in range(5)], tmp_path / "v.jsonl", f"{tmp_path}/slow.py:Slow", "answer"
        )
    counts = [(line.split(" replies judged")[0].strip(), line.split()[-1]) for line in lines if " of 5 " in line]
    assert counts == [(f"{n} of 5", str(n)) for n in range(1, 5)]


def test_verdicts_of_another_version_are_judged_again_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, rows = tmp_path / "v.jsonl", [reply("No.", 0), reply("I can't help with that.", 1)]
    monkeypatch.setattr(base, "VERSIONS", {})
    of_old = judge_replies(rows, path, "refusal_words", "answer")
    assert '"version"' not in path.read_text()
    monkeypatch.setattr(base, "VERSIONS", {"refusal_words": "7"})
    new = judge_replies(rows[:1], path, "refusal_words", "answer")
    assert new["r0"].id != of_old["r0"].id
    assert [v.version for v in read_rows(path, Verdict).values()] == ["", "7"]
    assert {v.id for v in read_rows(path, Verdict).values()} == {new["r0"].id, of_old["r1"].id}
    before = path.read_bytes()
    assert judge_replies(rows[:1], path, "refusal_words", "answer") == new
    assert path.read_bytes() == before


def test_verdicts_of_other_judges_have_no_version():
    assert base.version("refusal") != ""
    assert base.version("llama_guard") == base.version("a.py:Judge") == ""
