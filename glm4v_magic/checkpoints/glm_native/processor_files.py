"""What files say of the processors of images and videos; imports no torch.

transformers 5 saves both into ``processor_config.json``, versions before it into a file of each.
Where both are there, the first counts, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from glm4v_magic.checkpoints.files import read_json, require_file

__all__ = ["Settings", "image_settings", "require_image_settings", "video_settings"]

_ALL = "processor_config.json"
_OF_IMAGES = "preprocessor_config.json"
_OF_VIDEOS = "video_preprocessor_config.json"


class Settings(NamedTuple):
    """Settings of a processor, and the file that they are in."""

    values: Mapping[str, Any]
    file: Path


def image_settings(folder: Path) -> Settings | None:
    """Return those of the image processor of a checkpoint; ``None`` if no file has any.

    Raises:
        CheckpointError: if a file is damaged.
    """
    return _settings(folder, "image_processor", _OF_IMAGES)


def video_settings(folder: Path) -> Settings | None:
    """Return those of the video processor; see `image_settings`."""
    return _settings(folder, "video_processor", _OF_VIDEOS)


def require_image_settings(folder: Path) -> None:
    """Raise CheckpointError unless a file has settings of the image processor."""
    if image_settings(folder) is None:
        require_file(folder / _OF_IMAGES)


def _settings(folder: Path, name: str, own: str) -> Settings | None:
    file = folder / _ALL
    if file.is_file():
        values = read_json(file).get(name)
        if isinstance(values, dict):
            return Settings(values, file)
    file = folder / own
    return Settings(read_json(file), file) if file.is_file() else None
