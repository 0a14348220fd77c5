"""The pages of docs/reference that are made of code are what the code says now."""

import importlib.util
from pathlib import Path
from typing import get_args

import pytest
import typer
from places import ROOT
from pydantic import BaseModel

from lowtax.cli.main import app
from lowtax.study.recipe import Recipe


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


@pytest.mark.parametrize("name", ["recipe", "commands"])
def test_the_committed_page_is_the_generated_one(pages: dict[Path, str], name: str):
    path = ROOT / "docs" / "reference" / f"{name}.md"
    assert path.read_text() == pages[path], f"{path.relative_to(ROOT)} is out of date: run `make docs-reference`"


def sections(annotation: object) -> list[type[BaseModel]]:
    """The sections of a recipe in a type, and all below them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        parts = [field.annotation for field in annotation.model_fields.values()]
        return [annotation, *(section for part in parts for section in sections(part))]
    return [section for part in get_args(annotation) for section in sections(part)]


def test_the_recipe_page_has_every_key(pages: dict[Path, str]):
    page = pages[ROOT / "docs/reference/recipe.md"]
    expected = {"Recipe", "Arm", "EditedArm", "Data", "Train", "Execution", "Sampling", "PromptSet", "Task"}
    assert expected <= {section.__name__ for section in sections(Recipe)}
    for section in sections(Recipe):
        for name, field in section.model_fields.items():
            assert field.description, (section, name)
            assert f"| `{name}` | " in page or section.__name__ == "Placement", (section, name)


def test_the_commands_page_has_every_command_and_option(pages: dict[Path, str]):
    page = pages[ROOT / "docs/reference/commands.md"]
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        text = page.partition(f"## `lowtax {name}`\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if parameter.opts and not getattr(parameter, "hidden", False):
                assert parameter.opts[0] in text, (name, parameter.opts)
