"""What a published method may do to a run: five moments, all optional. One file per method.

A specification is a mapping such as `{name: orthogonal, only: [down_proj], beta: 0.1, k: 8}`: a name of the table or
`file.py:Class`, the modules that it sees (all with LoRA if absent), and its own fields.

    methods = load_all(specs).on(model)
    states = methods.prepare(probe)            # once; saved with the checkpoint, and given back as `saved`
    methods.add_penalty(states)                # each step, once for all of its rows, after the loss's gradients
    methods.after_backward(states)             # each step, before the optimiser's
    methods.after_step(states, probe, step, publish)    # each step, after the optimiser's

An `Edit` (`lowtax.edit`) has two moments, on an adapter that is trained: `edit(sites, prepare(sites, probe))`.

The docstring of a module names the source of its method in the second paragraph; one that begins with `Departures:`
says where we depart from it, and `Fails:` where it is undefined, does nothing or does harm (docs/methods.md).

Where ZeRO or FSDP keep weights and gradients in parts, methods see whole copies (`lowtax.gathered`).
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from lowtax import registry
from lowtax.errors import UserError, did_you_mean
from lowtax.linalg import Factors
from lowtax.sites import Sites, sites_of

TABLE = {
    "interpolate": "lowtax.methods.interpolate:Interpolate",
    "intruders": "lowtax.methods.intruders:Intruders",
    "lox": "lowtax.methods.lox:LoX",
    "orthogonal": "lowtax.methods.orthogonal:Orthogonal",
    "project": "lowtax.methods.project:Project",
    "s3lora": "lowtax.methods.s3lora:S3LoRA",
    "safe_lora": "lowtax.methods.safe_lora:SafeLoRA",
    "salora": "lowtax.methods.salora:SaLoRA",
    "scale": "lowtax.methods.scale:Scale",
    "spf": "lowtax.methods.spf:SPF",
    "splora": "lowtax.methods.splora:SPLoRA",
    "ssah": "lowtax.methods.ssah:SSAH",
}
MOMENTS = ("prepare", "penalty", "after_backward", "after_step", "edit")

State = Any  # tensors in dicts, lists and tuples: what `prepare` returned, saved with the checkpoint


class Probe(Protocol):
    """What every method may ask. In training it is a `lowtax.probe.Probe`, which also looks at the model itself."""

    def weights(self, model: str) -> Mapping[str, Float[Tensor, "out in"]]:
        """The same weights in another checkpoint."""
        ...


class Method(BaseModel):
    """The fields are the hyper-parameters; unknown ones are an error. The base class is plain LoRA.

    Nothing is kept on the method: what it needs later is returned by `prepare`, so that a resumed run is the same run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    whole: ClassVar[bool] = False  # whether it also acts where whole weights are trained, on sites of rank 0
    holds: ClassVar[bool] = False  # whether it promises what no other method may change after it

    def prepare(self, sites: Sites, probe: Probe | None) -> State:
        """Once, before the first step: compute subspaces, masks, references."""
        return None

    def penalty(self, sites: Sites, state: State) -> Float[Tensor, ""] | float:
        """Each step: a term added to the loss."""
        return 0.0

    def after_backward(self, sites: Sites, state: State) -> None:
        """Each step, gradients reduced, optimiser not yet stepped: project or mask `site.grads()` in place."""

    def after_step(self, sites: Sites, state: State, probe: Probe, step: int) -> None:
        """Each step, the optimiser has stepped for the `step`-th time: put back what must not move, look again."""

    def edit(self, sites: Sites, state: State) -> dict[str, Factors]:
        """Once, after the last step: the new dW of each site that must change."""
        return {}

    def held(self, sites: Sites, state: State) -> int:
        """How many numbers of the trained tensors never move."""
        return 0

    def report(self, state: State) -> str:
        """A sentence for people on what it did so far, at each checkpoint."""
        return ""


class Edit(Method):
    """A method for trained adapters. Its sites read W anew each time; numbers in the state of a site are reported."""


@dataclass(frozen=True)
class Bound:
    """A method and the names of the modules that it sees."""

    method: Method
    only: tuple[str, ...] | None


@dataclass(frozen=True)
class Attached:
    """Methods with the sites of one model, found once. Penalties add; gradients are changed in the given order."""

    parts: list[tuple[Method, Sites]]

    def __post_init__(self) -> None:
        """UserError where one method would break what another before it promises."""
        for i, (first, sites) in enumerate(self.parts):
            for second, others in self.parts[i + 1 :]:
                changes = not {"after_backward", "after_step"}.isdisjoint(moments(type(second)))
                if first.holds and changes and not sites.keys().isdisjoint(others):
                    one, two = type(first).__name__, type(second).__name__
                    way = "leave one of them out" if second.holds else f"name {two} first"
                    raise UserError(
                        f"{two} would change what {one} holds: {way}, or give each its own modules by only."
                    )

    def prepare(self, probe: Probe | None = None, saved: list[State] | None = None) -> list[State]:
        """The states, one a method: computed, or `saved` ones from a checkpoint brought to the model's device."""
        if saved is not None:
            return [_moved(state, sites) for state, (_, sites) in zip(saved, self.parts, strict=True)]
        return [method.prepare(sites, probe) for method, sites in self.parts]

    def penalty(self, states: list[State]) -> Float[Tensor, ""] | float:
        """What is added to the loss; 0.0 if no method has a penalty."""
        return sum((method.penalty(sites, state) for method, sites, state in self._each(states)), start=0.0)

    def add_penalty(self, states: list[State]) -> float:
        """Add the gradients of the penalties to those of the loss; returns the penalties' sum."""
        found = self.penalty(states)
        if isinstance(found, Tensor) and found.requires_grad:
            moved = list(
                {id(p): p for _, sites in self.parts for site in sites.values() for p in site.moved()}.values()
            )
            for p, grad in zip(moved, torch.autograd.grad(found, moved, allow_unused=True), strict=True):
                if grad is not None:
                    p.grad = grad if p.grad is None else p.grad.add_(grad)
        return float(torch.as_tensor(found).detach())

    def after_backward(self, states: list[State]) -> None:
        """Let each method change the gradients."""
        for method, sites, state in self._each(states):
            method.after_backward(sites, state)

    def after_step(self, states: list[State], probe: Probe, step: int, publish: Callable[[], None]) -> None:
        """Let each method change the weights; `publish` brings that to the model before the next one looks at it."""
        for method, sites, state in self._each(states):
            if "after_step" in moments(type(method)):
                method.after_step(sites, state, probe, step)
                publish()

    def held(self, states: list[State]) -> int:
        """How many numbers of the trained tensors never move."""
        return sum(method.held(sites, state) for method, sites, state in self._each(states))

    def reports(self, states: list[State]) -> list[str]:
        """What the methods have to say so far."""
        return [sentence for method, _, state in self._each(states) if (sentence := method.report(state))]

    def _each(self, states: list[State]) -> Iterator[tuple[Method, Sites, State]]:
        return ((method, sites, state) for (method, sites), state in zip(self.parts, states, strict=True))


@dataclass(frozen=True)
class Methods:
    """Checked specifications; false if there are none."""

    bound: tuple[Bound, ...]

    def __bool__(self) -> bool:
        return bool(self.bound)

    def on(self, model: nn.Module) -> Attached:
        """The methods on the LoRA sites of a model.

        Raises:
            UserError: There are methods but no sites for them, or one that does nothing in training.
        """
        for one in self.bound:
            if isinstance(one.method, Edit):
                raise UserError(
                    f"{type(one.method).__name__} edits adapters that are trained: give it to `lowtax edit`."
                )
        return Attached([(one.method, sites_of(model, one.only)) for one in self.bound])


def load_all(specs: Iterable[dict[str, Any]]) -> Methods:
    """The methods of a list of specifications, in their order.

    Raises:
        UserError: A name, a field or a value is not known to exist.
    """
    return Methods(tuple(load(spec) for spec in specs))


def load(spec: dict[str, Any]) -> Bound:
    """The method of one specification.

    Raises:
        UserError: Its name, a field or a value is not known to exist.
    """
    fields = dict(spec)
    name, only = fields.pop("name", None), fields.pop("only", None)
    if not isinstance(name, str):
        raise UserError(f"A method needs a name (found {spec!r}); known are: {', '.join(sorted(TABLE))}.")
    if only is not None and not (isinstance(only, list | tuple) and only and all(isinstance(o, str) for o in only)):
        raise UserError(f"Method {name!r}: only is a list of module names (found {only!r}), for example [down_proj].")
    kind = registry.resolve("method", name, TABLE)
    if not issubclass(kind, Method):
        raise UserError(f"{name!r} is no method: the class must derive from lowtax.methods.Method.")
    try:
        return Bound(kind(**fields), None if only is None else tuple(only))
    except ValidationError as error:
        raise _refused(name, kind, error) from error


def moments(kind: type[Method]) -> list[str]:
    """Those that a method uses."""
    return [moment for moment in MOMENTS if getattr(kind, moment) is not getattr(Method, moment)]


def source(kind: type[Method]) -> str:
    """Where a method is from: the paragraph after the first line of its module's docstring, as one line."""
    return next(iter(_paragraphs(kind)[1:]), "")


def departures(kind: type[Method]) -> str:
    """Where a method departs from its source: the paragraph `Departures:` of its module's docstring, as one line."""
    return _labelled(kind, "Departures: ")


def fails(kind: type[Method]) -> str:
    """Where a method is undefined, does nothing or does harm: the paragraph `Fails:`, as one line."""
    return _labelled(kind, "Fails: ")


def listed() -> list[dict[str, Any]]:
    """Every method of the table: name, moments, what it acts on and does, source, departures and fails."""
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
    """Of the docstring of a method's module, each as one line."""
    return [" ".join(text.split()) for text in (sys.modules[kind.__module__].__doc__ or "").split("\n\n")]


def _labelled(kind: type[Method], label: str) -> str:
    """What follows a label at the start of a paragraph; nothing if none has it."""
    return next((text.removeprefix(label) for text in _paragraphs(kind) if text.startswith(label)), "")


def _refused(name: str, kind: type[Method], error: ValidationError) -> UserError:
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return UserError(f"Method {name!r} has no field {field!r}; {did_you_mean(field, [*kind.model_fields, 'only'])}")
    if problem["type"] == "missing":
        return UserError(f"Method {name!r} needs a value for {field!r}.")
    message = problem["msg"].removeprefix("Value error, ")
    return UserError(f"Method {name!r}: {field + ': ' if field else ''}{message} (found {problem['input']!r}).")


def _moved(state: State, sites: Sites) -> State:
    """The state with its tensors on the device of the sites."""
    device = next(iter(sites.values())).a.device
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _moved(value, sites) for key, value in state.items()}
    return type(state)(_moved(value, sites) for value in state) if isinstance(state, list | tuple) else state
