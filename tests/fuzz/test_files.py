"""Every reader of files that others wrote, on a thousand damaged files of each kind: a value, or one sentence.

`make fuzz` tries more (LOWTAX_FUZZ inputs of each kind). A failure becomes a row of `test_borders.py`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzzing import COUNT, attack, documents, mutants, values
from safetensors.torch import save_file
from tiny import make_tokenizer

from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Grade, Reply, Subject, Verdict
from lowtax.data import prompt_sets, tables, training_sets
from lowtax.data.specs import Data
from lowtax.judges import own_replies, rates
from lowtax.models import adapters, loading, tensor_files
from lowtax.study import arms, recipe, update_norms
from lowtax.training import checkpoints

RECIPES = [
    b"name: a\nmodel: m\nseeds: [0, 1]\ndata: [star1, {source: r.jsonl, n: 5, columns: {prompt: q}}]\n"
    b"train: {lr: 1e-4, steps: 4, betas: [0.9, 0.99]}\narms:\n  r1: {mode: lora_mlp_r2}\n  half:\n    placement: "
    b"{modules: [up_proj], layers: 3-9, rank: 2, ranks: {up_proj: 4}}\n    methods: [{name: orthogonal, beta: 0.1}]\n",
    b"model: m\narms: {r1: {mode: lora_up_proj_only_from1_to1_r1, train: {epochs: 2}}}\nedited:\n  e: {of: r1, edits: "
    b"[{name: scale, by: 0.5}], rank: 1}\nsampling: &s {max_new_tokens: 8, temperature: 0.6}\ntasks:\n"
    b"  arithmetic: {n: 3, sampling: *s}\nharmful: [{source: builtin:harmful, n: 3, seed: 0}]\n",
    b"model: m\nthinking_tags: magistral\nchat_template_kwargs: {date: 2026-01-31}\nsystem: |\n  be kind\n"
    b"judged_also: [thought]\nexecution: {row_tokens: 2048, report_to: [wandb]}\n",
]
ROWS = [
    {"prompt": "How?", "answer": "So.", "category": "a", "id": 7, "score": 0.5},
    {"question": "Why?", "thought": "Hm.", "response": "<think>a</think>b", "split": "train"},
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "text", "text": "x"}]},
        ]
    },
    {"prompt": "A", "reply": ["b", "c"], "data": {"a": [1, {"b": "c"}]}, "label": True},
]
REPLY = {
    "id": "a", "arm": "r1", "seed": 0, "checkpoint": "checkpoint-4", "source": "s", "prompt_id": "p", "prompt": "How?",
    "sample": 0, "text": "<think>a</think>b", "thought": "a", "answer": "b", "closed": True, "finish": "stop",
    "tokens": 9, "error": None, "category": "c", "goal": None, "columns": {"id": 7, "note": "x"},
}  # fmt: skip
VERDICT = {
    "id": "a", "reply_id": "b", "judge": "refusal", "on": "answer", "label": "refusal", "error": None, "score": 0.5,
    "category": "S1", "detail": "x",
}  # fmt: skip
GRADE = {
    "id": "a", "reply_id": "b", "task": "t", "correct": True, "finished": True, "extracted": "4", "gold": "4",
    "rule": "box", "checked": None,
}  # fmt: skip


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def written(path: Path, read: Callable[[], Any]) -> Callable[[bytes], Any]:
    """A reader of bytes that writes them to a file first."""

    def reader(data: bytes) -> Any:
        path.write_bytes(data)
        return read()

    return reader


def test_recipes(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    read = written(path, lambda: recipe.load(path))
    done, refused = attack(read, mutants(RECIPES, COUNT // 2), recipe.Recipe)
    assert min(done, refused) > COUNT // 50  # the inputs are neither all whole nor all nonsense
    whole = [yaml.safe_load(text) | {"chat_template_kwargs": {"a": "b"}} for text in RECIPES]
    attack(read, documents(whole, COUNT // 2), recipe.Recipe)


def table(path: Path) -> tables.FileRows:
    """All that is read of a user's rows: as prompts, as training rows, as replies."""
    for read in (
        lambda: prompt_sets.load(str(path)).sha256,
        lambda: training_sets.load(Data(source=str(path)), 0).rows,
        lambda: own_replies.read(path, own_replies.Columns()),
    ):
        try:
            read()
        except UserError:
            continue
    return tables.read(path, strict=False)


def test_jsonl(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    seeds = [lines(ROWS[:1] * 2), lines(ROWS[1:3]), lines(ROWS[3:])]
    attack(written(path, lambda: table(path)), mutants(seeds, COUNT), tables.FileRows)


def test_csv(tmp_path: Path):
    path = tmp_path / "rows.csv"
    seeds = [
        b'prompt,answer,category\nHow?,So.,a\n"Why, then?","a ""b""",b\n',
        b"sep=;\nprompt;reply\na;b\n",
        "question\tresponse\n\u00e4\t\u00f6\n".encode("utf-16"),
    ]
    attack(written(path, lambda: table(path)), mutants(seeds, COUNT), tables.FileRows)


def test_json(tmp_path: Path):
    path = tmp_path / "rows.json"
    columns = {"prompt": {"0": "a", "1": "b"}, "answer": {"0": "c", "1": "d"}}
    seeds = [ROWS, {"data": ROWS[:2]}, {"columns": ["prompt", "answer"], "data": [["a", "b"]]}, columns]
    seeds += [{"prompt": ["a", "b"], "answer": ["c", "d"]}]
    attack(written(path, lambda: table(path)), documents(seeds, COUNT), tables.FileRows)


CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "m", "revision": None, "r": 2,
    "lora_alpha": 4, "lora_dropout": 0.05, "target_modules": ["up_proj", "down_proj"], "bias": "none",
    "rank_pattern": {"up_proj": 3}, "alpha_pattern": {"^model.layers.0": 8}, "layers_to_transform": [0],
    "layers_pattern": None, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "modules_to_save": None, "exclude_modules": None, "peft_version": "0.21.2",
}  # fmt: skip


def adapter(folder: Path) -> Path:
    """A folder with a LoRA of two modules."""
    folder.mkdir(exist_ok=True)
    up, down = "base_model.model.model.layers.0.mlp.up_proj", "base_model.model.model.layers.0.mlp.down_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 4) for name in (up, down)}
    tensors |= {f"{name}.lora_B.weight": torch.ones(4, 2) for name in (up, down)}
    save_file(tensors, folder / adapters.WEIGHTS)
    (folder / adapters.CONFIG).write_text(json.dumps(CONFIG))
    return folder


def test_safetensors(tmp_path: Path):
    folder = adapter(tmp_path / "a")
    path = folder / adapters.WEIGHTS
    seeds = [path.read_bytes()]

    def read() -> dict[str, Any]:
        tensor_files.header(path)
        adapters.is_zero(folder)
        adapters.read_adapter(folder)
        return dict(tensor_files.tensors(path))

    attack(written(path, read), mutants(seeds, COUNT), dict)


def test_adapter_configs(tmp_path: Path):
    folder = adapter(tmp_path / "a")
    path = folder / adapters.CONFIG

    def read() -> Any:
        adapters.base_of(adapters.read_config(folder))
        adapters.plain_config(folder)
        return adapters.read_adapter(folder)

    attack(written(path, read), documents([CONFIG], COUNT), adapters.Adapter)


def test_cards(tmp_path: Path):
    golden = Path(__file__).parent.parent / "golden" / "study"
    trained = json.loads((golden / "arms" / "r1" / "seed-0" / "card.json").read_text())
    edited = json.loads((golden / "arms" / "r1_half" / "seed-0" / "card.json").read_text())
    updates = json.loads((golden / "updates.json").read_text())
    of = recipe.EditedArm(of="r1", edits=[{"name": "scale", "by": 0.5}])
    base = Subject("base", None, None, 0, "m", None, "b")
    plan = arms.EditPlan("half", of, 0, tmp_path)
    source, path = tmp_path / "r1" / "seed-0", tmp_path / "half" / "seed-0" / "card.json"
    for folder in (source, path.parent):
        folder.mkdir(parents=True)
    (source / "card.json").write_text(json.dumps(trained))
    other = tmp_path / "x" / "card.json"
    other.parent.mkdir()

    def as_trained(data: bytes) -> list[Any]:
        other.write_bytes(data)
        subjects = arms.trained_subjects(other.parent, "x", 0, False, base)
        assert all(Path(str(s.adapter)).parent == other.parent for s in subjects)
        return [sum(s.train_seconds for s in subjects), sum(s.step for s in subjects)]

    def as_edited(data: bytes) -> list[Any]:
        path.write_bytes(data)
        return plan.subjects(base)

    def as_updates(data: bytes) -> list[Any]:
        other.write_bytes(data)
        figures = update_norms.measured([], "m", other)
        return [update_norms.cell([base], {"b": figure}) for figure in figures.values()]

    for read, seed in ((as_trained, trained), (as_edited, edited), (as_updates, updates)):
        attack(read, documents([seed], COUNT // 3 + 1), list)


def test_rows(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    inputs = (lines([row, REPLY]) for row in values([REPLY], COUNT // 2))
    attack(written(path, lambda: _replies(path)), inputs, dict)
    attack(written(path, lambda: _replies(path)), mutants([lines([REPLY] * 2)], COUNT // 2), dict)
    attack(written(path, lambda: read_rows(path, Grade)), mutants([lines([GRADE] * 2)], COUNT // 2), dict)


def _replies(path: Path) -> dict[str, Reply]:
    """Rows, as everything uses them: written again, counted, and averaged."""
    rows = read_rows(path, Reply)
    for row in rows.values():
        row.model_dump_json().encode()
        rates.prompt_set(row)
    float(sum(row.tokens for row in rows.values()))
    own_replies.is_ours(path)
    return rows


def test_verdicts(tmp_path: Path):
    path = tmp_path / "verdicts.jsonl"

    def read() -> dict[str, Any]:
        rows = read_rows(path, Verdict)
        for row in rows.values():
            row.model_dump_json().encode()
        return rates.cell({0: {(row.id, 0): row for row in rows.values()}})

    attack(written(path, read), (lines([row, VERDICT]) for row in values([VERDICT], COUNT // 2)), dict)
    attack(written(path, read), mutants([lines([VERDICT] * 2)], COUNT // 2), dict)


def test_states(tmp_path: Path):
    progress = {
        "step": 4, "total": 8, "seconds": 1.5, "losses": [0.5], "job": {"model": "m", "settings": {"steps": 8}},
        "checkpoints": [{"name": "checkpoint-2", "step": 2, "seconds": 1.0, "loss": 0.5, "validation": None}],
    }  # fmt: skip
    own = {"methods": [], "keeper": "lowtax", "master": [torch.ones(2, 2)], "optimizer": {"state": {}}}
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    torch.save(own, tmp_path / "own.pt")
    whole = (tmp_path / "own.pt").read_bytes()

    def read() -> tuple[Any, ...]:
        return checkpoints.read_state(tmp_path)

    attack(written(tmp_path / "own.pt", read), mutants([whole], COUNT // 2), tuple)
    (tmp_path / "own.pt").write_bytes(whole)
    attack(written(tmp_path / "progress.json", read), documents([progress], COUNT // 2), tuple)


def test_tokenizers(tmp_path: Path):
    make_tokenizer().save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"]
    for name in names:
        path = tmp_path / "t" / name
        whole = path.read_bytes()
        inputs = mutants([whole], COUNT // 4) if name.endswith("jinja") else documents([json.loads(whole)], COUNT // 4)
        attack(written(path, lambda: loading.load_tokenizer(str(tmp_path / "t"))), inputs, object)
        path.write_bytes(whole)
