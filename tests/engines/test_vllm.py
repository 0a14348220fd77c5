"""The vLLM engine: what it refuses before anything is loaded, and, where vLLM is installed, what the hf engine says."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from lowtax.common.errors import UserError
from lowtax.engines.base import Completion, Engine, Request, load
from lowtax.engines.vllm import adapters
from lowtax.engines.vllm.startup import Room, mlp_width, room_for, tensor_parallel, weight_bytes
from lowtax.models import loading

MODEL = "builtin:smollm2-135m-reasoner"
MISSING = importlib.util.find_spec("vllm") is None
REASON = "vLLM is not installed here: run `make test-vllm`"


def real(test: Callable[..., None]) -> Callable[..., None]:
    """A test that needs vLLM, whose own warnings are not ours."""
    return pytest.mark.filterwarnings("ignore")(pytest.mark.skipif(MISSING, reason=REASON)(test))


def save_adapter(folder: Path, base: str, seed: int, **settings: object) -> str:
    """A random LoRA that changes what the model says: B is kaiming, as A, unless `spread` gives its deviation."""
    spread = settings.pop("spread", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
        model = get_peft_model(loading.load_model(base), config)
        for name, weight in model.named_parameters():
            if spread is not None and "lora_B" in name:
                torch.nn.init.normal_(weight, std=float(str(spread)))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, save_embedding_layers=False)
    return str(folder)


@pytest.fixture
def plain(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(save_adapter(tmp_path / "plain", str(tiny_model), 0, r=3, target_modules=["up_proj"]))


def change(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        adapters.check(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "rank"),
    [
        ({}, 3),
        ({"use_rslora": True}, 3),
        ({"init_lora_weights": "gaussian"}, 3),
        ({"rank_pattern": {"up_proj": 40, "gate_proj": 2}, "alpha_pattern": {"up_proj": 5}}, 40),
        ({"rank_pattern": {"up_proj": 1}}, 3),
    ],
)
def test_plain_adapters_are_served_with_their_largest_rank(plain: Path, fields: dict[str, object], rank: int) -> None:
    change(plain, **fields)
    assert adapters.check(plain).rank == rank


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"use_dora": True}, "merge_and_unload"),
        ({"lora_bias": True}, "merge_and_unload"),
        ({"bias": "lora_only"}, "merge_and_unload"),
        ({"bias": "all"}, "merge_and_unload"),
        ({"modules_to_save": ["lm_head"]}, "merge_and_unload"),
        ({"trainable_token_indices": [1, 2]}, "merge_and_unload"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "`lowtax merge`"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
        ({"kasa_config": {"beta": 0.1}}, "merge_and_unload"),
        ({"alora_invocation_tokens": [1]}, "train a plain LoRA"),
        ({"layer_replication": [[0, 1]]}, "train a plain LoRA"),
        ({"use_qalora": True}, "train a plain LoRA"),
    ],
)
def test_what_vllm_does_not_serve_is_named_with_what_to_do(plain: Path, fields: dict[str, object], remedy: str) -> None:
    change(plain, **fields)
    said = refused(plain)
    assert str(plain) in said
    assert next(iter(fields)) in said
    assert remedy in said
    assert said.endswith(".")


def test_weights_that_are_no_factors_are_found_in_the_file_itself(plain: Path) -> None:
    weights = load_file(plain / adapters.WEIGHTS)
    vector = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"
    save_file(weights | {vector: torch.ones(64)}, plain / adapters.WEIGHTS)
    assert vector in refused(plain)
    (plain / adapters.WEIGHTS).write_bytes((plain / adapters.WEIGHTS).read_bytes()[:100])
    assert "is cut inside of its header" in refused(plain)


def test_folders_that_hold_no_lora(plain: Path, tmp_path: Path) -> None:
    assert "it has no adapter_config.json" in refused(tmp_path / "nothing")
    change(plain, peft_type="IA3")
    assert "LoRA only" in refused(plain)
    change(plain, peft_type="LORA")
    (plain / adapters.WEIGHTS).rename(plain / "adapter_model.bin")
    assert "it has no adapter_model.safetensors" in refused(plain)


def test_room_is_the_smallest_that_vllm_allows(plain: Path) -> None:
    assert [adapters.room(rank) for rank in (1, 2, 8, 9, 16, 33, 257, 320, 321, 512)] == [
        1, 8, 8, 16, 16, 64, 320, 320, 512, 512,
    ]  # fmt: skip
    change(plain, rank_pattern={"up_proj": 513})
    assert "rank 513" in refused(plain)
    assert Room(8, 1).joined(Room(1, 3)) == Room(8, 3)


@pytest.mark.parametrize(("gpu", "expected"), [(True, [0, 1, 3, 8]), (False, [0, 2, 4, 31])])
def test_without_a_gpu_the_last_slot_stays_empty(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, expected: list[int]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert [room_for([5] * n).slots for n in (0, 1, 3, 30)] == expected
    assert room_for([1, 20, 5]).rank == 32


@pytest.mark.parametrize(
    ("gpus", "heads", "key_value_heads", "width", "load", "used"),
    [
        (0, 9, 3, 1536, 0.1, 0),
        (8, 28, 4, 18944, 0.2, 1),  # Qwen2.5-7B on GPUs of 80 GB: one holds it
        (8, 28, 4, 18944, 0.71, 2),
        (8, 28, 4, 18944, 5.0, 4),  # none holds it: the largest
        (8, 40, 8, 27648, 0.8, 2),  # Qwen2.5-32B
        (8, 9, 3, 1536, 1.0, 3),  # two do not divide the heads
        (8, 32, 8, 1000, 1.5, 4),  # three do not divide them
        (8, 32, 8, 998, 1.5, 2),  # four divide the heads, and not the width
        (8, 32, 2, 0, 5.0, 8),  # key and value heads are repeated
    ],
)
def test_as_few_gpus_as_hold_the_weights_share_a_model(
    gpus: int, heads: int, key_value_heads: int, width: int, load: float, used: int
) -> None:
    assert tensor_parallel(gpus, heads, key_value_heads, width, load) == used


def test_the_weights_of_a_model_of_the_hub_are_counted_from_its_configuration(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model / "config.json", tmp_path)
    stored = weight_bytes(str(tiny_model), str(tiny_model), "float32")
    assert weight_bytes(str(tmp_path), "owner/name", "float32") == pytest.approx(stored, rel=0.1)
    assert weight_bytes(str(tmp_path), "owner/name", "bfloat16") == pytest.approx(stored / 2, rel=0.1)


def test_experts_are_divided_too() -> None:
    assert mlp_width({"intermediate_size": 8960}) == 8960
    experts = {"intermediate_size": 12288, "moe_intermediate_size": 1536, "shared_expert_intermediate_size": None}
    assert tensor_parallel(6, 12, 12, mlp_width(experts), 4.0) == 6
    assert tensor_parallel(5, 10, 10, mlp_width(experts), 4.0) == 2
    assert mlp_width({}) == 0


def test_adapters_are_checked_without_torch_or_vllm(plain: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lowtax.engines.vllm import adapters; "
        f"print(adapters.check(Path({str(plain)!r})).rank, {{'vllm', 'torch', 'peft'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3 set()\n"


@pytest.mark.skipif(not MISSING, reason="vLLM is installed here")
def test_without_vllm_the_engine_says_how_to_install_it(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"pip install 'lowtax\[vllm\]'"):
        load("vllm", str(tiny_model), "float32", 4)


@real
def test_our_table_is_what_vllm_allows() -> None:
    from vllm.config.lora import LoRAConfig, MaxLoRARanks
    from vllm.lora.peft_helper import PEFTHelper

    assert get_args(MaxLoRARanks) == adapters.RANKS
    config = LoRAConfig(max_lora_rank=16)
    for start in ("gaussian", "eva", "pissa", "olora", "loftq", "corda"):
        helper = PEFTHelper(r=4, lora_alpha=8, target_modules=["up_proj"], init_lora_weights=start)
        if start in adapters.PLAIN_STARTS:
            helper.validate_legal(config)
        else:
            with pytest.raises(ValueError, match=start):
                helper.validate_legal(config)


PATTERNS = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["gate_proj", "up_proj", "q_proj"],
    "rank_pattern": {"up_proj": 20, r"layers\.1\.mlp\.gate_proj": 2},
    "alpha_pattern": {"q_proj": 32, "up_proj": 3},
}


@real
@pytest.mark.parametrize("rslora", [False, True])
def test_vllm_reads_ranks_and_scales_of_patterns_as_peft_does(tiny_model: Path, rslora: bool) -> None:
    from vllm.lora.peft_helper import PEFTHelper

    config = LoraConfig(use_rslora=rslora, **PATTERNS)
    model = get_peft_model(loading.load_model(str(tiny_model)), config)
    helper = PEFTHelper.from_dict({**PATTERNS, "use_rslora": rslora})
    seen = set()
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            expected = (layer.r["default"], layer.scaling["default"])
            assert helper.get_rank_and_scaling(name.removeprefix("base_model.model.")) == pytest.approx(expected)
            seen.add(expected)
    assert len(seen) == 4, "the patterns must tell four kinds of layers apart"


ASKED = (
    "What is 12 + 30?", "Name three colours.", "How do I pick a lock?", "What is 15 * 4?", "Why is the sky blue?",
    "What is 100 - 37?", "Write one sentence about the sea.", "What is 7 * 8?", "Who was Ada Lovelace?",
    "Tom has 5 apples and buys 9 more. How many are there?", "Say hello in French.", "What is 81 / 9?",
    "Give me a name for a cat.", "What is 2 + 2 * 3?", "Is a tomato a fruit?", "How many legs has a spider?",
    "Tell me a joke.", "What is 33 + 44?", "What should I cook tonight?", "Translate 'tree' into German.",
)  # fmt: skip
STRONG = {
    "rank 1": {"r": 1, "lora_alpha": 2, "target_modules": ["up_proj"], "spread": 0.4},
    "rank 16": {"r": 16, "lora_alpha": 32, "target_modules": ["gate_proj", "up_proj", "down_proj"], "spread": 0.03},
}
WIDER = {
    "patterns": PATTERNS | {"spread": 0.04},
    "rsLoRA": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["v_proj", "o_proj"], "spread": 0.1},
}


def by_id(completions: list[Completion]) -> dict[str, Completion]:
    found = {completion.id: completion for completion in completions}
    assert len(found) == len(completions), "a request was answered twice"
    return found


def ask(name: str, text: str, adapter: str | None, tokens: int = 16, **settings: object) -> Request:
    return Request(name, ({"role": "user", "content": text},), adapter, tokens, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    root = tmp_path_factory.mktemp("adapters")
    made = {name: save_adapter(root / name, MODEL, 1, **settings) for name, settings in STRONG.items()}
    return {"base": None, **made}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load("vllm", MODEL, "float32", 32)


def near(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Log-probabilities agree to float32 rounding; the adapters move them by more than a hundred times as much."""
    return all(abs(math.log(x) - math.log(y)) < 1e-3 for x, y in zip(a, b, strict=True))


@real
def test_greedy_replies_are_those_of_the_hf_engine(engine: Engine, strong: dict[str, str | None]) -> None:
    requests = [
        ask(f"{who}/{n}", text, adapter, score=("The", "1"))
        for who, adapter in strong.items()
        for n, text in enumerate(ASKED)
    ]
    found = by_id(list(engine.generate(requests)))
    expected = by_id(list(load("hf", MODEL, "float32", 60).generate(requests)))
    assert found.keys() == expected.keys()
    same = [found[key].text == expected[key].text and found[key].finish == expected[key].finish for key in expected]
    print(f"equal replies: {sum(same)} of {len(same)}")
    # All 60 were, when it was measured. Both add in float32, but in another order: where two tokens are equally likely
    # to 1e-5, a reply may part. An adapter in the wrong row changes six or more.
    assert sum(same) >= 0.95 * len(same)
    assert all(near(found[key].scores, expected[key].scores) for key in expected)
    assert {completion.opened for completion in found.values()} == {True}
    for who in STRONG:
        moved = sum(found[f"{who}/{n}"].text != found[f"base/{n}"].text for n in range(len(ASKED)))
        assert moved >= 3, f"{who} must change what is said, or nothing is compared"
        assert not near(found[f"{who}/0"].scores, found["base/0"].scores)


@real
def test_a_larger_rank_starts_vllm_again_and_patterns_count(
    engine: Engine, strong: dict[str, str | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = {name: save_adapter(tmp_path / name, MODEL, 2, **settings) for name, settings in WIDER.items()}
    requests = [
        ask(f"{who}/{n}", text, adapter, 1, score=("The", "1"))
        for who, adapter in {**strong, **wider}.items()
        for n, text in enumerate(ASKED[:3])
    ]
    found = by_id(list(engine.generate(requests)))
    assert "starting vLLM again" in capsys.readouterr().err
    expected = by_id(list(load("hf", MODEL, "float32", 60).generate(requests)))
    for key, completion in expected.items():
        assert near(found[key].scores, completion.scores), key
    for who in wider:
        assert not near(found[f"{who}/0"].scores, found["base/0"].scores)
    list(engine.generate(requests[:1]))
    assert "starting" not in capsys.readouterr().err


@real
def test_lengths_prefixes_raw_prompts_and_prompts_that_are_too_long(engine: Engine) -> None:
    raw = ("<|im_start|>user\n", "What is 2 + 3? <|im_end|>", "<|im_end|>\n<|im_start|>assistant\n")
    requests = [
        ask("short", ASKED[0], None, 3),
        ask("whole", ASKED[0], None, 60),
        ask("prefix", ASKED[0], None, 12, prefix="12 + 30 = 42.\n</think>\n\n"),
        Request("raw", (), None, 12, raw=raw),
        ask("long", "word " * 9000, None),
    ]
    found = by_id(list(engine.generate(requests)))
    assert (found["short"].tokens, found["short"].finish) == (3, "length")
    assert found["whole"].finish == "stop"
    assert "<|im_end|>" not in found["whole"].text
    assert not found["prefix"].opened
    assert (found["long"].finish, found["long"].text) == ("failed", "")
    assert "8192 positions" in str(found["long"].error)
    expected = by_id(list(load("hf", MODEL, "float32", 60).generate(requests[:4])))
    assert {key: found[key] for key in expected} == expected


@real
def test_drawn_replies_hang_on_the_seed_and_a_caller_may_leave(engine: Engine) -> None:
    requests = [ask(str(seed), ASKED[6], None, 10, temperature=1.5, seed=seed, top_k=50) for seed in range(6)]
    first = by_id(list(engine.generate(requests)))
    assert len({completion.text for completion in first.values()}) > 3
    replies = engine.generate([ask(str(n), ASKED[n], None, 40) for n in range(4)])
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    assert by_id(list(engine.generate(requests))) == first


@real
def test_wrong_adapters_are_refused(engine: Engine, tmp_path: Path, strong: dict[str, str | None]) -> None:
    foreign = Path(str(strong["rank 1"]))
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in foreign.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = load_file(copy / adapters.WEIGHTS)
    save_file({key: value.repeat(2, 2) for key, value in weights.items()}, copy / adapters.WEIGHTS)
    with pytest.raises(UserError, match="does not fit"):
        engine.generate([ask("0", "Hi", str(copy))])
    change(copy, use_dora=True)
    with pytest.raises(UserError, match="use_dora"):
        load("vllm", MODEL, "float32", 4).generate([ask("0", "Hi", str(copy))])
    change(copy, use_dora=False, base_model_name_or_path="another")
    with pytest.raises(UserError, match="'another'"):
        load("vllm", MODEL, "float32", 4).generate([ask("0", "Hi", str(copy))])
