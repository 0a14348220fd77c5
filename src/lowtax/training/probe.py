"""The probe of a training run: what methods may read of the running model; and methods attached to what is trained.

The model has the weights as methods left them, and is in evaluation mode while it is read. Rows are read in the order
of their source, so that every process and every call gets the same result. What passes through a module is summed up
example by example; no more than one example is kept.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lowtax.common.errors import UserError
from lowtax.data import specs, training_sets
from lowtax.data.chat import Thinking, Variables
from lowtax.data.conversations import Conversation
from lowtax.methods.base import Position
from lowtax.methods.loading import ActiveMethods, Methods
from lowtax.methods.running import Spread
from lowtax.methods.sites import FROZEN, Site, Sites, weight_of
from lowtax.models import quantised
from lowtax.models.names import matches, near, spelled_out
from lowtax.models.weights import open_weights
from lowtax.training import reading
from lowtax.training.encoding import Example, encode_all
from lowtax.training.objective import Objective, unwrap
from lowtax.training.packing import MAX_ROW, group_by_length, length, pack
from lowtax.training.parameters import TrainedParameters

TABLE_BYTES = 2 << 30  # of tables that `directions` sums up at a time
ROUNDING = 1e-10  # relative to the largest variance; a direction with less is rounding


class ModelProbe:
    """The `methods.base.Probe` of a model in training.

    objective: the loss of the model.
    trained: its trained parameters.
    tokenizer, max_length, thinking, variables, tags: for encoding the rows of a source.
    """

    def __init__(
        self,
        objective: Objective,
        trained: TrainedParameters,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        thinking: Thinking = "default",
        variables: Variables | None = None,
        tags: str | None = None,
    ) -> None:
        self.objective, self.trained, self.tokenizer = objective, trained, tokenizer
        self.form = (max_length, thinking, variables, tags)
        self.device = unwrap(objective.model).device
        self._examples: dict[str, list[Example]] = {}
        self._rows: dict[str, list[Conversation]] = {}

    def examples(self, source: str) -> list[Example]:
        """Return the rows of a `data` entry as tokens; they are read once."""
        if source not in self._examples:
            self._examples[source] = encode_all(self.tokenizer, self.conversations(source), *self.form).examples
        return self._examples[source]

    def conversations(self, source: str) -> list[Conversation]:
        """Return the rows of a `data` entry; they are read once."""
        if source not in self._rows:
            loaded = training_sets.load(specs.parse(source), 0)
            loaded.announce()
            self._rows[source] = loaded.rows
        return self._rows[source]

    def weight(self, name: str) -> Float[Tensor, "out in"]:
        """Return the weight of a linear layer as a whole.

        Raises:
            UserError: There is no such layer.
        """
        layer = unwrap(self.objective.model).get_submodule(name) if self._starts(name) else None
        return self.trained.whole(quantised.plain(self.linear(name).weight)) if layer is None else weight_of(layer)

    def _starts(self, name: str) -> bool:
        """Test whether a linear layer has a frozen adapter that training starts from."""
        layer = dict(unwrap(self.objective.model).named_modules()).get(name)
        return isinstance(layer, LoraLayer) and FROZEN in layer.r

    def linear(self, name: str) -> nn.Linear:
        """Return a linear layer without PEFT's wrapper.

        Raises:
            UserError: There is no such layer.
        """
        modules = dict(unwrap(self.objective.model).named_modules())
        layer = modules.get(f"{name}.base_layer", modules.get(name))
        if not isinstance(layer, nn.Linear):
            raise UserError(f"The model has no linear layer {name}, which a method reads: check the method's modules.")
        return layer

    def rows_before(self, first: str, second: str, units: Tensor) -> Tensor:
        """Return the output rows of module `first` that produce the given input channels of module `second`.

        Rows of v_proj serve all heads of a group; rows of other modules serve one channel each.
        """
        if not second.endswith("o_proj"):
            return units
        config = unwrap(self.objective.model).config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads  # not all say it
        per = self.linear(second).in_features // self.linear(first).out_features
        rows: Tensor = (units.div(size * per, rounding_mode="floor") * size + units % size).unique()  # type: ignore[no-untyped-call]
        return rows

    def variances(self, source: str, names: Iterable[str]) -> dict[str, Float[Tensor, " in"]]:
        """Return, for each input channel of a module, the sample variance over all tokens of the rows, in float64."""
        spread, names = Spread(), list(names)
        for name in names:
            self.linear(name)  # refuses other modules
        self._watch(source, names, spread.add, replies_only=False)
        return spread.variances()

    def directions(self, source: str, names: Iterable[str], k: int) -> dict[str, Float[Tensor, "out k"]]:
        """Return the k strongest left singular vectors of W X', X being the inputs at the tokens of the replies.

        X'X or W X'X W' is summed, whichever is smaller, and decomposed in float64. Fewer than k are returned if there
        are no more.
        """
        strongest = dict[str, Tensor]()
        for group in self._groups(names):
            tables = dict[str, Tensor]()
            starts = {name: self.weight(name) for name in group if self._starts(name)}

            def see(
                name: str, x: Tensor, tables: dict[str, Tensor] = tables, starts: dict[str, Tensor] = starts
            ) -> None:
                linear = self.linear(name)  # sharded weights are whole while their module runs
                W = starts[name] if name in starts else quantised.plain(linear.weight)
                x = (x if linear.out_features > linear.in_features else x @ W.float().T).double()
                tables[name] = tables[name].addmm_(x.T, x) if name in tables else x.T @ x

            self._watch(source, group, see, replies_only=True)
            strongest |= {name: _strongest(tables.pop(name), self.weight(name), k) for name in group}
        return strongest

    def gradients(self, source: str, sites: Sites) -> dict[str, tuple[Tensor, ...]]:
        """Return the gradients of the rows' mean loss per token: for each site of A and B, or of W if that moves.

        They are in float32, and the same in all processes.
        """
        live = {id(copy): p for p, copy in zip(self.trained.live, self.trained.master, strict=True)}
        by_site = {name: [live[id(p)] for p in site.moved()] for name, site in sites.items()}
        leaves = [p for ps in by_site.values() for p in ps]
        examples = self.examples(source)
        sums = [torch.zeros((), device=self.device) for _ in leaves]
        with self.evaluating():
            lengths, most = [length(e) for e in examples], self.objective.most_examples
            for members in group_by_length(lengths, MAX_ROW[self.device.type], most):
                loss = self.objective(pack([examples[i] for i in members]).to(self.device))
                sums = [a + b.float() for a, b in zip(sums, self.trained.derivatives(loss, leaves), strict=True)]
        self._average(sums)
        tokens, remaining = sum(len(e.completion) for e in examples), iter(sums)
        return {name: tuple(next(remaining) / tokens for _ in ps) for name, ps in by_site.items()}

    def _average(self, gradients: Sequence[Tensor]) -> None:
        """Make gradients the same in all processes: kernels may differ in the last bits, and processes must not."""
        if torch.distributed.is_initialized():
            for total in gradients:
                torch.distributed.all_reduce(total)
                total /= torch.distributed.get_world_size()

    def states(self, source: str, layer: int, position: Position, steer: str | None = None) -> Float[Tensor, "n size"]:
        """Return the hidden states after a layer at one position of each row, in float32.

        Raises:
            UserError: There is no such layer, or a row has no thought whose end is the position.
        """
        return reading.states(self, reading.cut(self, source, position, steer), layer)

    def state_gradients(
        self,
        source: str,
        sites: Sites,
        layer: int,
        position: Position,
        members: Sequence[int],
        loss: Callable[[Float[Tensor, "n size"]], Float[Tensor, ""]],
    ) -> tuple[float, dict[str, tuple[Tensor, ...]]]:
        """Return a loss of the states of some rows, and its gradients: for each site of A and B."""
        texts = reading.cut(self, source, position, None)
        live = {id(copy): p for p, copy in zip(self.trained.live, self.trained.master, strict=True)}
        by_site = {name: [live[id(p)] for p in site.moved()] for name, site in sites.items()}
        leaves = [p for ps in by_site.values() for p in ps]
        with self.evaluating():
            value = loss(reading.packed_states(self, [texts[i] for i in members], layer))
            unused = sum(0 * p.sum() for p in leaves)  # tensors above the layer have a gradient of zero
            derivatives = [d.float() for d in self.trained.derivatives(value + unused, leaves)]
        self._average(derivatives)
        parts = iter(derivatives)
        return float(value.detach()), {name: tuple(next(parts) for _ in ps) for name, ps in by_site.items()}

    def weights(self, ref: str) -> Mapping[str, Tensor]:
        """Return the linear weights of another checkpoint by module, each read when it is accessed."""
        return open_weights(ref)

    def mean_states(self, source: str, n: int) -> NoReturn:
        """Raise a UserError: only edits read the residual stream."""
        raise UserError("The states after prompts are read by edits alone: give this method to `lowtax edit`.")

    def writers(self) -> NoReturn:
        """Raise a UserError: only edits read the residual stream."""
        raise UserError("What writes to the residual stream is read by edits alone: give this method to `lowtax edit`.")

    def trials(self, directions: Tensor, harmful: str, ordinary: str, used: int, n: int) -> NoReturn:
        """Raise a UserError: only edits read the residual stream."""
        raise UserError("Directions are tried out by edits alone: give this method to `lowtax edit`.")

    def _groups(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Yield the names in groups whose tables fit in `TABLE_BYTES`."""
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
        """Call `see` with the name of a module and its inputs, (tokens, in) in float32, for every example."""
        inner = unwrap(self.objective.model)
        part = slice(None)

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, inputs: see(name, inputs[0][0, part].float())

        handles = [inner.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        try:
            with self.evaluating():
                for e in self.examples(source):
                    part = slice(len(e.prompt) if replies_only else 0, len(e.prompt) + len(e.completion))
                    if self.objective.direct:
                        ids = torch.tensor([e.prompt + e.completion], device=self.device)
                        inner.get_decoder()(input_ids=ids, use_cache=False)  # without a layout, layers are not fused
                    else:  # sharded weights are gathered by the whole forward pass, which omits the last token
                        self.objective(pack([replace(e, completion=[*e.completion, 0])]).to(self.device))
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Publish the methods' weights, and run the model in evaluation mode inside the block."""
        self.trained.publish()
        training = self.objective.training
        self.objective.eval()
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.objective.train(training)


def _strongest(table: Tensor, weight: Tensor, k: int) -> Tensor:
    """Return the k strongest left singular vectors of W X' in float32, from a table of W X'X W' or X'X."""
    S, V = torch.linalg.eigh(table)
    if len(table) < len(weight):
        F = weight.double() @ (V * S.clamp(min=0).sqrt())
        S, V = torch.linalg.eigh(F.T @ F)
        V = (F @ V) / S.clamp(min=ROUNDING * float(S[-1])).sqrt()
    real = int((S / S[-1].clamp(min=1e-300) > ROUNDING).sum())
    return torch.flip(V, (1,))[:, : min(k, real)].float().contiguous()


def attach(methods: Methods, model: nn.Module, trained: TrainedParameters) -> ActiveMethods:
    """Attach methods to what is trained: to LoRA, or to whole weights if every method can act on them.

    Raises:
        UserError: A method finds nothing to act on, or cannot act on what it finds.
    """
    if isinstance(model, PeftModel) or not all(one.method.whole for one in methods.configured):
        parts = [(method, trained.sites(sites)) for method, sites in methods.on(model).parts]
    else:
        parts = [
            (one.method, _whole_sites(model, trained, one.only, one.method.everything)) for one in methods.configured
        ]
    return ActiveMethods(parts).check()


def _whole_sites(
    model: nn.Module, trained: TrainedParameters, only: Sequence[str] | None, everything: bool = False
) -> Sites:
    """Return the trained weights of linear layers, and their biases as NAME.bias, as sites of rank 0.

    Args:
        model: the model.
        trained: its trained parameters.
        only: names of the linear layers to take; all if None.
        everything: if all are taken, also take what is not in a linear layer, by the names of its parameters.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sites = {}
    for live, master in zip(trained.live, trained.master, strict=True):
        module, _, kind = names[id(live)].rpartition(".")
        if module in linear:
            name = module if kind == "weight" else f"{module}.{kind}"
        elif everything and only is None:
            name = names[id(live)]
        else:
            continue
        out, inp = (*master.shape, 1)[0], (1, *master.shape)[-1]  # also of a number
        sites[name] = Site(name, master, master.new_empty(0, inp), master.new_empty(out, 0), 0)
    for pattern in spelled_out(only or ()):
        if not any(matches(pattern, name) for name in linear):
            raise UserError(f"only: {pattern!r} matches no linear layer; {near(pattern, sorted(linear))}")
    patterns = [f"(?:{pattern})(?:\\.bias)?" for pattern in spelled_out(only or (".*",))]
    return {name: site for name, site in sites.items() if any(matches(pattern, name) for pattern in patterns)}
