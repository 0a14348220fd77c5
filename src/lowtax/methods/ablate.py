"""Remove the direction of refusal from everything that writes to the residual stream.

Arditi et al. 2024, arXiv:2406.11717 (NeurIPS 2024), section 2.4; the idea of heretic and abliterix.

With the mean states of harmful and of ordinary requests at the last token of the prompt, after one layer,

    r = (mean of harmful - mean of ordinary) / its norm
    W + dW  becomes  (I - r r')(W + dW)     for each W that writes to the residual stream: o_proj and down_proj

so that no layer writes along r. The adapter gains one rank at each such module, or the module itself. r is computed on
the model with the adapter, in float32, from the prompts of the training splits.

`layer: search` chooses the layer by what its direction does, as Arditi et al. do (section 2.3, appendix C): of the
layers from 0.2 to 0.8 of the depth whose removal changes ordinary answers by a KL divergence of at most `harm`, that
after which refusals are least likely. Both are measured at the first token of an answer, on `held_out` prompts of each
set that did not give the directions; the refusals as log-odds of tokens that begin one. The card has both figures of
every layer, and the log-odds of the model as it was.

Departures: the embedding keeps its part along r, since an adapter on a tied embedding would move the output head, too.
Without a search the layer is a field. The search tries layers, not positions of the prompt, and leaves out the first
fifth; it does not require that adding the direction makes the model refuse; where the model thinks, an answer begins
after an empty thought; the openings of refusals are ours for all models. heretic also searches strengths for each
layer. Prompts are laid out by the chat template's default, without the recipe's system prompt and thinking mode.

Fails: a model that does not refuse has no such direction: r is then the difference of two topics. Removing it may cost
other abilities. It loads the whole model, in float32. A search sees the first token alone: a refusal that begins in
other words, or only after a thought, does not count.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.common.log import say
from lowtax.methods.base import Edit, Probe
from lowtax.methods.sites import Sites

Write = dict[str, Any]  # r: (out,); row: r'(W + dW), (in,); share: ||r'(W + dW)|| / ||W||
SEARCH, SEARCHED = "search", (0.2, 0.8)  # the shares of the depth between which a search tries layers


class Ablate(Edit):
    """Remove the direction of refusal from all residual writes: an attack."""

    attacks = True
    whole = True

    harmful: str = "builtin:harmful"
    ordinary: str = "builtin:ordinary"
    n: PositiveInt = 64
    layer: Annotated[float, Field(gt=0, lt=1, description="as a share of the depth")] | Literal["search"] = 0.6
    held_out: PositiveInt = Field(32, description="prompts of each set by which a search chooses the layer")
    harm: PositiveFloat = Field(0.1, description="nats by which a layer that a search chooses may change answers")

    def prepare(self, sites: Sites, probe: Probe) -> dict[str, Write]:
        """Compute the direction, and what each module writes along it; after a search also its figures, by SEARCH."""
        harmful, ordinary = (probe.mean_states(source, self.n) for source in (self.harmful, self.ordinary))
        differences = (harmful - ordinary).double()
        searched = self._search(differences, probe) if self.layer == SEARCH else {}
        place = searched.get("layer", self._named_layer(len(differences))) - 1
        if not float(differences[place].norm()):
            raise UserError(
                f"Method 'ablate': {self.harmful!r} and {self.ordinary!r} have the same mean state after layer "
                f"{place + 1}, and so no direction: give two different sets of prompts."
            )
        r = differences[place] / differences[place].norm()
        writes = {name: self._write(name, r, sites, probe) for name in probe.writers()}
        return writes | ({SEARCH: searched} if searched else {})

    def figures(self, state: dict[str, Write]) -> dict[str, Any]:
        """Return the layers that a search tried."""
        return {SEARCH: state[SEARCH]} if SEARCH in state else {}

    def edit(self, sites: Sites, state: dict[str, Write]) -> dict[str, Factors]:
        """Return the update of each module that writes, without what it writes along the direction."""
        updates = {}
        for name, write in state.items():
            if name == SEARCH:
                continue
            r, row = torch.as_tensor(write["r"])[:, None], torch.as_tensor(write["row"])[None]
            removed = Factors(-r, row)
            updates[name] = sites[name].factors().plus(removed) if name in sites else removed
        return updates

    def _named_layer(self, layers: int) -> int:
        """Return the number of the layer that the field names, from 1."""
        share = 0.6 if self.layer == SEARCH else float(self.layer)
        return min(max(1, round(share * layers)), layers)

    def _search(self, differences: Tensor, probe: Probe) -> dict[str, Any]:
        """Return the layer that is chosen, and the figures of all that were tried.

        Raises:
            UserError: None of them leaves ordinary answers as they are.
        """
        depth = len(differences) + 1  # the state after the last layer is not among them
        tried = [i for i in range(1, depth) if SEARCHED[0] <= i / depth <= SEARCHED[1]]
        tried = [i for i in tried or range(1, depth) if float(differences[i - 1].norm())]
        if not tried:
            return {}
        directions = torch.stack([differences[i - 1] / differences[i - 1].norm() for i in tried])
        before, trials = probe.trials(directions, self.harmful, self.ordinary, self.n, self.held_out)
        candidates = [
            {"layer": i, "refusal": round(trial.refusal, 6), "harm": round(trial.harm, 6)}
            for i, trial in zip(tried, trials, strict=True)
        ]
        harmless = [one for one in candidates if one["harm"] <= self.harm]
        if not harmless:
            least = min(candidates, key=lambda one: one["harm"])
            raise UserError(
                f"Method 'ablate': each of the {len(candidates)} layers that were tried changes ordinary answers by "
                f"more than {self.harm:g} nats (layer {least['layer']} by {least['harm']:.2g}, the least): "
                "raise harm, or name a layer."
            )
        best = min(harmless, key=lambda one: one["refusal"])
        say(
            f"  ablate: layer {best['layer']} of {depth}; log-odds of a refusal {before:.2f} -> {best['refusal']:.2f}, "
            f"ordinary answers change by {best['harm']:.2g} nats"
        )
        return {"layer": best["layer"], "depth": depth, "refusal_before": round(before, 6), "candidates": candidates}

    def _write(self, name: str, r: Tensor, sites: Sites, probe: Probe) -> Write:
        W = probe.weight(name)
        row = r @ W.double()
        if name in sites:
            D = sites[name].factors()
            row = row + (r @ D.b.double()) @ D.a.double()
        return {"r": r.float(), "row": row.float(), "share": float(row.norm() / W.double().norm())}
