"""Runs that start from another arm: the weights at step 0, what is saved, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import make_model, save_adapter
from transformers import AutoModelForCausalLM

from lowtax.common.errors import UserError
from lowtax.common.files import write_json
from lowtax.data.conversations import Conversation
from lowtax.models import loading
from lowtax.models.adapters import read_adapter
from lowtax.models.placement import Placement, parse_mode
from lowtax.models.weights import open_weights
from lowtax.training import loop
from lowtax.training.job import Job
from lowtax.training.settings import Execution, Train
from lowtax.training.start import Start

IDS = torch.tensor([[7, 3, 200, 4, 90, 12, 5]])
ROWS = [Conversation(f"Do thing {i}.", "No.", f"I cannot do thing {i}.") for i in range(4)]
STEPS: dict[str, Any] = {"steps": 3, "batch_size": 2, "lr": 0.01}
NAMES = ["more_modules", "fewer_modules", "another_scale"]


def as_arm(folder: Path, name: str = "checkpoint-4") -> Start:
    """The start of an arm whose last checkpoint is in a folder."""
    row = {"name": name, "step": 4, "seconds": 1.0}
    write_json(folder / "card.json", {"job": {}, "checkpoints": [row], "trainable_parameters": 1})
    return Start("parent", None, folder, not (folder / name / "adapter_config.json").exists(), "hash")


def job(model: Path, start: Start | None, mode: str | Placement, precision: str = "float32", **more: Any) -> Job:
    placement = parse_mode(mode) if isinstance(mode, str) else mode
    settings = Train(**STEPS)
    return Job(
        model=str(model),
        placement=placement,
        settings=settings,
        seed=0,
        precision=precision,
        rows=ROWS,
        start=start,
        **more,
    )


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def of_adapter(base: Path, adapter: Path, precision: str = "float32") -> torch.Tensor:
    return logits(PeftModel.from_pretrained(loading.load_model(str(base), precision), str(adapter)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def parent(base: Path, tmp_path: Path) -> Start:
    """An arm with a random adapter of rank 2 on the MLP."""
    folder = tmp_path / "parent"
    save_adapter(folder / "checkpoint-4", base, 2, ["up_proj", "gate_proj", "down_proj"], 1)
    return as_arm(folder)


SAME = Placement(modules=["mlp"], rank=2, alpha=4)
OTHERS = [
    "lora_qkvo_mlp_r4",
    "lora_up_proj_only_from1_to1_r1",
    Placement(modules=["mlp"], rank=2, alpha=8, rslora=True),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("placement", [SAME, *OTHERS], ids=["same", *NAMES])
def test_the_first_step_sees_the_logits_of_the_parent_bit_for_bit(base, parent, tmp_path, placement, precision):
    run = loop.TrainingRun(job(base, parent, placement, precision), tmp_path / "run")
    expected = of_adapter(base, parent.path(), precision)
    assert torch.equal(logits(run.model), expected)
    assert not torch.equal(expected, logits(loading.load_model(str(base), precision)))


def test_the_same_placement_trains_the_factors_of_the_parent(base, parent, tmp_path):
    run = loop.TrainingRun(job(base, parent, SAME), tmp_path / "run")
    before = read_adapter(parent.path()).factors
    run.finish()
    after = read_adapter(tmp_path / "run" / "checkpoint-3").factors
    assert {name: x.rank for name, x in after.items()} == {name: x.rank for name, x in before.items()}
    assert all(not torch.equal(after[name].a, x.a) for name, x in before.items())


@pytest.mark.parametrize("placement", OTHERS, ids=NAMES)
def test_another_placement_is_saved_with_the_parent_as_one_adapter(base, parent, tmp_path, placement):
    """W + parent + child, by PEFT alone and in float64."""
    before = read_adapter(parent.path()).factors
    out = tmp_path / "run"
    run = loop.TrainingRun(job(base, parent, placement), out)
    run.finish()
    expected = logits(run.model)
    saved = read_adapter(out / "checkpoint-3", str(base)).factors
    trained = {name: p.detach() for name, p in run.model.named_parameters() if p.requires_grad}
    assert all(".default." in name for name in trained)
    own = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trained}
    assert saved.keys() == before.keys() | own
    for name in before:
        rank = before[name].rank
        assert torch.equal(saved[name].b[:, :rank] @ saved[name].a[:rank], before[name].dense())
        assert saved[name].rank == rank + (run.job.placement.rank if name in own else 0)
    torch.testing.assert_close(of_adapter(base, out / "checkpoint-3"), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, of_adapter(base, parent.path()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_full_fine_tuning_starts_from_the_sum_in_float32(base, parent, tmp_path, precision):
    run = loop.TrainingRun(job(base, parent, "full", precision), tmp_path / "run")
    weights, update = open_weights(str(base)), read_adapter(parent.path()).factors
    names = {id(p): name.removesuffix(".weight") for name, p in run.model.named_parameters()}
    for live, master in zip(run.parameters.live, run.parameters.master, strict=True):
        name = names[id(live)]
        if name in update:
            W = weights[name].to(loading.DTYPES[precision]).float()
            assert torch.equal(master, W + update[name].dense())
            assert torch.equal(live, master.to(live.dtype))
    if precision == "float32":
        torch.testing.assert_close(logits(run.model), of_adapter(base, parent.path()), rtol=1e-4, atol=1e-4)


def test_a_lora_on_a_full_parent_is_an_adapter_of_its_folder(base, tmp_path):
    loop.train(job(base, None, "full"), tmp_path / "full")
    start = Start("full", None, tmp_path / "full", True, "hash")
    run = loop.TrainingRun(job(base, start, "lora_mlp_r2"), tmp_path / "run")
    whole = tmp_path / "full" / "checkpoint-3"
    assert torch.equal(logits(run.model), logits(AutoModelForCausalLM.from_pretrained(whole)))
    run.finish()
    assert Path(read_adapter(tmp_path / "run" / "checkpoint-3", str(whole)).base) == whole
    nested = Start("run", "checkpoint-3", tmp_path / "run", False, "hash", before=start)
    assert nested.base(str(base)) == str(whole)


class Killed(Exception):
    pass


@pytest.mark.parametrize("placement", [SAME, OTHERS[0], "full"], ids=["same", "other", "full"])
def test_a_killed_run_resumes_to_the_same_bits(base, parent, tmp_path, placement, monkeypatch):
    given = job(base, parent, placement, execution=Execution(prefix="off"))
    loop.train(given, tmp_path / "whole")
    real, times = loop.TrainingRun._one_step, []

    def step(run, batch):
        times.append(1)
        if len(times) == 3:
            raise Killed
        return real(run, batch)

    monkeypatch.setattr(loop.TrainingRun, "_one_step", step)
    monkeypatch.setattr(loop.TrainingRun, "_save_if_due", lambda run, signals, saved: run._save_state())
    with pytest.raises(Killed):
        loop.train(given, tmp_path / "out")
    monkeypatch.undo()
    loop.train(given, tmp_path / "out")
    for file in (tmp_path / "whole" / "checkpoint-3").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "out" / "checkpoint-3" / file.name).read_bytes()


# --- refused


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    other = make_model(tmp_path / "other", seed=3)
    save_adapter(tmp_path / "parent" / "checkpoint-4", other, 2, ["up_proj"], 1)
    with pytest.raises(UserError, match=r"was trained on .* whose weights differ"):
        loop.TrainingRun(job(base, as_arm(tmp_path / "parent"), "lora_mlp_r2"), tmp_path / "run")


def test_a_checkpoint_that_does_not_exist_is_refused(parent):
    lost = Start("parent", "checkpoint-9", parent.folder, False, "hash")
    with pytest.raises(UserError, match="no checkpoint-9 to start from; it has checkpoint-4"):
        lost.path()
    with pytest.raises(UserError, match="'parent' is not finished"):
        Start("parent", None, parent.folder / "nowhere", False, "hash").path()


@pytest.mark.parametrize("name", ["pissa", "salora", "ssah"])
def test_a_method_that_begins_the_factors_needs_new_ones(base, parent, tmp_path, name):
    with pytest.raises(UserError, match="factors of 'parent': give the arm another rank"):
        loop.TrainingRun(job(base, parent, SAME, methods=[{"name": name}]), tmp_path / "run")


def test_the_job_is_another_one_if_the_parent_is(base, parent, tmp_path):
    loop.train(job(base, parent, SAME), tmp_path / "run")
    other = Start("parent", None, parent.folder, False, "other")
    with pytest.raises(UserError, match=r"start\.made_by was hash, now other"):
        loop.train(job(base, other, SAME), tmp_path / "run")
    with pytest.raises(UserError, match=r"start\.arm was parent, now absent"):
        loop.train(job(base, None, SAME), tmp_path / "run")


# --- methods beside a frozen adapter


def test_methods_see_the_weight_with_the_frozen_adapter(base, parent, tmp_path):
    """Against a base into which the adapter is merged."""
    spec = {"name": "salora", "safety": "builtin:refusals,n=3", "task": "builtin:chat,n=3", "rank_safety": 4}
    placement = Placement(modules=["mlp"], rank=4, alpha=4)
    merged = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    update = read_adapter(parent.path()).factors
    for name, x in update.items():
        merged.get_submodule(name).weight.data += x.dense()
    merged.save_pretrained(tmp_path / "merged")
    loading.load_tokenizer(str(base)).save_pretrained(tmp_path / "merged")
    run = loop.TrainingRun(job(base, parent, placement, methods=[spec]), tmp_path / "run")
    other = loop.TrainingRun(job(tmp_path / "merged", None, placement, methods=[spec]), tmp_path / "other")
    [(_, sites)], [(_, plain)] = run.methods.parts, other.methods.parts
    assert sites.keys() == plain.keys() == update.keys()
    for name, site in sites.items():
        torch.testing.assert_close(site.weight, plain[name].weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(run.probe.weight(name), plain[name].weight, rtol=1e-5, atol=1e-6)
        spans = (states[name]["span"].double() for states in (run.states[0], other.states[0]))
        one, two = (span @ span.T for span in spans)
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    run.finish()
    torch.testing.assert_close(
        of_adapter(base, tmp_path / "run" / "checkpoint-3"), logits(run.model), rtol=1e-3, atol=1e-3
    )


def test_ssah_holds_the_units_of_the_parent(base, parent, tmp_path):
    """What it holds has the bits of the parent's adapter in the saved one: the new factors are zero there."""
    spec = {"name": "ssah", "safety": "builtin:refusals,n=2", "utility": "builtin:chat,n=2", "scu": 0.1}
    run = loop.TrainingRun(
        job(base, parent, Placement(modules=["mlp"], rank=4, alpha=4), methods=[spec]), tmp_path / "run"
    )
    assert torch.equal(logits(run.model), of_adapter(base, parent.path()))
    run.model.train()
    run.finish()
    before, after = (read_adapter(folder).factors for folder in (parent.path(), tmp_path / "run" / "checkpoint-3"))
    for name, held in run.states[0].items():
        change = after[name].dense() - before[name].dense()
        assert float(change.index_select(held["axis"], held["units"]).abs().max()) < 1e-6
        assert float(change.abs().max()) > 1e-4


def test_spf_trains_the_factors_of_the_parent(base, parent, tmp_path):
    spec = {"name": "spf", "safety": "builtin:refusals,n=2"}
    run = loop.TrainingRun(job(base, parent, SAME, methods=[spec]), tmp_path / "run")
    assert torch.equal(logits(run.model), of_adapter(base, parent.path()))
