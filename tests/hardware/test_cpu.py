"""What the CPU computes with, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm4v_magic.core.gpu_spec import CPU
from glm4v_magic.hardware.cpu import cpu_here


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 clwb\n", "avx512_bf16"),
        ("model\t: 1\nflags\t: amx_tile amx_bf16 avx512_bf16\nflags\t: fpu\n", "amx_bf16"),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16x\n", ""),
        ("Features\t: fp asimd bf16\n", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_flags_of_linux(monkeypatch, told, found):
    def read(self, **_):
        assert str(self) == "/proc/cpuinfo"
        if told is None:
            raise FileNotFoundError(self)
        return told

    monkeypatch.setattr(Path, "read_text", read)
    cpu_here.cache_clear()
    try:
        assert cpu_here() == CPU(found)
    finally:
        cpu_here.cache_clear()
