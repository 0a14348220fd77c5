"""The anatomy of updates against formulas written out densely; the same for an adapter and for its merged model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from analyze_command import run
from peft import LoraConfig, get_peft_model
from tiny import make_model
from transformers import AutoModelForCausalLM

from lowtax.analysis import geometry as analysis
from lowtax.analysis import geometry_figures
from lowtax.analysis.decomposition import Weight
from lowtax.analysis.geometry import Settings, Source, analyze, describe, of_adapter, of_study, of_tuned
from lowtax.cli import analyze as cli_analyze
from lowtax.common import linalg
from lowtax.common.errors import UserError
from lowtax.common.linalg import Dense, Factors
from lowtax.common.records import Subject
from lowtax.models import embedded
from lowtax.models.weights import open_weights

SHAPES = [(30, 50), (50, 30), (40, 40)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def anatomy(W: torch.Tensor, update: Factors | Dense, **settings: Any) -> dict[str, Any]:
    wanted = Settings(**settings)
    return describe("model.layers.3.mlp.up_proj", Weight.of(W, wanted.known, wanted.exact), update, wanted)


def published_intruders(W: torch.Tensor, dense: torch.Tensor, k: int = 10, epsilon: float = 0.5) -> int:
    """Algorithm 1 of the paper, with absolute cosines."""
    before, after = (torch.linalg.svd(M.double(), full_matrices=False).U for M in (W, W + dense))
    return int(((before.T @ after[:, :k]).abs().max(dim=0).values < epsilon).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dense", [False, True])
def test_figures_are_the_formulas(shape: tuple[int, int], dense: bool):
    W, x = random(*shape), Factors(0.2 * random(shape[0], 3, seed=1), 0.2 * random(3, shape[1], seed=2))
    D = x.dense()
    found = anatomy(W, Dense(D) if dense else x, top=4)
    U, S, Vh = torch.linalg.svd(W)
    s = torch.linalg.svdvals(D.double())[:3]
    p = s / s.sum()
    energy = D.square().sum()
    span, unit = U[:, :4].T @ D, S[:4] / S[:4].norm()
    wanted = {
        "norm": energy.sqrt(),
        "relative_norm": energy.sqrt() / W.norm(),
        "spectral_norm": s[0],
        "relative_spectral_norm": s[0] / S[0],
        "stable_rank": energy / s[0] ** 2,
        "effective_rank": torch.exp(-(p * p.log()).sum()),
    }
    assert {name: found[name] for name in wanted} == pytest.approx({n: float(v) for n, v in wanted.items()}, rel=1e-4)
    assert found["overlap"]["left"] == pytest.approx(float(span.square().sum() / energy), rel=1e-4)
    assert found["overlap"]["right"] == pytest.approx(float((D @ Vh[:4].T).square().sum() / energy), rel=1e-4)
    both = (unit[:, None] * (span @ Vh[:4].T) * unit).square().sum() / energy
    assert found["weighted_overlap"]["both"] == pytest.approx(float(both), rel=1e-4)
    assert found["random_overlap"]["left"] == 4 / shape[0]
    assert (found["layer"], found["module"], found["shape"]) == (3, "mlp.up_proj", list(shape))
    assert found["rank"] == (None if dense else 3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [0.02, 0.4, 3.0])
@pytest.mark.parametrize("rank", [1, 6])
def test_intruders_are_those_of_the_paper(shape: tuple[int, int], size: float, rank: int):
    W = random(*shape)
    x = Factors(size * random(shape[0], rank, seed=1), random(rank, shape[1], seed=2))
    wanted = published_intruders(W, x.dense())
    for update in (x, Dense(x.dense())):
        found = anatomy(W, update)["intruders"]
        assert (found["found"], found["tested"], found["undecided"]) == (wanted, 10, 0)
    assert anatomy(W, x, exact=True)["intruders"]["found"] == wanted


@pytest.mark.parametrize("shape", [(320, 400), (400, 320)])
def test_the_top_of_larger_sums_comes_from_subspaces(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    W = random(*shape)
    x = Factors(0.1 * random(shape[0], 2, seed=1), random(2, shape[1], seed=2))
    weight = Weight.of(W, 20)
    assert weight.whole
    asked: list[int] = []
    decompose = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda G: asked.append(len(G)) or decompose(G))
    for update in (x, Dense(x.dense())):
        U, S = weight.tuned(update, 5)
        exact = torch.linalg.svd((W + x.dense()).double(), full_matrices=False)
        torch.testing.assert_close(S.double(), exact.S[:5], rtol=1e-4, atol=0)
        assert (exact.U[:, :8].T @ U.double()).square().sum(dim=0).min() > 0.99
    assert max(asked) < 320
    assert anatomy(W, x)["intruders"]["found"] == published_intruders(W, x.dense())


@pytest.mark.parametrize("steep", [True, False])
def test_of_large_matrices_only_what_is_certain_is_counted(steep: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linalg, "SMALL", 0)
    monkeypatch.setattr(linalg, "DEPTH", 3)
    out, inp = 330, 260
    U, V = (torch.linalg.qr(random(n, inp, seed=n)).Q for n in (out, inp))
    W = U * (1 / torch.arange(1, inp + 1) if steep else 1 - 1e-3 * torch.arange(inp)) @ V.T
    x = Factors((0.001 if steep else 0.02) * random(out, 2, seed=3), 0.1 * random(2, inp, seed=4))
    found, wanted = anatomy(W, x)["intruders"], published_intruders(W, x.dense())
    assert Weight.of(W, 20).whole is None
    assert found["found"] <= wanted <= found["found"] + found["undecided"]
    assert (found["undecided"] == 0) == steep
    exact = anatomy(W, x, exact=True)["intruders"]
    assert (exact["found"], exact["undecided"]) == (wanted, 0)
    large = anatomy(W, Dense(x.dense()))
    assert large["effective_rank"] is None
    assert large["stable_rank"] == pytest.approx(anatomy(W, x)["stable_rank"], rel=1e-3)


@pytest.mark.parametrize("times", [1.5, 20])
def test_a_new_strong_direction_is_an_intruder_and_no_rotation(times: float):
    W = random(40, 60)
    U, S, _ = torch.linalg.svd(W)
    new = (U @ torch.ones(40) / 40**0.5)[:, None]  # equally far from all directions of W
    x = Factors(times * S[0] * new, torch.nn.functional.normalize(random(1, 60, seed=5)))
    one = anatomy(W, x, tested=1)["intruders"]
    assert (one["found"], one["rotated"]) == (1, 0)
    assert anatomy(W, x, epsilon=1 / 40**0.5 - 1e-4)["intruders"]["found"] == 0  # some cosine is 1 / sqrt(m) at least


def test_turned_vectors_of_equal_singular_values_are_told_apart():
    W = torch.linalg.qr(random(60, 60)).Q
    x = Factors(1e-3 * random(60, 4, seed=1), random(4, 60, seed=2) / 8)
    found = anatomy(W, x)["intruders"]
    assert found["found"] == published_intruders(W, x.dense()) > 3
    assert found["rotated"] == found["found"]


def test_an_update_that_is_zero():
    found = anatomy(random(30, 20), Factors(torch.zeros(30, 2), random(2, 20)))
    assert [found[name] for name in ("norm", "spectral_norm", "stable_rank", "effective_rank")] == [0, 0, 0, 0]
    assert found["overlap"] == {"left": 0, "right": 0, "both": 0}
    assert found["intruders"] == {"tested": 10, "found": 0, "rotated": 0, "undecided": 0}
    assert found["bfloat16"]["wanted"] == 0
    assert analysis.summary([found])["moved"] == 0


def test_what_a_merge_in_bfloat16_leaves_unmoved():
    W, x = random(2100, 5), Factors(2e-3 * random(2100, 1, seed=1), random(1, 5, seed=2))
    still = (W + x.dense()).bfloat16() == W.bfloat16()
    wanted = pytest.approx(float(still.float().mean()), abs=1e-4)
    assert (
        anatomy(W, x)["bfloat16"]["share_unmoved"]
        == anatomy(W, Dense(x.dense()))["bfloat16"]["share_unmoved"]
        == wanted
    )
    assert 0.3 < float(still.float().mean()) < 0.95


# --- adapters, checkpoints, studies


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base of 11 layers, an adapter on it, and the model that the adapter makes of it."""
    folder = tmp_path_factory.mktemp("trained")
    base = make_model(folder / "base", "qwen3", layers=11)
    config = LoraConfig(r=2, lora_alpha=16, target_modules=["up_proj", "q_proj"], layers_to_transform=[2, 10])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.1 * random(*parameter.shape, seed=number))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "tuned")
    return {name: folder / name for name in ("base", "adapter", "tuned")}


def moved(arm: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {site["name"]: site for site in arm["sites"] if site["norm"]}


def test_an_adapter_and_the_model_that_it_makes_have_the_same_anatomy(trained: dict[str, Path]):
    base = open_weights(str(trained["base"]))
    report = analyze(base, [of_adapter(trained["adapter"]), of_tuned(str(trained["tuned"]), base)])
    one, two = (moved(arm) for arm in report["arms"])
    assert list(one) == [f"model.layers.{i}.{name}" for i in (2, 10) for name in ("mlp.up_proj", "self_attn.q_proj")]
    assert one.keys() == two.keys()
    for name, site in one.items():
        for figure in ("norm", "relative_norm", "spectral_norm", "stable_rank", "effective_rank"):
            assert two[name][figure] == pytest.approx(site[figure], rel=1e-3), (name, figure)
        for kind in ("overlap", "weighted_overlap"):
            assert two[name][kind] == pytest.approx(site[kind], rel=1e-3), (name, kind)
        assert two[name]["intruders"] == site["intruders"]
    assert report["arms"][1]["summary"]["sites"] == len(base)
    assert [arm["label"] for arm in report["arms"]] == ["adapter", "tuned"]
    assert json.loads(json.dumps(report)) == report


def test_side_by_side_is_as_one_by_one(trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    base, source = open_weights(str(trained["base"])), of_adapter(trained["adapter"])
    threads = torch.get_num_threads()
    one = analyze(base, [source])
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(analysis, "SIDE_BY_SIDE", 0)
    assert analyze(base, [source])["arms"] == one["arms"]


def test_differences_of_rounded_checkpoints_say_so(tmp_path: Path, trained: dict[str, Path]):
    AutoModelForCausalLM.from_pretrained(trained["tuned"], dtype=torch.bfloat16).save_pretrained(tmp_path)
    base = open_weights(str(trained["base"]))
    assert "bfloat16: their rounding is part of it" in str(of_tuned(str(tmp_path), base).note)
    assert of_tuned(str(trained["tuned"]), base).note is None


def test_a_checkpoint_that_did_not_move_has_no_update_of_rounding(tmp_path: Path, trained: dict[str, Path]):
    """Training in bfloat16 begins at the rounded base, though the base is stored in float32."""
    AutoModelForCausalLM.from_pretrained(trained["base"], dtype=torch.bfloat16).save_pretrained(tmp_path)
    base = open_weights(str(trained["base"]))
    source = of_tuned(str(tmp_path), base)
    rounded = [float((base[name].bfloat16().float() - base[name]).norm() / base[name].norm()) for name in base]
    assert min(rounded) > 1e-3
    assert all(float(source.update(name, base[name]).sq_norm()) == 0 for name in base)


def test_what_does_not_fit_is_one_sentence(tmp_path: Path, trained: dict[str, Path], tiny_model: Path):
    base = open_weights(str(tiny_model))
    with pytest.raises(UserError, match=r"changes model.layers.10.mlp.up_proj, which is not in"):
        analyze(base, [of_adapter(trained["adapter"])])
    wrong = replace(of_adapter(trained["adapter"]), names=["model.layers.0.mlp.up_proj"])
    wrong = replace(wrong, update=lambda name, W: Factors(torch.ones(3, 1), torch.ones(1, 4)))
    with pytest.raises(UserError, match=r"up_proj is \(3, 4\) in .* and \(64, 32\) in the base"):
        analyze(base, [wrong])


def subject(arm: str, seed: int, step: int, adapter: Path | None, model: Path) -> Subject:
    name = f"checkpoint-{step}" if step else None
    return Subject(arm, seed, name, step, str(model), str(adapter) if adapter else None, "made")


def test_the_last_checkpoints_of_a_study(trained: dict[str, Path]):
    base, lora = trained["base"], trained["adapter"]
    subjects = [subject("base", 0, 0, None, base)]
    subjects += [subject("lora", seed, step, lora, base) for seed in (0, 1) for step in (30, 60)]
    subjects += [subject("full", 0, 60, None, trained["tuned"])]
    sources = of_study(subjects, open_weights(str(base)))
    assert [(s.arm, s.seed, s.kind) for s in sources] == [
        ("lora", 0, "adapter"),
        ("lora", 1, "adapter"),
        ("full", 0, "tuned"),
    ]
    few = [replace(source, names=["model.layers.2.mlp.up_proj"]) for source in sources]
    report = analyze(open_weights(str(base)), few)
    assert [arm["label"] for arm in report["arms"]] == ["lora, seed 0", "lora, seed 1", "full"]


def test_the_embedded_reasoner_is_what_its_adapter_makes_of_the_embedded_model():
    base = open_weights("builtin:smollm2-135m")
    sources = [of_adapter(embedded.REASONER), of_tuned("builtin:smollm2-135m-reasoner", base)]
    few = [f"model.layers.{i}.{m}" for i in (0, 20) for m in ("mlp.down_proj", "self_attn.k_proj", "mlp.up_proj")]
    report = analyze(base, [replace(source, names=few) for source in sources])
    one, two = (moved(arm) for arm in report["arms"])
    for name, site in one.items():
        assert site["rank"] == 8
        assert 0.005 < site["relative_norm"] < 0.2
        assert two[name]["norm"] == pytest.approx(site["norm"], rel=1e-4)
        assert two[name]["stable_rank"] == pytest.approx(site["stable_rank"], rel=1e-3)
        assert two[name]["overlap"] == pytest.approx(site["overlap"], rel=1e-2)
        assert two[name]["intruders"] == site["intruders"]


# --- the command


def test_the_command_writes_a_report_and_pictures(tmp_path: Path, trained: dict[str, Path]):
    words = ["--adapter", str(trained["adapter"]), "--tuned", str(trained["tuned"])]
    found = json.loads(run(*words, "--out", str(tmp_path / "out"), "--top", "4", "--json"))
    assert json.loads((tmp_path / "out" / "geometry.json").read_text()) == found
    assert found["base"] == str(trained["base"])
    assert found["settings"]["top"] == 4
    for name in geometry_figures.FILES:
        assert matplotlib.image.imread(tmp_path / "out" / name).std() > 0.05
    text = run(*words, "--top", "4")
    assert "4 of 4" in text
    assert f"{found['arms'][0]['summary']['relative_norm']:.2%}" in text
    assert "top 4 singular" in text


def test_pictures_of_nothing_are_none(tmp_path: Path, trained: dict[str, Path]):
    base = open_weights(str(trained["base"]))
    same = of_tuned(str(trained["base"]), base)
    names = ["model.layers.0.mlp.up_proj"]
    report = analyze(base, [Source("same", "here", "tuned", names, same.update)])
    geometry_figures.draw(report, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "0 of 1" in cli_analyze.described(report)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "needs either a study, or"),
        (["somewhere", "--tuned", "x"], "needs either a study, or"),
        (["somewhere", "--base", "x"], "A study defines its own base"),
        (["--tuned", "x"], "--tuned needs --base M"),
        (["--adapter", "/nowhere"], "is not a PEFT adapter folder"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], sentence: str):
    with pytest.raises(UserError, match=sentence):
        run(*words)
