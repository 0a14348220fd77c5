"""The libraries that draw the charts, and what they draw, in a real browser with hostile names. Skipped without one."""

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import pytest
from watched_page import Watched

from lowtax.common.files import write_json, write_text
from lowtax.report import bundle, vendored
from lowtax.report.encoding import source_hash

HOSTILE = "<img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def drawn_page(made_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every chart: curves of two runs, of which one has a hostile name, a map, a slice and a plane."""
    study = Path(shutil.copytree(made_study, tmp_path_factory.mktemp("drawn") / "study"))
    for arm, rate in (("arm_0", 1.0), (HOSTILE, 3.0)):
        steps = [{"step": step, "loss": rate / step, "lr": 1e-5 * step} for step in range(1, 11)]
        write_text(study / "arms" / arm / "seed-0" / "steps.jsonl", "".join(f"{json.dumps(s)}\n" for s in steps))
    sites = [
        {"module": module, "layer": layer, "relative_norm": (layer + 1) / 10}
        for module in ("q_proj", HOSTILE)
        for layer in range(4)
    ]
    write_json(study / "geometry.json", {"arms": [{"label": "arm_0", "sites": sites}]})
    safe = {"value": 0.5, "low": 0.4, "high": 0.6}
    slice_ = [{"seed": seed, "alpha": a / 2, "safe": safe} for seed in (0, 1) for a in range(-2, 3)]
    write_json(study / "slice" / "landscape.json", {"points": slice_})
    plane = [{"seed": 0, "alpha": a, "beta": b, "safe": safe} for a in (-1, 0, 1) for b in (-1, 0, 1)]
    write_json(study / "plane" / "landscape.json", {"points": plane})
    return bundle.write([study], study.parent / "page").path


def charts(page: object, view: str) -> object:
    return page.locator(f"#view-{view} {'.frontier ' if view == 'overview' else ''}.chart")


def point_at(page: object, chart: object, across: float, up: float) -> None:
    """Move the pointer to a place in a chart, in shares of its box."""
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + across * box["width"], box["y"] + up * box["height"])


def test_the_libraries_are_those_of_the_manifest_and_every_page_has_their_licences(made_page: Path, made_study: Path):
    files = {path.name for path in vendored.VENDOR.iterdir()}
    libraries = vendored.manifest()["libraries"]
    assert files == {"manifest.json", vendored.LICENCES, *(library["file"] for library in libraries)}
    for library in libraries:
        data = (vendored.VENDOR / library["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == library["sha256"]
        assert f"v{library['version']} Copyright" in data[:100].decode()
        assert (made_page.parent / "assets" / "vendor" / library["file"]).read_bytes() == data
    assert (made_page.parent / "assets" / "vendor" / vendored.LICENCES).read_text() == vendored.licences()
    one = bundle.write([made_study], made_page.parent.parent / "one.html", single_file=True).path.read_text()
    assert vendored.licences() in one
    assert "-->" not in vendored.licences()


@pytest.mark.parametrize("single_file", [False, True])
def test_the_policy_allows_the_style_of_the_charts_and_no_other(
    watched: Watched, made_study: Path, tmp_path: Path, single_file: bool
):
    out = tmp_path / ("page.html" if single_file else "page")
    index = bundle.write([made_study], out, single_file=single_file).path
    page = watched.open(index)
    [style] = set(page.locator(".chart > style").all_text_contents())
    assert source_hash(style) == vendored.style_source()
    policy = index.read_text().partition("</head>")[0]
    assert "unsafe" not in policy
    assert charts(page, "overview").evaluate("(each) => getComputedStyle(each).maxWidth") == "100%"
    page.evaluate("document.body.append(Object.assign(document.createElement('style'), {textContent: '* {top: 1px}'}))")
    assert page.evaluate("getComputedStyle(document.body).top") == "auto"
    assert any("style-src" in fault for fault in watched.faults)
    watched.faults.clear()


def test_every_chart_has_a_text_alternative_and_its_data(watched: Watched, drawn_page: Path):
    for view, number in (("overview", 2), ("training", 3), ("anatomy", 3)):
        page = watched.open(drawn_page, view)
        listed = page.locator(f"#view-{view} .chart")
        assert listed.count() == number
        for chart in listed.all():
            assert chart.get_attribute("role") in ("img", "group")
            assert len(chart.get_attribute("aria-label")) > 10
        assert page.locator(f"#view-{view} figure details.data tbody tr").count() > 0
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0


def test_the_pointer_shows_figures_and_hostile_names_as_text(watched: Watched, drawn_page: Path):
    page = watched.open(drawn_page, "training")
    chart = charts(page, "training").first
    text = chart.locator("[aria-label=tip] text")
    point_at(page, chart, 0.085, 0.08)  # the first step of the curve that begins at 3
    assert text.text_content().replace("\u200b", "|") == f"|{HOSTILE}, seed 0|step 1: 3"
    watched.open(drawn_page, "anatomy")
    chart = charts(page, "anatomy").first
    cells = chart.locator("[data-part=cell] rect")
    assert cells.count() == 8
    assert "var(--accent) 100%" in cells.nth(3).get_attribute("fill")
    assert "var(--accent) 25%" in cells.nth(0).get_attribute("fill")
    cells.nth(6).hover()
    assert chart.locator("[aria-label=tip] text").text_content().replace("\u200b", "|") == f"|layer 2, {HOSTILE}|0.3"
    assert page.evaluate("window.pwned") is None


def test_a_mark_is_a_link_with_its_figures_and_the_arms_have_their_shapes(watched: Watched, made_page: Path):
    page = watched.open(made_page)
    links = charts(page, "overview").get_by_role("link")
    names = [link.get_attribute("aria-label") for link in links.all()]
    assert names[0].startswith("base: ")
    assert all("[" in name and name.endswith("; show its replies") for name in names)
    paths = page.locator("#view-overview .frontier [data-part=dot] path")
    outlines = {paths.nth(i).get_attribute("d") for i in range(7)}
    assert len(outlines) == 4  # the base, and three arms with two checkpoints
    colours = [(paths.nth(i).get_attribute("fill"), paths.nth(i).get_attribute("stroke")) for i in (1, 2)]
    assert colours == [("var(--paper)", "#0072B2"), ("#0072B2", "var(--paper)")]  # hollow, then the last one filled
    links.nth(1).focus()
    ring = links.nth(1).locator("circle").evaluate("(each) => getComputedStyle(each).stroke")
    assert ring == "rgb(0, 94, 168)"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == names[2]
    page.keyboard.press("Enter")
    page.locator("#view-replies .card").first.wait_for()
    assert page.url.endswith("#arm=2")


def test_marks_at_one_place_are_moved_apart_and_stay_inside(watched: Watched, made_page: Path):
    page = watched.open(made_page)
    page.get_by_label("Across", exact=True).select_option(label="failed")  # 0 for all
    page.get_by_label("Up", exact=True).select_option(label="unfinished")
    circles = page.locator("#view-overview .point circle").all()
    places = sorted(float(circle.get_attribute("cx")) for circle in circles)
    assert len(places) == 7
    assert min(b - a for a, b in itertools.pairwise(places)) > 10
    assert places[0] > 56
    assert charts(page, "overview").evaluate("(each, x) => x < each.viewBox.baseVal.width", places[-1])


def test_a_chart_is_drawn_again_when_there_is_less_room(watched: Watched, made_page: Path):
    page = watched.open(made_page)
    chart = charts(page, "overview")
    assert chart.get_attribute("width") == "800"
    page.set_viewport_size({"width": 400, "height": 800})
    page.locator("#view-overview .frontier .chart:not([width='800'])").wait_for()
    assert 300 < int(chart.get_attribute("width")) <= 400
    size = chart.locator("text").first.evaluate("(each) => getComputedStyle(each).fontSize")
    assert size in ("12px", "13px")
    assert chart.bounding_box()["width"] == pytest.approx(float(chart.get_attribute("width")), abs=4)


def test_the_differences_of_the_best_arm_are_drawn_as_the_sentences_say(watched: Watched, made_page: Path):
    page = watched.open(made_page)
    chart = page.get_by_role("img", name="harmful refused, minus")
    text = page.locator(".answers li", has_text="Against the next arm").inner_text()
    figures = chart.locator("[data-part=text] text").all_text_contents()
    assert len(figures) == 8  # a name and a difference for each of four shares
    assert all(each in text for each in figures[4:7])
    assert chart.locator("[data-part=dot] circle").count() == 4
