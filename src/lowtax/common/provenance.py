"""Provenance of a result: package versions, hardware, and the git commit of the working folder."""

import os
import platform
import shutil
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = ("lowtax", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "pydantic")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@lru_cache
def _version(package: str) -> str:
    return metadata.version(package)


def hardware() -> dict[str, Any]:
    """Return the machine, its processor and arithmetic, its number of threads and its accelerator."""
    import torch

    return {
        "machine": platform.machine(),
        "cpu": cpu(),
        "arithmetic": arithmetic(),
        "cpu_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@lru_cache
def cpu() -> str:
    """Return the name of the processor, as the system tells it; empty where it does not."""
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def arithmetic() -> str:
    """Return the widest instructions for products of matrices that torch uses here; a user's limit follows after @."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        widest = "AMX"
    elif torch.cpu._is_avx512_bf16_supported():
        widest = "AVX-512 bfloat16"
    else:
        widest = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return f"{widest} @ {limit}" if limit and limit != "DEFAULT" else widest


def provenance() -> dict[str, Any]:
    """Return versions, hardware and git commit, as they are stored with a result."""
    return {"versions": versions(), "hardware": hardware(), "git": _git()}


def _git() -> dict[str, Any] | None:
    """Return the commit of the working folder's repository and whether it is clean; None outside of a repository.

    The folder may be a stranger's, and the configuration of a repository can name programs. Those that `git status`
    would run are switched off; where there are filters, which cannot be, it is not called, and `clean` is None.
    """
    if not shutil.which("git") or (commit := _asked_git("rev-parse", "HEAD")) is None:
        return None
    names = _asked_git("config", "--list", "--show-scope", "--includes", "--name-only") or ""
    if any(name.startswith(("local\tfilter.", "worktree\tfilter.")) for name in names.splitlines()):
        return {"commit": commit, "clean": None}
    status = _asked_git("status", "--porcelain", "--ignore-submodules=all")
    return None if status is None else {"commit": commit, "clean": not status}


def _asked_git(*arguments: str) -> str | None:
    """Return what git prints, without programs of the repository's own; None if it fails."""
    options = ["--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    environment = os.environ | {"GIT_NO_LAZY_FETCH": "1"}
    done = subprocess.run(
        ["git", *options, *arguments], capture_output=True, text=True, errors="replace", check=False, env=environment
    )
    return None if done.returncode else done.stdout.strip()
