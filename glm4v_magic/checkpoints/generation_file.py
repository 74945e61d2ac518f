"""The published ``generation_config.json``; whatever it holds, the checkpoint can be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4v_magic.checkpoints.files import read_json
from glm4v_magic.core.errors import CheckpointError

__all__ = ["GENERATION_CONFIG", "GenerationFile", "read_generation_config"]

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, slots=True)
class GenerationFile:
    """Contents of the file.

    Attributes:
        settings: its settings, with any value of any type; ``None`` for those that the model's
            config implies.
        notes: why the file is ignored, if it exists and is not a JSON object.
    """

    settings: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read_generation_config(folder: Path) -> GenerationFile:
    """Read the settings of a checkpoint; a damaged file is ignored."""
    file = folder / GENERATION_CONFIG
    if not file.is_file():
        return GenerationFile()
    try:
        return GenerationFile(read_json(file))
    except CheckpointError as error:
        fault = error.what.rstrip(".").replace(str(file), GENERATION_CONFIG)
        return GenerationFile(notes=(f"{fault}, and is left out",))
