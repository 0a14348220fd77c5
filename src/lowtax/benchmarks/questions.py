"""Choose questions, write prompts, read gold answers and score replies: what all exams share.

The choice of n problems and the order of options follow from hashes of the question's id and the exam seed alone, not
from file order, n, the process or a cache, so an exam is the same on every machine. (In lm-evaluation-harness 0.4 a
disk cache decides: the seed that ran first on a machine fixes the order of GPQA's options there.)

Prompts
    default     mathematics: the sentence that DeepSeek-R1's README recommends. Multiple choice: the prompt of OpenAI's
                simple-evals, which DeepSeek-R1's report used for GPQA and MMLU.
    paper       those of Xue & Mirzasoleiman 2025 (code: YihaoXue/lora-safety-reasoning @ 7950048, tasks `AIME`, `AMC`,
    reference   `hendrycks_math_500` and `gpqa_diamond_better_prompt`), with their trailing newlines.

Stop strings are never sent. Those tasks stop at "Problem:", which cuts a thought that contains this word.
"""

import ast
import json
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lowtax.benchmarks import catalog
from lowtax.benchmarks.base import Score, Task
from lowtax.benchmarks.grading import extract, letters, mathematics, reference_rules
from lowtax.benchmarks.grading.normalise import normalise
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt, row_id
from lowtax.data import readers

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
    """A multiple-choice question; `key` is its id. The right option is first, the others are sorted."""

    key: str
    text: str
    options: tuple[str, ...]
    category: str = ""


def shuffled(options: Sequence[str], key: str, seed: int) -> tuple[list[str], int]:
    """Return the options in the order of this exam, and the new place of the first of them, the right one."""
    order = sorted(range(len(options)), key=lambda place: row_id("option order", key, seed, place))
    return [options[place] for place in order], order.index(0)


def chosen(prompts: Iterable[tuple[str, Prompt]], n: int | None, seed: int) -> list[Prompt]:
    """Return n of the prompts in the order of this exam, all if n is None: the first 10 of 20 are those of n = 10.

    prompts: pairs of a question's id and its prompt. A question that occurs twice is asked once.
    """
    by_key: dict[str, Prompt] = {}
    for key, prompt in prompts:
        by_key.setdefault(key, prompt)
    order = sorted(by_key, key=lambda key: row_id("choice of problems", key, seed))
    return [by_key[key] for key in order][:n]


def choice_rows(name: str, questions: Iterable[Question], task: Task) -> list[Prompt]:
    """Return the prompts of a multiple-choice exam. An id is that of the question with its options in this order."""
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
    """Compare the option that the answer chooses with the right one; `reference` knows A to D, by its own rules."""
    right = string.ascii_uppercase[right_place(str(row.gold), row.choices, f"question {row.id}")]
    if preset == "reference":
        letter = reference_rules.letter(answer)
        return Score(letter == right, letter, "reference", checkable=letter is not None)
    chosen_letter, rule = letters.letter(answer, row.choices)
    return Score(chosen_letter == right, chosen_letter, rule.value, checkable=rule.boxed)


def open_rows(name: str, task: Task, prompt: Callable[[str, str], str] | None = None) -> list[Prompt]:
    """Return the prompts of an exam without options. prompt: writes the prompt from a problem and the preset."""
    prompts = []
    for number, row in enumerate(catalog.rows(name, task), 1):
        where = f"{task.file or name}, row {number}"
        problem = str(readers.cell(row, PROBLEM, where))
        gold = gold_answer(str(readers.cell(row, GOLD, where)))
        category = readers.find_column(row, ("subject", "category", "type"))
        entry = Prompt(
            id=row_id(name, problem.strip()),
            source=name,
            text=(prompt or mathematics_prompt)(problem, task.preset),
            category=str(row[category] or "") if category else "",
            gold=gold,
        )
        prompts.append((problem.strip(), entry))
    return chosen(prompts, task.n, task.seed)


def open_score(row: Prompt, answer: str, preset: str) -> Score:
    """Compare the final answer with the gold one: integers as numbers (025 = 25 = 25.0), the rest as mathematics."""
    gold = gold_answer(str(row.gold))
    if preset == "reference":
        correct, content = reference_rules.correct(answer, gold)
        return Score(correct, content, "reference", checkable=content is not None)
    final, rule = extract.final_answer(answer)
    if final is None:
        return Score(False, None, rule.value)
    ours, theirs = (normalise(extract.unboxed(text)) for text in (final, gold))
    both_integers = ours.integer is not None and theirs.integer is not None
    correct = ours.integer == theirs.integer if both_integers else mathematics.equal(ours, theirs)
    return Score(correct, ours.integer or final, rule.value, checkable=rule.boxed)


def mathematics_prompt(problem: str, preset: str) -> str:
    """Write the prompt; the default strips the problem, the reference's leaves it as it is."""
    return MATHEMATICS.format(problem.strip()) if preset == "default" else MATHEMATICS_PAPER.format(problem)


def choice_prompt(question: str, options: Sequence[str], preset: str) -> str:
    """Write the prompt; the default strips question and options."""
    names = string.ascii_uppercase[: len(options)]
    lettered = list(zip(names, options, strict=True))
    if preset == "default":
        lines = "\n".join(f"{letter}) {option.strip()}" for letter, option in lettered)
        return CHOICE.format(letters=names, question=question.strip(), options=lines)
    lines = "\n".join(f"({letter}) {option}" for letter, option in lettered)
    enumerated = f"{', '.join(names[:-1])}, or {names[-1]}"
    return CHOICE_PAPER.format(letters=enumerated, question=question, options=lines)


def right_place(gold: str | int, options: Sequence[str], where: str) -> int:
    """Return the place of the option that a gold answer names: `B`, `(B)` or `b.`, an index from 0, or its text."""
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
    """Return the final answer of a solution: after the last `####`, in a last line `A: 18`, in a box, or all of it."""
    _, mark, after = text.rpartition("####")
    line = LAST_LINE.search(text)
    stated = after if mark else line[1] if line else None
    if stated is not None:
        return stated.strip().replace(",", "")
    return extract.boxed(text) or text.strip()


LETTERED = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]+(.*\S)[ \t]*$", re.MULTILINE)


def _written_list(text: str, where: str) -> Any:
    """Return the list in a text: JSON, as Python prints it, or a line for each letter."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    lines = LETTERED.findall(text)
    if [letter for letter, _ in lines] == list(string.ascii_uppercase[: len(lines)]) and len(lines) > 1:
        return [option for _, option in lines]
    raise UserError(f"{where}: the options {text[:60]!r} are neither a list nor JSON of one.")


def listed(value: Any, where: str) -> list[str]:
    """Read options as files hold them: a list, an object by letter, `{"text": [...]}`, or the text of one of these."""
    if isinstance(value, str):
        value = _written_list(value, where)
    if isinstance(value, dict):
        by_letter = dict(sorted(value.items())) if all(re.fullmatch(r"\W*[A-Za-z0-9]\W*", key) for key in value) else {}
        value = value["text"] if "text" in value else list(by_letter.values())
    if isinstance(value, list) and all(isinstance(option, dict) and "text" in option for option in value):
        value = [option["text"] for option in value]
    value = list(value) if isinstance(value, tuple) else value
    if not isinstance(value, list) or not 2 <= len(value) <= len(string.ascii_uppercase):
        raise UserError(f"{where}: the options must be a list of 2 to 26 texts, not {str(value)[:60]!r}.")
    return [str(option) for option in value]
