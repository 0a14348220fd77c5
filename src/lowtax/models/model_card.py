"""Model cards: the README.md of a checkpoint folder, with the front matter of the Hugging Face hub.

A card states only what is known: no base model id for a local folder, no licence that nobody stated, and "not measured"
where there is no measurement. Rates that a study measured are also in the front matter, as its `model-index`. What the
adapter of a merged model says about itself is repeated as text, never as front matter or markup. Every value that the
template (`model_card_template.md`) writes is escaped, unless it is `display.Markup`.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, Template
from pydantic import BaseModel, ConfigDict

from lowtax import __version__
from lowtax.common.borders import border
from lowtax.common.display import Markup, as_code, as_markdown, as_quoted, as_word
from lowtax.common.errors import UserError
from lowtax.common.yaml_files import FRONT_MATTER, parse_yaml

TEMPLATE = Path(__file__).parent / "model_card_template.md"
RATES_TEMPLATE = Path(__file__).parent / "model_card_rates.md"
RATES_SECTION = re.compile(r"^## Safety and reasoning\n.*?(?=^## )", re.MULTILINE | re.DOTALL)
CLAIMS = ("license", "license_name", "license_link", "language", "datasets")
"""Front matter of an adapter's card that the card of a merged model repeats as text."""
LONGEST = 40_000
"""Characters of an adapter's own card that the card of a merged model repeats."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM 0.33 accepts for --max-lora-rank."""

REFUSALS = ("direct-refusal", "safechain", "star1", "builtin:refusals")
"""Training sets that are known to teach refusals. What other rows teach, a card does not say."""
PAPER = (
    "Which weights safety training should move is the subject of [arXiv:2507.17075](https://arxiv.org/abs/2507.17075). "
)

ON_HUB = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)

Rates = dict[str, dict[str, Any]]


class DataFacts(BaseModel):
    """Origin of training rows. `hub` is the data set's id on the hub, if it is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    rows: int
    hub: str | None = None
    revision: str | None = None
    license: str | None = None


class Facts(BaseModel):
    """Facts on the card of a trained checkpoint.

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
    def about_safety(self) -> bool:
        """True if some of the rows are known to teach refusals."""
        return any(source.source in REFUSALS for source in self.data)

    @property
    def whole(self) -> bool:
        """True if the folder holds a whole model, not an adapter."""
        return self.placement.get("kind") == "full"


def model_card(facts: Facts) -> str:
    """Return the card of a trained checkpoint: Markdown with front matter."""
    rates = _rates(facts.row) if facts.row else {}
    data = _front_matter(
        facts.model,
        "transformers" if facts.whole else "peft",
        "finetune" if facts.whole else "adapter",
        "full-fine-tuning" if facts.whole else "lora",
        datasets=list(dict.fromkeys(source.hub for source in facts.data if source.hub)),
        license=facts.license,
        safety=facts.about_safety,
        eval_results=(results := _eval_results(rates)),
        model_name=facts.name if results else None,
    )
    what = "A fully fine-tuned version of" if facts.whole else "A LoRA adapter for"
    named = as_word(Path(facts.model.removeprefix("builtin:")).name)
    return _render(
        data,
        title=facts.name,
        summary=Markup(
            f"{what} {_link(facts.model)}, trained by supervised fine-tuning on {_origins(facts.data)}. "
            + PAPER * facts.about_safety
            + f"Made with lowtax {as_markdown(facts.versions.get('lowtax', __version__))}."
        ),
        safety=facts.about_safety,
        base=None if facts.whole else as_word(hub_id(facts.model) or f"path/to/{named}"),
        builtin=as_word(facts.model) if facts.model.startswith("builtin:") and not facts.whole else None,
        served_rank=_served_rank(facts.placement),
        facts=facts,
        mode=as_code(facts.mode) if facts.mode else None,
        sources=[(_source(source), source) for source in facts.data],
        placement=Markup(in_words(facts.placement)),
        placement_yaml=Markup(yaml.safe_dump({"placement": facts.placement}, sort_keys=False, width=2**30)),
        measured=Markup(_measured(rates, facts.judge)),
        version=__version__,
    )


def with_rates(card: str, row: dict[str, Any], judge: str, picture: bool) -> str | None:
    """Return the card of a trained checkpoint with the rates that its study measured, also as its `model-index`.

    Args:
        card: the text of its README.md.
        row: the row of the checkpoint in the study's table.
        judge: the judge of refusals.
        picture: the folder has the study's frontier.png.

    Returns:
        The new text; None if the card is not one that lowtax wrote, or lacks the section of the rates.
    """
    parsed = _parse(card)
    tags = parsed.data.get("tags") if parsed else None
    if parsed is None or not (isinstance(tags, list) and "lowtax" in tags) or not RATES_SECTION.search(parsed.text):
        return None
    rates = _rates(row)
    seeds = max(len(rate.get("seeds", ())) for rate in rates.values())
    section = _measured(rates, judge, seeds, picture) + "\n\n"
    title = re.search(r"^# (.+)$", parsed.text, re.MULTILINE)
    data = parsed.data
    assert isinstance(data, ModelCardData)
    data.eval_results = _eval_results(rates) or None
    data.model_name = title[1] if title and data.eval_results else None
    text = RATES_SECTION.sub(lambda _: section, parsed.text, count=1)
    return f"---\n{data.to_yaml()}\n---\n{text}"


def _measured(rates: Rates, judge: str | None, seeds: int = 1, picture: bool = False) -> str:
    """Return the section on what was measured."""
    template = _template(RATES_TEMPLATE)
    return template.render(rates=rates, judge=judge, seeds=seeds, picture=picture)


def merged_card(merged: dict[str, Any], adapter_card: str) -> str:
    """Return the card of a merged model: its parts, what rounding lost, and as text what the adapter's card says.

    Args:
        merged: `merge.Merged` as data.
        adapter_card: the README.md of the adapter, or "". Anyone may have written it.
    """
    adapter = _parse(adapter_card)
    tags = adapter.data.get("tags") if adapter else None
    name = as_code(Path(merged["adapter"]).resolve().name)
    untied = " Its input and output embeddings are two matrices; in the base they are one." if merged["untied"] else ""
    return _render(
        _front_matter(merged["base"], "transformers", "finetune", "merged-lora", safety=True),
        safety=True,
        title=f"{Path(merged['adapter']).resolve().name}, merged",
        summary=Markup(
            f"`lowtax merge` added the LoRA adapter {name} (hash {merged['adapter_hash']}) to the weights of "
            f"{_link(merged['base'])}, in float32, and rounded the sum once to {merged['dtype']}.{untied}\n\n"
            f"The adapter changes {merged['wanted']:,} weights. Rounding left {merged['share_unmoved']:.2%} of them "
            f"unchanged; the cosine between the applied and the intended update is {merged['cosine']:.4f}."
        ),
        claims=_claims(adapter) if adapter else None,
        adapter_card=as_quoted(adapter.text.strip()[:LONGEST])
        if adapter and isinstance(tags, list) and "lowtax" in tags
        else None,
    )


def _claims(card: ModelCard) -> Markup | None:
    """Return the licence, language and data sets that an adapter's card names, as text; None if it names none."""
    named = [f"{key} {as_code(str(value)[:200])}" for key in CLAIMS if (value := card.data.get(key))]
    return Markup(", ".join(named)) if named else None


def hub_id(ref: str) -> str | None:
    """Return the model reference if it can only be an id on the hub."""
    return ref if "/" in ref and ON_HUB.fullmatch(ref) and not Path(ref).exists() else None


def in_words(placement: dict[str, Any]) -> str:
    """Describe a placement in one sentence; the card has all of it below as YAML."""
    if placement.get("kind") == "full":
        return "every weight (full fine-tuning)"
    layers = placement.get("layers")
    if layers is None:
        where = "every layer"
    elif isinstance(layers, list | tuple) and len(layers) == 2:
        where = f"layers {layers[0]} to {layers[1]}"
    else:
        where = f"layers: {as_markdown(layers)}"
    names = [*(placement.get("modules") or ()), *(placement.get("parameters") or ())]
    what = ", ".join(as_code(str(name)) for name in names) or "the modules below"
    exceptions = "".join(f", {rank} on {as_code(str(name))}" for name, rank in (placement.get("ranks") or {}).items())
    per_rank = placement.get("alpha_per_rank")
    alpha = f"{per_rank:g} times the rank" if per_rank else f"{placement.get('alpha', 16):g}"
    scale = " scaled by its square root" if placement.get("rslora") else ""
    return f"LoRA of rank {placement.get('rank')}{exceptions}{scale}, alpha {alpha}, on {what} of {where}"


@cache
def _template(path: Path = TEMPLATE) -> Template:
    """Compile a template, which takes longer than filling it."""
    return Environment(finalize=as_markdown).from_string(path.read_text(encoding="utf-8"))


def _render(data: ModelCardData, **values: Any) -> str:
    """Fill the template."""
    text = _template().render(card_data=Markup(data.to_yaml()), **values)
    return f"{ModelCard(text)}\n"


def _source(source: DataFacts) -> Markup:
    """Return the name of a data set, linked if it is on the hub."""
    if source.hub and ON_HUB.fullmatch(source.hub):
        return Markup(f"[{source.hub}](https://huggingface.co/datasets/{source.hub})")
    return as_code(source.hub or source.source)


def _origins(data: list[DataFacts]) -> str:
    """Return in words what the training rows were; of a local file only its name."""
    parts = []
    for source in data:
        name = source.source if source.source.startswith("builtin:") else Path(source.source).name
        parts.append(
            f"{source.rows:,} row{'s' * (source.rows != 1)} of {_source(source) if source.hub else as_code(name)}"
        )
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))) or "rows whose origin is not recorded"


def _front_matter(ref: str, library: str, relation: str, tag: str, safety: bool, **values: Any) -> ModelCardData:
    """Return the metadata of every card, without absent values. A base that is not on the hub is omitted."""
    base = hub_id(ref)
    return ModelCardData(
        base_model=base,
        base_model_relation=relation if base else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["lowtax", *["safety-alignment"] * safety, tag],
        **{key: value for key, value in values.items() if value},
    )


def _parse(card: str) -> ModelCard | None:
    """Parse a card; None if it has no valid front matter."""
    match = FRONT_MATTER.match(card)
    try:
        facts = parse_yaml(match[1]) if match else None
        with border("The card of the adapter cannot be read", "correct its front matter"):
            return ModelCard(card, ignore_metadata_errors=True) if isinstance(facts, dict) else None
    except (ValueError, UserError):
        return None


def _link(ref: str) -> str:
    """Return the name of a model on a card, linked if it is on the hub; of a local path only the last part."""
    if base := hub_id(ref):
        return f"[{base}](https://huggingface.co/{base})"
    return as_code(ref) if ref.startswith("builtin:") else f"the local model {as_code(Path(ref).name)}"


def _served_rank(placement: dict[str, Any]) -> int:
    largest = max([int(placement.get("rank") or 1), *(placement.get("ranks") or {}).values()])
    return next((rank for rank in VLLM_RANKS if rank >= largest), largest)


def _rates(row: dict[str, Any]) -> Rates:
    """Return the rates of a table row by their names on the card."""
    tasks = {f"{task} solved": rate for task, rate in row["reasoning"].items()}
    return {"harmful requests refused": row["safety"], "ordinary requests refused": row["over_refusal"], **tasks}


def _eval_results(rates: Rates) -> list[EvalResult]:
    """Return the measured rates for the `model-index`, each with its interval and n in the metric's name."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=(dataset := name.rpartition(" ")[0]).replace(" ", "-"),
            dataset_name=dataset,
            metric_type="accuracy" if name.endswith(" solved") else "refusal_rate",
            metric_value=round(rate["value"], 4),
            metric_name=f"{name}, 95 % interval {rate['low']:.3f} to {rate['high']:.3f}, n = {rate['n']}",
        )
        for name, rate in rates.items()
        if rate["value"] is not None
    ]
