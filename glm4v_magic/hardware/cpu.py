"""What the CPU of this machine computes with."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from glm4v_magic.core.gpu_spec import CPU

__all__ = ["cpu_here"]

_FLAGS = ("amx_bf16", "avx512_bf16")
"""Instructions with which products in bfloat16 were measured faster than in float32."""


@lru_cache(maxsize=1)
def cpu_here() -> CPU:
    """Return the CPU of this machine; Linux tells its instructions, other systems do not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return CPU()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    there = found[1].split() if found else []
    return CPU(next((each for each in _FLAGS if each in there), ""))
