"""Our engines as a model of lm-evaluation-harness, `--model lowtax`. Checked against lm_eval 0.4.13.

As in `lowtax evaluate`, adapters are never merged, and every reply has its own seed. lm-eval receives the text after
the thought, and an empty text if the thought never ended; with `thoughts` it receives the whole text, which then begins
with `<think>`. Stop strings cut only the text after the thought.

lm-eval 0.4.13 finds models in its table and through `register_model`, not in installed packages. `main` registers this
one and calls lm-eval's command line: that is `lowtax lm-eval`.
"""

import dataclasses
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from lowtax.common import unused
from lowtax.common.errors import UserError
from lowtax.common.records import row_id
from lowtax.common.yaml_files import parse_yaml
from lowtax.data import chat, rendering
from lowtax.engines import base
from lowtax.engines.base import Completion, Request
from lowtax.interop.lm_eval_tasks import FOLDER
from lowtax.models import loading

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise UserError("lm-evaluation-harness is not installed: pip install 'lowtax[lm-eval]'.") from error

if TYPE_CHECKING:
    from lowtax.engines.hf.engine import HF

Pair = tuple[Any, list[int], list[int]]  # lm-eval's key, context, continuation
MESSAGES = '[{"role": '  # beginning of a conversation written by `apply_chat_template`
SAMPLING = {"do_sample", "temperature", "top_p", "top_k", "max_gen_toks", "until", "seed"}


class Lowtax(TemplateLM):  # type: ignore[misc]
    """A model with or without an adapter.

    Args:
        pretrained: builtin:NAME, a folder, a .gguf file or a hub id.
        adapter: a PEFT folder.
        engine: hf, vllm, openai, or file.py:Class. Tasks that compare likelihoods need hf.
        precision, thinking, chat_template_kwargs: as in a recipe; the last also as YAML in a string.
        thoughts: return whole replies to lm-eval.
        chat: without `--apply_chat_template`, read a context as a user's message; False: as text to be continued.
        seed: seed of all replies; that of one reply derives from it, the question and the number of the reply.
        max_gen_toks: default for tasks that do not set it.
        batch_size: `auto` is 64. The default of lm-eval's `--batch_size` is 1.
        device, max_batch_size: set by lm-eval and ignored; the engine uses the accelerator if there is one.
    """

    def __init__(
        self,
        pretrained: str,
        adapter: str | None = None,
        engine: str = "hf",
        precision: str = "auto",
        thinking: Literal["default", "on", "off"] = "default",
        chat_template_kwargs: Mapping[str, Any] | str | None = None,
        thoughts: bool = False,
        chat: bool = True,
        seed: int = 0,
        max_gen_toks: int = 32768,
        batch_size: int | str = 64,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.adapter, self.thinking, self.thoughts, self.chat = adapter, thinking, thoughts, chat
        text = chat_template_kwargs
        self.variables: Mapping[str, Any] = parse_yaml(text) if isinstance(text, str) else text or {}
        self.seed, self.max_gen_toks = seed, max_gen_toks
        self.batch_size = 64 if str(batch_size).startswith("auto") else int(batch_size)
        self.pretrained = str(pretrained)
        self.engine_name = engine
        self.engine = base.load(engine, self.pretrained, loading.precision(precision), self.batch_size)
        self._tokenizer: Any = None

    # --- tokens and templates

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the model, for tasks that need one."""
        if self._tokenizer is None:
            self._tokenizer = loading.load_tokenizer(self.pretrained)
        return self._tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval caches requests."""
        return self.pretrained.replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        """Token before a text without context, if the tokenizer has no bos token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token before a text without context."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids, by default with the special tokens that the tokenizer adds."""
        start = self.tokenizer.bos_token
        if add_special_tokens is None and start and string.startswith(start):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template, for lm-eval's record of a run."""
        return str(self.tokenizer.chat_template or "") if self.engine_name == "hf" else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the conversation as JSON, which the engine renders."""
        return json.dumps([{"role": turn["role"], "content": turn["content"]} for turn in chat_history])

    # --- replies

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a text for every request; repeated requests of one question have different seeds."""
        samples: Counter[str] = Counter()
        ours, stops = [], []
        for number, instance in enumerate(requests):
            context, gen_kwargs = instance.args
            question = instance.doc["id"] if "lowtax" in instance.doc else context
            settings = self._settings(gen_kwargs)
            ours.append(self._request(str(number), context, settings, question, samples[question]))
            stops.append([stop for stop in settings["until"] if stop])
            samples[question] += 1
        texts, errors = [""] * len(ours), []
        for completion in self.engine.generate(ours):
            number = int(completion.id)
            errors += [str(completion.error)] if completion.finish == "failed" else []
            texts[number] = self._text(completion, stops[number])
            self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        if errors:
            logging.getLogger(__name__).warning(
                "%d of %d replies FAILED and count as unfinished: %s", len(errors), len(ours), errors[0]
            )
        return texts

    def _settings(self, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return sampling settings as lm-eval names them; settings that our engines lack are refused, not ignored."""
        settings: dict[str, Any] = normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)
        if unknown := sorted(set(settings) - SAMPLING):
            raise UserError(
                f"The model lowtax does not know the generation setting {unknown[0]!r}; it knows "
                f"{', '.join(sorted(SAMPLING))}."
            )
        temperature = settings.get("temperature", 0.0) if "temperature" in gen_kwargs else float(settings["do_sample"])
        return settings | {"temperature": temperature}

    def _request(self, name: str, context: str, settings: dict[str, Any], question: str, sample: int) -> Request:
        turns = self._turns(context)
        prefix = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
        return Request(
            id=name,
            messages=tuple(turns),
            raw=() if turns else (self.tokenizer.decode(self.tok_encode("")), context),
            prefix=prefix,
            adapter=self.adapter,
            max_new_tokens=settings["max_gen_toks"],
            temperature=settings["temperature"],
            top_p=float(settings.get("top_p", 1.0)),
            top_k=max(0, int(settings.get("top_k") or 0)),
            seed=int(row_id(settings.get("seed", self.seed), question, sample), 16) % 2**31,
            thinking=self.thinking,
            variables=self.variables,
        )

    def _turns(self, context: str) -> list[dict[str, str]]:
        """Return the conversation in a context; empty if the context is text to be continued."""
        if context.startswith(MESSAGES):
            return cast(list[dict[str, str]], json.loads(context))
        return [{"role": "user", "content": context}] if self.chat else []

    def _text(self, completion: Completion, stops: Sequence[str]) -> str:
        parts = completion.parts()
        thinks = completion.opened or parts.answer != completion.text.strip()
        answer = parts.answer if thinks else completion.text
        for stop in stops:
            answer = answer.split(stop)[0]
        if not (self.thoughts and thinks):
            return answer
        return f"{rendering.OPEN}\n{parts.thought}" + (f"\n{rendering.CLOSE}\n\n{answer}" if parts.closed else "")

    # --- likelihoods

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation after its context, and True if it is the greedy one."""
        self._hf()
        rendered = [self._rendered(instance) for instance in requests]
        return cast(list[tuple[float, bool]], super().loglikelihood(rendered, disable_tqdm=disable_tqdm))

    def _rendered(self, instance: Any) -> Any:
        """Return the request with its conversation rendered as text."""
        context, continuation = instance.args
        if not context.startswith(MESSAGES):
            return instance
        turns = json.loads(context)
        prefix = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
        text = chat.generation_prompt(self.tokenizer, turns, self.thinking, self.variables) + prefix
        return dataclasses.replace(instance, arguments=(text, continuation))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, every token counted once, in windows of the model's length."""
        windows: list[Pair] = []
        for number, instance in enumerate(requests):
            ids = self.tok_encode(instance.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self._longest(), 1):
                windows.append((number, *make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        for (number, *_), (value, _) in zip(windows, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        """Score token ids; lm-eval's `loglikelihood` calls this."""
        from lowtax.engines.hf import likelihood

        return likelihood.score(self._hf(), self.adapter, [pair[1:] for pair in requests], self._longest())

    def _longest(self) -> int:
        return self._hf().positions or self.max_gen_toks

    def _hf(self) -> "HF":
        from lowtax.engines.hf.engine import HF

        if not isinstance(self.engine, HF):
            raise UserError(
                f"The engine {self.engine_name!r} generates texts but does not score given ones, as this task "
                "requires: use engine=hf, or a task that generates."
            )
        return self.engine


def main(arguments: Sequence[str]) -> None:
    """Run lm-eval's command line with the model `lowtax`, and with our tasks unless another folder is included."""
    unused.let_in()
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if "lowtax" not in model_registry:
        model_registry.register("lowtax", target=Lowtax)
    included = any(word.split("=")[0] == "--include_path" for word in arguments)
    without_tasks = included or not arguments or arguments[0] in ("ls", "validate")
    sys.argv = ["lm-eval", *arguments, *([] if without_tasks else ["--include_path", str(FOLDER)])]
    cli_evaluate()
