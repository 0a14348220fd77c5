"""Maps of singular vectors against numpy's decomposition, the choice of modules, and the figure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from analyze_command import run
from tiny import make_model, save_adapter

from lowtax.analysis import geometry_figures, similarity
from lowtax.analysis.decomposition import Weight
from lowtax.analysis.geometry import Source, analyze, of_adapter, of_tuned
from lowtax.common import linalg
from lowtax.common.errors import UserError
from lowtax.common.figures import save
from lowtax.common.linalg import Dense, Factors
from lowtax.models.weights import open_weights

SHAPES = [(30, 50), (50, 30), (40, 40)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numpy_cosines(W: torch.Tensor, D: torch.Tensor, k: int) -> np.ndarray:
    before, after = (np.linalg.svd(M.double().numpy(), full_matrices=False)[0] for M in (W, W + D))
    return np.abs(before[:, :k].T @ after[:, :k])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [0.02, 1.0])
def test_cosines_are_those_of_numpy(shape: tuple[int, int], size: float):
    W, x = random(*shape), Factors(size * random(shape[0], 2, seed=1), random(2, shape[1], seed=2))
    for update in (x, Dense(x.dense())):
        cosines = similarity.of_update(Weight.of(W, 12), update, 12)
        np.testing.assert_allclose(cosines, numpy_cosines(W, x.dense(), 12), atol=2e-4)


@pytest.mark.parametrize("shape", [(330, 260), (260, 330)])
def test_of_large_matrices_the_top_is_enough(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linalg, "SMALL", 0)
    monkeypatch.setattr(linalg, "DEPTH", 3)
    n = min(shape)
    U, V = (torch.linalg.qr(random(size, n, seed=size)).Q for size in shape)
    W = U * (1 / torch.arange(1, n + 1)) @ V.T
    x = Factors(
        0.2 * torch.nn.functional.normalize(random(shape[0], 1, seed=3), dim=0), random(1, shape[1], seed=4) / 18
    )
    weight = Weight.of(W, 8)
    assert weight.whole is None
    for update in (x, Dense(x.dense())):
        cosines = similarity.of_update(weight, update, 8)
        np.testing.assert_allclose(cosines, numpy_cosines(W, x.dense(), 8), atol=5e-3)


def test_a_new_strong_direction_is_the_one_column_without_a_match():
    W = random(40, 60)
    U, S, _ = torch.linalg.svd(W, full_matrices=False)
    new = torch.linalg.qr(torch.cat([U[:, :12], random(40, 1, seed=1)], dim=1)).Q[:, -1:]
    x = Factors(3 * S[0] * new, random(1, 60, seed=2) / 60**0.5)
    figures = similarity.read(similarity.of_update(Weight.of(W, 12), x, 12), 0.5)
    assert figures["unmatched"] == [0]
    assert figures["diagonal"] < 0.2
    assert figures["matched"] > 0.6
    assert figures["text"].endswith("at any place; 1 (1) match none at 0.5")
    same = similarity.read(similarity.of_update(Weight.of(W, 12), Dense(0.1 * W), 12), 0.5)
    assert (same["diagonal"], same["matched"], same["unmatched"]) == (1.0, 1.0, [])
    assert "of the 12 vectors of W + dW, 100% are those of W" in same["text"]
    assert same["text"].endswith("; 0 match none at 0.5")


def test_directions_that_a_matrix_lacks_match_nothing():
    W = Factors(random(20, 3), random(3, 30, seed=1)).dense()
    cosines = similarity.of_update(Weight.of(W, 6), Dense(0.1 * W), 6)
    assert cosines.isfinite().all()
    torch.testing.assert_close(cosines, torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0])), atol=1e-3, rtol=0)


# --- modules, arms and the figure


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = make_model(folder / "base", "qwen3", layers=3)
    save_adapter(folder / "lora", base, 1, ["up_proj", "q_proj"], 1)
    make_model(folder / "full", "qwen3", layers=3, seed=4)
    return {path.name: path for path in folder.iterdir()}


def test_the_modules_are_those_with_most_intruders_side_by_side(models: dict[str, Path]):
    base = open_weights(str(models["base"]))
    sources = [of_adapter(models["lora"]), of_tuned(str(models["full"]), base)]
    report = analyze(base, sources)
    found = similarity.maps(base, sources, report, k=8)
    chosen = []
    for arm in report["arms"]:
        moved = [site for site in arm["sites"] if site["norm"]]
        most = max(site["intruders"]["found"] for site in moved)
        pushed = max(s["relative_spectral_norm"] for s in moved if s["intruders"]["found"] == most)
        chosen += [s["name"] for s in moved if s["relative_spectral_norm"] == pushed]
    assert [(one["module"], one["label"]) for one in found["maps"]][:2] == [(chosen[0], "lora"), (chosen[0], "full")]
    assert {one["module"] for one in found["maps"]} == set(chosen)
    for one in found["maps"]:
        source = sources[one["label"] == "full"]
        update = source.update(one["module"], base[one["module"]])
        D = update.dense() if isinstance(update, Factors) else update.matrix
        np.testing.assert_allclose(one["cosines"], numpy_cosines(base[one["module"]], D, 8), atol=2e-4)
    assert json.loads(json.dumps(found)) == found


def test_of_an_arm_the_first_seed_is_shown(models: dict[str, Path]):
    base = open_weights(str(models["base"]))
    one = replace(of_adapter(models["lora"], "lora", 0), names=["model.layers.1.mlp.up_proj"])
    sources = [one, replace(one, seed=1)]
    found = similarity.maps(base, sources, analyze(base, sources), ["layers.1.mlp.up_proj"])
    assert [entry["label"] for entry in found["maps"]] == ["lora, seed 0"]
    assert found["maps"][0]["k"] == 32


def test_a_module_that_is_not_there_is_one_sentence(models: dict[str, Path]):
    base = open_weights(str(models["base"]))
    sources = [of_adapter(models["lora"])]
    report = analyze(base, sources)
    with pytest.raises(UserError, match=r"No update changes a module 'down_proj'"):
        similarity.maps(base, sources, report, ["down_proj"])
    with pytest.raises(UserError, match=r"3 modules end in 'up_proj', such as model.layers.0.mlp.up_proj and"):
        similarity.maps(base, sources, report, ["up_proj"])


def test_no_update_has_no_map(models: dict[str, Path], tmp_path: Path):
    base = open_weights(str(models["base"]))
    same = of_tuned(str(models["base"]), base)
    sources = [Source("same", "here", "tuned", ["model.layers.0.mlp.up_proj"], same.update)]
    report: dict[str, Any] = analyze(base, sources)
    report["similarity"] = similarity.maps(base, sources, report)
    assert report["similarity"]["maps"] == []
    geometry_figures.draw(report, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_maps_fill_their_figure_with_and_without_marks(tmp_path: Path):
    """Matplotlib warns, which is an error here, where its layout gives up."""
    W = random(40, 60)
    x = Factors(20 * random(40, 1, seed=1), random(1, 60, seed=2) / 8)
    entries = []
    for label, update in (("full", Dense(0.1 * W)), ("lora", x)):
        cosines = similarity.of_update(Weight.of(W, 8), update, 8)
        cells = {"cosines": cosines.tolist(), **similarity.read(cosines, 0.5)}
        entries.append({"module": "model.layers.0.mlp.up_proj", "label": label, "k": 8, **cells})
    assert [len(entry["unmatched"]) for entry in entries] == [0, 1]
    for number, shown in enumerate((entries, entries[:1], entries[1:])):
        save(geometry_figures.similarity(shown), tmp_path / f"{number}.png")
        picture = matplotlib.image.imread(tmp_path / f"{number}.png")
        assert (picture[..., :3].max(axis=2) < 0.2).mean() > 0.2  # the dark cells of maps that are not tiny


def test_the_command_draws_and_describes_them(models: dict[str, Path], tmp_path: Path):
    words = ["--adapter", str(models["lora"]), "--tuned", str(models["full"])]
    report = json.loads(run(*words, "--out", str(tmp_path), "--json"))
    assert json.loads((tmp_path / "geometry.json").read_text()) == report
    assert len(report["similarity"]["maps"]) >= 3
    picture = matplotlib.image.imread(tmp_path / "similarity.png")
    assert picture.std() > 0.1
    assert "similarity" not in json.loads(run(*words, "--json"))
    shown = run(*words, "--map", "layers.2.self_attn.q_proj")
    assert "lora, model.layers.2.self_attn.q_proj: " in shown
    assert "of W at the same place" in shown
