"""The memory estimate against what torch allocates, and the tables of docs/guides/scaling.md against the estimate."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from places import ROOT
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lowtax.models.names import ATTENTION, MLP
from lowtax.models.placement import parse_mode
from lowtax.models.shapes import SHAPES, Lora, Shape, shape_of
from lowtax.training.memory import BUCKET, CARD, GROUP, MARGIN, Stage, first_layout, tables, training_memory
from lowtax.training.settings import Train

SCALING = ROOT / "docs/guides/scaling.md"
TINY = Shape(layers=3, hidden=48, mlp=112, heads=6, kv_heads=2, vocabulary=40)


def model_of(shape: Shape, layers: int | None = None) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers if layers is None else layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return Qwen2ForCausalLM(config)


def count(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_has_as_many_weights_as_transformers_gives_it(name: str):
    with torch.device("meta"):
        one, two = model_of(SHAPES[name], 1), model_of(SHAPES[name], 2)
    shape = SHAPES[name]
    assert count(two) - count(one) == shape.block
    assert count(one) + (shape.layers - 1) * shape.block == shape.parameters


def test_the_shape_of_a_configuration():
    with torch.device("meta"):
        for shape in (TINY, *SHAPES.values(), Shape(**{**vars(TINY), "tied": True})):
            model = model_of(shape, 1)
            model.config.num_hidden_layers = shape.layers
            assert shape_of(model.config, shape.parameters) == shape
        wide = Qwen3ForCausalLM(
            Qwen3Config(hidden_size=512, num_attention_heads=8, num_key_value_heads=4, head_dim=128)
        )
    shape = shape_of(wide.config, count(wide))
    assert shape.kv == 4 * 128
    assert shape.parameters == pytest.approx(count(wide), rel=1e-3)


def test_tied_embeddings_are_counted_once():
    shape = Shape(**{**vars(TINY), "tied": True})
    with torch.device("meta"):
        assert count(model_of(shape)) == shape.parameters == TINY.parameters - TINY.embedding


def test_the_names_of_the_models_are_their_sizes():
    billions = [round(shape.parameters / 1e9, 2) for shape in SHAPES.values()]
    assert billions == [1.78, 7.62, 14.77, 32.76]


def test_factors_are_counted_as_the_placement_counts_them():
    placement = parse_mode("lora_up_proj_only_from16_to31_r1")
    lora = Lora(placement.rank, placement.modules, 16, 31)
    assert lora.parameters(SHAPES["R1-Distill-Qwen-14B"]) == 16 * (5120 + 13824) == 303_104
    config = LoraConfig(r=4, target_modules=[*MLP, *ATTENTION])
    adapted = get_peft_model(model_of(TINY), config)
    assert adapted.get_nb_trainable_parameters()[0] == Lora(4, MLP + ATTENTION, 0, 2).parameters(TINY)


def saved_bytes(shape: Shape, layers: int, dtype: torch.dtype, lora: tuple[str, ...] | None, tokens: int) -> int:
    """Return the bytes that autograd saves in a forward pass through the decoder, without weights."""
    model = model_of(shape, layers).to(dtype)
    if lora is not None:
        get_peft_model(model, LoraConfig(r=1, target_modules=list(lora), lora_dropout=0.05))
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model.train().model(input_ids=torch.zeros(1, tokens, dtype=torch.long)).last_hidden_state
    assert result.requires_grad
    return sum(storage.nbytes() for storage in seen.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("lora", [None, ("up_proj",), ("down_proj",), ("q_proj", "o_proj"), MLP], ids=str)
def test_activations_are_what_autograd_keeps(dtype: torch.dtype, lora: tuple[str, ...] | None):
    tokens = 64
    for shape in (TINY, Shape(3, 96, 160, 3, 1, 40)):
        block = saved_bytes(shape, 3, dtype, lora, tokens) - saved_bytes(shape, 2, dtype, lora, tokens)
        assert block == shape.activation(dtype.itemsize, lora) * tokens


def test_states_are_what_training_holds():
    from lowtax.training.parameters import TrainedParameters

    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        model = model_of(TINY).to(dtype)
        trained = TrainedParameters.of(model, own_masters=True)
        optimizer = torch.optim.AdamW(trained.master)
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)).loss.backward()
        trained.collect_gradients()
        optimizer.step()
        moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
        masters = [m for live, m in zip(trained.live, trained.master, strict=True) if m is not live]
        expected = training_memory(TINY, precision=precision)
        assert expected.weights == sum(p.nbytes for p in trained.live)
        assert expected.gradients == sum(m.grad.nbytes for m in trained.master if m.grad is not None)
        assert expected.optimizer == sum(t.nbytes for t in [*moments, *masters])


@pytest.mark.parametrize("gpus", [1, 2, 8, 64])
def test_zero_is_as_deepspeed_estimates_it(gpus: int):
    """DeepSpeed 0.19 (`estimate_zero{2,3}_model_states_mem_needs`): 18 bytes per sharded weight, in ZeRO-2 two more.

    For ZeRO-3, DeepSpeed ignores that only a sub-group's gradients are float32 at a time, and the 16-bit gradients.
    """
    shape = SHAPES["R1-Distill-Qwen-32B"]
    p = shape.parameters
    two, three = (training_memory(shape, stage=stage, gpus=gpus) for stage in ("zero2", "zero3"))
    assert two.states == pytest.approx(2 * p + 18 * p / gpus)
    assert three.states == pytest.approx(16 * p / gpus + 4 * min(p / gpus, GROUP))
    assert 0.88 < three.states / (18 * p / gpus) <= 20 / 18
    assert training_memory(shape, stage="fsdp2", gpus=gpus).states == pytest.approx(16 * p / gpus)


@given(
    st.sampled_from(["none", "zero2", "zero3", "fsdp2"]),
    st.integers(1, 64),
    st.integers(1, 10_000),
    st.booleans(),
    st.sampled_from([None, Lora(4, MLP, 5, 20)]),
)
def test_what_must_hold_of_any_setting(stage: Stage, gpus: int, tokens: int, checkpointing: bool, lora: Lora | None):
    shape = SHAPES["R1-Distill-Qwen-7B"]
    given_ = {"stage": stage, "lora": lora, "checkpointing": checkpointing}
    here = training_memory(shape, gpus=gpus, tokens=tokens, **given_)
    assert here.gpu > 0
    assert here.fits == (here.gpu * MARGIN <= CARD)
    assert training_memory(shape, gpus=gpus, tokens=tokens + 1, **given_).gpu > here.gpu
    if stage != "none":
        more = training_memory(shape, gpus=gpus + 1, tokens=tokens, **given_)
        assert more.states < here.states
        offloaded = training_memory(shape, gpus=gpus, tokens=tokens, offload="all", **given_)
        assert stage == "fsdp2" or offloaded.states == 0
        assert stage in ("fsdp2", "zero2") or offloaded.host == pytest.approx(gpus * here.states)
    if not checkpointing and lora is None:
        assert training_memory(shape, gpus=gpus, tokens=tokens, stage=stage, checkpointing=True).gpu < here.gpu
    if lora is None and gpus <= 8:
        assert (
            training_memory(shape, gpus=gpus, tokens=tokens, **{**given_, "lora": Lora(1, MLP, 5, 20)}).gpu < here.gpu
        )


def test_layers_below_the_first_trained_one_keep_nothing():
    shape = SHAPES["R1-Distill-Qwen-14B"]
    low, high = (training_memory(shape, lora=Lora(1, ("up_proj",), i, 47), tokens=1000) for i in (0, 40))
    assert high.activations * 6 == low.activations
    assert high.activations == 8 * shape.activation(2, ("up_proj",)) * 1000


@pytest.mark.parametrize("lora", [None, Lora(4, MLP, 5, 20)])
@pytest.mark.parametrize("offload", ["none", "all"])
def test_methods_keep_whole_copies_where_states_are_sharded(lora: Lora | None, offload: str):
    """The copies are on the GPU of every process, wherever the states are."""
    shape = SHAPES["R1-Distill-Qwen-7B"]
    trained = lora.parameters(shape) if lora else shape.parameters
    for stage, copies in {"none": 0, "zero2": 8 * trained, "zero3": 8 * trained, "fsdp2": 8 * trained}.items():
        for gpus in (2, 8):
            given_ = {"stage": stage, "gpus": gpus, "lora": lora, "offload": offload}
            plain, seen = training_memory(shape, **given_), training_memory(shape, methods=True, **given_)
            assert seen.gpu - plain.gpu == pytest.approx(copies, abs=100)
            assert seen.host == plain.host


def test_buffers_are_no_larger_than_the_model():
    small = training_memory(TINY, stage="zero3", gpus=2)
    assert small.working < 8 * TINY.parameters < 2 * BUCKET


def test_the_tables_of_the_documentation_are_the_arithmetic():
    text = SCALING.read_text()
    for name, table in tables().items():
        match = re.search(rf"<!-- {name} -->\n(.*?)\n\n", text, flags=re.DOTALL)
        assert match, f"docs/guides/scaling.md has no table {name}"
        assert match[1] == table, f"table {name} is out of date: python -m lowtax.training.memory prints the new one"


def test_torch_is_not_needed():
    code = (
        "import sys, lowtax.training.memory; assert lowtax.training.memory.tables(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def block(name: str) -> str:
    """Return a code block of docs/guides/scaling.md."""
    match = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", SCALING.read_text(), flags=re.DOTALL)
    assert match, name
    return match[1]


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_deepspeed_file_of_the_documentation_is_accepted(tmp_path: Path, precision: str):
    from lowtax.training.zero_config import ds_config

    (tmp_path / "zero3.json").write_text(block("zero3.json"))
    config = ds_config(tmp_path / "zero3.json", Train(epochs=1, batch_size=2), precision, 2)
    assert config["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert config["gradient_clipping"] == 1.0
    assert ("bf16" in config) == (precision == "bfloat16")


def test_the_fsdp_file_of_the_documentation_is_one_of_accelerate(tmp_path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    (tmp_path / "fsdp2.yaml").write_text(block("fsdp2.yaml"))
    config = load_config_from_file(str(tmp_path / "fsdp2.yaml"))
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.distributed_type == "FSDP"


@pytest.mark.parametrize(
    ("name", "lora", "words"),
    [
        ("R1-Distill-Qwen-1.5B", None, "1 GPU"),
        ("R1-Distill-Qwen-7B", None, "2 GPUs, zero3, checkpointing"),
        ("R1-Distill-Qwen-14B", None, "4 GPUs, zero3, checkpointing"),
        ("R1-Distill-Qwen-32B", None, "2 GPUs, zero3, checkpointing, optimizer on the host"),
        ("R1-Distill-Qwen-14B", Lora(16, MLP, 0, 47), "1 GPU"),
        ("R1-Distill-Qwen-32B", Lora(1, ("up_proj",), 21, 42), "1 GPU, checkpointing"),
    ],
)
def test_the_first_layout_that_fits_is_that_of_the_tables(name: str, lora: Lora | None, words: str):
    """docs/guides/scaling.md has the same for rows of 2,048 tokens a GPU."""
    layout = first_layout(SHAPES[name], lambda gpus: 2048, lora)
    assert str(layout) == words
    assert layout is not None
    assert layout.as_json()["gpu"] == layout.memory.gpu
    assert "1 GPU" not in str(first_layout(SHAPES[name], lambda gpus: 10**6 // gpus, lora))
    checkpointed = first_layout(SHAPES[name], lambda gpus: 2048, lora, checkpointing=True)
    assert checkpointed is not None
    assert checkpointed.checkpointing
