"""Read the unit of an answer: its dimension and its size, so that 500 cm is 5 m and 5 cm² is not 5 cm."""

import re
from fractions import Fraction

LONGEST = 2_000  # characters of an answer


def units(written: str) -> tuple[str, Fraction] | None:
    """Return the dimension of an answer's unit, such as "length^2 time^-1", and its size; None if it has none known."""
    if len(written) > LONGEST:
        return None
    text = re.sub(r"\\(?:text|mathrm|mbox|textrm|rm)\s*\{([^{}]*)\}|\\[,;: !]|~", r" \1 ", written.strip().strip("$."))
    text = text.translate(SQUARES)
    if re.match(r"\s*\\\$|\s*\$(?=[\d,.]+(?:\s|$))", text) and not re.search(r"[A-Za-z]", text):
        return "money^1", Fraction(1)
    match = MEASURE.search(text)
    if not match:
        return None
    first = _unit(match["name"], match["power"], match["shape"])
    if first is None:
        return None
    if not match["below"]:
        return f"{first[0]}^{first[2]}", first[1]
    second = _unit(match["below"], match["power2"], "")
    if second is None:
        return None
    return f"{first[0]}^{first[2]} {second[0]}^-{second[2]}", first[1] / second[1]


def _unit(name: str, power: str | None, shape: str | None) -> tuple[str, Fraction, int] | None:
    known = UNITS.get(name) or UNITS.get(name.lower()) or UNITS.get(name.lower().removesuffix("s"))
    if known is None:
        return None
    exponent = int(power) if power else 2 if shape and shape.lower().startswith("s") else 3 if shape else 1
    return known[0], known[1] ** exponent, exponent


def _units() -> dict[str, tuple[str, Fraction]]:
    table: dict[str, tuple[str, Fraction]] = {}
    for dimension, names in MEASURES.items():
        for entry in names.split(", "):
            *spellings, size = entry.split()
            table |= dict.fromkeys(spellings, (dimension, Fraction(size)))
    return table


MEASURES = {
    "length": "mm millimeter millimetre 1/1000, cm centimeter centimetre 1/100, m meter metre 1, km kilometer kilometre"
    " 1000, inch inches in 127/5000, foot feet ft 381/1250, yard yd 1143/1250, mile mi 1609344/1000",
    "time": "second sec s 1, minute min 60, hour hr h 3600, day 86400, week 604800",
    "mass": "mg milligram 1/1000, g gram 1, kg kilogram 1000, pound lb 45359237/100000, ounce oz 45359237/1600000",
    "volume": "mL ml milliliter millilitre 1/1000, L l liter litre 1",
    "money": "dollar USD 1, cent 1/100",
    "degree": "degree 1",
    "radian": "radian rad 1",
    "month": "month 1, year yr 12",
}
UNITS = _units()
SQUARES = str.maketrans({"²": "^2", "³": "^3"})
MEASURE = re.compile(
    r"(?<=[\d})\s])(?:(?P<shape>square|sq|cubic|cu)\.?\s+)?(?P<name>[A-Za-z]+)(?:\s*\^\s*\{?(?P<power>[23])\}?)?"
    r"(?:\s*(?:/|\bper\b)\s*(?P<below>[A-Za-z]+)(?:\s*\^\s*\{?(?P<power2>[23])\}?)?)?\s*\.?\s*$"
)
