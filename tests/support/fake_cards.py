"""Accelerators without hardware: torch's fake tensors on a back end that has no operations.

Fake tensors have a device and a shape but no values, and an operation on tensors of two devices is refused as CUDA
does. Backward passes run on the first card alone, since torch's engine knows one device of such a back end.
"""

from functools import cache

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration


@cache
def cards(count: int = 3) -> list[torch.device]:
    """The devices; torch has one back end of this kind in a process, which stays, for all tests that follow."""
    backend_registration._setup_privateuseone_for_python_backend("card")
    torch.card.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # checkpointing asks every back end
    return [torch.device("card", number) for number in range(count)]


def without_values(model: nn.Module, mode: FakeTensorMode, device: torch.device | None = None) -> None:
    """Replace the parameters and buffers of a model by fake ones, there or on a device; tied ones stay one."""
    memo: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            fake = mode.from_tensor(p).detach()
            memo.setdefault(id(p), nn.Parameter(fake.to(device or fake.device), p.requires_grad))
            module._parameters[name] = memo[id(p)]
        for name, buffer in list(module.named_buffers(recurse=False)):
            fake = mode.from_tensor(buffer)
            module._buffers[name] = fake.to(device or fake.device)
