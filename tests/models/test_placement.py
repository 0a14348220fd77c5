"""Placement: mode strings, layers, names, ranks and alpha; and that the docs say what the code does."""

import itertools
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from lowtax.common.errors import UserError
from lowtax.models.names import ATTENTION, MLP, layer_of, matches, spans
from lowtax.models.placement import ALIASES, Placement, mode_methods, parse_mode

LAYERS = 4
NAMES = [f"model.layers.{i}.self_attn.{m}" for i in range(LAYERS) for m in ATTENTION]
NAMES += [f"model.layers.{i}.mlp.{m}" for i in range(LAYERS) for m in MLP]
NAMES += ["lm_head"]
EXPERTS = [f"model.layers.{i}.mlp.experts.{m}" for i in range(LAYERS) for m in ("gate_up_proj", "down_proj")]
DOCS = (ROOT / "docs/reference/placements.md").read_text()


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
        ("lora_mlp_orthogonal_down_norm_r4_beta0.1_k8", MLP, None, 4),
    ],
)
def test_forms_of_mode_string(mode: str, modules: tuple[str, ...], layers: tuple[int, int] | None, rank: int):
    placement = parse_mode(mode)
    assert (placement.kind, set(placement.modules)) == ("lora", set(modules))
    assert (placement.layers, placement.rank, placement.alpha, placement.dropout) == (layers, rank, 16.0, 0.05)


def test_full():
    assert parse_mode("full").kind == "full"


@pytest.mark.parametrize(
    ("words", "side", "weighted", "relative", "only"),
    [
        ("", "left", True, False, None),
        ("_norm", "left", True, True, None),
        ("_down", "left", True, False, ["down_proj"]),
        ("_down_norm", "left", True, True, ["down_proj"]),
        ("_down_uniform", "left", False, False, ["down_proj"]),
        ("_down_uniform_norm", "left", False, True, ["down_proj"]),
        ("_norm_both", "both", True, True, None),
        ("_uniform_norm_both", "both", False, True, None),
    ],
)
def test_regularisers_of_the_modes(words: str, side: str, weighted: bool, relative: bool, only: list[str] | None):
    (spec,) = mode_methods(f"lora_mlp_orthogonal{words}_r4_beta0.25_k8")
    expected = {"name": "orthogonal", "beta": 0.25, "k": 8, "side": side, "weighted": weighted, "relative": relative}
    expected |= {"only": only} if only else {}
    assert spec == expected | {"as_published": True}
    assert mode_methods(f"lora_mlp_orthogonal{words}_r4_beta0.25_k8", published=False) == [expected]


def test_plain_modes_have_no_regulariser_and_results_are_the_callers_own():
    assert [mode_methods(m) for m in ("full", "lora_mlp_r4", "lora_up_proj_only_from1_to2_r1")] == [[], [], []]
    mode = "lora_mlp_orthogonal_down_r4_beta1_k8"
    mode_methods(mode)[0]["only"].append("up_proj")
    assert mode_methods(mode)[0]["only"] == ["down_proj"]


@pytest.mark.parametrize(
    ("text", "value"), [("0.1", 0.1), ("1", 1.0), (".5", 0.5), ("10.", 10.0), ("1e-3", 1e-3), ("2.5e1", 25.0)]
)
def test_beta_as_the_reference_writes_it_and_with_an_exponent(text: str, value: float):
    assert mode_methods(f"lora_mlp_orthogonal_r4_beta{text}_k8")[0]["beta"] == value


@pytest.mark.parametrize(
    ("mode", "said"), [("r4_beta1..2_k8", "'1..2' is not a number"), ("r4_beta1_k0", "k 0"), ("r0_beta1_k1", "rank 0")]
)
def test_numbers_of_a_regularised_mode_that_are_none(mode: str, said: str):
    with pytest.raises(UserError, match=said):
        parse_mode(f"lora_mlp_orthogonal_{mode}") and mode_methods(f"lora_mlp_orthogonal_{mode}")


def test_thirteen_forms_and_every_one_is_read():
    assert len({alias.form for alias in ALIASES}) == 13
    for alias in ALIASES:
        parts = {"M": "up_proj", "I": "1", "J": "2", "R": "4", "B": "0.5", "K": "8"}
        mode = re.sub("[A-Z]", lambda letter, parts=parts: parts[letter[0]], alias.form)
        assert parse_mode(mode).rank == (1 if mode == "full" else 4)
        assert len(mode_methods(mode)) == ("orthogonal" in mode)


@settings(deadline=None)
@given(
    module=st.sampled_from([*ATTENTION, *MLP]),
    ends=st.tuples(st.integers(0, LAYERS - 1), st.integers(0, LAYERS - 1)).map(sorted),
    rank=st.integers(1, 256),
)
def test_range_is_inclusive_and_only_the_named_module_is_adapted(module: str, ends: list[int], rank: int):
    first, last = ends
    placement = parse_mode(f"lora_{module}_only_from{first}_to{last}_r{rank}")
    found = placement.targets(NAMES, [], LAYERS).modules
    assert placement.rank == rank
    assert sorted(found) == sorted(
        n for i in range(first, last + 1) for n in NAMES if f".{i}." in n and n.endswith(module)
    )


def test_mlp_stands_for_its_three_projections_in_every_layer():
    assert parse_mode("lora_mlp_r1") == parse_mode("lora_mlp_only_r1") == Placement(modules="mlp") == Placement()
    assert sorted(Placement().targets(NAMES, [], LAYERS).modules) == sorted(n for n in NAMES if ".mlp." in n)


def test_shorthands_and_names_that_stand_outside_the_layers():
    def found(**fields: object) -> list[str]:
        return Placement(**fields).targets(NAMES, [], LAYERS).modules

    assert found(modules=["attention"]) == [n for n in NAMES if ".self_attn." in n]
    assert found(modules="all-linear") == NAMES[:-1]
    assert found(modules=["lm_head"], layers=(1, 2)) == ["lm_head"]
    assert found(modules="self_attn.(q|k)_proj", layers=(1, 1)) == [NAMES[4], NAMES[5]]
    assert found(modules=["mlp.up_proj", "up_proj"], layers=(3, 3)) == ["model.layers.3.mlp.up_proj"]


def test_a_name_is_matched_at_a_dot_to_the_end():
    assert matches("up_proj", "model.layers.1.mlp.up_proj")
    assert matches("layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj")
    assert not matches("up_proj", "model.layers.1.mlp.gate_up_proj")
    assert not matches("mlp", "model.layers.1.mlp.up_proj")
    assert not matches("layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj")


def test_layer_numbers_are_compared_as_numbers():
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(12)]
    found = parse_mode("lora_up_proj_only_from2_to10_r1").targets(names, [], 12).modules
    assert found == names[2:11]
    assert [layer_of(name) for name in (*names[8:], "lm_head")] == [8, 9, 10, 11, None]


@pytest.mark.parametrize(
    ("layers", "n", "expected"),
    [
        *[("middle third", n, e) for n, e in ((28, "9..18"), (30, "10..19"), (48, "16..31"), (64, "21..42"))],
        *[("first third", n, e) for n, e in ((28, "0..8"), (30, "0..9"), (48, "0..15"), (64, "0..20"))],
        *[("last third", n, e) for n, e in ((28, "19..27"), (30, "20..29"), (48, "32..47"), (64, "43..63"))],
        *[("first half", n, e) for n, e in ((28, "0..13"), (30, "0..14"), (48, "0..23"), (64, "0..31"))],
        *[("first quarter", n, e) for n, e in ((28, "0..6"), (30, "0..6"), (48, "0..11"), (64, "0..15"))],
        *[("last quarter", n, e) for n, e in ((28, "21..27"), (30, "22..29"), (48, "36..47"), (64, "48..63"))],
        *[("0.25-0.75", n, e) for n, e in ((28, "7..20"), (30, "7..21"), (48, "12..35"), (64, "16..47"))],
        ("middle half", 30, "7..21"),
        ("0.5 - 1", 5, "2..4"),  # the middle of layer 2 is exactly half way: it belongs to the later share
        ("0-0.5", 5, "0..1"),
        (" Middle  THIRD ", 30, "10..19"),
        ("3", 28, "3"),
        ("10-19", 28, "10..19"),
        ("0, 5, 9-12", 28, "0, 5, 9..12"),
        ([4, 4], 28, "4"),
        (None, 3, "0..2"),
    ],
)
def test_layers(layers: object, n: int, expected: str):
    assert spans(Placement(layers=layers).layers_of(n)) == expected


@given(n=st.integers(1, 100), cuts=st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True))
def test_shares_that_meet_cover_every_layer_once(n: int, cuts: list[int]):
    ends = [0, *sorted(cuts), 100]
    found = []
    for low, high in itertools.pairwise(ends):
        text = f"{low / 100:.2f}-{high / 100:.2f}"
        inside = [i for i in range(n) if Fraction(low, 100) <= Fraction(2 * i + 1, 2 * n) < Fraction(high, 100)]
        if inside:
            found += Placement(layers=text).layers_of(n)
        else:
            with pytest.raises(UserError, match="contains no layer"):
                Placement(layers=text).layers_of(n)
    assert found == list(range(n))


@pytest.mark.parametrize(
    "layers",
    ["", "middle", "third", "second half", "5-3", "0.7-0.2", "0.5-0.5", "0.5-1.5", "1.5", "-1", "1,", [1, 2, 3]],
)
def test_layers_that_are_no_form(layers: object):
    with pytest.raises(UserError, match="middle third"):
        Placement(layers=layers)


@pytest.mark.parametrize(
    ("mode", "near"),
    [
        ("", "lora_M_only_fromI_toJ_rR"),
        ("lora", "lora_mlp_rR"),
        ("lora_mlp", "lora_mlp_rR"),
        ("lora_mlp_rx", "lora_mlp_rR"),
        ("full_r1", "full"),
        ("lora_up_proj_only_from1_r1", "lora_M_only_fromI_toJ_rR"),
        ("lora_mlp_orthogonal_dwn_r4_beta0.1_k8", "lora_mlp_orthogonal_down_rR_betaB_kK"),
        ("lora_mlp_orthogonal_both_norm_r4_beta0.1_k8", "lora_mlp_orthogonal_norm_both_rR_betaB_kK"),
    ],
)
def test_unknown_mode_names_near_forms(mode: str, near: str):
    for read in (parse_mode, mode_methods):
        with pytest.raises(UserError, match="Unknown mode") as caught:
            read(mode)
        assert repr(mode) in str(caught.value)
        assert near in str(caught.value)


@pytest.mark.parametrize("mode", ["lora_mlp_r0", "lora_up_proj_only_from0_to1_r0"])
def test_rank_zero(mode: str):
    with pytest.raises(UserError, match="at least 1"):
        parse_mode(mode)


def test_reversed_range():
    with pytest.raises(UserError, match=r"3\.\.1"):
        parse_mode("lora_up_proj_only_from3_to1_r1")


@pytest.mark.parametrize("layers", [(2, 4), "2-4", "0, 4"])
def test_range_outside_the_model_names_its_layers(layers: object):
    with pytest.raises(UserError, match=r"0\.\.3"):
        Placement(modules="up_proj", layers=layers).targets(NAMES, [], LAYERS)


def test_module_that_the_model_does_not_have():
    with pytest.raises(UserError, match=r"'query_key_value' in layers 0\.\.3; known are: down_proj, gate_proj"):
        Placement(modules=("query_key_value",)).targets(NAMES, [], LAYERS)
    with pytest.raises(UserError, match=r"'up_prj' in layers 1\.\.2; did you mean 'up_proj'"):
        Placement(modules=("up_proj", "up_prj"), layers=(1, 2)).targets(NAMES, [], LAYERS)
    with pytest.raises(UserError, match=r"did you mean 'mlp\.up_proj'"):
        Placement(modules="mlp.up_prj").targets(NAMES, [], LAYERS)
    with pytest.raises(UserError, match=r"no linear module 'up_proj' in layers 2\.\.3: it is in layers 0\.$"):
        Placement(modules="up_proj", layers=(2, 3)).targets(["model.layers.0.mlp.up_proj"], [], LAYERS)
    with pytest.raises(UserError, match=r"experts are fused: name mlp\.experts\.down_proj or mlp\.experts\.gate_up"):
        Placement().targets(["model.layers.0.self_attn.q_proj"], EXPERTS, LAYERS)
    with pytest.raises(UserError, match="regular expression"):
        Placement(modules="up_(proj")


def test_parameters_of_experts():
    placement = Placement(parameters="mlp.experts.down_proj", layers=(2, 3), dropout=0)
    assert placement.modules == ()
    assert placement.targets(NAMES, EXPERTS, LAYERS).modules == []
    assert placement.targets(NAMES, EXPERTS, LAYERS).parameters == [EXPERTS[5], EXPERTS[7]]
    both = Placement(parameters=["experts.down_proj"], modules=["q_proj"], layers="0", dropout=0)
    assert both.targets(NAMES, EXPERTS, LAYERS).modules == ["model.layers.0.self_attn.q_proj"]
    with pytest.raises(UserError, match=r"no parameter 'mlp\.experts\.up_proj'.*did you mean"):
        Placement(parameters=["mlp.experts.up_proj"], dropout=0).targets(NAMES, EXPERTS, LAYERS)


def test_ranks_and_alpha():
    placement = Placement(modules="all-linear", rank=2, ranks={"layers.1.mlp.up_proj": 3, "mlp": 4, "up_proj": 5})
    assert placement.rank_of("model.layers.0.self_attn.q_proj") == 2
    assert placement.rank_of("model.layers.0.mlp.up_proj") == 4  # the first name that matches
    assert placement.rank_of("model.layers.1.mlp.up_proj") == 3
    assert (placement.alpha_at(2), placement.alpha_at(64)) == (16, 16)
    assert Placement(alpha_per_rank=2).alpha_at(64) == 128
    with pytest.raises(UserError, match=r"ranks: 'q_prj' matches nothing that is adapted; did you mean"):
        Placement(modules="attention", ranks={"q_prj": 2}).targets(NAMES, [], LAYERS)
    with pytest.raises(UserError, match=r"ranks: 'up_proj'"):
        Placement(modules="attention", ranks={"up_proj": 2}).targets(NAMES, [], LAYERS)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "full", "layers": (0, 1), "ranks": {"up_proj": 2}}, "layers and ranks"),
        ({"modules": ()}, "needs a name"),
        ({"parameters": ("experts.down_proj",)}, "dropout: 0"),
        ({"alpha": 8, "alpha_per_rank": 2}, "exclude"),
    ],
)
def test_fields_that_contradict(fields: dict[str, object], said: str):
    with pytest.raises(UserError, match=said):
        Placement(**fields)


@pytest.mark.parametrize(
    "placement",
    [
        parse_mode("full"),
        parse_mode("lora_up_proj_only_from1_to2_r4"),
        Placement(layers="middle third", alpha_per_rank=2, rslora=True, ranks={"up_proj": 2}),
        Placement(parameters=("experts.down_proj",), dropout=0),
    ],
)
def test_a_placement_survives_json(placement: Placement):
    assert Placement.model_validate_json(placement.model_dump_json()) == placement
    assert Placement.model_validate(placement.model_dump()) == placement


def regulariser(fields: dict[str, object] | None) -> str:
    if fields is None:
        return "none"
    words = [str(fields["side"]), "weighted" if fields["weighted"] else "uniform"]
    return ", ".join(words + ["relative"] * bool(fields["relative"]))


def table(head: str) -> list[str]:
    """The rows of the table in the page that starts with this line, without its head."""
    rows = DOCS.split(f"\n{head}\n")[1].split("\n\n")[0]
    return rows.splitlines()[1:]


def test_the_table_of_modes_in_the_docs():
    expected = [f"| `{a.form}` | {a.says} | {regulariser(a.regulariser)} |" for a in ALIASES]
    assert table("| mode | LoRA on | regulariser |") == expected


def test_the_table_of_fields_in_the_docs():
    def default(name: str) -> str:
        value = getattr(Placement(), name)
        text = ", ".join(value) if isinstance(value, tuple | dict) else str(value)
        return {"": "none", "None": "none", "False": "false"}.get(text, text)

    expected = [f"| `{name}` | {default(name)} | {f.description} |" for name, f in Placement.model_fields.items()]
    assert table("| field | default | meaning |") == expected


def test_the_table_of_layers_in_the_docs():
    for row in table("| layers | of 28 | of 30 | of 48 | of 64 |"):
        text, *found = row.strip("| ").split(" | ")
        assert found == [spans(Placement(layers=text).layers_of(n)) for n in (28, 30, 48, 64)]
