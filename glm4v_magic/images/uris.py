"""URIs -> images: ``data:`` is decoded here, URLs are downloaded by `web`, imported on demand."""

from __future__ import annotations

import base64
import binascii
import io
import re
import urllib.parse

from glm4v_magic.core.errors import ImageError
from glm4v_magic.core.image import Limits, SourcedImage
from glm4v_magic.images.decode import decode
from glm4v_magic.images.formats import is_known, may_be_image
from glm4v_magic.images.messages import one_line

__all__ = ["base64_head", "data_of", "from_base64", "from_uri", "is_uri"]

_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]++=*\s*")
_LEAST_BASE64 = 64  # characters; a shorter text is a name
_BASE64_LOOKED_AT = 1000  # characters; enough to tell
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://", re.IGNORECASE)


def is_uri(word: str) -> bool:
    """Tell whether `word` starts like a URI: with ``data:``, or a scheme and ``://``."""
    return word[:5].lower() == "data:" or _SCHEME.match(word) is not None


def from_uri(word: str, limits: Limits, page: int | None = None) -> SourcedImage:
    """Read the image, or one page of it, from a ``data:`` URI or a URL.

    Raises:
        ImageError: if it cannot be fetched, or is not an image.
    """
    if word[:5].lower() == "data:":
        media_type, content = data_of(word, "image/png")
        if media_type and not may_be_image(media_type):
            code = "clip_among_images" if media_type.startswith("video/") else ""
            raise ImageError(f"The data: URI is {one_line(media_type)}, not an image.", code=code)
        return decode(io.BytesIO(content), "data: URI", limits, page)
    if word[:7].lower() == "file://":
        _, slash, path = word[7:].partition("/")
        raise ImageError(
            f"{one_line(word)}: only http and https are fetched, not file.",
            f"Give its path: {one_line(slash + urllib.parse.unquote(path))}",
        )
    # Imported here because it needs httpx, which files and variables do without.
    from glm4v_magic.images.web import download

    return decode(io.BytesIO(download(word, limits)), word, limits, page)


def data_of(uri: str, such_as: str) -> tuple[str, bytes]:
    """Return the media type and the bytes of a data URI, RFC 2397.

    Args:
        uri: begins with ``data:``.
        such_as: a media type, for messages.

    Raises:
        ImageError: if it is malformed.
    """
    header, comma, payload = uri[len("data:") :].partition(",")
    media_type, *parameters = (part.strip().lower() for part in header.split(";"))
    if not comma:
        raise ImageError("The data: URI has no comma.", f"Write data:{such_as};base64,...")
    content = urllib.parse.unquote_to_bytes(payload)
    if "base64" not in parameters:
        return media_type, content
    content = b"".join(content.split())
    try:
        return media_type, base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(f"The data: URI is not valid base64: {error}.") from None


def _plain(text: str) -> str:
    """Return base64 in the alphabet of URLs, or without its padding, in the usual form."""
    usual = text.translate(str.maketrans("-_", "+/")).rstrip("=")
    return usual + "=" * (-len(usual) % 4)


def base64_head(text: str) -> bytes:
    """Return the first bytes that a text is in base64; none if it is something else."""
    start = "".join(text[:_BASE64_LOOKED_AT].split())
    if len(text) < _LEAST_BASE64 or not _BASE64.fullmatch(start):
        return b""
    start = start.rstrip("=")
    return base64.b64decode(_plain(start[: len(start) // 4 * 4]))


def from_base64(word: str, limits: Limits, page: int | None = None) -> SourcedImage | None:
    """Read the image that a text is in base64; ``None`` if the text is something else."""
    if len(word) < _LEAST_BASE64 or not _BASE64.fullmatch(word):
        return None
    try:
        content = base64.b64decode(_plain("".join(word.split())), validate=True)
    except binascii.Error:
        return None
    return decode(io.BytesIO(content), "base64 text", limits, page) if is_known(content) else None
