"""Read an expression in LaTeX or plain text as a whole, and compute its value exactly or to hundreds of digits.

A text with anything that this grammar does not know is refused: nothing is cut off or passed over, so that `4 \\to 5`
is not 4. Rational numbers stay fractions; roots, logarithms and trigonometry are computed with `DIGITS` digits.
Two expressions with letters are equal if they have the same value at many places (see `equal`).
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from lowtax.benchmarks.grading import values
from lowtax.benchmarks.grading.values import DIGITS, DIGITS_AT, Place, Undefined, Unreadable, Value, close

DEEPEST = 60  # brackets inside of brackets
PLACES = 8  # at which expressions with letters are compared
FEWEST = 3  # of them where both must have a value

NAMES = (
    "arcsin|arccos|arctan|arccot|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|lg|ln|exp|sqrt|pi|floor|ceil|abs"
    "|lcm|gcd|max|min"
)
TOKEN = re.compile(
    rf"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\(?:[A-Za-z]+|.))|(?P<name>{NAMES})(?![A-Za-z])"
    r"|(?P<letter>[A-Za-z])|(?P<sign>\*\*|.))",
    re.DOTALL,
)
GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon"
    " phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar".split()
)
INVERSE = {"sin": "asin", "cos": "acos", "tan": "atan", "cot": "acot", "sec": "asec", "csc": "acsc"}
FUNCTIONS = {
    **{name: name for name in "sinh cosh tanh sin cos tan cot sec csc exp".split()},
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot",
}  # fmt: skip
LOGARITHMS = ("log", "ln", "lg")
OF_MANY = ("gcd", "lcm", "max", "min")
CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil",
           "\\lvert": "\\rvert", "\\lbrack": "\\rbrack"}  # fmt: skip
ACCENTS = ("vec", "hat", "bar", "overline", "tilde", "mathbf", "mathcal", "dot", "overrightarrow")
BEGINNINGS = {
    *GREEK, *FUNCTIONS, *LOGARITHMS, *ACCENTS, "frac", "sqrt", "pi", "binom", "dbinom", "tbinom", "lfloor", "lceil",
    "lvert", "{", "imath",
}  # fmt: skip
UNKNOWN_FUNCTIONS = "fgFG"
WHOLE_ONLY = re.compile(r"floor|ceil|\(-1\)\^|\\gcd|\\lcm")  # equal at whole numbers only


Node = Callable[[Place], Value]


@dataclass(frozen=True)
class Expression:
    """An expression that was read. `letters` are the names in it; `plain_log` tells that a logarithm has no base."""

    compute: Node
    letters: frozenset[str]
    plain_log: bool
    imaginary: bool


@lru_cache(maxsize=20_000)
def read(text: str) -> Expression | None:
    """Return the expression of a text, or None if any part of the text is not understood."""
    try:
        reader = _Reader(text)
        node = reader.whole()
    except (Unreadable, RecursionError):
        return None
    return Expression(node, frozenset(reader.letters), reader.plain_log, reader.imaginary)


def constant(text: str) -> Value | None:
    """Return the value of an expression without letters; None if it has some, or cannot be read or computed."""
    expression = read(text)
    if expression is None or expression.letters:
        return None
    return value_of(expression, Place({}, values.context_of(DIGITS)))


def equal(text: str, gold: str) -> bool | None:
    """Return True if two expressions have the same value for all values of their letters; None if one is unreadable.

    Without letters the values decide, as fractions or to `DIGITS` digits. With letters the values at `PLACES` places
    decide: rational expressions that agree there are the same but for a chance of less than one in a billion. Places
    where one of the two has no real value do not count. `log` is taken as natural, or else as decimal, in both.
    """
    a, b = read(text), read(gold)
    if a is None or b is None:
        return None
    for common in (False, True) if a.plain_log or b.plain_log else (False,):
        if _same_values(a, b, common, bool(WHOLE_ONLY.search(text + gold))):
            return True
    return False


def _same_values(a: Expression, b: Expression, common_log: bool, whole: bool) -> bool:
    if not a.letters and not b.letters:
        place = Place({}, values.context_of(DIGITS), common_log)
        x, y = value_of(a, place), value_of(b, place)
        return x is not None and y is not None and close(x, y)
    agreed = 0
    for place in places(a.letters | b.letters, whole, real=not (a.imaginary or b.imaginary)):
        place.common_log = common_log
        x, y = value_of(a, place), value_of(b, place)
        if x is None or y is None:
            continue
        if not close(x, y, DIGITS_AT):
            return False
        agreed += 1
    return agreed >= FEWEST


def places(letters: Iterable[str], whole: bool = False, real: bool = True, count: int = PLACES) -> list[Place]:
    """Return places that follow from the letters' names alone; the first half has positive numbers only."""
    context = values.context_of(DIGITS_AT)
    result = []
    for number in range(count):
        point = {}
        for letter in letters:
            hashed = int.from_bytes(hashlib.sha256(f"{letter} {number}".encode()).digest()[:8], "big")
            size = Fraction(2 + hashed % 19) if whole else Fraction(101 + hashed % 7919, 1009)
            negative = not whole and number >= count // 2 and (hashed >> 20) % 2
            point[letter] = -size if negative else size
        result.append(Place(point, context, real=real))
    return result


def value_of(expression: Expression, place: Place) -> Value | None:
    """Return the value at a place, or None if there is none that can be computed."""
    try:
        return expression.compute(place)
    except (Unreadable, Undefined, ZeroDivisionError, OverflowError, ValueError, RecursionError):
        return None


def value_at(text: str, place: Place) -> Value | None:
    """Return the value of a text at a place, or None."""
    expression = read(text)
    return value_of(expression, place) if expression and expression.letters <= place.letters.keys() else None


def place_of(letter: str, value: Value) -> Place:
    """Return a place for one letter, with all digits."""
    return Place({letter: value}, values.context_of(DIGITS), real=True)


# --- grammar


class _Reader:
    """A recursive reader: sum, product, power, and what they are made of."""

    def __init__(self, text: str) -> None:
        self.letters: set[str] = set()
        self.plain_log = self.imaginary = False
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while match := TOKEN.match(text, place):
            self.tokens.append((str(match.lastgroup), match[match.lastgroup or 0]))
            place = match.end()
        if text[place:].strip():
            raise Unreadable
        self.at = self.depth = self.bars = 0  # brackets and bars that are open

    def whole(self) -> Node:
        """Read all; anything that remains is an error."""
        node = self.sum()
        if self.accept("\\choose"):
            node = _joined(values.binomial, node, self.sum())
        if self.at < len(self.tokens):
            raise Unreadable
        return node

    @property
    def next(self) -> str:
        """The next token, empty at the end."""
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    @property
    def kind(self) -> str:
        """The kind of the next token."""
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        """Take a token.

        Raises:
            Unreadable: It is another one than expected, or there is none.
        """
        token = self.next
        if not token or (expected and token != expected):
            raise Unreadable
        self.at += 1
        return token

    def accept(self, *tokens: str) -> str:
        """Take the next token if it is one of these; return it, or an empty text."""
        return self.take() if self.next and self.next in tokens else ""

    def sum(self) -> Node:
        """Read terms joined by plus and minus."""
        node = self.term()
        while sign := self.accept("+", "-"):
            node = _joined(values.plus, node, _negated(self.term()) if sign == "-" else self.term())
        return node

    def term(self) -> Node:
        """Read factors; a number directly after another factor is refused."""
        if sign := self.accept("+", "-"):
            node = self.term()
            return _negated(node) if sign == "-" else node
        node = self.factor()
        while True:
            if self.accept("*", "\\cdot", "\\times", "\\ast", "\\bullet"):
                node = _joined(values.times, node, self.signed_factor())
            elif self.accept("/", "\\div"):
                node = _joined(values.over, node, self.signed_factor())
            elif self.starts_factor() or (self.kind == "number" and self.tokens[self.at - 1][1] == "!"):
                node = _joined(values.times, node, self.factor())
            else:
                return node

    def signed_factor(self) -> Node:
        """Read a factor after an operator; it may have a sign."""
        sign = self.accept("+", "-")
        node = self.factor()
        return _negated(node) if sign == "-" else node

    def starts_factor(self) -> bool:
        """Return True if the next token begins a factor that may follow another one without an operator."""
        token = self.next
        if self.kind == "command":
            return token[1:] in BEGINNINGS
        return self.kind in ("letter", "name") or token in ("(", "[", "{") or (token == "|" and not self.bars)

    def factor(self) -> Node:
        """Read a base with its exponents and factorials."""
        start = self.at
        node = self.base()
        if self.kind_at(start) == "number" and self.at == start + 1 and self.next == "\\frac":
            return self.mixed(node)
        return self.postfixed(node)

    def kind_at(self, place: int) -> str:
        """Return the kind of a token."""
        return self.tokens[place][0] if place < len(self.tokens) else ""

    def mixed(self, node: Node) -> Node:
        """Read the fraction of a mixed number such as `1\\frac{2}{3}`; other fractions are factors."""
        words = [token for _, token in self.tokens[self.at + 1 : self.at + 7]]
        whole = re.fullmatch(r"\{\d+\}\{\d+\}.*", "".join(words))
        if not whole:
            return node
        fraction = self.base()
        return self.postfixed(_joined(values.plus, node, fraction))

    def postfixed(self, node: Node) -> Node:
        """Read what follows a base: exponents, `!` and `%`."""
        while True:
            if self.accept("!"):
                if self.next == "!":
                    raise Unreadable
                node = _applied(values.factorial, node)
            elif self.accept("^", "**"):
                node = _joined(values.power, node, self.argument())
            elif self.accept("%"):
                hundredth: Node = lambda place: Fraction(1, 100)  # noqa: E731
                node = _joined(values.times, node, hundredth)
            else:
                return node

    def argument(self) -> Node:
        """Read what `^`, `\\frac` and `\\sqrt` apply to: a group in braces, or one sign."""
        if self.accept("{"):
            return self.group("}")
        if self.accept("-"):
            return _negated(self.argument())
        if self.kind == "number":
            return self.base()
        if self.next == "(":
            self.take()
            return self.group(")")
        if self.kind in ("letter", "command"):
            return self.base()
        raise Unreadable

    def digits(self) -> Node:
        """Read an argument of `\\frac` or `\\binom`: of a bare number its first digit alone."""
        if self.kind == "number" and len(self.next) > 1:
            first, rest = self.next[0], self.next[1:]
            if not first.isdigit() or not rest.isdigit():
                raise Unreadable
            self.tokens[self.at] = ("number", rest)
            value = Fraction(first)
            return lambda place: value
        if self.kind == "number":
            digit = Fraction(self.take())
            return lambda place: digit
        return self.argument()

    def group(self, closing: str) -> Node:
        """Read up to a closing bracket; `{n \\choose k}` is a binomial."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable
        bars, self.bars = self.bars, 0
        node = self.sum()
        if self.accept("\\choose"):
            node = _joined(values.binomial, node, self.sum())
        self.bars = bars
        self.take(closing)
        self.depth -= 1
        return node

    def base(self) -> Node:
        """Read a number, a letter, a group or a command."""
        kind, token = self.kind, self.take()
        if kind == "number":
            if self.kind == "number":
                raise Unreadable
            value = Fraction(token)
            return lambda place: value
        if token == "|" or token == "\\vert":
            self.bars += 1
            self.depth += 1
            node = self.sum()
            self.bars -= 1
            self.take(token)
            return _applied(values.absolute, node)
        if token in CLOSING:
            node = self.group(CLOSING[token])
            if token in ("\\lfloor", "\\lceil"):
                return _rounding(token[2:], node)
            return _applied(values.absolute, node) if token == "\\lvert" else node
        if kind == "letter":
            return self.letter(token)
        if kind == "name" or kind == "command":
            return self.command(token.removeprefix("\\"))
        raise Unreadable

    def letter(self, token: str) -> Node:
        """Read a letter with its index and primes; i and e are numbers, C(n,k) is a binomial."""
        if token in "CP" and self.next == "(" and (node := self.choose(token)):
            return node
        if token == "e" and self.next != "_":
            return lambda place: place.context.e
        if token == "i" and self.next != "_":
            self.imaginary = True
            return lambda place: place.context.mpc(0, 1)
        name = token + self.index()
        if token in UNKNOWN_FUNCTIONS and self.next == "(":
            self.take()
            inside = self.group(")")
            return lambda place: values.unknown(place, name, inside(place))
        return self.symbol(name)

    def symbol(self, name: str) -> Node:
        """Return the value of a letter at a place."""
        self.letters.add(name)
        return lambda place: place.letters[name]

    def index(self) -> str:
        """Read an index and primes as a part of a name."""
        name = ""
        while mark := self.accept("_", "'"):
            if mark == "'":
                name += mark
            elif self.accept("{"):
                inside = ""
                while self.next and self.next not in "{}":
                    inside += self.take()
                self.take("}")
                name += f"_{inside}"
            else:
                name += f"_{self.take()}"
        return name

    def choose(self, token: str) -> Node | None:
        """Read `C(n,k)` or `P(n,k)`; without a comma the letter is a factor."""
        start = self.at
        self.take("(")
        try:
            n = self.sum()
            self.take(",")
            k = self.sum()
            self.take(")")
        except Unreadable:
            self.at = start
            return None
        if token == "C":
            return _joined(values.binomial, n, k)
        return _joined(values.times, _joined(values.binomial, n, k), _applied(values.factorial, k))

    def command(self, name: str) -> Node:
        """Read a command or the name of a function, with its arguments."""
        if name == "pi":
            return lambda place: place.context.pi
        if name == "imath":
            self.imaginary = True
            return lambda place: place.context.mpc(0, 1)
        if name in GREEK:
            return self.symbol(name + self.index())
        if name in ("frac", "binom", "dbinom", "tbinom"):
            first = self.digits()
            return _joined(values.over if name == "frac" else values.binomial, first, self.digits())
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in LOGARITHMS:
            return self.logarithm(name)
        if name in ("floor", "ceil", "abs"):
            self.take("(")
            node = self.group(")")
            return _applied(values.absolute, node) if name == "abs" else _rounding(name, node)
        if name in OF_MANY:
            return self.many(name)
        if name in ACCENTS:
            return self.accented(name)
        raise Unreadable

    def accented(self, name: str) -> Node:
        """Read a letter with an accent as a separate letter."""
        self.take("{")
        inside = ""
        while self.next and self.next not in "{}":
            inside += self.take()
        self.take("}")
        if not re.fullmatch(r"[A-Za-z]{1,3}", inside):
            raise Unreadable
        return self.symbol(f"{name} {inside}{self.index()}")

    def root(self) -> Node:
        """Read a square root, or `\\sqrt[n]{x}`."""
        degree: Node = lambda place: Fraction(2)  # noqa: E731
        if self.accept("["):
            degree = self.group("]")
        node = self.digits()

        def compute(place: Place) -> Value:
            n = degree(place)
            if isinstance(n, Fraction) and n.denominator == 1 and n > 0:
                return values.root(place, node(place), int(n))
            return values.power(place, node(place), values.over(place, Fraction(1), n))

        return compute

    def of(self) -> Node:
        """Read the argument of a function: a group, or the factors up to the next sign or function."""
        if self.next in ("(", "{", "["):
            opening = self.take()
            return self.group(CLOSING[opening])
        if sign := self.accept("-"):
            return _negated(self.of()) if sign else self.of()
        node = self.factor()
        while self.starts_factor() and self.next.removeprefix("\\") not in (*FUNCTIONS, *LOGARITHMS, "(", "["):
            node = _joined(values.times, node, self.factor())
        while self.next == "/" and self.kind_at(self.at + 1) == "number":
            self.take()
            node = _joined(values.over, node, self.factor())
        return node

    def function(self, name: str) -> Node:
        """Read a function such as `\\sin^2 x`; the exponent -1 makes the inverse."""
        exponent: Node | None = None
        function = FUNCTIONS[name]
        if self.accept("^"):
            start = self.at
            if "".join(token for _, token in self.tokens[start : start + 4]) == "{-1}" and name in INVERSE:
                self.at += 4
                function = INVERSE[name]
            else:
                exponent = self.argument()
        inside = self.of()
        node: Node = lambda place: values.function(place, function, inside(place))  # noqa: E731
        return node if exponent is None else _joined(values.power, node, exponent)

    def logarithm(self, name: str) -> Node:
        """Read a logarithm with or without a base."""
        base: Node | None = None
        if self.accept("_"):
            base = self.digits() if self.kind == "number" else self.argument()
        exponent = self.argument() if self.accept("^") else None
        inside = self.of()
        self.plain_log |= name == "log" and base is None

        def compute(place: Place) -> Value:
            ten = name == "lg" or (name == "log" and place.common_log)
            root = base(place) if base else Fraction(10) if ten else None
            return values.logarithm(place, inside(place), root)

        return compute if exponent is None else _joined(values.power, compute, exponent)

    def many(self, name: str) -> Node:
        """Read a function of several values in parentheses."""
        self.take("(")
        nodes = [self.sum()]
        while self.accept(","):
            nodes.append(self.sum())
        self.take(")")
        return lambda place: values.of_many(name, [node(place) for node in nodes])


def _joined(operation: Callable[[Place, Value, Value], Value], left: Node, right: Node) -> Node:
    return lambda place: operation(place, left(place), right(place))


def _applied(operation: Callable[[Place, Value], Value], node: Node) -> Node:
    return lambda place: operation(place, node(place))


def _negated(node: Node) -> Node:
    return lambda place: -node(place)


def _rounding(name: str, node: Node) -> Node:
    return lambda place: values.whole(place, name, node(place))
