"""The number of tokens that a CPU reads in one forward pass, so that training fits the memory that is free.

Linux hands out more memory than there is and then ends a process, so there is no error to catch as on a GPU. Shorter
rows leave the batch of a step as it is: gradients are added up, and differ in rounding alone.
"""

from collections.abc import Sequence

import psutil
import torch
from peft import PeftModel

from lowtax.common import launch
from lowtax.common.log import say
from lowtax.models.shapes import Shape, lora_of, shape_of
from lowtax.training.job import Job
from lowtax.training.memory import training_memory
from lowtax.training.objective import unwrap
from lowtax.training.packing import MAX_ROW

FEWEST = 256  # tokens, below which a row is not shortened
MORE = 1.2  # memory in use, to that of the arithmetic: freed blocks of another size are kept (`common.allocator`)


def row_tokens(job: Job, model: torch.nn.Module, device: torch.device, world: int, lengths: Sequence[int]) -> int:
    """Return the tokens of a row: those of the job, or the usual number, or fewer on a CPU with little free memory.

    Args:
        model: the model that is trained, which is in memory.
        world: the processes that train; several have to agree, and take the usual number.
        lengths: the tokens of every example.
    """
    usual, execution = MAX_ROW[device.type], job.execution
    if execution.row_tokens or device.type != "cpu" or job.releases or world > 1:
        return execution.row_tokens or usual
    inner = unwrap(model)
    of_adapter = sum(p.numel() for p in model.parameters() if p.requires_grad) if isinstance(model, PeftModel) else 0
    try:
        shape = shape_of(inner.config, sum(p.numel() for p in inner.parameters()) - of_adapter)
    except AttributeError:  # a recurrent model, whose configuration has no heads
        return usual
    examples = min(execution.micro_batch_size or len(lengths), job.settings.batch_size)
    most, tokens = min(usual, sum(sorted(lengths)[-examples:])), usual
    free = psutil.virtual_memory().available / launch.on_this_machine()  # other workers may begin at the same time
    while tokens > FEWEST and _bytes(job, model, shape, min(tokens, most)) > free:
        tokens //= 2
    if tokens < most:
        say(
            f"  rows of {tokens:,} tokens: {free / 1e9:.1f} GB are free, and a whole batch, of up to {most:,}, takes "
            f"about {_bytes(job, model, shape, most) / 1e9:.1f}"
        )
    return tokens


def _bytes(job: Job, model: torch.nn.Module, shape: Shape, tokens: int) -> float:
    """Return about what a step takes beside weights and float32 masters, which are there."""
    lora = None
    if isinstance(model, PeftModel):
        names = [*model.base_model.targeted_module_names, *model.base_model.targeted_parameter_names]
        lora = lora_of(names, max(map(job.placement.rank_of, names)), shape.layers)
    memory = training_memory(
        shape,
        lora=lora,
        precision=job.precision,
        tokens=tokens,
        checkpointing=job.execution.gradient_checkpointing,
        optimizer=job.settings.optimizer,
    )
    masters = 0 if lora or job.precision == "float32" else 4 * shape.parameters
    return MORE * (memory.gpu - memory.weights - masters)
