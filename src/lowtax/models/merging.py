"""Merging of a LoRA adapter into its base, in float32 and rounded once; the loss by rounding is measured and reported.

Every adapted matrix becomes round(W + s B A), with W as stored in the base checkpoint and the sum in float32; s is
alpha / r (alpha / sqrt(r) for rsLoRA), per module if the adapter has patterns. PEFT computes s B A. In bfloat16 much of
a small update vanishes (see `rounding`), which is why lowtax evaluates adapters unmerged.

Memory: the base in its stored precision and one float32 matrix; the whole model in float32 only with that `dtype`.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from peft import PeftModel, PeftModelForCausalLM
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowtax import __version__
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.files import atomic_folder, read_json, write_json, write_text
from lowtax.common.log import say
from lowtax.models import loading, quantised
from lowtax.models.adapter_fit import fitted, unfit
from lowtax.models.adapters import check_base, fingerprint, plain_config, require_base
from lowtax.models.model_card import merged_card
from lowtax.models.rounding import Rounding

DTYPES = loading.DTYPES
MARKER = "merge.json"
MADE_BY = "lowtax merge"
SHARD = "5GB"
SUPPORTED = ("target_parameters", "fan_in_fan_out")
REMEDY = "`lowtax merge` does not merge that; serve it unmerged, or merge it with PEFT's merge_and_unload"


@dataclass(frozen=True)
class Merged:
    """A merged model, and its loss by rounding (`Rounding` defines the figures)."""

    folder: Path
    adapter: str
    adapter_hash: str
    base: str
    dtype: str
    entries: int
    wanted: int
    share_unmoved: float
    cosine: float
    untied: bool
    warning: str | None

    def facts(self) -> dict[str, Any]:
        """Return all fields but the folder, as data."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


def default_out(adapter: Path) -> Path:
    """Return the default folder of a merged model: beside the adapter, with the name that the reference uses."""
    return adapter.with_name(f"{adapter.resolve().name}_merged")


@torch.no_grad()
def merge(adapter: Path, out: Path, *, base: str | None = None, dtype: str = "bfloat16") -> Merged:
    """Write base + adapter as an ordinary Hugging Face folder, as a whole or not at all.

    Args:
        adapter: a PEFT LoRA folder.
        out: a folder that is absent or empty.
        base: a model reference (see `models.resolve`); that of the adapter's configuration if absent.
        dtype: float32, bfloat16, float16, or auto, which is that of the base checkpoint.

    Raises:
        UserError: a target in use, an adapter that is not a plain LoRA or not of this base, a full disk.
    """
    if dtype not in (*DTYPES, "auto"):
        raise UserError(f"--dtype {dtype!r} is not a precision; {did_you_mean(dtype, (*DTYPES, 'auto'))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} is not empty: choose another --out, or delete a merged model with `lowtax merge {out} --delete`."
        )
    ref = base or require_base(adapter)
    if base is None:
        check_base(adapter, ref, "name it by --base")
    if _trained_in_4_bits(adapter):
        say(f"  the adapter was trained on {ref} in 4 bits, and is merged into its plain weights")
    adapted = _load(adapter, ref)
    model = adapted.get_base_model()
    to, rounding = DTYPES.get(dtype, model.dtype), Rounding()
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    untied = [_merge_layer(model, layer, to, rounding) for layer in layers]
    if any(untied):
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
        say("  the base ties input and output embeddings; the adapter changes one of them, so that they are untied now")
    merged_model = adapted.unload()
    _round_the_rest(merged_model, to)
    precision = str(to).removeprefix("torch.")
    merged = Merged(
        folder=out,
        adapter=str(adapter),
        adapter_hash=fingerprint(adapter)[:16],
        base=ref,
        dtype=precision,
        untied=any(untied),
        warning=rounding.warning(precision),
        **rounding.figures(),
    )
    _write(merged_model, merged, ref)
    say(f"  {merged.warning or f'merged in {precision}: {rounding.sentence()}'}")
    return merged


def _trained_in_4_bits(adapter: Path) -> bool:
    """Test whether the card of the run that made an adapter names a 4-bit precision."""
    try:
        card = read_json(adapter.resolve().parent / "card.json")
    except UserError:
        return False
    job = card.get("job") if isinstance(card, dict) else None
    return isinstance(job, dict) and job.get("precision") in quantised.COMPUTED


def _load(adapter: Path, ref: str) -> PeftModel:
    """Load the base in the precision of its checkpoint, on the CPU, with the adapter's factors in float32."""
    fit = fitted(adapter, ref, supported=SUPPORTED, remedy=REMEDY)
    precision = "float32" if loading.resolve(ref).endswith(".gguf") else "auto"
    model = loading.load_model(ref, precision, torch.device("cpu"))
    config = plain_config(fit.folder, supported=SUPPORTED, remedy=REMEDY)
    with unfit(adapter, ref):
        adapted = PeftModelForCausalLM(model, config)
        adapted.load_adapter(str(fit.folder), "default", torch_device="cpu")
    return adapted


def _merge_layer(model: PreTrainedModel, layer: LoraLayer, to: torch.dtype, rounding: Rounding) -> bool:
    """Replace a layer's weight by the merged one; return True if it had to be untied from another module's weight."""
    module: nn.Module = layer.get_base_layer()
    name = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
    weight = module.get_parameter(name)
    merged = rounding.add(weight, _update(layer, weight), to)
    tied = sum(parameter is weight for _, parameter in model.named_parameters(remove_duplicate=False)) > 1
    if tied:
        setattr(module, name, nn.Parameter(merged, requires_grad=False))
    else:
        weight.data = merged
    return tied


def _update(layer: LoraLayer, weight: nn.Parameter) -> Tensor:
    """Return s B A in float32, in the shape of the weight."""
    data = weight.data
    if isinstance(layer, ParamWrapper):  # PEFT rounds the update of fused experts to the weight's precision
        weight.data = torch.empty(0, dtype=torch.float32)
    update: Tensor = layer.get_delta_weight("default")
    weight.data = data
    return update


def _round_the_rest(model: PreTrainedModel, to: torch.dtype) -> None:
    """Round the weights without an adapter one by one; those that the base stores in another precision keep it."""
    main = model.dtype
    for parameter in model.parameters():
        if parameter.dtype == main:
            parameter.data = parameter.data.to(to)


def _write(model: PreTrainedModel, merged: Merged, ref: str) -> None:
    """Write the folder of the merged model, with a marker that has the hash of each of its files."""
    out, card = merged.folder, Path(merged.adapter) / "README.md"
    try:
        with atomic_folder(out) as work:
            model.save_pretrained(work, max_shard_size=SHARD)
            loading.load_tokenizer(ref).save_pretrained(work)
            text = card.read_text("utf-8-sig", "replace") if card.is_file() else ""
            write_text(work / "README.md", merged_card(merged.facts(), text))
            files = {path.name: _hash(path) for path in sorted(work.iterdir())}
            write_json(work / MARKER, {"made_by": MADE_BY, "version": __version__, **merged.facts(), "files": files})
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two are how the libraries report a full disk
        raise UserError(
            f"{out} could not be written ({shorten(str(error), 200)}); free some disk space and repeat the command."
        ) from error


def _hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def delete_merged(folder: Path) -> None:
    """Delete a folder that `merge` made, and nothing else: every file must be the one that was written.

    The marker is deleted last, so that a killed call can be repeated.

    Raises:
        UserError: no such folder, no marker of `merge` in it, or files in it that `merge` did not write.
    """
    unchanged = "nothing was deleted"
    if not folder.is_dir() or folder.is_symlink():
        raise UserError(f"{folder} is not a folder; {unchanged}.")
    marker = read_json(folder / MARKER) if (folder / MARKER).is_file() else None
    if not isinstance(marker, dict) or marker.get("made_by") != MADE_BY:
        raise UserError(f"{folder} was not made by `lowtax merge` (it has no {MARKER} of that command); {unchanged}.")
    hashes = marker.get("files")
    if not isinstance(hashes, dict):
        raise UserError(
            f"{folder / MARKER} has no hashes of the files, so that nobody can tell whether they have changed; "
            f"{unchanged}: delete the folder yourself."
        )
    paths = [path for path in sorted(folder.iterdir()) if path.name != MARKER]
    foreign = [path.name for path in paths if path.name not in hashes]
    changed = [path.name for path in paths if path.name in hashes and not _is_as_written(path, hashes[path.name])]
    if foreign or changed:
        what = "files that `lowtax merge` did not write" if foreign else "files that have changed since"
        raise UserError(f"{folder} has {what} ({', '.join((foreign or changed)[:3])}); {unchanged}.")
    for path in [*paths, folder / MARKER]:
        path.unlink()
    folder.resolve().rmdir()


def _is_as_written(path: Path, digest: Any) -> bool:
    """Return whether a file is the one with this hash; links and folders are not."""
    return path.is_file() and not path.is_symlink() and _hash(path) == digest
