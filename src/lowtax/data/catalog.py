"""The published prompt sets that have a name: where they are, which rows count, whose they are; and a set once read.

Ids, subsets, splits, columns and row counts are those that public code and the data sets' cards state; where they could
not be checked so far, `unverified` says what.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from lowtax.records import Prompt


@dataclass(frozen=True)
class NamedPrompts:
    """A published set.

    hub: its id on the Hugging Face hub; empty: it is not there. page: where it is published.
    subset, split, file: what of the data set on the hub; `file` is one that has to be read by itself.
    columns: where the prompt stands, the first that a copy has. category: the same; `a:b` joins two columns.
    context: the column of a text that the request is about; it is put before the request.
    where: column and value of the rows that count. A copy of the subset alone need not have that column.
    stems: names of local copies, without suffix, besides the set's own.
    rows: how many are published.
    """

    hub: str
    rows: int
    licence: str
    citation: str
    page: str = ""
    subset: str | None = None
    split: str | None = None
    file: str | None = None
    columns: tuple[str, ...] = ("prompt",)
    category: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    where: dict[str, str] = field(default_factory=dict)
    stems: tuple[str, ...] = ()
    gated: bool = False
    unverified: str = ""


@dataclass(frozen=True)
class PromptList:
    """The prompts of a set in file order, and where they are from.

    origin: the hub's id, or the name of the file. revision: the hub's commit.
    note: how it differs from the set as published; empty if it does not.
    """

    name: str
    prompts: list[Prompt]
    origin: str
    revision: str | None = None
    licence: str | None = None
    citation: str | None = None
    note: str = ""

    @property
    def goals(self) -> dict[str, str]:
        """By prompt id, the plain request, where the prompt is more than that: judges are given it."""
        return {p.id: p.goal for p in self.prompts if p.goal is not None}

    @property
    def sha256(self) -> str:
        """The hash of texts, categories and goals, in any order."""
        lines = sorted(json.dumps([p.text, p.category, p.goal]) for p in self.prompts)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a card says of the set."""
        said = {key: getattr(self, key) for key in ("name", "origin", "revision", "licence", "citation", "sha256")}
        return {**said, "rows": len(self.prompts), **({"note": self.note} if self.note else {})}


STRONGREJECT = NamedPrompts(
    hub="walledai/StrongREJECT",
    rows=313,
    licence="MIT; prompts taken from other sets keep their licences",
    citation="Souly et al. 2024, A StrongREJECT for Empty Jailbreaks, arXiv:2402.10260",
    page="https://github.com/alexandrasouly/strongreject",
    split="train",
    columns=("forbidden_prompt", "prompt"),
    category=("category",),
    stems=("strongreject_dataset",),
    gated=True,
    unverified="whether the data set on the hub is gated: public sources disagree",
)
HARMBENCH = NamedPrompts(
    hub="walledai/HarmBench",
    rows=200,
    licence="MIT",
    citation="Mazeika et al. 2024, HarmBench, arXiv:2402.04249",
    page="https://github.com/centerforaisafety/HarmBench",
    subset="standard",
    split="train",
    columns=("behavior", "prompt"),
    category=("semanticcategory", "category"),
    where={"FunctionalCategory": "standard"},
    stems=("harmbench_behaviors_text_all",),
    gated=True,
)
JAILBREAKBENCH = NamedPrompts(
    hub="JailbreakBench/JBB-Behaviors",
    rows=100,
    licence="MIT",
    citation="Chao et al. 2024, JailbreakBench, arXiv:2404.01318",
    subset="behaviors",
    split="harmful",
    columns=("goal",),
    category=("category",),
    stems=("harmful-behaviors",),
)
XSTEST = NamedPrompts(
    hub="Paul/XSTest",
    rows=450,
    licence="CC-BY-4.0",
    citation="Röttger et al. 2024, XSTest, arXiv:2308.01263",
    page="https://github.com/paul-rottger/xstest",
    split="train",
    category=("label:type",),
    stems=("xstest", "xstest_prompts", "xstest_v2_prompts"),
    unverified="that the hub's copy is the 450 prompts of version 2, word for word",
)
OR_BENCH = NamedPrompts(
    hub="bench-llm/or-bench",
    rows=1319,
    licence="CC-BY-4.0",
    citation="Cui et al. 2024, OR-Bench, arXiv:2405.20947",
    subset="or-bench-hard-1k",
    split="train",
    category=("category",),
    stems=("or-bench-hard-1k",),
)
WILDJAILBREAK = NamedPrompts(
    hub="allenai/wildjailbreak",
    rows=2000,
    licence="ODC-BY, with AI2's Responsible Use Guidelines",
    citation="Jiang et al. 2024, WildTeaming at Scale, arXiv:2406.18510",
    file="eval/eval.tsv",
    columns=("adversarial",),
    category=("data_type",),
    where={"data_type": "adversarial_harmful"},
    stems=("wildjailbreak", "wildjailbreak_eval", "eval"),
    gated=True,
)

NAMED = {
    "strongreject": STRONGREJECT,
    "strongreject-small": replace(
        STRONGREJECT, hub="", rows=60, stems=("strongreject_small_dataset",), gated=False, unverified=""
    ),
    "harmbench": HARMBENCH,
    "harmbench-contextual": replace(
        HARMBENCH,
        rows=100,
        subset="contextual",
        context=("contextstring", "context"),
        where={"FunctionalCategory": "contextual"},
    ),
    "jailbreakbench": JAILBREAKBENCH,
    "jailbreakbench-benign": replace(JAILBREAKBENCH, split="benign", stems=("benign-behaviors",)),
    "advbench": NamedPrompts(
        hub="walledai/AdvBench",
        rows=520,
        licence="MIT",
        citation="Zou et al. 2023, Universal and Transferable Adversarial Attacks, arXiv:2307.15043",
        page="https://github.com/llm-attacks/llm-attacks",
        split="train",
        columns=("goal", "prompt"),
        stems=("advbench_harmful_behaviors", "harmful_behaviors"),
        gated=True,
    ),
    "xstest": XSTEST,
    "xstest-safe": replace(XSTEST, rows=250, where={"label": "safe"}),
    "xstest-unsafe": replace(XSTEST, rows=200, where={"label": "unsafe"}),
    "or-bench-hard": OR_BENCH,
    "or-bench-toxic": replace(OR_BENCH, rows=655, subset="or-bench-toxic", stems=("or-bench-toxic",)),
    "do-not-answer": NamedPrompts(
        hub="LibrAI/do-not-answer",
        rows=939,
        licence="CC-BY-NC-SA-4.0",
        citation="Wang et al. 2023, Do-Not-Answer, arXiv:2308.13387",
        split="train",
        columns=("question", "prompt"),
        category=("risk_area",),
        stems=("do_not_answer", "data_en"),
    ),
    "wildjailbreak": WILDJAILBREAK,
    "wildjailbreak-benign": replace(WILDJAILBREAK, rows=210, where={"data_type": "adversarial_benign"}),
}
