"""Engine on transformers and PEFT: one copy of the base model, and batches whose rows use any adapters.

Adapters are never merged: PEFT adds the update of each row to the output of the shared layer, in float32. Rows that
finish make room for others (`lowtax.engines.hf.batch`). Only the end-of-turn tokens of a generation_config count:
temperature and top_p come from the request, and there is no hidden top_k or repetition penalty.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError
from peft import PeftModel

from lowtax.common.allocator import kept_memory
from lowtax.common.errors import UserError
from lowtax.data import chat
from lowtax.engines.base import Completion, Prompter, Request
from lowtax.engines.hf.batch import Batch, Row, failed
from lowtax.engines.hf.kv_cache import use_grouped
from lowtax.models import loading
from lowtax.models.adapters import check_adapter

BASE = "__base__"  # PEFT's name for rows without an adapter
# What PEFT keeps apart in a mixed batch, besides s B A; anything else would leak into the other rows, or raise midway.
MIXABLE = ("lora_bias", "modules_to_save", "trainable_token_indices", "fan_in_fan_out")
REMEDY = (
    "DoRA, trained biases, changed bases and other kinds cannot share a batch; merge it into its base with PEFT's "
    "merge_and_unload in float32, and give the merged folder as the model"
)


class HF:
    """A model in transformers and PEFT, on the accelerator if there is one."""

    def __init__(self, model: str, precision: str, batch_size: int) -> None:
        self.ref, self.batch_size = model, batch_size
        self.tokenizer = loading.load_tokenizer(model)
        self.prompter = Prompter(self.tokenizer)
        self.model = loading.load_model(model, loading.precision(precision))
        use_grouped(self.model)
        self.loaded: PeftModel | None = None  # PEFT's wrapper, once there is an adapter
        self.adapters: dict[Path, str] = {}
        ends = loading.stop_tokens(self.model, self.tokenizer)
        if not ends:
            raise UserError(f"The model {model!r} names no end-of-turn token: set eos_token_id in its tokenizer.")
        self.ends = chat.stops(self.tokenizer, ends)
        pad = self.tokenizer.pad_token_id
        self.pad = min(self.ends) if pad is None else int(pad)
        self.positions: int | None = self.model.config.get_text_config().to_dict().get("max_position_embeddings")

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield completions as they finish. Adapters are checked and loaded before the first, and stay loaded.

        Raises:
            UserError: An adapter is not a plain LoRA of this model, or a batch does not fit into memory.
        """
        names = {request.adapter: self._adapter(request.adapter) for request in requests}
        return self._completions(requests, names)

    def _completions(self, requests: Sequence[Request], names: dict[str | None, str]) -> Iterator[Completion]:
        rows: list[Row] = []
        for request in requests:
            row = self._row(request, names[request.adapter])
            if isinstance(row, Completion):
                yield row
            else:
                rows.append(row)
        # Few adapters per batch: few small products. Similar lengths: little padding. Equal prompts: read once.
        rows.sort(key=lambda row: (row.request.max_new_tokens, row.adapter, len(row.prompt.ids), row.prompt.ids))
        with kept_memory():  # otherwise the kernel clears new pages for the logits of every step
            yield from self._decoded(rows)

    def _decoded(self, rows: list[Row]) -> Iterator[Completion]:
        waiting, batch = deque(rows), None
        while waiting or (batch and batch.live()):
            try:
                room = self.batch_size if batch is None else batch.room(len(waiting[0].prompt.ids)) if waiting else 0
                if waiting and room:
                    new = Batch(self, [waiting.popleft() for _ in range(min(room, len(waiting)))])
                    ended = new.step()
                    batch = batch.joined(new) if batch else new
                elif batch:
                    ended = batch.step()
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{self.batch_size} replies at once do not fit into the accelerator's memory: lower batch_size."
                ) from error
            yield from ended

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
        if room < 1:
            reason = f"the prompt has {len(prompt.ids)} tokens, but the model only {self.positions} positions"
            return failed(request, prompt.opened, reason)
        scored = [ids[0] for ids in chat.encode(self.tokenizer, list(request.score))] if request.score else []
        return Row(request, prompt, room, adapter, torch.Generator().manual_seed(request.seed), scored)

    def _adapter(self, path: str | None) -> str:
        """Return PEFT's name for an adapter folder, which is loaded if it is new."""
        if path is None:
            return BASE
        folder = Path(path).resolve()
        if folder not in self.adapters:
            check_adapter(folder, self.ref, supported=MIXABLE, remedy=REMEDY)
            self._load_adapter(folder, name := f"adapter{len(self.adapters)}")
            self.adapters[folder] = name
        return self.adapters[folder]

    def _load_adapter(self, folder: Path, name: str) -> None:
        options = {"adapter_name": name, "torch_device": str(self.model.device)}
        try:
            if self.loaded is None:
                self.loaded = PeftModel.from_pretrained(self.model, str(folder), **options)
            else:
                self.loaded.load_adapter(str(folder), **options)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"The adapter in {folder} does not fit the model {self.ref!r}: {reason}") from error
        self.loaded.eval().requires_grad_(False)
