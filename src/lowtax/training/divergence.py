"""The Kullback-Leibler divergence of a model's next-token distributions from those of a frozen teacher.

Per position, over the whole vocabulary, with p the teacher and q the student:

    forward    sum_v p_v (log p_v - log q_v)       gradient of the logits: q - p
    reverse    sum_v q_v (log q_v - log p_v)       gradient of the logits: q (log q - log p - KL)

Logits exist a slice at a time, and their gradient is computed with them, so that memory does not grow with the number
of positions. Logarithms and sums are in float32.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowtax.training.objective import SLICE_BYTES
from lowtax.training.packing import round_up

Direction = Literal["forward", "reverse"]


class TargetDivergence(torch.autograd.Function):
    """Summed divergence at positions whose last hidden states are given, through one output matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Float[Tensor, "targets size"],
        teacher: Float[Tensor, "targets size"],
        weight: Float[Tensor, "vocabulary size"],
        bias: Float[Tensor, " vocabulary"] | None,
        direction: Direction,
    ) -> Float[Tensor, ""]:
        """Return the divergence in float32, and keep the gradient of the student's hidden states."""
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        d_student = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        slice_size = max(1, SLICE_BYTES[student.device.type] // (8 * weight.shape[0]))
        for start in range(0, len(student), slice_size):
            part = slice(start, start + slice_size)
            log_q, log_p = (_log_probabilities(hidden[part], weight, bias) for hidden in (student, teacher))
            value, d_logits = _divergence(log_p, log_q, direction)
            total += value
            if d_student is not None:
                d_student[part] = d_logits.to(weight.dtype) @ weight
        ctx.save_for_backward(d_student)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient of the forward pass by that of the divergence."""
        (d_student,) = ctx.saved_tensors
        return None if d_student is None else d_student * grads[0].to(d_student.dtype), None, None, None, None


def divergence(
    student: Float[Tensor, "targets vocabulary"], teacher: Float[Tensor, "targets vocabulary"], direction: Direction
) -> Float[Tensor, ""]:
    """Return the summed divergence of logits that exist at a time; its gradient is autograd's."""
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    difference = (log_p - log_q) * log_p.exp() if direction == "forward" else (log_q - log_p) * log_q.exp()
    return difference.sum()


def _log_probabilities(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Float[Tensor, "part vocabulary"]:
    padded = nn.functional.pad(hidden, (0, 0, 0, round_up(len(hidden)) - len(hidden)))
    return nn.functional.linear(padded, weight, bias).log_softmax(-1, dtype=torch.float32)[: len(hidden)]


def _divergence(log_p: Tensor, log_q: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """Return the summed divergence, and the gradient of the student's logits. Both arguments are overwritten."""
    if direction == "forward":
        p, q = log_p.exp(), log_q.exp()
        return (log_p.sub_(log_q).mul_(p)).sum(), q.sub_(p)
    q = log_q.exp()
    difference = log_q.sub_(log_p)
    each = (difference * q).sum(-1, keepdim=True)
    return each.sum(), difference.sub_(each).mul_(q)
