"""One adapted linear layer, y = (W + dW) x, seen as two matrices; the only file that knows how PEFT keeps them.

Where a framework keeps weights in parts, A and B are whole float32 copies in every process, and W is gathered each time
it is asked for (`lowtax.gathered`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import Tensor, nn

from lowtax.errors import UserError
from lowtax.linalg import Factors
from lowtax.names import matches, near, spelled_out

ADAPTER = "default"


@dataclass(frozen=True, eq=False)
class Site:
    """W is frozen; dW = scale * B @ A is what training moves. Where whole weights are trained, rank is 0 and W moves.

    `kept` is W, or what reads it: of an adapter on disk, or of a sharded model, W is read anew each time it is asked
    for, and not held.
    """

    name: str
    kept: Float[Tensor, "out in"] | Callable[[], Float[Tensor, "out in"]]
    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"]
    scale: float

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """W."""
        return self.kept if isinstance(self.kept, Tensor) else self.kept()

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    def factors(self) -> Factors:
        """dW by itself, without gradients and with the scale inside: for what is edited or measured after training."""
        return Factors(self.scale * self.b.detach(), self.a.detach())

    def delta(self) -> Float[Tensor, "out in"]:
        """dW. Forms the dense matrix: in a loss prefer `left`, `right` and `sq_norm`."""
        return self.scale * (self.b @ self.a)

    def left(self, M: Float[Tensor, "k out"]) -> Float[Tensor, "k in"]:
        """M @ dW, without forming dW."""
        return self.scale * ((M @ self.b) @ self.a)

    def right(self, M: Float[Tensor, "in k"]) -> Float[Tensor, "out k"]:
        """dW @ M, without forming dW."""
        return self.scale * (self.b @ (self.a @ M))

    def sq_norm(self) -> Float[Tensor, ""]:
        """||dW||_F^2 = scale^2 * trace(B'B AA'), from two (rank, rank) matrices."""
        return self.scale**2 * ((self.b.T @ self.b) * (self.a @ self.a.T)).sum()

    def moved(self) -> tuple[Tensor, ...]:
        """The tensors that the optimiser moves: A and B, or W."""
        return (self.a, self.b) if self.rank else (self.weight,)

    def grads(self) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]] | None:
        """The gradients of A and B, to be changed in place; None before the first backward pass."""
        if self.a.grad is None or self.b.grad is None:
            return None
        return self.a.grad, self.b.grad


Sites = dict[str, Site]


def sites_of(model: nn.Module, only: Sequence[str] | None = None) -> Sites:
    """The sites of a PEFT model by the names of the base model, in the order of its modules; `only` some, by name.

    Raises:
        UserError: There is no LoRA, `only` names none of it, or a LoRA is on no linear layer.
    """
    layers = {
        name.rpartition("base_model.model.")[2]: module  # also inside the wrappers of DDP and torch.compile
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    if not layers:
        raise UserError("Methods act on LoRA for now, and this run trains whole weights: remove methods, or use LoRA.")
    return {name: _site(name, layers[name]) for name in in_scope(layers, only)}


def in_scope(names: Iterable[str], only: Sequence[str] | None) -> list[str]:
    """The names of modules with LoRA that `only` means, in their order; all if it is None.

    Raises:
        UserError: A pattern of `only` means none of them.
    """
    known = list(names)
    if only is None:
        return known
    patterns = spelled_out(only)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in known):
            raise UserError(f"only: {pattern!r} matches no module with LoRA; {near(pattern, known)}")
    return [name for name in known if any(matches(pattern, name) for pattern in patterns)]


def _site(name: str, layer: LoraLayer) -> Site:
    if not isinstance(layer, Linear):
        raise UserError(f"Methods act on linear layers, and {name} is none: leave it out of the placement or of only.")
    return Site(
        name,
        layer.get_base_layer().weight,
        layer.lora_A[ADAPTER].weight,
        layer.lora_B[ADAPTER].weight,
        float(layer.scaling[ADAPTER]),
    )
