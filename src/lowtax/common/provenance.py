"""Provenance of a result: package versions, hardware, and the git commit of the working folder."""

import platform
import shutil
import subprocess
from functools import lru_cache
from importlib import metadata
from typing import Any

PACKAGES = ("lowtax", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "pydantic")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@lru_cache
def _version(package: str) -> str:
    return metadata.version(package)


def hardware() -> dict[str, Any]:
    """Return the machine, its number of threads and its accelerator."""
    import torch

    return {
        "machine": platform.machine(),
        "cpu_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def provenance() -> dict[str, Any]:
    """Return versions, hardware and git commit, as they are stored with a result."""
    return {"versions": versions(), "hardware": hardware(), "git": _git()}


def _git() -> dict[str, Any] | None:
    """Return the commit of the working folder's repository and whether it is clean; None outside of a repository."""
    outputs = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        if not shutil.which("git"):
            return None
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            return None
        outputs.append(done.stdout.strip())
    return {"commit": outputs[0], "clean": not outputs[1]}
