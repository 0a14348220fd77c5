"""The second stage: a model that is asked about answers which the rules reject, on any chat template."""

from pathlib import Path

import pytest
from templates import family
from tiny import make_model

from lowtax.benchmarks import evaluate, model_checker
from lowtax.benchmarks.base import Task, load
from lowtax.benchmarks.stored_answers import Stored, grade_stored
from lowtax.common.records import Grade, Prompt, Reply
from lowtax.data import chat
from lowtax.engines.settings import EngineSettings

QUESTION = [{"role": "user", "content": "Same?"}]
PROBLEM = "Find the number of cats.\n"
SHOWN = f"Problem: {PROBLEM}\nCorrect Answer: 204\nModel's Generated Answer: 205\nYour judgement:"


@pytest.fixture(scope="module")
def no_switch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose chat template has no thinking switch, as Qwen2.5's."""
    return make_model(tmp_path_factory.mktemp("checker"), think=False)


def answered(text: str) -> Reply:
    own = {"arm": "base", "seed": None, "checkpoint": None, "source": "aime24", "sample": 0, "tokens": 3, "prompt": "?"}
    return Reply(id="r", prompt_id="p", text=text, thought="", answer=text, closed=True, finish="stop", **own)


def rejected(task: str, preset: str, folder: Path) -> tuple[Grade, Prompt]:
    """A wrong answer to the problem of a file, and its question."""
    file = folder / "problems.jsonl"
    file.write_text('{"problem": "Find the number of cats.\\n", "answer": "204"}\n')
    (row,) = load(task, Task(file=str(file), preset=preset)).rows()
    own = {"task": task, "correct": False, "finished": True, "extracted": "205", "gold": "204"}
    return Grade(id="g", reply_id="r", **own), row


def test_the_second_stage_runs_with_a_template_that_has_no_switch(
    no_switch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lines: list[str] = []
    monkeypatch.setattr("lowtax.common.log.OUTPUTS", [lines.append])
    _, row = rejected("aime24", "paper", tmp_path)
    asking = evaluate.Checker(str(no_switch), EngineSettings("hf", "float32"), "paper")
    exam, out = load("aime24", Task(preset="paper")), tmp_path / "g.jsonl"
    text = "Final Answer: \\boxed{205}"
    (grade,) = evaluate.grade([answered(text)], "aime24", exam, {"p": row}, out, asking).values()
    settings = Task(preset="paper", checker=str(no_switch))
    (again,) = grade_stored(
        [Stored(Prompt(id="1", source="f", text=PROBLEM, gold="204"), text, text)], "math", settings
    )
    assert (grade.correct, grade.extracted, again.correct, again.extracted) == (False, "205", False, "205")
    assert {grade.checked, again.checked} <= {True, False, None}
    silent = [line for line in lines if line.endswith("neither True nor False about 1 of 1 answers")]
    assert len(silent) == [grade.checked, again.checked].count(None)


class Listening:
    """An engine that keeps the requests."""

    def __init__(self) -> None:
        self.requests = list[object]()

    def generate(self, requests):
        self.requests.extend(requests)
        return iter(())


def test_a_checker_is_asked_about_the_bare_problem(tmp_path: Path):
    for task in ("aime24", "math500", "gsm8k", "math"):
        for preset, shown in (("paper", SHOWN), ("reference", SHOWN), ("default", f"Problem:\n%\n{PROBLEM}\n%\n\n")):
            grade, row = rejected(task, preset, tmp_path)
            engine = Listening()
            model_checker.check([(grade, row)], engine, preset)
            (request,) = engine.requests
            text = request.messages[0]["content"]
            mark = text.partition("Problem:\n")[2].partition("\n")[0]
            assert shown.replace("%", mark) in text
            assert "Solve the following" not in text
            assert "step by step" not in text


def test_thinking_is_off_where_a_template_can_turn_it_off():
    for name in ("r1", "chatml", "llama3", "gemma", "smollm2"):
        plain, asked = (chat.generation_prompt(family(name), QUESTION, how) for how in ("default", "off_if_possible"))
        assert asked == plain
        assert chat.markers_of(family(name), "off_if_possible") == chat.markers_of(family(name))
    for name in ("qwen3", "smollm3", "deepseek-v3.1"):
        off, asked = (chat.generation_prompt(family(name), QUESTION, how) for how in ("off", "off_if_possible"))
        assert asked == off
        assert chat.markers_of(family(name), "off_if_possible") == chat.markers_of(family(name), "off")
