"""Text files that are replaced as a whole: a full disk does not cost what was there before."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Hashable
from pathlib import Path

__all__ = ["OTHER_NAME", "replace_text"]

OTHER_NAME = "Give another name."
"""What to do where `replace_text` replaces nothing, as a file of another kind is there."""

_FORMAT = re.compile(r'\s*\{\s*"format"\s*:\s*"([\w.-]*)"')
_AT_BEGINNING = 200  # characters that the format is in
_LARGEST = 2**26  # bytes of a file that is parsed, as it does not begin so


def replace_text(file: Path, text: str, *, is_json: bool = False) -> None:
    """Write a text file in UTF-8; one that is there is replaced once the new one is complete.

    A name in the text that is not valid Unicode is written with backslashes, as JSON writes it.

    Args:
        file: the file; a link is followed.
        text: all of it.
        is_json: whether it is JSON: only a file of the same kind is replaced then, not the
            ``config.json`` of a checkpoint.

    Raises:
        FileExistsError: if a file of another kind is there.
        OSError: if it cannot be written; what is there stays.
        ValueError: if the name holds a null character.
    """
    import tempfile  # here: loading the extension is to be fast

    place = Path(os.path.realpath(file))
    if is_json and place.is_file() and not _is_alike(place, text):
        raise FileExistsError(errno.EEXIST, "a file of another kind is there", str(file))
    is_special = place.is_symlink() or (place.exists() and not place.is_file())  # loop, device
    if is_special or not os.access(place.parent, os.W_OK | os.X_OK):
        place.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".glm4v-") as folder:
        new = Path(folder, place.name)
        new.write_text(text, encoding="utf-8", errors="backslashreplace")
        new.replace(place)


def _is_alike(place: Path, text: str) -> bool:
    """Tell whether a file is empty, or holds JSON of the kind of a text.

    What is written here begins with its format, so that chats, which hold images, are not parsed.
    """
    size = place.stat().st_size
    if not size:
        return True
    with place.open(encoding="utf-8-sig", errors="replace") as file:
        theirs = _FORMAT.match(file.read(_AT_BEGINNING))
    ours = _FORMAT.match(text[:_AT_BEGINNING])
    if ours and theirs:
        return ours[1] == theirs[1]
    if size > _LARGEST:
        return False
    try:
        return _kind(json.loads(place.read_text(encoding="utf-8-sig"))) == _kind(json.loads(text))
    except (ValueError, RecursionError):
        return False


def _kind(content: object) -> Hashable:
    """Return what tells JSON of one kind from others: its format, or else its keys."""
    if isinstance(content, list):
        return "list", _kind(content[0]) if content else None
    if not isinstance(content, dict):
        return None
    return content["format"] if isinstance(content.get("format"), str) else frozenset(content)
