"""Pillow's own test images, about a thousand odd files that nobody here made.

They are not in this repository: `make nightly-images` fetches Pillow's source distribution and runs
this. After a change that is meant,

    python tests/images/test_pillow_images.py

writes the table of expectations anew; read its diff.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from PIL import ImageStat

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images import to_images

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "build" / "pillow" / "Tests" / "images"
TABLE = ROOT / "tests" / "data" / "pillow_images.tsv"
LONGEST = 500  # characters of a message
NEAR = 3  # of 255: decoders of other versions round otherwise

pytestmark = pytest.mark.nightly


def found(file):
    """Read a file: its size and mean colour, or what is wrong with it, without reasons."""
    try:
        (photo,) = to_images(file, "image")
    except ImageError as error:
        if len(str(error)) > LONGEST or "\n" in str(error):
            return "a long message"
        what = error.what.removeprefix(f"image: {file}").removeprefix(f"image: {file.name}")
        return re.sub(r"^image: \S*", "", re.sub(r"(damaged|not read): .*", r"\1", what)).strip()
    assert photo.image.mode == "RGB"
    width, height = photo.original_size
    return " ".join(map(str, (width, height, *map(round, ImageStat.Stat(photo.image).mean))))


def all_files():
    return sorted(file for file in IMAGES.rglob("*") if file.is_file())


def same(told, expected):
    numbers, others = ([*map(int, re.findall(r"-?\d+", text))] for text in (told, expected))
    if not re.fullmatch(r"[\d ]+", told + expected):
        return told == expected
    near = all(abs(a - b) <= NEAR for a, b in zip(numbers[2:], others[2:], strict=True))
    return numbers[:2] == others[:2] and near


@pytest.mark.skipif(not IMAGES.is_dir(), reason="make nightly-images fetches them")
def test_every_file_is_read_or_refused_as_expected():
    expected = dict(line.split("\t") for line in TABLE.read_text("utf-8").splitlines())
    told = {str(file.relative_to(IMAGES)): found(file) for file in all_files()}
    assert told.keys() == expected.keys()
    assert not {
        name: (said, expected[name])
        for name, said in told.items()
        if not same(said, expected[name])
    }


def main():
    lines = [f"{file.relative_to(IMAGES)}\t{found(file)}\n" for file in all_files()]
    TABLE.write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
