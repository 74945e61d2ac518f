"""Draw the images that the notebooks ask about: ``python -m training.example_images``."""

from __future__ import annotations

from pathlib import Path

from training.drawing import draw_scene
from training.scenes import Item, Scene

__all__ = ["IMAGES", "main"]

FOLDER = Path(__file__).parent.parent / "notebooks"

RED, BLUE, GREEN, YELLOW, PURPLE = (
    (214, 39, 40), (31, 80, 200), (44, 160, 44), (255, 225, 25), (128, 0, 128),
)  # fmt: skip

IMAGES = {
    "shapes.png": Scene(
        "shapes",
        "white",
        (250, 250, 250),
        (
            Item("circle", "red", RED, 0.27, 0.3, 0.19),
            Item("square", "blue", BLUE, 0.73, 0.35, 0.17),
            Item("triangle", "green", GREEN, 0.48, 0.75, 0.2),
        ),
    ),
    "night.png": Scene(
        "shapes",
        "black",
        (5, 5, 10),
        (
            Item("star", "yellow", YELLOW, 0.3, 0.35, 0.22),
            Item("heart", "purple", PURPLE, 0.7, 0.68, 0.2),
        ),
    ),
}


def main() -> None:
    """Write every image beside the notebooks."""
    for name, scene in IMAGES.items():
        draw_scene(scene, 1440).reduce(4).save(FOLDER / name)  # drawn large for smooth edges


if __name__ == "__main__":
    main()
