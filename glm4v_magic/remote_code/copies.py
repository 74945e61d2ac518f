"""Where a checkpoint's own code is on this machine: its folder, and transformers' copies of it.

transformers does not run the files of a checkpoint but copies of them, beneath
``HF_HOME/modules/transformers_modules``. Where they are depends on its version and on what it was
given:

==================  ==================================  ===========================================
given               4.x                                 5.x
==================  ==================================  ===========================================
a folder            ``glm-4v-9b/``                      ``glm_hyphen_4v_hyphen_9b/HASH/``
an id of the hub    ``THUDM/glm-4v-9b/COMMIT/``         ``THUDM/glm_hyphen_4v_hyphen_9b/COMMIT/``
==================  ==================================  ===========================================

The copy of a folder is made again when the folder's files change. That of an id of the hub is not:
it stays as it was first downloaded. The standard library alone, so that it runs anywhere.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from glm4v_magic.core.errors import CheckpointError

__all__ = ["CodeFolders", "code_folders"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PAGE = re.compile(rf"https?://[^/]+/(?P<id>{_ID.pattern})(?:[/?#].*)?")
_TOWER = "visual.py"


@dataclass(frozen=True)
class CodeFolders:
    """Folders with the code of one checkpoint.

    Attributes:
        folders: those that it is loaded from: the one that was named, or those of the caches.
        copies: transformers' copies of them, which are what runs.
    """

    folders: tuple[Path, ...]
    copies: tuple[Path, ...]


def code_folders(text: str | Path) -> CodeFolders:
    """Find the code of a checkpoint: a folder, or an id such as ``THUDM/glm-4v-9b``.

    A folder counts before an id. Nothing is downloaded.

    Raises:
        CheckpointError: if the folder does not exist, the id is in no cache, or nothing is named.
    """
    if not str(text).strip():  # as of an unset variable of a shell; a Path of it is the folder here
        raise CheckpointError(
            "No checkpoint is named.", 'Name its folder, "." for this one, or its id.'
        )
    page = _PAGE.fullmatch(str(text))
    text = page["id"] if page else text
    folder = Path(text)
    with contextlib.suppress(RuntimeError):  # there is no such user
        folder = folder.expanduser()
    if _exists(folder) or not _ID.fullmatch(str(text)):
        of_folder = tuple(path for path in _copies_of_folder(folder) if path != folder)
        return CodeFolders((folder,), of_folder)
    repository = str(text)
    folders = tuple(dict.fromkeys((*_snapshots(repository), *_in_modelscope(repository))))
    copies = list(_copies_of_repository(repository))
    for found in folders:
        copies += _copies_of_folder(found)
    if not folders and not copies:
        raise CheckpointError(
            f"There is no folder {repository}, and no code of a repository of that name in "
            f"{' or '.join(map(str, (*_hub_caches(), _modules())))}.",
            "Name the folder that the checkpoint was downloaded to, with its own code.",
        )
    return CodeFolders(folders, tuple(dict.fromkeys(copies)))


def _exists(path: Path) -> bool:
    """Tell whether a path exists; one that is longer than any name of a file does not."""
    try:
        return path.exists()
    except OSError:
        return False


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache"


def _hf_home() -> Path:
    given = os.environ.get("HF_HOME")
    return Path(given).expanduser() if given else _cache() / "huggingface"


def _hub_caches() -> list[Path]:
    """Return the cache of the hub, and before it that of transformers 4, if it has one of its own.

    Other programs download into the first, and transformers 4 looks into its own alone.
    """
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    own = os.environ.get("TRANSFORMERS_CACHE")
    found = [Path(given).expanduser() if given else _hf_home() / "hub"]
    return [Path(own).expanduser(), *found] if own else found


def _modules() -> Path:
    given = os.environ.get("HF_MODULES_CACHE")
    base = Path(given).expanduser() if given else _hf_home() / "modules"
    return base / "transformers_modules"


def _snapshots(repository: str) -> Iterator[Path]:
    """Yield the downloaded revisions of a repository; the hub's names know no case."""
    wanted = f"models--{repository.replace('/', '--')}".lower()
    for found in chain.from_iterable(map(_inside, _hub_caches())):
        if found.name.lower() == wanted:
            yield from _with_code(_inside(found / "snapshots"))


def _in_modelscope(repository: str) -> Iterator[Path]:
    given = os.environ.get("MODELSCOPE_CACHE")
    base = Path(given).expanduser() if given else Path.home() / ".cache" / "modelscope"
    owner, _, name = repository.partition("/")
    for root in (base, base / "hub"):
        for owners in (root / "models" / owner, root / owner):
            yield from _with_code(owners / each for each in {name, name.replace(".", "___")})
    for root in (base, base / "hub"):
        yield from _with_code(_inside(root / "models" / f"{owner}--{name}" / "snapshots"))


def _copies_of_repository(repository: str) -> Iterator[Path]:
    owner, _, name = repository.partition("/")
    for owners in _inside(_modules()):
        if owners.name.lower() in _written(owner):
            for found in _inside(owners):
                if found.name.lower() in _written(name):
                    yield from _with_code(_inside(found))


def _copies_of_folder(folder: Path) -> Iterator[Path]:
    """Yield the copies of a folder; of a revision in the hub's cache, those of its repository."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        repository = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        yield from (each for each in _copies_of_repository(repository) if each.name == folder.name)
    for found in _inside(_modules()):
        if found.name.lower() in _written(folder.name):
            yield from _with_code([found, *_inside(found)])


def _written(name: str) -> tuple[str, str]:
    """Return how versions of transformers write a name as one of a module, in lower case."""
    module = name.replace(".", "_dot_").replace("-", "_hyphen_")
    return name.lower(), (f"_{module}" if module[:1].isdigit() else module).lower()


def _inside(folder: Path) -> list[Path]:
    """Return what is in a folder, in order; nothing if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _with_code(folders: Iterator[Path] | list[Path]) -> Iterator[Path]:
    yield from (folder for folder in folders if _exists(folder / _TOWER))
