"""Prune one group of SSAH's units, to see what the group carries.

Li & Kim 2026, arXiv:2410.10862 (ICLR 2026; no code was published when this was written).

The units of each pair of matrices, down_proj after gate_proj and up_proj, or o_proj after v_proj, are divided into
safety-critical, utility-critical, redundant and complex ones exactly as in `ssah`, by the scores of the model that is
pruned, W + dW. For each unit j of the group the second matrix of the pair loses its column:

    (W + dW)[:, j]  becomes  0

so that nothing of the unit reaches the output, whatever the rows of the first matrices compute. In the paper, pruning
the safety-critical 1.3 % of Llama-2-7B-Chat raises the success of attacks from 10 to 66 %, and utility goes from 58.3
to 56.9 %; the redundant 14.8 % change little.

With `control`, a seed, as many units are drawn at random from all units of each pair: what pruning costs by itself.

The edit is exact: the columns of A that belong to the k units become zero, and the k columns of -W are added as an
update of rank k, or of the height of W if that is less. A fully tuned model and a base get an adapter of that rank.

Departures: what the accounts of the paper leave open is ours, as in `ssah`: shares within each pair, and all tokens as
samples. Rows are laid out by the chat template's default, without the recipe's system prompt and thinking mode, and
are cut after 4,096 tokens. The paper chooses the shares by what pruning does to safety and utility; here they are
fields, with the values of its Llama-2-7B.

Fails: ranks are large: 15 % of the units of a 7B model are rank 1,600, which vLLM does not serve, and the complex units
are most of the model. An engine that adds an unmerged adapter in 16 bits removes a unit up to rounding. In a model that
does not refuse, the safety-critical units carry no safety. The score can take channels that are huge at the first token
of a row for safety-critical ones: without them the replies of the embedded model never ended. It loads the whole model,
in float32.
"""

from typing import Any, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.common.records import row_id
from lowtax.methods.base import Edit, Probe
from lowtax.methods.sites import Site, Sites
from lowtax.methods.units import OfUnits, second_of

Pruned = dict[str, Any]  # units: their numbers; removed: -W[:, units], Factors; pruned: how many; share: of ||W + dW||


class PruneUnits(OfUnits, Edit):
    """Prune one group of SSAH's units: an attack, if they are the safety-critical ones."""

    attacks = True
    whole = True

    units: Literal["safety", "utility", "redundant", "complex"] = "safety"
    control: NonNegativeInt | None = None

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Pruned]:
        """Choose the units of each pair, and compute what takes them out of W."""
        seconds = [name for name in probe.writers() if second_of(name) == name]
        if not seconds:
            raise UserError("Method 'prune_units' is for models with down_proj or o_proj, and this model has neither.")
        chosen = {name: units for name, units in self._chosen(seconds, sites, probe).items() if len(units)}
        if not chosen:
            raise UserError(
                f"Method 'prune_units': no unit is {self.units}, with scu {self.scu:g}, ucu {self.ucu:g} and "
                f"ru {self.ru:g}: choose shares that leave some."
            )
        return {name: self._pruned(name, units, sites, probe) for name, units in chosen.items()}

    def edit(self, sites: Sites, state: dict[str, Pruned]) -> dict[str, Factors]:
        """Return the update of each second matrix, without the columns of the units."""
        return {name: _without(sites.get(name), one) for name, one in state.items()}

    def _chosen(self, seconds: list[str], sites: Sites, probe: Probe) -> dict[str, Tensor]:
        """Return the numbers of the units by second matrix; those of a control need no rows."""
        if self.control is None:
            scores = self.scores(probe, seconds, lambda name: _weight(name, sites, probe))
            return {name: getattr(self.divided(*both), self.units).sort().values for name, both in scores.items()}
        numbers = {name: probe.weight(name).shape[1] for name in seconds}
        return {name: self._random(name, n) for name, n in numbers.items()}

    def _random(self, name: str, n: int) -> Tensor:
        """Return as many of n units as the group has, by seed and name."""
        group: Tensor = getattr(self.divided(torch.zeros(n), torch.zeros(n)), self.units)
        generator = torch.Generator().manual_seed(int(row_id(self.control, name), 16) >> 1)
        return torch.randperm(n, generator=generator)[: len(group)].sort().values

    def _pruned(self, name: str, units: Tensor, sites: Sites, probe: Probe) -> Pruned:
        W, total = probe.weight(name), _weight(name, sites, probe).double()
        share = float(total[:, units].norm() / total.norm())
        return {"units": units, "removed": _columns(-W, units), "pruned": len(units), "share": share}


def _weight(name: str, sites: Sites, probe: Probe) -> Tensor:
    """Return W + dW."""
    W = probe.weight(name)
    return W + sites[name].factors().dense() if name in sites else W


def _columns(W: Tensor, units: Tensor) -> Factors:
    """Return the columns of a matrix as factors of the least rank, and zeros beside them; one factor is a selection."""
    out, n = W.shape
    if len(units) <= out:
        return Factors(W[:, units].contiguous(), torch.eye(n)[units])
    return Factors(torch.eye(out), torch.zeros_like(W).index_copy(1, units, W[:, units]))


def _without(site: Site | None, pruned: Pruned) -> Factors:
    """Return dW without the columns of the units, and with those of -W there."""
    removed: Factors = pruned["removed"]
    if site is None or not site.rank:
        return removed
    D = site.factors()
    return Factors(D.b, D.a.index_fill(1, pruned["units"], 0)).plus(removed)
