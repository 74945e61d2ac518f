"""Memory of the host, and of the control group that this process may be confined to.

Containers, and so most hosted notebooks, show the memory of the whole machine; a process that takes
more than its control group may have is killed without a word (Linux, versions 1 and 2).
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["free_host_bytes", "host_bytes"]

_GROUPS = Path("/sys/fs/cgroup")

_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""For each version: the files of limit and use, then a file and its entry for reclaimable pages."""


def host_bytes(groups: Path = _GROUPS) -> int | None:
    """Return the most memory, in bytes, that this process may ever have; ``None`` if unknown.

    Args:
        groups: folder of the control group.
    """
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
    limits = [_number(groups / limit) for limit, *_ in _FILES]
    return min([*sizes, *(each for each in limits if each is not None)])


def free_host_bytes(groups: Path = _GROUPS) -> int:
    """Return the host memory, in bytes, that this process can still have without swapping.

    Args:
        groups: folder of the control group.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used, stat, reclaimable in _FILES:
        most, now = _number(groups / limit), _number(groups / used)
        if most is not None and now is not None:
            pages = _entry(groups / stat, reclaimable)
            free = min(free, max(most - now + pages, 0))
    return free


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _number(file: Path) -> int | None:
    """Return the number in a file; ``None`` for ``max`` or no such file."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _entry(file: Path, name: str) -> int:
    """Return an entry of a file of names and numbers; 0 if it is not there."""
    entries = (line.split() for line in _text(file).splitlines())
    return next((int(each[1]) for each in entries if len(each) == 2 and each[0] == name), 0)
