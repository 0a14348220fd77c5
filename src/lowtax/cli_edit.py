"""The commands around methods: edit a trained adapter, list what there is."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lowtax.cli_common import say
from lowtax.errors import UserError

SetField = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the method; several times.")
]


def edit(
    method: Annotated[str, typer.Argument(help="A name that `lowtax methods` lists, or file.py:Class.")],
    adapter: Annotated[Path, typer.Option("--adapter", help="The PEFT folder to edit; it stays as it is.")],
    out: Annotated[Path, typer.Option("--out", help="The new adapter's folder.")],
    base: Annotated[str | None, typer.Option("--base", help="The base, if it is not where the adapter says.")] = None,
    aligned: Annotated[
        str | None, typer.Option("--aligned", help="For methods with an alignment: the model that has it.")
    ] = None,
    set_: SetField = None,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="FIELD=V1,V2,...", help="An adapter for each value, in OUT/FIELD-VALUE."),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Truncate what is edited to this rank.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False,
) -> None:
    """Make another adapter of a trained one, from weights alone: no data, no training, no model in memory.

    Example: lowtax edit project --adapter runs/14b/arms/MODE/seed-0/checkpoint-5000 --set side=both --out projected
    """
    from lowtax.quiet import quiet_libraries

    quiet_libraries()
    from lowtax import edit as editing

    spec = {"name": method, **fields(set_ or []), **({"aligned": aligned} if aligned else {})}
    runs = [(spec, out)]
    if sweep is not None:
        field, values = swept(sweep)
        runs = [(spec | fields([f"{field}={value}"]), out / f"{field}-{value}") for value in values]
    made = [editing.edit(one, adapter, to, base=base, rank=rank, say=say) for one, to in runs]
    if as_json:
        print(json.dumps([one.card for one in made] if sweep else made[0].card))
    else:
        print("\n".join(f"edited: {one.folder}" for one in made))


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/methods.md.")] = False,
) -> None:
    """List the methods: their moments in a run, what they do, their source, where we depart from it, where they fail.

    Example: lowtax methods
    """
    from lowtax.methods import listed, page

    if as_markdown:
        return print(page.markdown(), end="")
    found = listed()
    if as_json:
        return print(json.dumps(found))
    for one in found:
        print(f"{one['name']}  ({', '.join(one['moments'])})\n  {one['does']}")
        print("".join(f"  {label}: {one[label]}\n" for label in ("source", "departures", "fails")))


def fields(settings: list[str]) -> dict[str, Any]:
    """FIELD=VALUE settings as the fields of a method, the values read as YAML."""
    import yaml

    found = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not (field and equals):
            raise UserError(f"--set {setting!r} is no FIELD=VALUE, such as --set k=16.")
        try:
            found[field] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {setting!r}: {value!r} is no YAML value; quote it.") from error
    return found


def swept(setting: str) -> tuple[str, list[str]]:
    """The field of a sweep and its values."""
    field, equals, text = setting.partition("=")
    values = [value.strip() for value in text.split(",")]
    if not (field and equals) or not all(values) or len(set(values)) < len(values) or any("/" in v for v in values):
        raise UserError(
            f"--sweep {setting!r} is no FIELD=V1,V2,... of different values, such as --sweep by=0.25,0.5,1."
        )
    return field, values
