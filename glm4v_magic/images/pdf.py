"""Pages of PDF documents -> images, drawn by PDFium.

pypdfium2 is an optional dependency, imported when there is a document to read.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.core.image import Limits, SourcedImage
from glm4v_magic.images.messages import one_line, require_page

__all__ = ["SUFFIX", "count_pages", "draw", "is_pdf", "name_and_page", "named"]

SUFFIX = ".pdf"
INSTALL = "Install it with: pip install pypdfium2"

_DPI = 200
"""Dots per inch at which documents are scanned for text recognition; A4 is 1,654 x 2,339 pixels."""

_LONGEST = 4096
"""Longest side of a drawn page in pixels, however large its paper is."""

_POINTS_PER_INCH = 72
_PASSWORD = 4  # FPDF_ERR_PASSWORD, https://pdfium.googlesource.com/pdfium/+/main/public/fpdfview.h
_PAGE = re.compile(r"(?P<name>.+)#page=(?P<page>[0-9]{1,9})", re.IGNORECASE | re.DOTALL)
_LOCK = threading.RLock()  # PDFium may run in one thread at a time


def is_pdf(head: bytes) -> bool:
    """Tell whether a file begins like a PDF document."""
    return re.match(rb"(\xef\xbb\xbf)?\s*%PDF-", head) is not None


def name_and_page(name: str) -> tuple[str, int | None]:
    """Split ``paper.pdf#page=3`` into the name of the file and the page; ``None`` without one."""
    found = _PAGE.fullmatch(name)
    return (name, None) if found is None else (found["name"], int(found["page"]))


def named(name: str, page: int) -> str:
    """Return the name of a page as it is typed: the inverse of `name_and_page`."""
    return f"{name}#page={page}"


def count_pages(path: Path, source: str) -> int:
    """Return the number of pages of a document.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        with path.open("rb") as stream, _opened(stream, source) as document:
            return len(document)
    except OSError as error:
        raise ImageError(f"{one_line(source)} cannot be read: {reason(error)}") from error


def draw(stream: IO[bytes], source: str, limits: Limits, page: int | None = None) -> SourcedImage:
    """Draw a page of a document, by default the first.

    Only this page is in memory, at 200 dots per inch or less: at most 4,096 pixels on a side and
    `limits` in all.

    Args:
        stream: the document, at its beginning.
        source: name of the document in messages.
        limits: largest image.
        page: page to draw, from 1.

    Raises:
        ImageError: if it cannot be read, or has no such page.
    """
    from PIL import Image

    number = page or 1
    with _opened(stream, source) as document:
        require_page(number if page is None else page, len(document), source)
        source = f"{source}, page {number}"
        try:
            sheet = document[number - 1]
            width, height = sheet.get_size()
            bitmap = sheet.render(scale=_scale(width, height, source, limits))
            drawn: Image.Image = bitmap.to_pil()
            rgb = drawn.convert("RGB")  # a copy: the bitmap is freed with the document
        except ImageError:
            raise
        except Exception as error:
            raise _damaged(source, error) from error
    return SourcedImage(rgb, source, rgb.size)


def _scale(width: float, height: float, source: str, limits: Limits) -> float:
    """Return the pixels per point of a page."""
    longest, area = max(width, height), width * height
    if not (math.isfinite(area) and area > 0):
        raise ImageError(f"{one_line(source)} has no size.")
    return min(
        _DPI / _POINTS_PER_INCH, _LONGEST / longest, math.sqrt(limits.megapixels * 1e6 / area)
    )


@contextmanager
def _opened(stream: IO[bytes], source: str) -> Iterator[Any]:
    """Open a document with its forms filled in; its parts are read when they are needed."""
    shown = one_line(source)
    try:
        import pypdfium2
    except ImportError:
        raise ImageError(
            f"{shown} is a PDF document, and the package pypdfium2, which reads them, is not "
            "installed.",
            INSTALL,
        ) from None
    with _LOCK:
        try:
            document = pypdfium2.PdfDocument(stream)
        except pypdfium2.PdfiumError as error:
            if error.err_code == _PASSWORD:
                raise ImageError(
                    f"{shown} is a PDF document with a password.", "Save a copy without one."
                ) from None
            raise _damaged(source, error) from None  # one without pages, too
        try:
            document.init_forms()
            yield document
        finally:
            document.close()


def _damaged(source: str, error: Exception) -> ImageError:
    return ImageError(
        f"{one_line(source)} is a PDF document that is damaged or has no pages: {reason(error)}"
    )
