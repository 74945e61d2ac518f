"""How image files are recognised: suffix, media type, first bytes."""

from __future__ import annotations

import re

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images.messages import one_line

__all__ = ["SUFFIXES", "may_be_image", "not_an_image"]

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpeg", ".jpg", ".jxl",
    ".pbm", ".pdf", ".pgm", ".png", ".ppm", ".svg", ".tif", ".tiff", ".webp",
)  # fmt: skip

_IMAGE_SIGNATURES = (
    (re.compile(rb"\x89PNG"), "PNG"),
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"GIF8"), "GIF"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebP"),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF"),
    (re.compile(rb"BM"), "BMP"),
)
_OTHER_SIGNATURES = (
    (re.compile(rb"%!PS"), "a PostScript document", "Save it as a PNG first."),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive or an office document", "Unpack the image."),
    (
        re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL),
        "a HEIC image, which Pillow cannot read alone",
        "Save it as JPEG, or install pillow-heif and call pillow_heif.register_heif_opener().",
    ),
    (re.compile(rb".{4}ftyp", re.DOTALL), "a video", "Save one of its frames as a PNG first."),
    (
        re.compile(rb"version https://git-lfs"),
        "a Git LFS pointer, not the image itself",
        "Fetch it with git lfs pull.",
    ),
    (re.compile(rb"\s*(<\?xml.*)?<svg", re.DOTALL), "an SVG drawing", "Save it as a PNG first."),
    (
        re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE),
        "a web page",
        "Give the address of the image itself.",
    ),
)


def may_be_image(media_type: str) -> bool:
    """Tell whether `media_type` is that of an image or a PDF, or says nothing about the content."""
    return media_type.startswith("image/") or media_type.endswith(("/octet-stream", "/pdf"))


def not_an_image(source: str, head: bytes) -> ImageError:
    """Return the error for a file that begins with `head` and is not an image."""
    shown = one_line(source)
    if not head:
        return ImageError(f"{shown} is empty (0 bytes).")
    for pattern, name in _IMAGE_SIGNATURES:
        if pattern.match(head):
            return ImageError(f"{shown} begins like a {name} file but is cut short or damaged.")
    for pattern, name, hint in _OTHER_SIGNATURES:
        if pattern.match(head):
            return ImageError(f"{shown} is {name}.", hint)
    text = head.decode("utf-8", "ignore")
    if len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text):
        start = " ".join(text.split())[:40]
        return ImageError(f"{shown} is not an image: it is text that starts with {start!r}.")
    return ImageError(f"{shown} is not an image: it starts with the bytes {head[:8].hex(' ')}.")
