"""Fused decoder layers: each half of a layer with frozen weights is one operation with its own gradient.

Eager autograd calls about three hundred small operations for a layer like Llama's, and on short rows on a CPU they take
most of the time between the matrix products. Here forward and gradient are written out: query, key and value in one
product, one gather instead of a transposition for each head, and few passes over what is only scaled or added. The
arithmetic is that of transformers and PEFT, with adapters in float32.

A layer fits if it is of a kind in `KINDS`, with frozen weights, and trains at most plain LoRA. Any other layer keeps
its own forward pass, and so does a row with an example longer than `LONGEST`. On a GPU layers are fused on request only
(`execution.fused`), since nobody has measured whether that is faster. `objective` compares the result with
transformers' before it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from lowtax.training.packing import Layout

KINDS = ("LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
LONGEST = 256  # padded tokens of an example, beyond which torch's own attention is faster
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
NETWORK = ("gate_proj", "up_proj", "down_proj")


# --- the parts of a layer


@dataclass(frozen=True)
class Norm:
    """RMSNorm; `weight` broadcasts against (tokens, ..., size)."""

    weight: Tensor
    eps: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normed x, and the factor of each row for the gradient: (..., 1), float32."""
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        factor = square.div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return torch.mul(x.float(), factor).to(x.dtype) * self.weight, factor

    def backward(self, grad: Tensor, x: Tensor, factor: Tensor) -> Tensor:
        """Return the gradient of x, in float32."""
        normed = torch.mul(x.float(), factor)
        scaled = (grad * self.weight).float()
        inner = (scaled * normed).mean(-1, keepdim=True)
        return torch.addcmul(scaled, normed, inner, value=-1).mul_(factor)


@dataclass(frozen=True)
class Adapter:
    """LoRA on one linear layer.

    site: name of the linear layer.
    columns: its columns in the product that the adapter is added to.
    """

    site: str
    columns: slice
    scale: float
    dropout: float


class Adapters:
    """The adapters of one call.

    specs: the adapters.
    weights: A and B of each.
    saved: for each, what backward needs: the input of A (after dropout), the product with A, and the dropout mask.
    grads: gradients of `weights`, after backward.
    """

    def __init__(self, specs: Sequence[Adapter], weights: Sequence[Tensor], saved: Sequence[Any] = ()) -> None:
        self.specs, self.weights, self.saved = specs, weights, list(saved)
        self.grads: list[Tensor | None] = [None] * len(weights)

    def add(self, sites: Sequence[str], inputs: Tensor, out: Tensor) -> None:
        """Add scale * B A x to the sites' columns of `out`, x being the inputs. Call it in the order of `specs`."""
        for number, adapter in enumerate(self.specs):
            if adapter.site in sites:
                a, b = self.weights[2 * number : 2 * number + 2]
                x, mask = inputs.to(a.dtype), None
                if adapter.dropout:
                    mask = torch.empty_like(x).bernoulli_(1 - adapter.dropout).div_(1 - adapter.dropout)
                    x = x * mask
                z = (x @ a.t()).mul_(adapter.scale)
                _add_product(out[:, adapter.columns], z, b.t())
                self.saved += [inputs if mask is None else x, z, mask]

    def backward(self, sites: Sequence[str], d_out: Tensor, d_inputs: Tensor | None) -> None:
        """Compute the gradients of A and B, and add the gradient of the inputs to `d_inputs`."""
        for number, adapter in enumerate(self.specs):
            if adapter.site in sites:
                a, b = self.weights[2 * number : 2 * number + 2]
                x, z, mask = self.saved[3 * number : 3 * number + 3]
                d = d_out[:, adapter.columns].to(b.dtype)
                d_z = (d @ b).mul_(adapter.scale)
                self.grads[2 * number : 2 * number + 2] = d_z.t() @ x.to(a.dtype), (z.t() @ d).t()
                if d_inputs is not None and mask is not None:
                    d_inputs.add_((d_z @ a).mul_(mask))
                elif d_inputs is not None:
                    _add_product(d_inputs, d_z, a)


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Compute out += left @ right in float32; adding float32 to bfloat16 in place takes twice as long."""
    out.copy_(out.float().addmm_(left, right))


def _onto(x: Tensor, product: Tensor, adapters: Adapters, site: str, inputs: Tensor) -> Tensor:
    """Return x plus the product of a site's frozen weight with its inputs, plus its adapter's; rounded once."""
    if product.dtype == torch.float32:
        out = product.add_(x)
        adapters.add((site,), inputs, out)
        return out
    out = product.float()
    adapters.add((site,), inputs, out)
    return out.add_(x).to(x.dtype)


class HeadGather:
    """Indices that bring the heads of a packed row into the order in which attention multiplies them.

    One object serves all layers. The joint product is seen as (tokens x heads, head size).

    take: gathers the queries as (groups, examples, heads of a group, longest), then keys and values as (groups,
        examples, longest).
    back: the inverse of `take`.
    query: the part of the inverse that belongs to queries.
    future: the causal mask, -inf at later tokens.
    """

    layout: Layout | None = None
    future: Tensor

    def prepare(self, layout: Layout, heads: int, groups: int) -> None:
        """Compute the indices of a row, unless they are those of the last call."""
        if self.layout is layout:
            return
        self.layout = layout
        n, longest = layout.pad.shape
        per, each, device = heads // groups, heads + 2 * groups, layout.pad.device
        group, token = torch.arange(groups, device=device), layout.pad * each
        member = torch.arange(per, device=device)
        head = group[:, None] * per + member
        query = token[None, :, None] + head[:, None, :, None]
        key = token[None] + heads + group[:, None, None]
        self.take = torch.cat([x.reshape(-1) for x in (query, key, key + groups)])
        line, place = layout.unpad.div(longest, rounding_mode="floor")[:, None], (layout.unpad % longest)[:, None]
        query = ((group.repeat_interleave(per) * n + line) * per + member.repeat(groups)) * longest + place
        key = (group * n + line) * longest + place + heads * n * longest
        self.query = query.reshape(-1)
        self.back = torch.cat([query, key, key + groups * n * longest], 1).view(-1)
        future = torch.full((longest, longest), -torch.inf, device=device).triu(1)
        self.future = future.repeat(per, 1).expand(groups * n, -1, -1).contiguous()
        self.shapes = [(groups * n, per * longest), (groups * n, longest), (groups * n, longest)]

    def split(self, gathered: Tensor) -> list[Tensor]:
        """Return queries (groups x examples, heads of a group x longest, size), keys and values (.., longest, size)."""
        parts = torch.split(gathered, [a * b for a, b in self.shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]


# --- the two halves


@dataclass(frozen=True)
class AttentionHalf:
    """The frozen weights of a layer's first half: norm, attention, and the residual sum."""

    norm: Norm
    qkv: Float[Tensor, "rows size"]  # rows of query, key and value
    qkv_bias: Tensor | None
    head_norm: Norm | None  # Qwen3 norms each head of queries and keys
    out: Tensor
    out_bias: Tensor | None
    heads: int
    groups: int
    scale: float
    adapters: tuple[Adapter, ...]


class FusedAttention(torch.autograd.Function):
    """The first half of a layer as one operation.

    Inputs are x (tokens, size), cos and sin (tokens, 1, head size), and A and B of each adapter; the output is (tokens,
    size). sin is negative in its first half, which is how rotary embedding subtracts there.
    """

    @staticmethod
    def forward(
        ctx: Any, spec: AttentionHalf, gather: HeadGather, x: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor
    ) -> Tensor:
        """Compute attention(norm x) + x; `gather` must be prepared for this row."""
        adapters = Adapters(spec.adapters, weights)
        h, factor = spec.norm.forward(x)
        qkv = linear(h, spec.qkv, spec.qkv_bias)
        adapters.add(("q_proj", "k_proj", "v_proj"), h, qkv)
        by_head = qkv.view(len(x), spec.heads + 2 * spec.groups, -1)
        turned = by_head[:, : spec.heads + spec.groups]
        raw = head_factor = None
        if spec.head_norm:
            raw = turned.clone()
            normed, head_factor = spec.head_norm.forward(raw)
            turned.copy_(normed)
        other = turned.roll(turned.shape[-1] // 2, -1)
        turned.mul_(cos).addcmul_(other, sin)
        gathered = by_head.view(-1, by_head.shape[-1]).index_select(0, gather.take)
        q, k, v = gather.split(gathered.float())  # scores in bfloat16 would make the loss three times as inexact
        p = torch.baddbmm(gather.future, q, k.transpose(1, 2), alpha=spec.scale).softmax(-1)
        mixed = torch.bmm(p, v)
        mixed = mixed.view(-1, mixed.shape[-1]).index_select(0, gather.query).view(len(x), -1).to(x.dtype)
        out = _onto(x, linear(mixed, spec.out, spec.out_bias), adapters, "o_proj", mixed)
        ctx.spec, ctx.gather = spec, gather
        ctx.save_for_backward(x, factor, cos, sin, raw, head_factor, gathered, p, *weights, *adapters.saved)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        spec: AttentionHalf = ctx.spec
        gather: HeadGather = ctx.gather
        x, factor, cos, sin, raw, head_factor, gathered, p, *rest = ctx.saved_tensors
        adapters = Adapters(spec.adapters, rest[: 2 * len(spec.adapters)], rest[2 * len(spec.adapters) :])
        d = torch.mm(grads[0], spec.out)
        adapters.backward(("o_proj",), grads[0], d)
        d_heads = _attention_backward(gather, spec.scale, d, gathered, p).view(len(x), spec.heads + 2 * spec.groups, -1)
        turned = d_heads[:, : spec.heads + spec.groups]
        other = torch.mul(turned, sin).roll(turned.shape[-1] // 2, -1)
        turned.mul_(cos).add_(other)
        if spec.head_norm:
            turned.copy_(spec.head_norm.backward(turned, raw, head_factor))
        d_qkv = d_heads.view(len(x), -1)
        d_h = torch.mm(d_qkv, spec.qkv) if ctx.needs_input_grad[2] else None
        adapters.backward(("q_proj", "k_proj", "v_proj"), d_qkv, d_h)
        d_x = None if d_h is None else spec.norm.backward(d_h, x, factor).add_(grads[0]).to(x.dtype)
        return None, None, d_x, None, None, *adapters.grads


def _attention_backward(gather: HeadGather, scale: float, d_out: Tensor, gathered: Tensor, p: Tensor) -> Tensor:
    """Return the gradient of the joint product of queries, keys and values: (tokens x heads, head size)."""
    q, k, v = gather.split(gathered.float())
    d_gathered = torch.empty(gathered.shape, device=p.device)
    d_q, d_k, d_v = gather.split(d_gathered)
    d = torch.zeros(q.shape, device=p.device)  # nothing comes from padding
    d.view(-1, q.shape[-1])[gather.query] = d_out.float().reshape(-1, q.shape[-1])
    torch.bmm(p.transpose(1, 2), d, out=d_v)
    d_p = torch.bmm(d, v.transpose(1, 2))
    d_s = torch._softmax_backward_data(d_p, p, -1, p.dtype).mul_(scale)
    torch.bmm(d_s, k, out=d_q)
    torch.bmm(d_s.transpose(1, 2), q, out=d_k)
    return d_gathered.to(gathered.dtype).index_select(0, gather.back)


@dataclass(frozen=True)
class NetworkHalf:
    """The frozen weights of a layer's second half: norm, the gated network, and the residual sum."""

    norm: Norm
    gate: Tensor
    up: Tensor
    down: Tensor
    adapters: tuple[Adapter, ...]


class FusedNetwork(torch.autograd.Function):
    """The second half of a layer as one operation.

    Inputs are x (tokens, size), and A and B of each adapter; the output is (tokens, size).
    """

    @staticmethod
    def forward(ctx: Any, spec: NetworkHalf, x: Tensor, *weights: Tensor) -> Tensor:
        """Compute down(silu(gate(norm x)) * up(norm x)) + x."""
        adapters = Adapters(spec.adapters, weights)
        h, factor = spec.norm.forward(x)
        gate, up = linear(h, spec.gate), linear(h, spec.up)
        adapters.add(("gate_proj",), h, gate)
        adapters.add(("up_proj",), h, up)
        active = silu(gate)
        inner = active * up
        out = _onto(x, linear(inner, spec.down), adapters, "down_proj", inner)
        ctx.spec = spec
        ctx.save_for_backward(x, factor, gate, up, active, *weights, *adapters.saved)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        spec: NetworkHalf = ctx.spec
        x, factor, gate, up, active, *rest = ctx.saved_tensors
        adapters = Adapters(spec.adapters, rest[: 2 * len(spec.adapters)], rest[2 * len(spec.adapters) :])
        d_inner = torch.mm(grads[0], spec.down)
        adapters.backward(("down_proj",), grads[0], d_inner)
        d_up = d_inner * active
        d_gate = torch.ops.aten.silu_backward(d_inner.mul_(up), gate)
        d_h = torch.mm(d_gate, spec.gate).add_(torch.mm(d_up, spec.up)) if ctx.needs_input_grad[1] else None
        adapters.backward(("gate_proj",), d_gate, d_h)
        adapters.backward(("up_proj",), d_up, d_h)
        d_x = None if d_h is None else spec.norm.backward(d_h, x, factor).add_(grads[0]).to(x.dtype)
        return None, d_x, *adapters.grads


# --- layers that fit


def fuse(layers: Sequence[nn.Module], anywhere: bool = False) -> int:
    """Give the fused forward pass to every layer that fits, and return their number.

    Args:
        layers: of a decoder.
        anywhere: fuse those on accelerators too.

    Query, key and value weights become views of a joint matrix, with unchanged values.
    """
    gather = HeadGather()
    fitting = [layer for layer in layers if _fits(layer, anywhere)]
    for layer in fitting:
        layer.forward = _FusedForward(layer, gather)  # type: ignore[method-assign]
    return len(fitting)


def undo(layers: Sequence[nn.Module]) -> None:
    """Give the layers their own forward pass back."""
    for layer in layers:
        layer.__dict__.pop("forward", None)


class _FusedForward:
    """The fused forward pass of one layer, with the signature of the layer's own."""

    def __init__(self, layer: Any, gather: HeadGather) -> None:
        self.layer, self.gather, self.stock = layer, gather, layer.forward
        attention = layer.self_attn
        bases = {name: _base(module) for name, module in _sites(layer).items()}
        qkv, qkv_bias = _join([bases[name] for name in ATTENTION[:3]])
        heads, groups = attention.config.num_attention_heads, attention.config.num_key_value_heads
        starts = {"k_proj": heads * attention.head_dim, "v_proj": (heads + groups) * attention.head_dim}
        self.attention = AttentionHalf(
            norm=_norm(layer.input_layernorm),
            qkv=qkv,
            qkv_bias=qkv_bias,
            head_norm=_head_norm(attention, heads, groups),
            out=bases["o_proj"].weight,
            out_bias=bases["o_proj"].bias,
            heads=heads,
            groups=groups,
            scale=attention.scaling,
            adapters=_adapters(layer, ATTENTION, starts),
        )
        self.network = NetworkHalf(
            norm=_norm(layer.post_attention_layernorm),
            gate=bases["gate_proj"].weight,
            up=bases["up_proj"].weight,
            down=bases["down_proj"].weight,
            adapters=_adapters(layer, NETWORK, {}),
        )

    def __call__(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Compute what the layer's own forward pass computes."""
        layout = kwargs.get("layout")
        if layout is None or layout.pad.shape[1] > LONGEST:
            return self.stock(hidden_states, **kwargs)  # type: ignore[no-any-return]
        attention, network = self.attention, self.network
        if _switched_off(self.layer):
            attention, network = replace(attention, adapters=()), replace(network, adapters=())
        elif not self.layer.training:
            attention = replace(attention, adapters=_without_dropout(attention.adapters))
            network = replace(network, adapters=_without_dropout(network.adapters))
        cos, sin = (x[0, :, None] for x in kwargs["position_embeddings"])
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        self.gather.prepare(layout, attention.heads, attention.groups)
        middle = FusedAttention.apply(
            attention, self.gather, hidden_states[0], cos, signed, *_weights(self.layer, attention.adapters)
        )  # type: ignore[no-untyped-call]
        return FusedNetwork.apply(network, middle, *_weights(self.layer, network.adapters))[None]  # type: ignore[no-any-return, no-untyped-call]


def _sites(layer: Any) -> dict[str, Any]:
    """Return the linear layers of a decoder layer by name, adapted or not."""
    attention = {name: getattr(layer.self_attn, name) for name in ATTENTION}
    return attention | {name: getattr(layer.mlp, name) for name in NETWORK}


def _base(module: Any) -> nn.Linear:
    """Return the linear layer inside an adapted one, or the layer itself."""
    return module.base_layer if isinstance(module, LoraLinear) else module  # type: ignore[no-any-return]


def _adapters(layer: Any, names: Sequence[str], starts: dict[str, int]) -> tuple[Adapter, ...]:
    """Return the adapters of the linear layers with these names; `starts` gives columns in the joint product."""
    adapters = []
    for name in names:
        module = _sites(layer)[name]
        if isinstance(module, LoraLinear):
            (active,) = module.active_adapters
            start = starts.get(name, 0)
            dropout = module.lora_dropout[active]
            columns = slice(start, start + module.out_features)
            rate = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
            adapters.append(Adapter(name, columns, module.scaling[active], rate))
    return tuple(adapters)


def _switched_off(layer: Any) -> bool:
    """Test whether the adapters of a layer are switched off."""
    return any(isinstance(module, LoraLinear) and module.disable_adapters for module in _sites(layer).values())


def _without_dropout(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
    return tuple(replace(a, dropout=0.0) for a in adapters)


def _weights(layer: Any, adapters: Sequence[Adapter]) -> list[Tensor]:
    """Return A and B of each adapter, one after the other."""
    modules = [_sites(layer)[a.site] for a in adapters]
    return [factors[m.active_adapters[0]].weight for m in modules for factors in (m.lora_A, m.lora_B)]


def _join(modules: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Stack the weights of linear layers in one matrix, make them views of it, and return it with the biases."""
    joint = torch.cat([m.weight.data for m in modules])
    for m, part in zip(modules, torch.split(joint, [len(m.weight) for m in modules]), strict=True):
        m.weight.data = part
    return joint, None if modules[0].bias is None else torch.cat([m.bias.data for m in modules])


def _norm(module: Any) -> Norm:
    return Norm(module.weight.data, module.variance_epsilon)


def _head_norm(attention: Any, heads: int, groups: int) -> Norm | None:
    """Return the norm of each head of queries and keys as one, where the architecture has it."""
    q = getattr(attention, "q_norm", None)  # not every architecture has one
    if q is None:
        return None
    each = [q.weight.data.expand(heads, -1), attention.k_norm.weight.data.expand(groups, -1)]
    return Norm(torch.cat(each), q.variance_epsilon)


def _fits(layer: Any, anywhere: bool) -> bool:
    """Test whether a layer may have the fused forward pass."""
    if type(layer).__name__ not in KINDS:
        return False
    sites, config = _sites(layer), layer.self_attn.config
    frozen = [p for name, p in layer.named_parameters() if ".lora_" not in name]
    return (
        config.hidden_act == "silu"
        and not config.attention_dropout
        and all(_is_plain(module) for module in sites.values())
        and len({_base(sites[name]).bias is None for name in ATTENTION[:3]}) == 1
        and all(_base(sites[name]).bias is None for name in NETWORK)
        and not any(p.requires_grad for p in frozen)
        and len({p.dtype for p in frozen}) == 1
        and len({p.device for p in frozen}) == 1
        and (anywhere or frozen[0].device.type == "cpu")
    )


def _is_plain(module: Any) -> bool:
    """Test whether a module is a linear layer, or plain LoRA on one, without hooks."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    if type(module) is LoraLinear:
        one = len(module.active_adapters) == 1 and not module.merged and not module.lora_variant
        return one and not any(module.lora_bias.values()) and type(module.base_layer) is nn.Linear
    return type(module) is nn.Linear
