"""The model of a recipe without weights: placements, methods and edits are tried on torch's meta device.

The configuration comes from a folder or the hub's cache. That of the embedded models is part of the package, so that
nothing has to be built.
"""

from functools import cached_property
from typing import get_args

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from lowtax.common.errors import UserError
from lowtax.data import specs
from lowtax.data.training_sets import load
from lowtax.methods.base import Rows
from lowtax.methods.loading import Methods, load_all
from lowtax.methods.sites import sites_of
from lowtax.models import embedded, loading, lora
from lowtax.models.frames import skeleton
from lowtax.models.placement import Placement
from lowtax.models.shapes import Lora, Shape, lora_of, shape_of
from lowtax.study import arms
from lowtax.study.offline import EMBEDDED, OfflineSource, is_local
from lowtax.study.recipe import Arm, EditedArm
from lowtax.training.parameters import TrainedParameters
from lowtax.training.probe import attach

ANY_MODEL = "owner/name"  # stands for an embedded model in checks that would build it
_, DATA_FIELD = get_args(Rows)  # the mark of a method's field that is a `data` entry


class Model:
    """The model of a recipe. `parameters` and `shape` are None if its configuration is not available."""

    def __init__(self, ref: str, source: OfflineSource) -> None:
        self.ref, self.source = ref, source
        self._bare = self._skeleton()
        self.parameters = None if self._bare is None else sum(p.numel() for p in self._bare.parameters())
        self._adapted: dict[str, nn.Module] = {}  # by placement
        if self._bare is None:
            source.missing[f"the configuration of {ref}"] = f"`hf download {ref} config.json`"
        source.need_model(ref, "the weights of")

    @cached_property
    def shape(self) -> Shape | None:
        """The shape, for the memory arithmetic."""
        return None if self._bare is None else shape_of(self._bare.config, self.parameters or 0)

    def trained(self, arm: Arm) -> tuple[int | None, Lora | None]:
        """Try placement and methods; return the trained numbers (None without a configuration) and LoRA (None: all).

        Raises:
            UserError: A placement or a method does not fit the model.
        """
        chosen = load_all(arm.acts())
        self._need(chosen)
        if self._bare is None:
            return None, None
        placement = arm.where()
        adapted = self._adapt(self._bare, placement)
        if chosen:
            attach(chosen, adapted, TrainedParameters.of(adapted, own_masters=False))
        parameters = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        if placement.kind == "full":
            return parameters, None
        targets = lora.targets_in(self._bare, placement)
        names = targets.modules + targets.parameters
        return parameters, lora_of(names, max(map(placement.rank_of, names)), loading.n_layers(self._bare))

    def check_edits(self, name: str, arm: EditedArm, source_arm: Arm) -> None:
        """Check the edits of an edited arm.

        Raises:
            UserError: `edited.check` refuses them, or an edit names a module without LoRA in the source arm.
        """
        edits = [{key: ANY_MODEL if str(ref) in EMBEDDED else ref for key, ref in edit.items()} for edit in arm.edits]
        arms.check(name, arm.model_copy(update={"edits": edits}))
        chosen = load_all(arm.edits)
        self._need(chosen)
        if self._bare is not None and source_arm.where().kind != "full":
            for configured in chosen.configured:
                sites_of(self._adapt(self._bare, source_arm.where()), configured.only)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer, or None if it is not available; an embedded model is not built for it."""
        source = self.source if is_local(self.ref) else OfflineSource()  # missing weights are listed already
        if self.ref in EMBEDDED and source is not self.source:
            return None
        return source.read(f"the tokenizer of {self.ref}", loading.load_tokenizer, self.ref)

    def _need(self, chosen: Methods) -> None:
        """List the models and the rows that methods name and that are not available."""
        for configured in chosen.configured:
            for name, field in type(configured.method).model_fields.items():
                value = getattr(configured.method, name)
                if name in ("aligned", "unaligned") and isinstance(value, str):
                    self.source.need_model(value, "the weights of")
                if DATA_FIELD in field.metadata:
                    self.source.read(specs.parse(value).source, load, specs.parse(value), 0)

    def _adapt(self, bare: PreTrainedModel, placement: Placement) -> nn.Module:
        """Return a skeleton with its trainable weights marked by PEFT, built once for each placement."""
        key = placement.model_dump_json()
        if key not in self._adapted:
            with torch.device("meta"):
                self._adapted[key] = lora.adapt(skeleton(self.ref, bare.config), placement, self.ref)
        return self._adapted[key]

    def _skeleton(self) -> PreTrainedModel | None:
        """Return the model without an adapter; None for a model of the hub whose configuration is not in the cache."""
        if self.ref in EMBEDDED:
            fields = embedded.DIMENSIONS[self.ref.removeprefix(embedded.BUILTIN)]
            return skeleton(self.ref, AutoConfig.for_model(**fields))
        loading.resolve(self.ref)  # refuses what can be no model
        try:
            return skeleton(self.ref)
        except UserError:
            if is_local(self.ref):
                raise
            return None
