"""What the rest of the package lends this room: the wording of errors, and models of GPUs by name.

Without it, as when this folder is copied into another project, errors are plain, and a description
of GPUs is one of sizes.
"""

from __future__ import annotations

try:
    from glm4v_magic.core.errors import GPUDescriptionError, OptionError, PlacementError
    from glm4v_magic.core.gpu_spec import GPU, MAX_GPUS, parse_gpus
except ModuleNotFoundError:
    from glm4v_magic.virtual_gpus.alone import (  # type: ignore[assignment]
        GPU,
        MAX_GPUS,
        GPUDescriptionError,
        OptionError,
        PlacementError,
        parse_gpus,
    )

__all__ = [
    "GPU",
    "MAX_GPUS",
    "GPUDescriptionError",
    "OptionError",
    "PlacementError",
    "parse_gpus",
]
