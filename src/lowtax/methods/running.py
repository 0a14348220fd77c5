"""A model with an adapter that edits run: its mean states after prompts, and variances of what enters its layers.

It also tries directions out: with one removed from all that is written, how likely is a refusal still, and how much
else changes?
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowtax.common.errors import UserError
from lowtax.common.log import counted
from lowtax.common.records import Prompt
from lowtax.data import chat, prompt_sets, row_tokens, special_tokens, specs, training_sets
from lowtax.models import loading
from lowtax.models.adapter_fit import fitted, unfit
from lowtax.models.names import in_layer, layer_of

WRITERS = ("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "dense_4h_to_h", "wo", "w2")
"""Last names of the linear layers whose output is added to the residual stream."""
MAX_TOKENS = 4096  # of a row; longer ones lose their end
OPENINGS = ("I", "As", "Sorry", "Unfortunately")
"""Beginnings of refusals; of each the first token counts."""


@dataclass(frozen=True)
class Trial:
    """The effect of removing one direction from all residual writes, on prompts that did not give it.

    refusal: the mean log-odds that an answer to a harmful request begins as a refusal.
    harm: the mean KL divergence, in nats, of the first token's distribution after ordinary requests, from before.
    """

    refusal: float
    harm: float


def writers(names: Iterable[str]) -> list[str]:
    """Return the names of the linear layers that write to the residual stream.

    Raises:
        UserError: There are none.
    """
    chosen = [name for name in names if layer_of(name) is not None and in_layer(name).rpartition(".")[2] in WRITERS]
    if not chosen:
        raise UserError(f"The model has no linear layers that are named {', '.join(WRITERS[:3])} or alike.")
    return chosen


class Spread:
    """The sample variance of each input channel of some modules, from sums in float64."""

    def __init__(self) -> None:
        self._sums, self._tokens = dict[str, Tensor](), dict[str, int]()

    def add(self, name: str, x: Float[Tensor, "tokens in"]) -> None:
        """Add the inputs of a module at some tokens."""
        x = x.double()
        sums = torch.stack([x.sum(0), x.square().sum(0)]).cpu()
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        self._tokens[name] = self._tokens.get(name, 0) + len(x)

    def variances(self) -> dict[str, Float[Tensor, " in"]]:
        """Return the variances of each module that two tokens or more have reached."""
        return {
            name: (square - total.square() / n) / (n - 1)
            for name, (total, square) in self._sums.items()
            if (n := self._tokens[name]) > 1
        }


class RunningModel:
    """A model, with an adapter if there is one, in float32. It is loaded when it is first read."""

    def __init__(self, ref: str, adapter: Path | None) -> None:
        self.ref, self.adapter = ref, adapter
        self._model: PreTrainedModel | PeftModel | None = None

    @torch.no_grad()
    def states(self, source: str, n: int) -> Float[Tensor, "layers hidden"]:
        """Return the mean state after each layer but the last, at the last token of the prompts of a set.

        Raises:
            UserError: There is no such set.
        """
        prompts = prompt_sets.load(source, split=_training_split(source), n=n, seed=0).prompts
        tokenizer, model = loading.load_tokenizer(self.ref), self._loaded()
        total: Tensor | None = None
        for prompt in prompts:
            messages = special_tokens.disarm_messages(tokenizer, [{"role": "user", "content": prompt.text}])
            ids = special_tokens.encode(tokenizer, chat.generation_prompt(tokenizer, messages))
            inputs = torch.tensor([ids], device=model.device)
            hidden = model(input_ids=inputs, use_cache=False, output_hidden_states=True).hidden_states
            states = _last(hidden[1:-1])  # the last one is behind the final norm
            total = states if total is None else total + states
        assert total is not None
        return total / len(prompts)

    @torch.no_grad()
    def variances(self, source: str, names: Iterable[str]) -> dict[str, Float[Tensor, " in"]]:
        """Return, for each input channel of a module, the sample variance over all tokens of the rows of a source.

        Modules that no token reaches are left out. A row has its own forward pass, and at most `MAX_TOKENS` tokens.

        Raises:
            UserError: There are no such rows, or the chat template refuses one.
        """
        loaded = training_sets.load(specs.parse(source), 0)
        loaded.announce()
        tokenizer, model = loading.load_tokenizer(self.ref), self._loaded()
        around, spread = chat.turn(tokenizer), Spread()
        texts = [row_tokens.text_of(tokenizer, around, row) for row in loaded.rows]
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, inputs: spread.add(name, inputs[0].flatten(0, -2))

        handles = [inner.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        try:
            for prompt, completion in row_tokens.tokens_of(tokenizer, around, texts):
                ids = torch.tensor([[*prompt, *completion][:MAX_TOKENS]], device=model.device)
                inner.get_decoder()(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return spread.variances()

    @torch.no_grad()
    def trials(
        self, directions: Float[Tensor, "candidates hidden"], harmful: str, ordinary: str, used: int, n: int
    ) -> tuple[float, list[Trial]]:
        """Return the log-odds of a refusal as the model is, and a trial of each direction.

        An answer begins after an empty thought, where the model thinks. The prompts are those of the validation split
        of a built-in set; of another set, the ones after those that gave the directions.

        Args:
            directions: of norm 1, one for each candidate.
            harmful, ordinary: the sets of prompts.
            used: the number of prompts that gave the directions.
            n: the number of further ones of each set.

        Raises:
            UserError: A set has no further prompts.
        """
        tokenizer, model = loading.load_tokenizer(self.ref), self._loaded()
        bad, good = (
            [_answer_ids(tokenizer, prompt.text) for prompt in held_out(source, used, n)]
            for source in (harmful, ordinary)
        )
        openings = torch.tensor(sorted({ids[0] for ids in chat.encode(tokenizer, list(OPENINGS))}))
        before = [_log_probabilities(model, ids) for ids in good]
        refusal = _mean(_log_odds(_log_probabilities(model, ids), openings) for ids in bad)
        trials = []
        for r in counted(directions, len(directions), "directions tried"):
            with _removed(model, r):
                trials.append(
                    Trial(
                        _mean(_log_odds(_log_probabilities(model, ids), openings) for ids in bad),
                        _mean(
                            _divergence(old, _log_probabilities(model, i)) for old, i in zip(before, good, strict=True)
                        ),
                    )
                )
        return refusal, trials

    def _loaded(self) -> PreTrainedModel | PeftModel:
        if self._model is None:
            model = loading.load_model(self.ref, "float32").eval()
            self._model = model if self.adapter is None else _with_adapter(model, self.ref, self.adapter)
        return self._model


def _with_adapter(model: PreTrainedModel, ref: str, adapter: Path) -> PeftModel:
    with unfit(adapter, ref):
        return PeftModel.from_pretrained(model, str(fitted(adapter, ref).folder)).eval()


def _last(hidden: Sequence[Tensor]) -> Tensor:
    """Return the states of the last token after each layer, (layers, hidden), in float64 on the CPU."""
    return torch.stack([layer[0, -1].double().cpu() for layer in hidden])


def _training_split(source: str) -> str | None:
    return "train" if source in ("builtin:harmful", "builtin:ordinary") else None


def held_out(source: str, used: int, n: int) -> list[Prompt]:
    """Return n prompts of a set that are not among the `used` ones that `ResidualStream.states` takes.

    Raises:
        UserError: The set has none.
    """
    split = _training_split(source)
    if split is not None:
        return prompt_sets.load(source, split="validation", n=n, seed=0).prompts
    first = {prompt.id for prompt in prompt_sets.load(source, n=used, seed=0).prompts}
    more = [prompt for prompt in prompt_sets.load(source, n=used + n, seed=0).prompts if prompt.id not in first]
    if not more:
        raise UserError(
            f"All {len(first)} prompts of {source!r} give the directions, so that none are left to choose a layer by: "
            "lower n, or give a larger set."
        )
    return more


def _answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens after which the answer to a request begins; its thought, if the model thinks, is empty."""
    messages = special_tokens.disarm_messages(tokenizer, [{"role": "user", "content": text}])
    prompt = chat.generation_prompt(tokenizer, messages)
    markers = chat.markers_of(tokenizer)
    if markers.opens(prompt):
        prompt += markers.closing
    elif not markers.closes(prompt):
        prompt += markers.opening + markers.closing if chat.thinks(tokenizer) else markers.before_answer
    return special_tokens.encode(tokenizer, prompt)


@contextmanager
def _removed(model: PreTrainedModel | PeftModel, r: Float[Tensor, " hidden"]) -> Iterator[None]:
    """Let nothing but biases write along a direction of norm 1: what an edit of the weights does, without the edit."""
    plain: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = dict(plain.named_modules())
    handles = [modules[name].register_forward_hook(_without(r)) for name in writers(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without(r: Float[Tensor, " hidden"]) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        along, bias = r.to(output), getattr(module, "bias", None)
        written = output if bias is None else output - bias
        return output - (written @ along)[..., None] * along

    return hook


def _log_probabilities(model: PreTrainedModel | PeftModel, ids: list[int]) -> Float[Tensor, " vocabulary"]:
    """Return the log-probabilities of the next token, in float64 on the CPU."""
    logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    return torch.log_softmax(logits[0, -1].double().cpu(), dim=-1)


def _log_odds(log_probabilities: Float[Tensor, " vocabulary"], tokens: Tensor) -> float:
    inside = torch.zeros(len(log_probabilities), dtype=torch.bool)
    inside[tokens] = True
    return float(log_probabilities[inside].logsumexp(0) - log_probabilities[~inside].logsumexp(0))


def _divergence(before: Float[Tensor, " vocabulary"], after: Float[Tensor, " vocabulary"]) -> float:
    return float((before.exp() * (before - after)).sum())


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
