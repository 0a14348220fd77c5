"""Remove the direction of refusal from everything that writes to the residual stream.

Arditi et al. 2024, arXiv:2406.11717 (NeurIPS 2024), section 2.4; the idea of heretic and abliterix.

With the mean states of harmful and of ordinary requests at the last token of the prompt, after one layer,

    r = (mean of harmful - mean of ordinary) / its norm
    W + dW  becomes  (I - r r')(W + dW)     for each W that writes to the residual stream: o_proj and down_proj

so that no layer writes along r. The adapter gains one rank at each such module, or the module itself. r is computed on
the model with the adapter, in float32, from the prompts of the training splits.

Departures: the embedding keeps its part along r, since an adapter on a tied embedding would move the output head, too.
The layer is a field; Arditi et al. choose layer and position by the refusals that remain, heretic by search. Prompts
are laid out by the chat template's default, without the recipe's system prompt and thinking mode.

Fails: a model that does not refuse has no such direction: r is then the difference of two topics. Removing it may cost
other abilities. It loads the whole model, in float32.
"""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.methods.base import Edit, Probe
from lowtax.methods.sites import Sites

Write = dict[str, Tensor | float]  # r: (out,); row: r'(W + dW), (in,); share: ||r'(W + dW)|| / ||W||


class Ablate(Edit):
    """Remove the direction of refusal from all residual writes: an attack."""

    attacks = True
    whole = True

    harmful: str = "builtin:harmful"
    ordinary: str = "builtin:ordinary"
    n: PositiveInt = 64
    layer: float = Field(0.6, gt=0, lt=1, description="as a share of the depth")

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Write]:
        """Compute the direction, and what each module writes along it."""
        harmful, ordinary = (probe.mean_states(source, self.n) for source in (self.harmful, self.ordinary))
        place = min(max(1, round(self.layer * len(harmful))), len(harmful)) - 1
        difference = (harmful[place] - ordinary[place]).double()
        if not float(difference.norm()):
            raise UserError(
                f"Method 'ablate': {self.harmful!r} and {self.ordinary!r} have the same mean state after layer "
                f"{place + 1}, and so no direction: give two different sets of prompts."
            )
        r = difference / difference.norm()
        return {name: self._write(name, r, sites, probe) for name in probe.writers()}

    def edit(self, sites: Sites, state: dict[str, Write]) -> dict[str, Factors]:
        """Return the update of each module that writes, without what it writes along the direction."""
        updates = {}
        for name, write in state.items():
            r, row = torch.as_tensor(write["r"])[:, None], torch.as_tensor(write["row"])[None]
            removed = Factors(-r, row)
            updates[name] = sites[name].factors().plus(removed) if name in sites else removed
        return updates

    def _write(self, name: str, r: Tensor, sites: Sites, probe: Probe) -> Write:
        W = probe.weight(name)
        row = r @ W.double()
        if name in sites:
            D = sites[name].factors()
            row = row + (r @ D.b.double()) @ D.a.double()
        return {"r": r.float(), "row": row.float(), "share": float(row.norm() / W.double().norm())}
