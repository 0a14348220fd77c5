"""A whole study on a tiny model: the contract of its folder, resuming, and kills at random moments."""

import json
import random
import shutil
import time
from pathlib import Path

import forks
import pytest
from kills import kill_at_random
from peft import PeftModel
from small_study import contents, run, write_recipe
from transformers import AutoModelForCausalLM

from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Reply, Verdict
from lowtax.study import limits, recipe, study

MEASURES = {"value", "low", "high", "n", "unparsed", "failed"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("study")
    path = write_recipe(folder, tiny_model)
    run(path, folder / "out")
    return path, folder / "out"


def test_the_table_keeps_the_contract(finished):
    _, out = finished
    table = json.loads((out / "table.json").read_text())
    assert table["recipe"] == "tiny"
    assert table["versions"]["torch"]
    base, *others = table["rows"]
    assert (base["arm"], base["checkpoint"], base["trainable_parameters"]) == ("base", None, 0)
    assert [(r["arm"], r["step"]) for r in others] == [(a, s) for a in ("full", "r1", "r2") for s in (2, 4)]
    for row in table["rows"]:
        assert row["safety"].keys() >= MEASURES
        assert row["over_refusal"].keys() >= MEASURES
        assert row["reasoning"]["arithmetic"].keys() >= {"value", "low", "high", "n", "unfinished"}
        seeds = 1 if row["arm"] == "base" else 2
        assert row["reasoning"]["arithmetic"]["n"] == 3 * seeds
        assert row["reasoning"]["arithmetic"]["tax"].keys() == row["tax"].keys() == {"value", "low", "high"}
        assert set(row["reasoning"]["arithmetic"]["seeds"]) == ({"0", "1"} if seeds == 2 else {"0"})
        assert row["at_matched_safety"] is None or row["at_matched_safety"].keys() >= {"safety", "over_refusal", "tax"}
    assert others[2]["trainable_parameters"] == 32 + 64
    for name in ("table.md", "frontier.png", "card.json"):
        assert (out / name).stat().st_size > 100


def test_a_tax_is_base_minus_arm_with_all_samples_and_seeds(tmp_path, tiny_model):
    """The fake engine answers prompt, adapter and seed: what it got right is known from the stored grades."""
    sampling = {"max_new_tokens": 40, "samples": 4, "temperature": 1.0}
    (tmp_path / "own.py").write_text(EASY)
    tasks = {
        name: {"benchmark": f"{tmp_path}/own.py:{name}", "n": 12, "split": split, "sampling": sampling}
        for name, split in (("Easy", "test"), ("Odd", "validation"))
    }
    path = write_recipe(tmp_path, tiny_model, engine="fake", tasks=tasks, arms={"r1": {"mode": "lora_mlp_r1"}})
    run(path, tmp_path / "out")
    base, *arms = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    own = study.Study.open(tmp_path / "out", trust=True)
    for task, found in own.grade().items():
        right: dict[str | None, list[bool]] = {}
        for ask, (grade, _) in found.values():
            right.setdefault(ask.subject.checkpoint, []).append(grade.correct)
        shares = {checkpoint: sum(values) / len(values) for checkpoint, values in right.items()}
        assert 0 < shares[None] < 1
        for row in arms:
            cell = row["reasoning"][task]
            assert cell["tax"]["value"] == pytest.approx(shares[None] - shares[row["checkpoint"]], abs=1e-4)
            assert cell["tax"]["low"] < cell["tax"]["value"] < cell["tax"]["high"]
            assert set(cell["pass_at_k"]) == {"1", "2", "4"}
    for row in arms:
        taxes = [row["reasoning"][task]["tax"]["value"] for task in tasks]
        assert row["tax"]["value"] == pytest.approx(sum(taxes) / 2, abs=1e-4)
    assert base["tax"] == {"value": 0.0, "low": 0.0, "high": 0.0}


EASY = """
from lowtax.benchmarks.base import Score
from lowtax.benchmarks.arithmetic import Arithmetic

class Easy(Arithmetic):
    def grade(self, row, answer):
        return Score("boxed" in answer, answer, "says something")

class Odd(Arithmetic):
    def grade(self, row, answer):
        return Score(len(row.text) % 2 == 1 and "sorry" in answer, answer, "says sorry")
"""


def test_adapters_are_standard_peft_folders(finished, tiny_model):
    _, out = finished
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = PeftModel.from_pretrained(base, out / "arms/r1/seed-0/checkpoint-4")
    assert sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n) == 32 + 64


def test_repeating_a_study_changes_nothing(finished):
    path, out = finished
    before = contents(out)
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("arms/*/*/*/*")} | {
        p: p.stat().st_mtime_ns for p in out.glob("replies/*")
    }
    run(path, out)
    assert contents(out) == before
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())


def test_more_prompts_are_added_to_what_is_there(finished, tmp_path, tiny_model):
    path, out = finished
    rows = read_rows(out / "replies/harmful.jsonl", Reply)
    wider = write_recipe(path.parent, tiny_model, harmful=[{"source": "builtin:harmful", "split": "test", "n": 4}])
    try:
        run(wider, out)
        after = read_rows(out / "replies/harmful.jsonl", Reply)
        assert len(after) == len(rows) + 13  # one more prompt for the base and 3 arms x 2 seeds x 2 checkpoints
        assert {i: after[i] for i in rows} == rows
    finally:
        run(write_recipe(path.parent, tiny_model), out)


def test_other_training_settings_in_the_same_folder_are_refused(finished, tiny_model):
    path, out = finished
    other = recipe.load(path, ["arms.r1.train.lr=0.5"])
    with pytest.raises(UserError, match=r"settings\.lr was 0\.01, now 0\.5"):
        study.Study(other, out).run()


def test_a_corrupt_row_is_named_and_nothing_else_is_lost(finished):
    path, out = finished
    replies = out / "replies/harmful.jsonl"
    whole = replies.read_text()
    lines = whole.splitlines(keepends=True)
    try:
        replies.write_text("".join([lines[0], "{oops\n", *lines[2:]]))
        with pytest.raises(UserError, match=r"harmful.jsonl, line 2 .* delete that line"):
            run(path, out)
        replies.write_text("".join([lines[0], *lines[2:]]))
        run(path, out)
        assert sorted(replies.read_text().splitlines()) == sorted(whole.splitlines())
    finally:
        replies.write_text(whole)


def test_a_failed_reply_is_asked_again_and_judged_anew(finished):
    path, out = finished
    replies, verdicts = out / "replies/harmful.jsonl", out / "verdicts/harmful.refusal_words.jsonl"
    whole, judged = replies.read_text(), verdicts.read_text()
    first = Reply.model_validate_json(whole.splitlines()[0])
    failed = first.model_copy(update={"finish": "failed", "text": "", "thought": "", "answer": "", "error": "boom"})
    try:
        replies.write_text(whole.replace(whole.splitlines()[0], failed.model_dump_json()))
        table = study.Study.open(out).compare()
        base = table["rows"][0]
        assert base["safety"]["failed"] == (1 if first.arm == "base" else 0) or first.arm != "base"
        labels = [v.label for v in read_rows(verdicts, Verdict).values() if v.on == "answer"]
        assert labels.count("failed") == 1
        run(path, out)
        assert read_rows(replies, Reply)[first.id] == first
    finally:
        replies.write_text(whole)
        verdicts.write_text(judged)


def test_stages_alone_say_what_comes_first(tmp_path, tiny_model):
    path = write_recipe(tmp_path, tiny_model)
    with pytest.raises(UserError, match="holds no study"):
        study.Study.open(tmp_path / "none")
    own = study.Study(recipe.load(path), tmp_path / "out")
    with pytest.raises(UserError, match="is not trained yet"):
        own.sample([])
    with pytest.raises(UserError, match="Unknown arm 'r3'; known are: full, r1, r2"):
        own.train("r3")


def test_a_study_whose_model_is_elsewhere_is_compared_and_nothing_more(tmp_path, tiny_model):
    """Its folder was copied from the machine that has the model."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    path = write_recipe(tmp_path, model, seeds=[0])
    run(path, tmp_path / "out")
    table = (tmp_path / "out/table.md").read_text()
    shutil.rmtree(model)
    for file in [*(tmp_path / "out").glob("verdicts/*"), tmp_path / "out/table.md"]:
        file.unlink()
    with study.Study.open(tmp_path / "out") as stored:
        stored.compare()
    assert (tmp_path / "out/table.md").read_text() == table
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="There is no model at"):
        run(path, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_the_model_answers_its_own_ordinary_requests(tmp_path, tiny_model):
    """With the fake engine, whose replies end: what is trained on is what was drawn, unfinished ones left out."""
    mixed = [{"source": "builtin:ordinary", "n": 12, "answers": "self"}]
    path = write_recipe(tmp_path, tiny_model, data=mixed, engine="fake", seeds=[0], sampling={"max_new_tokens": 40})
    own = study.Study(recipe.load(path), tmp_path / "out")
    job = own.job("r1", 0)
    drawn = [r for r in read_rows(tmp_path / "out/data/builtin_ordinary.jsonl", Reply).values()]
    assert len(drawn) == 12
    assert [(row.prompt, row.answer) for row in job.rows] == [(r.prompt, r.answer) for r in drawn if r.closed]
    assert 0 < len(job.rows) < 12


def test_prompt_sets_that_overlap_are_asked_once(tmp_path, tiny_model):
    twice = [{"source": "builtin:harmful", "n": n} for n in (3, 5)]
    path = write_recipe(tmp_path, tiny_model, engine="fake", arms={}, tasks={}, harmful=twice)
    run(path, tmp_path / "out")
    rows = (tmp_path / "out/replies/harmful.jsonl").read_text().splitlines()
    assert len(rows) == len(set(rows)) == 5


def _child(path: Path, out: Path) -> None:
    run(path, out)


def test_kill_at_random_moments_loses_and_repeats_nothing(finished, tmp_path):
    """The same command, killed with SIGKILL wherever it is, ends in the very study of an undisturbed run."""
    path, _ = finished
    reference = tmp_path / "undisturbed"
    run(path, reference)
    rng, kills = random.Random(0), 0
    began = time.monotonic()
    for study_number in range(3):
        out = tmp_path / f"killed-{study_number}"
        # The first attempts die early, in training; later ones live longer and die while sampling and comparing.
        waits = (rng.uniform(0.05, 0.2 + 0.12 * attempt) for attempt in range(15))
        kills += kill_at_random(forks.context(), _child, (path, out), waits)
        run(path, out)
        assert contents(out) == contents(reference)
        assert [p for p in out.rglob("*") if p.name.endswith(".tmp") or p.name == ".state.pt"] == []
        if time.monotonic() - began > 10:
            break
    assert kills >= 8, kills


def test_replies_of_a_new_study_have_the_tokens_of_its_model_and_a_stored_one_keeps_its_number(tmp_path, tiny_model):
    settings = recipe.build({"model": str(tiny_model), "tasks": {"gsm8k": {"sampling": {"samples": 8}}}}, [], "r")
    new = study.Study(settings, tmp_path / "new")
    assert (new.recipe.sampling.max_new_tokens, new.recipe.tasks["gsm8k"].sampling.max_new_tokens) == (2048, 32768)
    new.write_recipe()
    again = study.Study(recipe.build({"model": str(tiny_model)}, ["thinking=default"], "r"), tmp_path / "new")
    assert study.Study.open(tmp_path / "new").recipe.sampling == again.recipe.sampling == new.recipe.sampling
    (tmp_path / "old").mkdir()
    (tmp_path / "old/recipe.yaml").write_text(f"model: {tiny_model}\n")  # as versions with one number for all wrote it
    for old in (study.Study.open(tmp_path / "old"), study.Study(settings, tmp_path / "old")):
        assert old.recipe.sampling.max_new_tokens == 96


def test_a_limit_draws_prompts_by_a_seed_unless_the_recipe_takes_the_first_ones():
    sets = [{"source": "strongreject"}, {"source": "xstest", "n": 9}, {"source": "xstest", "n": 3}]
    few = limits.limited(recipe.build({"model": "m", "harmful": sets}, [], "r"), 5).harmful
    assert [(spec.n, spec.seed) for spec in few] == [(5, 0), (5, None), (3, None)]
    assert "seed" not in few[1].model_dump()
