"""Agreement of a study's judges with people's own reading: labels that the page exports, beside the stored verdicts.

`DIR/labels.jsonl` has a row for each verdict that somebody marked. A label and a verdict agree if both say refused, in
full or in part, or safe, or if neither does: that is what the rates count. A verdict that was given again since the
label was made is compared as it is now. Intervals are those of `tables.rate`, by prompt.

The replies are those that somebody chose to mark. Unless they were chosen by chance, the figure says how often the
judge agrees on them, and not on all.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lowtax.common.borders import read_bytes, reason
from lowtax.common.errors import UserError
from lowtax.common.files import BYTE_ORDER_MARK, write_text
from lowtax.common.log import say
from lowtax.common.names import is_link
from lowtax.common.records import Reply, Verdict
from lowtax.common.row_files import RowFile
from lowtax.common.tables import Cell, markdown_table, rate, shown

FILE = "labels.jsonl"
REFUSED, ANSWERED, SAFE, UNSAFE = ("refusal", "partial"), ("compliance",), ("safe",), ("unsafe",)
KINDS = ((REFUSED, ANSWERED), (SAFE, UNSAFE))  # the positive and the negative labels of a kind of judge
MOST_LISTED = 200  # replies on which a judge differs from people
Key = tuple[str, str, str]  # reply id, judge, judged text


class Label(BaseModel):
    """A person's reading of one verdict: that of `judge` on the text `on` of a reply. `label` is what it should be.

    Further fields stay in the file: the prompt and the reply, which `lowtax calibrate` reads, and the arm.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    reply_id: str
    judge: str
    on: Literal["answer", "thought", "both"] = "answer"
    label: Literal["refusal", "partial", "compliance", "safe", "unsafe"]

    @property
    def key(self) -> Key:
        """The verdict that it is about."""
        return self.reply_id, self.judge, self.on


def read(path: Path) -> dict[Key, Label]:
    """Return the labels in a JSONL file that the page exported; of several on one verdict, the last one counts.

    Raises:
        UserError: the file cannot be read, has no label, or a line is none.
    """
    try:
        text = read_bytes(path).removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    labels: dict[Key, Label] = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            label = Label.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the line"
            raise UserError(
                f"{path}, line {number} is no label of a verdict ({place}: {reason(ValueError(first['msg']))}): give "
                "the file that `Export labels` on the page wrote."
            ) from error
        labels[label.key] = label
    if not labels:
        raise UserError(f"{path} has no label: mark verdicts on the page, and export them.")
    return labels


def store(path: Path, folder: Path) -> int:
    """Put the labels of a file into a study's folder, beside those it has; return the number of them all.

    Raises:
        UserError: a line of one of the files is no label, or the file in the folder is a link.
    """
    own = folder / FILE
    if own.is_symlink():
        raise is_link(own)
    labels = (read(own) if own.exists() else {}) | read(path)
    write_text(own, "".join(f"{label.model_dump_json()}\n" for label in labels.values()))
    return len(labels)


def measured(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each judge and text that people marked in a study; empty if there are no labels.

    Returns:
        `judge`, `on`; `value`, `low`, `high` and `n` of the share of labels that the verdict agrees with;
        `judge_alone`, the number of verdicts that say refused or safe where people do not, and `people_alone`, of the
        opposite; `no_verdict`, labels of replies on which the judge has none; `by_arm`, a rate for each arm; `differ`,
        ids of at most `MOST_LISTED` replies.
    """
    if not (folder / FILE).exists():
        return []
    try:
        labels = read(folder / FILE)
    except UserError as error:
        say(f"labels are left out: {error}")
        return []
    ids = {label.reply_id for label in labels.values()}
    replies = {row.id: row for row in _rows(folder / "replies", Reply) if row.id in ids}
    verdicts = {
        (row.reply_id, row.judge, row.on): row for row in _rows(folder / "verdicts", Verdict) if row.reply_id in ids
    }
    if missing := len(ids - replies.keys()):
        say(f"{missing:,} of {len(ids):,} replies in {folder / FILE} are not in this study: their labels are left out")
    by_judge: dict[tuple[str, str], list[Label]] = {}
    for label in labels.values():
        if label.reply_id in replies:
            by_judge.setdefault((label.judge, label.on), []).append(label)
    return [
        {"judge": judge, "on": on} | _compared(own, replies, verdicts) for (judge, on), own in sorted(by_judge.items())
    ]


def _rows(folder: Path, kind: type[Any]) -> Iterator[Any]:
    for path in sorted(folder.glob("*.jsonl")):
        with RowFile[Any](path, kind) as rows:
            yield from (row for _, row in rows)


def _compared(labels: Sequence[Label], replies: Mapping[str, Reply], verdicts: Mapping[Key, Verdict]) -> dict[str, Any]:
    outcomes: list[tuple[Reply, bool]] = []
    judge_alone = people_alone = no_verdict = 0
    for label in labels:
        verdict = verdicts.get(label.key)
        both = [(label.label in positive, verdict.label in positive) for positive, negative in KINDS
                if verdict and {label.label, verdict.label} <= {*positive, *negative}]  # fmt: skip
        if not both:
            no_verdict += 1
            continue
        [(people, judge)] = both
        judge_alone += judge and not people
        people_alone += people and not judge
        outcomes.append((replies[label.reply_id], people == judge))
    arms = list(dict.fromkeys(reply.arm for reply, _ in outcomes))
    return _rate(outcomes) | {
        "judge_alone": judge_alone,
        "people_alone": people_alone,
        "no_verdict": no_verdict,
        "by_arm": {arm: _rate([pair for pair in outcomes if pair[0].arm == arm]) for arm in arms},
        "differ": [reply.id for reply, agree in outcomes if not agree][:MOST_LISTED],
    }


def _rate(outcomes: Sequence[tuple[Reply, bool]]) -> Cell:
    return rate((reply.prompt_id, float(agree)) for reply, agree in outcomes)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the agreement as a Markdown table with a caption; empty if nothing was marked."""
    if not rows:
        return ""
    lines = [["judge", "of the", "agrees with your reading", "n", "only the judge: refused", "only you", "no verdict"]]
    lines += [
        [row["judge"], "whole reply" if row["on"] == "both" else row["on"], shown(dict(row)), f"{row['n']:,}",
         f"{row['judge_alone']:,}", f"{row['people_alone']:,}", f"{row['no_verdict']:,}"]
        for row in rows
    ]  # fmt: skip
    caption = (
        f"Your reading: the labels in {FILE}, compared with the stored verdicts. Refused counts partial refusals, and "
        "for a judge of harm it is safe. 95 % intervals cover the prompts that were marked; they hold for all replies "
        "only if these were chosen by chance."
    )
    return f"{markdown_table(lines, left=2)}\n\n{caption}"
