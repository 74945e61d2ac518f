"""Fonts for names that are drawn on images: Pillow's own, or one of the system that has the glyphs.

Pillow's own font has little more than ASCII. Fonts of the system are looked for by the
names of their files, where Pillow looks for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeAlias

from PIL import ImageFont

__all__ = ["Font", "lettered"]

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FILES = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",  # macOS
    "Hiragino Sans GB.ttc",
    "STHeiti Medium.ttc",
    "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",  # Windows
    "simsun.ttc",
    "meiryo.ttc",
    "malgun.ttf",
    "segoeui.ttf",
    "arial.ttf",
    "unifont.otf",
    "NotoSans-Regular.ttf",
)
"""Files of fonts with the glyphs of other scripts, Chinese first."""

_MOST_TOLD = 8  # characters in a warning
_NO_CHARACTER = "\U000fffff"  # for private use: drawn as whatever stands for a missing glyph


def lettered(names: Iterable[str], size: int) -> list[tuple[str, Font]]:
    r"""Return each name with a font that has its glyphs; characters without one are escaped.

    Warns once of characters that no font has, such as ``\u732b``.

    Args:
        names: texts to draw.
        size: size of the font in pixels.
    """
    found, lacking = [], dict[str, None]()
    absent = set[str]()
    for name in names:
        font = min(_fonts(size, name, absent), key=lambda each: len(_lacking(each, name)))
        without = _lacking(font, name)
        lacking |= dict.fromkeys(without)
        shown = "".join(ascii(each)[1:-1] if each in without else each for each in name)
        found.append((shown, font))
    if lacking:
        codes = [f"U+{ord(each):04X}" for each in lacking]
        few = ", ".join(codes[:_MOST_TOLD]) + (", ..." if len(codes) > _MOST_TOLD else "")
        warnings.warn(
            f"No font that was found here has {few}: written as code points. A font such as "
            "Noto Sans CJK is used once it is installed.",
            stacklevel=5,  # of `marked`, which `calls.drawing` calls for `ImageAnswer.draw`
        )
    return found


def _fonts(size: int, name: str, absent: set[str]) -> Iterator[Font]:
    """Yield fonts until one has all glyphs of a name; files that are not there are added."""
    own = ImageFont.load_default(size)
    yield own
    if not _lacking(own, name):
        return
    for file in _FILES:
        if file in absent:
            continue
        try:
            font = _of_system(file, size)
        except (OSError, ImportError):  # Pillow may have been built without FreeType
            absent.add(file)  # for now: it may be installed later
            continue
        yield font
        if not _lacking(font, name):
            return


@lru_cache(maxsize=64)
def _of_system(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def _lacking(font: Font, name: str) -> list[str]:
    """Return the characters of a name that a font has no glyph for."""
    if isinstance(font, ImageFont.ImageFont):  # Pillow's own without FreeType, which has Latin-1
        return [each for each in name if ord(each) > 0xFF]
    missing = _drawn(font, _NO_CHARACTER)
    others = dict.fromkeys(each for each in name if not each.isspace())
    return [each for each in others if not each.isascii() and _drawn(font, each) == missing]


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
