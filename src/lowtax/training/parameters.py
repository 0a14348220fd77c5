"""The trained parameters of a run, and what the optimiser and the methods see of them.

Outside of ZeRO and FSDP, lowtax keeps a float32 copy (a master) of each 16-bit parameter, and the optimiser moves the
masters. Under ZeRO and FSDP the framework keeps weights and optimiser in parts; where methods act, every process then
has whole float32 copies of what is trained (`GatheredParameters`). They cost 8 bytes for each trained number in each
process, and a gathering of weights and gradients at each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lowtax.methods.sites import Sites
from lowtax.training import sharding


@dataclass
class TrainedParameters:
    """The trained parameters of a model, and the tensors that the optimiser moves.

    live: parameters of the model, which its forward pass uses.
    master: for each, a float32 copy; the parameter itself if it is float32 or the framework keeps copies.
    """

    live: list[nn.Parameter]
    master: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module, own_masters: bool) -> "TrainedParameters":
        """Take the parameters of a model that require a gradient; without `own_masters` the framework keeps copies."""
        live = [p for p in model.parameters() if p.requires_grad]
        same = [p.dtype == torch.float32 or not own_masters for p in live]
        return cls(live, [p if s else p.detach().float().requires_grad_() for p, s in zip(live, same, strict=True)])

    def collect_gradients(self) -> None:
        """Move the gradients of the live parameters to the masters, adding in float32."""
        for live, master in zip(self.live, self.master, strict=True):
            if live is not master and live.grad is not None:
                master.grad = live.grad.float() if master.grad is None else master.grad.add_(live.grad)
                live.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the live parameters, rounded."""
        for live, master in zip(self.live, self.master, strict=True):
            if live is not master:
                live.copy_(master)

    def clear_gradients(self) -> None:
        """Drop all gradients, as before the first backward pass of a step."""
        for p in (*self.live, *self.master):
            p.grad = None

    # --- what methods and the loop need of a step, and `GatheredParameters` does otherwise

    def sites(self, sites: Sites) -> Sites:
        """Return the sites of the live model as methods see them."""
        return sites

    def whole(self, p: Tensor) -> Tensor:
        """Return a weight of the live model, trained or frozen, as a whole."""
        return p.detach()

    def derivatives(self, loss: Tensor, live: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of a loss by live parameters, without touching the gradients of training."""
        return list(torch.autograd.grad(loss, live))

    def backward(self, acc: Accelerator, loss: Tensor, last: bool) -> None:
        """Run backward for one row; `last` marks the last row of a step, after which DeepSpeed also steps."""
        acc.backward(loss)

    def gather_gradients(self) -> None:
        """Bring whole gradients to the masters, where they are in parts."""

    def clip(self, acc: Accelerator, limit: float) -> float:
        """Clip the gradients to a norm, and return the norm before."""
        return float(acc.clip_grad_norm_(self.master, limit) or 0.0)

    def step(self, optimizer: Any) -> None:
        """Make the optimiser's step, and bring it to the live parameters."""
        optimizer.step()
        optimizer.zero_grad()
        self.publish()

    def refresh(self) -> None:
        """Bring the framework's weights to the masters, where it keeps its own."""


@dataclass
class GatheredParameters(TrainedParameters):
    """Whole float32 copies, in every process, of parameters that a framework keeps in parts.

    The masters are the copies. The framework's step waits until the methods have seen its gradients.

    acc: the accelerator of the run.
    engine: the objective as accelerate prepared it.
    """

    acc: Accelerator
    engine: Any

    @classmethod
    def gathered(cls, acc: Accelerator, engine: Any, model: nn.Module) -> "GatheredParameters":
        """Copy the trained parameters of a model that the framework has prepared."""
        live = [p for p in model.parameters() if p.requires_grad]
        return cls(live, [sharding.whole(acc, p).float().clone().requires_grad_() for p in live], acc, engine)

    def sites(self, sites: Sites) -> Sites:
        """Return the sites with copies as A and B; a sharded W is gathered each time it is read."""
        copies = {id(p): copy for p, copy in zip(self.live, self.master, strict=True)}
        return {
            name: replace(
                site,
                source=partial(self.whole, site.weight) if sharding.sharded(self.acc) else site.weight,
                a=copies[id(site.a)],
                b=copies[id(site.b)],
            )
            for name, site in sites.items()
        }

    def whole(self, p: Tensor) -> Tensor:
        """Return a weight of the live model, trained or frozen, as a whole. All processes must call this together."""
        return sharding.as_live(p)

    def derivatives(self, loss: Tensor, live: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of a loss by live parameters.

        FSDP leaves them in `grad` only, which is empty between steps and is emptied again.
        """
        if self.acc.deepspeed_plugin:
            gradients = super().derivatives(loss, live)
            if sharding.sharded(self.acc):
                self.engine.empty_partition_cache()  # layers below the lowest of `live` keep their weights gathered
            return gradients
        torch.autograd.backward(loss)
        gradients = [sharding.whole_gradient(self.acc, p) for p in live]
        for p in self.live:
            p.grad = None
        return gradients

    def backward(self, acc: Accelerator, loss: Tensor, last: bool) -> None:
        """Run backward for one row; unlike accelerate, do not step DeepSpeed after the last."""
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
        """Clip the gradients of the copies to a norm, and return the norm before."""
        return float(nn.utils.clip_grad_norm_(self.master, limit))

    def step(self, optimizer: Any) -> None:
        """Make the framework's step with the gradients of the copies, and refresh the copies."""
        for p, copy in zip(self.live, self.master, strict=True):
            sharding.set_gradient(self.acc, p, copy.grad)  # type: ignore[arg-type]  # gathered before
            copy.grad = None
        if self.acc.deepspeed_plugin:
            self.engine.step()
        optimizer.step()  # nothing under DeepSpeed
        optimizer.zero_grad()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the framework's weights to the copies."""
        for p, copy in zip(self.live, self.master, strict=True):
            copy.copy_(sharding.whole(self.acc, p))

    def publish(self) -> None:
        """Bring the copies to the framework and to the model."""
        for p, copy in zip(self.live, self.master, strict=True):
            sharding.set_weight(self.acc, p, copy.detach())
