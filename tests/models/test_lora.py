"""A placement in a real tiny model: which modules, which shapes, which gradients; and all that without weights."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from places import ROOT
from tiny import VOCABULARY, make_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from lowtax.common.errors import UserError
from lowtax.models import loading
from lowtax.models.lora import adapt, first_trained_layer, trainable_summary
from lowtax.models.names import ATTENTION, MLP
from lowtax.models.placement import ALIASES, Placement, parse_mode

LAYERS = 5
IDS = torch.arange(2, 14)[None]
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
DOCS = ROOT / "docs/reference/placements.md"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make_model(root / kind, kind, layers=LAYERS) for kind in ("llama", "qwen2", "qwen3")}


@pytest.fixture(scope="module")
def base(folders: dict[str, Path]) -> Callable[[str], PreTrainedModel]:
    loaded = {kind: loading.load_model(str(folder)) for kind, folder in folders.items()}
    return lambda kind: copy.deepcopy(loaded[kind])


@pytest.fixture
def llama(base: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return base("llama")


def expert_model(kind: str = "qwen3") -> PreTrainedModel:
    """A mixture of four experts in four layers; of qwen3 the first layer is dense, and qwen2 has a shared expert."""
    kinds = {
        "qwen3": (Qwen3MoeConfig, {"moe_intermediate_size": 16, "num_experts": 4, "mlp_only_layers": [0]}),
        "qwen2": (Qwen2MoeConfig, {"moe_intermediate_size": 16, "num_experts": 4}),
        "mixtral": (MixtralConfig, {"num_local_experts": 4}),
    }
    config, own = kinds[kind]
    shape = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config(**shape, **heads, **own)).eval()


def adapted_modules(model: torch.nn.Module) -> set[str]:
    found = (name for name, module in model.named_modules() if isinstance(module, LoraLayer))
    return {name.removeprefix("base_model.model.") for name in found}


def fill(model: torch.nn.Module, scale: float = 0.1) -> None:
    """Random trained weights, so that none has the zeros of its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(scale * torch.randn(p.shape, generator=generator))


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def reference_modules(mode: str, names: list[str]) -> set[str]:
    """What the reference's code gives to PEFT for a mode string, matched as PEFT matches a list: by suffix."""
    if mode.startswith("lora_qkvo_mlp_r"):
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    elif between := re.fullmatch(r"lora_(.+?)_only_from(\d+)_to(\d+)_r\d+", mode):
        inner = ["gate_proj", "up_proj", "down_proj"] if between[1] == "mlp" else [between[1]]
        targets = [f"layers.{i}.mlp.{m}" for i in range(int(between[2]), int(between[3]) + 1) for m in inner]
    elif one := re.fullmatch(r"lora_(.+?)_only_r\d+", mode):
        targets = [one[1]]
    else:
        assert re.match(r"lora_mlp_(orthogonal_.*)?r\d", mode)
        targets = ["gate_proj", "up_proj", "down_proj"]
    return {name for name in names if any(name == t or name.endswith(f".{t}") for t in targets)}


REGULARISED = [alias.form for alias in ALIASES if "orthogonal" in alias.form]
MODES = [
    "lora_qkvo_mlp_r3",
    "lora_mlp_r2",
    *[f"lora_{m}_only_r2" for m in MLP + ATTENTION],
    *[f"lora_{m}_only_from1_to3_r1" for m in (*MLP, "mlp")],
    *[form.replace("R", "4").replace("B", "0.1").replace("K", "8") for form in REGULARISED],
]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_adapts_what_the_references_code_would(mode: str, kind: str, base):
    model = base(kind)
    expected = reference_modules(mode, linear_names(model))
    assert expected
    adapted = adapt(model, parse_mode(mode), "ref")
    assert adapted_modules(adapted) == expected
    rank = int(re.search(r"_r(\d+)", mode)[1])
    scales = {(m.r["default"], m.scaling["default"]) for m in adapted.modules() if isinstance(m, LoraLayer)}
    assert scales == {(rank, 16 / rank)}


def test_where_the_reference_fails_or_adapts_nothing_a_mode_does_what_it_says(base):
    for mode, same in (
        ("lora_mlp_only_r2", "lora_mlp_r2"),
        ("lora_q_proj_only_from1_to2_r1", None),
    ):
        names = linear_names(base("qwen2"))
        assert reference_modules(mode, names) == set()
        expected = reference_modules(same, names) if same else {f"model.layers.{i}.self_attn.q_proj" for i in (1, 2)}
        assert adapted_modules(adapt(base("qwen2"), parse_mode(mode), "ref")) == expected


def test_full_trains_every_weight(llama: PreTrainedModel):
    model = adapt(llama, parse_mode("full"), "ref")
    assert model is llama
    assert all(p.requires_grad for p in model.parameters())
    assert first_trained_layer(model) == 0


@pytest.mark.parametrize("mode", ["lora_up_proj_only_from2_to3_r2", "lora_qkvo_mlp_r1"])
def test_gradients_are_on_the_factors_of_the_placement_and_nowhere_else(mode: str, llama: PreTrainedModel):
    model = adapt(llama, parse_mode(mode), "ref")
    fill(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    wanted = reference_modules(mode, [n.removeprefix("base_model.model.") for n, _ in model.named_modules()])
    for name, p in model.named_parameters():
        if ".lora_" in name:
            assert name.split(".lora_")[0].removeprefix("base_model.model.") in wanted
            assert p.grad.abs().sum() > 0
        else:
            assert p.grad is None


def test_factors_start_at_the_model_itself_in_float32_and_by_the_seed(base):
    def factors(seed: int) -> dict[str, Tensor]:
        model = base("llama").bfloat16()
        before = model(input_ids=IDS).logits
        torch.manual_seed(seed)
        model = adapt(model, Placement(rank=2), "some/model").eval()
        assert torch.equal(model(input_ids=IDS).logits, before)
        assert model.peft_config["default"].base_model_name_or_path == "some/model"
        return {n: p for n, p in model.named_parameters() if p.requires_grad}

    with torch.random.fork_rng(devices=[]):
        one, again, other = factors(0), factors(0), factors(1)
    assert {p.dtype for p in one.values()} == {torch.float32}
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not any(torch.equal(one[n], other[n]) for n in one if "lora_A" in n)


def scales(model: torch.nn.Module) -> dict[str, tuple[int, float]]:
    return {
        name.removeprefix("base_model.model.model.layers."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def test_ranks_alpha_and_rslora(base):
    fields = {"modules": ["up_proj", "down_proj"], "layers": (1, 2), "rank": 2}
    ranks = {"layers.1.mlp.up_proj": 8, "up_proj": 4}
    names = ("1.mlp.up_proj", "1.mlp.down_proj", "2.mlp.up_proj", "2.mlp.down_proj")

    def found(**more: object) -> list[tuple[int, float]]:
        chosen = scales(adapt(base("llama"), Placement(**fields, **more), "ref"))
        return [chosen[name] for name in names]

    assert found() == [(2, 8.0)] * 4
    assert found(ranks=ranks) == [(8, 2.0), (2, 8.0), (4, 4.0), (2, 8.0)]
    assert found(ranks=ranks, alpha_per_rank=3) == [(8, 3.0), (2, 3.0), (4, 3.0), (2, 3.0)]
    assert found(ranks={"up_proj": 4}, alpha=8, rslora=True) == [(4, 4.0), (2, 8 / 2**0.5)] * 2
    assert found(alpha_per_rank=0.5) == [(2, 0.5)] * 4


def test_saved_and_loaded_by_peft_alone(base, tmp_path: Path):
    # In the order of the alphabet, in which PEFT writes patterns, the first of these would hide the second.
    ranks = {"mlp.up_proj": 3, "layers.1.mlp.(up|down)_proj": 2}
    model = adapt(base("qwen2"), Placement(modules=["up_proj", "down_proj"], ranks=ranks, alpha_per_rank=2), "ref")
    fill(model)
    model.eval().save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(base("qwen2"), str(tmp_path)).eval()
    assert scales(loaded) == scales(model)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["lora_alpha"], type(config["lora_alpha"])) == (2, int)


@pytest.mark.parametrize(
    ("placement", "lowest"),
    [
        (Placement(modules="up_proj", layers=(2, 3)), 2),
        (Placement(modules=["q_proj", "lm_head"], layers=(2, 3)), 0),
        (Placement(modules="o_proj", layers="4, 1"), 1),
        (Placement(), 0),
    ],
)
def test_first_trained_layer(placement: Placement, lowest: int, base):
    assert first_trained_layer(adapt(base("qwen2"), placement, "ref")) == lowest
    assert first_trained_layer(base("qwen2").requires_grad_(False)) == 0


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_one_of_two_tied_weights_is_refused_and_an_untied_one_is_not(name: str, base):
    with pytest.raises(
        UserError, match=rf"ties model\.embed_tokens and lm_head, and a LoRA on .*{name} would move one"
    ):
        adapt(base("llama"), Placement(modules=["up_proj", name]), "ref")
    assert any(found.endswith(name) for found in adapted_modules(adapt(base("qwen2"), Placement(modules=name), "ref")))


@pytest.mark.parametrize("kind", ["qwen3", "mixtral", "qwen2"])
@pytest.mark.parametrize("parameters", [EXPERTS, EXPERTS[:1], EXPERTS[1:]])
def test_experts_get_factors_each_of_the_rank(kind: str, parameters: tuple[str, ...], tmp_path: Path):
    model = expert_model(kind)
    plain = model(input_ids=IDS).logits
    placement = Placement(parameters=parameters, layers=(2, 3), rank=2, dropout=0)
    adapted = adapt(copy.deepcopy(model), placement, "ref")
    assert first_trained_layer(adapted) == 2
    fill(adapted)
    logits = adapted.eval()(input_ids=IDS).logits
    by_hand = copy.deepcopy(model)
    for layer in (2, 3):
        wrapper = adapted.base_model.model.model.layers[layer].mlp.experts
        while isinstance(wrapper, LoraLayer):
            weight = getattr(by_hand.model.layers[layer].mlp.experts, wrapper.parameter_name)
            experts, out, inp = weight.shape
            A = wrapper.lora_A["default"].weight.view(experts, 2, inp)
            B = wrapper.lora_B["default"].weight.view(out, 2, experts).permute(2, 0, 1)
            weight.data += 8 * (B @ A).detach()
            wrapper = wrapper.base_layer
    torch.testing.assert_close(logits, by_hand(input_ids=IDS).logits, atol=1e-5, rtol=1e-4)
    assert (logits - plain).abs().max() > 0.01
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    assert torch.equal(PeftModel.from_pretrained(model, str(tmp_path)).eval()(input_ids=IDS).logits, logits)


def test_experts_beside_attention_with_a_rank_of_their_own():
    placement = Placement(
        parameters=EXPERTS[:1], modules="attention", layers=(1, 2), rank=3, ranks={"gate_up_proj": 1}, dropout=0
    )
    model = adapt(expert_model().bfloat16(), placement, "ref")
    factors = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in factors.values()} == {torch.float32}
    assert {tuple(p.shape) for n, p in factors.items() if "experts.lora_A" in n} == {(4 * 1, 32)}
    assert {tuple(p.shape) for n, p in factors.items() if "q_proj.lora_A" in n} == {(3, 32)}


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (Placement(layers=(1, 2)), r"'gate_proj' in layers 1\.\.2: it is in layers 0\."),
        (Placement(modules="gate"), r"experts are fused: name mlp\.experts\.down_proj or mlp\.experts\.gate_up_proj"),
        (
            Placement(modules="up_proj", dropout=0),
            r"PEFT cannot place this LoRA: a qwen3_moe model has fused experts, .*modules: \[attention\]",
        ),
        (Placement(dropout=0), r"but PEFT adapts .*layers\.1\.mlp\.experts.*modules: \[attention\]"),
    ],
)
def test_names_that_a_model_of_experts_has_no_modules_for(placement: Placement, said: str):
    with pytest.raises(UserError, match=said):
        adapt(expert_model(), placement, "ref")


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["llama", "qwen2", "qwen3"]),
    modules=st.lists(st.sampled_from([*ATTENTION, *MLP]), min_size=1, unique=True),
    ends=st.tuples(st.integers(0, LAYERS - 1), st.integers(0, LAYERS - 1)).map(sorted),
    rank=st.integers(1, 9),
)
def test_touched_counts_what_peft_makes(kind: str, modules: list[str], ends: list[int], rank: int, folders, base):
    placement = Placement(modules=modules, layers=ends, rank=rank, ranks={modules[0]: rank + 1})
    model = base(kind)
    total = sum(p.numel() for p in model.parameters())
    found = trainable_summary(str(folders[kind]), placement)
    adapted = adapt(model, placement, "ref")
    assert (found.trainable_parameters, found.total_parameters) == (count(adapted), total)
    assert found.share == count(adapted) / total
    assert set(found.modules) == adapted_modules(adapted)
    assert found.layers == list(range(ends[0], ends[1] + 1))


@pytest.mark.parametrize(
    "placement",
    [
        parse_mode("full"),
        Placement(modules="all-linear", rank=2),
        Placement(modules=["lm_head", "embed_tokens", "k_proj"], layers=(1, 1), rank=3),
    ],
)
def test_touched_for_what_lies_outside_the_layers_too(placement: Placement, folders, base):
    found = trainable_summary(str(folders["qwen2"]), placement)
    assert found.trainable_parameters == count(adapt(base("qwen2"), placement, "ref"))
    assert ("lm_head" in found.modules) == (placement.modules != ("all-linear",))
    assert ("1 x lm_head" in found.describe().splitlines()) == ("lm_head" in found.modules)
    if placement.kind == "full":
        assert (found.share, found.layers) == (1.0, list(range(LAYERS)))
        assert "model.norm" in found.modules


def test_touched_experts(tmp_path: Path):
    model = expert_model()
    model.config.save_pretrained(tmp_path)
    placement = Placement(parameters=EXPERTS, layers=(1, 3), rank=2, dropout=0)
    found = trainable_summary(str(tmp_path), placement)
    assert found.trainable_parameters == count(adapt(model, placement, "ref")) == 3 * 4 * 2 * (32 + 32 + 32 + 16)
    assert (found.modules, len(found.parameters), found.layers) == ([], 6, [1, 2, 3])


def config_only(folder: Path, config: LlamaConfig | Qwen2Config) -> str:
    config.save_pretrained(folder)
    return str(folder)


def test_touched_needs_the_configuration_alone_even_of_a_large_model(tmp_path: Path):
    config = Qwen2Config(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=48,
        num_attention_heads=40,
        num_key_value_heads=8,
        vocab_size=152064,
    )
    found = trainable_summary(config_only(tmp_path, config), parse_mode("lora_up_proj_only_from16_to31_r1"))
    assert found.trainable_parameters == 16 * (5120 + 13824)  # 303,104, as of DeepSeek-R1-Distill-Qwen-14B
    assert found.total_parameters == 14_770_033_664
    assert found.layers == list(range(16, 32))
    assert set(found.as_json()) >= {"modules", "trainable_parameters", "share"}
    assert json.loads(json.dumps(found.as_json()))["modules"][0] == "model.layers.16.mlp.up_proj"
    assert found.describe() == "16 x mlp.up_proj in layers 16..31\n303,104 of 14,770,033,664 parameters (0.0021%)"
    assert all(line in DOCS.read_text() for line in found.describe().splitlines())


def test_touched_refuses_what_is_not_there(tmp_path: Path, folders: dict[str, Path]):
    with pytest.raises(UserError, match="could not be loaded"):
        trainable_summary(str(tmp_path), Placement())
    with pytest.raises(UserError, match="There is no model"):
        trainable_summary(str(tmp_path / "absent"), Placement())
    with pytest.raises(UserError, match=r"'up_prj' in layers 0\.\.4; did you mean 'up_proj'"):
        trainable_summary(str(folders["llama"]), Placement(modules="up_prj"))
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(UserError, match="could not be loaded"):
        trainable_summary(str(tmp_path), Placement())
