"""Read answers as the reference project does, so that its published numbers can be compared with ours.

Xue & Mirzasoleiman 2025, arXiv:2507.17075 (code: YihaoXue/lora-safety-reasoning @ 7950048, lm-evaluation-harness):
`mcq_metric_gpqa.py` for letters; for mathematics the normalisation of Hendrycks et al. 2021 (MATH), as in its
`math_metric_llm_eval_general.py`, and in `tasks/AIME/utils.py` with zeros removed first. Known faults are kept: a box
holding `\\text{C}` has no letter, and "Answer: Because" has the letter B.

Where the reference stops with an error, which would end its whole evaluation, no answer is found here.
"""

import re

LETTERS = "ABCD"
PHRASES = tuple(
    re.compile(words + r"\(?([A-Z])\)?", re.IGNORECASE)
    for words in (
        r"(?:Final Answer|Answer(?: is)?):?\s*",
        r"The answer is\s+",
        r"The correct answer is\s+",
        r"The final answer is\s+",
    )
)
REMOVED = ("\n", "\\!")
RENAMED = (("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"))
LEFT_OUT = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")


def letter(text: str) -> str | None:
    """Return the option A to D that the reference finds in a reply, or None."""
    inside = boxed(text)
    if inside:
        capital = re.search(r"[A-Z]", inside.strip().upper())
        if capital and capital[0] in LETTERS:
            return capital[0]
    for phrase in PHRASES:
        matches: list[str] = phrase.findall(text)
        if matches and matches[-1] in LETTERS:
            return matches[-1]
    return None


def boxed(text: str) -> str | None:
    """Return the content of the last box; with `\\boxed ` anywhere, the text after the last one up to a dollar sign."""
    if "\\boxed " in text:
        inside = text.split("\\boxed ")[-1].split("$")[0]
        return None if "\\fbox{" in inside else inside
    start = text.rfind("\\boxed")
    if start < 0:
        start = text.rfind("\\fbox")
    end = _closing(text, start) if start >= 0 else None
    if end is None:
        return None
    whole = text[start : end + 1]
    if "\\fbox{" not in whole:
        return whole[len("\\boxed{") : -1]
    return whole[len("\\fbox{") : -1] if whole.startswith("\\fbox{") else None


def _closing(text: str, start: int) -> int | None:
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0 and brace[0] == "}":
            return start + brace.start()
    return None


def correct(text: str, gold: str, zeros: bool = True) -> tuple[bool, str | None]:
    """Compare the last box with the gold answer after normalisation; return the result and the content of the box.

    zeros: ignore leading zeros and a decimal part of zeros, as in its task AIME.
    """
    inside = boxed(text)
    if inside is None:
        return False, None
    pair = [_shortened(inside), _shortened(gold)] if zeros else [inside, gold]
    try:
        return normalised(pair[0]) == normalised(pair[1]), inside
    except (IndexError, ValueError):
        return pair[0] == pair[1], inside


def _shortened(text: str) -> str:
    text = text.lstrip("0")
    parts = text.split(".")
    return parts[0] if len(parts) > 1 and not parts[1].rstrip("0") else text


def normalised(text: str) -> str:
    """Return the answer as the reference compares it.

    Raises:
        IndexError, ValueError: It cannot be normalised.
    """
    for old in REMOVED:
        text = text.replace(old, "")
    for old, new in RENAMED:
        text = text.replace(old, new)
    for old in LEFT_OUT:
        text = text.replace(old, "")
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = f"0{text}"
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _fractions(_roots(text).replace(" ", ""))
    return _slash("\\frac{1}{2}" if text == "0.5" else text)


def _roots(text: str) -> str:
    """Put braces into `\\sqrt3`."""
    first, *rest = text.split("\\sqrt")
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _fractions(text: str) -> str:
    """Put braces into `\\frac12` and `\\frac1{2}`; return the text unchanged if one is cut short."""
    result, *rest = text.split("\\frac")
    for part in rest:
        if part[0] == "{":
            result += f"\\frac{part}"
        elif len(part) < 2:
            return text
        else:
            second = part[1] if part[1] == "{" else f"{{{part[1]}}}"
            result += f"\\frac{{{part[0]}}}{second}{part[2:]}"
    return result


def _slash(text: str) -> str:
    """Write `a/b` of two integers as a fraction."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    above, below = int(parts[0]), int(parts[1])
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text
