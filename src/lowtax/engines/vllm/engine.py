"""Engine on vLLM in this process: the base and all checkpoints of all arms share one engine and one queue.

Adapters are never merged: every prompt carries its adapter, or none. Prompts are the token ids that the hf engine
reads, and replies are decoded with the same tokenizer. Of a model's generation_config only the end-of-turn tokens
count.

Four things differ from the hf engine:
- adapters have the precision of the model, not float32; on a GPU it must be a half precision;
- drawn replies come from other random numbers, and every reply may differ by rounding with the batch it shares;
- prompt and reply share the model's positions: hf generates one token more, which needs no position;
- where logits are not finite, vLLM generates some token and continues: no such row fails.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from jinja2 import TemplateError
from transformers import GenerationConfig

from lowtax.common.errors import UserError
from lowtax.data import chat
from lowtax.engines.base import Completion, Prompt, Prompter, Request
from lowtax.engines.vllm import adapters
from lowtax.engines.vllm.startup import Server, require
from lowtax.models import loading, quantised
from lowtax.models.adapter_fit import fitted


@dataclass(frozen=True)
class _Row:
    """A request in tokens.

    limit: maximum length of the reply. scored: tokens whose probability at the first step is requested.
    """

    request: Request
    prompt: Prompt
    limit: int
    scored: list[int]


class VLLM:
    """A model in vLLM, on as many GPUs as divide its attention heads. One call of `generate` at a time."""

    def __init__(self, model: str, precision: str, batch_size: int) -> None:
        quantised.refuse(precision, *quantised.VLLM)
        require()
        self.ref, self.where = model, loading.resolve(model)
        if self.where.endswith(".gguf"):
            raise UserError(f"The vllm engine reads no GGUF file, but the model is {self.where}: use the engine 'hf'.")
        self.tokenizer = loading.load_tokenizer(model)
        self.prompter = Prompter(self.tokenizer)
        self.ends = self._ends()
        self.adapters: dict[Path, adapters.Served] = {}  # vLLM's number of an adapter is its position, from 1
        self.loaded: set[Path] = set()
        self.server = Server(model, self.where, loading.precision(precision), batch_size)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield completions as they finish. Adapters are checked and loaded before the first.

        The first call starts vLLM. A later call with adapters of a larger rank, or with more adapters for a batch,
        starts it again and prints so.

        Raises:
            UserError: vLLM cannot serve an adapter, or cannot start.
        """
        folders = dict.fromkeys(Path(request.adapter).resolve() for request in requests if request.adapter is not None)
        for folder in folders:
            if folder not in self.adapters:
                served = adapters.check(folder)
                fit = fitted(folder, self.ref, supported=("fan_in_fan_out",))
                self.adapters[folder] = replace(served, folder=fit.folder)
        if self.server.ready([adapter.rank for adapter in self.adapters.values()]):
            self.loaded.clear()
        for folder in folders:
            if folder not in self.loaded:
                self._load_adapter(folder)
        return self._completions(requests)

    def _load_adapter(self, folder: Path) -> None:
        try:
            self.server.up[0].llm_engine.add_lora(self._lora(str(folder)))
        except (ValueError, RuntimeError) as error:
            reason = shorten(str(error), 200)
            raise UserError(f"The adapter in {folder} does not fit the model {self.ref!r}: {reason}") from error
        self.loaded.add(folder)

    def _lora(self, adapter: str | None) -> Any:
        """Return vLLM's reference to an adapter folder; None for the model itself."""
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        folder = Path(adapter).resolve()
        return LoRARequest(str(folder), 1 + list(self.adapters).index(folder), str(self.adapters[folder].folder))

    def _completions(self, requests: Sequence[Request]) -> Iterator[Completion]:
        from vllm.exceptions import VLLMError
        from vllm.inputs import tokens_input

        engine = self.server.up[0].llm_engine
        positions = engine.vllm_config.model_config.max_model_len
        loras = {adapter: self._lora(adapter) for adapter in {request.adapter for request in requests}}
        waiting: dict[str, _Row] = {}
        try:
            for number, request in enumerate(requests):
                row = self._row(request, positions)
                if isinstance(row, Completion):
                    yield row
                    continue
                lora = loras[request.adapter]
                try:
                    engine.add_request(
                        str(number), tokens_input(row.prompt.ids), self._sampling(row), lora_request=lora
                    )
                except VLLMError as error:
                    yield _failed(request, row.prompt.opened, f"vLLM refuses the request: {error}")
                    continue
                waiting[str(number)] = row
            while waiting:
                for output in engine.step():
                    if output.finished:
                        yield self._completion(waiting.pop(output.request_id), output.outputs[0])
        finally:  # also if the caller stops early
            engine.abort_request(list(waiting))

    def _row(self, request: Request, positions: int) -> _Row | Completion:
        """Return the request as tokens, or a failed completion with the reason why it cannot be served."""
        try:
            prompt = self.prompter.prompt(request)
        except TemplateError as error:
            return _failed(request, False, f"the chat template refuses the messages: {error}")
        limit = min(request.max_new_tokens, positions - len(prompt.ids))
        if limit < 1:
            reason = f"the prompt has {len(prompt.ids)} tokens, but vLLM has {positions} positions for it and its reply"
            return _failed(request, prompt.opened, reason)
        scored = [ids[0] for ids in chat.encode(self.tokenizer, list(request.score))] if request.score else []
        return _Row(request, prompt, limit, scored)

    def _sampling(self, row: _Row) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        return SamplingParams(
            temperature=row.request.temperature,
            top_p=row.request.top_p,
            top_k=row.request.top_k,
            seed=row.request.seed,
            max_tokens=row.limit,
            stop_token_ids=sorted(self.ends),
            logprob_token_ids=sorted(set(row.scored)) or None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, row: _Row, output: Any) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            return _failed(row.request, row.prompt.opened, f"vLLM ended the reply with {output.finish_reason!r}")
        tokens = list(output.token_ids)
        if tokens and tokens[-1] in self.ends:
            tokens.pop()
        scores = tuple(math.exp(output.logprobs[0][token].logprob) for token in row.scored)
        return self.prompter.completion(row.request, row.prompt, tokens, output.finish_reason, scores)

    def _ends(self) -> frozenset[int]:
        """Return the tokens that end a reply, the same as in the hf engine."""
        try:
            eos = GenerationConfig.from_pretrained(self.where).eos_token_id
        except OSError:  # a model without generation_config.json
            eos = GenerationConfig.from_model_config(loading.load_config(self.ref)).eos_token_id
        ends = {self.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        if not ends:
            raise UserError(f"The model {self.ref!r} names no end-of-turn token: set eos_token_id in its tokenizer.")
        return chat.stops(self.tokenizer, {int(token) for token in ends})


def _failed(request: Request, opened: bool, reason: str) -> Completion:
    return Completion(request.id, "", 0, "failed", opened, reason)
