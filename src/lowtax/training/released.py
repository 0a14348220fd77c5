"""Training without stored gradients: each weight is stepped during backward, and its gradient is freed at once.

Clipping needs the norm of all gradients before the first weight moves. Backward therefore runs twice over one forward
pass: first each gradient is measured and dropped, then it is computed again, scaled and applied (the idea of LOMO, Lv
et al. 2023, arXiv:2306.09782, with any optimiser). Result: the weights of ordinary training, to the bit on a CPU.

It needs one forward pass a step, since gradients of several would have to be added up, and one process.
"""

import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lowtax.common.errors import UserError
from lowtax.training.parameters import TrainedParameters


@dataclass
class ReleasedParameters(TrainedParameters):
    """Trained parameters whose gradients never exist together.

    norms: of the gradients of this step, by the place of their parameter.
    optimizer: None while gradients are measured; in the second backward, what applies them.
    """

    norms: dict[int, Tensor] = field(default_factory=dict)
    optimizer: Any = None
    _loss: Tensor | None = None
    _scale: Tensor | float = 1.0

    @classmethod
    def over(cls, parameters: TrainedParameters) -> "ReleasedParameters":
        """Take over the parameters of a run."""
        released = cls(parameters.live, parameters.master)
        itself = weakref.ref(released)  # Python's collector does not see these hooks: a cycle would never be freed
        for place, p in enumerate(released.live):
            p.register_post_accumulate_grad_hook(partial(_receive, itself, place))  # type: ignore[no-untyped-call]
        return released

    def collect_gradients(self) -> None:
        """Do nothing: there are none."""

    def backward(self, acc: Accelerator, loss: Tensor, last: bool) -> None:
        """Measure the gradients of the only row of a step.

        Raises:
            UserError: There are several.
        """
        if self._loss is not None or not last:
            raise one_pass_only("this batch has several")
        self.norms = {}
        acc.backward(loss, retain_graph=True)
        self._loss = loss

    def clip(self, acc: Accelerator, limit: float) -> float:
        """Set the factor that clips the gradients to a norm, and return the norm before."""
        norm = torch.linalg.vector_norm(torch.stack([self.norms[place] for place in sorted(self.norms)]))
        self._scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
        return float(norm)

    def step(self, optimizer: Any) -> None:
        """Run backward again, stepping each weight as soon as its gradient is there."""
        loss, self._loss, self.optimizer = self._loss, None, optimizer
        try:
            if loss is not None:
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self.optimizer = None

    def clear_gradients(self) -> None:
        """Drop the gradients of a step that ran out of memory."""
        super().clear_gradients()
        self._loss = None

    @torch.no_grad()
    def _receive(self, place: int, p: nn.Parameter) -> None:
        """Measure the gradient of a parameter, or apply it; then free it."""
        grad, p.grad = p.grad, None
        if grad is None:
            return
        if self.optimizer is None:
            self.norms[place] = torch.linalg.vector_norm(grad.float())
            return
        master = self.master[place]
        master.grad = grad.float().mul_(self._scale)
        self.optimizer.step()
        master.grad = None
        if master is not p:
            p.copy_(master)


def _receive(parameters: weakref.ref[ReleasedParameters], place: int, p: nn.Parameter) -> None:
    if there := parameters():
        there._receive(place, p)


def one_pass_only(reason: str) -> UserError:
    """Return the error for a run whose batches do not fit one forward pass."""
    return UserError(
        f"execution.release_gradients needs each batch in one forward pass, and {reason}: raise execution.row_tokens, "
        "or lower train.batch_size or train.max_length, or leave release_gradients out."
    )
