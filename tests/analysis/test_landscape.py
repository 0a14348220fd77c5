"""Slices through weight space: VISAGE by hand, directions and moves against dense float64, kills, the command."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import matplotlib.image
import pytest
import torch
import typer
from guides import commands
from hypothesis import given, settings
from hypothesis import strategies as st
from progress import progress_to
from tiny import make_model, save_adapter
from typer.testing import CliRunner

from lowtax.analysis.landscape import visage
from lowtax.analysis.landscape.figures import draw
from lowtax.analysis.landscape.moves import Ground, Mixtures, Walk, along, counterpart, direction, perturbed, towards
from lowtax.analysis.landscape.report import Point, report
from lowtax.analysis.landscape.slices import Place, check_ends, sliced
from lowtax.analysis.landscape.walk import Ask, landscape
from lowtax.cli.main import app
from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Reply, Verdict
from lowtax.data.prompt_sets import load
from lowtax.engines.base import Request
from lowtax.engines.hf.engine import HF
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.models import loading
from lowtax.models.adapters import read_adapter

FULL = 100.0


def basin(inside: list[float], left: int, right: int) -> list[float]:
    return [FULL] * left + inside + [FULL] * right


# VISAGE


def test_visage_of_constant_slices():
    assert (visage.trimmed([0.0] * 21), visage.formula([0.0] * 21)) == (100.0, 100.0)
    assert visage.trimmed([FULL] * 21) == 0.0
    assert visage.window([FULL] * 21) == (0, 20)
    assert visage.formula([FULL] * 21) is None


def test_visage_of_a_symmetric_step_is_the_mean_over_the_basin_alone():
    slice_ = basin([20.0] * 9, 6, 6)
    assert visage.window(slice_) == (6, 14)
    assert visage.trimmed(slice_) == visage.formula(slice_) == 80.0
    assert visage.trimmed(basin([20.0] * 9, 60, 60)) == 80.0


@pytest.mark.parametrize(
    ("asr", "window"),
    [
        ([40.0, 20, 0, 20, 40], (0, 4)),  # no crossing: the whole slice
        ([0.0, 0, 0, 0, 30, 100, 100], (0, 4)),  # saturated on one side only
        ([50.0, FULL, 40, 10, 0, 10, 40, FULL, FULL], (2, 6)),  # the first crossing counts, what is beyond it is lost
        ([FULL, 99.995, 40, 0, 0, 0, 40, 99.995, FULL], (2, 6)),  # 99.995 is saturated
        ([FULL, FULL, 0, FULL, FULL], (0, 4)),  # a basin of the middle alone is not found
        ([FULL, FULL, FULL, 0, 0, FULL, FULL], (0, 4)),  # nor is its left side where it begins in the middle
    ],
)
def test_the_window_begins_and_ends_where_the_published_code_says(asr: list[float], window: tuple[int, int]):
    assert visage.window(asr) == window
    assert visage.trimmed(asr) == pytest.approx(100 - fmean(asr[window[0] : window[1] + 1]))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 100), min_size=3, max_size=15).map(lambda x: [float(v) for v in x]),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(1, 9),
)
def test_the_two_forms_differ_exactly_where_a_point_inside_is_saturated(
    inside: list[float], first: int, last: int, tails: int
):
    inside = [float(first), *inside, float(last)]
    asr = basin(inside, tails, tails)
    formula = visage.formula(asr)
    assert formula is not None
    assert formula == pytest.approx(fmean(100 - s for s in inside if s < FULL))
    same = visage.trimmed(asr) == pytest.approx(formula)
    assert same == (FULL not in inside)


def test_a_saturated_point_inside_counts_as_nothing_in_the_window_and_not_at_all_in_the_formula():
    asr = basin([40.0, FULL, 0.0, 20.0, 40.0], 3, 3)
    assert visage.formula(asr) == pytest.approx((60 + 100 + 80 + 60) / 4)
    assert visage.trimmed(asr) == pytest.approx((60 + 0 + 100 + 80 + 60) / 5)


def test_spread_over_directions():
    points = {seed: list(zip((-1.0, 0.0, 1.0), asr, strict=True)) for seed, asr in enumerate(([0.0] * 3, [50.0] * 3))}
    found = visage.of_slices(points)
    assert found["trimmed"] == found["formula"]  # no point is saturated
    assert found["trimmed"].pop("by_seed") == {"0": 100.0, "1": 50.0}
    assert found["trimmed"] == {"mean": 75.0, "sd": 35.36, "min": 50.0, "max": 100.0}
    assert found["windows"] == {"0": [-1.0, 1.0], "1": [-1.0, 1.0]}
    assert visage.spread({0: None, 1: 50.0})["mean"] == 50.0
    assert visage.spread({0: None}) == {"by_seed": {"0": None}, "mean": None, "sd": None, "min": None, "max": None}


# Directions and moves


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(0, 5), st.booleans())
def test_a_direction_has_the_norm_of_its_tensor_and_the_second_is_orthogonal(shape: list[int], seed: int, half: bool):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
    W = W.bfloat16() if half else W
    first = direction("a.weight", W, seed)
    second = direction("a.weight", W, seed, 1, first)
    assert first.dtype == W.dtype
    assert torch.equal(first, direction("a.weight", W, seed))
    near = 2e-2 if half else 1e-5  # bfloat16 rounds each entry
    assert float(first.double().norm()) == pytest.approx(float(W.double().norm()), rel=near)
    if W.numel() > 1:
        size = float(first.double().norm() * second.double().norm())
        assert abs(float((first.double() * second.double()).sum())) <= near * size
        assert not torch.equal(first, direction("b.weight", W, seed))
        assert not torch.equal(first, direction("a.weight", W, seed + 1))


def test_a_tensor_of_zeros_does_not_move():
    assert not direction("bias", torch.zeros(5), 0).any()


def test_an_error_on_the_way_leaves_no_trace(tiny_model: Path):
    model = loading.load_model(str(tiny_model))
    before = {name: W.detach().clone() for name, W in model.named_parameters()}
    ground = Ground(model, perturbed(model))

    def failing(name: str, W: torch.Tensor) -> torch.Tensor:
        if "layers.1" in name:
            raise ZeroDivisionError
        return W + 1

    with pytest.raises(ZeroDivisionError), ground.moved(failing):
        pass
    assert all(torch.equal(W, before[name]) for name, W in model.named_parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_moved_model_is_the_dense_sum_and_comes_back_bit_for_bit(tiny_model: Path, dtype: str):
    model = loading.load_model(str(tiny_model), dtype)
    before = {name: W.detach().clone() for name, W in model.named_parameters()}
    ground = Ground(model, perturbed(model))
    d = {name: direction(name, W, 0) for name, W in ground.base.items()}
    assert set(before) - set(d) == {name for name in before if "norm" in name}
    exact = 2**-8 if dtype == "bfloat16" else 1e-6
    with ground.moved(along([(0.3, d), (-0.1, d)])):
        for name, W in model.named_parameters():
            wanted = before[name].double() + 0.2 * d[name].double() if name in d else before[name].double()
            torch.testing.assert_close(W.detach().double(), wanted, rtol=exact, atol=exact * float(wanted.abs().max()))
            assert torch.equal(W, before[name]) == (name not in d)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # tied: moved once
    assert all(torch.equal(W, before[name]) for name, W in model.named_parameters())


def test_between_two_models_the_ends_are_exact(tiny_model: Path, tmp_path: Path):
    model = loading.load_model(str(tiny_model))
    other = loading.load_model(str(make_model(tmp_path / "other", seed=1)))
    ends = {name: (W.detach().clone(), dict(other.named_parameters())[name]) for name, W in model.named_parameters()}
    differ = counterpart(model, other, "other")
    assert "model.norm.weight" not in differ  # ones in both
    ground = Ground(model, differ)
    for t in (0.0, 0.25, 1.0):
        with ground.moved(towards(differ, t)):
            for name, W in model.named_parameters():
                a, b = ends[name]
                wanted = (1 - t) * a.double() + t * b.double()
                torch.testing.assert_close(W.double(), wanted, rtol=0, atol=0 if t in (0, 1) else 1e-6)
    with pytest.raises(UserError, match="nothing between"):
        counterpart(model, model, "it")
    other.lm_head.weight.data = other.lm_head.weight.data[:-1]
    with pytest.raises(UserError, match="does not fit"):
        counterpart(model, other, "it")
    with pytest.raises(UserError, match="another architecture"):
        counterpart(model, other.model, "it")


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs of other ranks, on modules of which they share one."""
    root = tmp_path_factory.mktemp("adapters")
    places = (("a", 1, ["up_proj", "q_proj"]), ("b", 3, ["q_proj", "down_proj"]))
    return [Path(save_adapter(root / name, tiny_model, r, where, seed=r)) for name, r, where in places]


@pytest.mark.parametrize("t", [0.25, 1.5])
def test_a_mixture_of_adapters_is_the_dense_one_and_is_written_exactly(
    tiny_model: Path, adapters: list[Path], tmp_path: Path, t: float
):
    a, b = (read_adapter(folder).factors for folder in adapters)
    folder = Mixtures(adapters[0], adapters[1], tmp_path, str(tiny_model)).at(t)
    assert folder is not None
    found = read_adapter(Path(folder)).factors
    assert set(found) == set(a) | set(b)
    for name, update in found.items():
        wanted = torch.zeros(update.shape, dtype=torch.float64)
        for factors, weight in ((a, 1 - t), (b, t)):
            if name in factors:
                wanted += weight * factors[name].b.double() @ factors[name].a.double()
        torch.testing.assert_close(update.b.double() @ update.a.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_ends_of_a_mixture_are_the_adapters_themselves(tiny_model: Path, adapters: list[Path], tmp_path: Path):
    between, alone = (
        Mixtures(*adapters, tmp_path, str(tiny_model)),
        Mixtures(None, adapters[1], tmp_path, str(tiny_model)),
    )
    assert [between.at(0.0), between.at(1.0)] == [str(folder) for folder in adapters]
    assert [alone.at(0.0), alone.at(1.0)] == [None, str(adapters[1])]
    assert not list(tmp_path.iterdir())


# The walk, with a real engine


def asking(model: Path | str, kind: str, adapter: Path | None = None, to: Path | None = None, **how: object) -> Ask:
    slice_ = sliced(kind, **how)  # type: ignore[arg-type]
    return Ask(
        str(model),
        adapter,
        str(to) if to else None,
        slice_,
        [load("builtin:harmful", "test", 3)],
        Sampling(max_new_tokens=6),
        EngineSettings("hf", "float32", 8),
        "refusal_words",
    )


def test_a_point_is_the_model_with_those_weights_and_an_adapter_beside_it(
    tiny_model: Path, adapters: list[Path], tmp_path: Path
):
    """Against a model that was written with the perturbed weights, and the adapter that was trained on another path."""
    ask = asking(tiny_model, "random", adapters[0], radius=0.4, points=3, seeds=1)
    landscape(ask, tmp_path / "out")
    model = loading.load_model(str(tiny_model))
    with torch.no_grad():
        for name in perturbed(model):
            W = model.get_parameter(name)
            W += 0.4 * direction(name, W, 0)
    model.save_pretrained(tmp_path / "moved")
    loading.load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "moved")
    engine = HF(str(tmp_path / "moved"), "float32", 8)
    engine.ref = str(tiny_model)
    asked = {p.text: p for p in ask.prompts[0].prompts}
    wanted = engine.generate(
        [Request(text, ({"role": "user", "content": text},), str(adapters[0]), 6) for text in asked]
    )
    rows = read_rows(tmp_path / "out" / "replies.jsonl", Reply).values()
    found = {at: {r.prompt: r.text for r in rows if r.checkpoint == f"alpha={at}"} for at in ("0", "0.4")}
    assert found["0.4"] == {completion.id: completion.text for completion in wanted}
    assert found["0"] != found["0.4"]


def test_after_a_walk_every_weight_is_what_it_was(tiny_model: Path, adapters: list[Path], tmp_path: Path):
    ask = asking(tiny_model, "adapter", adapters[0], two=True, points=3, radius=0.3)
    engine = HF(str(tiny_model), "float32", 8)
    before = {name: W.detach().clone() for name, W in engine.model.named_parameters()}
    held = dict(engine.model.named_parameters())
    walk = Walk(engine, ask.slice, ask.adapter, None, "float32", tmp_path / "adapters")
    said = []
    for place in ask.slice.places():
        with walk.ground.moved(walk.move(place)):
            asked = Request("x", ({"role": "user", "content": "Hi"},), walk.adapter(place), 5)
            said += [completion.text for completion in engine.generate([asked])]
    assert len(set(said)) > 3
    assert engine.loaded is not None  # PEFT has renamed the modules
    assert all(torch.equal(W, before[name]) for name, W in held.items())


def test_beside_an_adapter_the_random_direction_is_orthogonal_to_it(
    tiny_model: Path, adapters: list[Path], tmp_path: Path
):
    engine = HF(str(tiny_model), "float32", 8)
    walk = Walk(engine, sliced("adapter", two=True), adapters[1], None, "float32", tmp_path / "adapters")
    [found] = walk.directions(0)
    for name, update in read_adapter(adapters[1]).factors.items():
        d, dense = found[f"{name}.weight"].double(), update.dense().double()
        assert abs(float((d * dense).sum())) < 1e-5 * float(d.norm() * dense.norm())
    plain = Walk(engine, sliced("random", two=True), None, None, "float32", tmp_path / "adapters").directions(0)
    assert all(abs(float((plain[0][n] * plain[1][n]).sum())) < 1e-5 * float(W.norm() ** 2) for n, W in plain[0].items())


def test_along_an_adapter_one_is_the_adapter_and_half_is_half_of_it(
    tiny_model: Path, adapters: list[Path], tmp_path: Path
):
    landscape(asking(tiny_model, "adapter", adapters[1], points=5, reach=2.0), tmp_path / "out")
    rows = list(read_rows(tmp_path / "out" / "replies.jsonl", Reply).values())
    assert [r.checkpoint for r in rows[::3]] == [f"alpha={t}" for t in ("0", "0.5", "1", "1.5", "2")]
    engine = HF(str(tiny_model), "float32", 8)
    asked = [Request(r.prompt, ({"role": "user", "content": r.prompt},), str(adapters[1]), 6) for r in rows[:3]]
    said = {c.id: c.text for c in engine.generate(asked)}
    assert said == {r.prompt: r.text for r in rows if r.checkpoint == "alpha=1"}
    with torch.no_grad():
        for name, update in read_adapter(adapters[1]).factors.items():
            module = engine.model.get_submodule(name)
            module.get_base_layer().weight += 0.5 * update.dense()
    said = {c.id: c.text for c in engine.generate([replace(request, adapter=None) for request in asked])}
    assert said == {r.prompt: r.text for r in rows if r.checkpoint == "alpha=0.5"}


def test_between_models_the_ends_say_what_the_models_say(tiny_model: Path, tmp_path: Path):
    other = make_model(tmp_path / "other", seed=1)
    landscape(asking(tiny_model, "between", to=other, points=3), tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "replies.jsonl", Reply).values()
    for at, model in (("0", tiny_model), ("1", other)):
        found = {r.prompt: r.text for r in rows if r.checkpoint == f"alpha={at}"}
        asked = [Request(text, ({"role": "user", "content": text},), None, 6) for text in found]
        assert {c.id: c.text for c in HF(str(model), "float32", 8).generate(asked)} == found


def test_a_slice_between_checkpoints_goes_as_far_beyond_both_ends(tiny_model: Path, tmp_path: Path):
    slice_ = sliced("between", points=5, reach=1.5)
    assert slice_.alphas == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert sliced("between", points=3).alphas == [0.0, 0.5, 1.0]
    other = make_model(tmp_path / "other", seed=1)
    engine = HF(str(tiny_model), "float32", 8)
    ends = [dict(loading.load_model(str(ref)).named_parameters()) for ref in (tiny_model, other)]
    walk = Walk(engine, slice_, None, str(other), "float32", tmp_path / "adapters")
    for place in (slice_.places()[0], slice_.places()[-1]):
        with walk.ground.moved(walk.move(place)):
            for name, W in engine.model.named_parameters():
                a, b = (end[name].detach().double() for end in ends)
                torch.testing.assert_close(W.detach().double(), a + place.alpha * (b - a), rtol=1e-5, atol=1e-5)


def test_a_plane_goes_through_three_models(tiny_model: Path, tmp_path: Path):
    """A + alpha (B - A) + beta (C - A) in float64; the ends are the models themselves, and what they say."""
    refs = [tiny_model, *(make_model(tmp_path / f"m{seed}", seed=seed) for seed in (1, 2))]
    ends = [dict(loading.load_model(str(ref)).named_parameters()) for ref in refs]
    ask = replace(asking(tiny_model, "between", to=refs[1], two=True, points=3), third=str(refs[2]))
    engine = HF(str(tiny_model), "float32", 8)
    walk = Walk(engine, ask.slice, None, str(refs[1]), "float32", tmp_path / "adapters", str(refs[2]))
    for place in ask.slice.places():
        with walk.ground.moved(walk.move(place)):
            exact = {(0, 0): 0, (1, 0): 1, (0, 1): 2}.get((place.alpha, place.beta))
            for name, W in engine.model.named_parameters():
                a, b, c = (end[name].detach().double() for end in ends)
                wanted = a + place.alpha * (b - a) + place.beta * (c - a)
                torch.testing.assert_close(W.detach().double(), wanted, rtol=1e-5, atol=1e-5)
                assert exact is None or torch.equal(W, ends[exact][name])
    found = landscape(ask, tmp_path / "out")
    assert [(row["alpha"], row["beta"]) for row in found["points"]] == [
        (a, b) for a in (0, 0.5, 1) for b in (0, 0.5, 1)
    ]
    assert (found["third"], found["visage"]) == (str(refs[2]), None)
    rows = read_rows(tmp_path / "out" / "replies.jsonl", Reply).values()
    there = {r.prompt: r.text for r in rows if r.checkpoint == "alpha=0 beta=1"}
    asked = [Request(text, ({"role": "user", "content": text},), None, 6) for text in there]
    assert {c.id: c.text for c in HF(str(refs[2]), "float32", 8).generate(asked)} == there
    draw(found, tmp_path / "plane.png")
    assert matplotlib.image.imread(tmp_path / "plane.png")[..., :3].std() > 0.02


@pytest.mark.parametrize(("t", "u"), [(0.25, 0.5), (1.0, 1.0), (0.5, 0.0)])
def test_a_mixture_of_three_adapters_is_the_dense_one(
    tiny_model: Path, adapters: list[Path], tmp_path: Path, t: float, u: float
):
    third = Path(save_adapter(tmp_path / "c", tiny_model, 2, ["up_proj", "down_proj"], seed=9))
    parts = [read_adapter(folder).factors for folder in (*adapters, third)]
    mixtures = Mixtures(adapters[0], adapters[1], tmp_path / "mixed", str(tiny_model), third)
    folder = mixtures.at(t, u)
    assert folder is not None
    factors = read_adapter(Path(folder)).factors
    for name, update in factors.items():
        wanted = sum(
            share * part[name].b.double() @ part[name].a.double()
            for share, part in zip((1 - t - u, t, u), parts, strict=True)
            if name in part
        )
        torch.testing.assert_close(update.b.double() @ update.a.double(), wanted, rtol=1e-5, atol=1e-6)
    assert [mixtures.at(0.0, 0.0), mixtures.at(1.0, 0.0), mixtures.at(0.0, 1.0)] == [
        str(each) for each in (*adapters, third)
    ]


def test_a_stopped_walk_goes_on_and_ends_in_the_same_rows(tiny_model: Path, tmp_path: Path):
    ask = asking(tiny_model, "random", points=3, seeds=2)

    def stopping(text: str) -> None:
        if text.startswith("  2 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress_to(stopping):
        landscape(ask, tmp_path / "stopped")
    assert len(read_rows(tmp_path / "stopped" / "replies.jsonl", Reply)) == 6
    lines = (tmp_path / "stopped" / "points.jsonl").read_text().splitlines()
    (tmp_path / "stopped" / "points.jsonl").write_text(
        lines[0] + chr(10) + lines[1][:9]
    )  # killed before its second point
    said: list[str] = []
    with progress_to(said.append):
        found = landscape(ask, tmp_path / "stopped")
    assert said[0] == "sampling 3 replies at each of 4 points"  # five, for the origin of two seeds is one
    whole = landscape(ask, tmp_path / "whole")
    assert found["points"] == whole["points"]
    assert found["visage"] == whole["visage"]
    assert len(found["points"]) == 6
    texts = [(tmp_path / folder / "replies.jsonl").read_text().splitlines() for folder in ("stopped", "whole")]
    assert texts[0] == texts[1]
    again: list[str] = []
    with progress_to(again.append):
        assert landscape(ask, tmp_path / "stopped")["points"] == whole["points"]
    assert again == []


def test_other_settings_make_other_rows_and_shared_points_are_kept(tiny_model: Path, tmp_path: Path):
    landscape(asking(tiny_model, "random", points=3, seeds=1), tmp_path)
    said: list[str] = []
    with progress_to(said.append):
        landscape(asking(tiny_model, "random", points=5, seeds=1), tmp_path)
    assert said[0].endswith("of 2 points")
    with progress_to(said.append):
        landscape(asking(tiny_model, "random", points=5, radius=0.25, seeds=1), tmp_path)
    assert said[3].endswith("of 2 points")  # -0.25, 0 and 0.25 are there


# What is reported


def point(place: Place, labels: list[str], cut: int = 0, nll: float | None = 1.0) -> Point:
    common = {"arm": "random", "seed": 0, "checkpoint": "", "source": "s", "prompt": "?", "sample": 0, "text": "t"}
    replies = [
        Reply(
            id=f"{place}{i}",
            prompt_id=str(i),
            thought="",
            answer="t",
            closed=True,
            finish="length" if i < cut else "stop",
            tokens=1,
            **common,
        )
        for i in range(len(labels))
    ]
    verdicts = [
        Verdict(id=f"v{r.id}", reply_id=r.id, judge="j", label=label)  # type: ignore[arg-type]
        for r, label in zip(replies, labels, strict=True)
    ]
    return Point(place, list(zip(replies, verdicts, strict=True)), nll)


def test_figures_of_a_point():
    labels = ["refusal", "partial", "safe", "compliance", "unsafe", "unfinished", "unparsed", "failed"]
    slice_ = sliced("random", points=3, seeds=1)
    found = report(slice_, [point(place, labels, cut=2, nll=800.0) for place in slice_.places()])
    row = found["points"][1]
    assert (row["seed"], row["alpha"]) == (0, 0.0)
    assert (row["safe"]["value"], row["safe"]["n"], row["asr"], row["n"]) == (0.375, 8, 62.5, 8)
    assert row["safe"]["low"] < 0.375 < row["safe"]["high"]
    assert row["complied"]["value"] == 0.25
    assert (row["unfinished"], row["unparsed"], row["failed"], row["cut"]) == (0.125, 1, 1, 0.25)
    assert (row["nll"], row["perplexity"]) == (800.0, None)
    assert found["visage"]["trimmed"]["mean"] == found["visage"]["formula"]["mean"] == 37.5


def test_visage_is_of_random_directions_only_and_a_plane_has_no_window():
    plane = sliced("random", two=True, points=3)
    found = report(plane, [point(p, ["refusal" if p.beta else "compliance"]) for p in plane.places()])
    assert found["visage"] == {"formula": visage.spread({0: 100.0})}
    assert found["points"][0]["beta"] == -0.5
    line = sliced("adapter", points=3)
    found = report(line, [point(p, ["refusal"]) for p in line.places()])
    assert found["visage"] is None
    assert found["points"][0]["seed"] is None
    assert "beta" not in found["points"][0]


# The command


def test_the_commands_of_the_guide_are_understood():
    group = typer.main.get_command(app)
    found = commands("guides/landscape.md")
    assert len(found) >= 5
    for subcommand, *words in found:
        context = group.commands[subcommand].make_context(subcommand, list(words))  # type: ignore[attr-defined]
        given = context.params
        sliced(*(given[name] for name in ("along", "two", "points", "radius", "reach", "seeds")))
        check_ends(given["along"], given["adapter"], given["to"], given["third"], given["two"])


def run(*words: object) -> str:
    done = CliRunner().invoke(app, ["landscape", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("two", [False, True])
def test_the_command_writes_figures_and_a_picture_and_speaks_json(tiny_model: Path, tmp_path: Path, two: bool):
    common = ["--model", tiny_model, "--harmful", "builtin:harmful,split=test,n=2", "--judge", "refusal_words"]
    common += [
        "--points",
        3,
        "--seeds",
        1 if two else 2,
        "--max-new-tokens",
        4,
        "--precision",
        "float32",
        "--out",
        tmp_path,
    ]
    common += ["--two"] if two else []
    shown = run(*common)
    found = json.loads(run(*common, "--json"))
    assert found == json.loads((tmp_path / "landscape.json").read_text())
    assert len(found["points"]) == (9 if two else 6)
    assert found["prompts"][0]["rows"] == 2
    assert ("VISAGE (trimmed)" in shown) == ("alpha" in shown) == (not two)
    picture = matplotlib.image.imread(tmp_path / "landscape.png")
    assert picture[..., :3].std() > 0.02
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix) == [
        ".json",
        ".json",
        ".jsonl",
        ".jsonl",
        ".jsonl",
        ".png",
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: sliced("adaptor"), "did you mean 'adapter'"),
        (lambda: sliced("random", points=20), "odd number of at least 3.*found 20"),
        (lambda: sliced("adapter", points=2), "at least 3 .found 2"),
        (lambda: sliced("random", radius=0), "--radius must be more than 0 and finite .found 0"),
        (lambda: sliced("adapter", reach=float("nan")), "--reach must be more than 0 and finite .found nan"),
        (lambda: sliced("between", reach=0.5), "must be at least 1, where it ends at both .found 0.5"),
        (lambda: check_ends("between", None, "b", None, two=True), "goes through three: give --two, --to and --third"),
        (lambda: check_ends("between", None, "b", "c"), "neither --two nor --third"),
        (lambda: check_ends("adapter", Path("a"), None, "c", two=True), "--third is for a plane between checkpoints"),
        (lambda: sliced("adapter", radius=0.2), "--radius is for random directions"),
        (lambda: sliced("between", seeds=2), "--seeds is for random directions"),
        (lambda: sliced("random", reach=2), "remove it, or add --along"),
        (lambda: check_ends("adapter", None, None), "needs --adapter DIR"),
        (lambda: check_ends("between", None, None), "needs --to with the second one"),
        (lambda: check_ends("random", None, "other"), "use --along between .found 'random'"),
        (lambda: check_ends("between", Path("lora"), "org/model"), "give two LoRAs"),
    ],
)
def test_what_does_not_go_together_is_said(wrong: Callable[[], object], said: str):
    with pytest.raises(UserError, match=said):
        wrong()


def test_what_is_no_lora_of_this_model_is_refused_before_anything_is_loaded(
    tiny_model: Path, adapters: list[Path], tmp_path: Path
):
    for nothing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="not a PEFT adapter folder"):
            landscape(asking("org/absent", "adapter", nothing), tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'refusal_words'"):
        landscape(replace(asking("org/absent", "random"), judge="refusal_word"), tmp_path / "out")
    with pytest.raises(UserError, match="add --base-is-the-same"):
        landscape(asking("org/other", "adapter", adapters[0]), tmp_path / "out")
    config = json.loads((adapters[0] / "adapter_config.json").read_text())
    dora = tmp_path / "dora"
    dora.mkdir()
    (dora / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    (dora / "adapter_model.safetensors").write_bytes((adapters[0] / "adapter_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"more than W \+ s B A"):
        landscape(asking(tiny_model, "adapter", dora), tmp_path / "out")


@pytest.mark.parametrize(
    ("spec", "said"), [("builtin:harmful,k=3", "keys are split, n and column"), (",n=2", "names no source")]
)
def test_a_prompt_set_that_cannot_be_read_is_said(tiny_model: Path, tmp_path: Path, spec: str, said: str):
    with pytest.raises(UserError, match=said):
        run("--model", tiny_model, "--harmful", spec, "--out", tmp_path)
