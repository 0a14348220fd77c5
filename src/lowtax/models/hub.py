"""Uploads of a checkpoint folder to the Hugging Face hub: weights, configuration, tokenizer and card, nothing else.

Repositories are private by default, and a private push to a repository that is already public is refused.
"""

import re
from pathlib import Path
from textwrap import shorten

from lowtax.common.errors import UserError
from lowtax.common.files import read_mapping
from lowtax.common.log import say
from lowtax.models.adapters import CONFIG, COPY, is_adapter
from lowtax.models.model_card import hub_id

REPO = r"[\w-][\w.-]*/[\w-][\w.-]*"
IGNORED = (
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
"""Hidden files, the state of resumed runs, logs, and the marker of `lowtax merge`, which names local folders."""


def require_readable(ref: str, role: str) -> None:
    """Check that a model of the hub can be downloaded.

    Args:
        ref: its id.
        role: what it is needed for, in the error.

    Raises:
        UserError: There is no such model, it is gated and not granted, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    needed, cure = f"{role} needs the model {ref!r}, which", f"`hf download {ref}`"
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{needed} is not on this machine, and HF_HUB_OFFLINE is set: run {cure} where there is a network."
        )
    errors: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, ValueError)
    try:
        HfApi().auth_check(ref)
    except GatedRepoError as error:
        raise UserError(
            f"{needed} is gated: accept its terms at https://huggingface.co/{ref}, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{needed} is not on the hub, or is private: check the name, or run `hf auth login`."
        ) from error
    except errors as error:
        reason = shorten(str(error), 160) or type(error).__name__
        raise UserError(
            f"{needed} cannot be reached ({reason}): check the network, or run {cure} beforehand."
        ) from error


def require_pushable(repo: str, *, private: bool = True) -> None:
    """Check, before hours of training, that a push to a repository can succeed.

    Args:
        repo: OWNER/NAME.
        private: the push is to be private.

    Raises:
        UserError: The name has another form, there is no login, the hub cannot be reached, or the repository is public.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if not re.fullmatch(REPO, repo):
        raise UserError(f"--push-to-hub takes OWNER/NAME, such as your-name/refusals (found {repo!r}).")
    if get_token() is None:
        raise _no_login(repo)
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"HF_HUB_OFFLINE is set, so that nothing can be pushed to {repo}: unset it, or push later.")
    api = HfApi()
    errors: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, ValueError)
    try:
        api.whoami()
        try:
            public = not api.model_info(repo).private
        except RepositoryNotFoundError:
            return
    except errors as error:
        raise UserError(
            f"The hub does not let you push to {repo} ({shorten(str(error), 240) or type(error).__name__}): check the "
            "network and your login."
        ) from error
    if private and public:
        raise _is_public(repo)


def _no_login(repo: str) -> UserError:
    return UserError(
        f"You are not logged in to the hub, and cannot write to {repo}: run `hf auth login`, or set HF_TOKEN."
    )


def _is_public(repo: str) -> UserError:
    return UserError(f"{repo} is public already: push to another repository, or push with --public.")


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a folder and return its address; the repository and the branch `revision` are created if absent.

    Raises:
        UserError: no checkpoint in the folder, no login, no network, or a repository that refuses the upload.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    _check(folder)
    if get_token() is None:
        raise _no_login(repo)
    api = HfApi()
    # No network, offline mode, refusal, no such repository: an error of the HTTP library, whichever it is, or OSError.
    errors: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, ValueError)
    try:
        repo_id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise _is_public(repo_id)
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message or f"{folder.resolve().name}, by lowtax",
            ignore_patterns=list(IGNORED),
        )
    except errors as error:
        raise UserError(
            f"{folder} could not be pushed to {repo} ({shorten(str(error), 240) or type(error).__name__}); "
            "check the network, the repository's name, and that your token may write to it."
        ) from error
    address = f"{api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")
    say(f"  pushed {folder} to {address} ({'private' if private else 'public'}, commit {commit.oid[:12]})")
    return address


def _check(folder: Path) -> None:
    """Refuse a folder without a checkpoint, and report a base that nobody else can load."""
    if not is_adapter(folder) and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no checkpoint (neither adapter_config.json nor config.json): give the folder of one."
        )
    if not is_adapter(folder):
        return
    base = read_mapping(folder / CONFIG, advice=COPY).get("base_model_name_or_path")
    if not hub_id(str(base)):
        say(
            f"  the adapter's base is {base!r}, which is not on the hub: anyone who loads it needs a copy of that model"
        )
