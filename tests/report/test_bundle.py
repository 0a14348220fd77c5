"""The page as files: its places, what it replaces, one file, and several studies."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import large_study
import pytest
import yaml

from lowtax.common.errors import UserError
from lowtax.common.files import append_rows, read_rows, write_text
from lowtax.common.records import Reply
from lowtax.report import bundle


def test_the_page_of_the_stored_study(tmp_path: Path):
    golden = Path(__file__).parents[1] / "golden" / "study"
    page = bundle.write([golden], tmp_path / "page")
    assert page.replies == page.all_replies == sum(
        len(read_rows(path, Reply)) for folder in ("replies", "answers") for path in (golden / folder).glob("*.jsonl")
    )  # fmt: skip
    names = {path.name for path in (tmp_path / "page" / "data").iterdir()}
    assert {"overview.js", "requests.js", "requests-0.js", "questions.js", "training.js", "stamp.js"} <= names
    assert "script-src 'self'; style-src 'self'" in page.path.read_text()


def test_a_page_is_replaced_and_nothing_else_is(made_study: Path, tmp_path: Path):
    first = bundle.write([made_study], tmp_path / "page")
    (first.path.parent / "data" / "rest.js").write_text("")
    bundle.write([made_study], tmp_path / "page")
    assert not (first.path.parent / "data" / "rest.js").exists()
    for mine in ("mine", "mine.html"):
        write_text(tmp_path / mine / "index.html" if mine == "mine" else tmp_path / mine, "<p>my own</p>")
        with pytest.raises(UserError, match="holds something else"):
            bundle.write([made_study], tmp_path / mine, single_file=mine.endswith("html"))
    assert (tmp_path / "mine.html").read_text() == "<p>my own</p>"


def test_the_same_study_gives_the_same_page(made_study: Path, tmp_path: Path):
    pages = [bundle.write([made_study], tmp_path / name).path.parent for name in ("a", "b")]
    files = [{str(p.relative_to(page)): p.read_bytes() for p in page.rglob("*.*")} for page in pages]
    assert files[0] == files[1]


def test_one_file_holds_everything_and_says_what_it_left_out(
    made_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = bundle.write([made_study], tmp_path / "page.html", single_file=True)
    text = whole.path.read_text()
    assert whole.replies == whole.all_replies == 7 * 90
    assert "src=" not in text.partition("<body>")[2].partition("<script type")[0]
    assert "'sha256-" in text.partition("</head>")[0]
    assert "'self'" not in text.partition("</head>")[0]
    monkeypatch.setattr(bundle, "MOST_REPLIES", 140)
    part = bundle.write([made_study], tmp_path / "page.html", single_file=True)
    assert part.replies == 140 + 70
    assert part.all_replies == 7 * 90
    assert part.size < whole.size


def test_studies_with_a_prompt_in_common_have_one_page(made_study: Path, tmp_path: Path):
    other = Path(shutil.copytree(made_study, tmp_path / "other"))
    recipe = (other / "recipe.yaml").read_text().replace("name: made", "name: other\nseeds: [3]")
    (other / "recipe.yaml").write_text(recipe)
    page = bundle.write([made_study, other], tmp_path / "page")
    text = (page.path.parent / "data" / "overview.js").read_text()
    value = json.loads(text[text.index("{") : text.rindex("'")].replace("\\\\", "\\").replace("\\u0027", "'"))
    assert value["differences"] == [["name", "made", "other"], ["seeds", "-", "[3]"]]
    assert [column["name"] for column in value["columns"]][::7] == ["made: base", "other: base"]
    assert len({(c["colour"], c["mark"]) for c in value["columns"] if not c["base"]}) == 6
    index = (page.path.parent / "data" / "requests.js").read_text()
    assert index.count('"ids":') == 1
    assert page.replies == 2 * 7 * 90


def test_studies_without_a_prompt_in_common_are_refused(made_study: Path, tmp_path: Path):
    other = tmp_path / "other"
    row = next(iter(read_rows(made_study / "replies" / "harmful.jsonl", Reply).values()))
    append_rows(other / "replies" / "harmful.jsonl", [row.model_copy(update={"prompt_id": "another"})])
    with pytest.raises(UserError, match="have no prompt and no question in common"):
        bundle.write([made_study, other], tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_memory_is_bounded_by_chunks_and_not_by_texts(tmp_path: Path):
    import tracemalloc

    study = large_study.make(tmp_path / "study", 60, arms=1, steps=(5,), words=1500)
    size = sum(path.stat().st_size for path in (study / "replies").iterdir())
    tracemalloc.start()
    bundle.write([study], tmp_path / "page")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 6e6
    assert peak < size / 2
    assert len(list((tmp_path / "page" / "data").glob("requests-*.js"))) > 10


def test_a_page_is_a_space(made_study: Path, tmp_path: Path):
    page = bundle.write([made_study], tmp_path / "page", space=True)
    text = (page.path.parent / "README.md").read_text()
    settings = yaml.safe_load(text.split("---\n")[1])
    assert settings["sdk"] == "static"
    assert (page.path.parent / settings["app_file"]).exists()
    assert settings["title"] == "made"


def test_the_page_needs_no_torch():
    block = "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'matplotlib')); "
    done = subprocess.run([sys.executable, "-c", f"{block}import lowtax.report.bundle"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
