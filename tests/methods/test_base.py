"""The interface of methods: one definition of the probe, for training and for edits."""

import inspect

import pytest

from lowtax.common.errors import UserError
from lowtax.methods.base import Probe
from lowtax.methods.editing import OfflineProbe
from lowtax.training.probe import ModelProbe

MEMBERS = [name for name, member in vars(Probe).items() if inspect.isfunction(member) and not name.startswith("_")]


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_probe_has_what_methods_call():
    of_modules = ["directions", "gradients", "rows_before", "variances", "weight", "weights", "writers"]
    assert sorted(MEMBERS) == sorted([*of_modules, "mean_states", "states", "state_gradients", "trials"])


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
