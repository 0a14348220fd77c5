"""The commands `edit` and `methods`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lowtax.common.errors import UserError
from lowtax.common.log import tell

SetField = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Field of the method; repeatable.")
]


def edit(
    method: Annotated[str, typer.Argument(help="Method: a name from `lowtax methods`, or file.py:Class.")],
    adapter: Annotated[Path, typer.Option("--adapter", help="PEFT adapter folder to edit; it is not changed.")],
    out: Annotated[Path, typer.Option("--out", help="Output folder of the new adapter.")],
    base: Annotated[str | None, typer.Option("--base", help="Base model, if not the one the adapter names.")] = None,
    aligned: Annotated[str | None, typer.Option("--aligned", help="Aligned model, for methods that need one.")] = None,
    set_: SetField = None,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="FIELD=V1,V2,...", help="Make an adapter for each value, in OUT/FIELD-VALUE."),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Truncate edited matrices to this rank.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False,
) -> None:
    """Make a new adapter from a trained one.

    Edits need weights alone: no data, no training, no model in memory. `ablate` and `prune_units` run the model.

    Example: lowtax edit project --adapter runs/14b/arms/MODE/seed-0/checkpoint-5000 --set side=both --out projected
    """
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.methods import editing

    spec = {"name": method, **fields(set_ or []), **({"aligned": aligned} if aligned else {})}
    runs = [(spec, out)]
    if sweep is not None:
        field, values = swept(sweep)
        runs = [(spec | fields([f"{field}={value}"]), out / f"{field}-{value}") for value in values]
    results = [editing.edit(fields_, adapter, to, base=base, rank=rank) for fields_, to in runs]
    if as_json:
        tell(json.dumps([result.card for result in results] if sweep else results[0].card))
    else:
        tell("\n".join(f"edited: {result.folder}" for result in results))


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/reference/methods.md.")] = False,
) -> None:
    """List the methods.

    Shows what each method does, when it acts, its source, our departures from it, and where it fails.

    Example: lowtax methods
    """
    from lowtax.methods import docs_page
    from lowtax.methods.loading import catalog

    if as_markdown:
        return tell(docs_page.markdown(), end="")
    entries = catalog()
    if as_json:
        return tell(json.dumps(entries))
    for entry in entries:
        tell(f"{entry['name']}  ({', '.join(entry['moments'])})\n  {entry['does']}")
        tell("".join(f"  {label}: {entry[label]}\n" for label in ("source", "departures", "fails")))


def fields(settings: list[str]) -> dict[str, Any]:
    """Return FIELD=VALUE settings as the fields of a method, with values read as YAML.

    Raises:
        UserError: A setting has another form.
    """
    from lowtax.common.yaml_files import parse_yaml

    values = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not (field and equals):
            raise UserError(f"--set {setting!r} is not of the form FIELD=VALUE, such as --set k=16.")
        try:
            values[field] = parse_yaml(value)
        except ValueError as error:
            raise UserError(f"--set {setting!r}: {value!r} is not a YAML value; quote it.") from error
    return values


def swept(setting: str) -> tuple[str, list[str]]:
    """Return the field of a sweep and its values.

    Raises:
        UserError: The setting has another form, or repeats a value.
    """
    field, equals, text = setting.partition("=")
    values = [value.strip() for value in text.split(",")]
    if not (field and equals) or not all(values) or len(set(values)) < len(values) or any("/" in v for v in values):
        raise UserError(
            f"--sweep {setting!r} is not FIELD=V1,V2,... with different values, such as --sweep by=0.25,0.5,1."
        )
    return field, values
