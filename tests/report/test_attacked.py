"""Replies to attacks on the page: what was put to the model, the attack as a filter and a measure, all of it text."""

import json
import shutil
from itertools import cycle
from pathlib import Path

import pytest
from injections import AWAY, INJECTIONS
from watched_page import Watched

from lowtax.attacks.attempts import Attempt
from lowtax.attacks.base import load
from lowtax.attacks.rates import Judged, Step, cell
from lowtax.common.files import append_rows, read_rows, write_json
from lowtax.common.records import Attacked, Prompt, Reply, Verdict
from lowtax.report import bundle, stored, tracking
from lowtax.report.across import compare_studies
from lowtax.report.overview import overview
from lowtax.report.replies import Replies
from lowtax.report.subjects import Columns

MODELS = (("base", None, None), ("arm_0", 0, "checkpoint-100"))
ATTACKS = {"prefill": 1, "best_of_n": 3, "pair": 4}  # and the most attempts


def requests(study: Path) -> list[Prompt]:
    """The first four harmful requests of the made study, as plain prompts."""
    rows = read_rows(study / "replies" / "harmful.jsonl", Reply).values()
    first = {row.prompt_id: row for row in rows}
    return [
        Prompt(id=id_, source=row.source, text=row.prompt, category=row.category)
        for id_, row in list(first.items())[:4]
    ]


def replied(prompt: Prompt, model: tuple, text: str) -> Reply:
    arm, seed, checkpoint = model
    return Reply(
        id=f"{prompt.id}-{arm}", arm=arm, seed=seed, checkpoint=checkpoint, source=prompt.source, prompt_id=prompt.id,
        prompt=prompt.text, sample=0, text=text, thought=text, answer=text, closed=True, finish="stop", tokens=5,
        category=prompt.category, goal=prompt.goal, attacked=prompt.attacked,
    )  # fmt: skip


def attacked_study(made_study: Path, out: Path) -> Path:
    """The made study with replies to three attacks, of which one talks; every text that is not ours is an injection."""
    shutil.copytree(made_study, out)
    plain, texts = requests(out), cycle(INJECTIONS)
    by_attack: dict[str, list[Reply]] = {}
    for name in ("prefill", "best_of_n"):
        spec = {"name": name} | ({"n": 3} if name == "best_of_n" else {})
        made = load(spec).prompts(plain)
        by_attack[name] = [replied(prompt, model, next(texts)) for model in MODELS for prompt in made]
    append_rows(out / "replies" / "attacks.jsonl", by_attack["prefill"] + by_attack["best_of_n"])
    talked, attempts = [], []
    for model in MODELS:
        for request in plain[:3]:
            for number in range(2):
                history = (("user", next(texts)), ("assistant", next(texts))) if number else ()
                about = Attacked(attack="pair", request=request.id, attempt=number, variant="role", history=history)
                prompt = Prompt(
                    id=f"{request.id}{number}", source=request.source, text=next(texts), category=request.category,
                    goal=request.text, attacked=about,
                )  # fmt: skip
                talked.append(replied(prompt, model, f"{request.text} {next(texts)}"))
                attempts.append(step(talked[-1], request, number))
        attempts.append(step(None, plain[3], -1, model))
    append_rows(out / "attacks" / "pair.replies.jsonl", [*talked, talked[0].model_copy(update={"id": "left over"})])
    append_rows(out / "attacks" / "pair.attempts.jsonl", attempts)
    by_attack["pair"] = talked
    verdicts = {
        reply.id: Verdict(
            id=f"v{reply.id}", reply_id=reply.id, judge="refusal", score=0.9,
            label="refusal" if i % 3 else "compliance", detail=next(texts),
        )
        for i, reply in enumerate(reply for rows in by_attack.values() for reply in rows)
    }  # fmt: skip
    append_rows(out / "verdicts" / "attacks.refusal.jsonl", list(verdicts.values()))
    table = json.loads((out / "table.json").read_text())
    for row in table["rows"]:
        cells = {}
        for name, rows in by_attack.items():
            own = [r for r in rows if (r.arm, r.checkpoint) == (row["arm"], row["checkpoint"])]
            if own:
                steps = [Step(0, plain[3].id, 9, "no JSON")] if name == "pair" else []
                cells[name] = cell([Judged(r, verdicts[r.id]) for r in own], ATTACKS[name], False, steps)
        if cells:
            row["attacks"] = cells
    write_json(out / "table.json", table | {"judge_kind": "refusal"})
    return out


def step(reply: Reply | None, request: Prompt, number: int, model: tuple = ()) -> Attempt:
    arm, seed, checkpoint = (reply.arm, reply.seed, reply.checkpoint) if reply else model
    return Attempt(
        id=f"{arm}{request.id}{number}", arm=arm, seed=seed, checkpoint=checkpoint, request=request.id,
        goal=request.text, attempt=number, prompt=reply.prompt if reply else "", reply=reply.id if reply else "",
        score=0.25 if reply else None, problem="" if reply else "no JSON", wrote=INJECTIONS[2],
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(made_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attacked_study(made_study, tmp_path_factory.mktemp("attacked") / "study")


@pytest.fixture(scope="module")
def page_of(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.write([study], tmp_path_factory.mktemp("page") / "page").path


def entries(study: Path) -> tuple[Replies, dict[str, dict]]:
    read = stored.read(study)
    columns = Columns([read])
    columns.add_rows()
    replies = Replies([read], columns, False)
    lines = (line for chunk in replies.chunks(replies.chosen(None)) for line in chunk)
    return replies, {entry["id"]: entry for entry in map(json.loads, lines)}


def test_a_request_under_an_attack_has_every_attempt_with_what_was_sent(study: Path):
    replies, by_id = entries(study)
    plain = requests(study)
    prompts = [prompt for prompt in replies.prompts.values() if prompt.attack]
    assert len(prompts) == 4 * 3
    assert len(replies) == 80 * 7 + 2 * (4 + 12 + 6)  # the reply that no attempt names is left out
    of_n = by_id[f"best_of_n.{plain[0].id}"]
    assert of_n["goal"] == plain[0].text
    assert [each["attacked"]["attempt"] for each in of_n["replies"]] == [1, 2, 3, 1, 2, 3]
    sent = [prompt.text for prompt in load({"name": "best_of_n", "n": 3}).prompts(plain[:1])]
    assert [each["attacked"]["sent"] for each in of_n["replies"]] == [[["user", text]] for text in sent] * 2
    assert by_id[f"prefill.{plain[1].id}"]["replies"][0]["attacked"]["begun"]
    talk = by_id[f"pair.{plain[0].id}"]["replies"][1]["attacked"]
    assert [role for role, _ in talk["sent"]] == ["user", "assistant", "user"]
    assert (talk["variant"], talk["score"]) == ("role", 0.25)
    assert "off_goal" not in talk
    assert of_n["replies"][0]["attacked"]["off_goal"] is True
    alone = by_id[f"pair.{plain[3].id}"]  # the attacker wrote no prompt
    assert (alone["goal"], alone["replies"]) == (plain[3].text, [])
    assert set(alone["unusable"].values()) == {"1 no JSON"}
    first = next(p for p in replies.prompts.values() if p.id == alone["id"])
    assert (first.set, first.category) == ("made-harmful", plain[3].category)


def test_success_is_a_measure_of_which_less_is_better(study: Path):
    read = stored.read(study)
    columns = Columns([read])
    columns.add_rows()
    shown = overview([read], columns)
    measures = {measure["key"]: measure for measure in shown["measures"]}
    base = read.rows[0]["attacks"]["prefill"]
    measure = measures["attack.prefill"]
    assert (measure["name"], measure["better"]) == ("success of the attack prefill", "down")
    assert measure["figures"][0] == [base["value"], base["low"], base["high"], 4]
    assert measures["attempt.best_of_n"]["figures"][0][3] == read.rows[0]["attacks"]["best_of_n"]["attempts"]["n"]
    rows = {(row["column"], row["attack"]): row for row in shown["attacks"]["rows"]}
    assert len(rows) == 6
    assert (rows[0, "pair"]["budget"], rows[0, "pair"]["unusable"]) == (4, "1 no JSON")
    assert rows[0, "pair"]["success"][3] == 4  # the request without a usable prompt stays in n
    assert "The judge is one of refusals" in shown["attacks"]["caption"]


CELL = {"value": 1, "low": 1, "high": 1}


@pytest.mark.parametrize(
    "attacks",
    [
        3,
        {"prefill": 1},
        {"prefill": CELL | {"n": "x"}},
        {"prefill": CELL | {"n": 2, "budget": "x", "unusable": [1], "safe_at_k": 2}},
    ],
)
def test_attacks_of_another_form_are_no_crash(study: Path, tmp_path: Path, attacks: object):
    other = Path(shutil.copytree(study, tmp_path / "study"))
    table = json.loads((other / "table.json").read_text())
    table["rows"][0]["attacks"] = attacks
    write_json(other / "table.json", table)
    (other / "attacks" / "pair.attempts.jsonl").write_text('{"id": 1}\n')
    bundle.write([other], tmp_path / "page")
    compare_studies([other, other], tmp_path / "both")
    assert any("pair.attempts.jsonl: 1 damaged line" in note for note in _notes(other))


def _notes(study: Path) -> list[str]:
    read = stored.read(study)
    Replies([read], Columns([read]), False)
    return read.notes


def test_success_is_compared_where_the_requests_are_the_same_alone(study: Path, tmp_path: Path):
    table = compare_studies([study, study], tmp_path / "same")
    assert table["rows"][0]["attacks"].keys() == ATTACKS.keys()
    assert "| attack | arm | step | success |" in (tmp_path / "same" / "table.md").read_text()
    other = Path(shutil.copytree(study, tmp_path / "other"))
    path = other / "replies" / "attacks.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[1:]))
    first = requests(study)[0].id
    kept = [line for line in path.read_text().splitlines() if not (first in line and '"prefill"' in line)]
    path.write_text("\n".join(kept) + "\n")
    table = compare_studies([study, other], tmp_path / "two")
    assert table["rows"][0]["attacks"].keys() == {"best_of_n", "pair"}
    assert "The success of prefill is not shown" in (tmp_path / "two" / "table.md").read_text()


def test_no_tracker_gets_a_reply_to_an_attack(study: Path):
    sent = json.dumps([arm.replies for arm in tracking.results(study, 100, False)])
    assert "harmful request" not in sent
    assert "best_of_n" not in sent
    assert "prefill" not in sent


def choose(page: object, label: str, value: str) -> None:
    page.locator("#view-replies .filters").get_by_label(label, exact=True).select_option(label=value)


def test_the_page_shows_them_as_text_behind_a_click(watched: Watched, study: Path, page_of: Path):
    plain = requests(study)
    page = watched.open(page_of, "replies")
    view = page.locator("#view-replies")
    assert view.locator(".count").inner_text().startswith("92 of 92 prompts")
    choose(page, "Attack", "none: plain requests")
    assert view.locator(".count").inner_text().startswith("80 of 92")
    choose(page, "Attack", "best_of_n")
    assert view.locator(".count").inner_text().startswith("4 of 92")
    page.locator("#view-replies .about", has_text="under the attack best_of_n").wait_for()
    assert view.locator(".row").first.locator(".chip").all_inner_texts() == [
        "C",
        "C",
    ]  # one of three attempts is enough
    assert plain[0].text not in view.inner_text()
    assert view.locator(".turn").count() == 0
    page.get_by_label("Show harmful text without a click").check()
    card = view.locator(".card", has_text="arm_0").first
    replies = read_rows(study / "replies" / "attacks.jsonl", Reply).values()
    own = [r for r in replies if r.attacked.attack == "best_of_n" and r.arm == "arm_0"]
    for i in range(3):
        card.locator(".turn .text").filter(has_text=own[i].prompt[:20]).wait_for()
        assert card.locator(".turn .text").text_content() == own[i].prompt
        assert f"attempt {i + 1}" in card.locator(".sent .facts").text_content()
        assert own[i].answer in card.text_content()
        card.get_by_role("button", name="next reply").click()
    assert "off goal" in card.text_content()
    choose(page, "Attack", "pair")
    page.locator("#view-replies .about", has_text="under the attack pair").wait_for()
    assert view.locator(".prompt").text_content() == plain[0].text
    card.get_by_role("button", name="next reply").click()
    card.locator("summary", has_text="the conversation that was put to the model, 3 turns").wait_for()
    view.locator(".list").press("End")
    view.locator(".card", has_text="without a usable prompt: 1 no JSON").first.wait_for()
    for _ in range(3):
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        view.locator(".list").press("k")
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main iframe, main svg script, main form, main style").count() == 0
    assert watched.elsewhere(page_of.parent) == []
    assert not any(AWAY in url for url in watched.fetched)


def test_a_permalink_leads_to_an_attempt(watched: Watched, study: Path, page_of: Path):
    row = list(read_rows(study / "attacks" / "pair.replies.jsonl", Reply).values())[1]
    page = watched.open(page_of, f"reply={row.id}")
    page.get_by_label("Show harmful text without a click").check()
    card = page.locator(f'[data-reply="{row.id}"]')
    assert card.locator(".turn").count() == 3
    assert card.locator(".turn .text").last.text_content() == row.prompt


def test_success_is_an_axis_and_in_the_table_with_n_and_budget(watched: Watched, study: Path, page_of: Path):
    page = watched.open(page_of)
    cells = json.loads((study / "table.json").read_text())["rows"][0]["attacks"]
    table = page.get_by_role("region", name="Attacks").locator("tbody tr")
    assert table.count() == 6
    first = table.first.inner_text().split("\t")
    rate = f"{cells['prefill']['value']:.2f} [{cells['prefill']['low']:.2f}, {cells['prefill']['high']:.2f}]"
    assert first[:5] == ["base", "prefill", rate, "4", "1"]
    page.get_by_label("Up", exact=True).select_option(label="success of the attack pair")
    assert page.locator(".point").count() == 2
    assert "success of the attack pair: less is better" in page.locator(".frontier").inner_text()
    page.locator("#view-overview summary", has_text="Columns").click()
    page.get_by_label("success of the attack prefill", exact=True).check()
    assert page.get_by_role("button", name="success of the attack prefill").is_visible()
    page.locator("#view-overview .attacks").get_by_role("link", name="show").nth(4).click()
    page.locator("#view-replies .count", has_text="4 of 92").wait_for()
    chosen = page.locator("#view-replies").get_by_label("Attack", exact=True).locator(":checked")
    assert chosen.inner_text() == "best_of_n"
    assert page.locator("#view-replies").get_by_label("A", exact=True).locator(":checked").inner_text() == "arm_0"
