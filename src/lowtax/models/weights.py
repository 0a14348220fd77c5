"""Matrices of a model, read from its files one at a time: memory for one matrix, whatever the size of the model.

A matrix has the name of its module, model.layers.3.mlp.up_proj, as in adapters. Included are tensors that the
checkpoint stores as NAME.weight with two dimensions: linear layers and embeddings, not norms or fused experts.
A GGUF file is dequantised as a whole, by transformers.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowtax.common.errors import UserError, did_you_mean
from lowtax.models import loading

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
UNQUANTISED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names
TIED = {"lm_head": "model.embed_tokens"}  # the first is not stored where a model ties the two


class Weights(Mapping[str, Tensor]):
    """Module name -> W, (out, in), in float32 on the CPU; every access reads the file.

    An output head that a model ties to its embeddings has both names, and is listed under the stored one.
    """

    def __init__(self, ref: str, files: dict[str, Path], loaded: dict[str, Tensor]) -> None:
        self.ref = ref
        self._files, self._loaded = files, loaded
        self._shapes = dict(_shapes(files)) | {name: _shape(tensor.shape) for name, tensor in loaded.items()}

    def __getitem__(self, name: str) -> Float[Tensor, "out in"]:
        name = self._stored(name)
        if name in self._loaded:
            return self._loaded[name].float()
        with safe_open(self._files[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(f"{name}.weight")
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
        with safe_open(self._files[name], framework="pt") as opened:
            dtype = str(opened.get_slice(f"{name}.weight").get_dtype())
        return DTYPES.get(dtype, dtype)

    def _stored(self, name: str) -> str:
        if name in self._shapes:
            return name
        if TIED.get(name) in self._shapes:
            return TIED[name]
        raise UserError(f"{self.ref!r} stores no matrix {name!r}; {did_you_mean(name, self._shapes)}")


def open_weights(ref: str) -> Weights:
    """Open the matrices of a model reference (see `models.resolve`) without reading them.

    Raises:
        UserError: the model does not exist, or is not in safetensors.
    """
    where = loading.resolve(ref)
    if where.endswith(".gguf"):
        state = loading.load_model(ref, "float32", torch.device("cpu")).state_dict()
        matrices = {name.removesuffix(".weight"): t for name, t in state.items() if _is_matrix(name, t.shape)}
        if state.get("lm_head.weight") is not None and _same(state, "lm_head", TIED["lm_head"]):
            del matrices["lm_head"]
        return Weights(ref, {}, matrices)
    folder = Path(where) if Path(where).is_dir() else _snapshot(ref)
    return Weights(ref, _files(ref, folder), {})


def _same(state: dict[str, Tensor], one: str, other: str) -> bool:
    return f"{other}.weight" in state and state[f"{one}.weight"].data_ptr() == state[f"{other}.weight"].data_ptr()


def _snapshot(ref: str) -> Path:
    """Return the folder of a hub model in the hub's cache; it is downloaded if absent."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(ref, allow_patterns=["*.safetensors", INDEX, "config.json"]))
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"The model {ref!r} could not be found ({shorten(str(error), 160)}); check the name, the folder, or your "
            "access to the hub."
        ) from error


def _files(ref: str, folder: Path) -> dict[str, Path]:
    """Return module name -> the file that contains its matrix."""
    if (folder / INDEX).is_file():
        try:
            weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError) as error:
            raise UserError(f"{folder / INDEX} is not an index of safetensors files; copy the model again.") from error
        files = {name: folder / file for name, file in weight_map.items()}
    elif (folder / SINGLE).is_file():
        files = {name: folder / SINGLE for name in _header(folder / SINGLE)}
    else:
        raise UserError(f"{ref!r} has neither {SINGLE} nor {INDEX}: give a model in safetensors, or a .gguf file.")
    if missing := sorted({file.name for file in files.values() if not file.is_file()}):
        raise UserError(f"{ref!r} lacks {', '.join(missing)}: download it again.")
    return {name.removesuffix(".weight"): file for name, file in files.items() if name.endswith(".weight")}


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape for all tensors of a file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file} is not a safetensors file ({error}): copy the model again.") from error


def _shapes(files: dict[str, Path]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the names and shapes of the matrices in the files."""
    for file in dict.fromkeys(files.values()):
        for name, shape in _header(file).items():
            if _is_matrix(name, shape):
                yield name.removesuffix(".weight"), _shape(shape)


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(".weight") and len(shape) == 2


def _shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], shape[1]
