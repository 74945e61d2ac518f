"""Names -> images: URIs, paths and patterns, without the variables of a namespace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from glm4v_magic.core.errors import ImageError
from glm4v_magic.core.image import Limits, SourcedImage
from glm4v_magic.images.files import exists, from_file, matches, path_of
from glm4v_magic.images.messages import one_line, refuse_too_many, refuse_too_much
from glm4v_magic.images.missing import missing
from glm4v_magic.images.pdf import name_and_page
from glm4v_magic.images.uris import from_base64, from_uri, is_uri

__all__ = ["from_name"]


def from_name(
    name: str,
    base: Path,
    namespace: Mapping[str, object],
    limits: Limits,
    page: int | None = None,
) -> tuple[SourcedImage, ...]:
    """Return the image at a URI or path, or the images that match a pattern in natural order.

    Args:
        name: URI, path or pattern, as the user wrote it; ``#page=3`` after it names a page. An
            image in base64 may stand in its place.
        base: folder that relative paths start from.
        namespace: variables that may have been meant, for the error message.
        limits: limits on size and download.
        page: page to read, from 1; the first by default.

    Raises:
        ImageError: if it names no image.
    """
    if not exists(name, base):
        name, page = _with_page(name, page)
    if is_uri(name):
        return (from_uri(name, limits, page),)
    if exists(name, base):
        return (from_file(path_of(name, base), name, limits, page),)
    files = matches(name, base)
    if not files and (image := from_base64(name, limits, page)) is not None:
        return (image,)
    if not files:
        raise missing(name, base, namespace)
    refuse_too_many(len(files), name, limits)
    images: list[SourcedImage] = []
    for file in files:
        images.append(from_file(base / file, file, limits, page))
        refuse_too_much(images, name, limits)
    return tuple(images)


def _with_page(name: str, page: int | None) -> tuple[str, int | None]:
    """Split off the page that a name may say: ``a.pdf#page=3``; by default `page`."""
    file, own = name_and_page(name)
    if own is not None and page not in (None, own):
        raise ImageError(f"{one_line(name)} is page {own}, and page {page} is asked for, too.")
    return file, page if own is None else own
