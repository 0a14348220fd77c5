"""A model reference (built-in name, folder, GGUF file, hub id) becomes a model and its tokenizer.

Precision is stated once for a whole study and used for training and evaluating alike:
`float32` computes in float32; `bfloat16` holds the weights that take part in a forward pass in
bfloat16, with float32 adapters (LoRA) or float32 master weights (full fine-tuning) beside them.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lowtax import builtin
from lowtax.errors import UserError
from lowtax.files import read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device() -> torch.device:
    """The accelerator, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(asked: str, deepspeed: str | None = None) -> str:
    """`auto` becomes what a DeepSpeed JSON enables, or bfloat16 where the hardware multiplies bfloat16 matrices, else
    float32."""
    if asked == "float16" and deepspeed is None:
        raise UserError("float16 trains only under DeepSpeed, which scales the loss: set precision to bfloat16.")
    if asked != "auto":
        return asked
    if deepspeed is not None:
        sections = read_json(Path(deepspeed))
        for name, kind in (("fp16", "float16"), ("bf16", "bfloat16")):
            if isinstance(sections, dict) and sections.get(name, {}).get("enabled") is True:
                return kind
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def resolve(ref: str) -> str:
    """What transformers should load: a folder for built-in names and paths, else the hub id."""
    if ref.startswith("builtin:"):
        return str(builtin.folder(ref.removeprefix("builtin:")))
    path = Path(ref).expanduser()
    if path.exists():
        return str(path)
    if ref.startswith((".", "/", "~")) or ref.count("/") > 1 or ref.endswith(".gguf"):
        raise UserError(
            f"There is no model at {ref!r}: give a folder, a .gguf file, a hub id such as owner/name, or builtin:NAME."
        )
    return ref


def identity(ref: str) -> str:
    """What tells one version of a model's weights from another: file names, sizes and times of a local
    model; the versioned folder of a built-in one; the name of one on the hub."""
    where = Path(resolve(ref))
    if ref.startswith("builtin:"):
        return where.name
    if not where.exists():
        return ref
    files = (
        [where]
        if where.is_file()
        else sorted(p for p in where.iterdir() if p.suffix in (".json", ".safetensors", ".jinja"))
    )
    return " ".join(f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files)


def _gguf(folder: str) -> dict[str, str]:
    return {"gguf_file": Path(folder).name} if folder.endswith(".gguf") else {}


def load_tokenizer(ref: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model reference."""
    where = resolve(ref)
    root = str(Path(where).parent) if where.endswith(".gguf") else where
    try:
        return AutoTokenizer.from_pretrained(root, **_gguf(where))
    except (OSError, ValueError) as error:
        raise _unloadable(ref, error) from error


def load_model(ref: str, dtype: str = "float32", on: torch.device | None = None) -> PreTrainedModel:
    """The model of a reference, on the accelerator or where asked, in eval mode. GGUF weights are dequantised."""
    where = resolve(ref)
    root = str(Path(where).parent) if where.endswith(".gguf") else where
    try:
        model = AutoModelForCausalLM.from_pretrained(
            root, dtype=DTYPES[dtype], use_safetensors=None if _gguf(where) else True, **_gguf(where)
        )
    except (OSError, ValueError) as error:
        raise _unloadable(ref, error) from error
    if _gguf(where):
        model = without_quantisation_mark(model)
    return model.to(on or device()).eval()


def without_quantisation_mark(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a class built anew: a model read from GGUF refuses to be trained or saved."""
    config = model.config
    if "quantization_config" in config.to_dict():
        del config.quantization_config
    fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    return fresh.to(model.dtype)


def n_layers(model: PreTrainedModel) -> int:
    """How many transformer blocks the model has."""
    return int(model.config.get_text_config().num_hidden_layers)


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens at which the model is told to stop, by its tokenizer and by its generation settings."""
    asked = model.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(asked if isinstance(asked, list) else [asked])} - {None}
    return {int(token) for token in found}


def _unloadable(ref: str, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0]
    return UserError(
        f"The model {ref!r} could not be loaded ({first}); check the name, the folder, or your access to the hub."
    )
