"""A checkpoint folder goes to the Hugging Face hub: weights, configuration, tokenizer and card, and nothing else.

Private unless asked otherwise, and never into a repository that is public already when private was asked for.
"""

from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

from lowtax.adapterfile import CONFIG, is_adapter
from lowtax.errors import UserError
from lowtax.files import read_json
from lowtax.modelcard import hub_id

Say = Callable[[str], None]

LEFT_OUT = (
    ".*",
    "*/.*",
    "*.pt",
    "*.pth",
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "merge.json",
    "events.out.tfevents*",
)
"""Hidden files, what only a resumed run needs, logs, and the marker of `lowtax merge`, which names local folders."""


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    say: Say = print,
) -> str:
    """Upload a folder, creating the repository and the branch `revision` if they are not there; returns its address.

    Raises:
        UserError: no checkpoint in the folder, no login, no network, or a repository that refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    _check(folder, say)
    if get_token() is None:
        raise UserError(
            f"Not logged in to the hub, so that {repo} cannot be written: run `hf auth login`, or set HF_TOKEN."
        )
    api = HfApi()
    # No network, offline mode, refused, no such repository: the transport's error (whichever library it is) or OSError.
    errors: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, ValueError)
    try:
        found = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if private and not api.model_info(found).private:
            raise UserError(f"{found} is public already: push to another repository, or push with --public.")
        if revision:
            api.create_branch(found, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=found,
            folder_path=folder,
            revision=revision,
            commit_message=message or f"{folder.resolve().name}, by lowtax",
            ignore_patterns=list(LEFT_OUT),
        )
    except errors as error:
        raise UserError(
            f"{folder} could not be pushed to {repo} ({shorten(str(error), 240) or type(error).__name__}); "
            "check the network, the repository's name, and that your token may write to it."
        ) from error
    where = f"{api.endpoint}/{found}" + (f"/tree/{revision}" if revision else "")
    say(f"  pushed {folder} to {where} ({'private' if private else 'public'}, commit {done.oid[:12]})")
    return where


def _check(folder: Path, say: Say) -> None:
    """Refuse what is no checkpoint, and say if nobody else could load it."""
    if not is_adapter(folder) and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no checkpoint (neither adapter_config.json nor config.json): nothing was pushed."
        )
    if not is_adapter(folder):
        return
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not hub_id(str(base)):
        say(f"  the adapter's base is {base!r}, which is not on the hub: who loads the adapter must have that model")
