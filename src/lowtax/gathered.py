"""What methods see where a framework keeps weights in parts: whole float32 copies of what moves, in every process.

They cost each process 8 bytes for each trained number, and a gathering of weights and gradients at each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lowtax import sharding
from lowtax.checkpoints import Weights
from lowtax.sites import Sites


@dataclass
class Copies(Weights):
    """The masters are the copies. The framework's step waits until the methods have seen its gradients."""

    acc: Accelerator
    engine: Any  # what accelerate made of the objective

    @classmethod
    def made(cls, acc: Accelerator, engine: Any, model: nn.Module) -> "Copies":
        """Of what moves in a model that the framework has prepared."""
        live = [p for p in model.parameters() if p.requires_grad]
        return cls(live, [sharding.whole(acc, p).float().clone().requires_grad_() for p in live], acc, engine)

    def sites(self, sites: Sites) -> Sites:
        """With copies for A and B; where W is sharded, it is gathered at each look."""
        copies = {id(p): copy for p, copy in zip(self.live, self.master, strict=True)}
        return {
            name: replace(
                site,
                kept=partial(self.whole, site.weight) if sharding.sharded(self.acc) else site.weight,
                a=copies[id(site.a)],
                b=copies[id(site.b)],
            )
            for name, site in sites.items()
        }

    def whole(self, p: Tensor) -> Tensor:
        """A weight of the live model, moved or frozen. All processes ask for it together."""
        return sharding.as_live(p)

    def derivatives(self, loss: Tensor, live: Sequence[Tensor]) -> list[Tensor]:
        """Of a loss by live weights. FSDP gives them in `grad` only, which is empty between steps."""
        if self.acc.deepspeed_plugin:
            found = super().derivatives(loss, live)
            if sharding.sharded(self.acc):
                self.engine.empty_partition_cache()  # layers below the lowest of `live` never gave back their weights
            return found
        torch.autograd.backward(loss)
        found = [sharding.whole_gradient(self.acc, p) for p in live]
        for p in self.live:
            p.grad = None
        return found

    def backward(self, acc: Accelerator, loss: Tensor, last: bool) -> None:
        """Of one row; DeepSpeed does not step after the last, as accelerate would have it."""
        if acc.deepspeed_plugin:
            self.engine.set_gradient_accumulation_boundary(last)
            self.engine.backward(loss)
        else:
            acc.backward(loss)

    def gather_gradients(self) -> None:
        """Bring the gradients, averaged over processes, to the copies."""
        if self.acc.device.type == "cuda":
            torch.cuda.synchronize()  # DeepSpeed may still be copying them to the host
        for p, copy in zip(self.live, self.master, strict=True):
            copy.grad = sharding.whole_gradient(self.acc, p)

    def clip(self, acc: Accelerator, limit: float) -> float:
        """Clip the gradients of the copies; returns their norm before that."""
        return float(nn.utils.clip_grad_norm_(self.master, limit))

    def step(self, optimizer: Any) -> None:
        """The framework's step with the gradients of the copies, which then follow."""
        for p, copy in zip(self.live, self.master, strict=True):
            sharding.set_gradient(self.acc, p, copy.grad)  # type: ignore[arg-type]  # gathered before
            copy.grad = None
        if self.acc.deepspeed_plugin:
            self.engine.step()
        optimizer.step()  # nothing under DeepSpeed
        optimizer.zero_grad()
        self.take()

    @torch.no_grad()
    def take(self) -> None:
        """Bring the framework's weights to the copies."""
        for p, copy in zip(self.live, self.master, strict=True):
            copy.copy_(sharding.whole(self.acc, p))

    def publish(self) -> None:
        """Bring the copies to the framework and to the model."""
        for p, copy in zip(self.live, self.master, strict=True):
            sharding.set_weight(self.acc, p, copy.detach())
