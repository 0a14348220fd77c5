"""YAML that others wrote: recipes, rubrics and values of options, read without programs and within bounds.

An alias stands for everything that its anchor has, so a few lines can stand for billions of values. Here the values are
counted before any is made. A key that is twice in a mapping is an error; YAML itself takes the last one.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from lowtax.common.borders import DEEPEST, read_text, reason
from lowtax.common.errors import UserError

FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
LARGEST = 1 << 18  # characters of a text
MOST_WRITTEN = 10_000  # values in a text
MOST = 100_000  # values, with those that aliases repeat
DIGITS = 400  # characters of a number or a date


class _OutOfBounds(ValueError):
    """The reason for which a text is not read, although it is YAML."""


class _Loader(yaml.SafeLoader):
    """YAML without programs, in which a key that is twice in a mapping is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.written = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Return a value.

        Raises:
            _OutOfBounds: It is inside of too many others, or there are too many.
        """
        self.depth, self.written = self.depth + 1, self.written + 1
        if self.depth > DEEPEST + 1:
            raise _OutOfBounds("its values are nested too deeply")
        if self.written > MOST_WRITTEN:
            raise _OutOfBounds(f"it has more than {MOST_WRITTEN:,} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping.

        Raises:
            YAMLError: It has a key twice.
        """
        node = super().compose_mapping_node(anchor)
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        if repeated := [key for key, times in keys.items() if times > 1]:
            raise yaml.YAMLError(f"the key {repeated[0]!r} is there twice in the section that begins {node.start_mark}")
        return node


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: it is not YAML, is too large or nested too deeply, or has a value that cannot be read.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it has {len(text):,} characters, and at most {LARGEST:,} are read")
    loader = None
    try:
        loader = _Loader(text)
        if (node := loader.get_single_node()) is None:
            return None
        _require_bounded(node)
        return loader.construct_document(node)
    except _OutOfBounds:
        raise
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
    except Exception as error:  # PyYAML's constructors raise anything: KeyError for !!bool x, AttributeError for dates
        raise ValueError(f"a value cannot be read ({reason(error)})") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path, what: str) -> Any:
    """Return the content of a YAML file.

    Args:
        what: the file in errors, such as `The recipe 'x.yaml'`.

    Raises:
        UserError: the file cannot be read or is not YAML.
    """
    text = read_text(path, what)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{what} is not valid YAML: {error}.") from error


def _require_bounded(root: yaml.Node) -> None:
    """Count the values under a node as they are after aliases and merges, without repeating any.

    Raises:
        _OutOfBounds: there are too many, they are nested too deeply or in a circle, or a number is too long.
    """
    sizes: dict[int, tuple[int, int]] = {}  # of a node: values, levels

    def measure(node: yaml.Node, level: int) -> tuple[int, int]:
        if level > DEEPEST:
            raise _OutOfBounds("its values are nested too deeply, or an alias repeats itself")
        if id(node) in sizes:
            return sizes[id(node)]
        if isinstance(node, yaml.ScalarNode):
            _require_plain(node)
            return 1, 0
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        inside = [measure(part, level + 1) for part in parts]
        size = 1 + sum(count for count, _ in inside), 1 + max((levels for _, levels in inside), default=0)
        if size[0] > MOST:
            raise _OutOfBounds(f"its aliases stand for more than {MOST:,} values")
        sizes[id(node)] = size
        return size

    if measure(root, 0)[1] > DEEPEST:
        raise _OutOfBounds("its values are nested too deeply")


def _require_plain(node: yaml.ScalarNode) -> None:
    text, kind = str(node.value), str(node.tag).rpartition(":")[2]
    if kind in ("int", "float", "timestamp") and len(text) > DIGITS:
        raise _OutOfBounds(f"a number or date of {len(text):,} characters is too long ({text[:20]}...)")
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
        raise _OutOfBounds("a text has a character that no file can hold")
