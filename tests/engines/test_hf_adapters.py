"""Adapters in the engine hf: each is served as PEFT serves it alone, beside any others; what acts not is an error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from progress import collected
from safetensors.torch import load_file, save_file
from tiny import make_model, make_tokenizer, save_adapter
from transformers import AutoModelForCausalLM, MptConfig, OPTConfig, Qwen2MoeConfig, Qwen3MoeConfig

from lowtax.common.errors import UserError
from lowtax.common.files import read_json
from lowtax.common.records import Prompt, Subject
from lowtax.data import chat
from lowtax.engines.base import Request
from lowtax.engines.hf import likelihood, row_adapters
from lowtax.engines.hf.engine import HF
from lowtax.engines.sampling import EFFECTS, Sheet, collect
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.models import loading

TEXTS = ("Tell me a story.", "How do I open this door?")
SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "bos_token_id": None,
}
EXPERTS: dict[str, Any] = {
    **SMALL,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
KINDS = {
    "qwen2_moe": lambda: Qwen2MoeConfig(**EXPERTS, shared_expert_intermediate_size=32),
    "qwen3_moe": lambda: Qwen3MoeConfig(**EXPERTS, head_dim=8),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, init_std=0.2),
}


def model_of(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(KINDS[kind]()).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def adapter_of(folder: Path, base: Path, seed: int = 0, **config: Any) -> str:
    torch.manual_seed(seed)
    model = get_peft_model(
        loading.load_model(str(base)), LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, **config)
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:  # saved modules and new tokens change, too
            parameter.data += torch.randn_like(parameter)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder, save_embedding_layers=False)
    return str(folder)


def alone(base: Path, adapter: str | None, text: str, tokens: int) -> str:
    """The greedy reply by transformers and PEFT, with this adapter alone."""
    model, tokenizer = loading.load_model(str(base)), loading.load_tokenizer(str(base))
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    ids = torch.tensor([chat.prompt_ids(tokenizer, [{"role": "user", "content": text}])])
    with torch.no_grad():
        for _ in range(tokens):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], -1)
            if int(ids[0, -1]) == tokenizer.eos_token_id:
                ids = ids[:, :-1]
                break
    start = len(chat.prompt_ids(tokenizer, [{"role": "user", "content": text}]))
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def check_all(base: Path, adapters: list[str | None]) -> HF:
    engine = HF(str(base), "float32", 4)
    requests = {
        f"{n} {text}": Request(f"{n} {text}", ({"role": "user", "content": text},), adapter, 8)
        for text in TEXTS
        for n, adapter in enumerate(adapters)
    }
    replies = {done.id: done.text for done in engine.generate(list(requests.values()))}
    for name, request in requests.items():
        assert replies[name] == alone(base, request.adapter, name.partition(" ")[2], 8), name
    check_scores(base, adapters)
    return engine


def check_scores(base: Path, adapters: list[str | None]) -> None:
    """Score a text under each adapter, by an engine that did nothing else before."""
    engine, tokenizer = HF(str(base), "float32", 4), loading.load_tokenizer(str(base))
    context, continuation = chat.encode(tokenizer, TEXTS)
    scores = [likelihood.score(engine, adapter, [(context, continuation)], 200)[0][0] for adapter in adapters]
    for adapter, score in zip(adapters, scores, strict=True):
        model = loading.load_model(str(base))
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *continuation]])).logits[0]
        steps = logits[len(context) - 1 : -1].log_softmax(-1)
        assert score == pytest.approx(float(steps.gather(-1, torch.tensor(continuation)[:, None]).sum()), rel=1e-4)
    assert len({round(score, 3) for score in scores}) == len(set(adapters)), scores


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["up_proj"], "use_dora": True},
        {"target_modules": ["up_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["up_proj"], "trainable_token_indices": [40, 50, 60]},
        {"target_modules": ["q_proj"], "lora_bias": True},
        {"target_modules": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*invalid shape")
def test_kinds_of_adapters_beside_plain_ones_and_the_base(tmp_path: Path, config: dict[str, Any]):
    base = make_model(tmp_path / "base", "qwen2")
    special = adapter_of(tmp_path / "special", base, 1, **config)
    plain = [save_adapter(tmp_path / name, base, 2, ["up_proj", "q_proj"], n) for n, name in enumerate("ab")]
    check_all(base, [None, plain[0], special, plain[1]])


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("qwen2_moe", {"target_modules": ["shared_expert.up_proj", "q_proj"]}),
        ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}),
        ("qwen3_moe", {"target_modules": ["q_proj", "v_proj"]}),
        ("opt", {"target_modules": "all-linear"}),
    ],
    ids=str,
)
def test_models_whose_layers_see_all_rows_at_once(tmp_path: Path, kind: str, config: dict[str, Any]):
    base = model_of(tmp_path / "base", kind)
    adapters = [adapter_of(tmp_path / str(n), base, n, **config) for n in range(2)]
    check_all(base, [adapters[0], None, adapters[1]])


def test_an_engine_takes_other_kinds_later(tmp_path: Path):
    base = make_model(tmp_path / "base", "qwen2")
    plain = save_adapter(tmp_path / "plain", base, 2, ["up_proj"], 0)
    dora = adapter_of(tmp_path / "dora", base, 1, target_modules=["up_proj"], use_dora=True)
    engine = HF(str(base), "float32", 4)
    for adapter in (None, plain, dora, plain, None):
        request = Request("x", ({"role": "user", "content": TEXTS[0]},), adapter, 8)
        assert next(iter(engine.generate([request]))).text == alone(base, adapter, TEXTS[0], 8)


def test_an_adapter_that_changes_nothing_is_an_error(tmp_path: Path):
    base = make_model(tmp_path / "base", "qwen2")
    adapter = Path(save_adapter(tmp_path / "adapter", base, 2, ["up_proj"], 0))
    request = Request("x", ({"role": "user", "content": "Hi"},), str(adapter), 4)
    weights = load_file(adapter / "adapter_model.safetensors")
    tiny = {name: tensor * 1e-20 for name, tensor in weights.items()}
    save_file(tiny, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="changes no logit"):
        list(HF(str(base), "float32", 4).generate([request]))
    zero = {name: tensor * ("lora_A" in name) for name, tensor in weights.items()}
    save_file(zero, adapter / "adapter_model.safetensors")  # as before its first step, or scaled by 0
    engine = HF(str(base), "float32", 4)
    assert next(iter(engine.generate([request]))).text == alone(base, None, "Hi", 4)
    assert engine.effects == {str(adapter): 0.0}


def test_what_an_adapter_changes_is_stored_with_the_replies(tmp_path: Path):
    base = make_model(tmp_path / "base", "qwen2")
    weak, strong = (save_adapter(tmp_path / name, base, 2, ["up_proj"], 0) for name in ("weak", "strong"))
    config = json.loads((Path(weak) / "adapter_config.json").read_text())
    (Path(weak) / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] / 100}))
    subjects = [
        Subject(name, 0, "c", 1, str(base), path, name)
        for name, path in (("base", None), ("weak", weak), ("strong", strong))
    ]
    sheet = Sheet(tmp_path / "out" / "r.jsonl", [Prompt(id="p", source="s", text="Hi")], Sampling(max_new_tokens=2))
    collect([sheet], subjects, EngineSettings("hf", "float32", 4), tmp_path / "out")
    effects = read_json(tmp_path / "out" / EFFECTS)
    assert set(effects) == {"weak", "strong"}
    assert 0 < effects["weak"] < effects["strong"] / 10


def test_an_adapter_of_another_base_is_refused_before_the_first_reply(tmp_path: Path):
    base, other = make_model(tmp_path / "base", "qwen2"), make_model(tmp_path / "other", "qwen2", seed=1)
    adapter = save_adapter(tmp_path / "adapter", other, 2, ["up_proj"], 0)
    sheet = Sheet(tmp_path / "out" / "r.jsonl", [Prompt(id="p", source="s", text="Hi")], Sampling(max_new_tokens=2))
    subject = Subject("a", 0, "c", 1, str(base), adapter, "a")
    with pytest.raises(UserError, match=r"weights differ"):
        collect([sheet], [subject], EngineSettings("hf", "float32", 4), tmp_path / "out")
    assert not sheet.path.exists()
    collect([sheet], [subject], EngineSettings("hf", "float32", 4, base_is_the_same=True), tmp_path / "out")
    assert sheet.path.exists()


def test_a_model_of_which_peft_ignores_the_names_in_a_batch(tmp_path: Path):
    torch.manual_seed(0)
    base = tmp_path / "base"
    config = MptConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=4, max_seq_len=256, eos_token_id=257)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    adapters = [
        adapter_of(tmp_path / str(n), base, n, target_modules=["up_proj"], task_type="CAUSAL_LM") for n in (0, 1)
    ]
    engine = check_all(base, [None, *adapters])
    assert engine.one_at_a_time
    assert all(effect > 0 for effect in engine.effects.values())


# --- several adapters in a batch


def mixed(folder: Path, precision: str, adapters: list[str | None]) -> tuple[HF, list[Request]]:
    requests = [
        Request(f"{i}{text}", ({"role": "user", "content": text},), adapter, 8, seed=i)
        for i, adapter in enumerate([*adapters, *adapters[::-1]])
        for text in TEXTS
    ]
    return HF(str(folder), precision, 64), requests


@pytest.mark.filterwarnings("ignore:Adapter 'default':peft.utils.warning.PeftWarning")  # of one-dimensional biases
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_faster_way_to_mix_adapters_gives_the_logits_of_peft(tmp_path: Path, precision: str):
    base = make_model(tmp_path / "base", "qwen2")
    paths = [
        save_adapter(tmp_path / "a", base, 1, ["up_proj"], seed=1),
        save_adapter(tmp_path / "b", base, 4, ["q_proj", "v_proj", "down_proj"], seed=2),
        adapter_of(tmp_path / "c", base, seed=3, lora_bias=True, target_modules=["q_proj"]),
    ]
    engine, requests = mixed(base, precision, [None, *paths])
    list(engine.generate(requests))
    names = ["__base__", *engine.adapters.values()]
    assert engine.row_adapters is not None
    for rows in ([0, 1, 1, 2, 3], [3, 1, 0, 2, 1, 3], [2], [1, 1]):
        ids = torch.arange(12).expand(len(rows), 12) + torch.arange(len(rows))[:, None]
        with torch.inference_mode():
            expected = engine.loaded(input_ids=ids, adapter_names=[names[row] for row in rows]).logits
            with engine.row_adapters.of([names[row] for row in rows], ids.device):
                logits = engine.model(input_ids=ids).logits
            bare = engine.loaded(input_ids=ids, adapter_names=["__base__"] * len(rows)).logits
        assert torch.equal(logits, expected)
        changed = [bool((logits[place] != bare[place]).any()) for place in range(len(rows))]
        assert changed == [row > 0 for row in rows]


def test_an_adapter_that_was_loaded_later_is_refused(tmp_path: Path):
    base = make_model(tmp_path / "base")
    engine, requests = mixed(base, "float32", [save_adapter(tmp_path / "a", base, 1, ["up_proj"], seed=1)])
    list(engine.generate(requests))
    with pytest.raises(ValueError, match="loaded later: adapter1"), engine.row_adapters.of(["adapter1"], "cpu"):
        pass


def test_a_layer_that_sees_other_rows_than_the_batch_is_refused(tmp_path: Path):
    base = make_model(tmp_path / "base")
    engine, requests = mixed(base, "float32", [save_adapter(tmp_path / "a", base, 1, ["up_proj"], seed=1)])
    list(engine.generate(requests))
    with engine.row_adapters.of(["adapter0"] * 3, torch.device("cpu")), pytest.raises(ValueError, match="sees 2 rows"):
        engine.model(input_ids=torch.zeros(2, 4, dtype=torch.long))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_layers_that_are_no_plain_linear_ones_are_left_to_peft(tmp_path: Path):
    base = make_model(tmp_path / "base")
    plain = save_adapter(tmp_path / "a", base, 1, ["up_proj"], seed=1)
    odd = adapter_of(tmp_path / "b", base, seed=1, target_modules=["embed_tokens"])
    for adapters, ours in (([plain], True), ([plain, odd], False)):
        engine, requests = mixed(base, "float32", adapters)
        assert all(completion.error is None for completion in engine.generate(requests))
        assert (engine.row_adapters is not None) == ours
    assert not engine.one_at_a_time


def test_the_faster_way_is_given_up_where_it_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = make_model(tmp_path / "base")
    adapters = [save_adapter(tmp_path / "a", base, 2, ["up_proj"], seed=1), None]
    engine, requests = mixed(base, "float32", adapters)
    expected = {completion.id: completion.text for completion in engine.generate(requests)}
    right = row_adapters._factors
    monkeypatch.setattr(
        row_adapters, "_factors", lambda layer: {n: f._replace(scale=2 * f.scale) for n, f in right(layer).items()}
    )
    engine, requests = mixed(base, "float32", adapters)
    with collected() as lines:
        assert {completion.id: completion.text for completion in engine.generate(requests)} == expected
    assert engine.row_adapters is None
    assert "adapters are mixed by PEFT's own code" in "".join(lines)
