"""The commands and recipes in the guides are ones that lowtax takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from lowtax import cli
from lowtax.placement import mode_methods
from lowtax.recipe import load

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = (
    "from-the-reference.md",
    "merging.md",
    "scaling.md",
    "benchmarks.md",
    "evaluating.md",
    "editing.md",
    "analyze.md",
    "landscape.md",
    "dry-run.md",
)
COMMAND = re.compile(r"(?:^|-m |--module )lowtax (?P<words>[a-z].*)")


def blocks(name: str, language: str) -> list[str]:
    text = (DOCS / name).read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (lowtax .*)$", text, flags=re.MULTILINE) if language == "bash" else []
    return [*found, *indented]


def commands(name: str) -> list[list[str]]:
    """The words after `lowtax` of every command in a guide."""
    found = []
    for block in blocks(name, "bash"):
        text = block.replace("\\\n", " ")
        for variable, value in re.findall(r'^(\w+)="(.*)"$', text, flags=re.MULTILINE):
            text = text.replace(f"${variable}", value)
        lines = [COMMAND.search(line) for line in text.splitlines()]
        found += [shlex.split(line["words"], comments=True) for line in lines if line]
    return found


@pytest.mark.parametrize("name", GUIDES)
def test_every_command_of_a_guide_is_understood(name: str):
    group = typer.main.get_command(cli.app)
    assert len(commands(name)) >= 3
    for subcommand, *words in commands(name):
        group.commands[subcommand].make_context(subcommand, list(words))  # type: ignore[attr-defined]


def test_a_wrong_command_would_be_found():
    group = typer.main.get_command(cli.app)
    with pytest.raises(Exception, match="No such option"):
        group.commands["train"].make_context("train", ["--no-such-thing"])  # type: ignore[attr-defined]


def test_the_recipes_of_the_guide_are_recipes(tmp_path: Path):
    study, arm = blocks("from-the-reference.md", "yaml")
    (tmp_path / "study.yaml").write_text(study)
    recipe = load(tmp_path / "study.yaml")
    assert recipe.train_of("up_middle").warmup_steps == 0
    assert recipe.judged_text == "both"
    rest = {"model": "owner/name", "data": ["direct-refusal"]}
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(rest | yaml.safe_load(arm)))
    (acts,) = load(tmp_path / "arm.yaml").arms["down_norm"].acts()
    published = re.search(r"# (lora_mlp_\S+)", arm)
    assert published
    (meant,) = mode_methods(published[1])
    assert {"weighted": True} | acts == meant | {"as_published": True}
