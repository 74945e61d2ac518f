"""Checkpoints: from a name or a folder to a model and its processor.

Each kind of checkpoint has a module or folder here that knows all about it; what the rest of the
package may rely on is `Checkpoint`. Resolving checks files and imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from glm4v_magic.checkpoints.files import read_json
from glm4v_magic.errors import CheckpointError, did_you_mean

if TYPE_CHECKING:
    import torch

__all__ = ["DEMO", "Checkpoint", "LoadProgress", "Loaded", "resolve"]

DEMO = "demo"
"""Name of the embedded checkpoint."""

DEMO_NOTICE = "This is the demo model: it knows simple drawn shapes and nothing else."


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is: bytes of weights that have arrived, of how many, and the latest one."""

    done_bytes: int
    total_bytes: int
    weight: str


@dataclass(slots=True)
class Loaded:
    """A model in memory and the processor that speaks its language."""

    model: Any
    processor: Any


class Checkpoint(Protocol):
    """A checkpoint whose files were found complete.

    Attributes:
        name: what the user calls it.
        folder: where its files are.
        notice: what every answer must say about it; empty for most.
        config: its parsed ``config.json``.
    """

    name: str
    folder: Path
    notice: str
    config: dict[str, Any]

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights on disk."""

    def load(
        self,
        *,
        dtype: torch.dtype,
        device_map: dict[str, Any] | str | None = None,
        on_progress: Callable[[LoadProgress], None] | None = None,
        **options: Any,
    ) -> Loaded:
        """Load the weights in one dtype, where `device_map` says (``None``: the CPU)."""


def resolve(name: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Find a checkpoint and check its files.

    Args:
        name: a folder, the id of a repository in the hub cache, or ``demo``, which is also what
            ``None`` means.

    Raises:
        CheckpointError: if there is no such checkpoint, or its files are not usable.
    """
    if name is None or name == DEMO:
        return _open(DEMO, Path(__file__).parent / "demo", DEMO_NOTICE)
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return _open(text, folder)
    if folder.exists():
        raise CheckpointError(f"{text} is a file.", "Give the folder that the checkpoint is in.")
    cached = _hub_cache(text)
    if cached is not None:
        return _open(text, cached)
    raise CheckpointError(f"There is no checkpoint {text!r}: {_searched(text, folder)}")


def _open(name: str, folder: Path, notice: str = "") -> Checkpoint:
    from glm4v_magic.checkpoints.glm4v_9b import layout

    config = read_json(folder / "config.json")
    if layout.matches(config):
        from glm4v_magic.checkpoints.glm4v_9b.checkpoint import Glm4v9bCheckpoint

        return Glm4v9bCheckpoint(name, folder, notice)
    kind = config.get("model_type", "without a model_type")
    vision = "" if "vision_config" in config else " without a vision tower"
    raise CheckpointError(
        f"{folder / 'config.json'} describes a model of type {kind!r}{vision}.",
        "GLM-4V-9B has model_type 'chatglm' and a vision_config.",
    )


def _searched(text: str, folder: Path) -> str:
    """Say where was looked, and what has a similar name there."""
    parent = folder.parent
    siblings = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    similar = did_you_mean(folder.name, [*siblings, DEMO])
    where = "no such folder, and not in the hub cache."
    hint = similar or "Give a folder, the id of a downloaded repository, or 'demo'."
    return f"{where} {hint}"


def _hub_cache(repo_id: str) -> Path | None:
    """Return the folder of a repository in the local hub cache; never asks the network."""
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repo_id, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None
