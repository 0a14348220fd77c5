"""The interface of methods: five moments of a run at which a method may act, all optional.

A method is a pydantic model whose fields are its hyper-parameters. In training its moments are called in this order:

    state = method.prepare(sites, probe)                # once, before the first step; saved with checkpoints
    method.penalty(sites, state)                        # each step: a term of the loss
    method.after_backward(sites, state)                 # each step: gradients are complete, not yet clipped
    method.after_step(sites, state, probe, step)        # each step: the optimiser has stepped

An `Edit` acts on a trained adapter instead: `edit(sites, prepare(sites, probe))` gives the new updates.

Of the docstring of a method's module, the second paragraph names the source; a paragraph that begins with `Departures:`
says where the code departs from it, and one that begins with `Fails:` where the method is undefined, does nothing or
does harm. `docs/reference/methods.md` is made of them.

Where ZeRO or FSDP keep weights and gradients in parts, methods see whole copies.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from jaxtyping import Float
from pydantic import AfterValidator, BaseModel, ConfigDict
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.data import specs
from lowtax.methods.sites import Sites

if TYPE_CHECKING:
    from lowtax.methods.running import Trial

MOMENTS = ("prepare", "penalty", "after_backward", "after_step", "edit")

Position = Literal["prompt", "thought"]  # the end of the prompt, or of the thought after it
State = Any  # tensors in dicts, lists and tuples: what `prepare` returned, saved with the checkpoint


def _with_answers(text: str) -> str:
    """Check that a `data` entry has answers."""
    if (answers := specs.parse(text).answers) not in ("given", "fixed"):
        raise UserError(f"A method needs rows that have answers: remove answers={answers} from {text!r}.")
    return text


Rows = Annotated[str, AfterValidator(_with_answers)]  # a `data` entry in its one-line form: builtin:refusals,n=128


class Probe(Protocol):
    """Read access of a method to weights and, in training, to the running model.

    Modules have the names of sites, but need not be sites. In training the model has the weights as methods left them
    and is in evaluation mode; all processes must make the same calls in the same order. An edit reads stored weights,
    and runs the model with the adapter for `variances` and `mean_states`: all that is left raises a UserError there.
    """

    def weights(self, ref: str) -> Mapping[str, Float[Tensor, "out in"]]:
        """Return the linear weights of another checkpoint by module, each read when it is accessed."""
        ...

    def weight(self, name: str) -> Float[Tensor, "out in"]:
        """Return the weight of a linear layer."""
        ...

    def variances(self, source: str, names: Iterable[str]) -> dict[str, Float[Tensor, " in"]]:
        """Return, for each input channel of a module, the sample variance over all tokens of the rows."""
        ...

    def directions(self, source: str, names: Iterable[str], k: int) -> dict[str, Float[Tensor, "out k"]]:
        """Return the k strongest left singular vectors of W X', X being the inputs at the tokens of the replies."""
        ...

    def gradients(self, source: str, sites: Sites) -> dict[str, tuple[Tensor, ...]]:
        """Return the gradients of the rows' mean loss per token: for each site of A and B, or of W if that moves."""
        ...

    def mean_states(self, source: str, n: int) -> Float[Tensor, "layers hidden"]:
        """Return the mean state after each layer but the last, at the last token of n prompts; for edits alone."""
        ...

    def writers(self) -> list[str]:
        """Return the names of the linear layers that write to the residual stream; for edits alone."""
        ...

    def trials(
        self, directions: Float[Tensor, "candidates hidden"], harmful: str, ordinary: str, used: int, n: int
    ) -> tuple[float, list["Trial"]]:
        """Return what removing each direction from all residual writes does, on further prompts; for edits alone."""
        ...

    def rows_before(self, first: str, second: str, units: Tensor) -> Tensor:
        """Return the output rows of module `first` that produce the given input channels of module `second`."""
        ...

    def states(self, source: str, layer: int, position: Position, steer: str | None = None) -> Float[Tensor, "n size"]:
        """Return the states after a layer at one position of each row, with an instruction before its request."""
        ...

    def state_gradients(
        self,
        source: str,
        sites: Sites,
        layer: int,
        position: Position,
        members: Sequence[int],
        loss: Callable[[Float[Tensor, "n size"]], Float[Tensor, ""]],
    ) -> tuple[float, dict[str, tuple[Tensor, ...]]]:
        """Return a loss of the states of some rows, and its gradients as `gradients` does."""
        ...


class Method(BaseModel):
    """A method with the fields as hyper-parameters; unknown fields are an error. The base class is plain LoRA.

    A method keeps nothing on itself: what it needs later is in the state, so that a resumed run is the same run.

    whole: it also acts where whole weights are trained, on sites of rank 0.
    holds: it promises values that no method after it may change.
    begins: it gives the factors their first values, so that they must be new.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    whole: ClassVar[bool] = False
    holds: ClassVar[bool] = False
    begins: ClassVar[bool] = False

    @property
    def everything(self) -> bool:
        """Test whether, of whole weights, it sees every trained one: also embeddings and norms, by parameter name."""
        return False

    def check(self, sites: Sites) -> None:
        """Refuse sites that the method cannot act on; called before anything is computed, so only shapes are read.

        Raises:
            UserError: There are such sites.
        """

    def prepare(self, sites: Sites, probe: Probe) -> State:
        """Compute subspaces, masks or references, once before the first step, and return them as the state."""
        return None

    def penalty(self, sites: Sites, state: State) -> Float[Tensor, ""] | float:
        """Return a term of the loss, at each step."""
        return 0.0

    def after_backward(self, sites: Sites, state: State) -> None:
        """Project or mask the reduced gradients (`site.grads()`) in place, at each step, before they are clipped."""

    def after_step(self, sites: Sites, state: State, probe: Probe, step: int) -> None:
        """Restore what must not move, or use the probe again, after the optimiser's step number `step`."""

    def edit(self, sites: Sites, state: State) -> dict[str, Factors]:
        """Return the new dW of each site that changes, once after the last step."""
        return {}

    def held(self, sites: Sites, state: State) -> int:
        """Return how many numbers of the trained tensors never move."""
        return 0

    def report(self, state: State) -> str:
        """Return a sentence for people about the run so far, at each checkpoint."""
        return ""


class Edit(Method):
    """A method for trained adapters. Its sites read W anew each time; numbers in the state of a site are reported.

    attacks: it takes safety away on purpose, so that tables show its arm as what became of the one that it edits.
    """

    attacks: ClassVar[bool] = False

    def figures(self, state: State) -> dict[str, Any]:
        """Return what the card of the edit says about the state as a whole, as data."""
        return {}


def moments(kind: type[Method]) -> list[str]:
    """Return the moments that a method uses."""
    return [moment for moment in MOMENTS if getattr(kind, moment) is not getattr(Method, moment)]
