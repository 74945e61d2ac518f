"""Checkpoints of the Hugging Face hub, found in the local cache or downloaded into it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glm4v_magic.core.errors import CheckpointError, reason
from glm4v_magic.core.hub_page import MAIN_BRANCHES
from glm4v_magic.outside import is_folder

__all__ = [
    "ADAPTER_WEIGHTS",
    "CONFIGS",
    "NEEDED_FILES",
    "cached",
    "download",
    "fetch_adapter",
    "is_offline",
    "names_a_repository",
    "not_whole",
    "revisions_in",
    "snapshot_in",
]

CONFIGS = ("config.json", "adapter_config.json")
"""What a folder with a checkpoint, or with an adapter of one, has in any case."""

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""Files in which peft saves the weights of an adapter."""

NEEDED_FILES = ("*.json", "*.safetensors", "tokenizer.model", "chat_template.jinja")
"""Patterns of files to download: no remote code, no weights in other formats."""


def _is_repository_id(text: str) -> bool:
    """Tell whether `text` has the form ``owner/name``, which a path may have, too."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def names_a_repository(text: str) -> bool:
    """Tell whether `text` may be on the hub: not if a local folder has the owner's name."""
    return _is_repository_id(text) and not is_folder(Path(text).parent)


def cached(repository: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repository in the local cache; makes no network request.

    Args:
        repository: ``owner/name``, in any case.
        revision: commit, branch or tag; ``None`` for the main branch.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:  # a plan needs no more than sizes, as in a browser
        return None
    if not _is_repository_id(repository):
        return None
    for written in _as_downloaded(repository):
        for file in CONFIGS:
            config = try_to_load_from_cache(written, file, revision=revision)
            if isinstance(config, str):
                return Path(config).parent
    return None


def snapshot_in(folder: Path) -> Path | None:
    """Return the files in the folder that a cache has for a repository; ``None`` for any other.

    Args:
        folder: ``models--owner--name``, which holds `refs` and `snapshots`; or ModelScope's
            ``owner--name``, which holds `snapshots` by the names of their branches.
    """
    found = revisions_in(folder / "snapshots")
    for chosen in (_plain_name(folder / "refs" / "main"), *reversed(MAIN_BRANCHES)):
        if chosen in found:
            return found[chosen]
    return max(found.values(), key=lambda path: path.stat().st_mtime, default=None)


def revisions_in(snapshots: Path) -> dict[str, Path]:
    """Return the folders in ``snapshots`` of a cache by their names; none if it cannot be read."""
    try:
        return {path.name: path for path in snapshots.iterdir() if path.is_dir()}
    except OSError:
        return {}


def _plain_name(file: Path) -> str:
    """Return the name of a folder that a file holds; empty if there is none, or a path."""
    try:
        name = file.read_bytes().decode(errors="replace").strip()
    except OSError:
        return ""
    return name if re.fullmatch(r"\w[\w.-]*", name) else ""


def _as_downloaded(repository: str) -> Iterator[str]:
    """Yield a repository as it is written, then as it is in the cache: the hub ignores case."""
    from huggingface_hub import constants

    yield repository
    wanted = f"models--{repository.replace('/', '--')}"
    try:
        names = sorted(path.name for path in Path(constants.HF_HUB_CACHE).iterdir())
    except OSError:
        return
    for name in names:
        if name != wanted and name.lower() == wanted.lower():
            yield name.removeprefix("models--").replace("--", "/", 1)


def download_config(repository: str, revision: str | None) -> Path:
    """Download the ``config.json`` of a repository and return its folder.

    Args:
        repository: ``owner/name``.
        revision: commit, branch or tag; ``None`` for the main branch.

    Raises:
        CheckpointError: without a network, if the hub has no such repository or revision or
            requires a login, or if the file cannot be written.
    """
    from huggingface_hub import hf_hub_download

    with _explained(repository, revision):
        _require_network(repository, revision)
        return Path(hf_hub_download(repository, "config.json", revision=revision)).parent


def download(repository: str, revision: str | None) -> Path:
    """Download the missing files of a repository and return its folder; as `download_config`.

    An interrupted download resumes where it stopped.
    """
    from huggingface_hub import snapshot_download

    with _explained(repository, revision):
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(NEEDED_FILES))
        )


@contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    """Turn whatever a download inside the block raises into CheckpointError."""
    from huggingface_hub import errors

    what = _with_revision(repository, revision)
    try:
        yield
    except errors.GatedRepoError:
        failure = (
            f"The hub gives {what} only to users who accepted its terms.",
            "Accept them on its page and log in with: hf auth login.",
        )
    except errors.RepositoryNotFoundError:
        failure = (
            f"There is no checkpoint {repository!r}: no such folder, not in the hub cache, and "
            "not on the hub.",
            "Check the spelling; a private repository needs a login.",
        )
    except errors.RevisionNotFoundError:
        failure = (f"{repository} has no revision {revision!r} on the hub.", "")
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        failure = _offline(what)
    except Exception as error:  # whatever the HTTP client or the disk has to say
        failure = (f"{what} cannot be downloaded: {reason(error)}.", "")
    else:
        return
    raise CheckpointError(*failure)


def fetch_adapter(repository: str, revision: str | None = None) -> Path | None:
    """Download a repository if it holds an adapter alone; return its folder, or ``None``.

    What is wrong with another repository is told by the download of the whole model. A download
    that was begun goes on.

    Raises:
        CheckpointError: if an adapter cannot be downloaded.
    """
    from huggingface_hub import errors, hf_hub_download

    if not names_a_repository(repository):
        return None
    if cached(repository, revision) is not None:
        with _explained(repository, revision), suppress(errors.EntryNotFoundError):
            _require_network(repository, revision)  # an adapter has no config.json
        return download(repository, revision)
    try:
        _require_network(repository, revision)
    except errors.EntryNotFoundError:  # it has no config.json
        pass
    except (errors.HfHubHTTPError, ConnectionError):
        return None
    else:
        return None
    try:
        hf_hub_download(repository, CONFIGS[1], revision=revision)
    except Exception:  # whatever the HTTP client or the disk has to say
        return None
    return download(repository, revision)


def not_whole(repository: str, revision: str | None) -> CheckpointError:
    """Return the error that the download of an adapter was stopped before its weights.

    A load goes on with it, where there is a network.
    """
    what = _with_revision(repository, revision)
    if is_offline():
        return CheckpointError(*_offline(what))
    return CheckpointError(
        f"The download of {what} was stopped before its weights.", "A load goes on with it."
    )


def _with_revision(repository: str, revision: str | None) -> str:
    return repository if revision is None else f"{repository} at {revision}"


def _require_network(repository: str, revision: str | None) -> None:
    """Make one request: a download without a network would retry for most of a minute.

    Raises:
        ConnectionError: if there is no response.
        HfHubHTTPError: if the response is an error.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision))
    except errors.HfHubHTTPError:
        raise
    except Exception as error:  # of the HTTP client, whichever that is
        raise ConnectionError(reason(error)) from error


def is_offline() -> bool:
    """Tell whether the user has switched downloads off (``HF_HUB_OFFLINE=1``)."""
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        return False
    return bool(constants.HF_HUB_OFFLINE)


def _offline(what: str) -> tuple[str, str]:
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if is_offline() else "the hub cannot be reached"
    return (
        f"{what} is not, or not wholly, in the hub cache ({os.fspath(constants.HF_HUB_CACHE)}), "
        f"and {why}.",
        "Download it where there is a network and give its folder, or start Python with HF_HOME "
        "set to the folder that its cache (hub) is in.",
    )
