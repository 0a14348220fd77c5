"""Losses beyond the cross-entropy of packed answers: those that compare the model with its frozen base, and pairs.

With y the answer's tokens, q the model, p the frozen base (adapters switched off), per token and summed over a row:

    penalty: kl        KL(p(.|x, y<t), q(.|x, y<t)) on rows marked as ordinary, in place of the cross-entropy of these
                       rows or beside it. ThinkSafe (arXiv:2601.23143) averages it per example; here a token counts
                       the same in every row, as in the cross-entropy.
    loss: on_policy    the same with y drawn from the model, and the base reading x below an instruction (`on_policy`)
    loss: dpo          -log sigmoid(beta (log q/p (chosen) - log q/p (rejected))), a mean over pairs (Rafailov et al.
                       2023, arXiv:2305.18290)

A row whose loss is one of these has several parts, each a packed row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.data.conversations import Conversation
from lowtax.training.divergence import TargetDivergence, divergence
from lowtax.training.encoding import Example
from lowtax.training.frozen_base import frozen_base
from lowtax.training.objective import Objective, TargetLoss, unwrap
from lowtax.training.packing import Row, length, pack
from lowtax.training.settings import Train

SLICE = 512  # targets whose logits exist at a time
Hidden = Float[Tensor, "1 tokens size"]


@dataclass(frozen=True)
class ComparedRow:
    """A packed row, and what the frozen base reads beside it.

    row: targets with cross-entropy come first, then those that are compared. supervised: the number of the former.
    teacher: the compared examples as the base reads them, with as many targets; None if there are none.
    """

    row: Row
    supervised: int
    teacher: Row | None

    def to(self, device: torch.device) -> "ComparedRow":
        """Return the same row on another device."""
        return replace(self, row=self.row.to(device), teacher=self.teacher and self.teacher.to(device))


@dataclass(frozen=True)
class PairRow:
    """Pairs in one packed row: chosen, rejected, chosen, rejected ... `pair` has the example of each target."""

    row: Row
    example: Tensor

    def to(self, device: torch.device) -> "PairRow":
        """Return the same row on another device."""
        return replace(self, row=self.row.to(device), example=self.example.to(device))


AnyRow = Row | ComparedRow | PairRow


@dataclass(frozen=True)
class Terms:
    """The loss of a run: how its batches are packed, how large they are, and what is computed on a row."""

    settings: Train

    @property
    def plain(self) -> bool:
        """True for the cross-entropy of answers alone."""
        return self.settings.loss == "cross_entropy" and self.settings.penalty == "none"

    @property
    def fixed(self) -> bool:
        """True if an example is the same in every step, so that hidden states of it can be computed beforehand."""
        return self.settings.loss == "cross_entropy"

    def prepared(self, examples: Sequence[Example], rows: Sequence[Conversation]) -> list[Example]:
        """Return the examples of these rows as the loss needs them.

        Raises:
            UserError: There is none that the loss acts on, or one that it cannot act on.
        """
        settings, rolled = self.settings, sum(not row.answer for row in rows)
        if settings.loss == "on_policy" and rolled < len(rows):
            raise UserError(
                f"The loss on_policy draws the answers itself, and {len(rows) - rolled} of {len(rows)} rows have one: "
                "set `answers: rollout` for every source."
            )
        if settings.loss != "on_policy" and rolled:
            raise UserError("Rows with `answers: rollout` have no answers yet: set train.loss to on_policy.")
        if settings.penalty == "kl" and not any(e.teacher for e in examples):
            raise UserError("The penalty kl acts on rows that are marked `ordinary: true`, and no source is: mark one.")
        if settings.loss == "dpo":
            if not any(e.rejected for e in examples):
                raise UserError(
                    "The loss dpo needs pairs, and no row has a rejected answer: add `rejected: given` (or "
                    "`self`) to a source."
                )
            return [e for e in examples if e.rejected]
        if pairs := sum(e.rejected is not None for e in examples):
            say(f"  of {pairs} pairs the preferred answers are trained alone: the loss that reads both is dpo")
        teacher = settings.penalty == "kl" or settings.loss == "on_policy"
        return [replace(e, rejected=None, teacher=e.teacher if teacher else None) for e in examples]

    def size(self, examples: Sequence[Example]) -> int:
        """Return the number that the summed loss of a batch is divided by: tokens with loss, or pairs."""
        return len(examples) if self.settings.loss == "dpo" else sum(len(e.completion) for e in examples)

    def length(self, example: Example) -> int:
        """Return the tokens of an example that are run, for the size of a row."""
        return length(example) + (length(example.rejected) if example.rejected and not self.fixed else 0)

    def pack(self, examples: Sequence[Example], members: Sequence[int]) -> AnyRow:
        """Pack examples, which have these numbers in the data, into one row."""
        if self.plain:
            return pack(examples, members)
        if self.settings.loss == "dpo":
            return _pairs(examples, members)
        return self._compared(examples, members)

    def _compared(self, examples: Sequence[Example], members: Sequence[int]) -> ComparedRow:
        row = pack(examples, members)
        numbers = torch.repeat_interleave(
            torch.arange(len(examples)), torch.tensor([len(e.completion) for e in examples])
        )
        compared = torch.tensor([e.teacher is not None for e in examples])[numbers]
        supervised = ~compared
        if self.settings.penalty_beside:
            supervised = torch.ones_like(compared)
        order = torch.cat([supervised.nonzero()[:, 0], compared.nonzero()[:, 0]])
        taught = [(replace(e, prompt=e.teacher), i) for e, i in zip(examples, members, strict=True) if e.teacher]
        teacher = pack([e for e, _ in taught], [i for _, i in taught]) if taught else None
        row = replace(row, sources=row.sources[order], targets=row.targets[order])
        return ComparedRow(row, int(supervised.sum()), teacher)


def _pairs(examples: Sequence[Example], members: Sequence[int]) -> PairRow:
    both = [side for e in examples for side in (e, e.rejected) if side is not None]
    counts = torch.tensor([len(e.completion) for e in both])
    return PairRow(pack(both, [i for i in members for _ in range(2)]), torch.repeat_interleave(counts))


class Loss(nn.Module):
    """A model as the loss of any row."""

    def __init__(self, objective: Objective, settings: Train) -> None:
        super().__init__()
        self.objective, self.settings = objective, settings
        self._no_split_modules = objective._no_split_modules

    def forward(
        self, row: AnyRow, hidden: Hidden | None = None, first: int = 0, taught: Hidden | None = None
    ) -> Float[Tensor, ""]:
        """Return the summed loss of a row.

        Args:
            row: the row.
            hidden: what enters layer `first`; the layers below it are then not run.
            first: see `hidden`.
            taught: the same of the row that the frozen base reads.
        """
        if isinstance(row, ComparedRow):
            return self._compared(row, hidden, first, taught)
        if isinstance(row, PairRow):
            return self._pairs(row)
        return self.objective(row, hidden, first)  # type: ignore[no-any-return]

    def _compared(self, row: ComparedRow, hidden: Hidden | None, first: int, taught: Hidden | None) -> Tensor:
        objective, settings, n = self.objective, self.settings, row.supervised
        direction, factor = settings.divergence, settings.penalty_weight if settings.penalty == "kl" else 1.0
        base: Tensor | None = None
        if row.teacher is not None:  # before the model: fused layers remember the last row for their backward pass
            with frozen_base(objective.model):
                direct = objective.direct
                base = objective.states(row.teacher, taught, first) if direct else objective.logits(row.teacher)
        if not objective.direct:
            logits = objective.logits(row.row)
            supervised = nn.functional.cross_entropy(logits[:n].float(), row.row.targets[:n], reduction="sum")
            return supervised if base is None else supervised + factor * divergence(logits[n:], base, direction)
        head = unwrap(objective.model).get_output_embeddings()
        states = objective.states(row.row, hidden, first)
        loss: Tensor = TargetLoss.apply(states[:n], head.weight, head.bias, row.row.targets[:n])  # type: ignore[no-untyped-call]
        if base is None:
            return loss
        kl = TargetDivergence.apply(states[n:], base, head.weight, head.bias, direction)  # type: ignore[no-untyped-call]
        return loss + factor * kl  # type: ignore[no-any-return]

    def _pairs(self, row: PairRow) -> Tensor:
        """Return the summed loss of pairs.

        Logits are computed twice, a slice at a time: for the sums, and then for gradients whose weights follow from
        the sums. Without the direct path they exist at once, and autograd does the rest.
        """
        objective, beta = self.objective, self.settings.dpo_beta
        if not objective.direct:
            with frozen_base(objective.model):
                base = _by_example(objective.losses(row.row), row)
            losses = nn.functional.cross_entropy(objective.logits(row.row).float(), row.row.targets, reduction="none")
            return _preference(_by_example(losses, row), base, beta)
        head = unwrap(objective.model).get_output_embeddings()
        with frozen_base(objective.model):
            base = _by_example(_each(objective.states(row.row), head, row.row.targets), row)
        states = objective.states(row.row)
        with torch.no_grad():
            own = _by_example(_each(states, head, row.row.targets), row)
        own.requires_grad_()
        with torch.enable_grad():
            value = _preference(own, base, beta)
            (factors,) = torch.autograd.grad(value, own)
        loss = TargetLoss.apply(states, head.weight, head.bias, row.row.targets, factors[row.example])  # type: ignore[no-untyped-call]
        return loss + (value - loss).detach()  # type: ignore[no-any-return]


def _by_example(losses: Float[Tensor, " targets"], row: PairRow) -> Float[Tensor, " examples"]:
    """Return the summed losses of each example of a row."""
    return torch.zeros(len(row.row.lengths), device=losses.device).index_add(0, row.example, losses)


def _preference(own: Float[Tensor, " examples"], base: Float[Tensor, " examples"], beta: float) -> Float[Tensor, ""]:
    """Return DPO's summed loss, from the negative log-likelihoods of chosen and rejected answers in turn."""
    gain = (base - own).view(-1, 2)
    return -nn.functional.logsigmoid(beta * (gain[:, 0] - gain[:, 1])).sum()


def _each(states: Tensor, head: Any, targets: Tensor) -> Float[Tensor, " targets"]:
    """Return the loss of each target, a slice of the logits at a time."""
    losses = []
    for part, labels in zip(torch.split(states, SLICE), torch.split(targets, SLICE), strict=True):
        logits = nn.functional.linear(part, head.weight, head.bias)
        losses.append(nn.functional.cross_entropy(logits.float(), labels, reduction="none"))
    return torch.cat(losses)


def require_base(settings: Train, full: bool, sharded: bool, continued: bool = False) -> None:
    """Refuse a loss that compares the model with its frozen base where there is none.

    Args:
        full: whole weights are trained. sharded: ZeRO or FSDP keeps weights in parts.
        continued: the run starts from another arm's adapter, which would be switched off, too.

    Raises:
        UserError: It is such a loss.
    """
    name = f"loss {settings.loss}" if settings.loss != "cross_entropy" else f"penalty {settings.penalty}"
    if Terms(settings).plain:
        return
    if full:
        raise UserError(
            f"The {name} compares the model with its frozen base, which is the model with adapters switched off, and "
            "this arm trains whole weights: use a LoRA."
        )
    if continued:
        raise UserError(
            f"The {name} compares the model with its base, which is the model with adapters switched off, and this arm "
            "starts from the adapter of another: leave out `start`, or merge that adapter and take it as the model."
        )
    if sharded:
        raise UserError(f"The {name} needs whole weights, which ZeRO and FSDP split: train in one process or with DDP.")
