"""SPF removes what conflicts with the safety gradient and nothing else, and renews the safety gradient when due."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from progress import progress_to
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.methods.editing import OfflineProbe
from lowtax.methods.sites import Site, Sites
from lowtax.methods.spf import SPF
from lowtax.models.placement import parse_mode
from lowtax.training.job import Job
from lowtax.training.loop import TrainingRun, train
from lowtax.training.settings import Train

ROWS = [Conversation(f"What is {i}?", f"{i}.", f"It is {i}, I think.") for i in range(6)]


def state_of(method: SPF, *gradients: Tensor) -> dict[str, Any]:
    kept = {f"x:{i}": method._span(G) for i, G in enumerate(gradients)}
    return {"kept": kept, "counts": torch.zeros(4, dtype=torch.float64)}


def corrected(method: SPF, safety: list[Tensor], task: list[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the gradients of A and B of one site after the method has changed them, and its state."""
    state = state_of(method, *safety)
    a, b = (torch.zeros_like(G).requires_grad_() for G in task)
    a.grad, b.grad = (G.clone() for G in task)
    method.after_backward({"x": Site("x", torch.zeros(len(b), a.shape[1]), a, b, 1.0)}, state)
    return [a.grad, b.grad], state


def dense(G: Tensor, safety: Tensor, k: int, projector: str) -> Tensor:
    """Return G - P(G) from full singular vectors."""
    U, S, Vh = torch.linalg.svd(safety.double(), full_matrices=False)
    k = min(k, int((1e-6 * S[0] < S).sum()) if S[0] > 0 else 0)
    U, V, G = U[:, :k], Vh[:k].T, G.double()
    if projector == "subspace":
        return G - U @ U.T @ G @ V @ V.T
    parts = [float(U[:, i] @ G @ V[:, i]) * torch.outer(U[:, i], V[:, i]) for i in range(k)]
    return G - sum((part for i, part in enumerate(parts) if U[:, i] @ G @ V[:, i] < 0), start=torch.zeros_like(G))


@settings(deadline=None, max_examples=60)
@given(
    out=st.integers(1, 9),
    inp=st.integers(1, 9),
    rank=st.integers(1, 3),
    k=st.integers(1, 4),
    seed=st.integers(0, 99),
    projector=st.sampled_from(["subspace", "conflict"]),
    deficient=st.booleans(),
)
def test_is_the_formula_written_out(out: int, inp: int, rank: int, k: int, seed: int, projector: str, deficient: bool):
    g = torch.Generator().manual_seed(seed)
    shapes = [(rank, inp), (out, rank)]
    safety, task = ([torch.randn(shape, generator=g) for shape in shapes] for _ in range(2))
    if deficient:  # equal rows: rank 1
        safety = [G[:1].expand_as(G).contiguous() for G in safety]
    corrected_gradients, state = corrected(SPF(k=k, projector=projector), safety, task)
    conflicts = [float((G * S).sum()) < 0 for G, S in zip(task, safety, strict=True)]
    for mine, G, S, conflict in zip(corrected_gradients, task, safety, conflicts, strict=True):
        expected = dense(G, S, k, projector) if conflict else G.double()
        torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-5)
        assert conflict or torch.equal(mine, G)
    assert state["counts"][:2].tolist() == [2, sum(conflicts)]
    assert float(state["counts"][3]) <= float(state["counts"][2]) * (1 + 1e-5)


@pytest.mark.parametrize("projector", ["subspace", "conflict"])
def test_with_all_directions_no_conflict_is_left(projector: str):
    g = torch.Generator().manual_seed(3)
    S = torch.randn(5, 5, generator=g)
    G = torch.randn(5, 5, generator=g) - S
    ((mine, _), _) = corrected(SPF(k=9, projector=projector), [S, S], [G, G])
    assert float((G * S).sum()) < 0
    assert float((mine * S).sum()) > -1e-4
    assert (mine.norm() > 0.1) == (projector == "conflict")  # the whole space of a full-rank gradient is everything


def test_no_safety_gradient_removes_nothing():
    zero, G = torch.zeros(2, 5), torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    corrected_gradients, state = corrected(SPF(k=2, test="global"), [zero, -G], [G, G])
    assert torch.equal(corrected_gradients[0], G)  # in conflict as a whole, and yet without a direction
    assert not torch.equal(corrected_gradients[1], G)
    assert state["counts"][1] == 2


def test_the_global_test_asks_for_the_sum():
    g = torch.Generator().manual_seed(0)
    G = torch.randn(3, 4, generator=g)
    with_matrix, _ = corrected(SPF(), [-G, 2 * G], [G, G])
    with_global, _ = corrected(SPF(test="global"), [-G, 2 * G], [G, G])
    assert not torch.equal(with_matrix[0], G)
    assert torch.equal(with_global[0], G)
    assert all(torch.equal(corrected_gradients[1], G) for corrected_gradients in (with_matrix, with_global))


def job(model: Path, mode: str = "lora_mlp_r2", n: int = 6, **spec: Any) -> Job:
    values = {"lr": 1e-2, "steps": n, "batch_size": 3, "checkpoint_steps": 2, "warmup_steps": 0, "validation": 1}
    return Job(
        model=str(model),
        placement=parse_mode(mode).model_copy(update={"dropout": 0.0}),
        settings=Train.model_validate(values),
        seed=0,
        precision="float32",
        rows=ROWS,
        methods=[{"name": "spf"} | spec],
    )


@pytest.mark.parametrize(("every", "at"), [(1, 6), (4, 4), (0, 0)])
def test_the_safety_gradient_is_that_of_the_weights_it_was_due_at(
    tiny_model: Path, tmp_path: Path, every: int, at: int
):
    run = TrainingRun(job(tiny_model, every=every), tmp_path)
    sites: Sites = run.methods.parts[0][1]
    gradients = {0: run.probe.gradients(SPF().safety, sites)}
    for step in range(1, 7):
        run._one_step(run.batches[run.step])
        gradients[step] = run.probe.gradients(SPF().safety, sites)
    for name, parts in gradients[at].items():
        for i, G in enumerate(parts):
            assert torch.equal(run.states[0]["kept"][f"{name}:{i}"]["gradient"], G)
    assert all(float(parts[0].norm()) == 0 < float(parts[1].norm()) for parts in gradients[0].values())  # B = 0


@pytest.mark.parametrize("mode", ["lora_mlp_r2", "full"])
def test_with_update_no_step_goes_against_safety(tiny_model: Path, tmp_path: Path, mode: str):
    """To first order <W_new - W_old, G_s> <= 0 for each tensor; without `update`, AdamW's moments violate it."""

    def worst(update: bool) -> float:
        run = TrainingRun(job(tiny_model, mode, k=999, update=update, projector="conflict"), tmp_path / str(update))
        sites: Sites = run.methods.parts[0][1]
        cosines = []
        for _ in range(6):
            kept = run.states[0]["kept"]
            tensors = {
                f"{n}:{i}": p for n, s in sites.items() for i, p in enumerate((s.a, s.b) if s.rank else (s.weight,))
            }
            before = {key: p.detach().clone() for key, p in tensors.items() if key in kept}
            run._one_step(run.batches[run.step])
            moves = [(tensors[key].detach() - p, kept[key]["gradient"]) for key, p in before.items()]
            cosines += [float((d * G).sum() / (d.norm() * G.norm())) for d, G in moves if d.norm() * G.norm() > 0]
        return max(cosines)

    assert worst(update=True) < 1e-5
    if mode == "full":  # where these rows conflict at all
        assert worst(update=False) > 1e-3


def test_it_keeps_the_safety_rows_likely_where_plain_training_does_not(tiny_model: Path, tmp_path: Path):
    """Training on other answers raises the loss of refusals; with the projection it rises less."""

    def loss(**spec: Any) -> float:
        run = TrainingRun(job(tiny_model, "full", n=12, **spec), tmp_path / str(len(spec)))
        run.finish()
        run.model.eval()
        (e,) = run.probe.examples("builtin:refusals,n=1")
        ids, labels = torch.tensor([e.prompt + e.completion]), torch.tensor([[-100] * len(e.prompt) + e.completion])
        with torch.no_grad():
            return float(run.model(input_ids=ids, labels=labels).loss)

    assert loss(k=999, update=True) < loss(k=1, every=0, only=["layers.0.mlp.up_proj"]) - 0.02


def test_a_killed_run_ends_in_the_same_bits(tiny_model: Path, tmp_path: Path):
    class Killed(BaseException):
        pass

    def kill(text: str) -> None:
        if "step 4: validation" in text:
            raise Killed

    expected, messages = job(tiny_model, k=2, every=3, update=True), list[str]()
    with progress_to(messages.append):
        train(expected, tmp_path / "whole")
    with pytest.raises(Killed), progress_to(kill):
        train(expected, tmp_path / "killed")
    train(expected, tmp_path / "killed")
    files = [next((tmp_path / kind / "checkpoint-6").glob("*.safetensors")) for kind in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert any("of 72 gradients conflicted" in text for text in messages)  # 6 steps, A and B of 6 sites


def test_it_needs_the_model(tiny_model: Path):
    with pytest.raises(UserError, match="needs gradients of a running model"):
        SPF().prepare({}, OfflineProbe())
