"""Parts that the cards of trained and of merged models share: front matter, names, how to load, limits, citation."""

import re
from pathlib import Path
from typing import Any

import yaml

from lowtax import __version__

PAPER = "[arXiv:2507.17075](https://arxiv.org/abs/2507.17075)"

LIMITS = """\
For research on the safety alignment of reasoning models: how much harm is refused, and what that costs in reasoning and
in ordinary help.

- Fine-tuning on refusals does not by itself make a model safe. What it refuses was taught by examples; other wordings,
  languages, long conversations and deliberate attacks are not covered by them, and later fine-tuning can undo them.
- It may refuse ordinary requests, most of all those that only look dangerous (over-refusal).
- The thought of a reasoning model can hold harmful text even where its answer refuses.
- Measure it on your own prompts before use, and keep the safeguards around it that the base model would need."""

CITATION = f"""\
```bibtex
@article{{xue2025lora,
  title={{LoRA is All You Need for Safety Alignment of Reasoning LLMs}},
  author={{Xue, Yihao and Mirzasoleiman, Baharan}},
  journal={{arXiv preprint arXiv:2507.17075}},
  year={{2025}}
}}
@software{{lowtax,
  title={{lowtax: safety alignment of reasoning LLMs without the safety tax, measured}},
  author={{{{The lowtax authors}}}},
  version={{{__version__}}}
}}
```"""


WHOLE_MODEL = """\
HERE is this folder, or its id on the hub.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(HERE)
model = AutoModelForCausalLM.from_pretrained(HERE)
```

```bash
vllm serve HERE
```"""


def metadata(ref: str, library: str, relation: str, tags: list[str]) -> dict[str, Any]:
    """What the front matter of every card holds. A base that is not on the hub is left out."""
    base = hub_id(ref)
    return {
        **({"base_model": base, "base_model_relation": relation} if base else {}),
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["lowtax", "safety-alignment", *tags],
    }


def front_matter(values: dict[str, Any]) -> str:
    """The YAML block at the head of a card, without what is absent."""
    return f"---\n{yaml.safe_dump({key: value for key, value in values.items() if value}, sort_keys=False)}---\n"


def split(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card; a front matter that is not YAML counts as none."""
    if not (found := re.match(r"---\n(.*?\n)---\n(.*)", card, flags=re.DOTALL)):
        return {}, card
    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError:
        values = None
    return (values if isinstance(values, dict) else {}), found[2]


def hub_id(ref: str) -> str | None:
    """The model reference, if it can only be an id on the hub."""
    return ref if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", ref) and not Path(ref).exists() else None


def called(ref: str) -> str:
    """A model as a card names it; of a local folder only the last part of the path."""
    if base := hub_id(ref):
        return f"[{base}](https://huggingface.co/{base})"
    return f"`{ref}`" if ref.startswith("builtin:") else f"the local model `{Path(ref).name}`"


def sections(texts: dict[str, str]) -> str:
    """Title -> text as Markdown."""
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in texts.items())
