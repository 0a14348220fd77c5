"""Placement: mode strings, and which modules of a model they choose."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtax.errors import UserError
from lowtax.placement import ATTENTION, MLP, Placement, parse_mode

LAYERS = 4
NAMES = [f"model.layers.{i}.self_attn.{m}" for i in range(LAYERS) for m in ATTENTION]
NAMES += [f"model.layers.{i}.mlp.{m}" for i in range(LAYERS) for m in MLP]
NAMES += ["lm_head"]


@pytest.mark.parametrize(
    ("mode", "modules", "layers", "rank"),
    [
        ("lora_qkvo_mlp_r16", ATTENTION + MLP, None, 16),
        ("lora_mlp_r4", MLP, None, 4),
        ("lora_up_proj_only_r1", ("up_proj",), None, 1),
        ("lora_o_proj_only_r8", ("o_proj",), None, 8),
        ("lora_mlp_only_r2", MLP, None, 2),
        ("lora_up_proj_only_from10_to19_r1", ("up_proj",), (10, 19), 1),
        ("lora_mlp_only_from0_to3_r2", MLP, (0, 3), 2),
        ("lora_gate_proj_only_from16_to47_r64", ("gate_proj",), (16, 47), 64),
    ],
)
def test_every_form_of_mode_string(mode: str, modules: tuple[str, ...], layers: tuple[int, int] | None, rank: int):
    placement = parse_mode(mode)
    assert (placement.kind, set(placement.modules)) == ("lora", set(modules))
    assert (placement.layers, placement.rank, placement.alpha) == (layers, rank, 16.0)


def test_full():
    assert parse_mode("full").kind == "full"


@settings(deadline=None)
@given(
    module=st.sampled_from([*ATTENTION, *MLP]),
    ends=st.tuples(st.integers(0, LAYERS - 1), st.integers(0, LAYERS - 1)).map(sorted),
    rank=st.integers(1, 256),
)
def test_range_is_inclusive_and_only_the_named_module_is_adapted(module: str, ends: list[int], rank: int):
    first, last = ends
    placement = parse_mode(f"lora_{module}_only_from{first}_to{last}_r{rank}")
    found = placement.target_modules(NAMES, LAYERS)
    assert placement.rank == rank
    assert sorted(found) == sorted(
        n for i in range(first, last + 1) for n in NAMES if f".{i}." in n and n.endswith(module)
    )


def test_mlp_stands_for_its_three_projections_in_every_layer():
    found = parse_mode("lora_mlp_only_r1").target_modules(NAMES, LAYERS)
    assert sorted(found) == sorted(n for n in NAMES if ".mlp." in n)
    assert sorted(parse_mode("lora_mlp_r1").target_modules(NAMES, LAYERS)) == sorted(found)


def test_layer_numbers_are_compared_as_numbers():
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(12)]
    found = parse_mode("lora_up_proj_only_from2_to10_r1").target_modules(names, 12)
    assert found == names[2:11]


@pytest.mark.parametrize(
    "mode",
    ["", "lora", "lora_mlp", "lora_mlp_r", "lora_mlp_rx", "LORA_mlp_r1", "full_r1", "lora_up_proj_only_from1_r1"],
)
def test_unknown_mode_names_the_forms(mode: str):
    with pytest.raises(UserError, match="Unknown mode") as caught:
        parse_mode(mode)
    assert repr(mode) in str(caught.value)
    assert "lora_M_only_fromI_toJ_rR" in str(caught.value)


@pytest.mark.parametrize("mode", ["lora_mlp_r0", "lora_up_proj_only_from0_to1_r0"])
def test_rank_zero(mode: str):
    with pytest.raises(UserError, match="at least 1"):
        parse_mode(mode)


def test_reversed_range():
    with pytest.raises(UserError, match=r"3\.\.1"):
        parse_mode("lora_up_proj_only_from3_to1_r1")


def test_range_outside_the_model_names_its_layers():
    with pytest.raises(UserError, match=r"0\.\.3"):
        parse_mode("lora_up_proj_only_from2_to4_r1").target_modules(NAMES, LAYERS)


def test_module_that_the_model_does_not_have():
    with pytest.raises(UserError, match="query_key_value"):
        Placement(modules=("query_key_value",)).target_modules(NAMES, LAYERS)
    with pytest.raises(UserError, match="sideways_proj"):
        Placement(modules=("up_proj", "sideways_proj")).target_modules(NAMES, LAYERS)
