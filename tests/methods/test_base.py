"""The interface of methods: one definition of the probe, and no import from methods back to the trainer."""

import ast
import inspect
from pathlib import Path

import pytest

from lowtax import methods
from lowtax.common.errors import UserError
from lowtax.methods import sites
from lowtax.methods.base import Probe
from lowtax.methods.editing import OfflineProbe
from lowtax.training.probe import ModelProbe

TRAINING = """
checkpoints distributed encoding frozen_prefix fused_layers job memory objective packing parameters probe progress
sharding train training zero
""".split()  # the modules of the training room, which is above that of methods
MEMBERS = [name for name, member in vars(Probe).items() if inspect.isfunction(member) and not name.startswith("_")]
FILES = sorted([*Path(methods.__file__).parent.glob("*.py"), Path(sites.__file__)])


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_probe_has_what_methods_call():
    assert sorted(MEMBERS) == ["directions", "gradients", "rows_before", "variances", "weight", "weights"]


@pytest.mark.parametrize("kind", [ModelProbe, OfflineProbe])
@pytest.mark.parametrize("name", MEMBERS)
def test_both_probes_satisfy_one_definition(kind: type, name: str):
    assert name in vars(kind)
    assert parameters(getattr(kind, name)) == parameters(getattr(Probe, name))


@pytest.mark.parametrize("name", [name for name in MEMBERS if name != "weights"])
def test_the_probe_of_an_edit_runs_no_model(name: str):
    member = getattr(OfflineProbe(), name)
    with pytest.raises(UserError, match="of a running model, and an edit reads stored weights only"):
        member(*parameters(member))


def imported(path: Path) -> set[str]:
    """Return the modules of lowtax that a file imports, also inside functions, without the name of the package."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.split(".")[1] for name in names if name.startswith("lowtax.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_method_imports_the_trainer(path: Path):
    assert imported(path).isdisjoint(TRAINING)


def test_an_import_of_the_trainer_would_be_noticed(tmp_path: Path):
    path = tmp_path / "method.py"
    path.write_text("def f():\n    from lowtax.training.probe import ModelProbe\n")
    assert imported(path) & {*TRAINING} == {"probe"}
    path.write_text("from lowtax import linalg, train\n")
    assert imported(path) & {*TRAINING} == {"train"}
