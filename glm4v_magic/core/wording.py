"""Numbers and names for people to read, and text that cannot control a terminal."""

from __future__ import annotations

import json
import re
import unicodedata

__all__ = [
    "brief",
    "clock",
    "columns",
    "counted",
    "gib",
    "json_text",
    "narrowed",
    "one_unit",
    "padded",
    "pixels",
    "printable",
    "readable_bytes",
    "readable_count",
    "readable_seconds",
    "sized",
    "split_at_commas",
]


def counted(number: int, noun: str) -> str:
    """Return ``1 token``, ``1,602 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def narrowed(text: str) -> str:
    """Return text with the full-width ASCII that Chinese keyboards type, ``０，５％``, as ASCII.

    The comma of enumerations, ``、``, becomes a comma, too.
    """
    return text.translate(_NARROW)


def split_at_commas(text: str) -> list[str]:
    """Split at commas, or at those of Chinese keyboards if a text has no other."""
    return [part.strip() for part in re.split("," if "," in text else "[，、]", text)]


_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x3001: ","}


def clock(seconds: float) -> str:
    """Return a time in a clip: ``0:04.5``, ``1:00:00``."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest // 10:02}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{minutes:02}:{text}" if hours else f"{minutes}:{text}"


# C0 and C1 controls without tab and newline: ESC starts the sequences that move a terminal's
# cursor, rename its window or hide text. Overrides and isolates of the writing direction turn
# round what stands behind them; letters written from right to left need none.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return `text` without control characters and with every line ending as a newline."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def columns(text: str) -> int:
    """Return the columns that text takes in a terminal: 2 for each Chinese character."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):  # stands on the one before it
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def padded(text: str, width: int) -> str:
    """Return text with spaces behind it up to a width in columns of a terminal."""
    return text + " " * (width - columns(text))


_LONGEST_VALUE = 80  # characters


def brief(value: object) -> str:
    """Return a value as Python writes it, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def json_text(value: object, indent: int | None = None) -> str:
    """Return JSON with non-ASCII letters unescaped; lone surrogates become U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def gib(size: int) -> str:
    """Return bytes as GiB with two decimals."""
    return f"{size / 2**30:.2f}"


def sized(size: int) -> str:
    """Return bytes in GiB with two decimals, or in a smaller unit where these would be almost 0."""
    return " ".join(_in_unit_of(size, size))


def one_unit(*sizes: int) -> list[str]:
    """Return sizes in the unit of the largest, which only the last one names."""
    *before, last = (_in_unit_of(size, max(sizes)) for size in sizes)
    return [*(number for number, _ in before), " ".join(last)]


def _in_unit_of(size: int, largest: int) -> tuple[str, str]:
    if largest == 0 or largest >= 2**30 / 20:
        return gib(size), "GiB"
    power, unit = (2**20, "MiB") if largest >= 2**20 / 20 else (2**10, "KiB")
    return f"{size / power:.2f}", unit


def readable_bytes(number: int) -> str:
    """Return bytes in binary units: ``512 B``, ``5.2 MiB``, ``25.90 GiB``."""
    if number < 1024:
        return f"{number} B"
    if number < 1024**2:
        return f"{number / 1024:.1f} KiB"
    if number < 1024**3:
        return f"{number / 1024**2:.1f} MiB"
    return f"{number / 1024**3:.2f} GiB"


def readable_count(number: int) -> str:
    """Return a number of weights: ``912``, ``54.3 K``, ``1.5 M``, ``13.9 B``."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def readable_seconds(seconds: float) -> str:
    """Return ``0.03 s``, ``4.1 s``, ``2 min 5 s``."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def pixels(size: tuple[int, int]) -> str:
    """Return width and height as ``640 x 480 px``."""
    return f"{size[0]} x {size[1]} px"
