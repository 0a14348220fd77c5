"""Methods on the weights and the adapter of the embedded model, against whole matrices in float64.

Training methods run on its first two layers, a few steps of AdamW with weight decay, and are read back by plain PEFT.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lowtax.analysis.landscape.moves import Ground, along, direction, perturbed
from lowtax.common import linalg
from lowtax.common.linalg import Factors, inner, overlap, top_singular
from lowtax.data.conversations import Conversation
from lowtax.methods.editing import OfflineProbe, edit, sites_from
from lowtax.methods.intruders import Intruders
from lowtax.methods.lox import LoX
from lowtax.methods.orthogonal import Orthogonal
from lowtax.methods.project import Project
from lowtax.methods.s3lora import S3LoRA
from lowtax.methods.safe_lora import SafeLoRA
from lowtax.methods.sites import Site, Sites, sites_of
from lowtax.methods.splora import SPLoRA
from lowtax.models import embedded, loading
from lowtax.models.adapters import Adapter, read_adapter, write_adapter
from lowtax.models.placement import Placement
from lowtax.models.weights import open_weights
from lowtax.training.job import Job
from lowtax.training.loop import TrainingRun
from lowtax.training.settings import Train

BASE, TUNED = "builtin:smollm2-135m", "builtin:smollm2-135m-reasoner"
NAMES = [f"model.layers.10.{name}" for name in ("self_attn.k_proj", "self_attn.q_proj", "mlp.up_proj")]
IDS = torch.arange(300, 330)[None]
Svds = dict[str, tuple[Tensor, Tensor, Tensor]]


@pytest.fixture(scope="module")
def sites() -> Sites:
    """Weights that are wide, square and tall, each with an update of rank 8."""
    every = sites_from(read_adapter(embedded.REASONER), open_weights(BASE))
    return {name: replace(every[name], source=every[name].weight) for name in NAMES}


@pytest.fixture(scope="module")
def svds(sites: Sites) -> Svds:
    """Of the weights, whole and in float64."""
    found = {name: torch.linalg.svd(s.weight.double(), full_matrices=False) for name, s in sites.items()}
    return {name: (U, S, Vh.T) for name, (U, S, Vh) in found.items()}


def dense(s: Site) -> Tensor:
    return s.scale * s.b.double() @ s.a.double()


def cut(svd: tuple[Tensor, Tensor, Tensor]) -> tuple[int, tuple[Tensor, Tensor, Tensor]]:
    """The k of 4 to 20 where the spectrum falls most, so that the subspace is well known, and the k first."""
    U, S, V = svd
    k = 4 + int((S[3:20] / S[4:21]).argmax())
    return k, (U[:, :k], S[:k], V[:, :k])


def near(found: Tensor, wanted: Tensor, to: float = 1e-4) -> None:
    assert (found.double() - wanted).norm() <= to * wanted.norm()


def edited(method: Any, sites: Sites) -> tuple[dict[str, Any], dict[str, Factors]]:
    state = method.prepare(sites, OfflineProbe())
    return state, method.edit(sites, state)


# --- the algebra


def test_factors_say_what_the_dense_update_says(sites: Sites):
    x = {name: Factors(s.b.double(), s.a.double()) for name, s in sites.items()}
    for one in x.values():
        U, S, V = one.svd()
        D = one.b @ one.a
        torch.testing.assert_close(S, torch.linalg.svdvals(D)[:8], rtol=1e-10, atol=1e-12)
        near(U * S @ V.T, D, 1e-12)
        assert float(one.sq_norm()) == pytest.approx(float(D.square().sum()), rel=1e-12)
        assert linalg.stable_rank(S) == pytest.approx(float((D.norm() / torch.linalg.matrix_norm(D, 2)) ** 2))
    q = x[NAMES[1]]
    other = Factors(q.b.flip(0), q.a.flip(1))
    assert float(inner(q, other)) == pytest.approx(float((q.dense() * other.dense()).sum()), rel=1e-9)


@pytest.mark.parametrize("whole", [True, False])
def test_the_top_of_a_weight_with_and_without_a_whole_decomposition(
    whole: bool, sites: Sites, svds: Svds, monkeypatch: pytest.MonkeyPatch
):
    if not whole:
        monkeypatch.setattr(linalg, "SMALL", 0)
        monkeypatch.setattr(linalg, "exact_singular", None)  # would fail if it were called
    for name, s in sites.items():
        if not whole and min(s.weight.shape) < 500:
            continue
        U, S, V = top_singular(s.weight, 6)
        exact = svds[name]
        torch.testing.assert_close(S.double(), exact[1][:6], rtol=1e-5, atol=0)
        near(s.weight @ V, (U * S).double(), 1e-3)
        k = 1 + int((exact[1][:5] / exact[1][1:6]).argmax())
        assert (exact[0][:, :k].T @ U[:, :k].double()).norm() ** 2 == pytest.approx(k, rel=1e-5)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_penalties_and_overlaps_are_the_dense_formulas(weighted: bool, relative: bool, sites: Sites, svds: Svds):
    for name, s in sites.items():
        k, (U, S, V) = cut(svds[name])
        D = dense(s)
        strengths = S if weighted else torch.ones_like(S)
        unit = strengths / strengths.norm() if weighted and relative else strengths
        parts = {"left": (U * unit).T @ D, "right": D @ (V * unit), "both": (U * unit).T @ D @ (V * unit)}
        shares = overlap(s.factors(), *(M.float() for M in (U, V)), S.float() if weighted else None)
        for side, part in parts.items():
            value = float(part.square().sum() / (D.square().sum() if relative else 1))
            method = Orthogonal(beta=1, k=k, side=side, weighted=weighted, relative=relative)
            assert float(method.penalty({name: s}, method.prepare({name: s}, None))) == pytest.approx(value, rel=1e-3)
            if relative:
                assert shares[side] == pytest.approx(value, rel=1e-4)


# --- edits of the adapter


@pytest.mark.parametrize("side", ["left", "right", "both", "block"])
def test_projections_are_dense_and_leave_no_overlap(side: str, sites: Sites, svds: Svds):
    for name, s in sites.items():
        k, (U, _, V) = cut(svds[name])
        D, P, Q = dense(s), U @ U.T, V @ V.T
        wanted = {"left": D - P @ D, "right": D - D @ Q, "both": D - P @ D - D @ Q + P @ D @ Q, "block": D - P @ D @ Q}
        state, new = edited(Project(k=k, side=side), {name: s})
        near(new[name].dense(), wanted[side])
        left = overlap(new[name], U.float(), V.float())
        assert left["both" if side == "block" else side] < 1e-8
        share = 1 - float((wanted[side].norm() / D.norm()) ** 2)
        assert state[name]["share"] == pytest.approx(share, rel=1e-3, abs=1e-7)


def test_edits_by_the_alignment_that_the_adapter_made(sites: Sites):
    """Between the two embedded models lies the adapter itself, so that C dW points along dW."""
    V = {name: open_weights(TUNED)[name].double() - s.weight.double() for name, s in sites.items()}
    fast, apart = {}, {}
    for name, s in sites.items():
        near(V[name], dense(s), 1e-4)
        fast[name] = V[name] @ (V[name].T @ dense(s)) / V[name].norm()
        apart[name] = (fast[name] - dense(s)).norm().item()
    state, new = edited(SafeLoRA(aligned=TUNED, number=3), sites)
    for name, s in sites.items():
        near(new[name].dense(), fast[name])
        cosine = float((fast[name] * dense(s)).sum() / fast[name].norm() / dense(s).norm())
        assert state[name]["score"] == pytest.approx(cosine, rel=1e-4)
        assert 0 < state[name]["score"] <= 1
    _, new = edited(SafeLoRA(aligned=TUNED, number=3, projector="subspace", k=8), sites)
    for name, s in sites.items():
        near(new[name].dense(), dense(s), 1e-3)  # its own eight directions hold all of it
    state, new = edited(SPLoRA(aligned=TUNED, number=1), sites)
    assert {name: found["distance"] for name, found in state.items()} == pytest.approx(apart, rel=1e-4)
    assert len(new) == 1


def test_extrapolating_the_adapter_or_the_pair_is_the_same(sites: Sites):
    for k in (3, 8):
        alone, of_pair = (edited(LoX(k=k, coef=1.25, **given), sites) for given in ({}, {"aligned": TUNED}))
        for name, s in sites.items():
            U = torch.linalg.svd(dense(s), full_matrices=False).U[:, :k]
            wanted = dense(s) + 1.25 * U @ (U.T @ dense(s))
            near(alone[1][name].dense(), wanted)
            near(of_pair[1][name].dense(), wanted, 1e-3)
            share = float((U.T @ dense(s)).norm() / dense(s).norm())
            for state, _ in (alone, of_pair):
                assert state[name]["share"] == pytest.approx(share, rel=1e-4)
            assert (share == pytest.approx(1)) == (k == 8)
    near(alone[1][NAMES[0]].dense(), 2.25 * dense(sites[NAMES[0]]))


def test_the_most_concentrated_update_is_the_dense_one(sites: Sites):
    S = {name: torch.linalg.svdvals(dense(s)) for name, s in sites.items()}
    scores = {name: float(x[0] / x.sum()) for name, x in S.items()}
    state, new = edited(S3LoRA(number=1), sites)
    assert {name: found["score"] for name, found in state.items()} == pytest.approx(scores, rel=1e-4)
    assert set(new) == {max(scores, key=scores.__getitem__)}
    assert not new.popitem()[1].dense().any()


@pytest.mark.parametrize("size", [1.0, 20.0])
def test_intruders_are_those_of_whole_decompositions(size: float, sites: Sites, svds: Svds):
    counts = 0
    for name, s in sites.items():
        larger = replace(s, scale=size * s.scale)
        D = dense(larger)
        U, S, Vh = torch.linalg.svd(s.weight.double() + D, full_matrices=False)
        cosines = (svds[name][0].T @ U[:, :10]).abs().amax(dim=0)
        found = cosines < 0.5
        if s.weight.shape[0] <= s.weight.shape[1]:
            assert float(cosines.min()) >= s.weight.shape[0] ** -0.5
        state, new = edited(Intruders(keep=0.25), {name: larger})
        assert state[name]["intruders"] == int(found.sum())
        if found.any():
            near(new[name].dense(), D - 0.75 * (U[:, :10] * S[:10] * found) @ Vh[:10], 1e-3)
        counts += int(found.sum())
    assert (counts > 0) == (size == 20)


@torch.no_grad()
def test_plain_peft_computes_with_the_edited_adapter(sites: Sites, svds: Svds, tmp_path: Path):
    only = [name.removeprefix("model.") for name in NAMES]
    made = edit({"name": "project", "k": 6, "side": "both", "only": only}, embedded.REASONER, tmp_path / "new")
    assert made.card["changed"] == len(NAMES)
    model = PeftModel.from_pretrained(loading.load_model(BASE), str(made.folder)).eval()
    plain = model(IDS).logits
    model.load_adapter(str(embedded.REASONER), "whole")
    model.set_adapter("whole")
    whole, model = model(IDS).logits, model.unload()
    for name, x in read_adapter(embedded.REASONER).factors.items():
        D = x.dense()
        if name in NAMES:
            U, V = (svds[name][i][:, :6] for i in (0, 2))
            D = D.double() - U @ (U.T @ D.double())
            D = (D - D @ V @ V.T).float()
        model.get_submodule(name).weight += D
    wanted = model(IDS).logits
    near(plain, wanted.double())
    assert (plain - whole).norm() > 10 * (plain - wanted).norm()


# --- methods in training

ROWS = [Conversation(f"What is {i} and one?", f"It is {i + 1}.", f"{i} + 1 is {i + 1}.") for i in range(3)]
MODULES = ("v_proj", "o_proj", "up_proj", "down_proj")
Make = Callable[..., TrainingRun]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two layers of the embedded model."""
    folder, whole = tmp_path_factory.mktemp("short"), embedded.folder("smollm2-135m")
    AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=2).save_pretrained(folder)
    for path in whole.iterdir():
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    return folder


@pytest.fixture
def run(short: Path, tmp_path: Path) -> Make:
    """A run of three steps with a large weight decay."""

    def made(spec: dict[str, Any], **placement: Any) -> TrainingRun:
        given = {"lr": 2e-3, "steps": 3, "batch_size": 2, "checkpoint_steps": 3, "weight_decay": 0.5, "warmup_steps": 0}
        where = {"modules": MODULES, "rank": 8, "alpha": 16, "dropout": 0.0} | placement
        where = {"kind": "full"} if "kind" in placement else where
        placed, settings = Placement.model_validate(where), Train.model_validate(given)
        job = Job(
            model=str(short),
            placement=placed,
            settings=settings,
            seed=0,
            precision="float32",
            rows=ROWS,
            methods=[spec],
        )
        return TrainingRun(job, tmp_path / "out")

    return made


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS).logits.double()


SALORA = {"name": "salora", "safety": "builtin:refusals,n=3", "task": "builtin:chat,n=3", "rank_safety": 8}


def test_salora_begins_at_the_base_keeps_features_and_is_an_adapter_of_either_base(
    run: Make, short: Path, tmp_path: Path
):
    one = run(SALORA)
    base = AutoModelForCausalLM.from_pretrained(short)
    start = logits(base)
    near(logits(one.model), start, 1e-5)
    one.finish()
    end, sites, states = logits(one.model), sites_of(one.model), one.states[0]
    assert (end - start).norm() > 0.05 * start.norm()
    halves = {}
    with torch.no_grad():
        for name, s in sites.items():
            half, state = s.rank // 2, states[name]
            # float32: below 1e-5 on an Intel CPU with AMX, 1.3e-5 on an AMD EPYC
            assert (state["span"].T @ s.delta()).norm() < 3e-5 * s.delta().norm()
            assert torch.equal(s.a[half:], state["a"])
            assert torch.equal(s.b[:, half:], state["b"])
            halves[name] = Factors(s.scale * s.b[:, :half], s.a[:half])
            base.get_submodule(name).weight += s.scale * s.b[:, half:] @ s.a[half:]  # W' = W - s C B0 A0
    saved = tmp_path / "out" / "checkpoint-3"
    write_adapter(tmp_path / "halves", Adapter(read_adapter(saved).config, {}, halves))
    near(logits(PeftModel.from_pretrained(base, str(tmp_path / "halves"))), end, 1e-4)
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(short), str(saved))
    assert torch.equal(logits(whole), end)


SSAH = {"name": "ssah", "safety": "builtin:refusals,n=3", "utility": "builtin:chat,n=3"}


def test_units_that_ssah_holds_keep_their_bits_and_are_those_of_the_formula(run: Make, short: Path, tmp_path: Path):
    one = run(SSAH | {"cu": 0.0}, kind="full")
    second = "model.layers.1.mlp.down_proj"
    scores = [
        one.probe.variances(SSAH[rows], [second])[second] * one.probe.linear(second).weight.double().square().sum(0)
        for rows in ("safety", "utility")
    ]
    best = (scores[0] - scores[1]).topk(round(0.013 * 1536)).indices
    assert one.states[0][second]["units"].tolist() == sorted(best.tolist())
    one.finish()
    (file,) = (tmp_path / "out" / "checkpoint-3").glob("*.safetensors")
    before, after = load_file(short / "model.safetensors"), load_file(file)
    for name, held in one.states[0].items():
        same = (before[f"{name}.weight"] == after[f"{name}.weight"]).movedim(held["axis"], 0)
        assert same[held["units"]].all()
        free = torch.ones(len(same), dtype=torch.bool).index_fill(0, held["units"], False)
        assert same[free].float().mean() < 0.01


def test_a_lora_under_ssah_is_zero_in_held_units(run: Make):
    one = run(SSAH)
    one.finish()
    sites = sites_of(one.model)
    assert set(one.states[0]) == set(sites)
    for name, held in one.states[0].items():
        update = sites[name].delta().detach().movedim(held["axis"], 0)
        assert len(held["units"])
        assert not update[held["units"]].any()
        assert update.any()


@pytest.mark.parametrize("projector", ["subspace", "conflict"])
def test_what_spf_takes_out_of_real_gradients(run: Make, projector: str):
    """Half of the tensors are put in conflict with the refusals; the others point along with them."""
    one = run({"name": "spf", "k": 3, "projector": projector})
    one._one_step(one.batches[0])  # from then on A has a gradient, too
    sites: Sites = one.methods.parts[0][1]
    safe, task = (one.probe.gradients(f"builtin:{rows},n=1", sites) for rows in ("refusals", "chat"))
    for n, (name, s) in enumerate(sites.items()):
        for p, S, T in zip(s.moved(), safe[name], task[name], strict=True):
            p.grad = T / T.norm() + (-1) ** n * 3 * S / S.norm()
    given = {name: [p.grad.double() for p in s.moved()] for name, s in sites.items()}
    one.methods.after_backward(one.states)
    for n, (name, s) in enumerate(sites.items()):
        for p, S, G in zip(s.moved(), safe[name], given[name], strict=True):
            U, _, Vh = torch.linalg.svd(S.double(), full_matrices=False)
            core = U[:, :3].T @ G @ Vh[:3].T
            kept = core if projector == "subspace" else torch.diag(core.diagonal().clamp(max=0))
            near(p.grad, G - n % 2 * U[:, :3] @ kept @ Vh[:3], 1e-3)
            assert n % 2 or torch.equal(p.grad.double(), G)


def test_a_walk_from_real_weights_is_along_a_direction_of_their_norms_and_back(short: Path):
    model = AutoModelForCausalLM.from_pretrained(short)
    ground = Ground(model, perturbed(model))
    first = {name: direction(name, W, 0) for name, W in ground.base.items()}
    for name, W in ground.base.items():
        size, d = W.double().norm(), first[name].double()
        assert float(d.norm()) == pytest.approx(float(size), rel=1e-3)
        assert (d * direction(name, W, 0, 1, first[name])).sum().abs() < 1e-5 * size**2
    before = logits(model)
    with ground.moved(along([(0.3, first)])):
        assert (logits(model) - before).norm() > 0.1 * before.norm()
    assert torch.equal(logits(model), before)
