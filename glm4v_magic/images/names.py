"""Names -> images: what a word, or the text in a variable, stands for on its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from glm4v_magic.core.image import Limits, SourcedImage
from glm4v_magic.images.files import exists, from_file, matches, path_of
from glm4v_magic.images.missing import missing
from glm4v_magic.images.uris import from_uri, is_uri

__all__ = ["from_name"]


def from_name(
    name: str,
    base: Path,
    namespace: Mapping[str, object],
    limits: Limits,
    page: int | None = None,
) -> tuple[SourcedImage, ...]:
    """Return the image of a URI or path, or the images of a pattern, sorted by name.

    Args:
        name: as the user wrote it.
        base: the folder of relative paths.
        namespace: the variables that may have been meant if there is nothing of that name.
        limits: what is refused.
        page: which page of it, from 1; the first by default.

    Raises:
        ImageError: if it stands for no image.
    """
    if is_uri(name):
        return (from_uri(name, limits, page),)
    if exists(name, base):
        return (from_file(path_of(name, base), name, limits, page),)
    files = matches(name, base)
    if not files:
        raise missing(name, base, namespace)
    return tuple(from_file(base / file, file, limits, page) for file in files)
