"""The points of a slice or a plane through weight space, and what is refused before a model is loaded."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from lowtax.adapterfile import is_adapter
from lowtax.errors import UserError, did_you_mean

KINDS = ("random", "adapter", "between")
RADIUS, REACH = 0.5, 1.5
POINTS = {"random": 21, "adapter": 16, "between": 21}
SIDE = 9  # of a grid


@dataclass(frozen=True)
class Slice:
    """What is walked.

    along: random, W + alpha d; adapter, W + alpha dW; between, (1 - alpha) A + alpha B.
    two: a second random direction across, beta.
    points: on each axis. radius: random axes are from -radius to radius. reach: an adapter is walked from 0 to reach.
    seeds: of the random directions; empty where there is none.
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
        return spaced(0.0, self.reach if self.along == "adapter" else 1.0, self.points)

    @property
    def betas(self) -> list[float]:
        """The second axis; 0 alone without one."""
        return spaced(-self.radius, self.radius, self.points) if self.two else [0.0]

    def places(self) -> list["Place"]:
        """Every point, seed by seed; that without a random step is there once for every seed."""
        return [Place(seed, a, b) for seed in self.seeds or (0,) for a, b in product(self.alphas, self.betas)]


@dataclass(frozen=True)
class Place:
    """A point of a slice, in units of its directions."""

    seed: int
    alpha: float
    beta: float

    def steps(self, along: str) -> tuple[float, ...]:
        """How far the random directions of the slice are followed, one number each; the origin is all zeros."""
        return (self.alpha, self.beta) if along == "random" else (self.beta,)


def spaced(low: float, high: float, points: int) -> list[float]:
    """Equally spaced numbers with both ends; the middle one of -r to r is 0."""
    return [round(low + (high - low) * i / (points - 1), 9) + 0.0 for i in range(points)]


def sliced(
    along: str,
    two: bool = False,
    points: int | None = None,
    radius: float | None = None,
    reach: float | None = None,
    seeds: int | None = None,
) -> Slice:
    """A slice of the settings that are given, and of the defaults of its kind.

    Raises:
        UserError: There is no such kind, or it does not go with a setting.
    """
    if along not in KINDS:
        raise UserError(f"There is no slice along {along!r}; {did_you_mean(along, KINDS)}")
    if two and along == "between":
        raise UserError("--two is a plane of two random directions, or of an adapter and one: leave it out of between.")
    random = two or along == "random"
    given = {"--radius": radius, "--seeds": seeds}
    if unused := [name for name, value in given.items() if value is not None and not random]:
        raise UserError(f"{unused[0]} is of random directions, and a slice along {along!r} has none: leave it out.")
    if reach is not None and along != "adapter":
        raise UserError("--reach is how far an adapter is followed: leave it out, or add --along adapter.")
    for name, value in (("--radius", radius), ("--reach", reach)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} is how far a slice goes, more than 0 (found {value:g}).")
    number = points or (SIDE if two else POINTS[along])
    if number < 3 or (random and number % 2 == 0):
        what = "an odd number, 3 or more, so that the model itself is the middle one" if random else "3 or more"
        raise UserError(f"--points is {what} (found {number}).")
    drawn = tuple(range((1 if two else 3) if seeds is None else seeds)) if random else ()
    return Slice(along, two, number, radius or RADIUS, reach or REACH, drawn)


def check_ends(along: str, adapter: Path | None, to: str | None) -> None:
    """Refuse ends that do not make the slice.

    Raises:
        UserError: One is missing, one too many, or they are of two kinds.
    """
    if along == "adapter" and adapter is None:
        raise UserError("A slice along an adapter needs one: --adapter DIR, a PEFT LoRA.")
    if along == "between" and to is None:
        raise UserError("A slice between two checkpoints needs the second: --to with a model or a PEFT LoRA.")
    if along != "between" and to is not None:
        raise UserError(f"--to is the other end of a slice between two checkpoints: leave it out of {along!r}.")
    if to is not None and adapter is not None and not is_adapter(to):
        raise UserError(
            f"--adapter is a LoRA and --to {to} a whole model: give two of a kind, or `lowtax merge` the adapter first."
        )
