"""Names of modules and layers in recipes.

A name stands for every module whose full name ends in it, at a dot; it may be a regular expression. PEFT reads its
`rank_pattern` in this way, and lowtax `modules`, `parameters`, the keys of `ranks` and a method's `only`.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from lowtax.common.borders import brief
from lowtax.common.errors import UserError, did_you_mean

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = "all-linear"
SHORTHANDS = {"mlp": MLP, "attention": ATTENTION, ALL_LINEAR: (ALL_LINEAR,)}

SHARES = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}
LAYERS_FORMS = "[10, 19], '10-19', '3, 5, 9-12', 'first half', 'middle third', 'last quarter' or '0.25-0.75'"
Share = tuple[Fraction, Fraction]


MOST_LAYERS = 10_000  # more than any model has
STACK = r"(?:layers|h|blocks)"  # what families call the list of transformer layers
OTHER_MODALITY = re.compile(r"(^|[._])(vision|visual|image|audio|speech|video)")


def layer_of(name: str) -> int | None:
    """Return the transformer layer of a module or parameter; None outside the layers."""
    match = re.search(rf"(?:^|\.){STACK}\.(\d+)\.", name)
    return int(match[1]) if match else None


def in_layer(name: str) -> str:
    """Return the part of a name after its layer number: mlp.up_proj."""
    return re.sub(rf"^.*?(?:^|\.){STACK}\.\d+\.", "", name)


def matches(pattern: str, name: str) -> bool:
    """Return True if `pattern` matches the end of `name`, at a dot."""
    return re.match(rf"(?:.*\.)?(?:{pattern})$", name) is not None


def spelled_out(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names with shorthands replaced, each once.

    Raises:
        UserError: a name is not a regular expression.
    """
    expanded = [name for shorthand in names for name in SHORTHANDS.get(shorthand, (shorthand,))]
    for name in expanded:
        try:
            re.compile(name)
        except re.error as error:
            raise UserError(f"{name!r} is neither a module's name nor a regular expression ({error}).") from error
    return tuple(dict.fromkeys(expanded))


def spans(layers: Sequence[int]) -> str:
    """Format ascending layer numbers: 10..19, or 0..3, 8."""
    starts = [i for i in layers if i - 1 not in layers]
    ends = [i for i in layers if i + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in zip(starts, ends, strict=True))


def read_layers(text: str) -> set[int] | Share:
    """Parse `layers` given as text: layer numbers, or the two ends of a share of the depth.

    Raises:
        UserError: the text has none of the forms.
    """
    if len(text) > 1000:
        raise UserError(f"layers has a text of {len(text):,} characters; the forms are {LAYERS_FORMS}.")
    clean = re.sub(r" *([-,]) *", r"\1", " ".join(text.lower().split()))
    if words := re.fullmatch(rf"(first|middle|last) ({'|'.join(SHARES)})", clean):
        share = SHARES[words[2]]
        low = {"first": Fraction(0), "middle": (1 - share) / 2, "last": 1 - share}[words[1]]
        return low, low + share
    if "." in clean and (ends := re.fullmatch(r"(\d*\.?\d+)-(\d*\.?\d+)", clean)):
        low, high = Fraction(ends[1]), Fraction(ends[2])
        if low < high <= 1:
            return low, high
    elif re.fullmatch(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*", clean):
        pairs = [[int(end) for end in part.split("-")] for part in clean.split(",")]
        if all(pair[0] <= pair[-1] < MOST_LAYERS for pair in pairs):
            return {i for pair in pairs for i in range(pair[0], pair[-1] + 1)}
    raise UserError(f"layers {brief(text)} has none of the forms {LAYERS_FORMS}, with ends in ascending order.")


def layers_in(layers: tuple[int, int] | str | None, n_layers: int) -> list[int]:
    """Return the layers of a model of `n_layers` that `layers` stands for, ascending; None is all of them.

    A share of the depth contains the layers i whose middle, (i + 1/2) / n_layers, is in [low, high), computed without
    rounding. Adjacent shares neither overlap nor leave a gap; a middle on their border belongs to the later one.

    Raises:
        UserError: a layer is not in the model, or a share contains none.
    """
    if layers is None:
        return list(range(n_layers))
    numbers = read_layers(layers) if isinstance(layers, str) else set(range(layers[0], layers[1] + 1))
    if isinstance(numbers, tuple):
        low, high = numbers
        numbers = {i for i in range(n_layers) if low <= Fraction(2 * i + 1, 2 * n_layers) < high}
    if not numbers:
        raise UserError(f"{layers!r} contains no layer of a model with {n_layers} layers: take a larger share.")
    if max(numbers) >= n_layers:
        raise UserError(f"Layers {spans(sorted(numbers))} are outside the model, which has layers 0..{n_layers - 1}.")
    return sorted(numbers)


def near(pattern: str, names: Iterable[str]) -> str:
    """Return the end of an error message about a pattern without a match: similar ones of `names`, or all.

    For a usual name that this family has not (up_proj where gate_up_proj is fused), the family's own names are listed.
    """
    ends = {in_layer(name) for name in names}
    if pattern in MLP + ATTENTION:
        own = sorted({end for name in names if layer_of(name) is not None and (end := in_layer(name))})
        listed = ", ".join(own[:12]) + (" ..." if own[12:] else "")
        return f"its layers have {listed}." if own else "its layers have no linear modules that LoRA can be placed on."
    return did_you_mean(pattern, ends if "." in pattern else {end.rpartition(".")[2] for end in ends})


def chosen(
    patterns: Iterable[str], names: Sequence[str], layers: Sequence[int], what: str, aside: str = ""
) -> list[str]:
    """Return the `names` that match one of `patterns` and are in one of `layers`, or outside the layers.

    The pattern all-linear matches only names inside the layers.

    Args:
        what: kind of the names for the error message, such as "linear module".
        aside: addition to that message.

    Raises:
        UserError: a pattern matches nothing; similar names follow.
    """
    selected = set[str]()
    for pattern in patterns:
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
        selected.update(inside)
    return [name for name in names if name in selected]
