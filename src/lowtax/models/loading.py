"""Loading of models and tokenizers by reference: a built-in name, a folder, a GGUF file or a hub id.

A study has one precision, for training and evaluating alike: `float32` computes in float32; `bfloat16` keeps the
weights of a forward pass in bfloat16, with float32 adapters (LoRA) or float32 master weights (full fine-tuning); `nf4`
has a frozen base in 4 bits (`lowtax.models.quantised`).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowtax.common.borders import border, brief, exists, expanded, reason, require_regular
from lowtax.common.errors import UserError
from lowtax.common.files import read_json
from lowtax.common.imports import uncollected
from lowtax.common.log import say

with uncollected():
    import torch
    import transformers
    from huggingface_hub import try_to_load_from_cache
    from transformers import (
        CONFIG_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
        FineGrainedFP8Config,
        Mxfp4Config,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

    from lowtax.models import dequantised, embedded, quantised, tensor_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LONGEST = 250  # characters of a reference; the hub allows fewer
TOKENIZER = "tokenizer.json"
HUGE_NUMBER = re.compile(rb'"\s*:\s*[0-9]{8,}')  # the value of a key in JSON
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PARTS = re.compile(r"layer|depth|expert|block(?!_size)|heads?$|_head_count", re.IGNORECASE)  # of which models have few
DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
MOST_PARTS, LARGEST = 10_000, 1 << 31  # of these, and of any other number in a configuration
# Quantised checkpoints that transformers reads into plain bfloat16 weights.
DEQUANTISED = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
MOST_LAYERS, MOST_EXPERTS = 2_000, 200_000  # experts of all layers together
# Tensors that are no part of a text model: draft layers for faster decoding, other modalities, and constants.
BESIDES = re.compile(
    r"(^|\.)(mtp|nextn|eagle|medusa\w*|visual|vision_\w+|audio_\w+|multi_modal_projector|mm_\w+|image_newline)(\.|$)"
    r"|(^|\.)rotary_emb\.(inv_freq|original_inv_freq)$|\.masked_bias$"
)


def device() -> torch.device:
    """Return the accelerator, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(name: str, deepspeed: str | None = None) -> str:
    """Resolve `auto`: the precision in a DeepSpeed JSON, or bfloat16 if the hardware multiplies it, else float32.

    Args:
        name: float32, bfloat16, float16, nf4, nf4-float32 or auto.
        deepspeed: path of a DeepSpeed configuration.

    Raises:
        UserError: float16 without DeepSpeed, or 4 bits with it.
    """
    if deepspeed is not None:
        quantised.refuse(name, "DeepSpeed", "set precision to bfloat16, or leave execution.deepspeed out")
    if name == "float16" and deepspeed is None:
        raise UserError("float16 trains only under DeepSpeed, which scales the loss: set precision to bfloat16.")
    if name != "auto":
        return name
    if deepspeed is not None:
        sections = read_json(Path(deepspeed))
        for section, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
            if isinstance(sections, dict) and sections.get(section, {}).get("enabled") is True:
                return dtype
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def resolve(ref: str) -> str:
    """Return a folder or file for built-in names and paths, else the hub id, which may end in @revision.

    Raises:
        UserError: a path that does not exist, or an unknown built-in name.
    """
    if ref.startswith("builtin:"):
        return str(embedded.folder(ref.removeprefix("builtin:")))
    path = expanded(ref)
    if exists(path):
        return str(path)
    if len(ref) > LONGEST or not ref.isprintable():
        raise UserError(f"{brief(ref)} cannot be a model: give a folder, a .gguf file, a hub id or builtin:NAME.")
    if _is_path(ref):
        raise UserError(
            f"There is no model at {ref!r}: give a folder, a .gguf file, a hub id such as owner/name or "
            "owner/name@revision, or builtin:NAME."
        )
    return ref


def is_gone(ref: str) -> bool:
    """Return whether a reference is the path of a local model that is not there."""
    return not ref.startswith("builtin:") and _is_path(ref) and not exists(expanded(ref))


def _is_path(ref: str) -> bool:
    """Return whether a reference that nothing local answers to cannot be a hub id."""
    return ref.partition("@")[0].startswith((".", "/", "~")) or ref.count("/") > 1 or ref.endswith(".gguf")


def source(ref: str) -> tuple[str, dict[str, str]]:
    """Return what transformers loads: a folder or hub id, and its arguments `revision` and `gguf_file`, if any."""
    where = resolve(ref)
    _require_files(Path(where))
    if where.endswith(".gguf"):
        return str(Path(where).parent), {"gguf_file": Path(where).name}
    name, at, revision = where.partition("@")
    return (name, {"revision": revision}) if at and not exists(Path(where)) else (where, {})


def _require_files(where: Path) -> None:
    """Refuse a local model with a pipe or a device among its files, which would be waited for.

    Raises:
        UserError: there is one.
    """
    if not exists(where):
        return
    for path in where.iterdir() if where.is_dir() else [where]:
        if exists(path) and not path.is_dir():
            require_regular(path)


@contextmanager
def readable(ref: str) -> Iterator[None]:
    """Turn whatever transformers raises over the files of a model into one sentence: the border of all of them.

    Raises:
        UserError: the block raises anything.
    """
    with border(f"The model {ref!r} could not be loaded", "check the name, the folder, or your access to the hub"):
        try:
            yield
        except ImportError as error:
            raise UserError(f"The model {ref!r} needs another package: {reason(error)}.") from error


def load_config(ref: str) -> PretrainedConfig:
    """Load the configuration of a model reference.

    Raises:
        UserError: it cannot be loaded, or only with code from the hub.
    """
    where, options = source(ref)
    if copy := _copy(where, options, *dequantised.DTYPES):
        return load_config(copy)
    with readable(ref):
        fields = {} if "gguf_file" in options else PretrainedConfig.get_config_dict(where, **options)[0]
        if fields.get("auto_map") and fields.get("model_type") not in CONFIG_MAPPING:
            raise UserError(
                f"The model {ref!r} needs its own Python code from the hub, which lowtax does not run: give a model "
                "whose architecture transformers has."
            )
        _require_sane(ref, fields)
        config: PretrainedConfig = AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
    _require_sane(ref, config.to_dict())  # also of a GGUF file
    return config


def _require_sane(ref: str, fields: dict[str, Any]) -> None:
    """Check that a configuration asks for no code of the hub, and that its numbers can be those of a model.

    Millions of layers or experts would take for ever.

    Raises:
        UserError: it does, or one cannot be.
    """
    counts = {"layer": 1, "expert": 1}
    for name, value in fields.items():
        if "_implementation" in str(name) and "/" in str(value):
            raise UserError(f"The configuration of {ref!r} names code of the hub: remove {name} from it.")
        if isinstance(value, dict):
            _require_sane(ref, value)
        elif isinstance(value, int):
            if not (1 if name in DEPTHS else -LARGEST) <= value < (MOST_PARTS if PARTS.search(name) else LARGEST):
                raise UserError(
                    f"The model {ref!r} could not be loaded: its configuration has {name}: {brief(value)}, which is "
                    "less or more than any model has."
                )
            for part in counts:
                named = name.startswith(("num_", "n_")) and part in name
                counts[part] = max(counts[part], value if named else 0)
    if counts["layer"] > MOST_LAYERS or counts["layer"] * counts["expert"] > MOST_EXPERTS:
        raise UserError(
            f"The configuration of {ref!r} has {counts['layer']:,} layers and {counts['expert']:,} experts, more than "
            "any model: it is damaged."
        )


def model_class(config: PretrainedConfig) -> Any:
    """Return the class that builds a model with a text decoder: a wrapper of several modalities has only the second."""
    only_wrapped = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return (
        AutoModelForImageTextToText
        if only_wrapped and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
        else AutoModelForCausalLM
    )


def load_tokenizer(ref: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model reference.

    Raises:
        UserError: it cannot be loaded.
    """
    where, options = source(ref)
    if (copy := _copy(where, options, *dequantised.DTYPES)) and (Path(copy) / TOKENIZER).is_file():
        return load_tokenizer(copy)
    _require_few_tokens(ref, where, options.get("revision"))
    with readable(ref):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    template = tokenizer.chat_template
    if not all(
        isinstance(text, str) for text in (template.values() if isinstance(template, dict) else [template or ""])
    ):
        raise UserError(f"The chat template of {ref!r} is no text ({brief(template)}): copy its tokenizer again.")
    return tokenizer


def _require_few_tokens(ref: str, where: str, revision: str | None) -> None:
    """Check that no token of a tokenizer on this machine has a huge number: all smaller ones would be gone through.

    Raises:
        UserError: one has.
    """
    file = Path(where) / TOKENIZER if exists(Path(where)) else None
    if file is None and where.count("/") == 1:
        cached = try_to_load_from_cache(where, TOKENIZER, revision=revision)
        file = Path(cached) if isinstance(cached, str) else None
    if file is not None and file.is_file() and (huge := HUGE_NUMBER.search(file.read_bytes())):
        number = huge[0].decode("ascii").lstrip('" :\t\r\n')
        raise UserError(f"{file} has the number {number[:20]}, which no tokenizer needs: copy the tokenizer again.")


def load_model(ref: str, dtype: str = "float32", on: torch.device | None = None) -> PreTrainedModel:
    """Load the model of a reference in eval mode, on the accelerator or the given device.

    Every weight of the model comes from the checkpoint, and every tensor of the checkpoint has a place in the model,
    but for parts beside the text model (see `BESIDES`). GGUF, FP8 and MXFP4 weights are dequantised, those of a GGUF
    file once (`lowtax.models.dequantised`).

    Args:
        dtype: float32, bfloat16, float16, nf4, nf4-float32, or auto, which is the precision of the checkpoint.

    Raises:
        UserError: it cannot be loaded, is damaged or incomplete, or is quantised in another way.
    """
    where, options = source(ref)
    if "gguf_file" not in options:
        if Path(where).is_dir():
            check_files(ref, Path(where))
        if dtype in quantised.COMPUTED:
            return _in_4_bits(ref, dtype, where, options, on or device())
        options |= _dequantising(ref, load_config(ref))
        return _loaded(ref, dtype, where, options).to(on or device()).eval()
    quantised.refuse(dtype, "A GGUF file", "give the same model in safetensors, or set precision to bfloat16")
    file = Path(where) / options["gguf_file"]
    with dequantised.alone(file):
        if copy := _copy(where, options, dtype) if dtype in dequantised.DTYPES else None:
            model = load_model(copy, dtype, on)
            model.config._name_or_path = model.name_or_path = where
            return model
        model = without_quantisation_mark(_loaded(ref, dtype, where, options))
        if dtype in dequantised.DTYPES:
            dequantised.store(file, dtype, model, load_tokenizer)
    return model.to(on or device()).eval()


def _in_4_bits(ref: str, dtype: str, where: str, options: dict[str, Any], on: torch.device) -> PreTrainedModel:
    """Load a plain checkpoint, and quantise the weights of its linear layers one by one.

    Raises:
        UserError: it is quantised already, or bitsandbytes cannot do it.
    """
    if load_config(ref).to_dict().get("quantization_config"):
        raise UserError(
            f"{ref!r} is quantised already: give the same model without quantisation for precision {dtype}."
        )
    quantised.require(dtype, on)
    model = _loaded(ref, quantised.computed(dtype), where, options | quantised.arguments(dtype, on))
    quantised.tell(ref, model)
    return model.eval()


def _copy(where: str, options: dict[str, str], *dtypes: str) -> str | None:
    """Return the folder of a dequantised copy of a model that is a GGUF file, in one of these precisions."""
    if "gguf_file" not in options:
        return None
    folder = dequantised.stored(Path(where) / options["gguf_file"], *dtypes)
    return None if folder is None else str(folder)


def _loaded(ref: str, dtype: str, where: str, options: dict[str, Any]) -> PreTrainedModel:
    """Load a model with transformers' own loading, and check that it is complete."""
    gguf, config = "gguf_file" in options, load_config(ref)
    options |= plain_gguf() if gguf else {}
    with readable(ref):
        model, report = model_class(config).from_pretrained(
            where,
            dtype=DTYPES.get(dtype, "auto"),
            use_safetensors=None if gguf else True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    _require_complete(ref, model, report)
    loaded: PreTrainedModel = model
    return loaded


def check_files(ref: str, folder: Path) -> None:
    """Check the weight files in a model's folder, by their headers.

    Raises:
        UserError: there are none in safetensors, or one is absent, cut, empty or a pointer of Git LFS.
    """
    if (folder / INDEX).is_file():
        names = indexed(folder)
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"{ref!r} lacks {', '.join(missing)}: download it again.")
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    elif pickles := sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("*.pth")]):
        raise UserError(
            f"{ref!r} has its weights in {pickles[0].name}, which may run code when it is read. If you trust it, "
            f"convert the model once: transformers' AutoModelForCausalLM.from_pretrained({str(folder)!r}, "
            "use_safetensors=False).save_pretrained(NEW), and copy its tokenizer to NEW."
        )
    elif (folder / "adapter_config.json").is_file():
        raise UserError(f"{ref!r} is an adapter, not a model: give its base as the model, and the folder as adapter.")
    else:
        raise UserError(f"{ref!r} has neither {SINGLE} nor {INDEX}: give a model in safetensors, or a .gguf file.")
    for name in names:
        tensor_files.header(folder / name)


def indexed(folder: Path) -> list[str]:
    """Return the names of the weight files in a model's index, sorted.

    Raises:
        UserError: it is no index, or names a file outside of its folder.
    """
    index = read_json(folder / INDEX, "copy the model again")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{folder / INDEX} is not an index of safetensors files: copy the model again.")
    names = sorted(set(weight_map.values()))
    if outside := [name for name in names if Path(name).name != name or not name.isprintable() or len(name) > 255]:
        raise UserError(f"{folder / INDEX} names {brief(outside[0])}, which is outside of the model's folder.")
    return names


def _dequantising(ref: str, config: PretrainedConfig) -> dict[str, Any]:
    """Return the arguments that dequantise a checkpoint; none if it is not quantised."""
    mark = config.to_dict().get("quantization_config")
    if not mark:
        return {}
    method = str(mark.get("quant_method", "unknown") if isinstance(mark, dict) else mark)
    if method not in DEQUANTISED:
        raise UserError(
            f"{ref!r} is quantised ({method}), and lowtax trains and measures plain weights: give the same model "
            "without quantisation."
        )
    say(f"  {ref}: its {method} weights are dequantised to bfloat16")
    return {"quantization_config": DEQUANTISED[method](dequantize=True)}


def _require_complete(ref: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Check that the checkpoint had every weight of the model, and no tensor that belongs nowhere.

    Raises:
        UserError: it lacks weights, or has others.
    """
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"The checkpoint of {ref!r} lacks {len(missing)} weights of {type(model).__name__}, for example "
            f"{missing[0]}: they would be random. Download or save the model again."
        )
    n, text = n_layers(model), model.config.get_text_config()
    layered = re.compile(r"(?:^|\.)layers\.(\d+)\.")
    aside, foreign = list[str](), list[str]()
    for name in sorted(report["unexpected_keys"]):
        layer = layered.search(name)
        draft = layer is not None and int(layer[1]) >= n
        (aside if draft or BESIDES.search(name) else foreign).append(name)
    if foreign:
        raise UserError(
            f"The checkpoint of {ref!r} has {len(foreign)} weights that {type(model).__name__} does not have, for "
            f"example {foreign[0]}: its config.json (model_type {text.model_type}) is that of another model."
        )
    if aside:
        say(f"  {ref}: {len(aside)} tensors beside the text model are not used, for example {aside[0]}")


def plain_gguf() -> dict[str, Any]:
    """Return the arguments with which transformers dequantises a GGUF file; newer versions may keep it in blocks."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def without_quantisation_mark(model: PreTrainedModel) -> PreTrainedModel:
    """Return the weights in a new model of the same class: transformers trains and saves no model read from GGUF."""
    config = model.config
    if "quantization_config" in config.to_dict():
        del config.quantization_config
    with torch.device("meta"):  # so that the memory never holds the weights twice
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    for new, old in zip(fresh.modules(), model.modules(), strict=True):
        new._buffers.update(old._buffers)  # also those that no checkpoint has, such as rotary frequencies
    return fresh.eval()


def n_layers(model: PreTrainedModel) -> int:
    """Return the number of transformer blocks."""
    return int(model.config.get_text_config().num_hidden_layers)


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the stop tokens of the tokenizer and of the model's generation settings."""
    configured = model.generation_config.eos_token_id
    tokens = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    return {int(token) for token in tokens}


def require_tokens(largest: int, model: PreTrainedModel, ref: str) -> None:
    """Check that the model has an embedding for a token id.

    Raises:
        UserError: the tokenizer has more tokens than the model.
    """
    table = model.get_input_embeddings()  # whose weight is empty where ZeRO-3 shards it
    rows = table.num_embeddings if isinstance(table, torch.nn.Embedding) else table.weight.shape[0]
    if largest >= rows:
        raise UserError(
            f"The tokenizer of {ref!r} gives token {largest}, but the model has {rows:,} embeddings: it is the "
            "tokenizer of another model, or the embeddings were not resized when tokens were added."
        )
