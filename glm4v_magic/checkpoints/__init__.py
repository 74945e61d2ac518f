"""Checkpoints: from a name or a folder to a model and its processor.

Each family has a module or folder here that holds everything particular to it: layout, units,
prompt, processor, loading. The rest of the package relies on `Checkpoint` alone. Begin with
`resolve`, which finds a checkpoint and checks its files without importing torch, and with
`architecture`, for a model without weights. May import `planning`, `dispatch`, `images`, `core`.
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

    from glm4v_magic.checkpoints.encoding import ModelInputs, Processor
    from glm4v_magic.core.model import Architecture
    from glm4v_magic.core.options import Quantization

__all__ = ["Checkpoint", "Loaded", "resolve"]


DEMO_NOTICE = "This is the demo model: it knows simple drawn shapes and nothing else."


@dataclass(slots=True)
class Loaded:
    """A model in memory, its processor, and what its forward is given.

    Attributes:
        model: the model.
        processor: its processor.
        inputs: makes the arguments of its forward.
        notes: settings of the checkpoint's files that were left out.
    """

    model: Any
    processor: Processor
    inputs: ModelInputs
    notes: tuple[str, ...] = ()


class Checkpoint(Protocol):
    """A checkpoint whose files are complete.

    Attributes:
        name: name of the checkpoint, as the user typed it.
        folder: folder of its files.
        notice: note shown with every answer; empty for most checkpoints.
        config: the parsed ``config.json``.
        architecture: the model without its weights, to plan with.
        max_images: maximum number of images in a conversation; ``None`` for no limit.
        thinks: whether the model can think before it answers.
        tasks: tasks that it has published prompts for.
        takes_video: whether it takes video.
        efforts: names of the efforts that its thinking can take.
    """

    name: str
    folder: Path
    notice: str
    config: dict[str, Any]
    architecture: Architecture
    max_images: int | None
    thinks: bool
    tasks: tuple[str, ...]
    takes_video: bool
    efforts: tuple[str, ...]

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
        """Load the weights in one dtype to the devices of `device_map` (``None``: the CPU)."""

    def processor(self) -> Processor:
        """Build the processor from tokenizer and configuration; reads no weights."""


def resolve(
    name: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    download: bool = False,
) -> Checkpoint:
    """Find a checkpoint and check its files.

    Args:
        name: folder, repository id on the hub, ``GLM-4V-9B`` for its repository, or ``demo``
            (also the meaning of ``None``).
        revision: commit, branch or tag of a repository.
        download: whether to download files that are not in the local cache of the hub.

    Raises:
        CheckpointError: if there is no such checkpoint, or its files are unusable.
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
    """Return the repository id of a published checkpoint's name; any other text as it is."""
    from glm4v_magic.checkpoints.architecture import REPOSITORIES

    return REPOSITORIES.get(text.lower(), text)


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
    from glm4v_magic.checkpoints.files import read_json
    from glm4v_magic.checkpoints.glm_native import families

    _require_known(folder)
    if families.matches(read_json(folder / "config.json")):
        from glm4v_magic.checkpoints.glm_native.checkpoint import NativeCheckpoint

        return NativeCheckpoint(name, folder, notice)
    from glm4v_magic.checkpoints.glm4v_9b.checkpoint import Glm4v9bCheckpoint

    return Glm4v9bCheckpoint(name, folder, notice)


def _require_known(folder: Path) -> None:
    from glm4v_magic.checkpoints.files import read_json
    from glm4v_magic.checkpoints.glm4v_9b import layout
    from glm4v_magic.checkpoints.glm_native import families

    config = read_json(folder / "config.json")
    if layout.matches(config) or families.matches(config):
        return
    kind = config.get("model_type", "without a model_type")
    vision = "" if "vision_config" in config else " without a vision tower"
    raise CheckpointError(
        f"{folder / 'config.json'} describes a model of type {kind!r}{vision}.",
        f"Known are {', '.join(families.KNOWN)}.",
    )


def _not_found(text: str, folder: Path) -> CheckpointError:
    """Return the error that says where the checkpoint was looked for, and what may be meant."""
    what = f"There is no checkpoint {text!r}: no such folder, and not in the hub cache."
    if is_address_without_scheme(text):
        return CheckpointError(what, "The address of a server begins with http://.")
    parent = folder.parent
    siblings = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    similar = did_you_mean(folder.name, [*siblings, DEMO])
    hint = similar or "Give a folder, the id of a downloaded repository, or 'demo'."
    return CheckpointError(what, hint)
