"""Sampling: the same draws after a kill, the tokens of a reply where nothing is set, and budgets that are too small."""

import gc
import weakref
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from templates import family
from tiny import make_model

from lowtax.common import log
from lowtax.common.files import read_rows
from lowtax.common.records import Prompt, Reply, Subject
from lowtax.engines import base, sampling
from lowtax.engines.hf.engine import HF
from lowtax.engines.sampling import Sheet, collect, few_tokens, reply_tokens
from lowtax.engines.settings import EngineSettings, Sampling

PROMPTS = [
    Prompt(id=f"p{i}", source=f"s{i % 2}", text="word " * (1 + 5 * i % 17), category=str(i % 3)) for i in range(10)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True, scope="module")
def loaded_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "load", lru_cache(base.load))
        yield


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log, "OUTPUTS", [lines.append])
    return lines


def draw(out: Path, model: Path, kept: int = 0, prompts: list[Prompt] = PROMPTS, **engine: object) -> dict[str, str]:
    """The replies by prompt, after a run that was killed when `kept` of them were on disk."""
    settings = EngineSettings("hf", **{"precision": "bfloat16", "batch_size": 4, **engine})  # type: ignore[arg-type]
    sheet = Sheet(out / "replies.jsonl", prompts, Sampling(max_new_tokens=10, temperature=0.7, seed=3))
    subjects = [Subject("base", None, None, 0, str(model), None, "base")]
    collect([sheet], subjects, settings, out)
    if kept:
        lines = sheet.path.read_text().splitlines(keepends=True)
        sheet.path.write_text("".join(lines[:kept]))
        collect([sheet], subjects, settings, out)
    return {row.prompt_id: row.text for row in read_rows(sheet.path, Reply).values()}


def test_a_resumed_run_draws_what_a_whole_one_draws_where_that_is_asked_for(tmp_path: Path, model: Path):
    whole = draw(tmp_path / "a", model, deterministic=True)
    assert len(whole) == len(PROMPTS)
    assert draw(tmp_path / "b", model, kept=5, deterministic=True) == whole
    # In another order, and beside another set of prompts, whose rows are in batches of their own.
    more = [*PROMPTS[::-1], *(p.model_copy(update={"id": f"q{p.id}", "source": "other"}) for p in PROMPTS)]
    again = draw(tmp_path / "c", model, kept=7, prompts=more, deterministic=True)
    assert {id_: again[id_] for id_ in whole} == whole
    assert draw(tmp_path / "d", model, batch_size=3) != draw(tmp_path / "e", model, batch_size=10), "bfloat16 rounds"


def test_in_float32_neither_the_batch_nor_resuming_changes_a_reply(tmp_path: Path, model: Path):
    whole = draw(tmp_path / "a", model, precision="float32")
    assert draw(tmp_path / "b", model, kept=5, precision="float32") == whole
    for size in (1, 10):
        assert draw(tmp_path / f"c{size}", model, precision="float32", batch_size=size) == whole


def test_one_set_of_weights_is_in_memory_at_a_time(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    """A model that fits once must not be loaded beside another: two fully tuned ones are twice the memory."""
    load, there, beside = base.load.__wrapped__, list[weakref.ref[HF]](), list[int]()  # type: ignore[attr-defined]

    def counted(*how: Any) -> HF:
        beside.append(sum(ref() is not None for ref in there))
        engine: HF = load(*how)
        there.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(base, "load", counted)
    gc.disable()
    try:
        other = make_model(tmp_path / "other", seed=1)
        subjects = [Subject(each.name, 0, "c", 1, str(each), None, each.name) for each in (model, other)]
        sheet = Sheet(tmp_path / "replies.jsonl", PROMPTS, Sampling(max_new_tokens=3))
        collect([sheet], subjects, EngineSettings("hf", "float32", 4), tmp_path)
    finally:
        gc.enable()
    assert beside == [0, 0]
    assert there[1]() is None


def test_fixed_batches_have_ids_of_their_own_and_only_where_they_are_set():
    sheet = Sheet(Path("r.jsonl"), PROMPTS[:1], Sampling())
    subject = Subject("base", None, None, 0, "m", None, "made")

    def id_of(**settings: object) -> str:
        return sampling.asks(sheet, [subject], EngineSettings("hf", "float32", 4, **settings))[0].id  # type: ignore[arg-type]

    assert id_of() == id_of(deterministic=False, thinking_tags=None)
    assert len({id_of(), id_of(deterministic=True), id_of(thinking_tags="kimi")}) == 3
    (ask,) = sampling.asks(sheet, [subject], EngineSettings("hf", "float32", 4, thinking_tags="kimi"))
    assert ask.request().tags == "kimi"


def test_replies_have_as_many_tokens_as_a_model_needs(tmp_path: Path, model: Path):
    plain = make_model(tmp_path / "plain", think=False)
    seed = make_model(tmp_path / "seed", think=False)
    family("seed").save_pretrained(seed)
    assert [reply_tokens(str(m), "hf") for m in (model, plain, seed)] == [2048, 512, 2048]
    assert reply_tokens(str(plain), "hf", "<a>...</a>") == 2048
    assert reply_tokens("owner/served", "openai") == reply_tokens(str(tmp_path / "none"), "hf") == 2048
    assert reply_tokens("builtin:smollm2-135m-reasoner", "hf") == 96
    assert few_tokens("m", 2048, 2048) is few_tokens("m", 96, 512) is few_tokens("m", 1000, 2048) is None
    assert "m thinks before it answers, and sampling.max_new_tokens is 96" in str(few_tokens("m", 96, 2048))


def test_a_budget_that_most_replies_use_up_is_told_after_the_first_batch(tmp_path: Path, model: Path, said: list[str]):
    draw(tmp_path / "a", model)
    (line,) = [line for line in said if "WARNING" in line]
    assert "of the first 4 replies are cut at 10 tokens" in line
    assert "raise sampling.max_new_tokens (--max-new-tokens)" in line
    said.clear()
    watch = sampling.Budget(2)
    for finish in ("stop", "length", "length", "length"):
        watch.see(base.Completion("r", "", 1, finish, False), 24)  # type: ignore[arg-type]
    assert len(said) == 1
    assert "2 of the first 3 replies" in said[0]
