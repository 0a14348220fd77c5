"""The replies on the page: an index of all prompts with one letter for each reply, and chunks with their texts.

The index is what filters read. It has, for every prompt and column, a letter for each reply: the verdict of each judge,
or the grade, and how the reply ended. A chunk has the texts of some prompts and is loaded when one of them is opened.
Texts are read from the study's files when their chunk is written, so that memory holds places in files alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lowtax.common.display import as_line
from lowtax.common.records import Grade, Reply, Verdict
from lowtax.common.row_files import RowFile
from lowtax.judges.rates import prompt_set
from lowtax.report import attacked
from lowtax.report.encoding import as_json
from lowtax.report.stored import TALKED, Stored
from lowtax.report.subjects import Columns

LETTERS = {
    "refusal": "r",
    "partial": "p",
    "compliance": "c",
    "safe": "s",
    "unsafe": "x",
    "unfinished": "u",
    "unparsed": "n",
    "failed": "f",
}
NO_RESULT = "-"
UNSURE = (0.2, 0.8)  # the scores between which a judge is unsure
CHUNK = 300_000  # characters of texts, about
SNIPPET = 240  # characters of a prompt in the index
LONGEST_PERIOD, REPEATED = 300, 3  # characters of a text that repeats itself, and its least number of repeats

Key = tuple[str, str]  # the kind of the prompts (harmful, ordinary, attacks, or a task), and the prompt's id


@dataclass(frozen=True)
class Place:
    """The place of a reply: its file, by number, the bytes before it, and its results by judge, likewise."""

    file: int
    start: int
    id: str


@dataclass
class Prompt:
    """A prompt or question: its set, its category, the beginning of its text, and its replies.

    replies: by column, seed, sample and attempt; of several rows the last one counts.
    attack: the name of the attack that the request is under; the text is that of the plain request.
    """

    kind: str
    id: str
    set: str
    category: str
    snippet: str
    replies: dict[tuple[int, int, int, int], Place] = field(default_factory=dict)
    attack: str = ""


@dataclass
class Results:
    """The verdicts of one judge on one text, or the grades of one task: a letter and a place by study and reply id.

    unsure: study and id of the replies of which the judge is unsure, by its score.
    """

    name: str
    on: str
    by_reply: dict[tuple[int, str], tuple[str, int, int]] = field(default_factory=dict)
    unsure: set[tuple[int, str]] = field(default_factory=set)


class Replies:
    """All replies of some studies to their prompts (`questions` False) or to the questions of their tasks (True)."""

    def __init__(self, studies: Sequence[Stored], columns: Columns, questions: bool) -> None:
        """Read the files once, for the places and letters of everything in them."""
        self.questions = questions
        self.files: list[Path] = []
        self.study_of: list[int] = []  # by file
        self.result_files: list[Path] = []
        self.prompts: dict[Key, Prompt] = {}
        self.results: dict[tuple[str, str], Results] = {}
        self.flags: dict[tuple[int, int], str] = {}
        self.replaced = 0
        self.attempts = attacked.Attempts()
        for study, stored in enumerate(studies):
            named = stored.questions if questions else stored.requests
            for kind, path in named.items():
                self._read_results(study, stored, kind)
                self._read_replies(study, stored, kind, path, columns)
            if not questions and stored.attacks:
                self._read_attacks(study, stored, columns)

    def _read_attacks(self, study: int, stored: Stored, columns: Columns) -> None:
        """Read the replies to attacks; of one that talks, those of its attempts, and requests without any."""
        self._read_results(study, stored, attacked.KIND)
        for path in stored.attacks:
            name = path.name.removesuffix(TALKED)
            attempts = path.with_name(f"{name}.attempts.jsonl")
            talked = attempts != path and attempts.is_file()
            if talked:
                number = partial(columns.number, study)
                _note(attempts, attacked.read_attempts(attempts, name, number, self.attempts), stored)
            only = self.attempts.replies if talked else None
            self._read_replies(study, stored, attacked.KIND, path, columns, only)
        for id_, goal in self.attempts.goals.items():
            if (attacked.KIND, id_) not in self.prompts:
                attack, _, request = id_.rpartition(".")
                plain = self.prompts.get(("harmful", request))
                known = (plain.set, plain.category) if plain else ("", "")
                text = as_line(goal[: 2 * SNIPPET])[:SNIPPET]
                self.prompts[attacked.KIND, id_] = Prompt(attacked.KIND, id_, *known, text, attack=as_line(attack))

    def _read_results(self, study: int, stored: Stored, kind: str) -> None:
        if self.questions:
            paths, row_kind = [path for path in [stored.grade_file(kind)] if path.exists()], Grade
        else:
            paths, row_kind = stored.verdict_files(kind), Verdict  # type: ignore[assignment]
        for path in paths:
            number = len(self.result_files)
            self.result_files.append(path)
            with RowFile[Any](path, row_kind) as rows:
                for start, row in rows:
                    name, on = (kind, "") if isinstance(row, Grade) else (row.judge, row.on)
                    results = self.results.setdefault((name, on), Results(as_line(name), on))
                    results.by_reply[study, row.reply_id] = (_letter(row), number, start)
                    results.unsure.discard((study, row.reply_id))
                    if isinstance(row, Verdict) and row.score is not None and UNSURE[0] < row.score < UNSURE[1]:
                        results.unsure.add((study, row.reply_id))
            _note_damage(rows, stored)

    def _read_replies(
        self, study: int, stored: Stored, kind: str, path: Path, columns: Columns, only: set[str] | None = None
    ) -> None:
        number = len(self.files)
        self.files.append(path)
        self.study_of.append(study)
        with RowFile(path, Reply) as rows:
            for start, row in rows:
                if only is not None and row.id not in only:
                    continue
                of = attacked.place(row) if kind == attacked.KIND else None
                id_ = attacked.entry_id(of.attack, of.request) if of else row.prompt_id
                prompt = self.prompts.get((kind, id_))
                if prompt is None:
                    name = kind if self.questions else prompt_set(row)
                    text = as_line((row.goal or row.prompt)[: 2 * SNIPPET])[:SNIPPET]
                    attack = as_line(of.attack) if of else ""
                    prompt = Prompt(kind, id_, as_line(name), as_line(row.category), text, attack=attack)
                    self.prompts[kind, id_] = prompt
                column = columns.number(study, row.arm, row.checkpoint)
                key = (column, -1 if row.seed is None else row.seed, row.sample, of.attempt if of else 0)
                self.replaced += key in prompt.replies
                prompt.replies[key] = Place(number, start, row.id)
                self.flags[number, start] = _flag(row)
        _note_damage(rows, stored)

    def __len__(self) -> int:
        """Return the number of replies."""
        return sum(len(prompt.replies) for prompt in self.prompts.values())

    def chosen(self, most: int | None) -> list[Prompt]:
        """Return the prompts that the page has: all, or so many, spread evenly, that they have at most so many replies.

        Args:
            most: the largest number of replies; None for all.
        """
        listed = list(self.prompts.values())
        if most is None or len(self) <= most:
            return listed
        number = max(1, int(len(listed) * most / len(self)))
        return [listed[i * len(listed) // number] for i in range(number)]

    def index(self, prompts: Sequence[Prompt], chunks: Sequence[int], columns: int) -> dict[str, Any]:
        """Return the index of prompts.

        Args:
            chunks: the number of the chunk of each prompt.
            columns: the number of columns.
        """
        sets, categories, attacks = _Numbers(), _Numbers(), _Numbers()
        attacks[""]  # the plain requests are number 0
        judges = list(self.results.values())
        rows = [
            [
                prompt.id,
                prompt.kind,
                sets[prompt.set],
                categories[prompt.category],
                prompt.snippet,
                chunk,
                attacks[prompt.attack],
            ]
            for prompt, chunk in zip(prompts, chunks, strict=True)
        ]
        return {
            "prompts": rows,
            "sets": list(sets),
            "categories": list(categories),
            "attacks": list(attacks),
            "judges": [[results.name, results.on] for results in judges],
            "letters": [[self._letters(prompt, results, columns) for prompt in prompts] for results in judges],
            "unsure": [
                [self._unsure(prompt, each, columns) for prompt in prompts] if each.unsure else [] for each in judges
            ],
            "flags": [self._flags(prompt, columns) for prompt in prompts],
            "ids": [" ".join(place.id for _, place in sorted(prompt.replies.items())) for prompt in prompts],
            "replies": sum(len(prompt.replies) for prompt in prompts),
            "all_replies": len(self),
            "all_prompts": len(self.prompts),
        }

    def _letters(self, prompt: Prompt, results: Results, columns: int) -> str:
        """Return a letter for each reply of a prompt, by column; columns are divided by bars."""
        return self._by_column(prompt, columns, lambda place: self.letter(results, place))

    def _unsure(self, prompt: Prompt, results: Results, columns: int) -> str:
        """Return a tilde for each reply of which a judge is unsure, a point for the others; empty without a tilde."""
        text = self._by_column(
            prompt, columns, lambda place: "~" if (self.study_of[place.file], place.id) in results.unsure else "."
        )
        return text if "~" in text else ""

    def _flags(self, prompt: Prompt, columns: int) -> str:
        return self._by_column(prompt, columns, lambda place: self.flags[place.file, place.start])

    @staticmethod
    def _by_column(prompt: Prompt, columns: int, letter: Any) -> str:
        parts = [""] * columns
        for (column, *_), place in sorted(prompt.replies.items()):
            parts[column] += letter(place)
        return "|".join(parts)

    def letter(self, results: Results, place: Place) -> str:
        """Return the letter that a judge or the grading gave a reply."""
        return self._result(results, place)[0]

    def _result(self, results: Results, place: Place) -> tuple[str, int, int]:
        return results.by_reply.get((self.study_of[place.file], place.id), (NO_RESULT, 0, 0))

    def chunks(self, prompts: Sequence[Prompt], longest: int | None = None) -> Iterator[list[str]]:
        """Yield the lines of each chunk: one of JSON for each prompt, in their order.

        Args:
            longest: the characters of a thought or an answer that are shown; None for all.
        """
        with ExitStack() as stack:
            files = [stack.enter_context(RowFile(path, Reply)) for path in self.files]
            results = [
                stack.enter_context(RowFile[Any](path, Grade if self.questions else Verdict))
                for path in self.result_files
            ]
            lines: list[str] = []
            for prompt in prompts:
                lines.append(as_json(self._entry(prompt, files, results, longest)))
                if sum(map(len, lines)) > CHUNK:
                    yield lines
                    lines = []
            if lines:
                yield lines

    def _entry(
        self, prompt: Prompt, files: Sequence[RowFile[Reply]], results: Sequence[RowFile[Any]], longest: int | None
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {"id": prompt.id, "replies": []}
        if prompt.kind == attacked.KIND:
            entry["goal"] = entry["prompt"] = self.attempts.goals.get(prompt.id, prompt.snippet)
            unusable = self.attempts.unusable.get(prompt.id, {})
            entry["unusable"] = {column: attacked.counted(reasons) for column, reasons in unusable.items()}
        for (column, seed, sample, _), place in sorted(prompt.replies.items()):
            row = files[place.file].at(place.start)
            if prompt.kind != attacked.KIND:  # what an attack put to the model differs from reply to reply
                entry["prompt"], entry["goal"] = row.prompt, row.goal
            judged = [(i, *self._result(each, place)) for i, each in enumerate(self.results.values())]
            entry["replies"].append(
                {"column": column, "seed": None if seed < 0 else seed, "sample": sample}
                | _texts(row, longest)
                | self._attacked(prompt, row, longest)
                | {
                    "results": [
                        _described(i, letter, results[number].at(start))
                        for i, letter, number, start in judged
                        if letter != NO_RESULT
                    ]
                }
            )
        return entry

    def _attacked(self, prompt: Prompt, row: Reply, longest: int | None) -> dict[str, Any]:
        """Return what was put to the model for a reply to an attack; nothing for another reply."""
        if prompt.kind != attacked.KIND:
            return {}
        return {"attacked": attacked.described(row, self.attempts.scores.get(row.id), lambda text: _cut(text, longest))}


class _Numbers(dict[str, int]):
    """A number for every name, in the order in which they are first looked up."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


def _note_damage(rows: RowFile[Any], stored: Stored) -> None:
    _note(rows.path, rows.damaged, stored)


def _note(path: Path, damaged: int, stored: Stored) -> None:
    if damaged:
        many = "lines are" if damaged > 1 else "line is"
        stored.notes.append(
            f"{path.parent.name}/{path.name}: {damaged:,} damaged {many} left out (cut short, or of another version)."
        )


def _letter(row: Grade | Verdict) -> str:
    """Return the letter of a verdict; of a grade y (right), w (wrong), n (no answer) or u (unfinished)."""
    if isinstance(row, Verdict):
        return LETTERS[row.label]
    if row.correct:
        return "y"
    return "u" if not row.finished else "n" if row.extracted is None else "w"


def _flag(row: Reply) -> str:
    """Return how a reply ended: f (failed), l (it repeats itself), u (its thought has no end), c (cut), or a point."""
    if row.finish == "failed":
        return "f"
    if row.finish == "length" and loops(row.text):
        return "l"
    return "u" if not row.closed else "c" if row.finish == "length" else "."


def loops(text: str) -> bool:
    """Return True if the end of a text is one passage again and again: three times or more, and 90 characters."""
    tail = text.rstrip()[-REPEATED * LONGEST_PERIOD :]
    for period in range(1, min(LONGEST_PERIOD, len(tail) // REPEATED) + 1):
        length = max(90, REPEATED * period)
        if len(tail) >= length and tail[-length:-period] == tail[-length + period :]:
            return True
    return False


def _texts(row: Reply, longest: int | None) -> dict[str, Any]:
    """Return the texts of a reply and how it ended; the whole text alone if it has neither a thought nor an answer."""
    texts = {"thought": row.thought, "answer": row.answer} if row.thought or row.answer else {"answer": row.text}
    shown = {name: _cut(text, longest) for name, text in texts.items() if text}
    ended = {"finish": row.finish, "closed": row.closed, "tokens": row.tokens}
    return shown | ended | {"id": row.id} | ({"error": row.error} if row.error else {})


def _cut(text: str, longest: int | None) -> str:
    if longest is None or len(text) <= longest:
        return text
    return f"{text[:longest]} ... ({len(text) - longest:,} more characters)"


def _described(number: int, letter: str, row: Grade | Verdict) -> dict[str, Any]:
    """Return a verdict or a grade for people. `judge` is its number in the index."""
    if isinstance(row, Verdict):
        parts = {"score": row.score, "category": row.category, "detail": row.detail, "error": row.error}
        known = {name: value for name, value in parts.items() if value not in ("", None)}
        return {"judge": number, "label": row.label} | known
    answer = {"extracted": row.extracted, "gold": row.gold, "rule": row.rule, "checked": row.checked}
    return {"judge": number, "label": letter, "correct": row.correct} | answer
