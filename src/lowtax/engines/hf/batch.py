"""Batches of rows that transformers decodes together, one token per step; rows leave and join.

Prompts are padded on the left, and read in groups of similar length (`lowtax.engines.hf.prefill`). When enough rows
have finished, the others and the next prompts become one batch, which is as wide as its longest row. Which rows join,
and when, depends on the replies alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lowtax.engines.base import Completion, Prompt, Request
from lowtax.engines.hf.kv_cache import NoCache, RoomyCache
from lowtax.engines.hf.prefill import fixed_tokens, group_widths
from lowtax.engines.hf.sampler import choose

if TYPE_CHECKING:
    from lowtax.engines.hf.engine import HF

# An index, not a number: a number takes a slice of the hidden states, which is not contiguous, and for a frozen model
# torch then copies the output weights for every row (5 GB, and 9 of 10 seconds, for 96 rows of the embedded model).
LAST = torch.tensor([-1])
COMPACT_AT = 0.25  # share of finished rows at which they are dropped: copying the cache costs time too
WIDE = 2**15  # rows x tokens, with padding, up to which rows may join; or the size of the batch before, if larger


@dataclass
class Row:
    """A request that is being decoded.

    room: maximum length of the reply in tokens. adapter: PEFT's name for the adapter. scored: tokens whose probability
    at the first step is requested. tokens: the reply so far.
    """

    request: Request
    prompt: Prompt
    room: int
    adapter: str
    generator: torch.Generator
    scored: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scores: tuple[float, ...] = ()
    done: bool = False


class Batch:
    """Rows with their tensors and cache, all in the same order. The model has not read the tokens in `ids` yet."""

    def __init__(self, engine: HF, rows: list[Row]) -> None:
        self.engine, self.rows, device = engine, rows, engine.model.device
        width = max(len(row.prompt.ids) for row in rows)
        # Several samples of one prompt share a row until it has been read.
        prompts = [(row.adapter, *row.prompt.ids) for row in rows]
        first = {prompt: prompts.index(prompt) for prompt in dict.fromkeys(prompts)}
        self.alone = [rows[i] for i in first.values()]
        places = {prompt: place for place, prompt in enumerate(first)}
        self.spread = torch.tensor([places[prompt] for prompt in prompts], device=device)
        padding = [width - len(row.prompt.ids) for row in self.alone]
        self.ids = torch.tensor(
            [[engine.pad] * n + row.prompt.ids for n, row in zip(padding, self.alone, strict=True)], device=device
        )
        self.mask = (torch.arange(width) >= torch.tensor(padding)[:, None]).long().to(device)
        self.position = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.last_position = None if engine.positions is None else engine.positions - 1
        self.cache: Any = NoCache() if engine.memory == "none" else RoomyCache(config=engine.model.config)
        self.filled = 0

    def room(self, width: int) -> int:
        """Return the number of rows of `width` tokens that may join, within WIDE; 0 until enough rows have finished."""
        live, most = len(self.live()), self.engine.batch_size
        if not live:
            return most
        if live > (1 - COMPACT_AT) * most or not self.cache.can_join():
            return 0
        self.filled = max(self.filled, self.mask.numel())
        return max(0, min(most, max(WIDE, self.filled) // max(width, self.mask.shape[1])) - live)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Read `ids` and add one token to every row; return the completions of the rows that it finished."""
        if sum(row.done for row in self.rows) >= max(1, COMPACT_AT * len(self.rows)):
            self._compact()
        logits = self._logits()
        for number, row in enumerate(self.rows):
            if row.scored and not row.scores:
                row.scores = tuple(logits[number].double().softmax(-1)[row.scored].tolist())
        tokens = choose(logits, self.rows)
        live = [(row, token) for row, token in zip(self.rows, tokens, strict=True) if not row.done]
        ended = [completion for row, token in live if (completion := self._take(row, token))]
        self.ids = torch.tensor(tokens, device=self.ids.device).clamp(min=0)[:, None]
        # A row that finished at the model's last position stays there until it is dropped.
        self.position = self.position[:, -1:] + 1
        if self.last_position is not None:
            self.position = self.position.clamp(max=self.last_position)
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return ended

    @classmethod
    def groups(cls, engine: HF, rows: list[Row]) -> list[Batch]:
        """Return new batches of these rows, which are read one by one; one batch if its cache cannot join others."""
        if engine.memory != "past_key_values" or not RoomyCache(config=engine.model.config).can_join():
            return [cls(engine, rows)]
        distinct = {(row.adapter, *row.prompt.ids) for row in rows}
        widths = group_widths([len(prompt) - 1 for prompt in distinct], fixed_tokens(engine.model.device))
        by_width: dict[int, list[Row]] = {width: [] for width in widths}
        for row in rows:
            by_width[widths[bisect_left(widths, len(row.prompt.ids))]].append(row)
        return [cls(engine, group) for group in by_width.values()]

    @staticmethod
    @torch.inference_mode()
    def joined(batches: Sequence[Batch]) -> Batch:
        """Return one batch of the unfinished rows of several, which have done their first step and are used up."""
        unfinished = [batch for batch in batches if batch.live()]
        whole = unfinished[0] if unfinished else batches[-1]
        whole.filled = max(batch.filled for batch in batches)
        if len(unfinished) > 1:
            at = [part._live_places() for part in unfinished]
            # The live rows of each, and the number of columns at the left that are padding in all of them.
            parts = [(rows, int(part.mask[rows].argmax(1).min())) for part, rows in zip(unfinished, at, strict=True)]
            masks = [part.mask[rows, padding:] for part, (rows, padding) in zip(unfinished, parts, strict=True)]
            width = max(mask.shape[1] for mask in masks)
            whole.mask = torch.cat([torch.nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in masks])
            # The masks include the tokens in `ids`; the caches do not yet.
            whole.cache = RoomyCache.of([part.cache for part in unfinished], parts, width - 1)
            whole.ids = torch.cat([part.ids[rows] for part, rows in zip(unfinished, at, strict=True)])
            whole.position = torch.cat([part.position[rows] for part, rows in zip(unfinished, at, strict=True)])
            whole.rows = [row for part in unfinished for row in part.live()]
        return whole

    def _logits(self) -> Tensor:
        """Return next-token logits in float32, [rows, vocabulary]."""
        logits = self._reread() if isinstance(self.cache, NoCache) else self._read(self.cache)
        if self.alone and len(self.alone) < len(self.rows):
            self.cache.batch_select_indices(self.spread)
            self.mask, self.position = self.mask[self.spread], self.position[self.spread]
            logits = logits[self.spread]
        self.alone = []
        return logits

    def _read(self, cache: RoomyCache) -> Tensor:
        """Read the tokens in `ids` after those in the cache, and return logits after the last."""
        # A recurrent model multiplies its input with the mask, which after the prompt is longer than the input.
        single = self.engine.memory == "cache_params" and self.ids.shape[1] == 1
        out = self._call(
            input_ids=self.ids,
            attention_mask=None if single else self.mask,
            position_ids=self.position,
            use_cache=True,
            logits_to_keep=LAST,
            **{self.engine.memory: cache},
        )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _reread(self) -> Tensor:
        """Read every row from its first token, and return logits after the last; no cache is used.

        Rows are padded on the right, where an architecture without a mask does not see the padding either.
        """
        texts = [row.prompt.ids + row.tokens for row in self.alone or self.rows]
        last = torch.tensor([len(text) - 1 for text in texts], device=self.ids.device)
        width = max(map(len, texts))
        padded = [text + [self.engine.pad] * (width - len(text)) for text in texts]
        keep, place = torch.unique(last, return_inverse=True)
        kept = "logits_to_keep" in self.engine.arguments
        out = self._call(input_ids=torch.tensor(padded, device=last.device), use_cache=False, logits_to_keep=keep)
        logits: Tensor = out.logits[torch.arange(len(texts), device=last.device), place if kept else last].float()
        return logits

    def _call(self, **inputs: Any) -> Any:
        """Call the model with those of the inputs that it takes, and with the adapter of each row."""
        engine = self.engine
        inputs = {name: value for name, value in inputs.items() if name in engine.arguments}
        if engine.loaded is None or engine.one_at_a_time:
            return (engine.loaded or engine.model)(**inputs)
        names = [row.adapter for row in self.alone or self.rows]
        if engine.row_adapters is None:
            return engine.loaded(**inputs, adapter_names=names)
        with engine.row_adapters.of(names, engine.model.device):
            return engine.model(**inputs)

    def _take(self, row: Row, token: int) -> Completion | None:
        """Add a token to a row, and return the completion if it is finished. Token -1: the logits are not finite."""
        finish: Literal["stop", "length"] = "stop"
        if token < 0:
            row.done = True
            return failed(row.request, row.prompt.opened, f"the logits after {len(row.tokens)} tokens are not finite")
        if token not in self.engine.ends:
            row.tokens.append(token)
            if len(row.tokens) < row.room:
                return None
            finish = "length"
        row.done = True
        return self.engine.prompter.completion(row.request, row.prompt, row.tokens, finish, row.scores)

    def live(self) -> list[Row]:
        """Return the rows that have not finished."""
        return [row for row in self.rows if not row.done]

    def _live_places(self) -> Tensor:
        """Return the indices of the rows that have not finished."""
        return torch.tensor([i for i, row in enumerate(self.rows) if not row.done], device=self.ids.device)

    def _compact(self) -> None:
        """Drop the rows that have finished."""
        rows = self._live_places()
        self.ids, self.mask, self.position = self.ids[rows], self.mask[rows], self.position[rows]
        self.cache.batch_select_indices(rows)
        self.rows = self.live()


def failed(request: Request, opened: bool, why: str) -> Completion:
    """Return the completion of a request that cannot be served; `why` is the reason."""
    return Completion(request.id, "", 0, "failed", opened, why)
