"""Rows per second of a prompt mapped over images, several rows at once against one by one.

    python benchmarks/batch.py [--batch-size N] [--rows N] [--runs N] [--checkpoint FOLDER]
        [--gpus GPUS]

Both sides ask the same question about the same images, greedily, in turn in one process. Times
include reading the images, writing the prompts, tower, decoder and bookkeeping. The answers are
compared.
"""

from __future__ import annotations

import argparse
import colorsys
import statistics
import time

from loading import add_gpus
from PIL import Image, ImageDraw
from ratios import describe

from glm4v_magic import Session

QUESTION = "Describe the image."
SIZE = 112


def images(rows: int) -> list[Image.Image]:
    """Draw one circle in each of `mapping.items` images, all different."""
    drawn = []
    for row in range(rows):
        colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(row / rows, 1, 0.9))
        image = Image.new("RGB", (SIZE, SIZE), "white")
        left, top = 10 + row % 4 * 12, 10 + row // 4 % 4 * 12
        ImageDraw.Draw(image).ellipse((left, top, left + 40, top + 40), fill=colour)
        drawn.append(image)
    return drawn


def main() -> None:
    """Print rows per second of both sides and the ratio of each pair of runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--checkpoint", default="demo")
    add_gpus(parser)
    arguments = parser.parse_args()

    session = Session().load(arguments.checkpoint, gpus=arguments.gpus)
    asked = images(arguments.rows)

    def side(batch_size: int) -> tuple[float, list[str]]:
        start = time.perf_counter()
        rows = session.map(QUESTION, asked, temperature=0, batch_size=batch_size, fresh=True)
        return time.perf_counter() - start, [row.text for row in rows]

    sizes = (arguments.batch_size, 1)
    answers = [side(size)[1] for size in sizes]  # the first call of each is not counted
    same = sum(one == other for one, other in zip(*answers, strict=True))
    pairs = [[side(size)[0] for size in sizes] for _ in range(arguments.runs)]
    print(f"{arguments.checkpoint}, {arguments.rows} images, {arguments.runs} runs each: median")
    for size, seconds in zip(sizes, zip(*pairs, strict=True), strict=True):
        speed = arguments.rows / statistics.median(seconds)
        print(f"  --batch-size {size:<3d} {speed:8.1f} rows/s")
    batched, single = zip(*pairs, strict=True)
    print(f"  {describe(single, batched)}")
    print(f"  {same} of {arguments.rows} answers are the same")


if __name__ == "__main__":
    main()
