"""Sites: adapted linear layers, y = (W + dW) x, as methods see them. The only module that knows PEFT's layers.

Where a framework keeps weights in parts, A and B are whole float32 copies in every process, and W is gathered each time
it is read (`lowtax.training.parameters.GatheredParameters`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.models import quantised
from lowtax.models.names import matches, near, spelled_out

ADAPTER = "default"
FROZEN = "start"  # an adapter that training starts from, frozen beside the new factors (`lowtax.training.start`)


@dataclass(frozen=True, eq=False)
class Site:
    """One adapted linear layer: W is frozen, and training moves dW = scale * B A.

    Where whole weights are trained, the rank is 0 and W moves.

    name: the module's name in the base model.
    source: W, or a function that reads it. W of an adapter on disk, of a sharded model or in 4 bits is read anew each
        time and not kept.
    """

    name: str
    source: Float[Tensor, "out in"] | Callable[[], Float[Tensor, "out in"]]
    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"]
    scale: float

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """Return W."""
        return self.source if isinstance(self.source, Tensor) else self.source()

    @property
    def rank(self) -> int:
        """Return the number of rows of A."""
        return self.a.shape[0]

    def factors(self) -> Factors:
        """Return dW without gradients and with the scale in B, for edits and for measuring after training."""
        return Factors(self.scale * self.b.detach(), self.a.detach())

    def delta(self) -> Float[Tensor, "out in"]:
        """Return dW as a dense matrix; in a loss prefer `left`, `right` and `sq_norm`."""
        return self.scale * (self.b @ self.a)

    def left(self, M: Float[Tensor, "k out"]) -> Float[Tensor, "k in"]:
        """Return M dW without forming dW."""
        return self.scale * ((M @ self.b) @ self.a)

    def right(self, M: Float[Tensor, "in k"]) -> Float[Tensor, "out k"]:
        """Return dW M without forming dW."""
        return self.scale * (self.b @ (self.a @ M))

    def sq_norm(self) -> Float[Tensor, ""]:
        """Return ||dW||_F^2 = scale^2 trace(B'B AA'), from two (rank, rank) matrices."""
        return self.scale**2 * ((self.b.T @ self.b) * (self.a @ self.a.T)).sum()

    def moved(self) -> tuple[Tensor, ...]:
        """Return the tensors that the optimiser moves: A and B, or W."""
        return (self.a, self.b) if self.rank else (self.weight,)

    def grads(self) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]] | None:
        """Return the gradients of A and B, to be changed in place; None before the first backward pass."""
        if self.a.grad is None or self.b.grad is None:
            return None
        return self.a.grad, self.b.grad


Sites = dict[str, Site]


def sites_of(model: nn.Module, only: Sequence[str] | None = None) -> Sites:
    """Return the sites of a PEFT model by module name of the base model, in module order.

    Args:
        model: the PEFT model; it may be wrapped by DDP or torch.compile.
        only: names of the modules to take; all if None.

    Raises:
        UserError: The model has no LoRA, a name of `only` matches no module with LoRA, or LoRA is on a module that is
            not linear.
    """
    layers = {
        name.rpartition("base_model.model.")[2]: module  # also inside wrappers
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and ADAPTER in module.r
    }
    if not layers:
        raise UserError("This method acts on LoRA, and this run trains whole weights: remove it, or use LoRA.")
    return {name: _site(name, layers[name]) for name in in_scope(layers, only)}


def in_scope(names: Iterable[str], only: Sequence[str] | None) -> list[str]:
    """Return the names of modules with LoRA that `only` matches, in their order; all if it is None.

    Raises:
        UserError: A pattern of `only` matches none of them.
    """
    modules = list(names)
    if only is None:
        return modules
    patterns = spelled_out(only)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in modules):
            raise UserError(f"only: {pattern!r} matches no module with LoRA; {near(pattern, modules)}")
    return [name for name in modules if any(matches(pattern, name) for pattern in patterns)]


def weight_of(layer: nn.Module) -> Float[Tensor, "out in"]:
    """Return the frozen weight of a linear layer: W, and with an adapter that training starts from W + dW.

    A 4-bit W is dequantised.
    """
    if not isinstance(layer, LoraLayer):
        return quantised.plain(layer.weight)  # type: ignore[arg-type]
    W = quantised.plain(layer.get_base_layer().weight).detach()  # type: ignore[arg-type]
    if FROZEN not in layer.r:
        return W
    a, b = layer.lora_A[FROZEN].weight, layer.lora_B[FROZEN].weight
    whole: Tensor = W.float() + float(layer.scaling[FROZEN]) * (b.detach() @ a.detach())
    return whole


def _site(name: str, layer: LoraLayer) -> Site:
    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear):
        raise UserError(
            f"Methods act on linear layers, and {name} is not linear: leave it out of the placement or of only."
        )
    return Site(
        name,
        partial(weight_of, layer) if FROZEN in layer.r or quantised.is_packed(base.weight) else base.weight,
        layer.lora_A[ADAPTER].weight,
        layer.lora_B[ADAPTER].weight,
        float(layer.scaling[ADAPTER]),
    )
