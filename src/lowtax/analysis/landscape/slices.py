"""The points of a slice or a plane through weight space, and the checks before a model is loaded."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from lowtax.common.errors import UserError, did_you_mean
from lowtax.models.adapters import is_adapter

KINDS = ("random", "adapter", "between")
RADIUS, REACH = 0.5, 1.5
POINTS = {"random": 21, "adapter": 16, "between": 21}
SIDE = 9  # of a grid


@dataclass(frozen=True)
class Slice:
    """A slice or a plane.

    along: random, W + alpha d; adapter, W + alpha dW; between, (1 - alpha) A + alpha B.
    two: a plane, with a second random direction beta; between checkpoints, A + alpha (B - A) + beta (C - A).
    points: on each axis. radius: random axes run from -radius to radius. reach: an adapter's axis runs from 0 to reach,
        and one between checkpoints as far beyond both ends, from 1 - reach to reach.
    seeds: those of the random directions; empty if there are none.
    """

    along: str
    two: bool
    points: int
    radius: float
    reach: float
    seeds: tuple[int, ...]

    @property
    def alphas(self) -> list[float]:
        """The first axis."""
        if self.along == "random":
            return spaced(-self.radius, self.radius, self.points)
        return spaced(0.0 if self.along == "adapter" else 1.0 - self.reach, self.reach, self.points)

    @property
    def betas(self) -> list[float]:
        """The second axis; only 0 if there is none."""
        if self.two and self.along == "between":
            return self.alphas
        return spaced(-self.radius, self.radius, self.points) if self.two else [0.0]

    def places(self) -> list["Place"]:
        """Return every point, seed by seed. Points without a random step repeat for every seed."""
        return [Place(seed, a, b) for seed in self.seeds or (0,) for a, b in product(self.alphas, self.betas)]


@dataclass(frozen=True)
class Place:
    """A point of a slice, in units of its directions."""

    seed: int
    alpha: float
    beta: float

    def steps(self, along: str) -> tuple[float, ...]:
        """Return the steps along the random directions of the slice; all are zero at the origin."""
        return (self.alpha, self.beta) if along == "random" else (self.beta,) if along == "adapter" else ()


def spaced(low: float, high: float, points: int) -> list[float]:
    """Return equally spaced numbers including both ends; the middle one of -r to r is exactly 0."""
    return [round(low + (high - low) * i / (points - 1), 9) + 0.0 for i in range(points)]


def sliced(
    along: str,
    two: bool = False,
    points: int | None = None,
    radius: float | None = None,
    reach: float | None = None,
    seeds: int | None = None,
) -> Slice:
    """Return a slice with these settings and the defaults of its kind for the others.

    Raises:
        UserError: There is no such kind, or a setting does not apply to it.
    """
    if along not in KINDS:
        raise UserError(f"There is no slice along {along!r}; {did_you_mean(along, KINDS)}")
    random = along == "random" or (two and along == "adapter")
    options = {"--radius": radius, "--seeds": seeds}
    if unused := [name for name, value in options.items() if value is not None and not random]:
        raise UserError(f"{unused[0]} is for random directions, and a slice along {along!r} has none: remove it.")
    if reach is not None and along == "random":
        raise UserError("--reach is for a slice along an adapter or between checkpoints: remove it, or add --along.")
    for name, value in (("--radius", radius), ("--reach", reach)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} must be more than 0 and finite (found {value:g}).")
    if along == "between" and reach is not None and reach < 1:
        raise UserError(f"--reach between two checkpoints must be at least 1, where it ends at both (found {reach:g}).")
    number = points or (SIDE if two else POINTS[along])
    if number < 3 or (random and number % 2 == 0):
        what = "an odd number of at least 3, so that the model itself is the middle one" if random else "at least 3"
        raise UserError(f"--points must be {what} (found {number}).")
    drawn = tuple(range((1 if two else 3) if seeds is None else seeds)) if random else ()
    return Slice(along, two, number, radius or RADIUS, reach or (1.0 if along == "between" else REACH), drawn)


def check_ends(along: str, adapter: Path | None, to: str | None, third: str | None = None, two: bool = False) -> None:
    """Refuse ends that do not fit the slice.

    Raises:
        UserError: An end is missing, does not apply, or is of another kind than the first.
    """
    if along == "adapter" and adapter is None:
        raise UserError("A slice along an adapter needs --adapter DIR, a PEFT LoRA.")
    if along == "between" and to is None:
        raise UserError("A slice between two checkpoints needs --to with the second one, a model or a PEFT LoRA.")
    if along != "between" and to is not None:
        raise UserError(
            f"--to is for a slice between two checkpoints: remove it, or use --along between (found {along!r})."
        )
    if along == "between" and two != (third is not None):
        raise UserError(
            "A plane between checkpoints goes through three: give --two, --to and --third, or neither --two nor "
            "--third."
        )
    if third is not None and along != "between":
        raise UserError(f"--third is for a plane between checkpoints: remove it (found --along {along}).")
    if third is not None and to is not None and is_adapter(third) != is_adapter(to):
        raise UserError(f"--to {to} and --third {third} must both be LoRAs, or both whole models.")
    if to is not None and adapter is not None and not is_adapter(to):
        raise UserError(
            f"--adapter is a LoRA and --to {to} a whole model: give two LoRAs, or `lowtax merge` the adapter first."
        )
