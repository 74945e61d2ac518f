"""How much memory reading an image takes, kind by kind.

    python tests/decode_peaks.py 3000 "16-bit PNG" "WebP"

writes, as JSON, the peak of each in units of the image as RGB: 3 bytes a pixel. Each is read in a
process of its own, forked from one that has read a small image of its kind: what counts is the
image.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from glm4v_magic.images import Limits, to_image

_TURNED = Image.Exif()
_TURNED[0x0112] = 6
_CLEAR = (1, 2, 3, 99)
_MANY = None
"""Of many colours, where the decoders of files with few take less; such files are small, too."""

KINDS: dict[str, tuple[str, str, Any, dict[str, Any]]] = {
    "PNG": ("PNG", "RGB", (1, 2, 3), {}),
    "16-bit PNG": ("PNG", "I;16", 7, {}),
    "clear PNG": ("PNG", "RGBA", _CLEAR, {}),
    "grey and clear PNG": ("PNG", "LA", (1, 99), {}),
    "palette PNG": ("PNG", "P", 1, {}),
    "clear palette PNG": ("PNG", "P", 1, {"transparency": 0}),
    "1-bit PNG": ("PNG", "1", 1, {}),
    "turned PNG": ("PNG", "RGB", (1, 2, 3), {"exif": _TURNED}),
    "animated PNG": ("PNG", "RGBA", _CLEAR, {"save_all": True}),
    "JPEG": ("JPEG", "RGB", (1, 2, 3), {}),
    "progressive JPEG": ("JPEG", "RGB", (1, 2, 3), {"progressive": True, "subsampling": 0}),
    "CMYK JPEG": ("JPEG", "CMYK", (1, 2, 3, 4), {}),
    "TIFF": ("TIFF", "RGB", (1, 2, 3), {"compression": "tiff_adobe_deflate"}),
    "clear TIFF": ("TIFF", "RGBA", _CLEAR, {"compression": "tiff_adobe_deflate"}),
    "TIFF of floats": ("TIFF", "F", 0.5, {"compression": "tiff_adobe_deflate"}),
    "32-bit TIFF": ("TIFF", "I", 7, {"compression": "tiff_adobe_deflate"}),
    "CMYK TIFF": ("TIFF", "CMYK", (1, 2, 3, 4), {"compression": "tiff_adobe_deflate"}),
    "Lab TIFF": ("TIFF", "LAB", (1, 2, 3), {"compression": "tiff_adobe_deflate"}),
    "GIF": ("GIF", "P", 1, {}),
    "clear GIF": ("GIF", "P", 1, {"transparency": 0}),
    "animated GIF": ("GIF", "P", 1, {"save_all": True}),
    "BMP": ("BMP", "RGB", (1, 2, 3), {}),
    "TGA": ("TGA", "RGBA", _CLEAR, {}),
    "PPM": ("PPM", "RGB", (1, 2, 3), {}),
    "16-bit PGM": ("PPM", "I;16", 7, {}),
    "SGI": ("SGI", "RGB", (1, 2, 3), {}),
    "PCX": ("PCX", "RGB", (1, 2, 3), {}),
    "DDS": ("DDS", "RGBA", _CLEAR, {}),
    "QOI": ("QOI", "RGBA", _CLEAR, {}),
    "MPO": ("MPO", "RGB", (1, 2, 3), {"save_all": True}),
    "AVIF": ("AVIF", "RGB", (1, 2, 3), {"speed": 10}),
    "clear AVIF": ("AVIF", "RGBA", _MANY, {"speed": 10, "subsampling": "4:4:4"}),
    "multiplied AVIF": ("AVIF", "RGBA", _MANY, {"speed": 10, "alpha_premultiplied": True}),
    "clear moving AVIF": ("AVIF", "RGBA", _MANY, {"speed": 10, "save_all": True}),
    "WebP": ("WEBP", "RGB", (1, 2, 3), {"method": 0}),
    "clear WebP": ("WEBP", "RGBA", _CLEAR, {"method": 0}),
    "lossless WebP": ("WEBP", "RGB", _MANY, {"method": 0, "lossless": True}),
    "clear lossless WebP": ("WEBP", "RGBA", _MANY, {"method": 0, "lossless": True}),
    "turned WebP": ("WEBP", "RGB", (1, 2, 3), {"method": 0, "exif": _TURNED}),
    "animated WebP": ("WEBP", "RGBA", _CLEAR, {"method": 0, "save_all": True}),
    "JPEG 2000": ("JPEG2000", "RGB", _MANY, {"num_resolutions": 2}),
    "clear JPEG 2000": ("JPEG2000", "RGBA", _MANY, {"num_resolutions": 2}),
    "grey JPEG 2000": ("JPEG2000", "L", 7, {"num_resolutions": 2}),
    "tiled JPEG 2000": ("JPEG2000", "RGB", (1, 2, 3), {"tile_size": (256, 256)}),
}
"""Name -> Pillow's format, mode, colour, and options to save it with.

Not ICNS, whose images are small.
"""


def write(kind: str, side: int) -> bytes:
    """Return a square image file of a kind."""
    name, mode, colour, options = KINDS[kind]
    image = (
        _of_many_colours(mode, side) if colour is _MANY else Image.new(mode, (side, side), colour)
    )
    stream = io.BytesIO()
    if "save_all" in options:
        other = Image.new(mode, (side, side))
        options = options | {"append_images": [other]}
    image.save(stream, name, **options)
    return stream.getvalue()


def _of_many_colours(mode: str, side: int) -> Image.Image:
    first = Image.radial_gradient("L").resize((side, side))
    turned = [first, first.rotate(90), first.rotate(180), first.rotate(270)]
    return Image.merge(mode, turned[: len(mode)])


def forked(work: Callable[[], object]) -> object:
    """Return what `work` returns in a process of its own, by way of JSON."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(writes, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writes)
    with os.fdopen(reads) as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a process ended with status {status}")
    return json.loads(text)


def peak(path: Path, side: int) -> float:
    """Return what reading a square file takes at most, as a multiple of its pixels as RGB."""

    def most() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = most()
    to_image(str(path), "x", limits=Limits(megapixels=178))
    return (most() - before) / (3 * side * side)


def main() -> None:
    """Measure what the command line names."""
    side, kinds = int(sys.argv[1]), sys.argv[2:] or list(KINDS)
    warnings.simplefilter("ignore")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in enumerate(kinds):
            path = Path(folder) / f"{number}"
            to_image(write(kind, 32), "x")  # imports what it needs
            forked(lambda: path.write_bytes(write(kind, side)))  # noqa: B023  called at once
            found[kind] = forked(lambda: peak(path, side))  # noqa: B023
            path.unlink()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
