"""Figures of training and of the updates for the page: curves by step, heat maps by site, and landscapes."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowtax.common.display import as_line
from lowtax.report.stored import Stored, read_lines, read_or_note

POINTS = 300  # of a curve on the page; longer ones are shown as means of neighbouring steps
MOST_STEPS = 2_000_000
LANDSCAPE, DEEPEST = "landscape.json", 8  # a file, and the folders inside each other in which it may be
CURVES = {"loss": "loss", "penalty": "penalty", "lr": "learning rate", "grad_norm": "gradient norm"}
MAPS = {
    "relative_norm": "norm of the update, relative",
    "stable_rank": "stable rank",
    "left": "overlap, left",
    "right": "overlap, right",
    "unmoved": "lost by rounding to bfloat16",
}


def training(studies: Sequence[Stored]) -> list[dict[str, Any]]:
    """Return an entry for each run: `study`, `arm`, `seed`, `curves`, and what its card says."""
    return [
        _run(study, folder)
        for study, stored in enumerate(studies)
        for folder in sorted(stored.folder.glob("arms/*/seed-*"))
        if folder.is_dir()
    ]


def _run(study: int, folder: Path) -> dict[str, Any]:
    steps = read_lines(folder / "steps.jsonl", MOST_STEPS) if (folder / "steps.jsonl").is_file() else []
    notes: list[str] = []
    card = read_or_note(folder / "card.json", notes)
    facts = card if isinstance(card, dict) else {}
    shown = ("trainable_parameters", "peak_memory_gb", "checkpoints", "sources", "edits", "edit_seconds", "methods")
    job = facts.get("job") if isinstance(facts.get("job"), dict) else {}
    assert isinstance(job, dict)
    return {
        "study": study,
        "arm": as_line(folder.parent.name),
        "seed": as_line(folder.name.removeprefix("seed-")),
        "finished": bool(facts),
        "steps": len(steps),
        "curves": {name: thinned(curve) for name in CURVES if (curve := _curve(steps, name))},
        "card": {key: facts[key] for key in shown if key in facts} | {"methods": job.get("methods", [])},
        "notes": notes,
    }


def _curve(steps: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return the points of a curve; none if it is zero throughout, as a penalty is without a method."""
    points = [(row.get("step"), row.get(name)) for row in steps]
    whole = [(float(x), float(y)) for x, y in points if _is_finite(x) and _is_finite(y)]  # type: ignore[arg-type]
    return whole if any(y for _, y in whole) else []


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def thinned(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Return at most `POINTS` points: each is the mean of as many neighbours, at the last step of them."""
    size = max(1, math.ceil(len(points) / POINTS))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [[part[-1][0], float(f"{sum(y for _, y in part) / len(part):.6g}")] for part in parts]


def anatomy(studies: Sequence[Stored]) -> dict[str, Any]:
    """Return the sites of every analysed update, and the points of every landscape."""
    maps, landscapes = [], []
    for study, stored in enumerate(studies):
        report = read_or_note(stored.folder / "geometry.json", stored.notes)
        arms = report.get("arms") if isinstance(report, dict) else None
        maps += [
            {"study": study, "arm": as_line(str(arm.get("label", ""))), "sites": _sites(arm), "note": arm.get("note")}
            for arm in (arms if isinstance(arms, list) else [])
            if isinstance(arm, dict)
        ]
        for path in _landscape_files(stored.folder):
            landscape = read_or_note(path, stored.notes)
            if isinstance(landscape, dict) and isinstance(landscape.get("points"), list):
                name = path.parent.relative_to(stored.folder).as_posix()
                name = stored.name if name == "." else name
                landscapes.append({"study": study, "name": as_line(name)} | _landscape(landscape))
    return {"maps": maps, "names": MAPS, "landscapes": landscapes}


def _landscape_files(folder: Path) -> list[Path]:
    """Return the results of `lowtax landscape` anywhere in a study's folder; links and hidden folders are passed by."""
    listed = []
    for place, folders, files in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < DEEPEST else []
        if LANDSCAPE in files:
            listed.append(Path(place) / LANDSCAPE)
    return listed


def _sites(arm: dict[str, Any]) -> list[list[Any]]:
    """Return layer, module and the figures of `MAPS` for each site."""
    sites = arm.get("sites")
    rows = []
    for site in sites if isinstance(sites, list) else []:
        if not isinstance(site, dict):
            continue
        overlap = site.get("overlap") if isinstance(site.get("overlap"), dict) else {}
        rounding = site.get("bfloat16") if isinstance(site.get("bfloat16"), dict) else {}
        assert isinstance(overlap, dict)
        assert isinstance(rounding, dict)
        values = [
            site.get("relative_norm"),
            site.get("stable_rank"),
            overlap.get("left"),
            overlap.get("right"),
            rounding.get("share_unmoved"),
        ]
        layer = site.get("layer") if isinstance(site.get("layer"), int) else -1
        shown = [float(f"{value:.4g}") if _is_finite(value) else None for value in values]
        rows.append([layer, as_line(str(site.get("module") or site.get("name", ""))), *shown])
    return rows


def _landscape(report: dict[str, Any]) -> dict[str, Any]:
    """Return the points of a slice along one direction or two: seed, alpha, beta, safe, and perplexity."""
    points = []
    for point in report["points"]:
        if isinstance(point, dict) and _is_finite(point.get("alpha")) and isinstance(point.get("safe"), dict):
            safe = point["safe"]
            figures = [safe.get("value"), safe.get("low"), safe.get("high"), safe.get("n")]
            points.append([point.get("seed"), point["alpha"], point.get("beta"), figures, point.get("perplexity")])
    return {"points": points}
