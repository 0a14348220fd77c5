"""Settings that differ between recipes, key by key."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lowtax.common.display import as_line

LONGEST = 200  # characters of a value that are shown


def differences(recipes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a row for each setting that is not equal in all recipes: its dotted key, and its value in each of them.

    A setting that a recipe does not have is `-`, also where its default is the value of another one.
    """
    if len(recipes) < 2:
        return []
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    return [
        [as_line(key), *(_shown(each[key]) if key in each else "-" for each in flat)]
        for key in keys
        if any(key not in each or each[key] != flat[0].get(key) for each in flat)
    ]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from _flat(part, f"{key}.{number}")
    else:
        yield key, value


def _shown(value: Any) -> str:
    return as_line(str(value))[:LONGEST]
