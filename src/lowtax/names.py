"""What the names of modules and layers mean that a user writes in a recipe.

A name means every module whose full name ends in it, at a dot; it may be a regular expression. That is how PEFT
reads its `rank_pattern`, and it holds here for `modules`, `parameters`, the keys of `ranks` and a method's `only`.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from lowtax.errors import UserError, did_you_mean

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = "all-linear"
SHORTHANDS = {"mlp": MLP, "attention": ATTENTION, ALL_LINEAR: (ALL_LINEAR,)}

SHARES = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}
LAYERS_FORMS = "[10, 19], '10-19', '3, 5, 9-12', 'first half', 'middle third', 'last quarter' or '0.25-0.75'"
Share = tuple[Fraction, Fraction]


def layer_of(name: str) -> int | None:
    """The transformer layer that a module or parameter belongs to; None outside the layers."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def in_layer(name: str) -> str:
    """A name without what stands before and at its layer number: mlp.up_proj."""
    return re.sub(r"^.*?(?:^|\.)layers\.\d+\.", "", name)


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` is the end of `name`, at a dot."""
    return re.match(rf"(?:.*\.)?(?:{pattern})$", name) is not None


def spelled_out(names: Iterable[str]) -> tuple[str, ...]:
    """The names with shorthands replaced, each once.

    Raises:
        UserError: A name is no regular expression.
    """
    found = [name for given in names for name in SHORTHANDS.get(given, (given,))]
    for name in found:
        try:
            re.compile(name)
        except re.error as error:
            raise UserError(f"{name!r} is neither a module's name nor a regular expression ({error}).") from error
    return tuple(dict.fromkeys(found))


def spans(layers: Sequence[int]) -> str:
    """Ascending layer numbers for people: 10..19, or 0..3, 8."""
    starts = [i for i in layers if i - 1 not in layers]
    ends = [i for i in layers if i + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in zip(starts, ends, strict=True))


def read_layers(text: str) -> set[int] | Share:
    """What text in the place of layers means: layer numbers, or the two ends of a share of the depth.

    Raises:
        UserError: It is none of the forms.
    """
    clean = re.sub(r" *([-,]) *", r"\1", " ".join(text.lower().split()))
    if named := re.fullmatch(rf"(first|middle|last) ({'|'.join(SHARES)})", clean):
        share = SHARES[named[2]]
        low = {"first": Fraction(0), "middle": (1 - share) / 2, "last": 1 - share}[named[1]]
        return low, low + share
    if "." in clean and (ends := re.fullmatch(r"(\d*\.?\d+)-(\d*\.?\d+)", clean)):
        low, high = Fraction(ends[1]), Fraction(ends[2])
        if low < high <= 1:
            return low, high
    elif re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", clean):
        pairs = [[int(end) for end in part.split("-")] for part in clean.split(",")]
        if all(pair[0] <= pair[-1] for pair in pairs):
            return {i for pair in pairs for i in range(pair[0], pair[-1] + 1)}
    raise UserError(f"layers {text!r} is none of the forms {LAYERS_FORMS}, with ends in ascending order.")


def layers_in(layers: tuple[int, int] | str | None, n_layers: int) -> list[int]:
    """The layers meant in a model of `n_layers`, ascending; None is all of them.

    A share of the depth holds the layers i whose middle, (i + 1/2) / n_layers, lies in [low, high), computed without
    rounding. Shares that meet neither overlap nor leave a gap; a middle on their border belongs to the later one.

    Raises:
        UserError: One of them is not in the model, or a share holds none.
    """
    if layers is None:
        return list(range(n_layers))
    found = read_layers(layers) if isinstance(layers, str) else set(range(layers[0], layers[1] + 1))
    if isinstance(found, tuple):
        low, high = found
        found = {i for i in range(n_layers) if low <= Fraction(2 * i + 1, 2 * n_layers) < high}
    if not found:
        raise UserError(f"{layers!r} holds no layer of a model of {n_layers}: take a larger share.")
    if max(found) >= n_layers:
        raise UserError(f"Layers {spans(sorted(found))} are outside the model, which has layers 0..{n_layers - 1}.")
    return sorted(found)


def near(pattern: str, names: Iterable[str]) -> str:
    """The tail of an error about a pattern that matches none of `names`: what is like it there, or all there is."""
    ends = {in_layer(name) for name in names}
    return did_you_mean(pattern, ends if "." in pattern else {end.rpartition(".")[2] for end in ends})


def chosen(wanted: Iterable[str], names: Sequence[str], layers: Sequence[int], what: str, aside: str = "") -> list[str]:
    """The `names` that match one of `wanted` and lie in one of `layers`, or in no layer at all (not for all-linear).

    Raises:
        UserError: One of `wanted` matches nothing, with what is near; `what` says what the names are.
    """
    found = set[str]()
    for pattern in wanted:
        everything = pattern == ALL_LINEAR
        every = [n for n in names if (layer_of(n) is not None if everything else matches(pattern, n))]
        inside = [name for name in every if (layer := layer_of(name)) is None or layer in layers]
        if not inside and every:
            elsewhere = sorted({layer for name in every if (layer := layer_of(name)) is not None})
            raise UserError(
                f"The model has no {what} {pattern!r} in layers {spans(layers)}: it is in layers {spans(elsewhere)}."
            )
        if not inside:
            where = f"in layers {spans(layers)}{aside}"
            raise UserError(f"The model has no {what} {pattern!r} {where}; {near(pattern, names)}")
        found.update(inside)
    return [name for name in names if name in found]
