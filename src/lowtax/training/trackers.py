"""Trackers of training: TensorBoard, Weights & Biases and trackio, checked before a run and started with it."""

import netrc
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from accelerate import Accelerator

from lowtax.common.borders import expanded
from lowtax.common.errors import UserError

PROJECT = "lowtax"
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
WITHOUT_LOGIN = ("offline", "disabled", "dryrun")  # values of WANDB_MODE


def check(names: Sequence[str]) -> None:
    """Refuse trackers that would only fail when training begins.

    Raises:
        UserError: A package is not installed, or there is no login.
    """
    for name in names:
        if not any(find_spec(package) for package in PACKAGES[name]):
            raise UserError(
                f"report_to {name!r} needs a package that is not installed: pip install {PACKAGES[name][0]}."
            )
    if "wandb" in names and not _may_log_in_to_wandb():
        raise UserError(
            "report_to 'wandb' needs a login, and there is none: run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline."
        )


def _may_log_in_to_wandb() -> bool:
    """Test whether W&B needs no login, or has a key in the environment or in the netrc file."""
    environment = os.environ
    if environment.get("WANDB_MODE", "").lower() in WITHOUT_LOGIN or environment.get("WANDB_DISABLED"):
        return True
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [environment.get("NETRC"), "~/.netrc", "~/_netrc"]
    return any(_has_login(expanded(file), host) for file in files if file)


def _has_login(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def start(acc: Accelerator, name: str, settings: dict[str, Any]) -> None:
    """Start the accelerator's trackers, with one run of this name; nothing if it has none.

    Args:
        settings: of the run, to be shown beside it; nested mappings get dotted keys.

    Raises:
        UserError: A tracker refuses to start.
    """
    if not acc.log_with:
        return
    named = {"name": name} if name else {}
    try:
        acc.init_trackers(
            PROJECT, config=_scalars(settings), init_kwargs={"wandb": dict(named), "trackio": dict(named)}
        )
    except Exception as error:  # each tracker has its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        names = ", ".join(str(tracker) for tracker in acc.log_with)
        raise UserError(f"The tracker ({names}) does not start: {reason}; log in, or leave report_to out.") from error


def _scalars(settings: dict[str, Any], key: str = "") -> dict[str, Any]:
    """Return the settings that a tracker can show, with dotted keys."""
    shown = dict[str, Any]()
    for name, value in settings.items():
        if isinstance(value, dict):
            shown |= _scalars(value, f"{key}{name}.")
        elif value is not None:
            shown[f"{key}{name}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return shown
