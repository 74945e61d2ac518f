"""Packages that some weights need, in the version that transformers takes."""

from __future__ import annotations

import logging

from glm4v_magic.core.errors import OptionError

__all__ = ["quiet_bitsandbytes", "require_kernels"]


def quiet_bitsandbytes() -> None:
    """Silence bitsandbytes, which warns on import, also by peft, of a kernel that it may lack."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def require_kernels() -> None:
    """Raise OptionError unless the package that computes with weights in FP8 is installed."""
    from transformers.utils import import_utils

    # To transformers, any version but those that it asks for counts as missing.
    if not import_utils.is_kernels_available():
        raise OptionError(
            "Weights that stay in FP8 need the package kernels, in a version that transformers "
            "takes; it is not installed.",
            code="kernels_missing",
        )
