"""Loading of models and tokenizers by reference: a built-in name, a folder, a GGUF file or a hub id.

A study has one precision, for training and evaluating alike: `float32` computes in float32; `bfloat16` keeps the
weights of a forward pass in bfloat16, with float32 adapters (LoRA) or float32 master weights (full fine-tuning).
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lowtax.common.errors import UserError
from lowtax.common.files import read_json
from lowtax.models import embedded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device() -> torch.device:
    """Return the accelerator, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(name: str, deepspeed: str | None = None) -> str:
    """Resolve `auto`: the precision in a DeepSpeed JSON, or bfloat16 if the hardware multiplies it, else float32.

    Args:
        name: float32, bfloat16, float16 or auto.
        deepspeed: path of a DeepSpeed configuration.

    Raises:
        UserError: float16 without DeepSpeed.
    """
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
    """Return what transformers can load: a folder for built-in names and paths, else the hub id.

    Raises:
        UserError: a path that does not exist, or an unknown built-in name.
    """
    if ref.startswith("builtin:"):
        return str(embedded.folder(ref.removeprefix("builtin:")))
    path = Path(ref).expanduser()
    if path.exists():
        return str(path)
    if ref.startswith((".", "/", "~")) or ref.count("/") > 1 or ref.endswith(".gguf"):
        raise UserError(
            f"There is no model at {ref!r}: give a folder, a .gguf file, a hub id such as owner/name, or builtin:NAME."
        )
    return ref


def identity(ref: str) -> str:
    """Return a string that differs between versions of a model's weights.

    File names, sizes and times of a local model; the versioned folder of a built-in one; the name of a hub model.
    """
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
    """Load the tokenizer of a model reference.

    Raises:
        UserError: it cannot be loaded.
    """
    where = resolve(ref)
    root = str(Path(where).parent) if where.endswith(".gguf") else where
    try:
        return AutoTokenizer.from_pretrained(root, **_gguf(where))
    except (OSError, ValueError) as error:
        raise _unloadable(ref, error) from error


def load_model(ref: str, dtype: str = "float32", on: torch.device | None = None) -> PreTrainedModel:
    """Load the model of a reference in eval mode, on the accelerator or the given device; GGUF is dequantised.

    Raises:
        UserError: it cannot be loaded.
    """
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
    """Return the weights in a new model of the same class: transformers trains and saves no model read from GGUF."""
    config = model.config
    if "quantization_config" in config.to_dict():
        del config.quantization_config
    fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    return fresh.to(model.dtype)


def n_layers(model: PreTrainedModel) -> int:
    """Return the number of transformer blocks."""
    return int(model.config.get_text_config().num_hidden_layers)


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the stop tokens of the tokenizer and of the model's generation settings."""
    configured = model.generation_config.eos_token_id
    tokens = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    return {int(token) for token in tokens}


def _unloadable(ref: str, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0]
    return UserError(
        f"The model {ref!r} could not be loaded ({first}); check the name, the folder, or your access to the hub."
    )
