"""Make the model code in a checkpoint folder consistent on any split over GPUs.

The folder is one of GLM-4V-9B, or of a model with the same vision tower: CogVLM, CogVLM2, CogAgent.

For people who load a checkpoint with its own code (`trust_remote_code=True`). `plan_patch` only
reads; `write_patch` writes both files or neither, and keeps the originals beside them. Needs
libcst, but neither torch nor transformers.
"""

from __future__ import annotations

import difflib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.remote_code.source_sites import (
    SourceEdit,
    SourceSite,
    edit_cross_visual,
    edit_modeling,
    edit_visual,
)

__all__ = ["FilePatch", "FolderPatch", "plan_patch", "write_patch"]

_EDITORS: dict[str, Callable[[bytes, str], SourceEdit]] = {
    "visual.py": edit_visual,
    "modeling_chatglm.py": edit_modeling,
    "cross_visual.py": edit_cross_visual,
}
_OF_COG = ("modeling_cogvlm.py", "modeling_cogagent.py")
"""Text models around the same tower, which move the image features to the words themselves."""


@dataclass(frozen=True)
class FilePatch:
    """Patch of one file: its bytes before and after, and the places found in it.

    Attributes:
        path: the file.
        before: its bytes as read.
        after: its bytes with all places consistent; equal to `before` if nothing changes.
        encoding: of both, as the file declares it.
        sites: the places, in the order of the search.
        backup: copy of the original; ``None`` before `write_patch`, or if nothing changed.
    """

    path: Path
    before: bytes
    after: bytes
    encoding: str
    sites: tuple[SourceSite, ...]
    backup: Path | None = None

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        return self.before != self.after

    @property
    def diff(self) -> str:
        """Unified diff; empty if nothing changes."""
        old, new = (text.decode(self.encoding) for text in (self.before, self.after))
        name = self.path.name
        # Without line endings: CR LF would double them on screen.
        lines = difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"a/{name}", f"b/{name}", lineterm=""
        )
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class FolderPatch:
    """Patches of both files of a checkpoint folder.

    Attributes:
        folder: the checkpoint folder.
        files: `visual.py` and `modeling_chatglm.py`; of CogVLM2 `visual.py` alone, of CogAgent
            `cross_visual.py`, too.
        written: whether the folder holds the patched files now.
    """

    folder: Path
    files: tuple[FilePatch, ...]
    written: bool = False

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        return any(file.changed for file in self.files)

    @property
    def diff(self) -> str:
        """Unified diffs of the files that change."""
        return "".join(file.diff for file in self.files)

    def __str__(self) -> str:
        return _patch_text(self)


def _patch_text(patch: FolderPatch) -> str:
    """Return a line for each place and for each backup."""
    lines = []
    for file in patch.files:
        for site in file.sites:
            state = "changed" if patch.written else "to change"
            state = "consistent already" if site.consistent else state
            lines.append(f"{file.path.name}:{site.line}: {site.where}: {site.what}: {state}")
        if file.backup is not None:
            lines.append(f"{file.path.name}: original kept as {file.backup.name}")
    return "\n".join(lines)


def plan_patch(folder: str | Path) -> FolderPatch:
    """Read both files of a checkpoint folder and find what to change; write nothing.

    Raises:
        CheckpointError: if the folder or a file is missing or unreadable, or its code is not
            understood.
    """
    folder = Path(folder)
    try:
        there, is_folder = folder.exists(), folder.is_dir()
    except OSError:  # longer than any name of a file
        there = is_folder = False
    if not is_folder:
        what = "is not a folder" if there else "does not exist"
        raise CheckpointError(f"The checkpoint folder {folder} {what}.")
    needed = ["visual.py", "modeling_chatglm.py"]
    try:
        next(folder.iterdir(), None)
        is_cog = any((folder / name).is_file() for name in _OF_COG)
    except PermissionError:
        raise CheckpointError(
            f"{folder} cannot be read: permission denied.", "Its owner has to let you read it."
        ) from None
    except OSError:  # no folder: said below
        is_cog = False
    if is_cog:
        needed = ["visual.py", *(["cross_visual.py"] * (folder / "cross_visual.py").is_file())]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"The folder {folder} has no {' and no '.join(missing)}.",
            "Name the folder that GLM-4V-9B was downloaded to, with its own code.",
        )
    return FolderPatch(folder, tuple(_plan_file(folder / name) for name in needed))


def _plan_file(path: Path) -> FilePatch:
    try:
        before = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    edit = _EDITORS[path.name](before, str(path))
    return FilePatch(path, before, edit.source, edit.encoding, edit.sites)


def write_patch(patch: FolderPatch) -> FolderPatch:
    """Write what `plan_patch` found: backups first, then both files, or nothing at all.

    A backup is `visual.py.orig`, or `visual.py.orig.1` and so on if an older one has other content;
    an older one is never overwritten. A symbolic link, as in a download cache, is replaced by a
    file, so that the cache keeps the original.

    Returns:
        The patch with `backup` filled in.

    Raises:
        CheckpointError: if something cannot be written; the folder is unchanged then.
    """
    changed = [file for file in patch.files if file.changed]
    created: list[Path] = []
    replaced: list[FilePatch] = []
    done: dict[Path, FilePatch] = {}
    try:
        drafts = [_draft(file, created) for file in changed]
        for file in changed:
            done[file.path] = replace(file, backup=_keep_original(file, created))
        for file, draft in zip(changed, drafts, strict=True):
            draft.replace(file.path)
            replaced.append(file)
    except OSError as error:
        for file in replaced:
            file.path.write_bytes(file.before)
        for path in created:
            path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{patch.folder} cannot be written ({error.strerror}); nothing was changed.",
            "Copy the folder to a place of your own and patch the copy.",
        ) from None
    files = tuple(done.get(file.path, file) for file in patch.files)
    return replace(patch, files=files, written=True)


def _draft(file: FilePatch, created: list[Path]) -> Path:
    """Write the new content to a file beside the old one, to be renamed to it."""
    # Renaming needs write permission for the folder only; a read-only file is to stay as it is.
    if not os.access(file.path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, f"{file.path.name} is read-only")
    handle, name = tempfile.mkstemp(prefix=f".{file.path.name}.", dir=file.path.parent)
    created.append(Path(name))
    with os.fdopen(handle, "wb") as stream:
        stream.write(file.after)
    shutil.copymode(file.path, name)
    return Path(name)


def _keep_original(file: FilePatch, created: list[Path]) -> Path:
    """Return a backup with the file's content: an older one if there is one, else a new one."""
    number = 0
    while True:
        suffix = f".orig.{number}" if number else ".orig"
        backup = file.path.with_name(file.path.name + suffix)
        if not backup.exists():
            with backup.open("xb") as stream:
                created.append(backup)
                stream.write(file.before)
            shutil.copymode(file.path, backup)
            return backup
        if backup.is_file() and backup.read_bytes() == file.before:
            return backup
        number += 1
