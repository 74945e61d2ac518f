"""Checkpoints: from a name or a folder to a model and its processor.

Each kind of checkpoint has a module or folder here that knows all about it; what the rest of the
package may rely on is `Checkpoint`. Resolving checks files and imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from glm4v_magic.core.errors import CheckpointError, OptionError, did_you_mean
from glm4v_magic.core.model import DEMO, LoadProgress
from glm4v_magic.core.server_address import is_address_without_scheme, refuse_address

if TYPE_CHECKING:
    import torch

    from glm4v_magic.core.model import Architecture
    from glm4v_magic.core.options import Quantization

__all__ = ["Checkpoint", "Loaded", "resolve"]


DEMO_NOTICE = "This is the demo model: it knows simple drawn shapes and nothing else."


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
        architecture: the model without its weights, to plan with.
        max_images: images that one conversation may hold; ``None`` for no limit.
    """

    name: str
    folder: Path
    notice: str
    config: dict[str, Any]
    architecture: Architecture
    max_images: int | None

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights on disk."""

    def load(
        self,
        *,
        dtype: torch.dtype,
        device_map: Mapping[str, int | str] | None = None,
        quantize: Quantization | None = None,
        arrived: Callable[[LoadProgress], None] | None = None,
        **options: Any,
    ) -> Loaded:
        """Load the weights in one dtype, where `device_map` says (``None``: the CPU)."""

    def processor(self) -> Any:
        """Build the processor from tokenizer and configuration; reads no weight."""


def resolve(
    name: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    download: bool = False,
) -> Checkpoint:
    """Find a checkpoint and check its files.

    Args:
        name: a folder, the id of a repository on the hub, ``GLM-4V-9B`` for its repository, or
            ``demo``, which is also what ``None`` means.
        revision: commit, branch or tag of a repository.
        download: whether to ask the hub for what is not in its local cache.

    Raises:
        CheckpointError: if there is no such checkpoint, or its files are not usable.
        OptionError: if a revision is given for a folder.
    """
    text = DEMO if name is None else os.fspath(name)
    refuse_address(text)
    folder = Path(text).expanduser()
    if revision is not None and (text == DEMO or folder.exists()):
        raise OptionError(f"{text} is no repository of the hub, so it has no revision {revision}.")
    if text == DEMO:
        return _open(DEMO, Path(__file__).parent / "demo", DEMO_NOTICE)
    if folder.is_dir():
        return _open(text, folder)
    if folder.exists():
        raise CheckpointError(f"{text} is a file.", "Give the folder that the checkpoint is in.")
    return _from_hub(_repository(text), folder, revision, download)


def _repository(text: str) -> str:
    """Return the id of the repository that a published name means, or `text`."""
    from glm4v_magic.checkpoints.glm4v_9b.layout import REPOSITORY

    return REPOSITORY if text.lower() == REPOSITORY.partition("/")[2] else text


def _from_hub(text: str, folder: Path, revision: str | None, download: bool) -> Checkpoint:
    from glm4v_magic.checkpoints import hub

    cached = hub.cached(text, revision)
    if cached is not None:
        _require_known(cached)
        try:
            return _open(text, cached)
        except CheckpointError:  # a download that was interrupted
            if not download:
                raise
    if download and hub.names_a_repository(text):
        return _open(text, hub.download(text, revision, _require_known))
    raise _not_found(text, folder)


def _open(name: str, folder: Path, notice: str = "") -> Checkpoint:
    from glm4v_magic.checkpoints.glm4v_9b.checkpoint import Glm4v9bCheckpoint

    _require_known(folder)
    return Glm4v9bCheckpoint(name, folder, notice)


def _require_known(folder: Path) -> None:
    from glm4v_magic.checkpoints import glm_native
    from glm4v_magic.checkpoints.files import read_json
    from glm4v_magic.checkpoints.glm4v_9b import layout

    config = read_json(folder / "config.json")
    if layout.matches(config):
        return
    kind = config.get("model_type", "without a model_type")
    vision = "" if "vision_config" in config else " without a vision tower"
    what = f"{folder / 'config.json'} describes a model of type {kind!r}{vision}."
    if glm_native.matches(config):
        raise CheckpointError(what, code="only_planned")
    raise CheckpointError(what, "GLM-4V-9B has model_type 'chatglm' and a vision_config.")


def _not_found(text: str, folder: Path) -> CheckpointError:
    """Say where was looked, and what was meant: a published model, or what has a similar name."""
    from glm4v_magic.checkpoints.architecture import PUBLISHED

    what = f"There is no checkpoint {text!r}: no such folder, and not in the hub cache."
    if text.lower() in map(str.lower, PUBLISHED):
        return CheckpointError(what, code="only_planned")
    if is_address_without_scheme(text):
        return CheckpointError(what, "The address of a server begins with http://.")
    parent = folder.parent
    siblings = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    similar = did_you_mean(folder.name, [*siblings, DEMO])
    hint = similar or "Give a folder, the id of a downloaded repository, or 'demo'."
    return CheckpointError(what, hint)
