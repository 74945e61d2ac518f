"""The error for a word that names nothing: it says what exists, and suggests similar names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from glm4v_magic.core.errors import ImageError, did_you_mean
from glm4v_magic.images.files import entries, path_of, suffixes_in
from glm4v_magic.images.formats import CLIPS, SUFFIXES, is_known, not_an_image
from glm4v_magic.images.messages import ACCEPTED, one_line
from glm4v_magic.outside import is_folder

__all__ = ["missing"]

_LONGEST_NAME = 255  # bytes of a file's name, on all usual file systems
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+=*\s*")


def missing(word: str, base: Path, namespace: Mapping[str, object]) -> ImageError:
    """Return the error for a word that names neither a file nor anything else.

    Args:
        word: the word as the user wrote it.
        base: folder that relative paths start from.
        namespace: variables that may have been meant.
    """
    shown = one_line(word)
    if word.lstrip()[:1] == "<" and is_known(head := word[:1000].encode(errors="ignore")):
        return not_an_image(word, head)  # the text of an SVG drawing or a web page
    if len(word) > _LONGEST_NAME and _BASE64.fullmatch(word):
        return ImageError(f"{shown}: no such file, and no image in base64.", ACCEPTED)
    if not word.strip():
        return ImageError("An empty name stands for no image.", ACCEPTED)
    if os.sep == "/" and "\\" in word:
        slashes = one_line(word.replace("\\", "/"))
        return ImageError(f"{shown}: no such file.", f"Folders are separated by / here: {slashes}")
    if re.search(r"[*?]", word):
        folder = path_of(re.split(r"[*?[]", word)[0] + "_", base).parent
        return ImageError(
            f"{shown}: no file in {folder} matches.", suffixes_in(folder, SUFFIXES + CLIPS)
        )
    folder, name = path_of(word, base).parent, path_of(word, base).name
    if not is_folder(folder):
        host = word.partition("/")[0].lower()
        is_host = re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", host) and not host.endswith(SUFFIXES)
        hint = "A web address begins with https://." if is_host else ""
        return ImageError(f"{shown}: there is no folder {one_line(str(folder))}.", hint)
    variables = [each for each, value in namespace.items() if _may_be_meant(each, value)]
    bare = word.strip("${} ")
    if bare != word and bare in variables:
        return ImageError(f"{shown}: no such file in {folder}.", f"The variable is written {bare}.")
    start = re.match(r"\w*", word)[0]  # type: ignore[index]  # it matches anything
    if "/" in word or not namespace or word.lower().endswith(SUFFIXES):
        hint = did_you_mean(name, entries(folder))
        if start in variables:
            hint = f"{hint} The variable is written {start}.".lstrip()
        return ImageError(f"{shown}: no such file in {folder}.", hint)
    hint = did_you_mean(word, [*entries(folder), *variables]) or did_you_mean(start, variables)
    return ImageError(f"{shown}: neither a variable nor a file in {folder}.", hint)


def _may_be_meant(name: str, value: object) -> bool:
    return not name.startswith("_") and not callable(value) and not isinstance(value, ModuleType)
