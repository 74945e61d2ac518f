"""The package that quantised weights need, in the version that transformers takes."""

from __future__ import annotations

import importlib.util
import re

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.installed import installed_version

__all__ = ["require_bitsandbytes"]

_LEAST = (0, 46, 1)  # to transformers, older ones count as missing


def require_bitsandbytes(what: str) -> None:
    """Raise OptionError unless bitsandbytes is installed, and new enough.

    Args:
        what: the weights that need it, for the message.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(
            f"{what} need bitsandbytes, which is not installed.",
            "Install it with: pip install 'glm4v_magic[quantize]'",
        )
    installed = installed_version("bitsandbytes")  # none of a folder of sources
    if installed and tuple(map(int, re.findall(r"\d+", installed)[: len(_LEAST)])) < _LEAST:
        least = ".".join(map(str, _LEAST))
        raise OptionError(
            f"{what} need bitsandbytes {least} or newer; {installed} is installed.",
            f"Install a newer one with: pip install 'bitsandbytes>={least}', and restart Python.",
        )
