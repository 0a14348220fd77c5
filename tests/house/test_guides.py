"""The commands and recipes in the guides are ones that lowtax takes."""

import re
from pathlib import Path

import pytest
import typer
import yaml
from guides import blocks, commands

from lowtax.cli import main
from lowtax.models.placement import mode_methods
from lowtax.study.recipe import load

GUIDES = (
    "from-the-reference.md",
    "guides/merging.md",
    "guides/scaling.md",
    "guides/many-machines.md",
    "reference/benchmarks.md",
    "guides/evaluating.md",
    "guides/editing.md",
    "guides/analyze.md",
    "guides/landscape.md",
    "guides/consistency.md",
    "guides/dry-run.md",
    "guides/sampling.md",
    "guides/chat-templates.md",
    "guides/judging.md",
    "guides/attacks.md",
    "start/your-model.md",
)


@pytest.mark.parametrize("name", GUIDES)
def test_every_command_of_a_guide_is_understood(name: str):
    group = typer.main.get_command(main.app)
    assert len(commands(name)) >= 3
    for subcommand, *words in commands(name):
        group.commands[subcommand].make_context(subcommand, list(words))  # type: ignore[attr-defined]


def test_a_wrong_command_would_be_found():
    group = typer.main.get_command(main.app)
    with pytest.raises(Exception, match="No such option"):
        group.commands["train"].make_context("train", ["--no-such-thing"])  # type: ignore[attr-defined]


def test_the_recipes_of_the_guide_are_recipes(tmp_path: Path):
    study, arm = blocks("from-the-reference.md", "yaml")
    (tmp_path / "study.yaml").write_text(study)
    recipe = load(tmp_path / "study.yaml")
    assert recipe.train_of("up_middle").warmup_steps == 0
    assert (recipe.judge, recipe.judged_text) == ("llama_guard", "both")
    rest = {"model": "owner/name", "data": ["direct-refusal"]}
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(rest | yaml.safe_load(arm)))
    (acts,) = load(tmp_path / "arm.yaml").arms["down_norm"].acts()
    published = re.search(r"# (lora_mlp_\S+)", arm)
    assert published
    (meant,) = mode_methods(published[1])
    assert {"weighted": True, "as_published": True} | acts == meant
