"""Everything a notebook can hold as an image -> `SourcedImage`, 8-bit RGB with its source.

How `resolve_images` reads a word; the first rule that applies wins:

1. ``https://...``, ``http://...``, ``data:...``: an image from the network, or in the word itself.
2. A name in the namespace: that variable. The file of the same name is written ``./cat``.
3. The path of a file or folder that exists, ``~`` expanded. ``paper.pdf#page=3`` is a page of one.
4. An expression that begins with a name in the namespace, such as ``photos[2]``, ``row.image`` or
   ``photos[:3]``, unless it ends like the name of an image file: ``cat.png`` is always a file.
5. A pattern with ``*``, ``?`` or ``[...]``, ``**`` for folders below: its files, sorted by
   name, numbers in it as numbers.
6. ``clipboard``: the image on the clipboard of the computer that Python runs on.

The types of PIL, numpy, torch, matplotlib and IPython are recognised without importing these
libraries: where such a value exists, its library is imported already. This room imports only
`core`.

Begin with `words` and `values`. The modules, each on top of the next: `words` and `values`, both on
`names` and `holders`; `missing`; `files` and `uris`; `decode`; `pdf`, `rgb` and `encoded`;
`frugal`, `scaling`, `tiff` and `fits`. Only `uris` reaches the network, through `web`. `crop` cuts
a rectangle out of an image, `marked` draws boxes on one; `clipboard` reads the clipboard.
`recognised` tells what may be an image without reading it.
"""

from __future__ import annotations

from glm4v_magic.core.image import DEFAULT_LIMITS, Limits, SourcedImage
from glm4v_magic.images.crop import Crop, parse_crop
from glm4v_magic.images.rgb import to_rgb
from glm4v_magic.images.values import to_image, to_images
from glm4v_magic.images.words import count_images, resolve_images, with_clips_named

__all__ = [
    "DEFAULT_LIMITS",
    "Crop",
    "Limits",
    "SourcedImage",
    "count_images",
    "parse_crop",
    "resolve_images",
    "to_image",
    "to_images",
    "to_rgb",
    "with_clips_named",
]
