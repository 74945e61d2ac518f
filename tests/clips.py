"""Clips made with PyAV: every frame says its index in its grey level."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

__all__ = ["write_clip"]


def write_clip(
    path: Path, count: int = 30, fps: int = 10, size: tuple[int, int] = (64, 48), keyframes: int = 5
) -> Path:
    """Write a clip whose frame number i is grey of 4 x i, modulo 240."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.gop_size = keyframes
        stream.bit_rate = 2_000_000
        for index in range(count):
            grey = np.full((size[1], size[0], 3), 4 * index % 240, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
