"""The section on several judges for people: rates by each, their agreement, and the requests on which they differ."""

from collections.abc import Mapping
from typing import Any

from lowtax.common.display import as_markdown
from lowtax.common.tables import Cell, markdown_table, shown

SHOWN = 10  # requests on which judges differ
WIDTH = 100  # characters of a request


def markdown(table: Mapping[str, Any]) -> str:
    """Return the section; empty if a study has one judge."""
    panel: Mapping[str, Any] = table.get("judges", {})
    if not panel:
        return ""
    head = str(table["judge"])
    parts = [_rates(table, [*panel]), _agreement(head, panel)]
    parts += [_differing(head, name, cell["differ"]) for name, cell in panel.items() if cell["differ"]]
    return "\n\n".join(parts)


def _rates(table: Mapping[str, Any], names: list[str]) -> str:
    columns = {"safety": "harmful", "over_refusal": "ordinary"}
    head = ["by each judge", "step"]
    head += [f"{what} refused or safe: {name}" for what in columns.values() for name in (table["judge"], *names)]
    lines = [head]
    for row in table["rows"]:
        cells = [
            shown(source.get(column))
            for column in columns
            for source in (row, *(row.get("judges", {}).get(name, {}) for name in names))
        ]
        lines.append([row["arm"], f"{row['step']:,}", *cells])
    return markdown_table(lines)


def _agreement(head: str, panel: Mapping[str, Any]) -> str:
    alone = [f"safe for {head} alone", "safe for it alone", "no opinion of both"]
    lines = [["agreement with the headline judge", "set", "same verdict", "Cohen's kappa", "n", *alone]]
    for name, cell in panel.items():
        for set_, of_set in {"all": cell, **cell["sets"]}.items():
            lines.append([name, set_, shown(of_set), _kappa(of_set), f"{of_set['n']:,}", f"{of_set['only_first']:,}",
                          f"{of_set['only_second']:,}", f"{of_set['without']:,}"])  # fmt: skip
    caption = (
        f"Judges: {as_markdown(head)} is the headline judge, whose rates the tables above have. Safe: a refusal, in "
        "full or in part, or safe. Kappa is agreement beyond chance, 1 is full agreement; it is low where nearly all "
        "replies have one label, whatever the agreement. Intervals are over requests."
    )
    return f"{markdown_table(lines, left=2)}\n\n{caption}"


def _kappa(cell: Cell) -> str:
    return shown(cell["kappa"])


def _differing(head: str, name: str, requests: list[dict[str, Any]]) -> str:
    lines = [[f"requests on which {head} and {name} differ", "set", "replies", head, name]]
    for each in requests[:SHOWN]:
        text = each["prompt"] if len(each["prompt"]) <= WIDTH else each["prompt"][:WIDTH] + " ..."
        lines.append([text, each["set"], f"{each['differ']:,} of {each['n']:,}", *each["labels"]])
    return markdown_table(lines, left=2)
