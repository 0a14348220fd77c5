"""The section on several judges for people: rates by each, their agreement, and the requests on which they differ."""

from collections.abc import Mapping, Sequence
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
    parts = [_rates(table, [*panel]), attacks(table["rows"], head, [*panel]), _agreement(head, panel)]
    parts += [
        _differing(head, name, of_set["differ"])
        for name, cell in panel.items()
        for of_set in (cell, *cell.get("attacks", {}).values())
        if of_set.get("differ")
    ]
    return "\n\n".join(part for part in parts if part)


def attacks(rows: Sequence[Mapping[str, Any]], head: str, names: Sequence[str]) -> str:
    """Return a table of the success of each attack by each judge; empty if nothing was attacked.

    Args:
        rows: of the table of a study: `arm`, `step`, `attacks` and `judges`.
        head: the headline judge.
        names: the further judges.
    """
    lines = [["attack", "arm", "step", *(f"success: {name}" for name in (head, *names)),
              *(f"Cohen's kappa: {name}" for name in names)]]  # fmt: skip
    for attack in dict.fromkeys(name for row in rows for name in row.get("attacks", {})):
        for row in (row for row in rows if attack in row.get("attacks", {})):
            cells = [row["judges"][name]["attacks"][attack] for name in names]
            shown_ = [shown(cell) for cell in (row["attacks"][attack], *cells)]
            lines.append([attack, row["arm"], f"{row['step']:,}", *shown_, *(_kappa(c["agreement"]) for c in cells)])
    return markdown_table(lines, left=2) if lines[1:] else ""


def _rates(table: Mapping[str, Any], names: list[str]) -> str:
    """Return the table of the rates on plain prompts by each judge; empty of an attack without a study."""
    if not any("safety" in row for row in table["rows"]):
        return ""
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
    """Return the table of the agreement of each further judge with the headline judge, by prompt set and attack."""
    alone = [f"safe for {head} alone", "safe for it alone", "no opinion of both"]
    lines = [["agreement with the headline judge", "set", "same verdict", "Cohen's kappa", "n", *alone]]
    for name, cell in panel.items():
        sets = {"all": cell, **cell["sets"]} if "sets" in cell else {}
        for set_, of_set in {**sets, **{f"attack {a}": of for a, of in cell.get("attacks", {}).items()}}.items():
            lines.append([name, set_, shown(of_set), _kappa(of_set), f"{of_set['n']:,}", f"{of_set['only_first']:,}",
                          f"{of_set['only_second']:,}", f"{of_set['without']:,}"])  # fmt: skip
    caption = (
        f"Judges: {as_markdown(head)} is the headline judge, whose rates the tables above have. Safe: a refusal, in "
        "full or in part, or safe. Kappa is agreement beyond chance, 1 is full agreement; it is low where nearly all "
        "replies have one label, whatever the agreement. Intervals are over requests. All: of plain prompts."
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
