"""Compute with exact fractions, or with hundreds of digits where a value is not rational.

A value is a `Fraction`, or a real or complex number of mpmath. Whatever would take long or fill the memory is refused.
"""

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mpmath import MPContext  # type: ignore[import-untyped]

from lowtax.benchmarks.grading.normalise import rounded

DIGITS = 320  # of a value without letters
DIGITS_AT = 60  # of a value at one place of its letters
LARGEST = 120_000  # bits of an exact number
LARGEST_FACTORIAL = 3_000

Value = Any  # a Fraction, or a real or complex number of mpmath


class Unreadable(Exception):
    """Raised for a text outside of the grammar, or a value that cannot be computed."""


class Undefined(Exception):
    """Raised where an expression has no real value for these letters."""


@dataclass
class Place:
    """Numbers for the letters of an expression, and the precision of its values."""

    letters: dict[str, Value]
    context: Any
    common_log: bool = False  # log without a base has the base 10
    real: bool = False  # roots and logarithms of negative numbers are undefined


@lru_cache(maxsize=4)
def context_of(digits: int) -> Any:
    """Return the arithmetic of mpmath with this many digits."""
    context = MPContext()
    context.dps = digits
    return context


def real(context: Any, value: Value) -> Any:
    """Convert a fraction to a number of mpmath; a complex number without an imaginary part becomes real."""
    if isinstance(value, Fraction):
        return context.mpf(value.numerator) / value.denominator
    if isinstance(value, context.mpc) and abs(value.imag) <= abs(value.real) * context.mpf(10) ** (25 - context.dps):
        return value.real
    return value


def close(x: Value, y: Value, digits: int = DIGITS) -> bool:
    """Return True if two values are equal: exactly for fractions, otherwise to nearly all digits."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    context = context_of(digits)
    x, y = real(context, x), real(context, y)
    tolerance = context.mpf(10) ** (30 - digits)
    size = max(abs(x), abs(y))
    return bool(size <= tolerance or abs(x - y) <= tolerance * size)


def difference(x: Value, y: Value, digits: int = DIGITS) -> Value:
    """Return x - y."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x - y
    context = context_of(digits)
    return real(context, x) - real(context, y)


def ratio(x: Value, y: Value) -> Value:
    """Return x / y."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x / y
    context = context_of(DIGITS_AT)
    return real(context, x) / real(context, y)


def middle(x: Value, y: Value) -> Value:
    """Return the number half way between two."""
    half = difference(x, -y)
    return half / 2


def near(decimal: str, value: Value) -> bool:
    """Return True if a decimal is a value rounded to its places (see `normalise.rounded`)."""
    context = context_of(DIGITS)
    number = real(context, value)
    return not isinstance(number, context.mpc) and rounded(decimal, Fraction(int(number * 10**60), 10**60))


def is_complex(value: Value) -> bool:
    """Return True if a value has an imaginary part."""
    return not isinstance(value, Fraction) and isinstance(real(context_of(DIGITS), value), context_of(DIGITS).mpc)


# --- arithmetic


def _checked(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > LARGEST:
            raise Unreadable
    elif not (abs(value) < 10**4_000):  # also not a number
        raise Unreadable
    return value


def _both(place: Place, x: Value, y: Value) -> tuple[Value, Value]:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x, y
    return real(place.context, x), real(place.context, y)


def plus(place: Place, x: Value, y: Value) -> Value:
    """Return x + y."""
    a, b = _both(place, x, y)
    return _checked(a + b)


def times(place: Place, x: Value, y: Value) -> Value:
    """Return x times y."""
    a, b = _both(place, x, y)
    return _checked(a * b)


def over(place: Place, x: Value, y: Value) -> Value:
    """Return x / y."""
    a, b = _both(place, x, y)
    if not isinstance(b, Fraction) and abs(b) < place.context.mpf(10) ** (30 - place.context.dps):
        raise ZeroDivisionError
    return _checked(a / b)


def power(place: Place, base: Value, exponent: Value) -> Value:
    """Return a power, exact where it is rational; the real one of a negative base if the root is odd."""
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(base, Fraction):
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if base not in (0, 1, -1) and (bits - 1 or 1) * abs(exponent) > LARGEST:
            raise Unreadable
        if base in (1, -1):
            return base if exponent % 2 else Fraction(1)
        return _checked(Fraction(base) ** int(exponent))
    if isinstance(exponent, Fraction) and isinstance(base, Fraction):
        result = root(place, base, exponent.denominator)
        return power(place, result, Fraction(exponent.numerator))
    x, y = real(place.context, base), real(place.context, exponent)
    if abs(y) > 10**7:
        raise Unreadable
    negative = isinstance(x, place.context.mpf) and x < 0
    if negative and isinstance(exponent, Fraction) and exponent.denominator % 2 and exponent.denominator > 1:
        return _checked((-1) ** (exponent.numerator % 2) * place.context.power(-x, y))
    if negative and place.real and not (isinstance(exponent, Fraction) and exponent.denominator == 1):
        raise Undefined
    return _checked(place.context.power(x, y))


def root(place: Place, value: Value, degree: int) -> Value:
    """Return a root, exact where it is rational; the real one of a negative number if the degree is odd."""
    if degree > 10**6 or degree < 1:
        raise Unreadable
    if isinstance(value, Fraction):
        if value < 0 and degree % 2:
            return -root(place, -value, degree)
        above, below = _whole_root(abs(value.numerator), degree), _whole_root(value.denominator, degree)
        if above is not None and below is not None and value >= 0:
            return Fraction(above, below)
    number = real(place.context, value)
    if isinstance(number, place.context.mpf) and number < 0:
        if degree % 2:
            return -place.context.root(-number, degree)
        if place.real:
            raise Undefined
    return place.context.root(number, degree)


def _whole_root(value: int, degree: int) -> int | None:
    if value in (0, 1) or degree == 1:
        return value
    if degree > value.bit_length():
        return None
    low, high = 1, 1 << (value.bit_length() // degree + 1)
    while low <= high:
        middle = (low + high) // 2
        power = middle**degree
        if power == value:
            return middle
        low, high = (middle + 1, high) if power < value else (low, middle - 1)
    return None


def factorial(place: Place, value: Value) -> Value:
    """Return a factorial, or the gamma function of a number that is not whole."""
    if abs(value) > LARGEST_FACTORIAL:
        raise Unreadable
    if isinstance(value, Fraction) and value.denominator == 1 and value >= 0:
        product = 1
        for factor in range(2, int(value) + 1):
            product *= factor
        return Fraction(product)
    return _checked(place.context.gamma(real(place.context, value) + 1))


def binomial(place: Place, n: Value, k: Value) -> Value:
    """Return n over k, also where they are not whole."""
    if isinstance(k, Fraction) and k.denominator == 1 and isinstance(n, Fraction):
        if n.denominator == 1 and 0 <= k <= n:
            k = min(k, n - k)
        if abs(n) > LARGEST_FACTORIAL * 4 or abs(k) > LARGEST_FACTORIAL * 2:
            raise Unreadable
        result = Fraction(0 if k < 0 else 1)
        for step in range(int(k)):
            result = result * (n - step) / (step + 1)
        return _checked(result)
    if abs(n) > LARGEST_FACTORIAL or abs(k) > LARGEST_FACTORIAL:
        raise Unreadable
    return _checked(place.context.binomial(real(place.context, n), real(place.context, k)))


def function(place: Place, name: str, value: Value) -> Value:
    """Return a function of one value."""
    context = place.context
    number = real(context, value)
    if abs(number) > 10**6 and name in ("exp", "sinh", "cosh", "tanh"):
        raise Unreadable
    if name in ("asin", "acos") and place.real and abs(number) > 1:
        raise Undefined
    result = _checked(getattr(context, name)(number))
    return Fraction(1) if name == "exp" and value == 0 else result


def logarithm(place: Place, value: Value, base: Value | None) -> Value:
    """Return a logarithm; without a base it is natural."""
    number = real(place.context, value)
    if number == 0 or (place.real and isinstance(number, place.context.mpf) and number < 0):
        raise Undefined
    natural = place.context.log(number)
    return natural if base is None else over(place, natural, place.context.log(real(place.context, base)))


def whole(place: Place, name: str, value: Value) -> Value:
    """Return the next whole number below ("floor") or above."""
    number = value if isinstance(value, Fraction) else real(place.context, value)
    if isinstance(number, place.context.mpc):
        raise Unreadable
    if isinstance(number, Fraction):
        return Fraction(number.__floor__() if name == "floor" else number.__ceil__())
    return Fraction(int(place.context.floor(number) if name == "floor" else place.context.ceil(number)))


def of_many(name: str, values: list[Value]) -> Value:
    """Return the greatest common divisor, least common multiple, largest or smallest of some values."""
    if name in ("max", "min"):
        return (max if name == "max" else min)(values)
    if not all(isinstance(each, Fraction) and each.denominator == 1 for each in values):
        raise Undefined
    whole = [int(each) for each in values]
    return Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole))


def unknown(place: Place, name: str, value: Value) -> Value:
    """Return a number that stands for the value of an unknown function such as f."""
    number = real(place.context, value)
    text = f"{name}({place.context.nstr(number, 25)})"
    return Fraction(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"), 65_521)


def absolute(place: Place, value: Value) -> Value:
    """Return the absolute value."""
    return abs(value)
