"""Estimate the memory of training: weights, gradients, optimiser, activations and logits. Torch is not needed.

Sources: Rajbhandari et al., ZeRO (arXiv:1910.02054, section 3: 16 bytes per trained weight with Adam in mixed
precision), DeepSpeed 0.19's defaults for its buffers, accelerate 1.15's float32 shards for FSDP2, and lowtax's own
loop (`parameters.TrainedParameters`, `objective.TargetLoss`). All sizes are in bytes; c is the bytes of a number in a
forward pass. GB are 10^9 bytes.

The CUDA context, fragmentation and short-lived tensors are not counted; `MARGIN` allows for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lowtax.common.display import Markup
from lowtax.common.log import tell
from lowtax.common.tables import markdown_table
from lowtax.models.names import MLP
from lowtax.models.shapes import SHAPES, Lora, Shape

Stage = Literal["none", "zero2", "zero3", "fsdp2"]
Offload = Literal["none", "optimizer", "all"]

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "nf4": 2, "nf4-float32": 4}
"""Bytes of a number in the forward pass; 4-bit weights are dequantised for it."""
PACKED = 4.127 / 8
"""Bytes of a 4-bit weight with its scales (`lowtax.models.quantised`)."""
MOMENTS = {"adamw": 8, "adamw_8bit": 2, "adafactor": 0}
"""Bytes of an optimiser's moments for each trained weight; Adafactor's are a row and a column of each matrix."""
MARGIN = 1.1
CARD = 80 * 2**30
"""Bytes of a GPU of 80 GB."""
SLICE = 2**30
"""Float32 logits that exist at a time on a GPU (`objective.SLICE_BYTES`)."""
LIVE, BUCKET, PREFETCH, GROUP = 10**9, 5 * 10**8, 5 * 10**7, 10**9
"""DeepSpeed's defaults, in weights: stage3_max_live_parameters, reduce_bucket_size, prefetch bucket, sub_group_size."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, and on the host for all GPUs of one machine together."""

    weights: float
    gradients: float
    optimizer: float
    working: float
    activations: float
    logits: float
    host: float = 0.0

    @property
    def states(self) -> float:
        """Return the bytes of weights, gradients and optimiser on one GPU."""
        return self.weights + self.gradients + self.optimizer

    @property
    def gpu(self) -> float:
        """Return the bytes of all parts on one GPU."""
        return self.states + self.working + self.activations + self.logits

    @property
    def fits(self) -> bool:
        """Test whether a GPU of 80 GB is enough, with the margin."""
        return self.gpu * MARGIN <= CARD


def training_memory(
    shape: Shape,
    *,
    lora: Lora | None = None,
    precision: str = "bfloat16",
    gpus: int = 1,
    stage: Stage = "none",
    offload: Offload = "none",
    tokens: int = 8192,
    targets: int | None = None,
    checkpointing: bool = False,
    methods: bool = False,
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw",
    released: bool = False,
) -> Memory:
    """Return the memory of a training step.

    Args:
        shape: the model.
        lora: the adapter; None for full fine-tuning.
        precision: of frozen weights and of the forward pass.
        gpus: processes; all on one machine, for the host's memory.
        stage: none (data parallel on several GPUs), zero2, zero3 (DeepSpeed) or fsdp2 (accelerate).
        offload: what moves to the host: none, optimizer, or all (weights too). DeepSpeed only.
        tokens: tokens in one forward pass of one GPU.
        targets: tokens with loss among them; all if None.
        checkpointing: gradient checkpointing.
        methods: methods act in training; where states are sharded, they see whole float32 copies
            (`parameters.GatheredParameters`).
        optimizer: of a run on one GPU, or data parallel.
        released: each gradient is freed during backward (`released.ReleasedParameters`); the largest one counts.
    """
    c = BYTES[precision]
    trained = lora.parameters(shape) if lora else shape.parameters
    frozen = shape.parameters if lora else 0
    packed = shape.layers * shape.block if precision.startswith("nf4") and lora else 0
    base = c * (frozen - packed) + PACKED * packed
    activations = _activations(shape, lora, c, tokens, checkpointing)
    logits = _logits(shape, c, targets or tokens, whole=stage in ("none", "zero2"), full=lora is None)
    if stage == "none":
        live = 4 if lora else c  # factors are float32 in every precision
        masters = 0 if live == 4 else 4 * trained
        buckets = live * trained if gpus > 1 else 0  # data parallel's
        stored = 4 * (min(shape.embedding, trained) if released else trained)
        moments = MOMENTS[optimizer] * trained
        largest = c * shape.hidden * shape.mlp if packed else 0  # dequantised for its product
        working = buckets + largest
        return Memory(base + live * trained, stored, masters + moments, working, activations, logits)
    share, copies = trained / gpus, 8 * trained if methods else 0
    if stage == "fsdp2":
        # Shards are float32. Embeddings, and two neighbouring blocks, are whole in precision c, with their gradients.
        whole = 2 * shape.embedding + 2 * shape.block + (0 if lora else 2 * shape.embedding + shape.block)
        return Memory(c * frozen / gpus + 4 * share, 4 * share, 8 * share, c * whole + copies, activations, logits)
    weights = c * (frozen + trained) / (1 if stage == "zero2" else gpus)
    # Second term: float32 gradients of the weights that are being stepped.
    gradients = c * share + 4 * (share if stage == "zero2" else min(share, GROUP))
    steps = 12 * share
    gathered = 0 if stage == "zero2" else min(LIVE + PREFETCH, shape.parameters) + shape.embedding
    working = c * (gathered + min(BUCKET, trained) + (0 if lora else shape.embedding)) + copies
    host = 0.0
    if offload != "none":
        host, gradients, steps = gpus * (gradients + steps), 0.0, 0.0
    if offload == "all":
        host, weights = host + gpus * weights, 0.0
    return Memory(weights, gradients, steps, working, activations, logits, host)


SHARDED: tuple[Stage, ...] = ("zero2", "zero3", "fsdp2")
OFFLOADED: tuple[Offload, ...] = ("optimizer", "all")
LAYOUTS: list[tuple[int, Stage, bool, Offload]] = [
    (1, "none", False, "none"),
    (1, "none", True, "none"),
    *((gpus, stage, True, "none") for gpus in (2, 4, 8) for stage in SHARDED),
    *((gpus, "zero3", True, offload) for gpus in (2, 4, 8) for offload in OFFLOADED),
]
"""GPUs, sharding, gradient checkpointing and what is offloaded to the host; the simplest layout first."""


@dataclass(frozen=True)
class Layout:
    """A way to place training on GPUs, and the memory that it takes."""

    gpus: int
    stage: Stage
    checkpointing: bool
    offload: Offload
    memory: Memory

    def __str__(self) -> str:
        words = (
            f"{self.gpus} GPU{'s' * (self.gpus > 1)}",
            self.stage * (self.stage != "none"),
            "checkpointing" * self.checkpointing,
            {"none": "", "optimizer": "optimizer on the host", "all": "all on the host"}[self.offload],
        )
        return ", ".join(filter(None, words))

    def as_json(self) -> dict[str, Any]:
        """Return the fields, the parts of the memory, their sum on a GPU, and the layout in words (`setting`)."""
        fields = asdict(self)
        return {"setting": str(self), "gpu": self.memory.gpu, **fields.pop("memory"), **fields}


def first_layout(
    shape: Shape,
    row: Callable[[int], int],
    lora: Lora | None,
    precision: str = "bfloat16",
    *,
    checkpointing: bool = False,
    methods: bool = False,
) -> Layout | None:
    """Return the first of the `LAYOUTS` that fits GPUs of 80 GB; None if none does.

    Args:
        row: the tokens of one forward pass of one GPU, by the number of GPUs.
        checkpointing: leave out the layouts without it.
        lora, precision, methods: as for `training_memory`.
    """
    for gpus, stage, checkpointed, offload in LAYOUTS:
        if stage != "none" and precision.startswith("nf4"):
            break  # not sharded
        if checkpointed or not checkpointing:
            memory = training_memory(
                shape,
                lora=lora,
                precision=precision,
                gpus=gpus,
                stage=stage,
                offload=offload,
                tokens=row(gpus),
                checkpointing=checkpointed,
                methods=methods,
            )
            if memory.fits:
                return Layout(gpus, stage, checkpointed, offload, memory)
    return None


def _activations(shape: Shape, lora: Lora | None, c: int, tokens: int, checkpointing: bool) -> int:
    """Return what layers from the first trained one up keep for backward; with checkpointing, inputs and one layer."""
    layers = shape.layers - (lora.first if lora else 0)
    with_factors = lora.last - lora.first + 1 if lora else 0
    bare = shape.activation(c, () if lora else None) * tokens
    factors = (shape.activation(c, lora.modules) * tokens - bare) if lora else 0
    if checkpointing:
        return layers * c * shape.hidden * tokens + bare + factors
    return layers * bare + with_factors * factors


def _logits(shape: Shape, c: int, targets: int, whole: bool, full: bool) -> int:
    """Return the bytes of logits and their gradient at the target positions.

    Whole weights: a float32 slice and half as much for its gradient; with full fine-tuning also the gradient of the
    output matrix, in float32 and in c. Sharded weights: transformers' own logits, their float32 copy, its log-softmax,
    and gradients.
    """
    if not whole:
        return (2 * c + 12) * shape.vocabulary * targets
    return min(SLICE, 4 * shape.vocabulary * targets) * 3 // 2 + ((4 + c) * shape.embedding if full else 0)


def tables() -> dict[str, str]:
    """Return the tables of docs/guides/scaling.md by name, in Markdown: rows of 2,048 tokens, bfloat16."""
    return {"shapes": _shapes(), "one-gpu": _one_gpu(), "sharded": _sharded(), "32b": _largest()}


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size < 1e11 else f"{size / 1e9:,.0f}"


def _yes(memory: Memory) -> str:
    return "yes" if memory.fits else "no"


def _shapes() -> str:
    head = "model, blocks, weights, GB in bfloat16, kB a token and block: full, rank 1 on `up_proj`, checkpointed"
    rows = [
        (name, s.layers, f"{s.parameters:,}", _gb(2 * s.parameters), *(f"{size / 1e3:,.0f}" for size in sizes))
        for name, s in SHAPES.items()
        for sizes in [(s.activation(2), s.activation(2, ("up_proj",)), 2 * s.hidden)]
    ]
    return markdown_table([[*map(Markup, head.split(", "))], *rows])


def _one_gpu() -> str:
    head = "model, trained, weights, gradients and optimiser, activations, logits, sum, fits, with checkpointing, fits"
    rows: list[Sequence[object]] = []
    for name, shape in SHAPES.items():
        third = shape.layers // 3
        rank1 = Lora(1, ("up_proj",), third, 2 * third - 1)
        for trained, lora in (("rank 1", rank1), ("rank 16", Lora(16, MLP, 0, shape.layers - 1)), ("full", None)):
            m = training_memory(shape, lora=lora, tokens=2048)
            less = training_memory(shape, lora=lora, tokens=2048, checkpointing=True)
            parts = (m.weights, m.gradients + m.optimizer, m.activations, m.logits, m.gpu)
            rows.append((name, trained, *map(_gb, parts), _yes(m), _gb(less.gpu), _yes(less)))
    return markdown_table([head.split(", "), *rows])


def _sharded() -> str:
    head = "model, sharding, 2 GPUs, 4 GPUs, 8 GPUs"
    rows: list[Sequence[object]] = []
    for name in ("R1-Distill-Qwen-7B", "R1-Distill-Qwen-14B"):
        for stage in ("zero2", "zero3", "fsdp2"):
            by_gpus = [
                training_memory(SHAPES[name], stage=stage, gpus=n, tokens=2048, checkpointing=True) for n in (2, 4, 8)
            ]
            rows.append((name, stage, *(f"{_gb(m.gpu)}{'' if m.fits else ' (too much)'}" for m in by_gpus)))
    return markdown_table([head.split(", "), *rows])


def _largest() -> str:
    head = "sharding, to the host, GPUs, states, working, activations and logits, sum a GPU, fits, host"
    rows: list[Sequence[object]] = []
    plans: list[tuple[Stage, Offload]] = [
        ("zero3", "none"),
        ("zero3", "optimizer"),
        ("zero3", "all"),
        ("fsdp2", "none"),
    ]
    for stage, offload in plans:
        for gpus in (2, 4, 8) if offload != "none" else (2, 4, 8, 16):
            m = training_memory(
                SHAPES["R1-Distill-Qwen-32B"],
                stage=stage,
                offload=offload,
                gpus=gpus,
                tokens=2048,
                checkpointing=True,
            )
            parts = (m.states, m.working, m.activations + m.logits, m.gpu)
            rows.append((stage, offload, gpus, *map(_gb, parts), _yes(m), _gb(m.host)))
    return markdown_table([head.split(", "), *rows])


if __name__ == "__main__":
    for name, table in tables().items():
        tell(f"<!-- {name} -->\n{table}\n")
