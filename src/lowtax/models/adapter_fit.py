"""Check that an adapter fits a model: every tensor is a factor of that model, none is missing, none is besides.

    fit = fitted(Path("adapter"), "owner/model")      # or a UserError that names the first wrong weight
    fit.folder                                        # what PEFT and vLLM load

PEFT and vLLM serve an adapter whose names match nothing as the base itself, and one that has half of its factors as
half an adapter. Here PEFT places the adapter's configuration in the model without weights, and the names and shapes of
the file must be those of that placement.

Some tools write other names for the same modules: with the adapter's name inside (`lora_A.default.weight`), without
`base_model.model.`, or for another class of the same model (`model.layers` of the text class for
`model.language_model.layers` of a wrapper). They are mapped where only one reading is possible: `fit.folder` is then
a copy with this model's names, in a temporary folder.
"""

import atexit
import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from lowtax.common.borders import border
from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.models import tensor_files
from lowtax.models.adapters import PREFIX, WEIGHTS, plain_config
from lowtax.models.frames import frame
from lowtax.models.tensor_files import Stored

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

# NAME.lora_A.weight, or with the adapter's name: NAME.lora_A.default.weight, NAME.lora_embedding_A.default
FACTOR = re.compile(
    r"^(?P<module>.+?)\.(?P<kind>lora_[AB]|lora_embedding_[AB])(?:\.(?P<adapter>[^.]+))??(?P<end>\.weight|\.bias)?$"
)
LAYERED = re.compile(r"^(?P<before>.*?)(?P<stack>layers|h|blocks)\.(?P<rest>\d+\..+)$")
COPIES = re.compile(r"(?P<name>.*(?:embed_tokens|lm_head|wte|embed_in|embed_out))(?:\.base_layer)?\.weight$")


@dataclass(frozen=True)
class Fit:
    """An adapter that fits a model: the folder to load, and whether it is a copy with the model's own names."""

    folder: Path
    renamed: bool = False


def fitted(
    folder: Path,
    ref: str,
    *,
    supported: Collection[str] = (),
    remedy: str = "train a plain LoRA",
) -> Fit:
    """Return an adapter whose weights all belong to a model.

    Args:
        folder: a PEFT folder.
        ref: the model reference.
        supported: fields of `adapters.EXTRAS` that the caller handles too.
        remedy: end of the error message about an adapter that is more than W + s B A.

    Raises:
        UserError: a weight belongs to no module of the model, is missing, has another shape, or is not finite; or the
            file changes weights of the base.
    """
    config = plain_config(folder, supported=supported, remedy=remedy)
    stored = tensor_files.header(folder / WEIGHTS)
    model = frame(ref)
    names, extra = _module_names(folder, stored)
    require_quick_patterns(folder, config, [*names.values(), *(name for name, _ in model.named_modules())])
    prefix = _prefix(folder, ref, names, model)
    if prefix is not None:
        config = _spelled_out(config, names, prefix, model)
    keys = {key: _standard(key, names[key], prefix, model) for key in names}
    keys |= {key: PREFIX + _besides(key.removeprefix(PREFIX), prefix, model) for key in extra}
    expected = _layout(folder, ref, config, model)
    _require_equal(folder, ref, {keys[key]: (key, stored[key]) for key in keys}, expected)
    _require_finite(folder)
    if prefix is None and all(key == standard for key, standard in keys.items()):
        return Fit(folder)
    say(f"  {folder}: names of another tool are read as those of {ref}")
    return Fit(_copy(folder, config, keys), True)


def unfit(folder: Path, ref: str) -> AbstractContextManager[None]:
    """Return the border of everything that PEFT does with the files of an adapter and a model."""
    return border(f"The adapter in {folder} does not fit the model {ref!r}", "give its own base, or save it again")


def require_quick_patterns(folder: Path, config: "LoraConfig", names: Sequence[str]) -> None:
    """Check that the regular expressions of a configuration end in time: a stranger's may take for ever.

    Raises:
        UserError: one does not.
    """
    fields = (config.target_modules, config.exclude_modules, config.layers_pattern)
    texts = [text for field in fields for text in ([field] if isinstance(field, str) else field or ())]
    texts += [*(config.rank_pattern or ()), *(config.alpha_pattern or ())]
    patterns = [text for text in texts if isinstance(text, str) and not re.fullmatch(r"[\w.]*", text)]
    if not patterns:
        return
    task = json.dumps({"patterns": patterns, "names": list(dict.fromkeys(names))})
    command = [sys.executable, "-I", "-c", TRY]
    try:
        done = subprocess.run(
            command, input=task, text=True, timeout=PATIENCE, check=False, stderr=subprocess.DEVNULL
        ).returncode
    except subprocess.TimeoutExpired:
        done = None
    if done != 0:
        raise UserError(
            f"The adapter in {folder} selects its modules by {shorten(patterns[0], 80)!r}, which takes too long to "
            "match: name the modules."
        )


# Matches patterns as PEFT does, in a process with limits on its processor time and memory: a pattern's author may be a
# stranger, and Python's matcher cannot be interrupted.
TRY = """
import json, re, resource, sys
for limit, value in ((resource.RLIMIT_CPU, 2), (resource.RLIMIT_AS, 2**30)):
    try:
        resource.setrlimit(limit, (value, value))
    except (ValueError, OSError):
        pass
task = json.load(sys.stdin)
for pattern in task["patterns"]:
    forms = pattern, rf"(.*\\.)?({pattern})$", rf".*\\.{pattern}\\.(\\d+)\\."
    for form in forms:
        try:
            compiled = re.compile(form)
        except (re.error, OverflowError, RecursionError):
            continue
        for name in task["names"]:
            compiled.match(name)
            compiled.fullmatch(name)
"""
PATIENCE = 60.0  # seconds, on a busy machine


def _module_names(folder: Path, stored: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return the module of every factor in a file, without PEFT's prefix; and the keys of other tensors.

    Raises:
        UserError: there is no factor.
    """
    names, extra = {}, []
    for key in stored:
        if match := FACTOR.match(key):
            names[key] = match["module"].removeprefix(PREFIX)
        else:
            extra.append(key)
    if not names:
        example = f", but for example {extra[0]}" if extra else ""
        raise UserError(f"The adapter in {folder} has no LoRA factors{example}: save it again with PEFT.")
    return names, extra


def _prefix(folder: Path, ref: str, names: Mapping[str, str], model: "PreTrainedModel") -> tuple[str, str] | None:
    """Return the prefix of layered modules in the file and in the model, or None if they are the same.

    Raises:
        UserError: the modules are not those of the model, whatever the prefix.
    """
    modules = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    wrong = sorted(name for name in names.values() if not _has(modules, name))
    if not wrong:
        return None
    here = _layers_of(model)
    theirs = {f"{match['before']}{match['stack']}." for name in names.values() if (match := LAYERED.match(name))}
    if len(theirs) == 1 and here is not None:
        prefix = (theirs.pop(), here)
        if all(_has(modules, _renamed(name, prefix, model)) for name in names.values()):
            return prefix
    keys = [key for key, name in names.items() if name in wrong]
    raise UserError(
        f"{len(names) - len(keys)} of {len(names)} weights of the adapter in {folder} belong to {ref!r}; for example "
        f"{keys[0]} does not: it is an adapter of another model, so give its own base."
    )


def _has(modules: Collection[str], name: str) -> bool:
    """Return True if the model has a module or parameter of a name; PEFT inserts `base_layer` for fused parameters."""
    return name.replace(".base_layer", "") in modules


def _layers_of(model: "PreTrainedModel") -> str | None:
    """Return the prefix of the modules in the layers of the text decoder: model.language_model.layers."""
    decoder = model.get_decoder()
    own = next((name for name, module in model.named_modules() if module is decoder), None)
    if own is None:
        return None
    stack = next((name for name, _ in decoder.named_children() if name in ("layers", "h", "blocks")), None)
    return None if stack is None else f"{own}.{stack}.".lstrip(".")


def _renamed(name: str, prefix: tuple[str, str], model: "PreTrainedModel") -> str:
    """Return the model's name for a module of the file."""
    if name.startswith(prefix[0]):
        return prefix[1] + name.removeprefix(prefix[0])
    ends = {"embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
    wanted = ends.get(name.rpartition(".")[2])
    return next((own for own, module in model.named_modules() if wanted is not None and module is wanted), name)


def _besides(key: str, prefix: tuple[str, str] | None, model: "PreTrainedModel") -> str:
    """Return the model's name for a tensor that is no factor: a copy of an embedding, or a saved module."""
    module, dot, end = key.rpartition(".")
    return key if prefix is None else f"{_renamed(module, prefix, model)}{dot}{end}"


def _standard(key: str, module: str, prefix: tuple[str, str] | None, model: "PreTrainedModel") -> str:
    """Return the name of a factor in PEFT's standard layout."""
    match = FACTOR.match(key)
    assert match is not None
    name = module if prefix is None else _renamed(module, prefix, model)
    return f"{PREFIX}{name}.{match['kind']}{match['end'] or ''}"


def _spelled_out(
    config: "LoraConfig", names: Mapping[str, str], prefix: tuple[str, str], model: "PreTrainedModel"
) -> "LoraConfig":
    """Return the configuration with this model's full names, for all modules that it selects under the file's names."""
    from peft.tuners.tuners_utils import check_target_module_exists

    from lowtax.models.names import matches

    back = {}
    for name, _ in model.named_modules():
        if name.startswith(prefix[1]):
            back[prefix[0] + name.removeprefix(prefix[1])] = name
    selected = {theirs: ours for theirs, ours in back.items() if check_target_module_exists(config, theirs)}
    selected |= {name: _renamed(name, prefix, model) for name in names.values()}
    selected = {theirs: ours for theirs, ours in selected.items() if not [*model.get_submodule(ours).children()]}

    def at(patterns: Mapping[str, int | float] | None) -> dict[str, int | float]:
        chosen = {}
        for theirs, ours in selected.items():
            value = next((value for pattern, value in (patterns or {}).items() if matches(pattern, theirs)), None)
            if value is not None:
                chosen[ours] = value
        return chosen

    new = deepcopy(config)
    new.target_modules = set(selected.values())
    new.rank_pattern, new.alpha_pattern = at(config.rank_pattern), at(config.alpha_pattern)
    new.exclude_modules = new.layers_to_transform = new.layers_pattern = None
    return new


def _layout(folder: Path, ref: str, config: "LoraConfig", model: "PreTrainedModel") -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the weights that PEFT saves for a configuration placed in a model.

    Raises:
        UserError: PEFT cannot place it.
    """
    import torch
    from peft import PeftModelForCausalLM, get_peft_model_state_dict

    config = deepcopy(config)
    config.init_lora_weights = True  # of tensors without values
    with unfit(folder, ref), warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        adapted = PeftModelForCausalLM(deepcopy(model), config)
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _require_equal(
    folder: Path,
    ref: str,
    file: Mapping[str, tuple[str, Stored]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Check that a file has the expected weights, and besides them only copies of the base's embeddings.

    Raises:
        UserError: it has others, lacks some, or has other shapes.
    """
    besides = [name for name in file if name not in expected]
    copies = [name for name in besides if COPIES.match(name)]
    if foreign := sorted(file[name][0] for name in set(besides) - set(copies)):
        raise UserError(
            f"{len(foreign)} weights of the adapter in {folder} are not LoRA factors that its configuration places in "
            f"{ref!r}, for example {foreign[0]}: it would change the base, or it is an adapter of another model."
        )
    if missing := sorted(name for name in expected if name not in file):
        raise UserError(
            f"The adapter in {folder} lacks {len(missing)} of {len(expected)} weights that its configuration places in "
            f"{ref!r}, for example {missing[0]}: save or copy it again."
        )
    for name, shape in expected.items():
        key, stored = file[name]
        if stored.shape != shape:
            raise UserError(
                f"The adapter in {folder} does not fit the model {ref!r}: {key} is {list(stored.shape)}, and must be "
                f"{list(shape)}."
            )
    for name in copies:
        _require_same(folder, ref, name, file[name][0])


def _require_same(folder: Path, ref: str, name: str, key: str) -> None:
    """Check that a copy of an embedding in an adapter's file is the base's own, as PEFT writes it after a resize.

    Raises:
        UserError: it differs.
    """
    import torch

    from lowtax.models.weights import open_weights

    match = COPIES.match(name.removeprefix(PREFIX))
    assert match is not None
    own = match["name"]
    copy = tensor_files.tensor(folder / WEIGHTS, key)
    weights = open_weights(ref)
    base = weights[own] if own in weights else None  # noqa: SIM401
    if base is None or base.shape != copy.shape or not torch.equal(base.to(copy.dtype), copy):
        sizes = "" if base is None or base.shape == copy.shape else f" ({len(copy):,} rows for {len(base):,})"
        raise UserError(
            f"The adapter in {folder} also has {key}, which differs from that of {ref!r}{sizes}: it changes the base. "
            "Merge it with PEFT's merge_and_unload in float32, and give the merged folder as the model."
        )


def _require_finite(folder: Path) -> None:
    """Check that an adapter has numbers only.

    Raises:
        UserError: a weight is infinite or not a number.
    """
    for name, tensor in tensor_files.tensors(folder / WEIGHTS):
        if not tensor.float().isfinite().all():
            raise UserError(f"The adapter in {folder} has values that are not finite, in {name}: train it again.")


def _copy(folder: Path, config: "LoraConfig", keys: Mapping[str, str]) -> Path:
    """Write a copy of an adapter with other names, in a folder that is deleted when the process ends."""
    from safetensors.torch import save_file

    copy = Path(tempfile.mkdtemp(prefix="lowtax-adapter-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    renamed = {keys[key]: tensor for key, tensor in tensor_files.tensors(folder / WEIGHTS, keys)}
    save_file(renamed, copy / WEIGHTS, {"format": "pt"})
    config.save_pretrained(str(copy))
    return copy
