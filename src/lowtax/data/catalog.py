"""Published data sets by name: where they are, which of their rows count, and under which licence and citation.

Ids, subsets, splits, columns and numbers of rows are those that public code and the data sets' cards state;
`unverified` says what could not be checked. docs/guides/training-data.md and docs/reference/prompt-sets.md have the
tables. The questions of benchmarks are in `lowtax.benchmarks.catalog`.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lowtax.common.borders import expanded
from lowtax.common.errors import UserError
from lowtax.data import readers
from lowtax.data.readers import DataNotAvailable, Table
from lowtax.data.tables import Row


@dataclass(frozen=True)
class LocalCopies:
    """The folder in which a user keeps copies of data sets, which need neither a network nor an account.

    variable: the environment variable that names the folder.
    suffixes: those of a copy, in the order in which they are tried.
    contents, formats, direct: words for errors: what the folder holds, the usual suffixes, how to give a file itself.
    """

    variable: str
    suffixes: tuple[str, ...]
    contents: str
    formats: str
    direct: str

    def find(self, stems: Iterable[str]) -> Path | None:
        """Return the first file in the folder that has one of these names; None if there is no folder or file.

        Raises:
            UserError: The variable does not name a folder.
        """
        value = os.environ.get(self.variable)
        if not value:
            return None
        folder = expanded(value)
        if not folder.is_dir():
            raise UserError(
                f"{self.variable} is {value!r}, which is no folder: set it to the one that holds your {self.contents}."
            )
        paths = (folder / (stem + suffix) for stem in stems for suffix in self.suffixes)
        return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True, kw_only=True)
class NamedDataset:
    """A published data set.

    hub: its id on the Hugging Face hub; empty if it is not there. page: where it is published.
    revision: the commit that is read, the newest if absent. The one that was read is recorded in both cases.
    subset, split, file: the part of the data set on the hub. `file` is one that has to be read by itself.
    rows: how many that part has, as published.
    columns: role -> names of its column, of which the copies of the set have one; `a:b` joins two columns.
    where: column and value of the rows that count. A copy of the subset alone may lack that column.
    copies: the folder of local copies. stems: names of a copy, without suffix, in addition to the set's own.
    copy_columns: the columns that a local copy needs, for errors.
    override: an environment variable in which other tools look for a local copy.
    opened: answers begin inside the thought, without the opening tag. rendering: the usual one for training.
    """

    name: str
    hub: str
    rows: int
    licence: str
    citation: str
    page: str = ""
    revision: str | None = None
    subset: str | None = None
    split: str | None = None
    file: str | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    copies: LocalCopies | None = None
    stems: tuple[str, ...] = ()
    copy_columns: str = ""
    override: str = ""
    gated: bool = False
    opened: bool = False
    rendering: str = "standard"
    unverified: str = ""

    def open(self, path: Path | None = None, split: str | None = None) -> Table:
        """Read the rows: from `path`, else from a local copy, else from the hub's cache or the hub.

        Raises:
            DataNotAvailable: There is no local copy, and the hub's cannot be read.
            UserError: The rows cannot be read.
        """
        path = path or self._local_copy(split)
        if path is None:
            return self._from_hub(split or self.split)
        if path.is_dir():
            return Table(readers.read_folder(path, self.subset, split or self.split), path.name)
        return Table(readers.read_table(path), path.name)

    def _local_copy(self, split: str | None) -> Path | None:
        usual = split in (None, self.split)
        stems = (self.name, *self.stems) if usual else (f"{self.name}_{split}",)
        if self.copies and (path := self.copies.find(stems)):
            return path
        value = os.environ.get(self.override) if self.override else None
        return expanded(value) if value else None

    def _from_hub(self, split: str | None) -> Table:
        if not self.hub:
            reason = f"The data set {self.name} is not on the hub: get it from {self.page}"
            raise DataNotAvailable(self.name, "missing", reason, f", {self._how_to_copy()}")
        try:
            folder = readers.snapshot(self.hub, self.revision)
        except DataNotAvailable as error:
            terms = f" (gated: {readers.terms(self.hub)})" if self.gated and error.kind != "gated" else ""
            remedy = f"; or {self._how_to_copy()}"
            raise DataNotAvailable(self.hub, error.kind, error.reason + terms, remedy) from error
        if self.file:
            rows = readers.read_table(readers.snapshot_file(self.hub, self.file, folder))
        else:
            rows = readers.read_folder(folder, self.subset, split, self.hub)
        return Table(rows, self.hub, folder.name)

    def _how_to_copy(self) -> str:
        if self.copies is None:
            return "give a local copy as `path`"
        columns = f" with the columns {self.copy_columns}" if self.copy_columns else ""
        file, variable = f"{self.name}{self.copies.formats}", self.copies.variable
        return f"put it as {file}{columns} into a folder and set {variable} to that, or give {self.copies.direct}"

    def select(self, table: Table) -> list[Row]:
        """Return the rows that count.

        Raises:
            UserError: No row counts, or the column that decides it is missing.
        """
        rows = table.rows
        for name, value in self.where.items():
            if self.subset and not readers.find_column(rows[0], [name]):
                continue  # a copy of the subset alone
            column = readers.require_column(rows[0], [name], table.origin)
            rows = [row for row in rows if str(row.get(column)).lower() == value]
            if not rows:
                raise UserError(f"{table.origin} has no rows with {column} = {value}.")
        return rows

    def size_note(self, rows: int) -> str:
        """Return a note if there are not as many rows as published, else an empty text."""
        return f"{rows} rows instead of the {self.rows} published" if rows != self.rows else ""

    def record(self, table: Table, note: str) -> dict[str, Any]:
        """Return the fields of a `DatasetRecord` for the rows that were read."""
        read = {"name": self.name, "origin": table.origin, "revision": table.revision}
        return {**read, "licence": self.licence, "citation": self.citation, "note": note}


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The data set that rows were read from, for cards.

    origin: the hub's id, or the name of the file. revision: the hub's commit.
    note: how the rows differ from the published ones; empty if they do not.
    """

    name: str
    origin: str
    revision: str | None = None
    licence: str | None = None
    citation: str | None = None
    note: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the fields as a card has them."""
        names = ("name", "origin", "revision", "licence", "citation", "note")
        return {name: getattr(self, name) for name in names}


TRAINING_SETS = {
    named.name: named
    for named in (
        NamedDataset(
            name="direct-refusal",
            hub="TianshengHuang/DirectRefusal",
            rows=1000,
            licence="none stated; its BeaverTails source is CC-BY-NC-4.0: treat it as non-commercial",
            citation="Huang et al. 2025, Safety Tax, arXiv:2503.00555",
            columns={"prompt": ("prompt",), "answer": ("refusal",)},
            rendering="reference",
        ),
        NamedDataset(
            name="safechain",
            hub="UWNSL/SafeChain",
            rows=40_000,
            licence="none stated; its prompts are WildJailbreak's (AI2 terms), its answers "
            "DeepSeek-R1-Distill-Llama-70B's: ask before other than research use",
            citation="Jiang et al. 2025, SafeChain, arXiv:2502.12025",
            columns={"prompt": ("instruction",), "answer": ("response",)},
            opened=True,
        ),
        NamedDataset(
            name="star1",
            hub="UCSC-VLAA/STAR-1",
            rows=1000,
            licence="Apache-2.0",
            citation="Wang et al. 2025, STAR-1, arXiv:2504.01903",
            columns={"prompt": ("question",), "answer": ("response",)},
        ),
        NamedDataset(
            name="star1-benign",
            hub="UCSC-VLAA/STAR-benign-915",
            rows=915,
            licence="not checked; its sister STAR-1 is Apache-2.0",
            citation="Wang et al. 2025, STAR-1, arXiv:2504.01903",
            columns={"prompt": ("question",), "answer": ("response",)},
            unverified="the licence of its card, and the commit that the paper used",
        ),
    )
}

PROMPT_COPIES = LocalCopies(
    variable="LOWTAX_PROMPTS",
    suffixes=(".csv", ".jsonl", ".json", ".csv.gz", ".jsonl.gz", ".json.gz", ".parquet", ".tsv"),
    contents="prompt files",
    formats=".csv",
    direct="its file as FILE:COLUMN",
)
_prompt_set = partial(NamedDataset, copies=PROMPT_COPIES)
STRONGREJECT = _prompt_set(
    name="strongreject",
    hub="walledai/StrongREJECT",
    rows=313,
    licence="MIT; prompts taken from other sets keep their licences",
    citation="Souly et al. 2024, A StrongREJECT for Empty Jailbreaks, arXiv:2402.10260",
    page="https://github.com/alexandrasouly/strongreject",
    split="train",
    columns={"prompt": ("forbidden_prompt", "prompt"), "category": ("category",)},
    stems=("strongreject_dataset",),
    gated=True,
    unverified="whether the data set on the hub is gated: public sources disagree",
)
HARMBENCH = _prompt_set(
    name="harmbench",
    hub="walledai/HarmBench",
    rows=200,
    licence="MIT",
    citation="Mazeika et al. 2024, HarmBench, arXiv:2402.04249",
    page="https://github.com/centerforaisafety/HarmBench",
    subset="standard",
    split="train",
    columns={"prompt": ("behavior", "prompt"), "category": ("semanticcategory", "category")},
    where={"FunctionalCategory": "standard"},
    stems=("harmbench_behaviors_text_all",),
    gated=True,
)
JAILBREAKBENCH = _prompt_set(
    name="jailbreakbench",
    hub="JailbreakBench/JBB-Behaviors",
    rows=100,
    licence="MIT",
    citation="Chao et al. 2024, JailbreakBench, arXiv:2404.01318",
    subset="behaviors",
    split="harmful",
    columns={"prompt": ("goal",), "category": ("category",)},
    stems=("harmful-behaviors", "jailbreakbench_harmful_behaviors"),
)
ADVBENCH = _prompt_set(
    name="advbench",
    hub="walledai/AdvBench",
    rows=520,
    licence="MIT",
    citation="Zou et al. 2023, Universal and Transferable Adversarial Attacks, arXiv:2307.15043",
    page="https://github.com/llm-attacks/llm-attacks",
    split="train",
    columns={"prompt": ("goal", "prompt")},
    stems=("advbench_harmful_behaviors", "harmful_behaviors"),
    gated=True,
)
XSTEST = _prompt_set(
    name="xstest",
    hub="Paul/XSTest",
    rows=450,
    licence="CC-BY-4.0",
    citation="Röttger et al. 2024, XSTest, arXiv:2308.01263",
    page="https://github.com/paul-rottger/xstest",
    split="train",
    columns={"prompt": ("prompt",), "category": ("label:type",)},
    stems=("xstest", "xstest_prompts", "xstest_v2_prompts"),
    unverified="that the hub's copy is the 450 prompts of version 2, word for word",
)
OR_BENCH = _prompt_set(
    name="or-bench-hard",
    hub="bench-llm/or-bench",
    rows=1319,
    licence="CC-BY-4.0",
    citation="Cui et al. 2024, OR-Bench, arXiv:2405.20947",
    subset="or-bench-hard-1k",
    split="train",
    columns={"prompt": ("prompt",), "category": ("category",)},
    stems=("or-bench-hard-1k",),
)
DO_NOT_ANSWER = _prompt_set(
    name="do-not-answer",
    hub="LibrAI/do-not-answer",
    rows=939,
    licence="CC-BY-NC-SA-4.0",
    citation="Wang et al. 2023, Do-Not-Answer, arXiv:2308.13387",
    split="train",
    columns={"prompt": ("question", "prompt"), "category": ("risk_area",)},
    stems=("do_not_answer", "data_en"),
)
WILDJAILBREAK = _prompt_set(
    name="wildjailbreak",
    hub="allenai/wildjailbreak",
    rows=2000,
    licence="ODC-BY, with AI2's Responsible Use Guidelines",
    citation="Jiang et al. 2024, WildTeaming at Scale, arXiv:2406.18510",
    file="eval/eval.tsv",
    columns={"prompt": ("adversarial",), "category": ("data_type",)},
    where={"data_type": "adversarial_harmful"},
    stems=("wildjailbreak", "wildjailbreak_eval", "eval"),
    gated=True,
)
PROMPT_SETS = {
    named.name: named
    for named in (
        STRONGREJECT,
        replace(
            STRONGREJECT,
            name="strongreject-small",
            hub="",
            rows=60,
            stems=("strongreject_small_dataset",),
            gated=False,
            unverified="",
        ),
        HARMBENCH,
        replace(
            HARMBENCH,
            name="harmbench-contextual",
            rows=100,
            subset="contextual",
            columns={**HARMBENCH.columns, "context": ("contextstring", "context")},
            where={"FunctionalCategory": "contextual"},
        ),
        JAILBREAKBENCH,
        replace(
            JAILBREAKBENCH,
            name="jailbreakbench-benign",
            split="benign",
            stems=("benign-behaviors", "jailbreakbench_benign_behaviors"),
        ),
        ADVBENCH,
        XSTEST,
        replace(XSTEST, name="xstest-safe", rows=250, where={"label": "safe"}),
        replace(XSTEST, name="xstest-unsafe", rows=200, where={"label": "unsafe"}),
        OR_BENCH,
        replace(OR_BENCH, name="or-bench-toxic", rows=655, subset="or-bench-toxic", stems=("or-bench-toxic",)),
        DO_NOT_ANSWER,
        WILDJAILBREAK,
        replace(WILDJAILBREAK, name="wildjailbreak-benign", rows=210, where={"data_type": "adversarial_benign"}),
    )
}
