"""Offline reading: read what this machine has, and list what it lacks.

`OfflineSource.read` is the only place where a failed read becomes an entry of that list. Every other error is the
recipe's and stays an error.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from huggingface_hub import constants, errors, try_to_load_from_cache

from lowtax.common.errors import UserError
from lowtax.data.catalog import PROMPT_SETS
from lowtax.data.readers import is_hub_id
from lowtax.models import embedded

P = ParamSpec("P")
T = TypeVar("T")
EMBEDDED = {f"builtin:{name}" for name in embedded.BUILDERS}
OFFLINE = "HF_HUB_OFFLINE"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
NOT_LOCAL = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ImportError)
OFF_HUB = {name for name, named in PROMPT_SETS.items() if not named.hub}  # prompt sets that no hub has


@contextmanager
def offline() -> Iterator[None]:
    """Restrict the hub's libraries to their caches."""
    variable, flag = os.environ.get(OFFLINE), constants.HF_HUB_OFFLINE
    os.environ[OFFLINE], constants.HF_HUB_OFFLINE = "1", True  # the variable is for libraries imported from here on
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = flag
        os.environ.pop(OFFLINE)
        os.environ.update({} if variable is None else {OFFLINE: variable})


class OfflineSource:
    """A reader of local files and caches. `missing` maps what is not available to what to do."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}

    def read(self, name: str, load: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what `load` reads; None, and list its error, if only a download or an installation is missing.

        Raises:
            UserError: The read fails for any other reason.
        """
        try:
            return load(*args, **kwargs)
        except UserError as error:
            if not _is_not_local(error) and name not in OFF_HUB:
                raise
            self.missing[name] = str(error)
            return None

    def need_model(self, ref: str, role: str) -> None:
        """List a model whose weights are not on this machine. `role` is what it is needed for."""
        step = f"`hf download {ref}`; if it is gated, accept its terms and `hf auth login` first"
        if not is_local(ref):
            self.missing[f"{role} {ref}"] = "the first run builds it" if ref in EMBEDDED else step


def is_local(ref: str) -> bool:
    """Return False for a model of the hub whose weights are not in its cache, and for an embedded one not yet built."""
    if ref in EMBEDDED:
        name = ref.removeprefix("builtin:")
        return (embedded.cache() / f"{name}-{embedded.version(name)}").exists()
    if not is_hub_id(ref) or Path(ref).exists():
        return True
    return any(isinstance(try_to_load_from_cache(ref, name), str) for name in WEIGHTS)


def _is_not_local(error: BaseException) -> bool:
    """Return whether a download or an installation would prevent the error."""
    return isinstance(error, NOT_LOCAL) or (error.__cause__ is not None and _is_not_local(error.__cause__))
