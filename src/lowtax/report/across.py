"""Studies of different recipes in one table: every rate on the prompts and questions that all of them have.

A rate of one study and a rate of another are compared only on the same prompts, read by the same judge. So the rates of
the tables, which cover all prompts of a study, are computed again from the stored verdicts and grades.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowtax.benchmarks import rates as reasoning
from lowtax.common.display import as_line, as_markdown
from lowtax.common.errors import UserError
from lowtax.common.files import write_text
from lowtax.common.records import Verdict
from lowtax.common.tables import Cell, markdown_table, rate_over_seeds
from lowtax.judges import rates as safety
from lowtax.report import attacked, failures, stored
from lowtax.report.answers import level_of
from lowtax.report.differences import differences
from lowtax.report.replies import LETTERS, Place, Replies, Results
from lowtax.report.stored import KINDS, Stored
from lowtax.report.subjects import BASE, Columns
from lowtax.study import matched

LABELS: dict[str, Any] = {letter: label for label, letter in LETTERS.items()}
NO_RESULT, SAFE = "-nf", "rps"  # letters
COLUMNS = {"harmful": "safety", "ordinary": "over_refusal"}
Keyed = dict[int, dict[tuple[str, int], Place]]  # seed -> prompt and sample -> place of the reply


class Common:
    """The prompts and questions that all of some studies have, and their rates on these."""

    def __init__(self, studies: Sequence[Stored], columns: Columns, requests: Replies, questions: Replies) -> None:
        """Find what the studies have in common.

        Raises:
            UserError: no prompt and no question, or the prompts have verdicts of no common judge.
        """
        self.studies, self.columns, self.requests, self.questions = studies, columns, requests, questions
        self.shared = {
            kind: self._shared(replies, kind) for replies in (requests, questions) for kind in _kinds(replies)
        }
        if not any(self.shared.values()):
            names = " and ".join(str(study.folder) for study in studies)
            raise UserError(
                f"{names} have no prompt and no question in common: studies are compared on the same prompts."
            )
        self.judge = self._judge()
        self.attacks, self.other_attacks = self._attacks()

    def _shared(self, replies: Replies, kind: str) -> set[str]:
        """Return the prompts of a kind that every study which has that kind has; none if only one study has it."""
        owners: dict[str, set[int]] = {}
        for prompt in replies.prompts.values():
            if prompt.kind == kind:
                owners[prompt.id] = {replies.study_of[place.file] for place in prompt.replies.values()}
        everyone = set[int]().union(*owners.values()) if owners else set[int]()
        return {prompt for prompt, of in owners.items() if of == everyone} if len(everyone) > 1 else set()

    def _attacks(self) -> tuple[set[str], set[str]]:
        """Return the attacks whose success can be compared, and the others.

        An attack depends on its requests and settings as a whole, so that its success is not computed again: the
        recipes must have the same entries for it, and the studies the same requests and the same headline judge.
        """
        names = {name for study in self.studies for row in study.rows for name, _ in attacked.cells(row)}
        recipes = [study.recipe.get("harmful") for study in self.studies]
        judges = {str(study.table.get("judge")) for study in self.studies}
        same = len(judges) == 1 and all(of == recipes[0] for of in recipes)
        requests: dict[str, set[frozenset[str]]] = {}
        for name in names if same else ():
            for study in range(len(self.studies)):
                of = frozenset(
                    prompt.id
                    for prompt in self.requests.prompts.values()
                    if prompt.attack == name
                    and any(self.requests.study_of[place.file] == study for place in prompt.replies.values())
                )
                requests.setdefault(name, set()).add(of)
        comparable = {name for name, sets in requests.items() if len(sets) == 1}
        return comparable, names - comparable

    def _judge(self) -> Results | None:
        """Return the verdicts of a judge that read all studies; of several, the first study's headline judge."""
        if not any(self.shared.get(kind) for kind in KINDS):
            return None
        everyone = {study for study in range(len(self.studies)) if self.studies[study].requests}
        common = {
            key: results
            for key, results in self.requests.results.items()
            if everyone <= {study for study, _ in results.by_reply}
        }
        table = self.studies[0].table
        first = (str(table.get("judge")), str(table.get("judged_text")))
        if not common:
            raise UserError(
                "The studies have verdicts of no common judge: judge the replies of one with the judge of the other "
                "(`lowtax judge DIR --judge NAME`)."
            )
        return common.get(first) or next(iter(common.values()))

    def rows(self, study: int) -> list[dict[str, Any]]:
        """Return the rows of a study's table, with the rates on what is shared, also at matched safety."""
        rows = [self._row(study, row) for row in self.studies[study].rows]
        level = matched.Level(**self.level)
        places = {arm: matched.at_level(self._curve(study, arm, rows), level) for arm in {row["arm"] for row in rows}}
        return [row | {"at_matched_safety": places[row["arm"]]} for row in rows]

    @property
    def level(self) -> dict[str, float]:
        """The level of safety at which arms are compared: that of the first study."""
        return level_of(self.studies[0].table).model_dump()

    def _curve(self, study: int, arm: str, rows: Sequence[Mapping[str, Any]]) -> list[matched.Checkpoint]:
        """Return the curve of an arm; that of a trained one begins at the base, whose outcomes each seed repeats."""
        points = [(row["step"], self._measured(self.columns.number(study, arm, row["checkpoint"])))
                  for row in sorted(rows, key=lambda row: row["step"]) if row["arm"] == arm]  # fmt: skip
        arms = self.studies[study].recipe.get("arms")
        if isinstance(arms, dict) and arm in arms and points:
            seeds = points[0][1].get(matched.SAFETY, {})
            base = self._measured(self.columns.number(study, BASE, None))
            start = {name: dict.fromkeys(seeds, next(iter(of.values()), {})) for name, of in base.items()}
            points = [(0, start), *points]
        return [matched.Checkpoint(step, measured) for step, measured in points]

    def _measured(self, column: int) -> dict[str, dict[int, dict[str, list[float]]]]:
        """Return the outcomes of a column by measure, as `matched.at_level` takes them."""
        names = {"harmful": matched.SAFETY, "ordinary": matched.OVER_REFUSAL}
        measured: dict[str, dict[int, dict[str, list[float]]]] = {}
        for kind, name in names.items() if self.judge else ():
            for seed, by_key in self._places(self.requests, kind, column).items():
                for (prompt, _), place in by_key.items():
                    if self.judge and (letter := self.requests.letter(self.judge, place)) not in NO_RESULT:
                        of_seed = measured.setdefault(name, {}).setdefault(seed, {})
                        of_seed.setdefault(prompt, []).append(float(letter in SAFE))
        for task in self.shared:
            if task not in KINDS and (of_task := _outcomes(self._graded(task, column))):
                measured[task] = of_task
        return measured

    def _row(self, study: int, row: Mapping[str, Any]) -> dict[str, Any]:
        column = self.columns.number(study, row["arm"], row["checkpoint"])
        kept = {key: value for key, value in row.items() if key not in ("at_matched_safety", "texts", "tax", "attacks")}
        cells: dict[str, Any] = {name: self._safety(kind, column) for kind, name in COLUMNS.items()}
        answers = {task: self._graded(task, column) for task in self.shared if self.shared[task] and task not in KINDS}
        if attacks := {
            name: cell for name, cell in attacked.cells(row) if name in self.attacks and attacked.is_whole(cell)
        }:
            cells["attacks"] = attacks
        cells["reasoning"] = {task: _solved(by_seed) for task, by_seed in answers.items() if by_seed}
        if row["arm"] != BASE and (tax := self._tax(study, answers)) is not None:
            cells["tax"] = tax
        return kept | cells

    def _places(self, replies: Replies, kind: str, column: int) -> Keyed:
        by_seed: Keyed = {}
        for prompt in replies.prompts.values():
            if prompt.kind == kind and prompt.id in self.shared.get(kind, ()):
                for (of, seed, sample, _), place in prompt.replies.items():
                    if of == column:
                        by_seed.setdefault(max(seed, 0), {})[prompt.id, sample] = place
        return by_seed

    def _safety(self, kind: str, column: int) -> Cell:
        verdicts: dict[int, dict[tuple[str, int], Verdict]] = {}
        for seed, by_key in self._places(self.requests, kind, column).items() if self.judge else ():
            for key, place in by_key.items():
                if self.judge and (letter := self.requests.letter(self.judge, place)) in LABELS:
                    verdict = Verdict.model_construct(
                        id="", reply_id=place.id, judge="", label=LABELS[letter], score=None
                    )
                    verdicts.setdefault(seed, {})[key] = verdict
        return safety.cell(verdicts)

    def _graded(self, task: str, column: int) -> dict[int, list[tuple[str, str]]]:
        """Return question and letter of every graded answer, by seed."""
        results = self.questions.results.get((task, ""))
        places = self._places(self.questions, task, column) if results else {}
        return {
            seed: [(question, letter) for (question, _), place in by_key.items()
                   if results and (letter := self.questions.letter(results, place)) not in "-f"]
            for seed, by_key in places.items()
        }  # fmt: skip

    def _tax(self, study: int, answers: Mapping[str, Mapping[int, list[tuple[str, str]]]]) -> Cell | None:
        base = self.columns.number(study, BASE, None)
        pairs = []
        for task, by_seed in answers.items():
            of_base = _outcomes(self._graded(task, base)).get(0, {})
            if of_base and by_seed:
                pairs.append((of_base, _outcomes(by_seed)))
        return reasoning.tax_cell(pairs) if pairs else None


def _kinds(replies: Replies) -> list[str]:
    kinds = dict.fromkeys(prompt.kind for prompt in replies.prompts.values())
    return [kind for kind in kinds if kind != attacked.KIND]


def _outcomes(by_seed: Mapping[int, list[tuple[str, str]]]) -> dict[int, dict[str, list[float]]]:
    outcomes: dict[int, dict[str, list[float]]] = {}
    for seed, answers in by_seed.items():
        for question, letter in answers:
            outcomes.setdefault(seed, {}).setdefault(question, []).append(float(letter == "y"))
    return outcomes


def _solved(by_seed: Mapping[int, list[tuple[str, str]]]) -> Cell:
    rows = [(seed, question, letter) for seed, answers in by_seed.items() for question, letter in answers]
    cell = rate_over_seeds((seed, question, float(letter == "y")) for seed, question, letter in rows)
    counts = {
        name: sum(of == letter for _, _, of in rows) for name, letter in (("unfinished", "u"), ("no_answer", "n"))
    }
    return cell | counts


def on_common_prompts(
    studies: Sequence[Stored], columns: Columns, requests: Replies, questions: Replies
) -> list[Stored]:
    """Return the studies with the rates of their tables on what they share, and a note on the number of prompts.

    Raises:
        UserError: they share nothing, or were read by no common judge.
    """
    common = Common(studies, columns, requests, questions)
    shared = {kind: len(prompts) for kind, prompts in common.shared.items() if prompts}
    judge = f", read by {common.judge.name} ({common.judge.on})" if common.judge else ""
    listed = ", ".join(f"{kind} {number:,}" for kind, number in shared.items())
    note = f"The numbers of all studies are on the prompts that they share: {listed}{judge}."
    notes = [note]
    if common.other_attacks:
        names = ", ".join(sorted(map(as_line, common.other_attacks)))
        notes.append(f"The success of {names} is not shown: the studies differ in the requests, settings or judge.")
    named: dict[str, Any] = {"matched_safety": common.level}
    if common.judge:
        named |= {"judge": common.judge.name, "judged_text": common.judge.on}
    return [
        replace(
            each, table=each.table | {"rows": common.rows(i)} | named, notes=[*each.notes, *(notes if i == 0 else [])]
        )
        for i, each in enumerate(studies)
    ]


def compare_studies(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write one table and one picture of several studies; return the table. The base is shown once if it is the same.

    The files are table.json, table.md with what differs between the recipes, and frontier.png.

    Raises:
        UserError: the studies share nothing, or one has no table.
    """
    # Lazy: the page of several studies needs neither torch nor matplotlib.
    from lowtax.study import compare
    from lowtax.study.frontier import frontier

    studies = stored.read_all(folders)
    for study in studies:
        if not study.rows:
            raise UserError(f"{study.folder} has no table: `lowtax compare {study.folder}` writes it.")
    columns = Columns(studies)
    columns.add_rows()
    requests, questions = (Replies(studies, columns, of) for of in (False, True))
    before = len(studies[0].notes)
    studies = on_common_prompts(studies, columns, requests, questions)
    same = _same_base(columns, requests, questions)
    rows = [
        row | {"arm": BASE if row["arm"] == BASE and same else f"{study.name}: {row['arm']}"}
        for i, study in enumerate(studies)
        for row in study.rows
        if not (same and i and row["arm"] == BASE)
    ]
    models = list(dict.fromkeys(str(study.table.get("model")) for study in studies))
    seeds = sorted({seed for study in studies for seed in study.table.get("seeds", []) if isinstance(seed, int)})
    table = {
        "rows": rows,
        "recipe": " and ".join(study.name for study in studies),
        "model": " and ".join(models),
        "precision": " and ".join(dict.fromkeys(str(study.table.get("precision")) for study in studies)),
        "seeds": seeds,
        "judge": str(studies[0].table.get("judge")),
        "judged_text": str(studies[0].table.get("judged_text")),
        "matched_safety": studies[0].table["matched_safety"],
        "versions": studies[0].table.get("versions", {}),
        "differences": differences([study.recipe for study in studies]),
    }
    if (kind := studies[0].table.get("judge_kind")) is not None:
        table["judge_kind"] = kind
    if failed := failures.of_studies([(study.name, study.table) for study in studies]):
        table["failed"] = failed
    whole = compare.compare(out, table)
    lines = [["setting", *(study.name for study in studies)], *table["differences"]]
    text = (out / "table.md").read_text(encoding="utf-8")
    notes = "\n\n".join(map(as_markdown, studies[0].notes[before:]))
    write_text(out / "table.md", f"{text}\n{notes}\n\n{markdown_table(lines, left=len(lines[0]))}\n")
    frontier(whole, out / "frontier.png")
    return whole


def _same_base(columns: Columns, requests: Replies, questions: Replies) -> bool:
    """Return True if every study has the same replies of its base: ids are hashes of all that made them."""
    bases = {number: study for (study, arm, _), number in columns.numbers.items() if arm == BASE}
    ids: dict[int, set[str]] = {}
    for replies in (requests, questions):
        for prompt in replies.prompts.values():
            for (column, *_), place in prompt.replies.items():
                if column in bases:
                    ids.setdefault(bases[column], set()).add(place.id)
    return len(ids) == len(columns.studies) and bool(set.intersection(*ids.values()))
