"""`installed_version`: which version of a package is installed, without importing it."""

from __future__ import annotations

import importlib.metadata

__all__ = ["installed_version"]


def installed_version(distribution: str) -> str:
    """Return the version of an installed package; empty if it is not installed.

    What an install that was cut short leaves behind, a folder without a description, is no package:
    ``importlib.metadata`` finds it, and then returns ``None`` against its annotation.
    """
    try:
        return importlib.metadata.version(distribution) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""
