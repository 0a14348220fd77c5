"""RRS: its gradient is that of the formula, states move towards the refused ones, and a killed run resumes."""

import json
from pathlib import Path

import pytest
import torch
from progress import collected
from tiny import make_model

from lowtax.common.errors import UserError
from lowtax.data import steering
from lowtax.data.conversations import Conversation
from lowtax.methods.loading import load_all
from lowtax.methods.rrs import features
from lowtax.models import loading
from lowtax.models.placement import parse_mode
from lowtax.training import loop
from lowtax.training.job import Job
from lowtax.training.settings import Execution, Train

ROWS = [Conversation(f"Do {i}.", "No.", f"I can't do {i}.") for i in range(4)]


def spec(folder: Path, **changes: object) -> dict[str, object]:
    for name, word in (("harmful", "Break"), ("ordinary", "Paint")):
        rows = [{"prompt": f"{word} thing {i}.", "thought": f"Thing {i}.", "answer": "Well."} for i in range(6)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {name: str(folder / f"{name}.jsonl") for name in ("harmful", "ordinary")}
    return {"name": "rrs", "layers": [1], "rows": 6, "share": 0.5, **sources} | changes


def job(model: Path, method: dict[str, object], steps: int = 30) -> Job:
    return Job(
        model=str(model),
        placement=parse_mode("lora_mlp_r2").model_copy(update={"dropout": 0.0}),
        settings=Train(steps=steps, batch_size=2, lr=5e-3, warmup_steps=0, weight_decay=0.0, max_grad_norm=1e6),
        seed=0,
        precision="float32",
        rows=ROWS,
        methods=[method],
        execution=Execution(save_state_minutes=1e-9),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("m"), layers=3)


def last_states(run: loop.TrainingRun, prompts: list[str], layer: int) -> torch.Tensor:
    """The states after a layer at the end of each prompt, by transformers alone."""
    tokenizer, rows = loading.load_tokenizer(run.job.model), []
    inner = run.model.base_model.model
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        rows.append(inner(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layer + 1][0, -1])
    return torch.stack(rows)


def test_target_features_and_gradient_are_those_of_the_formula(tmp_path: Path, model: Path):
    run = loop.TrainingRun(job(model, spec(tmp_path, hold=0.5)), tmp_path / "out")
    run.model.eval()
    sources = (str(tmp_path / f"{name}.jsonl") for name in ("harmful", "ordinary"))
    harmful, ordinary = ([row.prompt for row in run.probe.conversations(source)] for source in sources)
    with torch.no_grad():
        refused = last_states(run, [steering.steered(p, steering.INSTRUCTIONS["refuse"]) for p in harmful], 1)
        held = last_states(run, ordinary, 1)
    goal = run.states[0]["targets"]["1"]
    torch.testing.assert_close(goal["target"], refused.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(goal["held"], held, atol=1e-5, rtol=1e-4)
    mask = features(refused, held, 0.5)
    assert torch.equal(goal["mask"], mask)
    assert mask.sum() == 16
    for name, p in run.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    run.methods.after_step(run.states, run.probe, 0, lambda: None)
    moved = ((last_states(run, harmful, 1) - refused.mean(0)) * mask).square().mean()
    loss = moved + 0.5 * (last_states(run, ordinary, 1) - held).square().mean()
    assert run.states[0]["loss"] == pytest.approx(loss.detach().item(), rel=1e-4)
    run.model.zero_grad()
    loss.backward()
    sites = run.methods.parts[0][1]
    compared = 0
    for name, site in sites.items():
        for number, p in enumerate(site.moved()):
            pull = run.states[0]["gradients"][f"{name}:{number}"]
            if p.grad is not None:
                torch.testing.assert_close(pull, p.grad, atol=1e-5, rtol=1e-3)
                compared += 1
    assert compared >= 10


def test_states_move_to_the_target_and_the_run_resumes_to_the_same_bits(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
):
    method = spec(tmp_path)
    before = loop.TrainingRun(job(model, method), tmp_path / "start").states[0]["loss"]
    with collected() as lines:
        loop.train(job(model, method), tmp_path / "whole")
    after = float("\n".join(lines).split("the loss of the representations is ")[-1].split("\n")[0])
    assert after < 0.7 * before
    one_step, steps = loop.TrainingRun._one_step, iter(range(100))

    def killed(run: loop.TrainingRun, batch: list[int]) -> dict[str, object]:
        if next(steps) == 11:
            raise KeyboardInterrupt
        return one_step(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingRun, "_one_step", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.train(job(model, method), tmp_path / "cut")
    loop.train(job(model, method), tmp_path / "cut")
    weights = [
        (tmp_path / run / "checkpoint-30" / "adapter_model.safetensors").read_bytes() for run in ("whole", "cut")
    ]
    assert weights[0] == weights[1]


def test_the_end_of_the_thought_is_another_position(tmp_path: Path, model: Path):
    run = loop.TrainingRun(job(model, spec(tmp_path, position="thought"), steps=1), tmp_path / "out")
    source = str(tmp_path / "harmful.jsonl")
    thought, prompt = (run.probe.states(source, 1, position) for position in ("thought", "prompt"))
    assert thought.shape == prompt.shape == (6, 32)
    assert not torch.allclose(thought, prompt)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layers": [7]}, "The model has the layers 0 to 2, and a method names layer 7"),
        ({"position": "thought", "ordinary": "builtin:harmful,answers=fixed,n=4"}, "position: thought needs rows with"),
    ],
)
def test_layers_and_rows_that_are_not_there(tmp_path: Path, model: Path, changes: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        loop.TrainingRun(job(model, spec(tmp_path, **changes), steps=1), tmp_path / "out")


def test_fields_are_checked():
    with pytest.raises(UserError, match="layers"):
        load_all([{"name": "rrs"}])
    with pytest.raises(UserError, match="share"):
        load_all([{"name": "rrs", "layers": [1], "share": 0}])
