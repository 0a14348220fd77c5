"""What all exams share: the same questions in the same order on every machine, their prompts, and their gold answers.

Which n problems, and in which order options stand, follow from hashes of the question's id and the exam seed alone:
not from file order, n, the process or a cache. (In lm-evaluation-harness 0.4 a disk cache decides: the seed that first
ran on a machine fixes the order of GPQA's options there.)

Prompts
    default     mathematics: the sentence that DeepSeek-R1's README recommends. Multiple choice: the prompt of OpenAI's
                simple-evals, which DeepSeek-R1's report used for GPQA and MMLU.
    paper       those of Xue & Mirzasoleiman 2025 (code: YihaoXue/lora-safety-reasoning @ 7950048, tasks `AIME`, `AMC`,
    reference   `hendrycks_math_500` and `gpqa_diamond_better_prompt`), with their trailing newlines.

No stop strings are ever sent. Those tasks stop at "Problem:", which cuts a thought that says this word.
"""

import json
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lowtax import answers, mathematics
from lowtax.benchmarks import Score, catalog
from lowtax.benchmarks.base import Task
from lowtax.data import readers
from lowtax.errors import UserError
from lowtax.records import Prompt, row_id

MATHEMATICS = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
MATHEMATICS_PAPER = (
    "Solve the following math problem. Present the final answer in the format: "
    "Final Answer: \\boxed{{your_answer}}.\nProblem: {}\nAnswer:"
)
CHOICE = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'Answer: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by step before answering.\n\n"
    "{question}\n\n{options}"
)
CHOICE_PAPER = (
    "You are solving a multiple-choice question. At the end, present your final answer using the format: "
    "Final Answer: \\boxed{{X}}, where X is one of {letters}.\n\n"
    "Question: {question}\nChoices:\n{options}\n\n"
)

PROBLEM = ("problem", "question", "prompt")
GOLD = ("answer", "gold", "final_answer", "solution")
LAST_LINE = re.compile(r"\n(?:A|Answer):\s*([^\n]*\d[^\n]*)\s*\Z")


@dataclass(frozen=True)
class Question:
    """A multiple-choice question, `key` its id. Of its options the right one stands first, the rest are sorted."""

    key: str
    text: str
    options: tuple[str, ...]
    category: str = ""


def shuffled(options: Sequence[str], key: str, seed: int) -> tuple[list[str], int]:
    """The options in the order of this exam, and where the first of them, the right one, now stands."""
    order = sorted(range(len(options)), key=lambda place: row_id("option order", key, seed, place))
    return [options[place] for place in order], order.index(0)


def chosen(prompts: Iterable[tuple[str, Prompt]], n: int | None, seed: int) -> list[Prompt]:
    """n of the prompts in the order of this exam, all if n is None: the first 10 of 20 are those of n = 10.

    prompts: each behind its question's id. A question that stands twice is asked once.
    """
    by_key: dict[str, Prompt] = {}
    for key, prompt in prompts:
        by_key.setdefault(key, prompt)
    order = sorted(by_key, key=lambda key: row_id("choice of problems", key, seed))
    return [by_key[key] for key in order][:n]


def choice_rows(name: str, questions: Iterable[Question], task: Task) -> list[Prompt]:
    """The prompts of a multiple-choice exam. An id is that of the question with its options in this order."""
    prompts = []
    for question in questions:
        shown, right = shuffled(question.options, question.key, task.seed)
        prompt = Prompt(
            id=row_id(name, question.key, shown),
            source=name,
            text=choice_prompt(question.text, shown, task.preset),
            category=question.category,
            gold=string.ascii_uppercase[right],
            choices=tuple(shown),
        )
        prompts.append((question.key, prompt))
    return chosen(prompts, task.n, task.seed)


def choice_score(row: Prompt, answer: str, preset: str) -> Score:
    """Whether the answer names the right option; `reference` knows only A to D, by its own rules."""
    right = string.ascii_uppercase[right_place(str(row.gold), row.choices, f"question {row.id}")]
    if preset == "reference":
        found, rule = answers.reference_letter(answer), "reference"
    else:
        found, rule = answers.letter(answer, row.choices)
    return Score(found == right, found, rule)


def open_rows(name: str, task: Task, ask: Callable[[str, str], str] | None = None) -> list[Prompt]:
    """The prompts of an exam with answers of one's own. ask: from a problem and the preset to the prompt."""
    prompts = []
    for number, row in enumerate(catalog.rows(name, task), 1):
        where = f"{task.file or name}, row {number}"
        problem = str(readers.cell(row, PROBLEM, where))
        gold = gold_answer(str(readers.cell(row, GOLD, where)))
        category = readers.find_column(row, ("subject", "category", "type"))
        prompt = Prompt(
            id=row_id(name, problem.strip()),
            source=name,
            text=(ask or mathematics_prompt)(problem, task.preset),
            category=str(row[category] or "") if category else "",
            gold=gold,
        )
        prompts.append((problem.strip(), prompt))
    return chosen(prompts, task.n, task.seed)


def open_score(row: Prompt, answer: str, preset: str) -> Score:
    """Whether the final answer equals the gold one: integers as numbers (025 = 25 = 25.0), the rest as mathematics."""
    gold = gold_answer(str(row.gold))
    if preset == "reference":
        correct, found = mathematics.reference_correct(answer, gold)
        return Score(correct, found, "reference")
    found, rule = mathematics.final(answer)
    if found is None:
        return Score(False, None, rule)
    number, right = mathematics.integer(found), mathematics.integer(gold)
    if number is not None and right is not None:
        return Score(number == right, number, rule)
    return Score(mathematics.same(found, gold), number or found, rule)


def mathematics_prompt(problem: str, preset: str) -> str:
    """What a model is asked; the default strips the problem, the reference's prompt has it as it stands."""
    return MATHEMATICS.format(problem.strip()) if preset == "default" else MATHEMATICS_PAPER.format(problem)


def choice_prompt(question: str, options: Sequence[str], preset: str) -> str:
    """What a model is asked; the default strips question and options."""
    letters = string.ascii_uppercase[: len(options)]
    lettered = list(zip(letters, options, strict=True))
    if preset == "default":
        lines = "\n".join(f"{letter}) {option.strip()}" for letter, option in lettered)
        return CHOICE.format(letters=letters, question=question.strip(), options=lines)
    lines = "\n".join(f"({letter}) {option}" for letter, option in lettered)
    listed = f"{', '.join(letters[:-1])}, or {letters[-1]}"
    return CHOICE_PAPER.format(letters=listed, question=question, options=lines)


def right_place(gold: str | int, options: Sequence[str], where: str) -> int:
    """Which option a gold answer names: a letter as `B`, `(B)` or `b.`, an index from 0, or the option's own text."""
    text = str(gold).strip()
    count = len(options) or len(string.ascii_uppercase)
    letter = re.fullmatch(r"\W*([A-Za-z])\W*", text)
    if letter and (place := string.ascii_uppercase.index(letter[1].upper())) < count:
        return place
    named = {place for place, option in enumerate(options) if option.strip() == text}
    if re.fullmatch(r"\d+(\.0)?", text) and int(float(text)) < count:
        named = {int(float(text)), *(() if isinstance(gold, int) else named)}
    if len(named) == 1:
        return named.pop()
    raise UserError(
        f"{where}: the gold answer {text[:60]!r} names {len(named)} of its {len(options)} options; "
        "it must be a letter, an index from 0, or the text of one option."
    )


def gold_answer(text: str) -> str:
    """The final answer in a published solution: after the last `####`, a last line `A: 18`, in a box, or all of it."""
    _, mark, after = text.rpartition("####")
    line = LAST_LINE.search(text)
    stated = after if mark else line[1] if line else None
    if stated is not None:
        return stated.strip().replace(",", "")
    return answers.boxed(text) or text.strip()


def listed(value: Any, where: str) -> list[str]:
    """Options as a file holds them: a list, the JSON text of one, or `{"text": [...]}`."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: the options {value[:60]!r} are neither a list nor JSON of one.") from error
    if isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, list) or not 2 <= len(value) <= len(string.ascii_uppercase):
        raise UserError(f"{where}: the options must be a list of 2 to 26 texts, not {str(value)[:60]!r}.")
    return [str(option) for option in value]
