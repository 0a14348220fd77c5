"""What a plan costs, by arithmetic: floating point operations, GPU hours, memory, disk. Nothing here is measured.

Formulas (N: the weights that a token is multiplied with, all but the input embedding; c: bytes of a number)
    full fine-tuning   6 N a token: 2 N forward, 2 N for the gradients of what enters a layer, 2 N for those of weights.
    LoRA               2 N + 2 N_above + 6 P a token: frozen weights need no weight gradients, and backward ends at the
                       first trained block (N_above: the weights from there on, P: those of the factors).
    checkpointing      2 N of the blocks from the first trained one on a token more: their forward pass is repeated.
    sampling           2 N a token.
    decoding           tokens/s = rows x bandwidth / (bytes of the weights + rows x bytes of one row's cache), and at
                       most what the multiplications allow. The cache has 2 c x width of the keys a token and block.

Left out: attention among tokens, what the frozen prefix saves, validation, what methods and edits compute, reading
prompts, loading models, judging, grading.
"""

from dataclasses import asdict, dataclass
from typing import Any

from lowtax.memory import BYTES, CARD, MARGIN, Memory, Offload, Stage, training_memory
from lowtax.packing import MAX_ROW
from lowtax.recipe import Execution
from lowtax.shapes import Lora, Shape


@dataclass(frozen=True)
class Card:
    """A GPU of 80 GB, as its data sheet has it: dense bfloat16 operations a second, and bytes a second."""

    flops: float
    bandwidth: float


Hours = dict[str, float]  # by card
CARDS = {"H100": Card(989e12, 3.35e12), "A100": Card(312e12, 2.04e12)}


@dataclass(frozen=True)
class Assumptions:
    """What the hours take for granted; printed with them.

    training_utilisation, decoding_utilisation: the share of a card's operations and of its bandwidth that is reached.
    context: tokens of a prompt. reply_share: the share of max_new_tokens that a reply takes, for the lower figure.
    rows: decoded together at least, or the model is spread over more cards.
    training_rows, prompts: how many a source has that is not here and states no number.
    own_extra: tokens that the layout of a thought adds to a reply of the model's own that is trained on.
    """

    training_utilisation: float = 0.35
    decoding_utilisation: float = 0.5
    context: int = 200
    reply_share: float = 0.25
    rows: int = 8
    training_rows: int = 1000
    prompts: int = 100
    own_extra: int = 8

    def describe(self) -> dict[str, Any]:
        """By name, with the cards."""
        return {**asdict(self), "cards": {name: asdict(card) for name, card in CARDS.items()}}


ASSUMED = Assumptions()


def multiplied(shape: Shape) -> int:
    """N: the weights that a token is multiplied with. A tied embedding is the output matrix too."""
    return shape.parameters - (0 if shape.tied else shape.embedding)


def training_flops(shape: Shape, tokens: int, lora: Lora | None = None, factors: int = 0, again: bool = False) -> float:
    """Operations of training on so many tokens; lora None is in full, `again` with gradient checkpointing."""
    blocks = shape.block * (shape.layers - (lora.first if lora else 0))
    each = 6 * multiplied(shape)
    if lora:
        each = 2 * multiplied(shape) + 2 * (blocks + shape.embedding) + 6 * factors
    return float(tokens) * (each + (2 * blocks if again else 0))


def sampling_flops(shape: Shape, tokens: int) -> float:
    """Operations of writing so many tokens."""
    return 2.0 * multiplied(shape) * tokens


def training_hours(flops: float | None) -> Hours | None:
    """Hours of one card."""
    if flops is None:
        return None
    return {name: flops / (card.flops * ASSUMED.training_utilisation) / 3600 for name, card in CARDS.items()}


@dataclass(frozen=True)
class Decoding:
    """How a model writes: cards that share it, rows at once, and tokens a second of all of them together."""

    gpus: int
    rows: int
    tokens_per_second: float


def decoding(shape: Shape, card: Card, reply: float, batch_size: int, precision: str = "bfloat16") -> Decoding:
    """The speed at which replies of `reply` tokens are written, on as few cards as hold the weights and some rows."""
    c = BYTES[precision]
    cache = 2 * c * shape.layers * shape.kv * (ASSUMED.context + reply / 2)  # of a row, half-way
    weights = c * shape.parameters
    for gpus in (1, 2, 4, 8):
        rows = min(batch_size, int((gpus * CARD / MARGIN - weights) / cache))
        if rows >= min(batch_size, ASSUMED.rows) or gpus == 8:
            break
    rows = max(rows, 1)
    by_bytes = rows * ASSUMED.decoding_utilisation * card.bandwidth / (weights + rows * cache)
    by_flops = ASSUMED.training_utilisation * card.flops / (2 * multiplied(shape))
    return Decoding(gpus, rows, gpus * min(by_bytes, by_flops))


def sampling_hours(
    shape: Shape, card: Card, requests: int, reply: float, batch_size: int, precision: str = "bfloat16"
) -> float:
    """Card hours of so many replies of `reply` tokens each."""
    speed = decoding(shape, card, reply, min(batch_size, max(requests, 1)), precision)
    return speed.gpus * requests * reply / speed.tokens_per_second / 3600


SHARDED: tuple[Stage, ...] = ("zero2", "zero3", "fsdp2")
OFFLOADED: tuple[Offload, ...] = ("optimizer", "all")
WAYS: list[tuple[int, Stage, bool, Offload]] = [
    (1, "none", False, "none"),
    (1, "none", True, "none"),
    *((gpus, stage, True, "none") for gpus in (2, 4, 8) for stage in SHARDED),
    *((gpus, "zero3", True, offload) for gpus in (2, 4, 8) for offload in OFFLOADED),
]
"""Of laying training out, the simplest first: cards, sharding, gradient checkpointing, what goes to the host."""


@dataclass(frozen=True)
class Setting:
    """How training is laid out over cards of 80 GB, and the memory that it takes on each."""

    gpus: int
    stage: Stage
    checkpointing: bool
    offload: Offload
    memory: Memory

    def as_json(self) -> dict[str, Any]:
        """For programs: the fields, the parts of the memory in bytes, their sum on a card, and all in words."""
        words = {"setting": self.describe(), "gpus": self.gpus, "stage": self.stage, "offload": self.offload}
        return words | {"checkpointing": self.checkpointing, "gpu": self.memory.gpu, **asdict(self.memory)}

    def describe(self) -> str:
        """In words, as docs/scaling.md has them."""
        words = (
            f"{self.gpus} GPU{'s' * (self.gpus > 1)}",
            self.stage * (self.stage != "none"),
            "checkpointing" * self.checkpointing,
            {"none": "", "optimizer": "optimizer on the host", "all": "all on the host"}[self.offload],
        )
        return ", ".join(filter(None, words))


def first_that_fits(
    shape: Shape,
    lora: Lora | None,
    precision: str,
    batch_size: int,
    longest: int,
    execution: Execution,
    methods: bool = False,
) -> Setting | None:
    """The first of the `WAYS` within cards of 80 GB; None if there is none.

    A forward pass of one card has its share of the batch's examples, `longest` tokens each, as far as `execution` puts
    them into one row.
    """
    for gpus, stage, checkpointing, offload in WAYS:
        if execution.gradient_checkpointing and not checkpointing:
            continue
        together = min(-(-batch_size // gpus), execution.micro_batch_size or batch_size)
        memory = training_memory(
            shape,
            lora=lora,
            precision=precision,
            gpus=gpus,
            stage=stage,
            offload=offload,
            tokens=max(longest, min(execution.row_tokens or MAX_ROW["cuda"], together * longest)),
            checkpointing=checkpointing,
            methods=methods,
        )
        if memory.fits:
            return Setting(gpus, stage, checkpointing, offload, memory)
    return None


def checkpoint_bytes(trained: int, checkpoints: int) -> int:
    """Bytes of so many checkpoints: what is trained, in float32."""
    return 4 * trained * checkpoints


def resume_bytes(trained: int, checkpoints: int) -> int:
    """Bytes, at most, of the states that a run under way keeps to go on from: weights and two moments, in float32.

    There is one after every checkpoint but the last, which stays until the next is written.
    """
    return 12 * trained * min(checkpoints - 1, 2)
