"""Names of published checkpoints as people type them, and the repositories that they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glm4v_magic.core.model import DEMOS

__all__ = ["PUBLISHED", "REPOSITORIES", "Named", "demo_named", "named", "named_in_path"]

PUBLISHED = (
    "GLM-4V-9B",
    "GLM-4.1V-9B-Thinking",
    "GLM-4.6V-Flash",
    "GLM-4.5V",
    "GLM-4.6V",
    "GLM-OCR",
    "GLM-5.3-Flash",
)
"""Checkpoints whose configuration ships with the package, in ``published/``."""

_AS = {"GLM-4.1V-9B-Base": "GLM-4.1V-9B-Thinking"}
"""Checkpoint -> the one of `PUBLISHED` that has the same configuration."""

_SAME_SIZES = {"GLM-4.5V-FP8": "GLM-4.5V", "GLM-4.6V-FP8": "GLM-4.6V"}
"""Checkpoint whose configuration comes only with its files -> the same one in bfloat16."""

_SHORT = {
    "glm-4v": "GLM-4V-9B",
    "glm4v": "GLM-4V-9B",
    "glm4v-9b": "GLM-4V-9B",
    "glm-4.1v": "GLM-4.1V-9B-Thinking",
    "glm-4.1v-9b": "GLM-4.1V-9B-Thinking",
    "glm-4.1v-thinking": "GLM-4.1V-9B-Thinking",
    "glm-4.1v-base": "GLM-4.1V-9B-Base",
    "glmocr": "GLM-OCR",
    "glm-4.6v-9b": "GLM-4.6V-Flash",
    "glm-5.3": "GLM-5.3-Flash",
    "glm-5.3v": "GLM-5.3-Flash",
}
"""Short name -> checkpoint."""

OWNERS = ("zai-org", "THUDM", "ZhipuAI")
"""Accounts of their makers, under which they are published on the hub and on ModelScope."""

_BY_NAME = {name.lower(): name for name in (*PUBLISHED, *_AS, *_SAME_SIZES)}
_AS_WRITTEN = {"GLM-4V-9B": "glm-4v-9b"}

REPOSITORIES = {low: f"{OWNERS[0]}/{_AS_WRITTEN.get(name, name)}" for low, name in _BY_NAME.items()}
"""Repository on the hub of each of them, by its name in lower case."""


@dataclass(frozen=True, slots=True)
class Named:
    """A published checkpoint.

    Attributes:
        name: its name.
        configured_as: which of `PUBLISHED` has its configuration; ``None`` for none.
    """

    name: str
    configured_as: str | None

    @property
    def same_sizes(self) -> str | None:
        """Which of `PUBLISHED` has its sizes in bfloat16, if its configuration is not here."""
        return _SAME_SIZES.get(self.name)

    @property
    def repository(self) -> str:
        """Its repository on the hub."""
        return REPOSITORIES[self.name.lower()]

    @property
    def repositories(self) -> tuple[str, ...]:
        """All repositories that it may have been downloaded from, the present one first."""
        name = self.repository.rpartition("/")[2]
        return tuple(f"{owner}/{name}" for owner in OWNERS)


def _as_published(text: str) -> str:
    """Return a name in lower case, with hyphens where people write others or none: GLM4.5V."""
    low = re.sub(r"[\s_]+", "-", text.strip().rstrip("/").lower())
    return re.sub(r"(^|/)(glm|demo)(?=[0-9])", r"\1\2-", low)


def demo_named(text: str) -> str | None:
    """Return the embedded checkpoint of a name in any case, or ``None``."""
    name = _as_published(text)
    return name if name in DEMOS else None


def named(text: str) -> Named | None:
    """Return the checkpoint of a name in any case, short or with its owner; ``None`` if unknown."""
    owner, _, name = _as_published(text).rpartition("/")
    if owner and owner not in {each.lower() for each in OWNERS}:
        return None
    found = _BY_NAME.get(_SHORT.get(name, name).lower())
    if found is None:
        return None
    return Named(found, found if found in PUBLISHED else _AS.get(found))


def named_in_path(path: str) -> str | None:
    """Return the published checkpoint that the last part of a path begins with; or ``None``.

    Args:
        path: a folder, perhaps of another machine, or a repository of somebody else.
    """
    last = _as_published(path.replace("\\", "/").rstrip("/").rpartition("/")[2])
    known = named(last)
    if known is not None:
        return known.name
    begun = [name for name in _BY_NAME if last.startswith(f"{name}-")]
    return _BY_NAME[max(begun, key=len)] if begun else None
