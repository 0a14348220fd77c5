"""What lowtax does with a family of models: a cell for each step, `ok`, or the sentence that refuses it.

    python tests/zoo/matrix.py [FAMILY ...]     # all by default; writes the page once all have been run

A step that raises anything but a UserError is a fault. So is an adapter that was trained and cannot be sampled,
merged, edited or analysed, and a reply that is not transformers' own.
"""

import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parent))

from architectures import FAMILIES, build
from peft import PeftModel
from places import ROOT

from lowtax.common.errors import UserError
from lowtax.common.files import read_json, write_json
from lowtax.data import chat
from lowtax.data.conversations import Conversation
from lowtax.engines.base import Request
from lowtax.engines.hf.engine import HF
from lowtax.methods.editing import edit
from lowtax.models import loading
from lowtax.models.frames import frame
from lowtax.models.lora import trainable_summary
from lowtax.models.merging import merge
from lowtax.models.placement import Placement, parse_mode
from lowtax.study import api
from lowtax.training.job import Job
from lowtax.training.loop import train
from lowtax.training.settings import Train

PLACEMENTS = {
    "up_proj": parse_mode("lora_up_proj_only_r2"),
    "attention and MLP": parse_mode("lora_qkvo_mlp_r2"),
    "all-linear": Placement(modules=("all-linear",), rank=2, dropout=0.0),
}
EXPERTS = Placement(
    modules=("attention",), parameters=("experts.gate_up_proj", "experts.down_proj"), rank=2, dropout=0.0
)
AFTER = ("sample", "merge", "edit", "analyze")
STEPS = ("full", *PLACEMENTS, "experts", *AFTER)
ROWS = [Conversation(f"What is {n}?", None, f"It is {n}." * (1 + n)) for n in range(4)]
MESSAGES = ({"role": "user", "content": "Tell me a story."},)
OK, TOKENS = "ok", 8
RESULTS = ROOT / "build" / "zoo.json"  # rows of earlier runs


def cells(name: str, work: Path) -> dict[str, str]:
    """Run every step on a family, and return its cells."""
    base = build(name, work / "model")
    row, adapters = {"full": _cell(lambda: _train(base, Placement(kind="full", modules=()), work / "full"))}, {}
    for step, placement in PLACEMENTS.items():
        placed = _cell(lambda p=placement: trainable_summary(str(base), p))
        folder = work / step.replace(" ", "_")
        row[step] = placed if placed != OK else _cell(lambda p=placement, f=folder: _train(base, p, f))
        if row[step] == OK:
            adapters[step] = folder / "checkpoint-2"
    has_experts = any("experts.gate_up_proj" in name for name, _ in frame(str(base)).named_parameters())
    row["experts"] = _cell(lambda: _train(base, EXPERTS, work / "experts")) if has_experts else "-"
    trained = [*adapters.values(), *([work / "experts" / "checkpoint-2"] if row["experts"] == OK else [])]
    row["sample"] = _cell(lambda: _sample(base, [None, *trained]))
    one = next(iter(adapters.values()), None)
    steps: dict[str, Callable[[Path], object]] = {
        "merge": lambda adapter: _merge(base, adapter, work / "merged"),
        "edit": lambda adapter: edit({"name": "scale", "by": 1}, adapter, work / "edited"),
        "analyze": lambda adapter: api.analyze(adapter),
    }
    for step, act in steps.items():
        row[step] = "-" if one is None else _cell(lambda a=act: a(one))
    return row


def _cell(act: Callable[[], object]) -> str:
    try:
        act()
    except UserError as error:
        return str(error)
    return OK


def _train(base: Path, placement: Placement, out: Path) -> None:
    settings = Train(steps=2, batch_size=4, lr=3e-2, warmup_steps=0)
    if placement.kind == "lora":
        placement = placement.model_copy(update={"dropout": 0.0})
    train(Job(model=str(base), placement=placement, settings=settings, seed=0, precision="float32", rows=ROWS), out)


def _sample(base: Path, adapters: list[Path | None]) -> None:
    """Sample greedily with every adapter in one plan, and compare with a loop of forward passes without a cache."""
    engine = HF(str(base), "float32", 4)
    requests = [Request(str(n), MESSAGES, a and str(a), TOKENS) for n, a in enumerate(adapters)]
    replies = {done.id: done.text for done in engine.generate(requests)}
    for request, adapter in zip(requests, adapters, strict=True):
        assert replies[request.id] == _greedy(base, adapter), (adapter, replies[request.id])


@torch.no_grad()
def _greedy(base: Path, adapter: Path | None) -> str:
    model, tokenizer = loading.load_model(str(base)), loading.load_tokenizer(str(base))
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    ids = torch.tensor([chat.prompt_ids(tokenizer, list(MESSAGES))])
    start = ids.shape[1]
    for _ in range(TOKENS):
        token = model(ids, use_cache=False).logits[:, -1:].argmax(-1)
        if int(token) == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token], -1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def _merge(base: Path, adapter: Path, out: Path) -> None:
    merge(adapter, out, dtype="float32")
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(loading.load_model(str(base)), adapter)(ids, use_cache=False).logits
        torch.testing.assert_close(
            loading.load_model(str(out))(ids, use_cache=False).logits, wanted, atol=2e-3, rtol=1e-3
        )


def page(rows: dict[str, dict[str, str]]) -> str:
    """Return the page of the documentation."""
    head = ["family", *STEPS]
    lines = [
        "# Architectures",
        "",
        "What lowtax does with each family of transformers, tried on tiny random models by `make zoo`. The page is for",
        "readers whose model is no Qwen or Llama. A number refers to the sentences below, which are printed before",
        "anything is trained or sampled; `-` is a step without an adapter, or without experts.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    notes: dict[str, int] = {}
    for name, row in rows.items():
        marks = []
        for step in STEPS:
            text = row[step].replace("|", "\\|")
            marks.append("yes" if text == OK else text if text == "-" else f"[{_note(notes, text, name)}]")
        lines.append(f"| {name} | " + " | ".join(marks) + " |")
    lines.append("")
    for text, number in notes.items():
        start = f"{number}. "
        lines += textwrap.wrap(text, 116, initial_indent=start, subsequent_indent=" " * len(start))
    return "\n".join(lines) + "\n"


def _note(notes: dict[str, int], text: str, name: str) -> int:
    """Return the number of a sentence, without the folders of the run."""
    words = " ".join("MODEL" if "TEMPORARY" in word else word for word in text.split())
    return notes.setdefault(words, len(notes) + 1)


def main() -> None:
    """Run the families that are named, or all, and print their rows."""
    names, rows = sys.argv[1:] or list(FAMILIES), {}
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            try:
                rows[name] = cells(name, Path(work))
            except Exception as error:  # noqa: BLE001 - a fault of ours; the others are run, too
                rows[name] = dict.fromkeys(STEPS, f"FAULT {type(error).__name__}: {str(error)[:200]}")
        print(name, {step: text[:160] for step, text in rows[name].items() if text != OK} or "all ok", flush=True)
        rows[name] = {step: text.replace(gettempdir(), "TEMPORARY") for step, text in rows[name].items()}
    stored = read_json(RESULTS) if RESULTS.exists() else {}
    rows = stored | rows
    write_json(RESULTS, rows)
    if rows.keys() >= FAMILIES.keys():
        (ROOT / "docs" / "reference" / "architectures.md").write_text(page({name: rows[name] for name in FAMILIES}))


if __name__ == "__main__":
    main()
