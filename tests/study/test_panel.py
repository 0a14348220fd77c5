"""Several judges of one study: their rates, agreement and differences, against numbers done by hand."""

from pathlib import Path

import pytest

from lowtax.common.records import Prompt, Subject, Verdict
from lowtax.engines.sampling import Ask, Sheet
from lowtax.engines.settings import Sampling
from lowtax.study import panel, panel_tables

SUBJECT = Subject("base", None, None, 0, "model", None, "made")


def judged(labels: dict[str, str], judge: str) -> dict[str, tuple[Ask, Verdict]]:
    """Verdicts on replies by id, PROMPT.NUMBER."""
    rows = {}
    for id_, label in labels.items():
        prompt = Prompt(id=id_.split(".")[0], source="own", text=f"Text of {id_.split('.')[0]}")
        sheet = Sheet(Path("x"), [prompt], Sampling())
        verdict = Verdict(id=f"{judge}{id_}", reply_id=id_, judge=judge, label=label)  # type: ignore[arg-type]
        rows[id_] = (Ask(id_, SUBJECT, prompt, int(id_.split(".")[1]), sheet), verdict)
    return rows


FIRST = {
    "a.0": "refusal",
    "a.1": "compliance",
    "b.0": "partial",
    "c.0": "compliance",
    "d.0": "unfinished",
    "e.0": "refusal",
}
SECOND = {"a.0": "safe", "a.1": "safe", "b.0": "safe", "c.0": "unsafe", "d.0": "unfinished", "e.0": "unparsed"}


def test_agreement_of_a_judge_of_refusals_and_one_of_harm():
    cell = panel.compared({"harmful": judged(FIRST, "r")}, {"harmful": judged(SECOND, "h")})
    assert (cell["value"], cell["n"], cell["without"]) == (0.75, 4, 2)
    assert (cell["only_first"], cell["only_second"]) == (0, 1)
    # Both safe 2, the second alone 1, neither 1: observed 3/4, chance (2 * 3 + 2 * 1) / 16.
    assert cell["kappa"]["value"] == pytest.approx((0.75 - 0.5) / 0.5)
    assert cell["kappa"]["low"] <= 0.5 <= cell["kappa"]["high"]


def test_the_requests_on_which_they_differ_and_the_section():
    first, second = {"harmful": judged(FIRST, "r")}, {"h": {"harmful": judged(SECOND, "h")}}
    result = panel.agreement(first, second)
    (differs,) = result["h"]["differ"]
    assert differs == {"set": "harmful", "prompt": "Text of a", "prompt_id": "a", "differ": 1, "n": 2, "reply": "a.1",
                       "labels": ["compliance", "safe"]}  # fmt: skip
    row = panel.of_row(SUBJECT, first, second)["judges"]["h"]
    assert row["safety"]["value"] == 0.6  # of five with a verdict of h; the unfinished one is in n
    assert row["agreement"]["n"] == 4
    table = {
        "judge": "r",
        "judges": result,
        "rows": [{"arm": "base", "step": 0, "safety": row["safety"], "judges": {"h": row}}],
    }
    text = panel_tables.markdown(table)
    assert "| h | all | 0.75 [" in text
    assert "| Text of a | harmful | 1 of 2 | compliance | safe |" in text
    assert panel_tables.markdown({"judge": "r", "rows": []}) == ""


def test_a_study_with_one_judge_has_no_field():
    assert panel.of_row(SUBJECT, {"harmful": judged(FIRST, "r")}, {}) == {}


def test_judges_without_a_common_opinion():
    cell = panel.compared({"harmful": judged({"a.0": "failed"}, "r")}, {"harmful": judged({"a.0": "safe"}, "h")})
    assert (cell["value"], cell["n"], cell["kappa"]["value"], cell["without"]) == (None, 0, None, 1)
