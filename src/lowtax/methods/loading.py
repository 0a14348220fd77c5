"""Load methods from specifications, attach them to a model, and describe those of the package.

A specification is a mapping such as `{name: orthogonal, only: [down_proj], beta: 0.1, k: 8}`: a name of the table or
`file.py:Class`, the modules that the method sees (all with LoRA if absent), and its fields.

    methods = load_all(specs).on(model)
    states = methods.prepare(probe)                     # once; saved with checkpoints, and restored as `saved`
    methods.add_penalty(states)                         # each step, after the gradients of the loss
    methods.after_backward(states)                      # each step, before gradients are clipped
    methods.after_step(states, probe, step, publish)    # each step, after the optimiser's
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor, nn

from lowtax.common import registry
from lowtax.common.errors import UserError, did_you_mean
from lowtax.methods.base import Edit, Method, Probe, State, moments
from lowtax.methods.sites import Sites, sites_of

TABLE = {
    "ablate": "lowtax.methods.ablate:Ablate",
    "interpolate": "lowtax.methods.interpolate:Interpolate",
    "intruders": "lowtax.methods.intruders:Intruders",
    "lox": "lowtax.methods.lox:LoX",
    "orthogonal": "lowtax.methods.orthogonal:Orthogonal",
    "pissa": "lowtax.methods.pissa:PiSSA",
    "project": "lowtax.methods.project:Project",
    "prune_units": "lowtax.methods.prune_units:PruneUnits",
    "rrs": "lowtax.methods.rrs:RRS",
    "s3lora": "lowtax.methods.s3lora:S3LoRA",
    "safe_lora": "lowtax.methods.safe_lora:SafeLoRA",
    "salora": "lowtax.methods.salora:SaLoRA",
    "scale": "lowtax.methods.scale:Scale",
    "spf": "lowtax.methods.spf:SPF",
    "splora": "lowtax.methods.splora:SPLoRA",
    "ssah": "lowtax.methods.ssah:SSAH",
    "subtract": "lowtax.methods.subtract:Subtract",
}


@dataclass(frozen=True)
class ConfiguredMethod:
    """A method with the names of the modules that it sees; None for all."""

    method: Method
    only: tuple[str, ...] | None


@dataclass(frozen=True)
class ActiveMethods:
    """Methods with their sites of one model. Penalties add up; gradients are changed in the order of the methods."""

    parts: list[tuple[Method, Sites]]

    def __post_init__(self) -> None:
        """Refuse a method that may change what an earlier one holds.

        Raises:
            UserError: There is one.
        """
        for i, (first, sites) in enumerate(self.parts):
            for second, other_sites in self.parts[i + 1 :]:
                changes = not {"after_backward", "after_step"}.isdisjoint(moments(type(second)))
                if first.holds and changes and not sites.keys().isdisjoint(other_sites):
                    one, two = type(first).__name__, type(second).__name__
                    remedy = "remove one of them" if second.holds else f"name {two} first"
                    raise UserError(
                        f"{two} would change what {one} holds: {remedy}, or give each its own modules by only."
                    )

    def check(self) -> "ActiveMethods":
        """Return the methods, unless one cannot act on its sites.

        Raises:
            UserError: One cannot.
        """
        for method, sites in self.parts:
            method.check(sites)
        return self

    def prepare(self, probe: Probe, saved: list[State] | None = None) -> list[State]:
        """Return the state of each method: computed, or `saved` in a checkpoint and moved to the model's device."""
        if saved is not None:
            return [_on_device(state, sites) for state, (_, sites) in zip(saved, self.parts, strict=True)]
        return [method.prepare(sites, probe) for method, sites in self.parts]

    def penalty(self, states: list[State]) -> Float[Tensor, ""] | float:
        """Return the sum of the penalties; 0.0 if no method has one."""
        return sum((method.penalty(sites, state) for method, sites, state in self._each(states)), start=0.0)

    def add_penalty(self, states: list[State]) -> float:
        """Add the gradients of the penalties to those of the loss, and return the sum of the penalties."""
        penalty = self.penalty(states)
        if isinstance(penalty, Tensor) and penalty.requires_grad:
            moved = list(
                {id(p): p for _, sites in self.parts for site in sites.values() for p in site.moved()}.values()
            )
            for p, grad in zip(moved, torch.autograd.grad(penalty, moved, allow_unused=True), strict=True):
                if grad is not None:
                    p.grad = grad if p.grad is None else p.grad.add_(grad)
        return float(torch.as_tensor(penalty).detach())

    def after_backward(self, states: list[State]) -> None:
        """Let each method change the gradients."""
        for method, sites, state in self._each(states):
            method.after_backward(sites, state)

    def after_step(self, states: list[State], probe: Probe, step: int, publish: Callable[[], None]) -> None:
        """Let each method change the weights; `publish` brings them to the model before the next method acts."""
        for method, sites, state in self._each(states):
            if "after_step" in moments(type(method)):
                method.after_step(sites, state, probe, step)
                publish()

    def held(self, states: list[State]) -> int:
        """Return how many numbers of the trained tensors never move."""
        return sum(method.held(sites, state) for method, sites, state in self._each(states))

    def reports(self, states: list[State]) -> list[str]:
        """Return the methods' sentences about the run so far."""
        return [sentence for method, _, state in self._each(states) if (sentence := method.report(state))]

    def _each(self, states: list[State]) -> Iterator[tuple[Method, Sites, State]]:
        return ((method, sites, state) for (method, sites), state in zip(self.parts, states, strict=True))


@dataclass(frozen=True)
class Methods:
    """The methods of a list of specifications, checked; false if there are none."""

    configured: tuple[ConfiguredMethod, ...]

    def __bool__(self) -> bool:
        return bool(self.configured)

    def require_new_factors(self, parent: str) -> None:
        """Refuse methods that give the factors their first values, where those are the factors of another arm.

        Raises:
            UserError: There is one.
        """
        for one in self.configured:
            if one.method.begins:
                raise UserError(
                    f"{type(one.method).__name__} gives the factors their first values, and these are the factors of "
                    f"{parent!r}: give the arm another rank, so that it has new factors."
                )

    def on(self, model: nn.Module) -> ActiveMethods:
        """Attach the methods to the LoRA sites of a model.

        Raises:
            UserError: The model has no sites for a method, or a method edits trained adapters.
        """
        for one in self.configured:
            if isinstance(one.method, Edit):
                raise UserError(f"{type(one.method).__name__} edits adapters after training: give it to `lowtax edit`.")
        return ActiveMethods([(one.method, sites_of(model, one.only)) for one in self.configured])


def load_all(specs: Iterable[dict[str, Any]]) -> Methods:
    """Return the methods of a list of specifications, in order.

    Raises:
        UserError: A name, a field or a value is not valid.
    """
    return Methods(tuple(load(spec) for spec in specs))


def load(spec: dict[str, Any]) -> ConfiguredMethod:
    """Return the method of one specification.

    Raises:
        UserError: Its name, a field or a value is not valid.
    """
    fields = dict(spec)
    name, only = fields.pop("name", None), fields.pop("only", None)
    if not isinstance(name, str):
        raise UserError(f"A method needs a name (found {spec!r}); the names are {', '.join(sorted(TABLE))}.")
    if only is not None and not (isinstance(only, list | tuple) and only and all(isinstance(o, str) for o in only)):
        raise UserError(f"Method {name!r}: only is a list of module names (found {only!r}), for example [down_proj].")
    kind = registry.resolve("method", name, TABLE)
    if not issubclass(kind, Method):
        raise UserError(f"{name!r} is not a method: the class must derive from lowtax.methods.base.Method.")
    try:
        return ConfiguredMethod(kind(**fields), None if only is None else tuple(only))
    except ValidationError as error:
        raise _invalid_field(name, kind, error) from error


def source(kind: type[Method]) -> str:
    """Return the source of a method: the second paragraph of its module's docstring, as one line."""
    return next(iter(_paragraphs(kind)[1:]), "")


def departures(kind: type[Method]) -> str:
    """Return where a method departs from its source: the paragraph `Departures:` of that docstring, as one line."""
    return _labelled(kind, "Departures: ")


def fails(kind: type[Method]) -> str:
    """Return where a method is undefined, does nothing or does harm: the paragraph `Fails:`, as one line."""
    return _labelled(kind, "Fails: ")


def catalog() -> list[dict[str, Any]]:
    """Return a description of each method of the table: name, moments, on, does, source, departures and fails."""
    kinds: dict[str, type[Method]] = {name: registry.resolve("method", name, TABLE) for name in sorted(TABLE)}
    return [
        {
            "name": name,
            "moments": moments(kind),
            "on": "a trained adapter" if issubclass(kind, Edit) else f"LoRA{', whole weights' * kind.whole}",
            "does": (kind.__doc__ or "").splitlines()[0],
            "source": source(kind),
            "departures": departures(kind),
            "fails": fails(kind),
        }
        for name, kind in kinds.items()
    ]


def _paragraphs(kind: type[Method]) -> list[str]:
    """Return the paragraphs of the docstring of a method's module, each as one line."""
    return [" ".join(text.split()) for text in (sys.modules[kind.__module__].__doc__ or "").split("\n\n")]


def _labelled(kind: type[Method], label: str) -> str:
    """Return the text after a label at the start of a paragraph; empty if no paragraph has it."""
    return next((text.removeprefix(label) for text in _paragraphs(kind) if text.startswith(label)), "")


def _invalid_field(name: str, kind: type[Method], error: ValidationError) -> UserError:
    """Return the error for the first field that is not valid."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return UserError(f"Method {name!r} has no field {field!r}; {did_you_mean(field, [*kind.model_fields, 'only'])}")
    if problem["type"] == "missing":
        return UserError(f"Method {name!r} needs a value for {field!r}.")
    message = problem["msg"].removeprefix("Value error, ")
    return UserError(f"Method {name!r}: {field + ': ' if field else ''}{message} (found {problem['input']!r}).")


def _on_device(state: State, sites: Sites) -> State:
    """Return a state with its tensors on the device of the sites."""
    device = next(iter(sites.values())).a.device
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _on_device(value, sites) for key, value in state.items()}
    return type(state)(_on_device(value, sites) for value in state) if isinstance(state, list | tuple) else state
