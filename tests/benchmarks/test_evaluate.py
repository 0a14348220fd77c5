"""Answers, grades and rates without a study: what lands in the folder, one plan, two seeds, kills, a checker."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from progress import progress_to
from tiny import make_model
from typer.testing import CliRunner

from lowtax.benchmarks import evaluate, examine
from lowtax.benchmarks.base import Task, load
from lowtax.cli.main import app
from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Grade, Prompt, Reply
from lowtax.engines.sampling import asks
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.models.fingerprint import Base
from lowtax.study import adhoc, tasklist

OWN = """
import time
from lowtax.benchmarks.arithmetic import Arithmetic
from lowtax.engines.fake import Fake
from progress import progress_to

class Slow(Fake):
    def generate(self, requests):
        for completion in super().generate(requests):
            time.sleep(0.002)
            yield completion

class Counting(Fake):
    plans = []
    def generate(self, requests):
        self.plans.append(list(requests))
        return super().generate(requests)

class SlowSums(Arithmetic):
    def grade(self, row, answer):
        time.sleep(0.001)
        return super().grade(row, answer)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def exam(model: Path, engine: str = "fake", adapters: Sequence[Path] = (), **more: object) -> adhoc.Exam:
    sampling = Sampling(max_new_tokens=40, samples=2, temperature=0.6)
    tasks = {"arithmetic": Task(**{"n": 10, "sampling": sampling} | more)}
    return adhoc.Exam(str(model), list(adapters), tasks, EngineSettings(engine, "float32", 8))


def contents(out: Path) -> dict[str, list[str]]:
    return {str(p.relative_to(out)): sorted(p.read_text().splitlines()) for p in out.glob("*/*.jsonl")}


def test_answers_grades_and_rates_of_a_model_and_its_adapters(tmp_path: Path, tiny_model: Path):
    from tiny import save_adapter

    adapters = [Path(save_adapter(tmp_path / f"run{i}" / "last", tiny_model, 1, ["up_proj"], i)) for i in (1, 2)]
    asked = exam(tiny_model, adapters=adapters)
    found = adhoc.evaluate(asked, tmp_path / "out")
    assert [row["arm"] for row in found["rows"]] == ["base", "run1/last", "run2/last"]
    for row in found["rows"]:
        cell = row["reasoning"]["arithmetic"]
        assert (cell["n"], cell["samples"], set(cell["pass_at_k"])) == (20, 2, {"1", "2"})
        assert cell["tax"].keys() == row["tax"].keys() == {"value", "low", "high"}
    assert json.loads((tmp_path / "out/reasoning.json").read_text())["rows"] == found["rows"]
    assert "| arithmetic | run1/last |" in (tmp_path / "out/reasoning.md").read_text()
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["tasks"]["arithmetic"]["sampling"]["samples"] == 2
    assert len(read_rows(tmp_path / "out/answers/arithmetic.jsonl", Reply)) == 60
    before = contents(tmp_path / "out")
    assert adhoc.evaluate(asked, tmp_path / "out")["rows"] == found["rows"]
    assert contents(tmp_path / "out") == before


def test_all_that_is_asked_goes_to_the_engine_at_once(tmp_path: Path, tiny_model: Path, own: Path):
    from tiny import save_adapter

    from lowtax.common.registry import resolve

    adapter = Path(save_adapter(tmp_path / "a", tiny_model, 1, ["up_proj"], 1))
    asked = exam(tiny_model, f"{own}:Counting", [adapter])
    asked.tasks["more"] = Task(benchmark="arithmetic", split="validation", n=3)
    adhoc.evaluate(asked, tmp_path / "out")
    [plan] = resolve("engine", f"{own}:Counting", {}).plans
    assert len(plan) == 2 * (10 * 2 + 3)
    assert {request.adapter for request in plan} == {None, str(adapter)}
    by_prompt: dict[tuple[str | None, str], set[int]] = {}
    for request in plan:
        by_prompt.setdefault((request.adapter, request.messages[0]["content"]), set()).add(request.seed)
    assert sorted(map(len, by_prompt.values())) == [1] * 6 + [2] * 20  # samples share a prompt and not a seed


def test_the_seed_of_the_draws_is_not_that_of_the_exam(tmp_path: Path):
    def requests(exam_seed: int, seed: int) -> dict[str, int]:
        task = Task(n=5, seed=exam_seed, sampling=Sampling(seed=seed))
        [sheet] = examine.sheets({"arithmetic": task}, tmp_path).values()
        engine, base = (
            EngineSettings("fake", "float32", 1),
            adhoc.subjects_of("builtin:x", [], Base("builtin:x", "made", None, None))[0],
        )
        return {ask.prompt.text: ask.request().seed for ask in asks(sheet, [base], engine)}

    one, redrawn, other = requests(0, 0), requests(0, 1), requests(1, 0)
    assert one.keys() == redrawn.keys()
    assert set(one.values()).isdisjoint(redrawn.values())
    assert one.keys() != other.keys()
    assert all(one[text] == other[text] for text in one.keys() & other.keys())


def killed_again_and_again(work: Callable[[], object], times: int, longest: float) -> int:
    """Do the work in processes that are killed at random moments, and then to its end; how many were killed."""
    luck, killed = random.Random(0), 0
    for _ in range(times):
        child = os.fork()
        if not child:
            work()
            os._exit(0)
        time.sleep(luck.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    work()
    return killed


def test_kills_lose_and_double_nothing(tmp_path: Path, tiny_model: Path, own: Path, monkeypatch: pytest.MonkeyPatch):
    """25 kills while answers are drawn, then 25 while they are graded; both end as undisturbed work does."""
    monkeypatch.setattr("lowtax.engines.sampling.STORE_EVERY", 0.01)
    slow = {"benchmark": f"{own}:SlowSums", "n": 60, "sampling": Sampling(max_new_tokens=40, samples=3)}
    asked = exam(tiny_model, f"{own}:Slow", **slow)
    undisturbed = adhoc.evaluate(asked, tmp_path / "whole")
    out = tmp_path / "out"
    assert killed_again_and_again(lambda: adhoc.evaluate(asked, out), 25, 0.08) > 10
    assert contents(out) == contents(tmp_path / "whole")

    def grade() -> None:
        adhoc.evaluate(asked, out)

    for path in ("grades/arithmetic.jsonl", "reasoning.json", "reasoning.md"):
        (out / path).unlink()
    assert killed_again_and_again(grade, 25, 0.3) > 10
    assert contents(out) == contents(tmp_path / "whole")
    assert json.loads((out / "reasoning.json").read_text())["rows"] == undisturbed["rows"]
    assert len(read_rows(out / "grades/arithmetic.jsonl", Grade)) == 180
    left = [p.name for p in out.rglob("*") if p.is_file()]
    assert sorted(left) == ["arithmetic.jsonl"] * 2 + ["base.json", "card.json", "reasoning.json", "reasoning.md"]


# --- grading, and the checker


def stored(number: int, text: str, closed: bool = True, finish: str = "stop") -> Reply:
    own = {"arm": "base", "seed": None, "checkpoint": None, "source": "arithmetic", "sample": number, "tokens": 3}
    return Reply(
        id=f"r{number}",
        prompt_id="p",
        prompt="1+1?",
        text=text,
        thought="",
        answer=text,
        closed=closed,
        finish=finish,
        **own,
    )


ROW = {"p": Prompt(id="p", source="arithmetic", text="1+1?", gold="2")}
REPLIES = [
    stored(0, "\\boxed{2}"),
    stored(1, "\\boxed{3}"),
    stored(2, "no box"),
    stored(3, "\\boxed{2}", closed=False, finish="length"),
    stored(4, "", finish="failed"),
]


def test_unfinished_answers_are_wrong_whatever_they_say_and_failed_ones_have_no_grade(tmp_path: Path):
    grades = evaluate.grade(REPLIES, "t", load("arithmetic"), ROW, tmp_path / "g.jsonl")
    assert {i: (g.correct, g.finished, g.extracted) for i, g in grades.items()} == {
        "r0": (True, True, "2"),
        "r1": (False, True, "3"),
        "r2": (False, True, None),
        "r3": (False, False, None),
    }
    assert list(read_rows(tmp_path / "g.jsonl", Grade).values()) == list(grades.values())


MIND = """
from lowtax.engines.base import Completion

class Mind:
    asked, works = [], 99
    def __init__(self, model, precision, batch_size):
        self.model = model
    def generate(self, requests):
        if Mind.works == 0:
            raise RuntimeError("The checker is out.")
        Mind.works -= 1
        for request in requests:
            Mind.asked.append((self.model, request.id))
            said = "True" if request.id == "r3" else "False"
            yield Completion(request.id, said, 1, "stop", opened=False)
"""


@pytest.fixture
def mind(tmp_path: Path) -> tuple[str, Any]:
    from lowtax.common.registry import resolve

    (tmp_path / "mind.py").write_text(MIND)
    name = f"{tmp_path}/mind.py:Mind"
    return name, resolve("engine", name, {})


def test_a_checker_is_asked_once_about_boxed_answers_that_the_rules_reject(tmp_path: Path, mind: tuple[str, Any]):
    engine, kind = mind
    replies = [*REPLIES[:3], stored(3, "\\boxed{3}"), *REPLIES[4:]]
    for model in ("some/model", "some/model", "another/model"):
        asking = evaluate.Checker(model, EngineSettings(engine))
        grades = evaluate.grade(replies, "t", load("arithmetic"), ROW, tmp_path / "g.jsonl", asking)
        assert {i: g.checked for i, g in grades.items()} == {"r0": None, "r1": False, "r2": None, "r3": True}
        assert not grades["r3"].correct
        assert list(read_rows(tmp_path / "g.jsonl", Grade).values()) == list(grades.values())
    assert kind.asked == [(model, i) for model in ("some/model", "another/model") for i in ("r1", "r3")]


def test_what_a_checker_said_before_it_stopped_is_kept(
    tmp_path: Path, mind: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
):
    engine, kind = mind
    asking = evaluate.Checker("some/model", EngineSettings(engine))
    monkeypatch.setattr(evaluate, "CHUNK", 2)
    kind.works = 2
    wrong = [stored(i, f"\\boxed{{{i}}}") for i in range(3, 10)]
    with pytest.raises(RuntimeError, match="is out"):
        evaluate.grade(wrong, "t", load("arithmetic"), ROW, tmp_path / "g.jsonl", asking)
    kind.works = 99
    grades = evaluate.grade(wrong, "t", load("arithmetic"), ROW, tmp_path / "g.jsonl", asking)
    assert [i for _, i in kind.asked] == [f"r{i}" for i in range(3, 10)]
    assert [g.checked for g in grades.values()] == [True] + [False] * 6


def test_a_task_names_its_checker(tmp_path: Path, tiny_model: Path):
    """Through the whole evaluation; the fake engine's boxes are wrong, and this checker rejects them, too."""
    (tmp_path / "both.py").write_text(MIND + BOTH)
    asked = exam(tiny_model, f"{tmp_path}/both.py:Both", checker="some/model")
    cell = adhoc.evaluate(asked, tmp_path / "out")["rows"][0]["reasoning"]["arithmetic"]
    assert cell["checked"]["asked"] > 0
    assert cell["checked"]["accepted"] == 0
    assert cell["checked"]["value"] == cell["value"]


BOTH = """
from lowtax.engines.fake import Fake

class Both:
    def __init__(self, *how):
        self.engines = {"some/model": Mind(*how)}
        self.engine = self.engines.get(how[0]) or Fake(*how)
    def generate(self, requests):
        return self.engine.generate(requests)
"""


# --- what is asked for


def test_presets_and_what_is_given_instead():
    default = tasklist.tasks(["arithmetic"], None, {}, {})["arithmetic"]
    drawn = default.sampling
    assert (drawn.temperature, drawn.top_p, drawn.max_new_tokens, drawn.samples) == (0.6, 0.95, 32768, 1)
    paper = tasklist.tasks(["arithmetic"], "paper", {"seed": 3, "n": 5}, {"temperature": 0.0, "seed": 4})["arithmetic"]
    assert (paper.preset, paper.seed, paper.n) == ("paper", 3, 5)
    assert (paper.sampling.samples, paper.sampling.temperature, paper.sampling.seed) == (8, 0.0, 4)


@pytest.mark.parametrize(
    ("name", "row", "benchmark"),
    [
        ("mine.jsonl", {"question": "?", "choices": ["a", "b"], "answer": "A"}, "multiple_choice"),
        ("mine.jsonl", {"Question": "?", "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "A"}, "multiple_choice"),
        ("mine.v2.jsonl", {"problem": "?", "solution": "2"}, "math"),
    ],
)
def test_a_file_of_questions_is_a_task(tmp_path: Path, name: str, row: dict[str, object], benchmark: str):
    (tmp_path / name).write_text(json.dumps(row) + "\n")
    task = tasklist.tasks([str(tmp_path / name)], None, {}, {})["mine"]
    assert (task.benchmark, task.file) == (benchmark, str(tmp_path / name))


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (["arithmetics"], {}, "did you mean 'arithmetic'"),
        (["gone.jsonl"], {}, "Give a file of questions"),
        (["arithmetic", "arithmetic"], {}, "Two tasks are called 'arithmetic'"),
        (["arithmetic", "gsm8k"], {"file": "f"}, "--file has the questions of one task"),
        (["odd.jsonl"], {}, "has the columns a, b"),
        (["good.jsonl"], {"file": "f"}, "remove --file"),
    ],
)
def test_a_task_that_cannot_be_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], settings: dict[str, str], said: str
):
    (tmp_path / "odd.jsonl").write_text('{"a": 1, "b": 2}\n')
    (tmp_path / "good.jsonl").write_text('{"question": "?", "answer": 2}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        tasklist.tasks(names, None, settings, {})


def test_more_tokens_than_positions_are_warned_of_in_one_line(tmp_path: Path, tiny_model: Path):
    long, short = ({"t": Task(sampling=Sampling(max_new_tokens=n))} for n in (513, 512))
    said = examine.context_warning(str(tiny_model), "hf", long)
    assert said is not None
    assert "513" in said
    assert "512 positions" in said
    assert "\n" not in said
    assert examine.context_warning(str(tiny_model), "hf", short) is None
    assert examine.context_warning(str(tiny_model), "openai", long) is None


# --- the command


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, f"{done.stdout}{done.exception or ''}"


def test_the_command(tmp_path: Path):
    model = make_model(tmp_path / "m")
    common = ["evaluate", "--model", model, "--engine", "fake", "--out", tmp_path / "out", "--max-new-tokens", 40]
    words = [*common, "--task", "arithmetic", "--limit", 4, "--samples", 3, "--seed", 1, "--exam-seed", 2]
    code, said = run(*words)
    assert code == 0, said
    assert "| arithmetic | base |" in said
    assert "maj@k" in said
    code, again = run(*words, "--json")
    assert code == 0
    found = json.loads(again)
    assert found["rows"][0]["reasoning"]["arithmetic"]["n"] == 12
    assert found["tasks"]["arithmetic"]["seed"] == 2
    assert found["tasks"]["arithmetic"]["sampling"]["seed"] == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")) == [
        "answers",
        "base.json",
        "card.json",
        "grades",
        "reasoning.json",
        "reasoning.md",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "m"], "--model, --task and --out"),
        (["x", "--task", "arithmetic"], "defines its own model"),
        (["--model", "m", "--task", "arithmetic", "--out", "o", "--preset", "papr"], "not one of 'default', 'paper'"),
        (["--model", "m", "--task", "aritmetic", "--out", "o"], "did you mean 'arithmetic'"),
        (
            ["--model", "m", "--task", "arithmetic", "--out", "o", "--thinking", "yes"],
            "'yes' is not one of 'default', 'on', 'off'",
        ),
        (["nowhere"], "holds no study"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["evaluate", *words])
    assert done.exit_code != 0
    assert said in f"{done.output}{done.exception}"


def graders(folder: Path) -> set[int]:
    """Grading processes that were started in a folder."""
    found = set()
    for process in psutil.process_iter():
        try:
            if "grading.worker" in " ".join(process.cmdline()) and Path(process.cwd()) == folder:
                found.add(process.pid)
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return found


def test_kills_while_a_pool_grades_leave_no_grader_behind(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("math_verify", reason="needs pip install 'lowtax[eval]'")
    rows = [{"question": f"What is {i} / 7?", "answer": f"\\frac{{{i}}}{{7}}"} for i in range(400)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = exam(tiny_model, benchmark="math", file=str(tmp_path / "sums.jsonl"), n=400)
    monkeypatch.chdir(tmp_path)
    whole = adhoc.evaluate(asked, tmp_path / "whole")
    luck = random.Random(0)
    for _ in range(5):
        child = os.fork()
        if not child:
            adhoc.evaluate(asked, tmp_path / "out")
            os._exit(0)
        while not graders(tmp_path) and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.01)
        time.sleep(luck.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    adhoc.evaluate(asked, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "out/reasoning.json").read_text())["rows"] == whole["rows"]
    for _ in range(50):
        if not graders(tmp_path):
            break
        time.sleep(0.1)
    assert graders(tmp_path) == set()


def test_two_tasks_that_ask_the_same_are_drawn_once_and_both_complete(tmp_path: Path, own: Path):
    sampling = Sampling(max_new_tokens=40, samples=2, temperature=0.6)
    tasks = {
        "arithmetic": Task(n=10, sampling=sampling),
        "again": Task(benchmark="arithmetic", n=5, sampling=sampling),
    }
    model = make_model(tmp_path / "model")
    said: list[str] = []
    exam = adhoc.Exam(str(model), [], tasks, EngineSettings("fake", "float32", 4))
    with progress_to(said.append):
        found = adhoc.evaluate(exam, tmp_path / "out")
    [row] = found["rows"]
    assert [row["reasoning"][name]["n"] for name in tasks] == [20, 10]
    assert "sampling 20 replies" in said[0]


def test_a_card_says_where_the_questions_are_from(tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": "B"}) + "\n")
    tasks = tasklist.tasks([str(file), "arithmetic"], None, {}, {})
    [(name, card)] = examine.questions(tasks).items()
    assert (name, card["origin"], card["rows"]) == ("mine", "mine.jsonl", 1)


def test_a_reply_that_was_cut_is_unfinished(tmp_path: Path):
    task = Task(n=1)
    exam_ = load("arithmetic", task)
    [row] = exam_.rows()
    reply = Reply(
        id="1", arm="base", seed=None, checkpoint=None, source="arithmetic", prompt_id=row.id, prompt=row.text,
        sample=0, text="", thought="", answer=rf"\boxed{{{row.gold}}}", closed=True, finish="length", tokens=9,
    )  # fmt: skip
    cut = evaluate.grade([reply], "arithmetic", exam_, {row.id: row}, tmp_path / "g.jsonl")["1"]
    whole = reply.model_copy(update={"finish": "stop"})
    assert (cut.correct, cut.finished, cut.rule) == (False, False, "unfinished")
    assert evaluate.grade([whole], "arithmetic", exam_, {row.id: row}, tmp_path / "g.jsonl")["1"].correct
