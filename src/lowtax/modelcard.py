"""The README.md of a checkpoint folder: what it is, how it was made, what was measured, and what it is not.

The front matter is that of Hugging Face's model cards. Only what is known is written: no base model id for a local
folder, no licence that nobody stated, "not measured" where there is no measurement.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from lowtax import __version__
from lowtax.cardparts import (
    CITATION,
    LIMITS,
    PAPER,
    WHOLE_MODEL,
    called,
    front_matter,
    hub_id,
    metadata,
    sections,
    split,
)


class DataFacts(BaseModel):
    """Where training rows came from. `hub` is the data set's id on the hub, if it is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    rows: int
    hub: str | None = None
    revision: str | None = None
    license: str | None = None


class Facts(BaseModel):
    """What the card of a trained checkpoint says.

    `placement` and `settings` are those of the recipe as data, `row` is the checkpoint's row of `table.json`, `loss`
    that of its last step, `license` only what the user states.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str
    placement: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    precision: str
    data: list[DataFacts]
    step: int
    seconds: float
    loss: float
    trainable_parameters: int
    validation_loss: float | None = None
    peak_memory_gb: float | None = None
    methods: list[str] = []
    mode: str | None = None
    license: str | None = None
    hardware: str | None = None
    row: dict[str, Any] | None = None
    judge: str | None = None
    versions: dict[str, str] = {}

    @property
    def whole(self) -> bool:
        """Whether the folder holds a whole model, and not an adapter."""
        return self.placement.get("kind") == "full"


def model_card(facts: Facts) -> str:
    """The card of a trained checkpoint, in Markdown with its front matter."""
    head = metadata(
        facts.model,
        "transformers" if facts.whole else "peft",
        "finetune" if facts.whole else "adapter",
        ["full-fine-tuning" if facts.whole else "lora"],
    )
    head["datasets"] = list(dict.fromkeys(source.hub for source in facts.data if source.hub))
    head["license"] = facts.license
    body = sections(
        {
            "How to load it": WHOLE_MODEL if facts.whole else _adapter_loading(facts),
            "Recipe": _recipe(facts),
            "Data": _data(facts.data),
            "Training": _training(facts),
            "Safety and reasoning": _measured(facts),
            "Intended use and limits": LIMITS,
            "Citation": CITATION,
        }
    )
    return f"{front_matter(head)}\n# {facts.name}\n\n{_what(facts)}\n\n{body}\n"


def _what(facts: Facts) -> str:
    what = "A fully fine-tuned version of" if facts.whole else "A LoRA adapter for"
    return (
        f"{what} {called(facts.model)}, trained by supervised fine-tuning to refuse harmful requests and keep its "
        f"reasoning. Which weights such training should move is the subject of {PAPER}. "
        f"Made with lowtax {facts.versions.get('lowtax', __version__)}."
    )


def _adapter_loading(facts: Facts) -> str:
    base = hub_id(facts.model) or f"path/to/{Path(facts.model.removeprefix('builtin:')).name}"
    builtin = f' `{base}` is what `lowtax.models.resolve("{facts.model}")` returns.'
    return f"""\
HERE is this folder, or its id on the hub.{builtin if facts.model.startswith("builtin:") else ""}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), HERE)
```

```bash
vllm serve {base} --enable-lora --max-lora-rank {_served_rank(facts.placement)} --lora-modules safe=HERE
```

Serve it unmerged: merged into bfloat16, much of a small update is rounded away. `lowtax merge HERE` says how much."""


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.33 takes for --max-lora-rank."""


def _served_rank(placement: dict[str, Any]) -> int:
    largest = max([int(placement.get("rank") or 1), *(placement.get("ranks") or {}).values()])
    return next((rank for rank in VLLM_RANKS if rank >= largest), largest)


def in_words(placement: dict[str, Any]) -> str:
    """A placement as a sentence says it; what the sentence leaves out stands in the data below it."""
    if placement.get("kind") == "full":
        return "every weight (full fine-tuning)"
    layers = placement.get("layers")
    if layers is None:
        where = "every layer"
    elif isinstance(layers, list | tuple) and len(layers) == 2:
        where = f"layers {layers[0]} to {layers[1]}"
    else:
        where = f"layers: {layers}"
    names = [*(placement.get("modules") or ()), *(placement.get("parameters") or ())]
    what = ", ".join(f"`{name}`" for name in names) or "the modules below"
    own = "".join(f", {rank} on `{name}`" for name, rank in (placement.get("ranks") or {}).items())
    per_rank = placement.get("alpha_per_rank")
    alpha = f"{per_rank:g} times the rank" if per_rank else f"{placement.get('alpha', 16):g}"
    scale = " scaled by its square root" if placement.get("rslora") else ""
    return f"LoRA of rank {placement.get('rank')}{own}{scale}, alpha {alpha}, on {what} of {where}"


def _recipe(facts: Facts) -> str:
    lines = {
        "trained": in_words(facts.placement),
        "mode": f"`{facts.mode}`" if facts.mode else None,
        "methods": ", ".join(facts.methods) or "none",
        **{key.replace("_", " "): value for key, value in facts.settings.items()},
        "seed": facts.seed,
        "precision": facts.precision,
    }
    return f"{_table(lines)}\n\n```yaml\n{yaml.safe_dump({'placement': facts.placement}, sort_keys=False)}```"


def _table(lines: dict[str, Any]) -> str:
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in lines.items()}
    rows = [f"| {name} | {value} |" for name, value in shown.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _data(sources: list[DataFacts]) -> str:
    head = ["| source | rows | revision | licence |", "| --- | ---: | --- | --- |"]
    rows = [
        f"| {f'[{s.hub}](https://huggingface.co/datasets/{s.hub})' if s.hub else f'`{s.source}`'} | {s.rows:,} "
        f"| {s.revision or 'none'} | {s.license or 'not stated'} |"
        for s in sources
    ]
    return "\n".join([*head, *rows])


def _training(facts: Facts) -> str:
    memory, validation = facts.peak_memory_gb, facts.validation_loss
    return _table(
        {
            "steps": f"{facts.step:,}",
            "training loss of the last step": f"{facts.loss:.4f}",
            "validation loss": "not measured" if validation is None else f"{validation:.4f}",
            "trainable parameters": f"{facts.trainable_parameters:,}",
            "seconds": f"{facts.seconds:,.1f}",
            "peak memory": "not measured" if memory is None else f"{memory:.2f} GB",
            "hardware": facts.hardware,
            "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()) or None,
        }
    )


def _measured(facts: Facts) -> str:
    if facts.row is None:
        return "Not measured. `lowtax run` samples, judges and compares, and writes what it finds into a table."
    cells = {"harmful requests refused": facts.row["safety"], "ordinary requests refused": facts.row["over_refusal"]}
    cells |= {f"{task} solved": cell for task, cell in facts.row["reasoning"].items()}
    lines = ["| | share | 95 % interval | n |", "| --- | ---: | ---: | ---: |"]
    for name, cell in cells.items():
        value, low, high = (cell[key] for key in ("value", "low", "high"))
        shown = "not measured | |" if value is None else f"{value:.3f} | {low:.3f} to {high:.3f} | {cell['n']:,}"
        lines.append(f"| {name} | {shown} |")
    judged = f" Refusals were judged by {facts.judge}." if facts.judge else ""
    return "\n".join(lines) + (
        f"\n\nAn unfinished reply neither refuses nor solves.{judged} The intervals cover the choice of prompts, "
        "not that of the training seed."
    )


def merged_card(merged: dict[str, Any], adapter_card: str) -> str:
    """The card of a merged model: what was merged, what the rounding lost, and the adapter's card if lowtax wrote it.

    Args:
        merged: `merge.Merged` as data.
        adapter_card: the README.md of the adapter, or nothing; its data sets and licence are carried over.
    """
    known, body = split(adapter_card)
    head = metadata(merged["base"], "transformers", "finetune", ["merged-lora"])
    head |= {key: known.get(key) for key in ("datasets", "license", "license_name", "license_link", "language")}
    name = Path(merged["adapter"]).resolve().name
    untied = (
        " The input and output embeddings of the base were one matrix and are two here." if merged["untied"] else ""
    )
    what = (
        f"`lowtax merge` added the LoRA adapter `{name}` (hash {merged['adapter_hash']}) into the weights of "
        f"{called(merged['base'])}: the sum in float32, rounded once to {merged['dtype']}.{untied}\n\n"
        f"The adapter changes {merged['wanted']:,} weights. Rounding left {merged['share_unmoved']:.2%} of them where "
        f"they were; the cosine of the applied with the wanted update is {merged['cosine']:.4f}."
    )
    ours = "lowtax" in (known.get("tags") or [])
    rest = (
        {"The adapter's own card": re.sub(r"^#", "###", body.strip(), flags=re.MULTILINE)}
        if ours
        else {"Intended use and limits": LIMITS}
    )
    return f"{front_matter(head)}\n# {name}, merged\n\n{what}\n\n{sections({'How to load it': WHOLE_MODEL, **rest})}\n"
