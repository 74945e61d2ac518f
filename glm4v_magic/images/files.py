"""Image files: found by path or pattern, and read."""

from __future__ import annotations

import glob
import itertools
import os
import re
import stat
from collections import Counter
from pathlib import Path

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.core.image import Limits, SourcedImage
from glm4v_magic.images.decode import decode
from glm4v_magic.images.formats import SUFFIXES
from glm4v_magic.images.messages import one_line
from glm4v_magic.outside import SHUT, is_folder, is_shut, require_current_folder

__all__ = [
    "NOWHERE",
    "current_folder",
    "entries",
    "exists",
    "from_file",
    "matches",
    "natural",
    "path_of",
    "refuse_no_file",
    "suffixes_in",
]

NOWHERE = Path()
"""The current folder where it has been removed; only absolute paths work from it."""


def path_of(word: str, base: Path) -> Path:
    """Return the path that `word` means, relative to the folder `base`, ``~`` expanded.

    Raises:
        ImageError: if that needs the current folder, and there is none.
    """
    try:
        path = base / Path(word).expanduser()
    except RuntimeError:  # ~name of nobody
        path = base / word
    if base == NOWHERE and not path.is_absolute():
        require_current_folder(ImageError)
    return path


def current_folder() -> Path:
    """Return the current folder, or `NOWHERE`."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return NOWHERE


def exists(word: str, base: Path) -> bool:
    """Tell whether `word` is the path of a file or folder.

    Raises:
        ImageError: if permission is missing to look.
    """
    try:
        path_of(word, base).stat()
    except PermissionError:
        raise _forbidden(word) from None
    except (OSError, ValueError):  # missing, a part of it is a file, too long, a null character
        return False
    return bool(word.strip())


def from_file(path: Path, source: str, limits: Limits, page: int | None = None) -> SourcedImage:
    """Read an image file that exists, or one page of it.

    Raises:
        ImageError: if it is a folder, a device or a pipe, cannot be read, or is not an image.
    """
    shown = one_line(source)
    try:
        if is_folder(path) and not is_shut(path):
            kinds = suffixes_in(path)
            if kinds:
                raise ImageError(f"{shown} is a folder.", code="folder_of_images", kinds=kinds)
            raise ImageError(f"{shown} is a folder. It holds no images.")
        refuse_no_file(path, source, "an image file")
        with path.open("rb") as stream:
            return decode(stream, source, limits, page)
    except PermissionError:
        raise _forbidden(source) from None
    except OSError as error:
        raise ImageError(f"{shown} cannot be read: {reason(error)}") from error


def refuse_no_file(path: Path, source: str, noun: str) -> None:
    """Raise ImageError if a path is forbidden, or a device or a pipe, which may never end."""
    if is_shut(path):
        raise _forbidden(source)
    if not stat.S_ISREG(path.stat().st_mode):
        raise ImageError(f"{one_line(source)} is a device or a pipe, not {noun}.")


def matches(word: str, base: Path) -> list[str]:
    """Return the files that match the pattern `word`, sorted as by `natural`.

    Empty if `word` is not a pattern.
    """
    if not re.search(r"[*?[]", word):
        return []
    pattern = str(path_of(word, Path()))
    # Path.glob takes no absolute patterns.
    found = glob.glob(pattern, root_dir=base, recursive=True)  # noqa: PTH207
    return sorted((match for match in found if not is_folder(base / match)), key=natural)


def natural(path: str) -> list[tuple[int, int, str]]:
    """Return a sort key that compares numbers as numbers and ignores case."""
    return [
        (0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part)
        for part in re.split(r"([0-9]+)", path.lower())
    ]


def entries(folder: Path) -> list[str]:
    """Return the names in `folder`, at most 2,000, so that comparing them stays fast."""
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in itertools.islice(found, 2000))
    except OSError:
        return []


def suffixes_in(folder: Path, known: tuple[str, ...] = SUFFIXES) -> str:
    """Describe the image files in `folder` as patterns with counts; empty if there are none.

    Args:
        folder: the folder.
        known: suffixes of the files that are counted, in lower case.
    """
    suffixes = Counter(Path(name).suffix for name in entries(folder))
    found = [each for each, _ in suffixes.most_common() if each.lower() in known]
    kinds = ", ".join(f"*{each} ({suffixes[each]})" for each in found)
    return f"It holds {kinds}." if found else ""


def _forbidden(source: str) -> ImageError:
    return ImageError(f"{one_line(source)}: permission denied.", SHUT)
