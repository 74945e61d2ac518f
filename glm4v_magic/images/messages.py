"""Wording that several error messages share."""

from __future__ import annotations

import re
from collections.abc import Iterable

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.core.image import Limits, SourcedImage

__all__ = [
    "ACCEPTED",
    "one_line",
    "refuse_too_many",
    "refuse_too_much",
    "require_page",
    "unreadable",
]

ACCEPTED = "Give a path, URL, PIL image, array, bytes, open file, figure, or a list of these."


def one_line(text: str) -> str:
    """Return `text` printable and short enough for one line of a message."""
    ends = text if len(text) <= 240 else text[:120] + text[-120:]  # enough of a megabyte
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in ends)
    return printable if len(printable) <= 120 else f"{printable[:80]}...{printable[-30:]}"


def unreadable(source: str, error: Exception) -> ImageError:
    """Return the error for an image that Pillow cannot read: of an unknown kind, or damaged."""
    said = str(error)
    if isinstance(error, NotImplementedError) or re.search("[Uu]nsupported|not supported", said):
        return ImageError(
            f"{one_line(source)} is of a kind that Pillow does not read: {one_line(said)}.",
            "Save it as a PNG first.",
        )
    # Pillow says "SyntaxError: broken PNG file", as if it were one of Python.
    why = said.splitlines()[0] if isinstance(error, SyntaxError) and said else reason(error)
    return ImageError(f"{one_line(source)} is cut short or damaged: {why.rstrip('.')}.")


def refuse_too_many(given: int, source: str, limits: Limits) -> None:
    """Raise ImageError if there are more images than a question may have."""
    if given > limits.images:
        raise ImageError(
            f"{one_line(source)}: {given:,} images are more than the {limits.images:,} that one "
            "question may have.",
            code="too_many_images",
        )


def refuse_too_much(images: Iterable[SourcedImage], source: str, limits: Limits) -> None:
    """Raise ImageError if images together have more pixels than the limit."""
    megapixels = sum(each.image.width * each.image.height for each in images) / 1e6
    if megapixels > limits.total_megapixels:
        raise ImageError(
            f"{one_line(source)}: the images have more than {limits.total_megapixels:,.0f} "
            "megapixels together.",
            "Make them smaller first: a model sees little more than one megapixel of each.",
        )


def require_page(page: int | None, pages: int, source: str) -> None:
    """Raise ImageError if an image does not have this page."""
    if page is not None and not 1 <= page <= pages:
        has = "only 1 page" if pages == 1 else f"{pages} pages"
        raise ImageError(f"{one_line(source)} has {has}, and no page {page}.")
