"""Matrices of a model, read from its files one at a time: memory for one matrix, whatever the size of the model.

A matrix has the name of its module, model.layers.3.mlp.up_proj, as in adapters. Included are tensors that the
checkpoint stores as NAME.weight with two dimensions: linear layers and embeddings, not norms or fused experts.
A GGUF file is dequantised as a whole, by transformers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import torch
from jaxtyping import Float
from torch import Tensor

from lowtax.common.errors import UserError, did_you_mean
from lowtax.models import loading, tensor_files
from lowtax.models.fingerprint import weight_files
from lowtax.models.frames import loaded_names

UNQUANTISED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TIED = {"lm_head": "model.embed_tokens"}  # the first is not stored where a model ties the two


class Weights(Mapping[str, Tensor]):
    """Module name -> W, (out, in), in float32 on the CPU; every access reads the file.

    An output head that a model ties to its embeddings has both names, and is listed under the stored one.
    """

    def __init__(self, ref: str, stored: dict[str, "Matrix"], loaded: dict[str, Tensor]) -> None:
        self.ref = ref
        self._files, self._loaded = stored, loaded
        self._shapes = {name: matrix.shape for name, matrix in stored.items()}
        self._shapes |= {name: (tensor.shape[0], tensor.shape[1]) for name, tensor in loaded.items()}

    def __getitem__(self, name: str) -> Float[Tensor, "out in"]:
        name = self._stored(name)
        if name in self._loaded:
            return self._loaded[name].float()
        matrix = self._files[name]
        tensor = tensor_files.tensor(matrix.file, matrix.key)
        if tensor.dtype not in UNQUANTISED:
            raise UserError(
                f"{self.ref!r} is quantised ({name} is {str(tensor.dtype).removeprefix('torch.')}): give the same "
                "model without quantisation."
            )
        return tensor.float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes or TIED.get(str(name)) in self._shapes

    def names(self) -> list[str]:
        """Return the names of the stored matrices, in the order of the files."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, int]:
        """Return (out, in), without reading the matrix."""
        return self._shapes[self._stored(name)]

    def dtype(self, name: str) -> str:
        """Return the stored precision of a matrix: float32, bfloat16 ..."""
        name = self._stored(name)
        if name in self._loaded:
            return str(self._loaded[name].dtype).removeprefix("torch.")
        return self._files[name].dtype

    def _stored(self, name: str) -> str:
        if name in self._shapes:
            return name
        if TIED.get(name) in self._shapes:
            return TIED[name]
        raise UserError(f"{self.ref!r} stores no matrix {name!r}; {did_you_mean(name, self._shapes)}")


@dataclass(frozen=True)
class Matrix:
    """A matrix in a file: the name of its tensor there, its precision and its shape (out, in)."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, int]


def open_weights(ref: str) -> Weights:
    """Open the matrices of a model reference (see `models.resolve`) without reading them.

    Raises:
        UserError: the model does not exist, is damaged, or is not in safetensors.
    """
    where = loading.resolve(ref)
    if where.endswith(".gguf"):
        state = loading.load_model(ref, "float32", torch.device("cpu")).state_dict()
        matrices = {
            name.removesuffix(".weight"): t for name, t in state.items() if name.endswith(".weight") and t.ndim == 2
        }
        if state.get("lm_head.weight") is not None and _same(state, "lm_head", TIED["lm_head"]):
            del matrices["lm_head"]
        return Weights(ref, {}, matrices)
    folder = Path(where) if Path(where).is_dir() else _snapshot(ref)
    loading.check_files(ref, folder)
    return Weights(ref, _matrices(ref, folder), {})


def _same(state: dict[str, Tensor], one: str, other: str) -> bool:
    return f"{other}.weight" in state and state[f"{one}.weight"].data_ptr() == state[f"{other}.weight"].data_ptr()


def _snapshot(ref: str) -> Path:
    """Return the folder of a hub model in the hub's cache; it is downloaded if absent."""
    from huggingface_hub import errors, snapshot_download

    name, options = loading.source(ref)
    kinds = ["*.safetensors", loading.INDEX, "config.json"]
    try:
        return Path(snapshot_download(name, revision=options.get("revision"), allow_patterns=kinds))
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"The model {ref!r} could not be found ({shorten(str(error), 160)}); check the name, the folder, or your "
            "access to the hub."
        ) from error


def _matrices(ref: str, folder: Path) -> dict[str, Matrix]:
    """Return the matrices in a model's files by the names of their modules in the loaded model."""
    stored = {key: (file, tensor) for file in weight_files(folder) for key, tensor in tensor_files.header(file).items()}
    names = loaded_names(ref, stored)
    return {
        names[key].removesuffix(".weight"): Matrix(file, key, tensor.dtype, (tensor.shape[0], tensor.shape[1]))
        for key, (file, tensor) in stored.items()
        if names.get(key, "").endswith(".weight") and len(tensor.shape) == 2
    }
