"""Send the results of a study to the trackers of `execution.report_to`: a run for each arm, a step for each checkpoint.

Training sends its steps while it runs (`training/trackers`); this is what was measured afterwards: every rate with its
interval and n, the tax, the place at matched safety, and a sample of replies. The prompts of the sample are the same
for all arms. Harmful requests and the replies to them stay in the study's folder unless a setting allows them; their
verdicts are sent.

```
DIR/tracking/ARM/events.out.tfevents...   for TensorBoard: `tensorboard --logdir DIR` shows training beside results
DIR/tracking/sent.json                    what was sent, as hashes: results are sent again only when they change
```
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowtax.common.borders import border
from lowtax.common.display import as_line
from lowtax.common.errors import UserError
from lowtax.common.files import atomic_folder, read_mapping, write_json
from lowtax.common.names import below, is_link
from lowtax.common.records import Reply, row_id
from lowtax.common.row_files import RowFile
from lowtax.common.tables import markdown_table
from lowtax.report import attacked, stored
from lowtax.report.overview import Figure, Measures, add_row, matched_rows
from lowtax.report.replies import LETTERS, Place, Prompt, Replies
from lowtax.report.stored import Stored
from lowtax.report.subjects import Columns
from lowtax.training.settings import Execution
from lowtax.training.trackers import PROJECT, check

FOLDER, SENT = "tracking", "sent.json"
LEFT_OUT = ("categories", "lengths")  # groups of measures that would be hundreds of charts
LONGEST = 2_000  # characters of a thought or an answer in a sample
HIDDEN = "(harmful text stays in the study's folder)"
COLUMNS = ("set", "prompt id", "category", "verdict", "prompt", "thought", "answer")
GRADES = {"y": "right", "w": "wrong", "n": "no answer", "u": "unfinished"}
VERDICTS = {letter: label for label, letter in LETTERS.items()}


@dataclass(frozen=True)
class Results:
    """The results of an arm.

    study, arm: their names.
    figures: the numbers of every checkpoint by name, in the order of steps; `NAME_low`, `NAME_high` and `NAME_n` belong
        to the rate `NAME`.
    replies: rows with the `COLUMNS`, of the last checkpoint.
    """

    study: str
    arm: str
    figures: list[tuple[int, dict[str, float]]]
    replies: list[list[str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the run: that of the study and the arm."""
        return f"{self.study}/{self.arm}/results"

    @property
    def hash(self) -> str:
        """The hash of all that is sent."""
        return row_id(self.name, self.figures, self.replies)


def send(folder: Path, execution: Execution) -> dict[str, list[str]]:
    """Send the results of a study to the trackers of `execution.report_to`; return the arms that each was sent.

    Raises:
        UserError: the study has no table, a tracker is not installed or refuses, or the folder for it is a link.
    """
    if not execution.report_to:
        return {}
    check(execution.report_to)
    place = folder / FOLDER
    if place.is_symlink():
        raise is_link(place)
    every = results(folder, execution.report_replies, execution.report_harmful_text)
    sent: dict[str, Any] = read_mapping(place / SENT) if (place / SENT).exists() else {}
    done: dict[str, list[str]] = {}
    for tracker in execution.report_to:
        before = sent.get(tracker) if isinstance(sent.get(tracker), dict) else {}
        assert isinstance(before, dict)
        for arm in every:
            if before.get(arm.arm) == arm.hash:
                continue
            _sent_to(tracker, arm, below(place, arm.arm))
            done.setdefault(tracker, []).append(arm.arm)
            before = before | {arm.arm: arm.hash}
            sent = sent | {tracker: before}
            place.mkdir(exist_ok=True)
            write_json(place / SENT, sent)
    return done


def _sent_to(tracker: str, arm: Results, folder: Path) -> None:
    """Send the results of an arm to one tracker.

    Raises:
        UserError: the tracker refuses.
    """
    sentence = f"The results of {arm.arm} were not sent to {tracker}"
    with border(sentence, f"the study is complete; `lowtax compare DIR --report-to {tracker}` sends them again"):
        {"tensorboard": _to_tensorboard, "wandb": _to_wandb, "trackio": _to_trackio}[tracker](arm, folder)


def _to_tensorboard(arm: Results, folder: Path) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found,no-redef]

    with atomic_folder(folder, replace=True) as work, SummaryWriter(str(work)) as writer:  # type: ignore[no-untyped-call]
        for step, figures in arm.figures:
            for name, value in figures.items():
                writer.add_scalar(name, value, global_step=step)  # type: ignore[no-untyped-call]
        if arm.replies:
            table = markdown_table([list(COLUMNS), *arm.replies], left=len(COLUMNS))
            writer.add_text("replies", table, global_step=arm.figures[-1][0])  # type: ignore[no-untyped-call]


def _to_wandb(arm: Results, folder: Path) -> None:
    import wandb  # type: ignore[import-not-found]

    config = {"study": arm.study, "arm": arm.arm}
    with wandb.init(project=PROJECT, name=arm.name, group=arm.study, job_type="results", config=config) as run:
        for step, figures in arm.figures:
            last = step == arm.figures[-1][0]
            table = {"replies": wandb.Table(columns=list(COLUMNS), data=arm.replies)} if last and arm.replies else {}
            run.log(figures | table, step=step)


def _to_trackio(arm: Results, folder: Path) -> None:
    import trackio  # type: ignore[import-not-found]

    config = {"study": arm.study, "arm": arm.arm}
    run = trackio.init(project=PROJECT, name=arm.name, group=arm.study, config=config)
    try:
        for step, figures in arm.figures:
            run.log(figures, step=step)
        if arm.replies:
            table = trackio.Table(columns=list(COLUMNS), data=arm.replies)
            run.log({"replies": table}, step=arm.figures[-1][0])
    finally:
        run.finish()


def results(folder: Path, replies: int, harmful_text: bool) -> list[Results]:
    """Return the results of every arm of a study, the base among them.

    Args:
        replies: the most replies of an arm to each prompt set and task.
        harmful_text: the sample has the texts of harmful requests and of the replies to them.

    Raises:
        UserError: the study has no table.
    """
    study = stored.read(folder)
    if not study.rows:
        raise UserError(f"{folder} has no table: `lowtax compare {folder}` writes it.")
    columns = Columns([study])
    columns.add_rows()
    sample = _sample(study, columns, replies, harmful_text) if replies else {}
    by_arm: dict[str, list[tuple[int, int, str | None]]] = {}
    for row in study.rows:
        number = columns.number(0, row["arm"], row["checkpoint"])
        by_arm.setdefault(row["arm"], []).append((row["step"], number, row["checkpoint"]))
    figures = _figures(study, columns)
    names = {number: arm for (_, arm, _), number in columns.numbers.items()}
    at_level = {names[row["column"]]: _at_level(row) for row in matched_rows(0, study, columns)}
    listed = []
    for arm, points in by_arm.items():
        points.sort(key=lambda point: point[0])
        own = [(step, figures[number]) for step, number, _ in points]
        own[-1] = (own[-1][0], own[-1][1] | at_level.get(arm, {}))
        listed.append(Results(study.name, arm, own, sample.get(points[-1][1], [])))
    return listed


def _figures(study: Stored, columns: Columns) -> dict[int, dict[str, float]]:
    """Return the numbers of every column by the names that trackers show them under: `safety/harmful_refused`."""
    measures = Measures()
    for row in study.rows:
        add_row(measures, columns.number(0, row["arm"], row["checkpoint"]), row)
    by_column: dict[int, dict[str, float]] = {number: {} for number in columns.numbers.values()}
    for measure in measures.described():
        if measure["group"] not in LEFT_OUT:
            unit = f" {measure['unit']}" if measure["unit"] in ("seconds", "tokens") else ""
            for column, figure in measure["figures"].items():
                by_column[column] |= _named(f"{measure['group']}/{measure['name']}{unit}", figure)
    return by_column


def _at_level(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an arm where it first reaches the level of safety; none where it never does."""
    if row["step"] is None:
        return {}
    figures = {"matched safety/step": float(row["step"]), "matched safety/reached": row["reached"]}
    numbers = {_tag(name): float(value) for name, value in figures.items() if value is not None}
    for name, figure in row["rates"].items():
        numbers |= _named(f"matched safety/{name}", figure)
    return numbers


def _named(name: str, figure: Figure) -> dict[str, float]:
    ends = ("", "_low", "_high", "_n")
    pairs = zip(ends, figure, strict=False)
    return {_tag(name) + end: float(value) for end, value in pairs if value is not None}


def _tag(name: str) -> str:
    """Return a name that every tracker takes: words joined by `_`, after the name of its group."""
    return re.sub(r"[^\w./-]+", "_", name).strip("_")


def _sample(study: Stored, columns: Columns, most: int, harmful_text: bool) -> dict[int, list[list[str]]]:
    """Return the sampled replies of every column that is the last checkpoint of an arm."""
    last = {number for number, column in enumerate(columns.described()) if column["last"]}
    by_column: dict[int, list[list[str]]] = {number: [] for number in last}
    for questions in (False, True):
        replies = Replies([study], columns, questions)
        plain = [prompt for prompt in replies.prompts.values() if prompt.kind != attacked.KIND]
        for prompt in _drawn(plain, most):
            for column, place in _firsts(prompt, last):
                text = harmful_text or prompt.kind != "harmful"
                by_column[column].append(_row(study, replies, prompt, place, text))
    return by_column


def _drawn(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """Return at most so many prompts of each kind: the same ones in every study that has them."""
    by_kind: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda prompt: row_id("tracked", prompt.id)):
        by_kind.setdefault(prompt.kind, []).append(prompt)
    return [prompt for kind in by_kind.values() for prompt in kind[:most]]


def _firsts(prompt: Prompt, last: set[int]) -> Iterator[tuple[int, Place]]:
    """Yield the first reply of each of some columns to a prompt: that of the first seed and sample."""
    seen: set[int] = set()
    for (column, *_), place in sorted(prompt.replies.items()):
        if column in last and column not in seen:
            seen.add(column)
            yield column, place


def _row(study: Stored, replies: Replies, prompt: Prompt, place: Place, text: bool) -> list[str]:
    judge = (prompt.kind, "") if replies.questions else (study.table.get("judge"), study.table.get("judged_text"))
    results = replies.results.get((str(judge[0]), str(judge[1])))
    letter = replies.letter(results, place) if results else "-"
    verdict = (GRADES if replies.questions else VERDICTS).get(letter, "none")
    head = [prompt.set, prompt.id, prompt.category, verdict]
    if not text:
        return [*head, HIDDEN, "", ""]
    with RowFile(replies.files[place.file], Reply) as rows:
        row = rows.at(place.start)
    texts = (row.goal or row.prompt, row.thought, row.answer or ("" if row.thought else row.text))
    return [*head, *(each[:LONGEST] for each in texts)]


def described(sent: Mapping[str, Sequence[str]]) -> str:
    """Return a line on what was sent; empty if nothing was."""
    parts = [f"{tracker} ({', '.join(as_line(arm) for arm in arms)})" for tracker, arms in sent.items()]
    return f"results sent to {', '.join(parts)}" if parts else ""
