import json
import re

import numpy as np
import pytest
from matplotlib import colors, image

from lowtax.benchmarks import rates as reasoning
from lowtax.common import stats
from lowtax.common.records import Verdict
from lowtax.judges import rates as safety
from lowtax.study.compare import compare, markdown
from lowtax.study.frontier import frontier
from lowtax.study.shares import pareto, solved


def cell(value, n=50, **counts):
    low, high = stats.wilson(round(value * n), n)
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "seeds": {"0": value, "1": value},
        "unparsed": 0,
        "failed": 0,
        "unfinished": 0,
        "partial": 0,
    } | counts


NOTHING = safety.cell({})


def row(arm, step, refused, right, over=0.0, parameters=21120):
    return {
        "arm": arm,
        "checkpoint": f"checkpoint-{step}" if step else None,
        "step": step,
        "trainable_parameters": parameters,
        "train_seconds": 1.5 * step,
        "safety": cell(refused),
        "over_refusal": cell(over),
        "reasoning": {"arithmetic": cell(right)},
    }


def table(*rows):
    return {
        "rows": list(rows),
        "recipe": "quickstart",
        "model": "builtin:reasoner",
        "precision": "float32",
        "seeds": [0, 1],
        "judge": "refusal_words",
        "versions": {"torch": "2"},
    }


BASE = row("base", 0, 0.02, 0.9, parameters=0)
STUDY = table(
    BASE,
    row("small", 10, 0.6, 0.88),
    row("small", 20, 0.98, 0.86),
    row("full", 10, 0.96, 0.6, over=0.3),
    row("full", 20, 1.0, 0.3, over=0.7),
)


# --- cells


def verdicts(labels: dict[tuple[str, int], str]) -> dict[tuple[str, int], Verdict]:
    return {key: Verdict(id=f"{key}", reply_id="r", judge="j", label=label) for key, label in labels.items()}


def test_a_safety_cell_counts_what_is_no_verdict_apart():
    labels = ["refusal", "partial", "compliance", "unfinished", "unparsed", "failed"]
    found = safety.cell({0: verdicts({(f"p{i}", 0): label for i, label in enumerate(labels)})})
    assert (found["value"], found["n"]) == (0.5, 4)
    assert found["harm"]["value"] == 0.25
    assert [found[label] for label in labels] == [1] * 6
    assert (found["low"], found["high"]) == pytest.approx(stats.wilson(2, 4), abs=1e-4)


def test_seeds_and_samples_of_a_prompt_move_together():
    seeds = {s: verdicts({(f"p{i}", 0): "refusal" if i < 30 else "compliance" for i in range(60)}) for s in range(4)}
    labels = {(f"p{i}", s): "safe" if i < 30 else "unsafe" for i in range(60) for s in range(4)}
    found, independent = safety.cell(seeds), stats.wilson(120, 240)
    assert (found["value"], found["n"]) == (0.5, 240)
    assert found["high"] - found["low"] > 1.5 * (independent[1] - independent[0])
    samples = safety.cell({0: verdicts(labels)})
    assert (samples["value"], samples["n"], samples["seeds"]) == (0.5, 240, {"0": 0.5})
    assert (samples["low"], samples["high"]) == pytest.approx((found["low"], found["high"]), abs=0.02)
    assert found["seeds"] == dict.fromkeys("0123", 0.5)


def test_seeds_that_differ_widen_the_interval():
    seeds = {
        s: verdicts({(f"p{i}", 0): "refusal" if i < 20 + 10 * s else "compliance" for i in range(60)}) for s in range(3)
    }
    found = safety.cell(seeds)
    assert found["seeds"] == {"0": 0.3333, "1": 0.5, "2": 0.6667}
    assert found["high"] - found["low"] > 0.35  # 0.24 by prompts alone


def test_several_samples_are_all_safe_or_mostly():
    labels = {
        ("a", 0): "safe",
        ("a", 1): "safe",
        ("b", 0): "safe",
        ("b", 1): "unsafe",
        ("c", 0): "unsafe",
        ("c", 1): "unsafe",
    }
    found = safety.cell({0: verdicts(labels)})
    assert found["value"] == 0.5
    assert found["samples"] == 2
    assert found["safe_at_k"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["cons_safe_at_k"]["value"] == pytest.approx(2 / 3, abs=1e-4)


def test_categories_and_scores():
    labels = {("a", 0): "safe", ("b", 0): "unsafe", ("c", 0): "unsafe"}
    scored = {key: v.model_copy(update={"score": 0.5}) for key, v in verdicts(labels).items()}
    found = safety.cell({0: scored}, {"a": "theft", "b": "theft", "c": "fraud"})
    assert found["score"] == 0.5
    assert {name: (c["value"], c["n"]) for name, c in found["categories"].items()} == {
        "fraud": (0.0, 1),
        "theft": (0.5, 2),
    }
    assert "safe_at_k" not in found


def test_prompt_sets_and_partial_refusals_stand_apart():
    labels = {("a", 0): "refusal", ("b", 0): "partial", ("c", 0): "compliance", ("d", 0): "refusal"}
    prompts = {
        "a": ("strongreject", ""),
        "b": ("strongreject", ""),
        "c": ("xstest", "safe:x"),
        "d": ("xstest", "unsafe"),
    }
    sets = {id_: safety.set_name(*prompt) for id_, prompt in prompts.items()}
    whole = safety.cell({0: verdicts(labels)}, None, sets)
    assert {name: (c["value"], c["n"]) for name, c in whole["sets"].items()} == {
        "strongreject": (1.0, 2),
        "xstest-safe": (0.0, 1),
        "xstest-unsafe": (1.0, 1),
    }
    assert (whole["in_part"]["value"], whole["value"]) == (0.25, 0.75)
    text = markdown(table(BASE, row("small", 10, 0.6, 0.88) | {"safety": whole}))
    assert re.search(r"harmful refused \| in part \|", text)
    assert re.search(r"0\.75 \[[^|]*\| 0\.25 \|", text)
    assert "In part: the share" in text
    assert re.search(r"\| strongreject \(harmful\) \| - \| 1\.00 ", text)
    alone = safety.cell({0: verdicts({("a", 0): "refusal"})}, None, {"a": "strongreject"})
    assert not {"sets", "in_part"} & alone.keys()


@pytest.mark.parametrize("empty", [{}, {0: {}}, {0: {("a", 0): "failed"}}])
def test_a_rate_of_nothing_is_none(empty):
    found = safety.cell({seed: verdicts(labels) for seed, labels in empty.items()})
    assert [found[k] for k in ("value", "low", "high", "n")] == [None, None, None, 0]


# --- the frontier


def test_pareto_keeps_what_nothing_beats():
    worse = row("full", 30, 0.5, 0.5)
    assert [(r["arm"], r["step"]) for r in pareto([*STUDY["rows"], worse])] == [
        ("base", 0),
        ("small", 10),
        ("small", 20),
        ("full", 20),
    ]


def test_rows_without_a_measurement_are_on_no_frontier():
    assert pareto([BASE | {"safety": NOTHING}, BASE | {"reasoning": {}}]) == []


def test_solved_is_the_mean_over_tasks_or_one_of_them():
    two = BASE | {"reasoning": {"a": cell(0.2), "b": cell(0.6)}}
    assert solved(two)[0] == pytest.approx(0.4)
    assert solved(two, "b")[0] == pytest.approx(0.6)
    assert solved(BASE | {"reasoning": {"a": cell(0.2), "b": reasoning.cell({})}}) is None


# --- the table


def test_markdown_shows_every_row_with_intervals():
    lines = markdown(STUDY).splitlines()
    head = ["arm", "step", "trainable parameters", "seconds", "seeds", "harmful refused", "ordinary refused"]
    assert [name.strip() for name in lines[0].split("|")[1:-1]] == [*head, "arithmetic", "unfinished"]
    low, high = stats.wilson(43, 50)
    assert lines[4].startswith("| **small** | 20 | 21,120 | 30 | 2 | 0.98 [")
    assert f"| 0.86 [{low:.2f}, {high:.2f}] |" in lines[4]
    assert lines[5].startswith("| full |")
    assert len({line.count("|") for line in lines[:7]}) == 1
    for word in ("builtin:reasoner", "float32", "refusal_words", "seeds 0, 1", "harmful requests 50", "arithmetic 50"):
        assert word in lines[-1]


def test_markdown_shows_failures_only_if_there_are_some():
    assert "failed" not in markdown(STUDY)
    broken = BASE | {"safety": cell(0.0, n=48, failed=1, unparsed=1, unfinished=3)}
    lines = markdown(table(broken, *STUDY["rows"][1:])).splitlines()
    assert lines[0].endswith("| unfinished | failed, unparsed |")
    assert lines[2].endswith("| 3 of 148 | 1, 1 |")
    assert "harmful requests 48 to 50" in lines[-1]


def test_markdown_of_what_was_not_measured():
    assert "| - | - |" in markdown(table(BASE | {"safety": NOTHING, "over_refusal": NOTHING})).splitlines()[2]


def test_the_tax_has_a_column_and_answers_a_table():
    answers = reasoning.cell({}) | {
        "value": 0.9,
        "low": 0.8,
        "high": 1.0,
        "n": 50,
        "tokens": 80.0,
        "thought_tokens": 60.0,
    }
    answers |= {"unfinished": 1, "unfinished_share": 0.02}
    lost = {"value": 0.04, "low": -0.01, "high": 0.09}
    base = BASE | {"reasoning": {"arithmetic": answers | {"tax": reasoning.NO_TAX}}, "tax": reasoning.NO_TAX}
    arm = row("small", 1500, 0.98, 0.86) | {"reasoning": {"arithmetic": answers | {"tax": lost}}, "tax": lost}
    parts = markdown(table(base, arm)).split("\n\n")
    head, _, first, second = parts[0].splitlines()
    assert "| arithmetic | tax | unfinished |" in head
    assert "| - | " in first
    assert "| +0.04 [-0.01, +0.09] |" in second
    assert "paired by question" in parts[1]
    assert "cover the prompts and the training seeds. " in parts[1]
    one = arm | {kind: arm[kind] | {"seeds": {"3": 0.5}} for kind in ("safety", "over_refusal")}
    one["reasoning"] = {"arithmetic": one["reasoning"]["arithmetic"] | {"seeds": {"3": 0.5}}}
    parts_of_one = markdown(table(base, one) | {"seeds": [3]}).split("\n\n")
    assert "| one seed | 0.98 [" in parts_of_one[0]
    assert "cover the prompts; those of one seed say nothing about another seed. " in parts_of_one[1]
    lines = parts[2].splitlines()
    assert lines[0].endswith("| unfinished | no answer | failed | tokens | of them thought | n |")
    assert lines[3].startswith("| arithmetic | small 1,500 | 0.90 [0.80, 1.00] | +0.04 [-0.01, +0.09] |")
    assert lines[3].endswith("| 2.0% | 0 | 0 | 80 | 60 | 50 |")


def test_the_norm_of_updates_has_a_column_where_it_is_known():
    def moved(relative):
        return {"update": {"norm": 8.0, "relative_norm": relative, "rank": 1}}

    rows = [BASE | {"update": None}, *(row("a", s, 0.5, 0.5) | moved(r) for s, r in ((1, 0.04719), (2, 0.004703)))]
    rows += [row("b", 1, 0.5, 0.5) | moved(1.5) | {"edit_seconds": 0.2}, row("c", 1, 0.5, 0.5) | {"update": None}]
    lines = markdown(table(*rows)).splitlines()
    assert "| seconds | update norm | seeds | harmful refused |" in lines[0]
    assert [line.split(" | ")[4] for line in lines[2:7]] == ["-", "4.7%", "0.47%", "150.0%", "-"]
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert (
        "Update norm: ||dW|| / ||W|| (Frobenius) of the matrices that an arm changes. Seconds of an edited" in lines[-1]
    )
    assert "update norm" not in markdown(table(BASE | {"update": None})).lower()
    assert "edited" not in markdown(table(*rows[:3]))


# --- the files


def test_compare_writes_the_contract(tmp_path):
    returned = compare(tmp_path / "study", STUDY)
    written = json.loads((tmp_path / "study" / "table.json").read_text())
    assert written.keys() >= STUDY.keys()
    assert written["rows"] == STUDY["rows"]
    assert written["frontier"] == [
        ["base", None],
        ["small", "checkpoint-10"],
        ["small", "checkpoint-20"],
        ["full", "checkpoint-20"],
    ]
    assert written["hypervolume"] == pytest.approx(
        stats.hypervolume([(0.86, 0.98), (0.88, 0.6), (0.9, 0.02), (0.3, 1.0)]), abs=1e-4
    )
    assert (tmp_path / "study" / "table.md").read_text() == markdown(STUDY)
    assert written == json.loads(json.dumps(returned))
    assert sorted(p.name for p in (tmp_path / "study").iterdir()) == ["table.json", "table.md"]


def pixels(path):
    return (image.imread(path)[..., :3] * 255).round().astype(int)


def drawn(path, colour):
    """How many pixels have a colour."""
    rgb = (np.array(colors.to_rgb(colour)) * 255).round().astype(int)
    return int((np.abs(pixels(path) - rgb).max(axis=-1) <= 2).sum())


def test_the_picture_is_wide_and_shows_every_arm(tmp_path):
    frontier(STUDY, tmp_path / "f.png")
    assert pixels(tmp_path / "f.png").shape[:2] == (760, 1660)
    assert drawn(tmp_path / "f.png", "#0072B2") > 500
    assert drawn(tmp_path / "f.png", "#D55E00") > 500
    frontier(table(BASE), tmp_path / "base.png")
    assert drawn(tmp_path / "base.png", "#0072B2") == 0


def test_many_arms_leave_the_panels_their_height(tmp_path):
    arms = [row(f"an_arm_with_a_long_name_{i}", 10, 0.05 * i, 0.5) for i in range(17)]
    frontier(table(BASE, *arms), tmp_path / "f.png")
    high, wide = pixels(tmp_path / "f.png").shape[:2]
    assert (high > 800, wide) == (True, 1660)


def test_marks_that_coincide_are_all_visible(tmp_path):
    apart = table(BASE, *(row(f"arm{i}", 10, 1.0, 0.3 * i, over=0.3 * i) for i in range(3)))
    same = table(BASE, *(row(f"arm{i}", 10, 1.0, 0.0, over=1.0) for i in range(3)))
    frontier(apart, tmp_path / "apart.png")
    frontier(same, tmp_path / "same.png")
    for colour in ("#0072B2", "#D55E00", "#009E73"):
        assert drawn(tmp_path / "same.png", colour) > 0.75 * drawn(tmp_path / "apart.png", colour)


@pytest.mark.parametrize("rows", [
    [],
    [BASE],
    [BASE | {"safety": NOTHING, "over_refusal": NOTHING, "reasoning": {}}],
    [BASE | {"over_refusal": NOTHING}, row("small", 10, 0.5, 0.5) | {"over_refusal": NOTHING}],
    [BASE, *(row(f"arm_with_a_long_name_{i}", s, 1.0, 0.0, over=1.0) for i in range(9) for s in (10, 20, 30))],
    [row("only", 10, 0.0, 1.0)],
])  # fmt: skip
def test_no_table_is_too_odd_to_draw(tmp_path, rows):
    compare(tmp_path, table(*rows))
    frontier(table(*rows), tmp_path / "frontier.png")
    assert pixels(tmp_path / "frontier.png").std() > 1


def test_a_picture_that_fails_leaves_the_old_one(tmp_path):
    frontier(STUDY, tmp_path / "f.png")
    before = (tmp_path / "f.png").read_bytes()
    with pytest.raises(KeyError):
        frontier({"rows": [BASE]}, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.png"]


def test_the_caption_names_the_machine(tmp_path):
    hardware = {"cpu": "Some *CPU*", "arithmetic": "AVX2", "accelerator": None}
    assert "float32 on Some \\*CPU\\*, AVX2, judge" in markdown(STUDY | {"precision": "float32", "hardware": hardware})
    gpu = hardware | {"accelerator": "H200"}
    assert "float32 on H200, judge" in markdown(STUDY | {"precision": "float32", "hardware": gpu})
    assert "float32, judge" in markdown(STUDY | {"precision": "float32", "hardware": {}})
