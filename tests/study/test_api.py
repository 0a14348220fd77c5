"""Somebody else's study: opening it runs no code, deletes nothing and reads nothing else; one's own files stay."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_study import FOLDER, rows, stub_model
from typer.testing import CliRunner

import lowtax as lt
from lowtax.benchmarks.base import Task, load
from lowtax.benchmarks.grading import pool
from lowtax.cli.main import app
from lowtax.common.cards import Progress, read_card
from lowtax.common.errors import UserError
from lowtax.common.files import read_json, read_rows, write_json
from lowtax.common.records import Grade, Prompt, Reply, Verdict
from lowtax.data import template_limits
from lowtax.interop import reference_files
from lowtax.methods import editing
from lowtax.study import recipe, stored_recipe, study

NAMES = ["/ABS", "../../../../victim", "checkpoint-4/../../../../../victim", "..", "", None, 5, "checkpoint-x", {}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the stored study, its model and its rows."""
    folder = tmp_path_factory.mktemp("golden")
    shutil.copytree(FOLDER / "study", folder / "stored")
    stub_model(folder / "model")
    before = Path.cwd()
    os.chdir(folder)
    rows()
    os.chdir(before)
    return folder


@pytest.fixture
def folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stored study."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.move(tmp_path / "stored", tmp_path / "study"))


def run(*args: object) -> tuple[int, str]:
    """The exit code of a command, and its error."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return (2, str(result.exception)) if isinstance(result.exception, UserError) else (result.exit_code, result.output)


def set_name(path: Path, name: Any) -> None:
    card = read_json(path)
    card["checkpoints"][-1]["name"] = name
    write_json(path, card)


def test_a_card_that_names_another_folder_deletes_and_opens_nothing(folder: Path):
    victim = folder.parent / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("x")
    card = folder / "arms" / "r1" / "seed-0" / "card.json"
    for name in NAMES:
        chosen = str(victim) if name == "/ABS" else name
        for place in (card, folder / "arms" / "r1_half" / "seed-0" / "card.json"):
            before = place.read_bytes()
            set_name(place, chosen)
            opened = study.Study.open(folder)
            for act in (opened.edit, opened.subjects) if place == card else (opened.subjects,):
                with pytest.raises(UserError, match=r"damaged or forged|is damaged"):
                    act()
            place.write_bytes(before)
        half = folder / "arms" / "r1_half"
        shutil.move(half, folder.parent / "half")
        set_name(card, chosen)
        with pytest.raises(UserError, match="damaged or forged"):
            study.Study.open(folder).edit()
        shutil.rmtree(half, ignore_errors=True)
        shutil.move(folder.parent / "half", half)
        card.write_bytes((FOLDER / "study" / "arms" / "r1" / "seed-0" / "card.json").read_bytes())
        with pytest.raises(UserError, match="damaged or forged"):
            read_card(_progress(folder.parent / "progress.json", chosen), Progress)
    assert (victim / "thesis.tex").read_text() == "x"


def _progress(path: Path, name: str) -> Path:
    row = {"name": name, "step": 4, "seconds": 1.0, "loss": 0.5}
    path.write_text(json.dumps({"step": 4, "seconds": 1.0, "checkpoints": [row]}))
    return path


def test_an_edit_replaces_only_what_an_edit_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lowtax.study import arms

    out = tmp_path / "checkpoint-4"
    remove: Callable[[Path], None] = arms._remove_unlisted
    remove(out)
    for content in ("{}", '{"made_by": "me"}', None):
        out.mkdir()
        (out / "thesis.tex").write_text("x")
        if content:
            (out / editing.CARD).write_text(content)
        with pytest.raises(UserError, match="did not edit what is there"):
            remove(out)
        assert (out / "thesis.tex").exists()
        shutil.rmtree(out)
    out.mkdir()
    write_json(out / editing.CARD, {"made_by": editing.MADE_BY})
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UserError, match="did not edit"):
        remove(tmp_path / "link")
    remove(out)
    assert not out.exists()


PROGRAM = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass J:\n    pass\n"


def test_a_stored_study_runs_no_python_file_unless_told(folder: Path):
    (folder / "notes.py").write_text(PROGRAM)
    name, text = "study/notes.py:J", (folder / "recipe.yaml").read_text()
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda r: r.update(judge=name),
        lambda r: r.update(engine=name),
        lambda r: r["arms"]["r1"].update(methods=[{"name": name}]),
        lambda r: r["edited"]["r1_half"]["edits"].append({"name": name}),
        lambda r: r["tasks"]["sums"].update(benchmark=name),
        lambda r: r["tasks"].update({name: {"n": 1}}),
    ]
    for change in changes:
        values = yaml.safe_load(text)
        change(values)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
        for command in ("compare", "sample", "judge", "evaluate", "analyze"):
            code, said = run(command, folder)
            assert (code, "notes.py:J" in said, "--trust" in said) == (2, True, True), (command, said)
        for command in ("run", "train"):
            assert run(command, folder / "recipe.yaml", "--out", folder.parent / "new")[0] == 2
        assert run("run", folder / "recipe.yaml", "--dry-run")[0] == 2
        for call in (
            lambda: lt.compare(folder),
            lambda: lt.Study.open(folder),
            lambda: lt.load_recipe(folder / "recipe.yaml"),
            lambda: lt.train("model", data="rows.jsonl", mode="lora_mlp_r1", steps=1, out=folder),
        ):
            with pytest.raises(UserError, match="--trust"):
                call()
        assert lt.Study.open(folder, trust=True).recipe.programs() == [name]
        assert recipe.load(folder / "recipe.yaml", [f"judge={name}", f"engine={name}"], trust=True)
    assert not (folder / "ran").exists()
    (folder / "recipe.yaml").write_text(text)
    assert recipe.load(folder / "recipe.yaml", [f"judge={name}"]).judge == name  # named on the command line
    code, said = run("judge", folder, "--judge", name)
    assert "--trust" not in said
    assert (folder / "ran").exists()


def test_modules_in_the_working_folder_are_not_imported(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    for name in ("json.py", "resource.py", "jinja2.py", "math_verify.py", "lowtax.py"):
        (folder / name).write_text(PROGRAM + "raise ImportError\n")
    with pool._Pool(load("gsm8k", Task(file="none")), 1) as workers:
        score = workers.grade([(Prompt(id="1", source="s", text="?", gold="2"), "It is \\boxed{2}.")])[0]
    assert score.correct
    template_limits.require_bounded("{% set here = 1 %}{{ here }}", "ours", [], {})
    assert not (folder / "ran").exists()


def test_export_stays_below_its_folder(folder: Path):
    replies = folder / "replies" / "harmful.jsonl"
    reply = next(iter(read_rows(replies, Reply).values()))
    for checkpoint in (str(folder.parent / "elsewhere"), "../../elsewhere", "..", "", "a\\b"):
        stored = reference_files.Stored([reply.model_copy(update={"arm": "x", "checkpoint": checkpoint})], {})
        with pytest.raises(UserError, match="lead out of"):
            list(reference_files.write(stored, folder.parent / "ex"))
    stored = reference_files.Stored([reply.model_copy(update={"arm": "../../x/./y", "checkpoint": "alpha=0.5"})], {})
    list(reference_files.write(stored, folder.parent / "ex"))
    assert [p.name for p in (folder.parent / "ex").rglob("*.json")] == [reference_files.RESPONSES]
    assert not (folder.parent / "elsewhere").exists()


def test_judging_again_replaces_one_judge_on_one_text(folder: Path):
    work = study.Study.open(folder)
    work.compare()
    path = folder / "verdicts" / "harmful.refusal_words.jsonl"
    before = read_rows(path, Verdict)
    lines = path.read_bytes().count(b"\n")
    code, _ = run("judge", folder, "--judge", "no/such.py:Judge", "--again")
    assert code == 2
    assert read_rows(path, Verdict) == before
    again = read_rows(path, Verdict)
    first = next(v for v in again.values() if v.on == "answer")
    changed = first.model_copy(update={"label": "refusal" if first.label != "refusal" else "compliance"})
    path.write_bytes(path.read_bytes() + changed.model_dump_json().encode() + b"\n")
    assert run("judge", folder, "--on", "answer", "--again")[0] == 0
    assert read_rows(path, Verdict) == before
    assert path.read_bytes().count(b"\n") == lines


def test_grades_that_a_recipe_does_not_ask_for_stay(folder: Path):
    path = folder / "grades" / "arithmetic.jsonl"
    before = read_rows(path, Grade)
    some = next(iter(before.values()))
    paid = some.model_copy(update={"id": "paid", "checked": True})
    path.write_bytes(path.read_bytes() + paid.model_dump_json().encode() + b"\n")
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    del values["arms"]["full"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    study.Study.open(folder).grade()
    after = read_rows(path, Grade)
    assert after == before | {"paid": paid}
    assert after["paid"].checked


def test_a_recipe_of_the_users_is_never_written(folder: Path):
    own = folder.parent / "own"
    own.mkdir()
    text = "# my study\n" + (folder / "recipe.yaml").read_text()
    for theirs in (text, text.removeprefix("# my study\n")):
        (own / "recipe.yaml").write_text(theirs)
        with study.Study(recipe.load(own / "recipe.yaml"), own, limit=3) as work:
            work.write_recipe()
        assert (own / "recipe.yaml").read_text() == theirs
        assert stored_recipe.stored_in(own) == own / "study.yaml"
        assert study.Study.open(own).recipe.harmful[0].n == 3
        with study.Study(recipe.load(own / "recipe.yaml"), own) as work:
            work.write_recipe()
        assert study.Study.open(own).recipe.harmful[0].n == 9
        shutil.rmtree(own)
        own.mkdir()


def test_a_limit_never_narrows_a_stored_recipe(folder: Path):
    def stored() -> tuple[int | None, int | None, int | None]:
        now = study.Study.open(folder).recipe
        return now.harmful[0].n, now.tasks["arithmetic"].n, now.tasks["sums"].n

    whole = recipe.load(folder / "recipe.yaml")
    assert stored() == (9, 5, None)
    for limit in (3, 7, 100):
        with study.Study(whole, folder, limit=limit) as work:
            assert work.recipe.harmful[0].n == min(limit, 9)
            work.write_recipe()
        assert stored() == (9, 5, None)
    new = folder.parent / "new"
    for limit, n in ((3, 3), (2, 3), (5, 5), (None, 9)):
        with study.Study(whole, new, limit=limit) as work:
            work.write_recipe()
        assert study.Study.open(new).recipe.harmful[0].n == n


def test_results_replace_no_file_of_the_users(folder: Path):
    own = folder.parent / "own"
    own.mkdir()
    whole = recipe.load(folder / "recipe.yaml")
    for name in ("table.md", "table.json", "card.json", "frontier.png"):
        (own / name).write_text("mine")
        with pytest.raises(UserError, match="already has"), study.Study(whole, own):
            pass
        (own / name).unlink()
    replies = list(read_rows(folder / "replies" / "harmful.jsonl", Reply).values())[:3]
    (own / "judged.jsonl").write_text("".join(reply.model_dump_json() + "\n" for reply in replies))
    for call in (
        lambda: lt.judge(own / "judged.jsonl", "refusal_words", out=own),
        lambda: lt.judge(replies, "refusal_words", out=own),
        lambda: lt.sample("model", prompts="builtin:harmful", out=folder / "arms" / "r1" / "seed-0", engine="fake"),
    ):
        with pytest.raises(UserError, match=r"already has|would be replaced"):
            call()
    grades = own / "grades.jsonl"
    grades.write_text('{"reply": "\\\\boxed{4}", "gold": "4"}\n')
    with pytest.raises(UserError, match="would be replaced"):
        lt.grade(grades, task="gsm8k", reply="reply", gold="gold", out=own)
    args = ["refusal_words", own / "rows.jsonl", "--prompt", "a", "--reply", "b", "--label", "c", "--positive", "d"]
    (own / "rows.jsonl").write_text("{}\n")
    assert "would be replaced" in run("calibrate", *args, "--out", own)[1]


def test_two_tasks_never_share_a_file(folder: Path):
    for one, two in (("a b", "a_b"), ("a/b", "a.b"), ("Sums", "sums")):
        values = {"model": "model", "tasks": {one: {"benchmark": "gsm8k"}, two: {"benchmark": "gsm8k"}}}
        with pytest.raises(UserError, match="would share one file"):
            recipe.build(values, [], "here")
        with pytest.raises(UserError, match="would share one file"):
            lt.evaluate("model", tasks={one: {"benchmark": "math"}, two: {"benchmark": "math"}}, out="o", engine="fake")
