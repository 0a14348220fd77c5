"""A model over several GPUs of one process: each has some of the layers, one after the other.

One GPU works at a time, so that this is for a model that one GPU does not hold, and no way to be faster. The layers lie
in order. Embeddings, the last norm and the output matrix, which may be one with the embeddings, are all on the first
GPU, and what the last layer returns goes back there: prompts, logits and losses are where they are without a split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.models import loading, quantised
from lowtax.models.frames import skeleton

HELD = 0.9  # the largest share of a GPU's memory for weights; the rest is for caches and adapters


def gpus() -> list[torch.device]:
    """Return the GPUs that this process sees.

    Raises:
        UserError: There are fewer than two.
    """
    count = torch.cuda.device_count()
    if count < 2:
        raise UserError(
            f"execution.layers_over_gpus divides layers over several GPUs, and this process sees {count or 'none'}: "
            "leave it out, or show it more by CUDA_VISIBLE_DEVICES or `lowtax run --gpus-each 2`."
        )
    return [torch.device("cuda", number) for number in range(count)]


def load_where_it_fits(ref: str, precision: str) -> PreTrainedModel:
    """Load a model on the accelerator, and divide it over several if one does not hold its weights.

    Raises:
        UserError: It cannot be loaded.
    """
    if torch.cuda.device_count() < 2 or precision in quantised.COMPUTED:
        return loading.load_model(ref, precision)
    size = sum(p.numel() for p in skeleton(ref).parameters()) * loading.DTYPES[precision].itemsize
    if size <= HELD * torch.cuda.get_device_properties(0).total_memory:
        return loading.load_model(ref, precision)
    return load_divided(ref, precision)


def load_divided(ref: str, precision: str) -> PreTrainedModel:
    """Load a model into the host's memory, and divide it over all GPUs.

    Raises:
        UserError: There are fewer than two, or it cannot be loaded or divided.
    """
    devices = gpus()
    return divide(loading.load_model(ref, precision, torch.device("cpu")), devices)


def places(sizes: Sequence[int], beside: int, count: int) -> list[int]:
    """Return the device of each layer, in order: the division with the least load of the fullest device.

    Args:
        sizes: of the layers, in bytes.
        beside: bytes of everything else, which is on device 0.
        count: the number of devices; later ones stay empty if there are fewer layers.
    """
    low, high = max(sizes, default=0), beside + sum(sizes)
    while low < high:
        middle = (low + high) // 2
        fits = max(_filled(sizes, beside, middle), default=0) < count
        low, high = (low, middle) if fits else (middle + 1, high)
    return _filled(sizes, beside, low)


def _filled(sizes: Sequence[int], beside: int, most: int) -> list[int]:
    """Return the device of each layer if each device takes layers until it has `most` bytes."""
    device, load, result = 0, beside, list[int]()
    for size in sizes:
        if load + size > most:
            device, load = device + 1, 0
        load += size
        result.append(device)
    return result


def divide(model: PreTrainedModel, devices: Sequence[torch.device]) -> PreTrainedModel:
    """Move the layers of a model to several devices, and everything else to the first, and return it.

    Raises:
        UserError: Its decoder has no list of layers.
    """
    layers = getattr(model.get_decoder(), "layers", None)  # GPT-2 and others call them h or blocks
    if not isinstance(layers, nn.ModuleList):
        raise UserError(
            f"The layers of {type(model).__name__} cannot be divided over GPUs, since its decoder has no `layers`: "
            "leave execution.layers_over_gpus out."
        )
    own = [_size(layer) for layer in layers]
    chosen = places(own, _size(model) - sum(own), len(devices))
    homes = {id(m): devices[at] for layer, at in zip(layers, chosen, strict=True) for m in layer.modules()}
    _move(model, homes, devices[0])
    movers = [_Mover(device) for device in devices]
    for layer, place in zip(layers, chosen, strict=True):
        layer.register_forward_pre_hook(movers[place], with_kwargs=True)
    layers[-1].register_forward_hook(lambda _, __, out: moved(out, devices[0]))
    names = {id(module): name for name, module in model.named_modules()}
    # accelerate leaves a model with such a map where it is.
    model.hf_device_map = {"": devices[0]} | {
        names[id(layer)]: devices[place] for layer, place in zip(layers, chosen, strict=True)
    }
    shares = [f"{chosen.count(place)} on {device}" for place, device in enumerate(devices)]
    say(f"  {len(layers)} layers are divided over {len(devices)} devices: {', '.join(shares)}")
    return model


class _Mover:
    """A hook that brings the inputs of a layer to its device; what all layers receive is moved once a pass."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last: dict[str, tuple[Any, Any]] = {}  # argument -> the object that was moved, and its copy

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a layer on its device."""
        shared = {name: self._once(name, value) for name, value in kwargs.items() if name != "hidden_states"}
        own = {name: moved(value, self.device) for name, value in kwargs.items() if name == "hidden_states"}
        return moved(args, self.device), own | shared

    def _once(self, name: str, value: Any) -> Any:
        before, copy = self._last.get(name, (None, None))
        if before is not value:
            copy = moved(value, self.device)
            self._last[name] = (value, copy)
        return copy


def moved(value: Any, device: torch.device) -> Any:
    """Return a value with its tensors on a device: in tuples, lists, dicts and data classes, not in caches."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(moved(part, device) for part in value)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    return value


def _size(module: nn.Module) -> int:
    """Return the bytes of the weights of a module, tied ones once."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _move(model: nn.Module, homes: Mapping[int, torch.device], first: torch.device) -> None:
    """Move the parameters and buffers of each module to its home, or to the first device; tied ones stay one."""
    there: dict[int, nn.Parameter] = {}
    for module in model.modules():
        device = homes.get(id(module), first)
        for name, p in list(module.named_parameters(recurse=False)):
            if id(p) not in there:
                there[id(p)] = nn.Parameter(p.detach().to(device), requires_grad=p.requires_grad)
            module._parameters[name] = there[id(p)]
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)
