"""Text files that are replaced as a whole: a full disk does not cost what was there before."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["replace_text"]


def replace_text(file: Path, text: str) -> None:
    """Write a text file in UTF-8; one that is there is replaced once the new one is complete.

    A name in the text that is not valid Unicode is written with backslashes, as JSON writes it.

    Args:
        file: the file; a link is followed.
        text: all of it.

    Raises:
        OSError: if it cannot be written; what is there stays.
        ValueError: if the name holds a null character.
    """
    import tempfile  # here: loading the extension is to be fast

    place = Path(os.path.realpath(file))
    is_special = place.is_symlink() or (place.exists() and not place.is_file())  # loop, device
    if is_special or not os.access(place.parent, os.W_OK | os.X_OK):
        place.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".glm4v-") as folder:
        new = Path(folder, place.name)
        new.write_text(text, encoding="utf-8", errors="backslashreplace")
        new.replace(place)
