"""Values in memory -> images.

The types of PIL, numpy, torch, matplotlib and IPython are recognised without importing these
libraries: where such a value exists, its library is imported already.
"""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.core.image import DEFAULT_LIMITS, Limits, SourcedImage
from glm4v_magic.images.arrays import from_numpy, from_torch
from glm4v_magic.images.decode import decode, upright
from glm4v_magic.images.files import current_folder, exists
from glm4v_magic.images.formats import is_known
from glm4v_magic.images.holders import (
    content_of,
    file_in,
    is_instance,
    kind_of,
    several,
    taken_out,
)
from glm4v_magic.images.messages import (
    ACCEPTED,
    one_line,
    refuse_too_many,
    refuse_too_much,
    require_page,
)
from glm4v_magic.images.names import from_name
from glm4v_magic.images.uris import from_base64, is_uri

__all__ = ["to_image", "to_images"]


def to_images(
    value: object,
    source: str,
    *,
    base: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    page: int | None = None,
) -> tuple[SourcedImage, ...]:
    """Return the images in `value`: each item of a list, in order, or a single one.

    A string with a pattern, such as ``"photos/*.png"``, gives all matching files.

    Raises:
        ImageError: if `value`, or any item of it, is not an image, or there are too many.
    """
    folder = current_folder() if base is None else base
    items = several(value, source)
    if items is not None:
        if not items:
            raise ImageError(f"{one_line(source)} is an empty {type(value).__name__}.")
        refuse_too_many(len(items), source, limits)
        images: list[SourcedImage] = []
        for index, item in enumerate(items):
            each = f"{source}[{index}]"
            images.append(to_image(item, each, base=folder, limits=limits, page=page))
            refuse_too_much(images, source, limits)
        return tuple(images)
    if isinstance(value, str | os.PathLike):
        return _named(value, source, folder, limits, page)
    return (to_image(value, source, base=folder, limits=limits, page=page),)


def to_image(
    value: object,
    source: str,
    *,
    base: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    page: int | None = None,
) -> SourcedImage:
    """Return `value` as an image.

    Args:
        value: a PIL image; a string or `Path` with a file or URL; the bytes of an image file or PDF
            document, as they are, in base64 or in an array or tensor of uint8 with one axis; a
            part of a message to a chat model, see `holders`; a binary file object; an array or
            tensor; a matplotlib figure or axes; an `IPython.display.Image`; a widget, an upload, a
            row or cell of a table, or a chart, see `holders`; any object that shows itself as PNG
            or JPEG in a notebook. Arrays are height x width, with 1, 3 or 4 channels last or first
            (in doubt last for numpy, first for torch), with or without a batch axis of one; bool,
            integers of 0 to 255, uint16 (of the least of 8, 10, 12, 14 or 16 bits that holds its
            values, which the source then says), or floats of 0 to 1; in RGB order (OpenCV's is
            BGR).
        source: what the user calls the value. A path or URL is its own source.
        base: folder that relative paths start from; the current one by default.
        limits: limits on size and download.
        page: page to read, from 1; by default the first, and the current one of a PIL image.

    Raises:
        ImageError: if it is not an image, is more than one, or has no such page.
    """
    if isinstance(value, SourcedImage):
        require_page(page, 1, source)
        return value
    value, folder = taken_out(value, source), current_folder() if base is None else base
    if isinstance(value, str | os.PathLike) or _is_name_in_bytes(value, folder):
        images = _named(value, source, folder, limits, page)
        if len(images) > 1:
            raise ImageError(f"{one_line(source)} names {len(images)} images, not one.")
        return images[0]
    for read in _READERS:
        image = read(value, source, limits, page)
        if image is not None:
            return image
    raise ImageError(f"{one_line(source)} is {kind_of(value)}.", ACCEPTED)


def _is_name_in_bytes(value: object, base: Path) -> TypeGuard[bytes]:
    """Tell whether bytes are a path that exists or a URI, not the content of a file."""
    if not isinstance(value, bytes) or is_known(value):
        return False
    name = os.fsdecode(value)
    return is_uri(name) or exists(name, base)


def _named(
    value: str | bytes | os.PathLike[str], source: str, base: Path, limits: Limits, page: int | None
) -> tuple[SourcedImage, ...]:
    """Read a value that is itself a name: anything a word can be except a variable."""
    text = os.fsdecode(value)
    try:
        return from_name(text, base, {}, limits, page)
    except ImageError as error:
        if source != text:
            error.what = f"{one_line(source)}: {error.what}"
        raise


def _from_pil(value: Any, source: str, limits: Limits, page: int | None) -> SourcedImage | None:
    if not is_instance(value, "PIL.Image", "Image"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in decode: the file may be read only now
            return upright(value, source, limits, page)
    except ImageError as error:
        if not _was_closed(value, error.__cause__):
            raise
    raise ImageError(
        f"{one_line(source)} was closed before it was read.",
        "Give a copy that was made before: image.copy().",
    )


def _was_closed(image: Any, error: BaseException | None) -> bool:
    """Tell whether a PIL image could not be read because it, or its file, was closed.

    Args:
        image: the image.
        error: what Pillow said.
    """
    if isinstance(error, ValueError) and re.search(r"\bclosed (file|image)", str(error)):
        return True
    is_unread = bool(getattr(image, "tile", None))
    return is_unread and getattr(image, "fp", None) is None


def _from_bytes(
    value: object, source: str, limits: Limits, page: int | None
) -> SourcedImage | None:
    if not isinstance(value, bytes | bytearray | memoryview):
        return None
    content = bytes(value)
    if content.isascii() and not is_known(content):
        image = from_base64(content.decode(), limits, page)
        if image is not None:
            return replace(image, source=source)
    return decode(io.BytesIO(content), source, limits, page)


def _from_stream(value: Any, source: str, limits: Limits, page: int | None) -> SourcedImage | None:
    content = content_of(value, source)
    return None if content is None else _from_bytes(content, source, limits, page)


def _from_ipython(value: Any, source: str, limits: Limits, page: int | None) -> SourcedImage | None:
    if not is_instance(value, "IPython.core.display", "Image"):
        return None
    if isinstance(value.data, bytes):
        return _from_bytes(value.data, source, limits, page)
    place = value.filename or value.url
    if not place:
        raise ImageError(f"{one_line(source)} holds neither bytes, file nor URL.")
    return to_image(str(place), source, limits=limits, page=page)


def _from_upload(value: Any, source: str, limits: Limits, page: int | None) -> SourcedImage | None:
    """Read one file of an ipywidgets ``FileUpload``; its own name is the source."""
    if not isinstance(value, Mapping) or not {"name", "content"} <= value.keys():
        return None
    return _from_bytes(value["content"], str(value["name"]) or source, limits, page)


def _from_shown(value: Any, source: str, limits: Limits, page: int | None) -> SourcedImage | None:
    """Read the PNG or JPEG that an object shows in a notebook, such as an earlier output."""
    if isinstance(value, type | ModuleType):
        return None
    for name in ("_repr_png_", "_repr_jpeg_"):
        show = getattr(value, name, None)
        try:
            shown = show() if callable(show) else None
        except Exception as error:
            raise ImageError(f"{one_line(source)} cannot be drawn: {reason(error)}") from error
        if isinstance(shown, tuple):  # with metadata
            shown = shown[0]
        if isinstance(shown, str):  # as the notebook format has it
            shown = base64.b64decode(shown)
        if shown is not None:
            return _from_bytes(shown, source, limits, page)
    return None


def _from_figure(value: Any, source: str, limits: Limits, page: int | None) -> SourcedImage | None:
    """Draw a figure, or the part of it that an axes and its labels cover; both stay open."""
    is_axes = is_instance(value, "matplotlib.axes", "Axes")
    if not is_axes and not is_instance(value, "matplotlib.figure", "FigureBase"):
        return None
    figure = value.figure
    while not hasattr(figure, "savefig"):  # a subfigure
        figure = figure.figure
    buffer = io.BytesIO()
    box = None
    try:
        if is_axes:
            figure.draw_without_rendering()
            inches = figure.dpi_scale_trans.inverted()
            box = value.get_tightbbox().transformed(inches).padded(0.1)
        figure.savefig(buffer, format="png", dpi=figure.dpi, bbox_inches=box)
    except Exception as error:
        raise ImageError(f"{one_line(source)} cannot be drawn: {reason(error)}") from error
    return _from_bytes(buffer.getvalue(), source, limits, page)


def _from_array(value: Any, source: str, limits: Limits, page: int | None) -> SourcedImage | None:
    content = file_in(value)
    if content is not None:
        return _from_bytes(content, source, limits, page)
    if is_instance(value, "numpy", "ndarray"):
        require_page(page, 1, source)
        return from_numpy(value, source, limits)
    if is_instance(value, "torch", "Tensor"):
        require_page(page, 1, source)
        return from_torch(value, source, limits)
    return None


_READERS = (
    *(_from_pil, _from_bytes, _from_array, _from_figure, _from_ipython, _from_stream),
    *(_from_upload, _from_shown),
)
