"""Model cards: valid front matter, nothing invented, and the measured figures with their intervals."""

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lowtax.models.model_card import DataFacts, Facts, hub_id, in_words, merged_card, model_card
from lowtax.models.placement import Placement, parse_mode
from lowtax.training.settings import Train

MODE = "lora_up_proj_only_from16_to31_r1"
BASE = "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"
CELL = {"value": 0.9321, "low": 0.8012, "high": 0.9876, "n": 313, "partial": 1, "unfinished": 0, "failed": 0}
ROW = {
    "safety": CELL,
    "over_refusal": CELL | {"value": None, "low": None, "high": None, "n": 0},
    "reasoning": {"arithmetic": CELL | {"value": 0.7}},
}


def facts(mode: str = MODE, **given: Any) -> Facts:
    return Facts.model_validate(
        {
            "name": "checkpoint-500",
            "model": BASE,
            "mode": mode,
            "placement": parse_mode(mode).model_dump(mode="json"),
            "settings": Train(epochs=10).model_dump(mode="json"),
            "seed": 3,
            "precision": "bfloat16",
            "data": [DataFacts(source="direct-refusal", hub="TianshengHuang/DirectRefusal", rows=1000, revision="abc")],
            "step": 500,
            "seconds": 1234.5,
            "loss": 0.01234,
            "trainable_parameters": 303_104,
        }
        | given
    )


def text_of(section: str, card: str) -> str:
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", card, flags=re.MULTILINE | re.DOTALL)
    assert found, section
    return found[1]


def test_the_front_matter_is_that_of_the_hub():
    card = ModelCard(model_card(facts()))
    data = card.data.to_dict()
    assert data == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lowtax", "safety-alignment", "lora"],
        "datasets": ["TianshengHuang/DirectRefusal"],
    }
    assert card.text.strip().startswith("# checkpoint-500")


def test_a_whole_model_is_loaded_without_peft():
    card = ModelCard(model_card(facts("full", license="mit")))
    assert card.data.to_dict()["library_name"] == "transformers"
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert card.data.license == "mit"
    assert "peft" not in text_of("How to load it", card.text)
    assert "every weight" in text_of("Recipe", card.text)


@pytest.mark.parametrize("model", ["builtin:smollm2-135m-reasoner", "/home/someone/models/mine", "./mine", "a.gguf"])
def test_a_base_that_is_not_on_the_hub_gets_no_id_and_no_path(model: str):
    card = model_card(facts(model=model, data=[DataFacts(source="mine.jsonl", rows=3)]))
    data = ModelCard(card).data.to_dict()
    assert not {"base_model", "base_model_relation", "datasets", "license"} & data.keys()
    assert "/home/someone" not in card
    assert "not stated" in text_of("Data", card)


def test_a_folder_here_is_not_taken_for_an_id_on_the_hub(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("runs/model") == "runs/model"
    (tmp_path / "runs" / "model").mkdir(parents=True)
    assert hub_id("runs/model") is None


def test_every_figure_is_there():
    card = model_card(facts(validation_loss=0.5, peak_memory_gb=31.25, hardware="H200", versions={"torch": "2.13.0"}))
    training = text_of("Training", card)
    for figure in ("500", "0.0123", "0.5000", "303,104", "1,234.5", "31.25 GB", "H200", "torch 2.13.0"):
        assert figure in training
    recipe = text_of("Recipe", card)
    for line in (f"| mode | `{MODE}` |", "| lr | 5e-05 |", "| epochs | 10 |", "| batch size | 8 |", "| seed | 3 |"):
        assert line in recipe
    assert "rank 1, alpha 16, on `up_proj` of layers 16 to 31" in recipe
    block = re.search(r"```yaml\n(.*?)```", recipe, flags=re.DOTALL)
    assert block
    assert yaml.safe_load(block[1]) == {"placement": facts().placement}
    assert "| 1,000 | abc | not stated |" in text_of("Data", card)


SECTIONS = [
    "How to load it",
    "Recipe",
    "Data",
    "Training",
    "Safety and reasoning",
    "Intended use and limits",
    "Citation",
]
HUB = "TianshengHuang/DirectRefusal"
FIGURES = f"""\
| trained | LoRA of rank 1, alpha 16, on `up_proj` of layers 16 to 31 |
| mode | `lora_up_proj_only_from16_to31_r1` |
| methods | salora, spf |
| lr | 5e-05 |
| epochs | 10 |
| batch size | 8 |
| warmup steps | 5 |
| weight decay | 0.0001 |
| max grad norm | 1 |
| max length | 1024 |
| validation | 0 |
| seed | 3 |
| precision | bfloat16 |
| [{HUB}](https://huggingface.co/datasets/{HUB}) | 1,000 | abc | not stated |
| `mine.jsonl` | 3 | none | CC0-1.0 |
| steps | 500 |
| training loss of the last step | 0.0123 |
| validation loss | not measured |
| trainable parameters | 303,104 |
| seconds | 1,234.5 |
| peak memory | 31.25 GB |
| versions | torch 2.13.0, peft 0.21.2 |
| harmful requests refused | 0.932 | 0.801 to 0.988 | 313 |
| ordinary requests refused | not measured | | |
| arithmetic solved | 0.700 | 0.801 to 0.988 | 313 |
""".splitlines()


def table_rows(card: str) -> list[str]:
    """The rows of all tables of a card, without their heads."""
    heads = r"\| (source|\|) |\|[ |:-]+$|\| \| "
    return [line for line in card.splitlines() if line.startswith("|") and not re.match(heads, line)]


def test_a_card_has_every_section_and_figure_in_this_order():
    versions = {"torch": "2.13.0", "peft": "0.21.2"}
    data = [*facts().data, DataFacts(source="mine.jsonl", rows=3, license="CC0-1.0")]
    card = model_card(facts(methods=["salora", "spf"], data=data, peak_memory_gb=31.25, versions=versions, row=ROW))
    assert re.findall("^## (.*)$", card, flags=re.MULTILINE) == SECTIONS
    assert table_rows(card) == FIGURES
    assert card.endswith("\n```\n")
    assert "\n\n\n" not in card


def test_a_merged_card_quotes_the_sections_and_figures_of_the_adapter():
    adapter = model_card(facts())
    merged = merged_card(MERGED, adapter)
    assert re.findall("^## (.*)$", merged, flags=re.MULTILINE) == ["How to load it", "The adapter's own card"]
    quoted = text_of("The adapter's own card", merged).replace("\n    ", "\n")
    assert ModelCard(adapter).text.strip() in quoted
    for figure in ("0123456789abcdef", "float32", "bfloat16", "1,000 weights", "71.23%", "0.8400"):
        assert figure in merged
    assert "two matrices" not in merged
    assert "two matrices" in merged_card(MERGED | {"untied": True}, adapter)


def test_the_front_matter_of_a_merged_card_has_nothing_of_a_strangers_card():
    front = {
        "tags": ["lowtax"],
        "license": "mit\n---\n# mine",
        "license_name": "<img src=x>",
        "license_link": "javascript:alert(1)",
        "datasets": ["a/b", "<script>"],
        "language": 5,
    }
    for fields in (front, front | {"datasets": {"a": 1}, "license": ["mit", 5], "language": "x" * 300}):
        data = ModelCard(merged_card(MERGED, f"---\n{yaml.safe_dump(fields)}---\nText")).data.to_dict()
        assert not {"license", "license_name", "license_link", "datasets", "language"} & data.keys()
    right = {
        "license": "other",
        "license_name": "My licence 2.0",
        "license_link": "https://x.org/a",
        "language": ["en"],
    }
    card = merged_card(MERGED, f"---\n{yaml.safe_dump(right)}---\n")
    assert not right.keys() & ModelCard(card).data.to_dict().keys()
    assert "My licence 2.0" in card  # as text


def test_measured_rates_are_in_the_model_index():
    assert "model-index" not in ModelCard(model_card(facts())).data.to_dict()
    data = ModelCard(model_card(facts(row=ROW))).data
    assert data.model_name == "checkpoint-500"
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("harmful requests", "refusal_rate", 0.9321),
        ("arithmetic", "accuracy", 0.7),
    ]
    assert data.eval_results[1].metric_name == "arithmetic solved, 95 % interval 0.801 to 0.988, n = 313"


def test_an_embedded_base_is_explained_without_names_from_the_code():
    loading = text_of("How to load it", model_card(facts(model="builtin:smollm2-135m-reasoner")))
    assert "lowtax sample --model builtin:smollm2-135m-reasoner --adapter HERE" in loading
    assert "lowtax." not in loading


def test_what_was_not_measured_is_called_so():
    assert "Not measured" in text_of("Safety and reasoning", model_card(facts()))
    assert text_of("Training", model_card(facts())).count("not measured") == 2


def test_measured_rates_have_their_intervals():
    measured = text_of("Safety and reasoning", model_card(facts(row=ROW, judge="refusal_words")))
    assert "| harmful requests refused | 0.932 | 0.801 to 0.988 | 313 |" in measured
    assert "| ordinary requests refused | not measured | | |" in measured
    assert "| arithmetic solved | 0.700 |" in measured
    assert "judged by refusal_words" in measured


def test_the_limits_and_the_paper_are_named():
    card = model_card(facts())
    assert "does not by itself make a model safe" in text_of("Intended use and limits", card)
    assert "over-refusal" in text_of("Intended use and limits", card)
    assert "@article{xue2025lora," in text_of("Citation", card)
    assert "@software{lowtax," in text_of("Citation", card)


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (2, 8), (16, 16), (48, 64), (9999, 9999)])
def test_the_rank_to_serve_with_is_one_that_vllm_takes(rank: int, served: int):
    card = model_card(facts(f"lora_mlp_r{rank}"))
    assert f"--max-lora-rank {served} " in text_of("How to load it", card)


def test_a_placement_in_words():
    one = Placement(modules=("up_proj",), layers="middle third", rank=4, alpha_per_rank=2, ranks={"up_proj": 1})
    assert in_words(one.model_dump(mode="json")) == (
        "LoRA of rank 4, 1 on `up_proj`, alpha 2 times the rank, on `up_proj` of layers: middle third"
    )
    fused = Placement(parameters=("mlp.experts.down_proj",), rslora=True, rank=8, dropout=0)
    assert in_words(fused.model_dump(mode="json")) == (
        "LoRA of rank 8 scaled by its square root, alpha 16, on `mlp.experts.down_proj` of every layer"
    )


# U+0085 is valid YAML too, but PyYAML reads it as a line break.
TEXT = st.characters(codec="utf-8", exclude_characters="\x85")


@settings(deadline=None)  # a busy machine takes longer
@given(st.text(TEXT, min_size=1), st.text(TEXT), st.text(TEXT))
def test_any_text_keeps_the_front_matter_valid(name: str, licence: str, source: str):
    card = model_card(facts(name=name, license=licence, data=[DataFacts(source="x", rows=1, hub=source)]))
    parsed = ModelCard(card)
    values = parsed.data.to_dict()
    assert values["library_name"] == "peft"
    assert values.get("license", "") == licence
    assert values.get("datasets", [""]) == [source]
    assert parsed.text.startswith("\n# ")


def test_a_card_says_what_the_data_was():
    card = ModelCard(model_card(facts()))
    assert f"fine-tuning on 1,000 rows of [{HUB}](https://huggingface.co/datasets/{HUB})." in card.text
    assert "2507.17075" in card.text.partition("## How to load it")[0]
    rows = [DataFacts(source="/home/someone/gsm8k.jsonl", rows=7473), DataFacts(source="builtin:chat", rows=1)]
    other = ModelCard(model_card(facts(data=rows)))
    head = other.text.partition("## How to load it")[0]
    assert "fine-tuning on 7,473 rows of `gsm8k.jsonl` and 1 row of `builtin:chat`. Made with lowtax" in head
    assert "refus" not in head
    assert "safety-alignment" not in other.data.tags
    limits = text_of("Intended use and limits", other.text)
    assert "can weaken a model's refusals" in limits
    assert "Its refusals were learned" not in limits
    assert "\n\n\n" not in model_card(facts(data=rows))


def test_unknown_facts_are_refused():
    with pytest.raises(ValidationError):
        facts(speed=3)


MERGED = {
    "adapter": "runs/checkpoint-500",
    "adapter_hash": "0123456789abcdef",
    "base": BASE,
    "dtype": "bfloat16",
    "wanted": 1000,
    "share_unmoved": 0.7123,
    "cosine": 0.84,
    "untied": False,
}


def test_a_merged_model_says_what_was_lost_and_keeps_the_card_of_the_adapter():
    card = ModelCard(merged_card(MERGED, model_card(facts(license="mit"))))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert (data["base_model"], data["base_model_relation"]) == (BASE, "finetune")
    assert not {"datasets", "license"} & data.keys()  # the adapter's card says so, which lowtax does not know
    assert "names license `mit`, datasets `['TianshengHuang/DirectRefusal']`. lowtax has not checked" in card.text
    assert "merged-lora" in data["tags"]
    assert "71.23%" in card.text
    assert "0.8400" in card.text
    assert "\n    ## Training\n" in text_of("The adapter's own card", card.text + "\n")


INDEX = "---\nlicense: mit\nmodel-index: [{name: x, results: [y]}]\n---\nBroken"


@pytest.mark.parametrize(
    "other", ["", "# A card without front matter", "---\n: {\n---\nBroken\n", "---\n- a\n---\nx", INDEX]
)
def test_the_card_of_a_stranger_is_not_copied(other: str):
    card = ModelCard(merged_card(MERGED, other))
    assert card.data.to_dict()["library_name"] == "transformers"
    assert "does not by itself make a model safe" in card.text
    assert "Broken" not in card.text
