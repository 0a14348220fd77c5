"""The loss on plain text against transformers' own, for a base, adapters, a whole model, and both together."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_study
import torch
from analyze_command import run
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import make_model, save_adapter
from transformers import AutoModelForCausalLM

from lowtax.analysis import text_loss
from lowtax.common import stats
from lowtax.common.errors import UserError
from lowtax.common.records import Subject
from lowtax.data.documents import Documents
from lowtax.models import loading
from lowtax.study import recipe, study

TEXTS = [
    "The river rose in the night, and the bridge was under water by six.",
    "x",
    "A recipe: flour, water, salt.\nKnead it. Wait a day. Bake it hot, and eat it while it is warm. " * 4,
    "",
    "Token <|im_end|> in plain text is text.",
    "Numbers: 3, 1, 4, 1, 5, 9, 2, 6.",
]
DOCUMENTS = Documents(TEXTS, "texts")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two adapters on it, an untrained one, a whole model that was tuned, and an adapter on that."""
    folder = tmp_path_factory.mktemp("models")
    base = make_model(folder / "origin", "qwen3")
    for seed in (1, 2):
        save_adapter(folder / f"lora-{seed}", base, 2, ["up_proj", "q_proj"], seed)
    untrained = get_peft_model(loading.load_model(str(base)), LoraConfig(r=2, target_modules=["up_proj"]))
    untrained.peft_config["default"].base_model_name_or_path = str(base)
    untrained.save_pretrained(folder / "untrained")
    make_model(folder / "tuned", "qwen3", seed=5)
    save_adapter(folder / "on-tuned", folder / "tuned", 2, ["down_proj"], 3)
    return {path.name: path for path in folder.iterdir()}


def subject(arm: str, models: dict[str, Path], model: str, adapter: str | None, seed: int | None = None) -> Subject:
    return Subject(arm, seed, "last", 1, str(models[model]), str(models[adapter]) if adapter else None, "")


def measured(models: dict[str, Path], subjects: list[Subject], **options: Any) -> dict[str, Any]:
    labels = [f"{s.arm} {s.seed}" for s in subjects]
    return text_loss.measure(str(models["origin"]), subjects, labels, DOCUMENTS, "float32", **options)


@pytest.fixture(scope="module")
def rows(models: dict[str, Path]) -> list[list[int]]:
    """The tokens of each text that has two; a special token that a text spells is no token of its own."""
    tokenizer = loading.load_tokenizer(str(models["origin"]))
    return [[t for character in text for t in tokenizer(character)["input_ids"]] for text in TEXTS if len(text) > 1]


@torch.no_grad()
def losses(model: torch.nn.Module, rows: list[list[int]]) -> list[float]:
    """Transformers' own mean loss of each row, times the number of its predicted tokens."""
    inputs = [torch.tensor([row]) for row in rows]
    return [float(model(ids, labels=ids).loss) * (ids.shape[1] - 1) for ids in inputs]


def nats(report: dict[str, Any], model: int) -> list[float]:
    return [text["nats"][model] for text in report["texts"]]


def test_losses_are_those_of_transformers(models: dict[str, Path], rows: list[list[int]]):
    report = measured(
        models,
        [
            subject("lora", models, "origin", "lora-1"),
            subject("full", models, "tuned", None),
            subject("both", models, "tuned", "on-tuned"),
            subject("other", models, "origin", "lora-2"),
        ],
    )
    plain = AutoModelForCausalLM.from_pretrained(models["origin"]).eval()
    wanted = [losses(plain, rows)]
    for base, adapter in (("origin", "lora-1"), ("tuned", None), ("tuned", "on-tuned"), ("origin", "lora-2")):
        model = AutoModelForCausalLM.from_pretrained(models[base])
        wanted.append(losses((PeftModel.from_pretrained(model, models[adapter]) if adapter else model).eval(), rows))
    for number, values in enumerate(wanted):
        assert nats(report, number) == pytest.approx(values, rel=1e-5)
    predicted = [len(row) - 1 for row in rows]
    assert [text["tokens"] for text in report["texts"]] == predicted
    assert [text["document"] for text in report["texts"]] == [1, 3, 5, 6]
    assert (report["used"], report["dropped"], report["tokens"]) == (4, 2, sum(predicted))
    mean = [sum(values) / sum(predicted) for values in wanted]
    assert [model["loss"]["value"] for model in report["models"]] == pytest.approx(mean, rel=1e-5)
    assert [model["perplexity"] for model in report["models"]] == pytest.approx([math.exp(x) for x in mean], rel=1e-4)
    more = [model["difference"]["value"] for model in report["models"][1:]]
    assert more == pytest.approx([value - mean[0] for value in mean[1:]], abs=2e-5)
    assert min(map(abs, more)) > 1e-3
    assert report["models"][0]["difference"] is None
    assert json.loads(json.dumps(report)) == report


def test_a_window_begins_with_the_last_token_of_the_one_before(models: dict[str, Path], rows: list[list[int]]):
    assert text_loss.windows_of(range(7), 3) == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert text_loss.windows_of(range(6), 3) == [[0, 1, 2], [2, 3, 4], [4, 5]]
    assert text_loss.windows_of([5], 3) == text_loss.windows_of([], 3) == []
    report = measured(models, [], max_tokens=16)
    model = AutoModelForCausalLM.from_pretrained(models["origin"]).eval()
    parts = [[row[i : i + 16] for i in range(0, len(row) - 1, 15)] for row in rows]
    assert nats(report, 0) == pytest.approx([sum(losses(model, part)) for part in parts], rel=1e-5)
    assert report["tokens"] == sum(len(row) - 1 for row in rows)
    assert measured(models, [])["max_tokens"] == 512  # the positions of the model


def test_batches_do_not_change_losses(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    lora = [subject("lora", models, "origin", "lora-1")]
    together = measured(models, lora)
    monkeypatch.setattr(text_loss, "AT_ONCE", 1)
    alone = measured(models, lora)
    assert nats(alone, 1) == pytest.approx(nats(together, 1), rel=1e-5)


def test_an_adapter_that_is_zero_forgets_nothing_exactly(models: dict[str, Path]):
    arms = [subject("lora", models, "origin", "lora-1"), subject("zero", models, "origin", "untrained")]
    report = measured(models, arms)
    assert nats(report, 2) == nats(report, 0) != nats(report, 1)
    assert report["models"][2]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_first_token_of_the_tokenizer_comes_first(models: dict[str, Path], tmp_path: Path):
    """A tokenizer that begins every text with a token: the first character is predicted, too."""
    from tokenizers.processors import TemplateProcessing

    make_model(tmp_path, "qwen3")
    tokenizer = loading.load_tokenizer(str(tmp_path))
    tokenizer.bos_token = "<|im_start|>"
    begin = ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[begin])
    tokenizer.save_pretrained(tmp_path)
    assert loading.load_tokenizer(str(tmp_path))("a")["input_ids"][0] == begin[1]
    report = text_loss.measure(str(tmp_path), [], [], Documents(["x", ""], "texts"), "float32")
    assert (report["tokens"], report["used"], report["dropped"]) == (1, 1, 1)


# --- intervals


def test_intervals_draw_documents_and_seeds(models: dict[str, Path]):
    arms = [subject("lora", models, "origin", f"lora-{seed}", seed) for seed in (1, 2)]
    report = measured(models, arms)
    (over,) = report["over_seeds"]
    assert (over["arm"], over["seeds"]) == ("lora", [1, 2])
    cells = [model["difference"] for model in report["models"][1:]]
    assert over["difference"]["value"] == pytest.approx((cells[0]["value"] + cells[1]["value"]) / 2, abs=1e-5)
    for cell in (*cells, over["difference"], report["models"][0]["loss"]):
        assert cell["low"] < cell["value"] < cell["high"]


def test_a_ratio_is_that_of_sums_and_its_interval_holds_the_truth():
    assert stats.ratio_interval([[2.0, 9.0]], [1, 3])[0] == pytest.approx(11 / 4)
    assert stats.ratio_interval([[2.0, 9.0], [4.0, 1.0]], [1, 3])[0] == pytest.approx(16 / 8)
    value, low, high = stats.ratio_interval([[6.0]], [3])
    assert value == 2
    assert math.isnan(low) and math.isnan(high)  # noqa: PT018
    rng, held, widths = np.random.default_rng(3), 0, []
    for trial in range(200):
        sizes = rng.integers(20, 200, size=40)
        sums = 0.3 * sizes + rng.normal(0, 1, size=40) * sizes
        _, low, high = stats.ratio_interval([sums.tolist()], sizes.tolist(), seed=trial, resamples=400)
        held += low <= 0.3 <= high
        widths.append(high - low)
    assert 0.88 < held / 200 < 0.99
    assert 0.4 < np.mean(widths) < 1.0


def test_a_loss_that_is_not_finite_is_none(models: dict[str, Path], tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(models["origin"])
    with torch.no_grad():
        model.lm_head.weight.mul_(1e38)
    model.save_pretrained(tmp_path / "broken")
    broken = Subject("broken", None, "last", 1, str(tmp_path / "broken"), None, "")
    report = measured(models, [broken])
    one = report["models"][1]
    assert [one["loss"], one["difference"]] == [dict.fromkeys(("value", "low", "high"))] * 2
    assert one["perplexity"] is None
    assert report["models"][0]["loss"]["value"] is not None


# --- the command


def test_the_command_adds_the_losses_to_the_report(models: dict[str, Path], tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    words = ["--adapter", str(models["lora-1"]), "--tuned", str(models["tuned"]), "--text", f"{tmp_path}/rows.jsonl"]
    words += ["--base", str(models["origin"]), "--precision", "float32"]
    report = json.loads(run(*words, "--out", str(tmp_path / "out"), "--json"))
    assert json.loads((tmp_path / "out" / "geometry.json").read_text()) == report
    assert [model["label"] for model in report["text"]["models"]] == ["base", "lora-1", "tuned"]
    assert report["text"]["source"]["documents"] == 6
    shown = run(*words)
    loss, more = report["text"]["models"][0]["loss"], report["text"]["models"][1]["difference"]
    assert f"{loss['value']:.4f} [{loss['low']:.4f}, {loss['high']:.4f}]" in shown
    assert f"{more['value']:+.4f} [{more['low']:+.4f}, {more['high']:+.4f}]" in shown
    assert "on 4 documents of rows.jsonl" in shown
    (tmp_path / "one.txt").write_text(TEXTS[0])
    assert (
        "["
        not in run(*words[:-6], "--text", f"{tmp_path}/one.txt", *words[-4:]).partition("loss")[2].partition("loss:")[0]
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--text", "FOLDER/short.txt"], r"short.txt has no document of two tokens or more \(1 were read\)"),
        (["--text", "FOLDER/absent.txt"], "cannot be read"),
        (["--text", "FOLDER/long.txt", "--max-tokens", "1"], r"A window of 1 tokens cannot be read .* 512 positions"),
        (["--text", "FOLDER/long.txt", "--max-tokens", "513"], "A window of 513 tokens cannot be read"),
        (["--max-tokens", "16"], "add --text"),
        (["--precision", "float32"], "add --text"),
    ],
)
def test_mistakes_are_one_sentence(models: dict[str, Path], tmp_path: Path, words: list[str], sentence: str):
    (tmp_path / "short.txt").write_text("x")
    (tmp_path / "long.txt").write_text(TEXTS[0])
    words = [word.replace("FOLDER", str(tmp_path)) for word in words]
    with pytest.raises(UserError, match=sentence):
        run("--adapter", str(models["lora-1"]), *words)


def test_of_a_study_the_last_checkpoints_read_the_text(tmp_path: Path):
    base = make_model(tmp_path / "model")
    path = small_study.write_recipe(tmp_path, base, arms={"full": {"mode": "full"}, "r2": {"mode": "lora_mlp_r2"}})
    out = tmp_path / "out"
    with study.Study(recipe.load(path), out) as work:
        work.train()
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    report = json.loads(run(str(out), "--text", f"{tmp_path}/rows.jsonl", "--max-tokens", "64", "--json"))
    assert json.loads((out / "geometry.json").read_text()) == report
    text = report["text"]
    labels = ["full, seed 0", "full, seed 1", "r2, seed 0", "r2, seed 1"]
    assert [model["label"] for model in text["models"]] == ["base", *labels]
    assert {model["checkpoint"] for model in text["models"][1:]} == {"checkpoint-4"}
    assert [over["arm"] for over in text["over_seeds"]] == ["full", "r2"]
    assert (text["precision"], text["max_tokens"]) == ("float32", 64)
    assert {one["label"] for one in report["similarity"]["maps"]} == {"full, seed 0", "r2, seed 0"}
    assert (out / "similarity.png").is_file()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    folder = out / "arms" / "r2" / "seed-1" / "checkpoint-4"
    row = torch.tensor([[t for c in TEXTS[0] for t in loading.load_tokenizer(str(base))(c)["input_ids"]][:64]])
    with torch.no_grad():
        one = float(plain(row, labels=row).loss)
        two = float(PeftModel.from_pretrained(plain, folder).eval()(row, labels=row).loss)
    short = {"text": TEXTS[0][:64]}
    (tmp_path / "short.jsonl").write_text(json.dumps(short))
    text = json.loads(run(str(out), "--text", f"{tmp_path}/short.jsonl", "--json"))["text"]
    assert text["models"][0]["loss"] == {"value": pytest.approx(one, abs=1e-5), "low": None, "high": None}
    assert text["models"][-1]["difference"]["value"] == pytest.approx(two - one, abs=1e-5)


def test_a_study_has_its_own_precision():
    with pytest.raises(UserError, match="A study defines its own precision"):
        run("somewhere", "--text", "x.txt", "--precision", "float32")
