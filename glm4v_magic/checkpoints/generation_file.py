"""The published ``generation_config.json``, of which only the stop tokens must make sense."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeInt

from glm4v_magic.checkpoints.files import read_json
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.outside import checked

__all__ = ["read_generation_config"]

_NAME = "generation_config.json"

Ids = Annotated[
    list[NonNegativeInt], BeforeValidator(lambda ids: [ids] if isinstance(ids, int) else ids)
]


class _GenerationConfig(BaseModel):
    """Where answers stop; other values that make no sense the engine leaves out, and says so."""

    model_config = ConfigDict(strict=True)

    eos_token_id: Ids | None = None


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """Read the settings of a checkpoint; ``None`` if it has none.

    Raises:
        CheckpointError: if the file is damaged, or its stop tokens are no ids.
    """
    file = folder / _NAME
    if not file.is_file():
        return None
    config = read_json(file)
    checked(_GenerationConfig, config, str(file), CheckpointError)
    return config
