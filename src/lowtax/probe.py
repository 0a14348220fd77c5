"""What a method may ask of the model in training: what enters its layers, gradients, another checkpoint's weights.

The model has the weights as methods left them, and is in evaluation mode meanwhile. Rows are read in the order of their
source, so that every process and every call gets the same answer. What passes through is summed up example by example;
no more than one is kept.

Also here: whole weights seen as sites (of rank 0, W itself moves).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import torch
from jaxtyping import Float
from peft import PeftModel
from pydantic import AfterValidator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lowtax.checkpoints import Weights
from lowtax.data import specs, training_sets
from lowtax.data.chat import Example
from lowtax.encoding import encode_all
from lowtax.errors import UserError
from lowtax.methods import Attached, Methods
from lowtax.names import matches, near, spelled_out
from lowtax.objective import Objective, bare
from lowtax.packing import MAX_ROW, length, pack, rows
from lowtax.sites import Site, Sites

TABLE_BYTES = 2 << 30  # of tables that `directions` sums up at a time
NONE = 1e-10  # of the largest variance: below it a direction is rounding


def _read(text: str) -> str:
    """UserError if the text is no `data` entry with answers."""
    if specs.parse(text).answers == "self":
        raise UserError(f"A method looks at rows that have answers: leave answers=self out of {text!r}.")
    return text


Rows = Annotated[str, AfterValidator(_read)]  # a `data` entry in its one-line form, such as builtin:refusals,n=128


class Probe:
    """The model in training, asked by methods. Modules have the names of sites, and need not be sites themselves."""

    def __init__(
        self,
        objective: Objective,
        trained: Weights,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        thinking: Any = "default",
    ) -> None:
        self.objective, self.trained, self.tokenizer = objective, trained, tokenizer
        self.max_length, self.thinking = max_length, thinking
        self.device = bare(objective.model).device
        self._examples: dict[str, list[Example]] = {}

    def examples(self, source: str) -> list[Example]:
        """The rows of a `data` entry as tokens, read once."""
        if source not in self._examples:
            found = training_sets.load(specs.parse(source), 0).rows
            self._examples[source] = encode_all(self.tokenizer, found, self.max_length, self.thinking).examples
        return self._examples[source]

    def weight(self, name: str) -> Float[Tensor, "out in"]:
        """Of the linear layer of that name, whole."""
        return self.trained.whole(self.linear(name).weight)

    def linear(self, name: str) -> nn.Linear:
        """The linear layer of that name, without what PEFT put around it.

        Raises:
            UserError: There is none.
        """
        modules = dict(bare(self.objective.model).named_modules())
        found = modules.get(f"{name}.base_layer", modules.get(name))
        if not isinstance(found, nn.Linear):
            raise UserError(f"The model has no linear layer {name}, which a method needs to look at.")
        return found

    def rows_before(self, first: str, second: str, units: Tensor) -> Tensor:
        """The rows of `first` that make the given channels of what enters `second`: those of v_proj serve the heads of
        a group, all others one channel each."""
        if not second.endswith("o_proj"):
            return units
        config = bare(self.objective.model).config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads  # not all say it
        per = self.linear(second).in_features // self.linear(first).out_features
        rows: Tensor = (units.div(size * per, rounding_mode="floor") * size + units % size).unique()  # type: ignore[no-untyped-call]
        return rows

    def variances(self, source: str, names: Iterable[str]) -> dict[str, Float[Tensor, " in"]]:
        """Of each channel that enters a module, the sample variance over all tokens of the rows; float64."""
        sums = {name: torch.zeros(2, self.linear(name).in_features, dtype=torch.float64) for name in names}
        tokens = sum(len(e.prompt) + len(e.completion) for e in self.examples(source))

        def see(name: str, x: Tensor) -> None:
            x = x.double()
            sums[name] += torch.stack([x.sum(0), x.square().sum(0)]).cpu()

        self._watch(source, list(sums), see, replies_only=False)
        return {name: (square - total.square() / tokens) / (tokens - 1) for name, (total, square) in sums.items()}

    def directions(self, source: str, names: Iterable[str], k: int) -> dict[str, Float[Tensor, "out k"]]:
        """The k strongest left singular vectors of W X', X being what enters a module at the tokens of the replies.

        X'X or W X'X W' is summed, whichever is the smaller, and decomposed in float64. Fewer than k are returned where
        there are no more.
        """
        found = dict[str, Tensor]()
        for group in self._groups(names):
            tables = dict[str, Tensor]()

            def see(name: str, x: Tensor, tables: dict[str, Tensor] = tables) -> None:
                linear = self.linear(name)  # sharded weights are whole while their module runs
                x = (x if linear.out_features > linear.in_features else x @ linear.weight.float().T).double()
                tables[name] = tables[name].addmm_(x.T, x) if name in tables else x.T @ x

            self._watch(source, group, see, replies_only=True)
            found |= {name: _strongest(tables.pop(name), self.weight(name), k) for name in group}
        return found

    def gradients(self, source: str, sites: Sites) -> dict[str, tuple[Tensor, ...]]:
        """Of the rows' mean loss a token: for each site of A and B, or of W where that moves; float32."""
        live = {id(copy): p for p, copy in zip(self.trained.live, self.trained.master, strict=True)}
        wanted = {name: [live[id(p)] for p in site.moved()] for name, site in sites.items()}
        leaves = [p for ps in wanted.values() for p in ps]
        found = self.examples(source)
        sums = [torch.zeros((), device=self.device) for _ in leaves]
        with self._evaluating():
            for members in rows([length(e) for e in found], MAX_ROW[self.device.type]):
                loss = self.objective(pack([found[i] for i in members]).to(self.device))
                sums = [a + b.float() for a, b in zip(sums, self.trained.derivatives(loss, leaves), strict=True)]
        if torch.distributed.is_initialized():  # kernels may differ in the last bits, and processes must not
            for total in sums:
                torch.distributed.all_reduce(total)
                total /= torch.distributed.get_world_size()
        tokens, left = sum(len(e.completion) for e in found), iter(sums)
        return {name: tuple(next(left) / tokens for _ in ps) for name, ps in wanted.items()}

    def weights(self, ref: str) -> Mapping[str, Tensor]:
        """The linear weights of another checkpoint by module, read when asked for."""
        from lowtax.weights import open_weights

        return open_weights(ref)

    def _groups(self, names: Iterable[str]) -> Iterator[list[str]]:
        """The names, in groups whose tables fit `TABLE_BYTES`."""
        group, room = list[str](), TABLE_BYTES
        for name in names:
            size = 8 * min(self.linear(name).in_features, self.linear(name).out_features) ** 2
            if group and size > room:
                yield group
                group, room = [], TABLE_BYTES
            group.append(name)
            room -= size
        if group:
            yield group

    @torch.no_grad()
    def _watch(self, source: str, names: Sequence[str], see: Callable[[str, Tensor], None], replies_only: bool) -> None:
        """Call `see` with the name of a module and what enters it, (tokens, in) in float32, for every example."""
        inner = bare(self.objective.model)
        part = slice(None)

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, entered: see(name, entered[0][0, part].float())

        handles = [inner.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        try:
            with self._evaluating():
                for e in self.examples(source):
                    part = slice(len(e.prompt) if replies_only else 0, len(e.prompt) + len(e.completion))
                    if self.objective.direct:
                        ids = torch.tensor([e.prompt + e.completion], device=self.device)
                        inner.get_decoder()(input_ids=ids, use_cache=False)  # without a layout, layers run unfused
                    else:  # sharded weights come together on the way through the whole; its last token is not run
                        self.objective(pack([replace(e, completion=[*e.completion, 0])]).to(self.device))
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.trained.publish()
        training = self.objective.training
        self.objective.eval()
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.objective.train(training)


def _strongest(table: Tensor, weight: Tensor, k: int) -> Tensor:
    """The strongest left singular vectors of W X', from W X'X W' or X'X; float32."""
    S, V = torch.linalg.eigh(table)
    if len(table) < len(weight):
        F = weight.double() @ (V * S.clamp(min=0).sqrt())
        S, V = torch.linalg.eigh(F.T @ F)
        V = (F @ V) / S.clamp(min=NONE * float(S[-1])).sqrt()
    real = int((S / S[-1].clamp(min=1e-300) > NONE).sum())
    return torch.flip(V, (1,))[:, : min(k, real)].float().contiguous()


def needed(probe: object, by: str) -> Probe:
    """The probe, if there is one."""
    if not isinstance(probe, Probe):
        raise UserError(f"{by} looks at the untrained model, which only training can show it.")
    return probe


def bind(chosen: Methods, model: nn.Module, trained: Weights) -> Attached:
    """The methods on what is trained, as they shall see it: LoRA, or whole weights where all of them can.

    Raises:
        UserError: There is nothing for them to act on.
    """
    if isinstance(model, PeftModel) or not all(b.method.whole for b in chosen.bound):
        return Attached([(method, trained.sites(sites)) for method, sites in chosen.on(model).parts])
    return Attached([(b.method, _whole_sites(model, trained, b.only)) for b in chosen.bound])


def _whole_sites(model: nn.Module, trained: Weights, only: Sequence[str] | None) -> Sites:
    """The weights of linear layers, and their biases as NAME.bias, as the optimiser has them."""
    names = {id(p): name for name, p in model.named_parameters()}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {}
    for live, master in zip(trained.live, trained.master, strict=True):
        module, _, kind = names[id(live)].rpartition(".")
        if module in linear:
            name = module if kind == "weight" else f"{module}.{kind}"
            found[name] = Site(name, master, master.new_empty(0, master.shape[-1]), master.new_empty(len(master), 0), 0)
    for pattern in spelled_out(only or ()):
        if not any(matches(pattern, name) for name in linear):
            raise UserError(f"only: {pattern!r} matches no linear layer; {near(pattern, sorted(linear))}")
    wanted = [f"(?:{pattern})(?:\\.bias)?" for pattern in spelled_out(only or (".*",))]
    return {name: site for name, site in found.items() if any(matches(pattern, name) for pattern in wanted)}
