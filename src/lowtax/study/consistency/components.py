"""The variance component of an axis: how far its levels move a rate, beyond what the prompts' own noise explains.

Levels answer the same prompts. Let y[a, l, p] be the mean outcome of arm a at level l on prompt p, m[a, l] its mean
over the P prompts, and d[a, l] = m[a, l] - mean over levels. In the two-way layout

    y[a, l, p] = level[a, l] + prompt[a, p] + flip[a, l, p]

the prompts' difficulty cancels between levels, and only the flips blur the rates: replies that change for one prompt
alone. With L levels and A arms

    S2 = mean over a of  sum over l of d[a, l]^2 / (L - 1)                        spread of the rates
    R2 = mean over a of  sum over l, p of residual[a, l, p]^2 / ((L - 1)(P - 1))  flips of one prompt
    sd = sqrt(max(0, S2 - R2 / P))

where residual[a, l, p] = y[a, l, p] - m[a, l] - mean over l of y[a, l, p] + mean over l and p. S2 - R2 / P is unbiased:
flips alone spread the rates by R2 / P.

The interval is a bootstrap over prompts, whose resamples give the errors e[a, l] of d. A spread cannot be below 0, and
percentiles of resampled spreads would lie above it even if all levels were equal. So the interval has those true
spreads s for which the observed one is no surprise: s * d / sqrt(S2) + e spreads by at least sqrt(S2) in more than
2.5 % of the resamples, and by at most sqrt(S2) in more than 2.5 %.

The levels are those of the axis and no sample of others: with two of them, sd is at most their distance over sqrt(2),
and says little about a third. In a simulation of one arm and 80 prompts, 400 studies for each number of levels (2, 3,
5) and each true sd (0, 0.03, 0.06, 0.12), the interval holds the true spread in 0.93 to 0.98 of the cases. It begins
at 0 in 0.97 or more where the levels do not differ, but also in 0.92, 0.87 and 0.85 where rates differ by an sd of
0.03: 80 prompts cannot show so little. `python -m lowtax.study.consistency.components` prints the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from lowtax.common import stats

Rates = Float[np.ndarray, "arms levels prompts"]
RESAMPLES, LEVEL = 2000, 0.95
GRID = 400


@dataclass(frozen=True)
class Component:
    """A variance component. `sd`, its interval, the `observed` spread of the rates (sqrt(S2)), and their largest range.

    levels, prompts: how many there are.
    """

    sd: float
    low: float
    high: float
    observed: float
    range: float
    levels: int
    prompts: int


def component(rates: Rates, seed: int = 0, resamples: int = RESAMPLES) -> Component | None:
    """Return the component of outcomes from 0 to 1; None with fewer than two levels or two prompts.

    If no prompt flips, a bootstrap would claim certainty, and if few do, too much of it. The half-width is then that
    which Wilson's interval of no flips in as many prompts gives to rates that lie as far apart as they can; the upper
    end is never below it.
    """
    arms, levels, prompts = rates.shape
    if not arms or levels < 2 or prompts < 2:
        return None
    means = rates.mean(axis=2)
    apart = means - means.mean(axis=1, keepdims=True)
    spread = _squared(apart)
    residual = rates - means[:, :, None] - rates.mean(axis=1, keepdims=True) + rates.mean(axis=(1, 2), keepdims=True)
    flips = float((residual**2).sum(axis=(1, 2)).mean()) / ((levels - 1) * (prompts - 1))
    value = float(np.sqrt(max(0.0, float(spread) - flips / prompts)))
    observed = float(np.sqrt(spread))
    half = _widest(levels) * stats.wilson(0, prompts, LEVEL)[1]
    if flips < 1e-12:
        low, high = max(0.0, observed - half), observed + half
    else:
        draws = stats.weights(prompts, np.random.default_rng(seed), resamples)
        moved = np.einsum("rp,alp->ral", draws - 1, rates) / prompts
        errors = moved - moved.mean(axis=2, keepdims=True)
        low, high = _plausible(apart, errors)
        high = max(high, half)  # few flips say no more than none at all
    wide = float((means.max(axis=1) - means.min(axis=1)).max())
    return Component(value, min(low, value), max(high, value), observed, wide, levels, prompts)


def _squared(apart: Float[np.ndarray, "... arms levels"]) -> Float[np.ndarray, "..."]:
    """Return the spread S2 of centred rates."""
    total: np.ndarray = (apart**2).sum(axis=(-2, -1)) / (apart.shape[-2] * (apart.shape[-1] - 1))
    return total


def _plausible(
    apart: Float[np.ndarray, "arms levels"], errors: Float[np.ndarray, "resamples arms levels"]
) -> tuple[float, float]:
    """Return the least and the largest true spread for which the observed one is no surprise."""
    observed, noise = float(np.sqrt(_squared(apart))), _squared(errors)
    tail = (1 - LEVEL) / 2
    if observed == 0:
        return 0.0, float(np.quantile(np.sqrt(noise), 1 - tail))
    direction = apart / observed
    along = (errors * direction).sum(axis=(1, 2)) / (apart.shape[0] * (apart.shape[1] - 1))
    true = np.linspace(0.0, observed + 4 * float(np.sqrt(noise.max())), GRID)[:, None]
    spreads = np.sqrt(np.maximum(true**2 + 2 * true * along + noise, 0.0))  # (grid, resamples)
    below, above = (spreads <= observed).mean(axis=1), (spreads >= observed).mean(axis=1)
    inside = true[(below > tail) & (above > tail), 0]
    if not len(inside):  # a grid step of certainty
        return observed, observed
    return float(inside.min()), float(inside.max())


def _widest(levels: int) -> float:
    """Return the standard deviation of levels of which half are 0 and half are 1."""
    few = levels // 2
    return float(np.sqrt(few * (levels - few) / (levels * (levels - 1))))


# --- simulation

CASES = tuple((levels, sd) for levels in (2, 3, 5) for sd in (0.0, 0.03, 0.06, 0.12))


def simulate(
    levels: int, sd: float, studies: int = 400, prompts: int = 80, arms: int = 1, seed: int = 0
) -> tuple[float, float, float]:
    """Return how often the interval holds the true spread, how often its end is 0, and the mean squared value.

    A prompt is refused where its difficulty, the shift of the level and the noise of this prompt at this level, all of
    them normal, add up to more than 0. The shifts of an arm are drawn so that the true rates spread by about `sd`.
    """
    rng = np.random.default_rng(seed)
    normal = NormalDist()
    steep = normal.pdf(0.0) / np.sqrt(1.25)
    held = at_zero = 0
    squares = list[float]()
    for _ in range(studies):
        shifts = rng.normal(size=(arms, levels)) * sd / steep
        true = np.array([[normal.cdf(x / np.sqrt(1.25)) for x in each] for each in shifts])
        spread = float(np.sqrt(_squared(true - true.mean(axis=1, keepdims=True))))
        hard = rng.normal(size=(arms, 1, prompts))
        flips = 0.5 * rng.normal(size=(arms, levels, prompts))
        result = component((hard + shifts[:, :, None] + flips > 0).astype(float), seed=0, resamples=500)
        if result is None:
            continue
        held += result.low - 1e-9 <= spread <= result.high + 1e-9
        at_zero += result.low == 0
        squares.append(result.sd**2 - spread**2)
    return held / studies, at_zero / studies, float(np.mean(squares))


def simulated() -> Iterator[str]:
    """Yield a line of a table for each case."""
    yield "levels  sd of rates  interval holds it  interval begins at 0"
    for levels, sd in CASES:
        held, at_zero, _ = simulate(levels, sd)
        yield f"{levels:6}  {sd:11.2f}  {held:17.2f}  {at_zero:20.2f}"


if __name__ == "__main__":
    from lowtax.common.log import tell

    for line in simulated():
        tell(line)
