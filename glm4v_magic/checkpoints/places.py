"""Where the files of a checkpoint are on this machine: a folder, or the cache of a download.

`load`, `plan`, `check` and `doctor` all look here. Caches are those of the hub and of ModelScope,
by the names under which a checkpoint may have been downloaded; no network request is made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm4v_magic.checkpoints import hub
from glm4v_magic.checkpoints.foreign import file_refusal
from glm4v_magic.checkpoints.names import Named, demo_named, named
from glm4v_magic.core.errors import CheckpointError, OptionError, did_you_mean
from glm4v_magic.core.hub_page import MAIN_BRANCHES, HubPage
from glm4v_magic.core.model import DEMOS
from glm4v_magic.core.server_address import is_address_without_scheme, refuse_address
from glm4v_magic.core.wording import printable
from glm4v_magic.outside import SHUT, expanded, is_file, is_shut, is_there

__all__ = [
    "Place",
    "cached_elsewhere",
    "find_place",
    "folders_beside",
    "not_found",
    "refuse_revision",
]

_DOT = "___"  # what ModelScope writes into folders for a dot of a name

_NAME = r"[A-Za-z0-9][\w.-]*"
_SNAPSHOT = r"/snapshots(?:/(?P<revision>[\w.-]+))?"
_OF_BOTH = rf"(?P<owner>{_NAME}?)--(?P<name>{_NAME})"
_IN_CACHES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:^|/)models--{_OF_BOTH}(?:{_SNAPSHOT})?$",
        rf"(?:^|/)models/{_OF_BOTH}{_SNAPSHOT}$",
        rf"(?:^|/)modelscope/(?:hub/)?models/{_OF_BOTH}$",
        rf"(?:^|/)modelscope/(?:hub/models|hub|models)/(?!models/)(?P<owner>{_NAME})"
        rf"/(?P<name>{_NAME})$",
    )
)
"""Where caches of the hub and of ModelScope have a repository, in older layouts and today's.

A folder of the user's may be ``models/chat--v2``: nothing is to be downloaded in its place.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of a checkpoint are on this machine, if they are.

    Attributes:
        text: what the user typed.
        name: name of the checkpoint: what was typed, or the repository of a published name.
        folders: folders with its files, in the order in which they are tried; none if it is not
            here.
        published: the published checkpoint that is meant; ``None`` for any other.
        in_cache: whether the folders are in the cache of a download, which can be incomplete.
    """

    text: str
    name: str
    folders: tuple[Path, ...]
    published: Named | None = None
    in_cache: bool = False

    @property
    def repository(self) -> str:
        """Repository of the hub to download it from."""
        return self.text if self.published is None else self.published.repository


def find_place(text: str, revision: str | None = None) -> Place:
    """Find the files of a checkpoint.

    Args:
        text: folder, repository, published name, or ``demo``.
        revision: commit, branch or tag of a repository.

    Raises:
        CheckpointError: if `text` is a file.
        OptionError: if a revision is given for a folder, or `text` is the address of a server.
    """
    refuse_address(text)
    folder = expanded(text)
    there = is_there(folder)
    # A folder of the user's may be called Demo, too.
    demo = text if text in DEMOS else None if there else demo_named(text)
    if demo is not None or there:
        refuse_revision(text, revision)
    if demo is not None:
        return Place(demo, demo, (Path(__file__).parent / demo,))
    if is_shut(folder):
        raise CheckpointError(f"{text} cannot be read: permission denied.", SHUT)
    if there and folder.is_dir():
        return Place(text, text, (hub.snapshot_in(folder) or folder,))
    if there:
        raise file_refusal(text, folder)
    known = named(text)
    repositories = [text] if "/" in text else []
    if known is not None:
        repositories += [each for each in known.repositories if each != text]
    found = (*_in_hub_cache(repositories, revision), *_in_modelscope(repositories, revision))
    name = known.repository if known is not None and "/" not in text else text
    return Place(text, name, found, known, in_cache=True)


def refuse_revision(text: str, revision: str | None) -> None:
    """Raise OptionError if a revision is given for what is in a folder or a file."""
    if revision is not None:
        raise OptionError(
            f"{text} is not a repository of the hub, so it has no revision {printable(revision)}.",
            "Leave the revision out.",
        )


def _in_hub_cache(repositories: Sequence[str], revision: str | None) -> Iterator[Path]:
    for repository in repositories:
        folder = hub.cached(repository, revision)
        if folder is not None:
            yield folder


def _in_modelscope(repositories: Sequence[str], revision: str | None) -> Iterator[Path]:
    """Yield folders in ModelScope's cache; what its older versions keep there has no revisions."""
    branch = None if revision in MAIN_BRANCHES else revision
    for root in _modelscope_roots():
        for repository in repositories:
            owner, _, name = repository.partition("/")
            if not owner or not name or "/" in name or ".." in repository:
                continue
            paths = []
            snapshots = root / f"{owner}--{name}" / "snapshots"
            if branch is None:
                folders = (name.replace(".", _DOT), name)
                paths += [root / owner / each for each in dict.fromkeys(folders)]
                paths += _of_main(snapshots)
            elif ".." not in Path(branch).parts:
                paths.append(snapshots / branch.lstrip("/"))
            for path in paths:
                if any(is_file(path / config) for config in hub.CONFIGS):
                    yield path


def _of_main(snapshots: Path) -> list[Path]:
    """Return the folder of the main branch; without one, that of the only revision that is here."""
    found = hub.revisions_in(snapshots)
    main = [found[each] for each in reversed(MAIN_BRANCHES) if each in found]
    return main or (list(found.values()) if len(found) == 1 else [])


def cached_elsewhere(path: str) -> HubPage | None:
    """Return the repository that a path in the cache of a download is of, perhaps elsewhere.

    Args:
        path: a path of any machine, Windows' included; ``None`` is returned for any other.
    """
    plain = path.replace("\\", "/").rstrip("/")
    found = next(filter(None, (pattern.search(plain) for pattern in _IN_CACHES)), None)
    if found is None:
        return None
    parts = found.groupdict()
    revision = None if parts.get("revision") in MAIN_BRANCHES else parts.get("revision")
    return HubPage(f"{parts['owner']}/{parts['name'].replace(_DOT, '.')}", revision)


def _modelscope_roots() -> Iterator[Path]:
    """Yield the folders that versions of ModelScope keep models in (`snapshot_download`)."""
    given = os.environ.get("MODELSCOPE_CACHE")
    base = Path(given).expanduser() if given else Path.home() / ".cache" / "modelscope"
    for root in (base, base / "hub"):
        yield root / "models"
        yield root


def folders_beside(folder: Path) -> list[str]:
    """Return the names of the folders beside one that is not there."""
    parent = folder.parent
    near = parent.iterdir() if is_there(parent) and parent.is_dir() else ()
    return [path.name for path in near if path.is_dir()]


def not_found(text: str, kind: str = "checkpoint") -> CheckpointError:
    """Return the error that says where a checkpoint was looked for, and what may be meant."""
    folder = expanded(text)
    what = f"There is no {kind} {text!r}: no such folder, and not in the hub cache."
    if is_address_without_scheme(text):
        return CheckpointError(what, "The address of a server begins with http://.")
    siblings = folders_beside(folder)
    if kind != "checkpoint":  # the demos are none
        return CheckpointError(what, did_you_mean(folder.name, siblings))
    similar = did_you_mean(folder.name, [*siblings, *DEMOS])
    hint = similar or "Give a folder, the id of a downloaded repository, or 'demo'."
    return CheckpointError(what, hint)
