"""Engine on transformers and PEFT: one copy of the base model, and batches whose rows use any adapters.

Adapters are never merged: PEFT adds the update of each row to the output of the shared layer, in float32. Adapters that
cannot share a batch (DoRA, experts, saved modules) are in the model one at a time. What an adapter changes is measured
before its first reply, and an adapter that changes nothing is an error. Rows that finish make room for others
(`lowtax.engines.hf.batch`). Only the end-of-turn tokens of a generation_config count: temperature and top_p come from
the request, and there is no hidden top_k or repetition penalty.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel

from lowtax.common.allocator import kept_memory
from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.data import chat
from lowtax.engines.base import Completion, Prompter, Request
from lowtax.engines.hf.batch import Batch, Row, failed
from lowtax.engines.hf.kv_cache import arguments, memory_of, use_grouped
from lowtax.engines.hf.row_adapters import BASE, RowAdapters
from lowtax.models import layer_split, loading
from lowtax.models.adapter_fit import fitted, unfit
from lowtax.models.adapters import extras, is_zero, read_config

# Fields of an adapter's configuration that PEFT keeps apart in a mixed batch, besides s B A.
MIXABLE = ("lora_bias", "fan_in_fan_out")
# What it serves for one adapter at a time.
ALONE = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters")
REMEDY = (
    "changed bases, trained biases and other kinds cannot be served beside the base; merge it into its base with "
    "PEFT's merge_and_unload in float32, and give the merged folder as the model"
)
PROMPTS, TOKENS = 2, 256  # on which the effect of an adapter is measured, and the most of each prompt


class HF:
    """A model in transformers and PEFT, on the accelerator if there is one."""

    def __init__(self, model: str, precision: str, batch_size: int) -> None:
        self.ref, self.batch_size = model, batch_size
        self.tokenizer = loading.load_tokenizer(model)
        self.prompter = Prompter(self.tokenizer)
        self.model = layer_split.load_where_it_fits(model, loading.precision(precision))
        use_grouped(self.model)
        # Every module with its place, so that the model can be as it was before an adapter.
        self.bare = [(p, name, child) for p in self.model.modules() for name, child in p.named_children()]
        self.loaded: PeftModel | None = None  # PEFT's wrapper, once there is an adapter
        self.row_adapters: RowAdapters | None = None  # the faster way to mix adapters, where it is PEFT's to a hair
        self.adapters: dict[Path, str] = {}
        self.fits: dict[str, Path] = {}  # PEFT's name for an adapter -> the folder that it loads
        self.worn = BASE
        self.one_at_a_time = False  # True if the model has one adapter, which all rows of a batch share
        self.effects: dict[str, float] = {}  # adapter, as in requests -> mean over prompts of its largest logit change
        ends = loading.stop_tokens(self.model, self.tokenizer)
        if not ends:
            raise UserError(f"The model {model!r} names no end-of-turn token: set eos_token_id in its tokenizer.")
        self.ends = chat.stops(self.tokenizer, ends)
        pad = self.tokenizer.pad_token_id
        self.pad = min(self.ends) if pad is None else int(pad)
        # By attribute: GPT-2 and others have the number under another name, and some architectures have no limit.
        self.positions: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.memory, self.arguments = memory_of(self.model), arguments(self.model)
        if self.memory == "none":
            say(f"  {type(self.model).__name__} has no cache that a batch can share: every token reads the whole text")

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield completions as they finish. Adapters are checked and loaded before the first, and stay loaded.

        Raises:
            UserError: An adapter is not a plain LoRA of this model, or a batch does not fit into memory.
        """
        names = {request.adapter: self._adapter(request.adapter) for request in requests}  # all before the first reply
        return self._completions(requests, names)

    def _completions(self, requests: Sequence[Request], names: dict[str | None, str]) -> Iterator[Completion]:
        rows: list[Row] = []
        for request in requests:
            row = self._row(request, names[request.adapter])
            if isinstance(row, Completion):
                yield row
            else:
                rows.append(row)
        self._check_effects(rows)
        # Few adapters per batch: few small products. Similar lengths: little padding. Equal prompts: read once.
        rows.sort(key=lambda row: (row.request.max_new_tokens, row.adapter, len(row.prompt.ids), row.prompt.ids))
        if self.one_at_a_time:
            rows.sort(key=lambda row: row.adapter)
        key = (lambda row: row.adapter) if self.one_at_a_time else (lambda row: BASE)
        parts = [list(part) for _, part in groupby(rows, key=key)]
        with kept_memory():  # otherwise the kernel clears new pages for the logits of every step
            for part in parts:
                if self.one_at_a_time and part:
                    self._wear(part[0].adapter)
                yield from self._decoded(part)

    def _decoded(self, rows: list[Row]) -> Iterator[Completion]:
        waiting, batch = deque(rows), None
        while waiting or (batch and batch.live()):
            try:
                room = self.batch_size if batch is None else batch.room(len(waiting[0].prompt.ids)) if waiting else 0
                if waiting and room:
                    new = Batch.groups(self, [waiting.popleft() for _ in range(min(room, len(waiting)))])
                    ended = [completion for group in new for completion in group.step()]
                    batch = Batch.joined([batch, *new] if batch else new)
                elif batch:
                    ended = batch.step()
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{self.batch_size} replies at once do not fit into the accelerator's memory: lower batch_size."
                ) from error
            yield from ended

    def prepare(self, path: str | None, texts: Sequence[list[int]]) -> str:
        """Load one adapter for forward passes outside of `generate`, and return PEFT's name for it.

        If it cannot share a batch (`one_at_a_time`), it is afterwards in the model, alone.

        Args:
            path: its folder; None for the base.
            texts: tokens of some rows, on which its effect is measured if that was not done before.

        Raises:
            UserError: As in `generate`, or it changes nothing.
        """
        name = self._adapter(path)
        if path is not None and path not in self.effects:
            self.row_adapters = self._row_adapters()
            self._measure(path, name, texts)
        if self.one_at_a_time:
            self._wear(name)
        return name

    def _check_effects(self, rows: Sequence[Row]) -> None:
        """Measure what each new adapter changes, and find out whether the model can mix adapters in a batch.

        Raises:
            UserError: An adapter changes nothing.
        """
        new: dict[str, list[Row]] = {}
        for row in rows:
            if row.adapter != BASE and str(row.request.adapter) not in self.effects:
                new.setdefault(row.adapter, []).append(row)
        self.row_adapters = self._row_adapters() if new else self.row_adapters
        for name, own in new.items():
            self._measure(str(own[0].request.adapter), name, [row.prompt.ids for row in own])

    @torch.inference_mode()
    def _measure(self, path: str, name: str, texts: Sequence[list[int]]) -> None:
        """Measure what an adapter changes after some of these texts."""
        distinct = list({tuple(ids): ids[-TOKENS:] for ids in texts}.values())
        changes = self._changes(distinct[:PROMPTS], name)
        self.effects[path] = mean(changes)
        if max(changes) == 0 and not is_zero(folder := self.fits[name]):
            raise UserError(
                f"The adapter in {folder} changes no logit of {self.ref!r} on {len(changes)} prompts: its update is "
                f"lost in {str(self.model.dtype).removeprefix('torch.')}. Train it for more steps, or measure in "
                "float32."
            )

    def _changes(self, prompts: Sequence[list[int]], name: str) -> list[float]:
        """Return the largest change of a logit after each prompt."""
        if not self.one_at_a_time:
            try:
                both = [self._last([prompt, prompt], adapter_names=[BASE, name]) for prompt in prompts]
                changes = [float((pair[1] - pair[0]).abs().max()) for pair in both]
                if max(changes) > 0 or is_zero(self.fits[name]):
                    self._compare_ways(prompts[0], name, both[0], changes[0])
                    return changes
                self._separate()  # PEFT ignores the names of adapters in a batch (for MPT)
            except torch.OutOfMemoryError:
                raise
            except (ValueError, KeyError, TypeError, RuntimeError):
                self._separate()  # a layer sees the tokens of all rows at once: shared experts, OPT's MLP
        self._wear(BASE)
        before = [self._last([prompt]) for prompt in prompts]
        self._wear(name)
        return [float((self._last([p]) - old).abs().max()) for p, old in zip(prompts, before, strict=True)]

    def _row_adapters(self) -> RowAdapters | None:
        """Return the faster way to mix the adapters that are loaded; None if a layer needs PEFT's own."""
        if self.loaded is None or self.one_at_a_time:
            return None
        ours = RowAdapters(self.loaded)
        return ours if ours.covers_model else None

    def _compare_ways(self, prompt: list[int], name: str, with_peft: torch.Tensor, change: float) -> None:
        """Give up the faster way if it computes other logits than PEFT, by more than a hundredth of their change."""
        if self.row_adapters is None:
            return
        with self.row_adapters.of([BASE, name], self.model.device):
            logits = self._last([prompt, prompt])
        if float((logits - with_peft).abs().max()) > change / 100:
            say("  adapters are mixed by PEFT's own code, which is slower: ours computes other logits of this model")
            self.row_adapters = None

    def _last(self, prompts: list[list[int]], **more: Any) -> torch.Tensor:
        """Return the logits after prompts of one length, [prompts, vocabulary]."""
        ids = torch.tensor(prompts, device=self.model.device)
        logits: torch.Tensor = (self.loaded or self.model)(input_ids=ids, use_cache=False, **more).logits
        return logits[:, -1].float()

    def _row(self, request: Request, adapter: str) -> Row | Completion:
        """Return the request as tokens, or a failed completion with the reason why it cannot be served."""
        try:
            prompt = self.prompter.prompt(request)
        except TemplateError as error:
            return failed(request, False, f"the chat template refuses the messages: {error}")
        room = request.max_new_tokens
        if self.positions is not None:
            # The last token needs no position, because the model never reads it.
            room = min(room, self.positions + 1 - len(prompt.ids))
        loading.require_tokens(max(prompt.ids, default=0), self.model, self.ref)
        if room < 1:
            reason = f"the prompt has {len(prompt.ids)} tokens, but the model only {self.positions} positions"
            return failed(request, prompt.opened, reason)
        scored = [ids[0] for ids in chat.encode(self.tokenizer, list(request.score))] if request.score else []
        return Row(request, prompt, room, adapter, torch.Generator().manual_seed(request.seed), scored)

    def _adapter(self, path: str | None) -> str:
        """Return PEFT's name for an adapter folder, which is checked and loaded if it is new."""
        if path is None:
            return BASE
        folder = Path(path).resolve()
        if folder not in self.adapters:
            name = f"adapter{len(self.adapters)}"
            self.fits[name] = fitted(folder, self.ref, supported=(*MIXABLE, *ALONE), remedy=REMEDY).folder
            if not self.one_at_a_time and extras(read_config(folder), supported=MIXABLE):
                self._separate()
            if not self.one_at_a_time:
                self._load_adapter(name)
            self.adapters[folder] = name
        return self.adapters[folder]

    def _separate(self) -> None:
        """Take all adapters out of the model, for one at a time.

        PEFT's own `unload` would leave saved modules in the place of the base's.
        """
        self.one_at_a_time = True
        if self.loaded is not None:
            for parent, name, child in self.bare:
                setattr(parent, name, child)
            del self.model.peft_config
            self.loaded = self.row_adapters = None

    def _wear(self, name: str) -> None:
        """Put one adapter into the model, and no other."""
        if name == self.worn and (self.loaded is None) == (name == BASE):
            return
        self._separate()
        self.worn = name
        if name != BASE:
            self._load_adapter(name)

    def _load_adapter(self, name: str) -> None:
        folder = self.fits[name]
        options: dict[str, Any] = {"adapter_name": name, "torch_device": str(self.model.device)}
        with unfit(folder, self.ref):
            if self.loaded is None:
                self.loaded = PeftModel.from_pretrained(self.model, str(folder), **options)
            else:
                self.loaded.load_adapter(str(folder), **options)
        self.loaded.eval().requires_grad_(False)
