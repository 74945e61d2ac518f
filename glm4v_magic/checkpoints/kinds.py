"""Which models can be used, by their ``config.json``, and what to do with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm4v_magic.checkpoints.glm4v_9b import layout
from glm4v_magic.checkpoints.glm_native import families
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.wording import printable
from glm4v_magic.images.messages import one_line

__all__ = ["BESIDE_WEIGHTS", "require_known"]

BESIDE_WEIGHTS = (*layout.BESIDE_WEIGHTS, *families.BESIDE_WEIGHTS)
"""Files that come with the weights of a model, of each kind."""

_WITH_THE_TOWER = ("CogVLM", "CogAgent")
"""Models with the vision tower of GLM-4V-9B, whose own code `remote_code` makes consistent."""


def require_known(config: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError unless a ``config.json`` is of a family that can be used.

    Args:
        config: its parsed content.
        where: its path, for messages.
    """
    if layout.matches(config) or families.matches(config):
        return
    # Not above: pydantic would be imported with the magics.
    from glm4v_magic.checkpoints.outline import outline_of

    outline = outline_of(config)
    first = next(iter(outline.architectures), None) or ""
    for name in _WITH_THE_TOWER:
        if name.lower() in first.lower():
            raise CheckpointError(
                f"{where} describes a model of {name} ({one_line(first)}), which runs with its own "
                "code only; that is not done here.",
                code="of_cogvlm",
            )
    if outline.model_type is None:
        raise CheckpointError(
            f"{where} has no 'model_type', so it does not describe a model.",
            f"Known are {', '.join(families.KNOWN)}.",
        )
    kind = outline.model_type
    vision = " without a vision tower" if outline.vision_config is None else ""
    raise CheckpointError(
        f"{where} describes a model of type {printable(str(kind))!r}{vision}.",
        f"Known are {', '.join(families.KNOWN)}.",
    )
