"""A model over several GPUs: where its layers go, that nothing else changes, and that no operation mixes devices.

There is no GPU here. Values are compared on a CPU that is given as several devices, and devices by fake tensors.
"""

import itertools
import random
from pathlib import Path

import fake_cards
import pytest
import torch
from fake_cards import without_values
from peft import PeftModel
from progress import collected
from safetensors.torch import load_file
from tiny import ARCHITECTURES, make_model, save_adapter
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from lowtax.common.errors import UserError
from lowtax.data.conversations import Conversation
from lowtax.engines.base import Request
from lowtax.engines.hf.engine import HF
from lowtax.engines.hf.kv_cache import RoomyCache
from lowtax.engines.hf.row_adapters import RowAdapters
from lowtax.models import layer_split, loading
from lowtax.models.layer_split import divide, moved, places
from lowtax.models.lora import adapt
from lowtax.models.placement import Placement, parse_mode
from lowtax.training.encoding import Example
from lowtax.training.job import Job
from lowtax.training.loop import TrainingRun, train
from lowtax.training.objective import SLICE_BYTES, Objective, hidden_before
from lowtax.training.packing import pack, use_packed_attention
from lowtax.training.settings import Execution, Train

CPUS = [torch.device("cpu")] * 3


def fullest(sizes: list[int], beside: int, chosen: list[int], count: int) -> int:
    loads = [beside, *[0] * (count - 1)]
    for size, place in zip(sizes, chosen, strict=True):
        loads[place] += size
    return max(loads)


def test_layers_are_balanced_by_bytes_in_their_order():
    assert places([10] * 8, 0, 2) == [0] * 4 + [1] * 4
    assert places([10] * 8, 20, 2) == [0] * 3 + [1] * 5
    assert places([10] * 4, 1000, 2) == [1] * 4
    assert places([10, 10], 0, 8) == [0, 1]
    rng = random.Random(0)
    for _ in range(100):
        sizes, beside = [rng.randint(1, 20) for _ in range(rng.randint(1, 7))], rng.randint(0, 30)
        count = rng.randint(2, 4)
        chosen = places(sizes, beside, count)
        assert chosen == sorted(chosen)
        assert max(chosen) < count
        least = min(
            fullest(sizes, beside, list(other), count)
            for other in itertools.product(range(count), repeat=len(sizes))
            if list(other) == sorted(other)
        )
        assert fullest(sizes, beside, chosen, count) == least


def test_fewer_than_two_gpus_are_refused(tiny_model: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"this process sees none: leave it out, or show it more by CUDA_VISIBLE"):
        TrainingRun(job(tiny_model, layers_over_gpus=True), tmp_path)


@pytest.mark.parametrize(
    ("execution", "methods", "precision", "words"),
    [
        ({"compile": True}, [], "float32", "execution.compile"),
        ({"release_gradients": True}, [], "float32", "execution.release_gradients"),
        ({}, [{"name": "orthogonal", "beta": 0.1, "k": 2}], "float32", "methods that act in training"),
        ({}, [], "nf4", "precision nf4"),
    ],
)
def test_what_needs_the_whole_model_is_refused(
    tiny_model: Path,
    tmp_path: Path,
    execution: dict[str, bool],
    methods: list[dict[str, object]],
    precision: str,
    words: str,
):
    refused = job(tiny_model, precision, methods, layers_over_gpus=True, **execution)
    with pytest.raises(UserError, match=f"does not go with {words}: leave one of them out"):
        TrainingRun(refused, tmp_path)


def job(
    base: Path, precision: str = "float32", methods: list[dict[str, object]] | None = None, **execution: bool
) -> Job:
    rows = [Conversation(f"What is {i} + {i * i}?", None, f"It is {i + i * i}, I think.") for i in range(6)]
    return Job(
        model=str(base),
        placement=parse_mode("lora_up_proj_only_from2_to3_r2"),
        settings=Train(lr=1e-2, steps=6, batch_size=3),
        seed=0,
        precision=precision,
        rows=rows,
        methods=methods or [],
        execution=Execution(**execution),
    )


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama ties its embeddings, Qwen3 does not."""
    return make_model(tmp_path_factory.mktemp(request.param), request.param, layers=5)


def test_training_and_logits_are_those_of_the_undivided_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(layer_split, "gpus", lambda: CPUS)
    train(job(base), tmp_path / "whole")
    with collected() as lines:
        train(job(base, layers_over_gpus=True), tmp_path / "divided")
    assert any("5 layers are divided over 3 devices: " in line for line in lines)
    assert any("hidden states below layer 2" in line for line in lines)
    one, other = (
        load_file(tmp_path / name / "checkpoint-6" / "adapter_model.safetensors") for name in ("whole", "divided")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    whole, divided = loading.load_model(str(base)), divide(loading.load_model(str(base)), CPUS)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(whole(input_ids=ids).logits, divided(input_ids=ids).logits)


def test_replies_are_those_of_the_undivided_model(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adapter = save_adapter(tmp_path / "a", base, 2, ["up_proj", "q_proj"], seed=1)
    requests = [
        Request(f"{i}{a}", ({"role": "user", "content": "Why? " * (i + 1)},), a, 8 + i)
        for i in range(4)
        for a in (None, adapter)
    ]
    whole = {c.id: c for c in HF(str(base), "float32", 4).generate(requests)}
    monkeypatch.setattr(
        layer_split, "load_where_it_fits", lambda ref, precision: divide(loading.load_model(ref, precision), CPUS)
    )
    assert {c.id: c for c in HF(str(base), "float32", 4).generate(requests)} == whole


# --- on fake GPUs


@pytest.fixture
def cards() -> list[torch.device]:
    return fake_cards.cards()


def make_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.tensor make fake tensors of zeros, on a CPU first, which is all that it can do here."""
    stock = torch.tensor

    def made(data: object, dtype: torch.dtype | None = None, device: torch.device | None = None) -> torch.Tensor:
        real = stock(data, dtype=dtype)
        return torch.zeros(real.shape, dtype=real.dtype).to(device or "cpu")

    monkeypatch.setattr(torch, "tensor", made)


def fake(kind: str) -> PreTrainedModel:
    config_class, model_class, own = ARCHITECTURES[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return model_class(config_class(vocab_size=300, num_hidden_layers=9, **sizes, **own)).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_no_operation_of_a_training_pass_mixes_gpus(
    kind: str, checkpointed: bool, cards: list[torch.device], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(SLICE_BYTES, "card", 1 << 20)
    model = fake(kind)
    adapted = adapt(model, Placement(modules=("up_proj",), rank=2), "base").train()
    with FakeTensorMode() as mode:
        without_values(model, mode)
        divide(model, cards)
        on_first = pack([Example([1, 2, 3], [4, 5, 6, 7]), Example([8, 9], [10, 11])]).to(cards[0])
        embedded, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert (embedded is head) == (kind == "llama")
        assert {embedded.device, head.device, model.device} == {cards[0]}
        assert {layer.mlp.up_proj.weight.device for layer in model.model.layers} == set(cards)
        use_packed_attention(model)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        objective = Objective(adapted)
        assert objective(on_first).device == cards[0]
        entering = hidden_before(objective, on_first, 3)
        assert objective(on_first, entering.to(cards[0]), 3).device == cards[0]
        assert {p.device for p in adapted.parameters() if p.requires_grad} == set(cards)
        objective.direct = False
        assert objective(on_first).device == cards[0]


def test_a_pass_that_mixes_gpus_is_noticed(cards: list[torch.device]):
    with FakeTensorMode():
        model, ids = divide(fake("llama"), cards), torch.ones(1, 4, dtype=torch.long).to(cards[0])
        assert model(input_ids=ids, use_cache=False).logits.device == cards[0]
        for layer in model.model.layers:
            layer._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError):
            model(input_ids=ids, use_cache=False)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(2).to(cards[0]) + torch.ones(2).to(cards[1])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_no_operation_of_sampling_mixes_gpus(kind: str, cards: list[torch.device], monkeypatch: pytest.MonkeyPatch):
    make_there(monkeypatch)
    with FakeTensorMode(), torch.no_grad():
        model = divide(fake(kind), cards)
        cache = RoomyCache(config=model.config)
        ids = torch.ones(3, 6, dtype=torch.long).to(cards[0])
        for width in (6, 1, 1):
            mask = torch.ones(3, 6, dtype=torch.long).to(cards[0])
            logits = model(
                input_ids=ids[:, :width],
                attention_mask=mask if width > 1 else None,
                past_key_values=cache,
                logits_to_keep=torch.tensor([-1]),
            ).logits
            assert logits.device == cards[0]
        assert {layer.keys.device for layer in cache.layers} == set(cards)
        rows = torch.tensor([0, 2]).to(cards[0])
        cache.batch_select_indices(rows)
        joined = RoomyCache.of([cache], [(rows, 1)], 7)
        assert [layer.keys.device for layer in joined.layers] == [
            layer.mlp.up_proj.weight.device for layer in model.model.layers
        ]


def test_rows_of_several_adapters_are_on_the_device_of_their_layer(
    base: Path, tmp_path: Path, cards: list[torch.device], monkeypatch: pytest.MonkeyPatch
):
    folders = [save_adapter(tmp_path / name, base, 1, ["up_proj"], seed=1) for name in "ab"]
    model = PeftModel.from_pretrained(loading.load_model(str(base)), folders[0], adapter_name="a")
    model.load_adapter(folders[1], adapter_name="b")
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    make_there(monkeypatch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in layer.modules():
            for name, p in list(module._parameters.items()):
                if p is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(p.shape).to(cards[1]), False)
        with RowAdapters(model).of(["a", "b", "a"], cards[0]):
            assert layer(torch.ones(3, 2, 32).to(cards[1])).device == cards[1]


def test_inputs_of_every_shape_are_moved(cards: list[torch.device]):
    with FakeTensorMode():
        layout = pack([Example([1, 2], [3])]).layout
        cache, x = RoomyCache(), torch.ones(2)
        value = {"a": (x, [x]), "layout": layout, "cache": cache, "none": None, "number": 3}
        there = moved(value, cards[1])
        assert there["a"][0].device == there["a"][1][0].device == there["layout"].pad.device == cards[1]
        assert there["layout"].callers is layout.callers
        assert there["cache"] is cache
        assert (there["none"], there["number"]) == (None, 3)
