"""How files of images and clips are recognised: suffix, media type, first bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images.messages import one_line

__all__ = [
    "CLIPS",
    "CLIP_FORMATS",
    "HEAD",
    "RAW",
    "SUFFIXES",
    "ClipFormat",
    "clip_format",
    "is_known",
    "is_read",
    "may_be_image",
    "not_an_image",
]

HEAD = 512
"""First bytes of a file that tell what it is."""

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpeg", ".jpg", ".jxl",
    ".pbm", ".pdf", ".pgm", ".png", ".ppm", ".svg", ".tif", ".tiff", ".webp",
)  # fmt: skip

_HEIF = rb"hei|hev|mif1|msf1"
_AVIF = rb"avi[fs]"
_CR3 = rb"crx "


@dataclass(frozen=True, slots=True)
class ClipFormat:
    """A container of clips.

    Attributes:
        name: FFmpeg's name for it.
        suffixes: of its files, in lower case.
        media_types: of its files.
        beginning: how its files begin.
    """

    name: str
    suffixes: tuple[str, ...]
    media_types: tuple[str, ...]
    beginning: re.Pattern[bytes]


CLIP_FORMATS = (
    ClipFormat(
        "mov",
        (".mp4", ".mov", ".m4v"),
        ("video/mp4", "video/quicktime", "video/x-m4v"),
        # Images may be in this container, too.
        re.compile(
            rb".{4}(?:ftyp(?!%b)|moov|mdat)|\0.{3}(?:wide|free|skip)"
            % b"|".join((_HEIF, _AVIF, _CR3)),
            re.DOTALL,
        ),
    ),
    ClipFormat(
        "matroska",
        (".webm", ".mkv"),
        ("video/webm", "video/x-matroska"),
        re.compile(rb"\x1a\x45\xdf\xa3"),
    ),
    ClipFormat("avi", (".avi",), ("video/x-msvideo",), re.compile(rb"RIFF.{4}AVI ", re.DOTALL)),
    ClipFormat("mpeg", (".mpg", ".mpeg"), ("video/mpeg",), re.compile(rb"\0\0\x01\xba")),
    ClipFormat("ogg", (".ogv",), ("video/ogg",), re.compile(rb"OggS")),
    ClipFormat("mpegts", (".ts",), ("video/mp2t",), re.compile(rb"G.{187}G.{187}G", re.DOTALL)),
    ClipFormat(
        "asf", (".wmv",), ("video/x-ms-wmv",), re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11")
    ),
)

CLIPS = tuple(sorted(suffix for each in CLIP_FORMATS for suffix in each.suffixes))
"""Suffixes of clips, in lower case."""

_PNG_FIRST = "Save it as a PNG first."

_IMAGE_SIGNATURES = (
    (re.compile(rb"\x89PNG"), "PNG"),
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"GIF8"), "GIF"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebP"),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF"),
    (re.compile(rb"BM"), "BMP"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb".{4}ftyp(%b)" % _AVIF, re.DOTALL), "AVIF"),
    (re.compile(rb"P[1-7]\s"), "Netpbm"),
    (re.compile(rb"\0\0\x01\0[^\0]"), "icon"),
    (re.compile(rb"qoif"), "QOI"),
)
RAW = "Develop it: rawpy.imread(path).postprocess() gives an array. pip install rawpy"
"""What can be done with a camera's raw image."""

_OTHER_SIGNATURES = (
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "a PostScript document", _PNG_FIRST),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive or an office document", "Unpack the image."),
    (
        re.compile(rb"\x1f\x8b|BZh\d1AY|\xfd7zXZ\0|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x28\xb5\x2f\xfd"),
        "a packed file",
        "Unpack the image.",
    ),
    (
        re.compile(rb".{4}ftyp(%b)" % _HEIF, re.DOTALL),
        "a HEIC image, which Pillow cannot read alone",
        "Save it as JPEG, or install pillow-heif and call pillow_heif.register_heif_opener().",
    ),
    (
        re.compile(rb".{4}ftyp(%b)" % _AVIF, re.DOTALL),
        "an AVIF image, which this Pillow cannot read",
        "Install pillow-avif-plugin and import pillow_avif.",
    ),
    (
        re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
        "a JPEG XL image, which Pillow cannot read alone",
        "Save it as PNG, or install pillow-jxl-plugin and import pillow_jxl.",
    ),
    (re.compile(rb".{4}ftyp%b|II\*\0.{4}CR|FUJIFILMCCD-RAW|II(?:R[OS]|U\0)|MMOR" % _CR3, re.DOTALL),
     "a camera's raw image", RAW),
    (
        re.compile(rb".{128}DICM", re.DOTALL),
        "a DICOM image",
        "Read it with pydicom: pydicom.dcmread(path).pixel_array is an array. pip install pydicom",
    ),
    (
        re.compile(rb"v/1\x01"),
        "an OpenEXR image",
        'Read it with OpenEXR, and scale its values to 0 to 1: OpenEXR.File(path).channels()["RGB"]'
        ".pixels. pip install OpenEXR",
    ),
    (
        re.compile(rb"#\?(RADIANCE|RGBE)"),
        "a Radiance HDR image",
        "Read it with OpenCV, and scale its values to 0 to 1: "
        "cv2.imread(path, cv2.IMREAD_UNCHANGED)[..., ::-1]. pip install opencv-python-headless",
    ),
    (re.compile(rb"\x93NUMPY"), "an array of NumPy", "Load it: numpy.load(path)."),
    (
        re.compile(rb"\x89HDF"),
        "an HDF5 file",
        "Read the image with h5py: h5py.File(path)[name][()] is an array, and its names are "
        "list(h5py.File(path)). pip install h5py",
    ),
    (re.compile(rb"SIMPLE  ="), "a FITS file that Pillow cannot read",
     "Read it with astropy: astropy.io.fits.getdata(path). pip install astropy"),
    (re.compile(rb"gimp xcf "), "a GIMP drawing", "Export it as a PNG first."),
    (re.compile(rb"\xd0\xcf\x11\xe0"), "an OLE document, such as FlashPix", _PNG_FIRST),
    (
        re.compile(rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", re.DOTALL),
        "a Windows metafile",
        _PNG_FIRST,
    ),
    (
        re.compile(rb"GRIB"),
        "a GRIB file of weather data",
        'Read it with xarray: xarray.open_dataset(path, engine="cfgrib") has arrays; scale one '
        "to 0 to 1. pip install xarray cfgrib",
    ),
    (
        re.compile(rb"BUFR"),
        "a BUFR file of weather observations",
        "Draw its values, and give the figure.",
    ),
    (
        re.compile(rb"version https://git-lfs"),
        "a Git LFS pointer, not the image itself",
        "Fetch it with git lfs pull.",
    ),
    (
        re.compile(rb"\s*(<\?xml.*)?<svg", re.DOTALL),
        "an SVG drawing",
        "Save it as a PNG first, or draw it: resvg_py.svg_to_bytes(svg_path=path) is a PNG. "
        "pip install resvg-py",
    ),
    (
        re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE),
        "a web page",
        "Give the address of the image itself.",
    ),
)  # fmt: skip


def is_known(content: bytes) -> bool:
    """Tell whether bytes begin like an image file, a PDF document, a clip, or what is not read."""
    known = (pattern for pattern, *_ in (*_IMAGE_SIGNATURES, *_OTHER_SIGNATURES))
    if content.startswith(b"%PDF") or clip_format(content) is not None:
        return True
    return any(pattern.match(content) for pattern in known)


def clip_format(content: bytes) -> ClipFormat | None:
    """Return the container whose files begin like these bytes; ``None`` if there is none."""
    return next((each for each in CLIP_FORMATS if each.beginning.match(content)), None)


def is_read(content: bytes) -> bool:
    """Tell whether bytes begin like an image file that is read, or a PDF document."""
    return content.startswith(b"%PDF") or any(kind.match(content) for kind, _ in _IMAGE_SIGNATURES)


def may_be_image(media_type: str) -> bool:
    """Tell whether `media_type` is that of an image or a PDF, or says nothing about the content."""
    return media_type.startswith("image/") or media_type.endswith(("/octet-stream", "/pdf"))


def not_an_image(source: str, head: bytes) -> ImageError:
    """Return the error for a file that begins with `head` and is not an image."""
    shown = one_line(source)
    if not head:
        return ImageError(f"{shown} is empty (0 bytes).")
    if clip_format(head) is not None:
        return ImageError(f"{shown} is a video.", code="clip_among_images")
    for pattern, name, hint in _OTHER_SIGNATURES:
        if pattern.match(head):
            return ImageError(f"{shown} is {name}.", hint)
    for pattern, name in _IMAGE_SIGNATURES:
        if pattern.match(head):
            return ImageError(f"{shown} begins like {_a(name)} file but is cut short or damaged.")
    text = head.decode("utf-8", "ignore")
    if len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text):
        start = " ".join(text.split())[:40]
        return ImageError(f"{shown} is not an image: it is text that starts with {start!r}.")
    return ImageError(f"{shown} is not an image: it starts with the bytes {head[:8].hex(' ')}.")


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOi' else 'a'} {name}"
