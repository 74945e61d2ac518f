"""Which models can be used, by their ``config.json``, and what to do with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm4v_magic.checkpoints.glm4v_9b import layout
from glm4v_magic.checkpoints.glm_native import families
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.wording import printable

__all__ = ["require_known"]

_COGVLM = "CogVLM"


def require_known(config: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError unless a ``config.json`` is of a family that can be used.

    Args:
        config: its parsed content.
        where: its path, for messages.
    """
    if layout.matches(config) or families.matches(config):
        return
    classes = config.get("architectures")
    first = str(classes[0]) if isinstance(classes, list) and classes else ""
    if _COGVLM.lower() in first.lower():
        raise CheckpointError(
            f"{where} describes a model of CogVLM ({printable(first)}), which runs with its own "
            "code only; that is not done here.",
            code="of_cogvlm",
        )
    if "model_type" not in config:
        raise CheckpointError(
            f"{where} has no 'model_type', so it does not describe a model.",
            f"Known are {', '.join(families.KNOWN)}.",
        )
    kind = config["model_type"]
    vision = "" if "vision_config" in config else " without a vision tower"
    raise CheckpointError(
        f"{where} describes a model of type {printable(str(kind))!r}{vision}.",
        f"Known are {', '.join(families.KNOWN)}.",
    )
