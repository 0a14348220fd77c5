"""Import, start and close vLLM, with room for adapters. One vLLM runs in a process at a time."""

import importlib
import math
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

import torch

from lowtax.common.errors import UserError
from lowtax.common.log import complain
from lowtax.engines.vllm import adapters
from lowtax.models import loading
from lowtax.models.frames import skeleton

SLOTS = 8  # maximum number of adapters in one batch on GPUs: each takes memory beside the model
WEIGHTS = 0.7  # the largest share of a GPU's memory for weights; the rest is for caches and adapters
KEPT = 64  # minimum number of adapters that main memory may hold
# Environment variables of vLLM; one that is set already keeps its value. With the scheduler in this process, the same
# requests make the same batches. The last is in GiB.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "4",
}


@dataclass(frozen=True)
class Room:
    """Room for adapters: the largest rank, and the number of adapters in one batch; 0 and 0 without adapters."""

    rank: int = 0
    slots: int = 0

    def joined(self, other: "Room") -> "Room":
        """Return the larger room of both, in each respect."""
        return Room(max(self.rank, other.rank), max(self.slots, other.slots))


def room_for(ranks: list[int]) -> Room:
    """Return room for adapters of these ranks.

    Without a GPU there is one more slot than adapters: vLLM 0.32 marks rows without an adapter with -1, which its CPU
    code (`lora/ops/torch_ops`) uses as an index. Such rows get the adapter of the last slot, so it must stay empty.
    """
    if not ranks:
        return Room()
    slots = min(len(ranks), SLOTS) if torch.cuda.is_available() else len(ranks) + 1
    return Room(adapters.room(max(ranks)), slots)


class Server:
    """One model in vLLM, started at its first use. Starting one closes all others."""

    known: ClassVar["weakref.WeakSet[Server]"] = weakref.WeakSet()

    def __init__(self, ref: str, where: str, dtype: str, batch_size: int) -> None:
        self.ref, self.where, self.dtype, self.batch_size = ref, where, dtype, batch_size
        self.room = Room()
        self.up: list[Any] = []  # the engine, if running; a list, because `_close` must not keep this object alive
        weakref.finalize(self, _close, self.up)
        Server.known.add(self)

    def ready(self, ranks: list[int]) -> bool:
        """Start vLLM unless it is running with room for adapters of these ranks; return True if it was started.

        A vLLM that was just started has no adapters loaded.

        Raises:
            UserError: vLLM cannot start, or cannot serve adapters in this precision.
        """
        room = self.room.joined(room_for(ranks))
        if self.up and room == self.room:
            return False
        if room.rank and self.dtype == "float32" and torch.cuda.is_available():
            raise UserError(
                "vLLM serves adapters on a GPU in bfloat16 only, not in float32: set precision to bfloat16."
            )
        gpus = _gpus(self.ref, self.where, self.dtype)
        setup = f"{self.dtype}, {gpus or 'no'} GPU, room for {room.slots} adapters up to rank {room.rank}"
        complain(f"starting vLLM{' again' if self.up else ''} with {self.ref} ({setup}) ...")
        for server in list(Server.known):
            _close(server.up)
        llm = self._start(room, gpus, max(KEPT, len(ranks)))
        config = loading.load_config(self.ref).get_text_config().to_dict()
        positions = config.get("max_position_embeddings") or 0
        if (fit := llm.llm_engine.vllm_config.model_config.max_model_len) < positions:
            complain(f"only {fit} of the model's {positions} positions fit into memory: longer replies are cut off")
        self.up.append(llm)
        self.room = room
        return True

    def _start(self, room: Room, gpus: int, in_memory: int) -> Any:
        from vllm import LLM
        from vllm.exceptions import VLLMError

        lora = {"max_lora_rank": room.rank, "max_loras": room.slots, "max_cpu_loras": in_memory} if room.rank else {}
        try:
            return LLM(
                self.where,
                dtype=self.dtype,
                tensor_parallel_size=max(gpus, 1),
                max_num_seqs=self.batch_size,
                max_model_len=-1,  # that of the model, or what fits into memory
                load_format="safetensors",
                trust_remote_code=False,
                generation_config="vllm",
                skip_tokenizer_init=True,
                enable_prefix_caching=True,
                enforce_eager=not gpus,
                enable_lora=bool(room.rank),
                **lora,
            )
        except (VLLMError, ValueError, RuntimeError, AssertionError, OSError) as error:
            raise UserError(
                f"vLLM could not start with {self.ref!r} ({shorten(str(error), 300)}); if memory is short, lower "
                f"batch_size, now {self.batch_size}; otherwise use the engine 'hf'."
            ) from error


def require() -> None:
    """Import vLLM with SETTINGS in the environment.

    Raises:
        UserError: vLLM is not installed or cannot be imported.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("vllm")
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a torchvision built for another torch
        raise UserError(
            f"The engine vllm needs vLLM, which cannot be imported here ({shorten(str(error), 200)}): "
            "pip install 'lowtax[vllm]'"
        ) from error


def tensor_parallel(gpus: int, heads: int, key_value_heads: int, width: int, load: float) -> int:
    """Return the smallest number of GPUs that hold the weights; the largest possible one if none does, 0 without GPUs.

    Possible are numbers that divide the attention heads and the MLP's width; key and value heads may be repeated. More
    GPUs than necessary draw faster as workers that each hold the model (`lowtax run --workers`).

    Args:
        width: of the MLP, or the greatest common divisor of several; 0 if it is not known.
        load: the weights as a share of one GPU's memory.
    """
    sizes = [
        n
        for n in range(1, gpus + 1)
        if heads % n == 0 and width % n == 0 and (key_value_heads % n == 0 or n % key_value_heads == 0)
    ]
    return next((n for n in sizes if load <= WEIGHTS * n), max(sizes, default=0))


def weight_bytes(ref: str, where: str, dtype: str) -> int:
    """Return the bytes of a model's weights: of its files, or for a model of the hub by its configuration."""
    files = sum(path.stat().st_size for path in Path(where).glob("*.safetensors"))
    return files or sum(p.numel() for p in skeleton(ref).parameters()) * loading.DTYPES[dtype].itemsize


def mlp_width(fields: dict[str, Any]) -> int:
    """Return what a number of GPUs must divide: the width of the MLPs, also of experts; 0 if it is not known."""
    names = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
    return math.gcd(*(fields[name] for name in names if isinstance(fields.get(name), int)))


def _gpus(ref: str, where: str, dtype: str) -> int:
    """Return the number of GPUs for a model, and say it if others are idle."""
    gpus = torch.cuda.device_count()
    if not gpus:
        return 0
    config = loading.load_config(ref).get_text_config()
    heads, fields = int(config.num_attention_heads), config.to_dict()
    load = weight_bytes(ref, where, dtype) / torch.cuda.get_device_properties(0).total_memory
    used = tensor_parallel(gpus, heads, fields.get("num_key_value_heads") or heads, mlp_width(fields), load)
    if used < gpus:
        each = f" --gpus-each {used}" if used > 1 else ""
        complain(f"vLLM uses {used} of {gpus} GPUs: `lowtax run --workers {gpus // used}{each}` uses more of them.")
    return used


def _close(up: list[Any]) -> None:
    """Shut down a vLLM engine and free its memory."""
    if up:
        from vllm.distributed import cleanup_dist_env_and_memory

        up.pop().llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()
