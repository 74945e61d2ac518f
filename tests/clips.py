"""Clips made with PyAV: every frame says its index in its grey level."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

__all__ = ["write_clip"]


def write_clip(
    path: Path,
    count: int = 30,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    keyframes: int = 5,
    rotation: int = 0,
) -> Path:
    """Write a clip whose frame number i is grey of 4 x i, modulo 240.

    A rotated one has a white upper left corner.

    Args:
        path: file to write.
        count: number of frames.
        fps: frames per second.
        size: width and height of a frame.
        keyframes: frames between two that are coded in themselves.
        rotation: degrees by which a player is to turn it counterclockwise.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.gop_size = keyframes
        if rotation:
            stream.set_display_rotation(rotation)
        stream.bit_rate = 2_000_000
        for index in range(count):
            grey = np.full((size[1], size[0], 3), 4 * index % 240, np.uint8)
            if rotation:
                grey[: size[1] // 2, : size[0] // 2] = 255
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
