"""SSAH chooses units by their scores, finds their entries, and keeps the bits of these whatever the optimiser does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from progress import progress_to
from safetensors.torch import load_file
from tiny import make_model
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.methods.sites import sites_of
from lowtax.methods.ssah import SSAH
from lowtax.models.placement import Placement
from lowtax.training.job import Job
from lowtax.training.loop import TrainingRun, train
from lowtax.training.settings import Train

ROWS = [Conversation(f"What is {i}?", f"{i}.", f"It is {i}, I think.") for i in range(6)]
SPEC: dict[str, Any] = {"name": "ssah", "safety": "builtin:refusals,n=6", "utility": "builtin:chat,n=6", "scu": 0.1}
LORA = {"modules": ["attention", "mlp"], "rank": 3, "dropout": 0.1}
FULL = {"kind": "full"}


def job(model: Path, placement: dict[str, Any], precision: str = "float32", **spec: Any) -> Job:
    values = {"lr": 1e-2, "steps": 6, "batch_size": 3, "checkpoint_steps": 3, "weight_decay": 0.5, "warmup_steps": 0}
    settings = Train.model_validate(values | {"validation": 1})
    return Job(
        model=str(model),
        placement=Placement.model_validate(placement),
        settings=settings,
        seed=0,
        precision=precision,
        rows=ROWS,
        methods=[SPEC | spec],
    )


def final(folder: Path) -> dict[str, Tensor]:
    (file,) = (folder / "checkpoint-6").glob("*.safetensors")
    return load_file(file)


SCORES = (torch.tensor([9.0, 5, 4, 1, 1, 0, 0, 3, 2, 0]), torch.tensor([1.0, 9, 4, 1, 0, 0, 8, 3, 2, 1]))


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({"scu": 0.1, "ucu": 0, "ru": 0, "cu": 0}, [0]),  # the largest I_S - I_U
        ({"scu": 0.1, "ucu": 0.2, "ru": 0.2, "cu": 0.2}, [0, 2, 7]),  # without utility's 6 and 1, redundant 5 and 4
        ({"scu": 0.1, "ucu": 0.2, "ru": 0.2, "cu": 1}, [0, 2, 3, 7, 8, 9]),  # all that is complex
        ({"scu": 0.1, "ucu": 0, "ru": 0, "cu": 0.2}, [0, 1, 2]),
        ({"scu": 0.1, "ucu": 0.2, "ru": 0.2, "freeze": "all but redundant"}, [0, 1, 2, 3, 6, 7, 8, 9]),
        ({"scu": 1}, list(range(10))),
    ],
)
def test_units_are_chosen_by_differences_and_sums(fields: dict[str, Any], held: list[int]):
    assert SSAH(**fields)._chosen(*SCORES).tolist() == held


def test_scores_are_variance_times_squared_norm(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model, FULL, cu=0), tmp_path)
    name = "model.layers.1.mlp.down_proj"
    strength = run.probe.linear(name).weight.double().square().sum(0)
    safe, useful = (run.probe.variances(SPEC[rows], [name])[name] * strength for rows in ("safety", "utility"))
    held = run.states[0][name]
    assert held["units"].tolist() == sorted((safe - useful).topk(6).indices.tolist())  # 0.1 of 64
    assert all(run.states[0][f"model.layers.1.mlp.{k}"]["units"].equal(held["units"]) for k in ("gate_proj", "up_proj"))
    assert not run.states[0].keys() & {f"model.layers.1.self_attn.{k}_proj" for k in "qk"}


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@torch.no_grad()
def test_rows_of_v_proj_are_those_that_feed_the_channel(tmp_path: Path, kind: str):
    """Moving one row alone moves exactly the channels of o_proj that it feeds, since heads share values."""
    run = TrainingRun(job(make_model(tmp_path / "m", kind), FULL), tmp_path / "out")
    v, o = (f"model.layers.0.self_attn.{k}_proj" for k in "vo")
    seen: list[Tensor] = []
    run.probe.linear(o).register_forward_pre_hook(lambda _, entered: seen.append(entered[0][0]))
    inner, W = run.model.eval().get_decoder(), run.probe.linear(v).weight
    for row in range(len(W)):
        inner(input_ids=torch.arange(40, 50)[None])
        W[row] += 1
        inner(input_ids=torch.arange(40, 50)[None])
        W[row] -= 1
        moved = (seen[-1] - seen[-2]).abs().amax(0).gt(1e-3).nonzero()[:, 0]
        assert run.probe.rows_before(v, o, moved).tolist() == [row]
        assert len(moved) == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_whole_weights_that_are_held_keep_their_bits(tmp_path: Path, precision: str):
    model = make_model(tmp_path / "m", "qwen2")  # which has biases
    this_job = job(model, FULL, precision)
    settings = this_job.settings.model_copy(update={"save_dtype": "float32"})
    run = TrainingRun(replace(this_job, settings=settings), tmp_path / "out")
    everything = sum(p.numel() for p in run.model.parameters())
    run.finish()  # AdamW, with a weight decay of 0.5
    before, after = load_file(model / "model.safetensors"), final(tmp_path / "out")
    n_held = 0
    for name, held in run.states[0].items():
        key = name if name.endswith(".bias") else f"{name}.weight"
        start, end = before[key].to(getattr(torch, precision)).float(), after[key]
        same = (start == end).movedim(held["axis"], 0)
        assert same[held["units"]].all()
        free = torch.ones(len(same), dtype=torch.bool).index_fill(0, held["units"], False)
        assert not same[free].flatten().float().mean() > 0.01
        n_held += same[held["units"]].numel()
    assert {name.rpartition("self_attn.")[2] for name in run.states[0] if "layers.0.self" in name} == {
        "v_proj",
        "v_proj.bias",
        "o_proj",
    }
    assert run.trainable == everything - n_held
    live = run.model.state_dict()
    assert all(torch.equal(live[key].float(), after[key].to(live[key].dtype).float()) for key in after)


def test_lora_s_update_is_zero_where_it_is_held(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model, LORA), tmp_path)
    run.finish()
    sites = sites_of(run.model)
    for name, held in run.states[0].items():
        update = sites[name].delta().movedim(held["axis"], 0)
        assert not update[held["units"]].any()
        free = torch.ones(len(update), dtype=torch.bool).index_fill(0, held["units"], False)
        assert update[free].abs().amax(1).gt(0).all()
    assert all(sites[name].delta().any() for name in sites)


@pytest.mark.parametrize("placement", [LORA, FULL], ids=["lora", "full"])
def test_what_is_held_has_no_gradient_to_be_clipped_with(tiny_model: Path, tmp_path: Path, placement: dict[str, Any]):
    run = TrainingRun(job(tiny_model, placement), tmp_path)
    run._gradients([0, 1, 2])
    grads = {
        name: (s.b, s.a, s.weight)[2 if not s.rank else held["axis"]].grad
        for (name, held), s in zip(
            run.states[0].items(), (run.methods.parts[0][1][name] for name in run.states[0]), strict=True
        )
    }
    copies = {name: G.clone() for name, G in grads.items()}
    run.methods.after_backward(run.states)
    for name, held in run.states[0].items():
        is_held = torch.zeros(grads[name].shape[held["axis"]], dtype=torch.bool).index_fill(0, held["units"], True)
        now, before = (G.movedim(held["axis"], 0) for G in (grads[name], copies[name]))
        assert not now[is_held].any()
        assert torch.equal(now[~is_held], before[~is_held])
    assert any(G.any() for G in copies.values())


def test_all_but_redundant_units_of_a_lora(tiny_model: Path, tmp_path: Path):
    placement = LORA | {"modules": ["mlp", "o_proj"]}
    run = TrainingRun(job(tiny_model, placement, freeze="all but redundant", ru=0.25), tmp_path)
    run.finish()
    for name, site in sites_of(run.model).items():
        moved = site.delta().ne(0).any(1 - run.states[0][name]["axis"])
        assert int(moved.sum()) == len(moved) // 4


def redundant_entries(run: TrainingRun, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a mask of the entries of each tensor that belong to units in no other group, by hand from the scores.

    With the shares of `REDUNDANT` these are the units with the smallest sum of both scores, but for safety's.
    """
    masks = {key: torch.zeros_like(tensor, dtype=torch.bool) for key, tensor in start.items()}
    for second in [key.removesuffix(".weight") for key in start if key.endswith(("o_proj.weight", "down_proj.weight"))]:
        strength = start[f"{second}.weight"].double().square().sum(0)
        safe, useful = (run.probe.variances(SPEC[rows], [second])[second] * strength for rows in ("safety", "utility"))
        taken = (safe - useful).topk(round(0.1 * len(safe))).indices
        units = (safe + useful).index_fill(0, taken, torch.inf).topk(round(0.25 * len(safe)), largest=False).indices
        masks[f"{second}.weight"][:, units] = True
        held = torch.ones(len(safe), dtype=torch.bool).index_fill(0, units, False).nonzero()[:, 0]
        for first in ("gate_proj", "up_proj") if "mlp" in second else ("v_proj",):
            name = f"{second.rpartition('.')[0]}.{first}"
            rows = run.probe.rows_before(name, second, held)  # a row of v_proj serves two units, of which one is held
            for key in {f"{name}.weight", f"{name}.bias"} & masks.keys():
                masks[key] = ~masks[key].index_fill(0, rows, True)
    return masks


REDUNDANT = {"freeze": "all but redundant", "scu": 0.1, "ucu": 0, "ru": 0.25}


@pytest.mark.parametrize(
    ("kind", "precision"), [("llama", "float32"), ("qwen2", "float32"), ("llama", "bfloat16"), ("qwen3", "bfloat16")]
)
def test_of_whole_weights_the_redundant_units_alone_move(tmp_path: Path, kind: str, precision: str):
    """The embeddings of llama are tied, qwen2 has biases, qwen3 norms of heads."""
    model = make_model(tmp_path / "m", kind)
    this_job = job(model, FULL, precision, **REDUNDANT)
    settings = this_job.settings.model_copy(update={"save_dtype": "float32"})
    run = TrainingRun(replace(this_job, settings=settings), tmp_path / "out")
    start = {key: t.to(getattr(torch, precision)).float() for key, t in load_file(model / "model.safetensors").items()}
    masks = redundant_entries(run, start)
    everything = sum(p.numel() for p in run.model.parameters())
    run._gradients([0, 1, 2])
    run.parameters.collect_gradients()
    run.methods.after_backward(run.states)
    moving = sum(int(p.grad.ne(0).sum()) for p in run.parameters.master if p.grad is not None)
    assert 0 < moving <= run.trainable
    run.parameters.clear_gradients()
    run.finish()  # AdamW, with a weight decay of 0.5
    after = final(tmp_path / "out")
    assert after.keys() == start.keys()
    assert ("lm_head.weight" in start) == (kind != "llama")
    for key, end in after.items():
        assert torch.equal(end[~masks[key]], start[key][~masks[key]]), key
        assert not masks[key].any() or (end != start[key])[masks[key]].float().mean() > 0.95, key
    assert any(masks[key].any() for key in masks if "v_proj" in key)
    assert run.trainable == sum(int(mask.sum()) for mask in masks.values())
    assert everything == sum(mask.numel() for mask in masks.values())
    live = run.model.state_dict()
    assert all(torch.equal(live[key].float(), end.to(live[key].dtype).float()) for key, end in after.items())


def test_only_limits_what_is_held_beside_the_redundant_units(tiny_model: Path, tmp_path: Path):
    run = TrainingRun(job(tiny_model, FULL, **REDUNDANT, only=["mlp"]), tmp_path)
    run.finish()
    start, end = load_file(tiny_model / "model.safetensors"), final(tmp_path)
    masks = redundant_entries(TrainingRun(job(tiny_model, FULL, **REDUNDANT), tmp_path / "new"), start)
    for key in start:
        same = start[key] == end[key]
        assert same[~masks[key]].all() if ".mlp." in key else not same.float().mean() > 0.05, key


def test_a_method_after_it_would_change_what_it_holds(tiny_model: Path, tmp_path: Path):
    this_job = job(tiny_model, FULL, **REDUNDANT)
    spf = {"name": "spf", "safety": "builtin:refusals,n=1", "only": ["q_proj"]}
    with pytest.raises(UserError, match="SPF would change what SSAH holds: name SPF first"):
        TrainingRun(replace(this_job, methods=[*this_job.methods, spf]), tmp_path)


@pytest.mark.parametrize("spec", [{}, REDUNDANT], ids=["safety", "redundant"])
def test_a_killed_run_ends_in_the_same_bits(tiny_model: Path, tmp_path: Path, spec: dict[str, Any]):
    class Killed(BaseException):
        pass

    def kill(text: str) -> None:
        if "step 6: validation" in text:
            raise Killed

    this_job = job(tiny_model, FULL, "bfloat16", **spec)
    train(this_job, tmp_path / "whole")
    with pytest.raises(Killed), progress_to(kill):
        train(this_job, tmp_path / "killed")
    train(this_job, tmp_path / "killed")
    one, two = final(tmp_path / "whole"), final(tmp_path / "killed")
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("placement", "spec", "message"),
    [
        (LORA | {"modules": ["q_proj"]}, {}, "ssah is for the MLP, v_proj and o_proj; train those"),
        (LORA, {"freeze": "all but redundant"}, "by LoRA on nothing else, or in full; train those"),
        (FULL, {"freeze": "all but redundant", "only": ["q_proj"]}, "or in full; train those"),
        (LORA, {"scu": 1.5}, "scu: .*found 1.5"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_model: Path, tmp_path: Path, placement: dict[str, Any], spec: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        train(job(tiny_model, placement, **spec), tmp_path)
