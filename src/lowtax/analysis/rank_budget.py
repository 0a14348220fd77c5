"""The cost of more rank than fine-tuning needs: a linear model, its formula, and a simulation that tests the formula.

Source: model, derivation (docs/explanation/theory.md) and formula are ours, motivated by a sentence in the abstract of
arXiv:2507.17075v4. They are not that paper's theorem, whose text was not available to us.

    base inputs          x = P u, P (ambient, base) orthonormal, trace Cov(x) = 1
    base task            y = W x; `base_cost` is E|dW x|^2 in units of E|W x|^2
    fine-tuning inputs   x = F z, F (ambient, tuning) orthonormal, z Gaussian and isotropic, E|z|^2 = 1
    fine-tuning targets  (W + M F') x + noise; the singular values of M are `change`, their number is the needed rank
    dW of rank r         the least squares fit to `examples` pairs by a matrix of rank r and least norm

For r above the needed rank n

    base_cost(r) - base_cost(n)  =  h t top_energy(outputs - n, tuning - n, r - n)
    h = trace(F' Cov(x) F) / tuning, the exposure, without what M reads; shared / (tuning base) if Cov(x) is flat
    t = noise^2 tuning / (examples - tuning - 1)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from lowtax.common.errors import UserError

BISECTIONS = 60


@dataclass(frozen=True)
class Setting:
    """One base task and one fine-tuning task.

    Raises:
        UserError: The numbers contradict each other.
    """

    base: int  # dimensions of the base task's inputs
    tuning: int = 32  # dimensions of the fine-tuning inputs
    shared: int | None = 16  # how many of these are base directions; None: both subspaces are random in `ambient`
    ambient: int = 1024  # inputs of the layer; used if shared is None
    decay: float = 0.0  # variance i^-decay along the i-th base direction; the strongest ones are shared
    outputs: int = 128
    examples: int = 512
    noise: float = 0.2  # standard deviation, in every output of every example
    change: tuple[float, ...] = (3.0, 2.5, 2.0)  # singular values of M, largest first
    needed_share: float = 0.0  # share of M's energy that reads shared directions; unused if shared is None

    def __post_init__(self) -> None:
        d, share, rank, random = self.tuning, self.needed_share, len(self.change), self.shared is None
        falling, inside = sorted((s for s in self.change if s > 0), reverse=True), self.shared or 0
        needs = (
            (min(self.base, d, self.outputs) >= 1, "base, tuning, outputs >= 1"),
            (self.examples >= d + 2, "examples >= tuning + 2"),
            (self.noise >= 0 and self.decay >= 0 and 0 <= share <= 1, "noise, decay >= 0 and needed_share in 0..1"),
            (not (random and self.decay), "decay 0 if shared is None"),
            (self.ambient >= max(self.base, d) or not random, "ambient to hold base and tuning"),
            (0 <= inside <= min(self.base, d), "shared in 0..min(base, tuning)"),
            (
                rank <= min(self.outputs, d) and falling == list(self.change),
                "a decreasing change above 0 that fits",
            ),
            (random or share == 0 or inside >= rank, "shared to hold change, or needed_share 0"),
            (random or share == 1 or d - inside >= rank, "tuning - shared to hold change, or needed_share 1"),
        )
        for missing in (what for met, what in needs if not met):
            raise UserError(f"A setting needs {missing}; found {self}.")

    @property
    def variances(self) -> Float[ndarray, " base"]:
        """The variances of the base inputs, largest first; their sum is 1."""
        raw = np.arange(1, self.base + 1) ** -float(self.decay)
        return np.asarray(raw / raw.sum())

    @property
    def exposure(self) -> float:
        """h over all fine-tuning directions, in expectation: at most 1 / intrinsic dimension."""
        return 1 / self.ambient if self.shared is None else float(self.variances[: self.shared].sum()) / self.tuning

    @property
    def error(self) -> float:
        """t: variance of each entry of M as fitted without a limit on the rank."""
        return self.noise**2 * self.tuning / (self.examples - self.tuning - 1)


@dataclass(frozen=True, eq=False)
class Curve:
    """Curves by rank: the base loss added, in units of E|W x|^2, and E|(dW - M F') x|^2 over fine-tuning inputs."""

    base_cost: Float[ndarray, " ranks"]
    task_error: Float[ndarray, " ranks"]


def intrinsic_dimension(variances: Sequence[float] | Float[ndarray, " n"]) -> float:
    """Return trace over largest eigenvalue of a covariance C: n if it is flat, 1 if one direction has all variance.

    For every dW, trained or not, E|dW x|^2 <= |dW|_F^2 trace(C) / intrinsic dimension.
    """
    values = np.asarray(variances, dtype=float)
    if not (values.size and values.min() >= 0 and values.max() > 0):
        raise UserError("The variances must be 0 or more, and one of them above 0.")
    return float(values.sum() / values.max())


def top_energy(rows: int, columns: int, k: int) -> float:
    """Return the expected sum of the k largest squared singular values of a (rows, columns) matrix of standard normals.

    Integrals of Marchenko & Pastur's law from its upper edge to an angle a in 0..pi, with g = shorter / longer:

        k / shorter           =  2/pi ((1+g)/4g a - sin(a) / 2 sqrt(g) - (1-g)/2g atan((1-sqrt g)/(1+sqrt g) tan(a/2)))
        sum / (rows columns)  =  (a - sin(a) cos(a)) / pi

    Exact for none and all; otherwise the limit of large matrices, about 1 % too low for k = 1 of 32.
    """
    short, long = sorted((rows, columns))
    if not 0 <= k <= short:
        raise UserError(f"k {k} must be between 0 and {short} for a matrix of {rows} x {columns}.")
    if k in (0, short):
        return float(k * long)
    g, low, high = short / long, 0.0, math.pi
    root = math.sqrt(g)
    for _ in range(BISECTIONS):
        a = (low + high) / 2
        turn = math.atan((1 - root) / (1 + root) * math.tan(a / 2))
        above = 2 / math.pi * ((1 + g) / (4 * g) * a - math.sin(a) / (2 * root) - (1 - g) / (2 * g) * turn)
        low, high = (a, high) if above * short < k else (low, a)
    return short * long * (low - math.sin(low) * math.cos(low)) / math.pi


def predicted(setting: Setting, ranks: Sequence[int]) -> Curve:
    """Return both curves by the formula: in expectation over data, to first order in the noise up to the needed rank.

    It assumes s^2 >> t sqrt(outputs tuning) for every singular value s of M. Exact at rank 0 and full rank.
    """
    most, n = _most(setting, ranks), len(setting.change)
    m, d, t = setting.outputs, setting.tuning, setting.error
    if setting.shared is None:
        reads = np.full(n, setting.exposure)  # variance of the base inputs along each right direction of M
    else:
        reads = setting.needed_share * setting.variances[:n] if setting.needed_share else np.zeros(n)
    rest = (setting.exposure * d - float(reads.sum())) / max(1, d - n)
    costs, errors = [0.0], [sum(s * s for s in setting.change)]
    for s, read in zip(setting.change, reads, strict=True):
        costs.append(costs[-1] + (s * s + t * m) * float(read) + t * (d - n) * rest)
        errors.append(errors[-1] - s * s + t * (m + d - n))
    energies = [t * top_energy(m - n, d - n, excess) for excess in range(1, most - n + 1)]
    costs += [costs[n] + rest * energy for energy in energies]
    errors += [errors[n] + energy for energy in energies]
    return Curve(np.array(costs)[list(ranks)], np.array(errors)[list(ranks)] / d)


def overshoot_rate(setting: Setting, excess: int) -> float:
    """Return the base loss added by each rank above the needed one: the mean over the first `excess` such ranks."""
    if excess < 1:
        raise UserError(f"excess {excess} must be at least 1.")
    before, after = predicted(setting, [len(setting.change), len(setting.change) + excess]).base_cost
    return float(after - before) / excess


@dataclass(frozen=True, eq=False)
class Data:
    """A random pair of tasks, with fine-tuning inputs and M in the coordinates of F."""

    inputs: Float[ndarray, "tuning examples"]
    residuals: Float[ndarray, "outputs examples"]  # targets minus W x
    change: Float[ndarray, "outputs tuning"]  # M
    exposed: Float[ndarray, "tuning tuning"]  # F' Cov(base inputs) F


def draw(setting: Setting, seed: int | Sequence[int]) -> Data:
    """Draw subspaces, M, inputs and noise from the seed."""
    random, d, n = np.random.default_rng(seed), setting.tuning, len(setting.change)
    if setting.shared is None:
        cosines = np.linalg.qr(random.standard_normal((setting.ambient, setting.base))).Q[:d]  # F: the first d axes
        exposed, right = cosines @ cosines.T / setting.base, np.linalg.qr(random.standard_normal((d, n))).Q
    else:
        exposed, right, order = np.zeros((d, d)), np.zeros((d, n)), np.arange(n)
        exposed[range(setting.shared), range(setting.shared)] = setting.variances[: setting.shared]
        right[order, order] = math.sqrt(setting.needed_share)
        right[d - 1 - order, order] += math.sqrt(1 - setting.needed_share)
    left = np.linalg.qr(random.standard_normal((setting.outputs, n))).Q
    change = left * np.array(setting.change) @ right.T
    inputs = random.standard_normal((d, setting.examples)) / math.sqrt(d)
    noise = setting.noise * random.standard_normal((setting.outputs, setting.examples))
    return Data(inputs, change @ inputs + noise, change, exposed)


def simulate(setting: Setting, ranks: Sequence[int], seed: int | Sequence[int]) -> Curve:
    """Return both curves of one random pair of tasks: exact reduced rank regression in float64, expected losses."""
    _most(setting, ranks)
    data = draw(setting, seed)
    left, scale, right = np.linalg.svd(data.inputs, full_matrices=False)
    U, S, Vh = np.linalg.svd(data.residuals @ right.T, full_matrices=False)
    rows = S[:, None] * Vh / scale @ left.T  # dW F of rank r is U[:, :r] @ rows[:r]
    costs = (rows @ data.exposed * rows).sum(axis=1)
    errors = (rows * (rows - 2 * U.T @ data.change)).sum(axis=1)
    costs, errors = np.append(0, costs), np.append(np.square(data.change).sum(), errors)
    return Curve(costs.cumsum()[list(ranks)], errors.cumsum()[list(ranks)] / setting.tuning)


def _most(setting: Setting, ranks: Sequence[int]) -> int:
    most = min(setting.outputs, setting.tuning)
    if not ranks or not all(0 <= rank <= most for rank in ranks):
        raise UserError(f"ranks {list(ranks)} must be between 0 and {most}, and at least one is needed.")
    return most
