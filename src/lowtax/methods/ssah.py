"""SSAH: find the units that carry safety, and freeze them.

Li & Kim 2026, arXiv:2410.10862 (ICLR 2026; no code was published when this was written).

In a pair of matrices, down_proj after gate_proj and up_proj, or o_proj after v_proj, unit j is a channel between them:
    I_j = Var(x_j) ||W[:, j]||^2        x: inputs of the second matrix W; variance over tokens
on safety rows (I_S) and on utility rows (I_U). In each pair, as shares of its units and in this order: safety-critical
(scu: the largest I_S - I_U), utility-critical (ucu: the largest I_U - I_S of the others), redundant (ru: the smallest
I_S + I_U of the others), and complex (the rest). freeze="safety" holds the safety-critical units and a share `cu`, the
complex ones with the largest I_S; "all but redundant", its alignment budget, moves the redundant alone. A held unit's
column of the second matrix and rows of the first keep their bits, even with weight decay; LoRA's factors are zero
there. In full fine-tuning, "all but redundant" holds all that has no redundant unit as a whole: query and key, norms,
embeddings, tied or not, and biases of second matrices. A row of v_proj moves if all units that it serves are redundant.

Held values are copied, 4 bytes for each held number in every process and in the saved state: beside the redundant units
of a whole model, that is nearly the model in float32.

Departures: what the accounts of the paper leave open is ours: shares within each pair, the order of complex units, all
tokens as samples, that with freeze="safety" query, key, embeddings and norms are not held, and that with "all but
redundant" they are. ucu and ru are those of its Llama-2-7B; its alignment budget is the 20 % most redundant units of
LLaMA-7B. Whether the groups are what they are called is for `prune_units` to show.

Fails: refused if none of these matrices is trained, and for "all but redundant" if a LoRA is on others, too. cu = 1
holds 72 % of all units at the default shares. When you train on refusals, the default `safety` rows protect the very
behaviour you train: pass rows with reasoning instead.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.methods.base import Probe
from lowtax.methods.sites import Site, Sites
from lowtax.methods.units import OfUnits, Share, second_of

Held = dict[str, Any]  # axis: 0 for rows, 1 for columns; units: their numbers; kept: their values


class SSAH(OfUnits):
    """Freeze the units that carry safety; it needs safety and utility rows to find them."""

    freeze: Literal["safety", "all but redundant"] = "safety"
    cu: Share = 0.06

    whole = holds = begins = True

    @property
    def everything(self) -> bool:
        """Test whether all is held that has no redundant unit, embeddings and norms too."""
        return self.freeze != "safety"

    def check(self, sites: Sites) -> None:
        """Refuse sites that have no unit to hold, and LoRA beside the redundant units."""
        pairs, strict = _pairs(sites), self.freeze != "safety"
        if not pairs or (strict and any(site.rank and name not in pairs for name, site in sites.items())):
            restriction = ", by LoRA on nothing else, or in full" if strict else ""
            raise UserError(f"ssah is for the MLP, v_proj and o_proj{restriction}; train those.")

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Held]:
        """Choose the held entries of each site; with LoRA, set them to zero."""
        self.check(sites)
        pairs = _pairs(sites)
        held = self._units(probe, sorted({*pairs.values()}))
        state = {name: _hold(sites[name], second, held[second], probe) for name, second in pairs.items()}
        rest = [name for name in sites if name not in pairs and self.freeze != "safety"]
        return state | {name: _hold_whole(sites[name]) for name in rest}

    def after_backward(self, sites: Sites, state: dict[str, Held]) -> None:
        """Set the gradients of held entries to zero."""
        for name, held in state.items():
            if (grad := _tensor(sites[name], held).grad) is not None:
                grad.index_fill_(held["axis"], held["units"], 0)

    @torch.no_grad()
    def after_step(self, sites: Sites, state: dict[str, Held], probe: Probe, step: int) -> None:
        """Restore the held entries, which weight decay moves."""
        for name, held in state.items():
            _tensor(sites[name], held).index_copy_(held["axis"], held["units"], held["kept"])

    def held(self, sites: Sites, state: dict[str, Held]) -> int:
        """Count the held entries."""
        return sum(held["kept"].numel() for held in state.values())

    def _units(self, probe: Probe, seconds: list[str]) -> dict[str, Tensor]:
        """Return the numbers of the held units by second matrix."""
        scores = self.scores(probe, seconds, probe.weight)
        if missing := [name for name in seconds if name not in scores]:
            raise UserError(f"ssah: no tokens of the safety or utility rows reach {missing[0]}: leave it out by only.")
        return {name: self._chosen(*both) for name, both in scores.items()}

    def _chosen(self, safe: Tensor, useful: Tensor) -> Tensor:
        groups, n = self.divided(safe, useful), len(safe)
        if self.freeze == "safety":
            return torch.cat([groups.safety, groups.complex[: round(self.cu * n)]]).sort().values
        return torch.ones(n).index_fill(0, groups.redundant, 0).nonzero()[:, 0]


def _pairs(sites: Sites) -> dict[str, str]:
    """Return, for each site that has units to hold, the module that reads them."""
    return {name: second for name in sites if (second := second_of(name))}


def _hold(site: Site, second: str, units: Tensor, probe: Probe) -> Held:
    """Return the entries of a site that belong to these units; LoRA's factor is set to zero there."""
    first = site.name.removesuffix(".bias")
    rows = units if first == second else probe.rows_before(first, second, units)
    held: Held = {"axis": int(first == second), "units": rows.to(site.a.device)}
    tensor = _tensor(site, held).detach()
    if site.rank:
        tensor.index_fill_(held["axis"], held["units"], 0)
    return held | {"kept": tensor.index_select(held["axis"], held["units"])}


def _hold_whole(site: Site) -> Held:
    """Return all of a weight, which may have any number of dimensions."""
    W = site.weight.detach()
    rows = torch.arange(len(W) if W.ndim else 1, device=W.device)
    return {"axis": 0, "units": rows, "kept": W.clone()}


def _tensor(site: Site, held: Held) -> Tensor:
    """Return the tensor that has the held entries."""
    return (site.b, site.a)[held["axis"]] if site.rank else site.weight
