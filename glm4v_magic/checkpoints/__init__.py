"""Checkpoints: from a name or a folder to a model and its processor.

Each family has a module or folder here that holds everything particular to it: layout, units,
prompt, processor, loading. The rest of the package relies on `Checkpoint` alone. Begin with
`resolve`, which finds a checkpoint and checks its files without importing torch, and with
`architecture`, for a model without weights. May import `planning`, `dispatch`, `images`, `core`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from glm4v_magic.checkpoints import hub
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.model import DEMO, DEMOS, LoadProgress
from glm4v_magic.core.wording import printable
from glm4v_magic.outside import path_text

if TYPE_CHECKING:
    import torch

    from glm4v_magic.checkpoints.encoding import ModelInputs, Processor
    from glm4v_magic.checkpoints.files import Stamp
    from glm4v_magic.checkpoints.reading import MappedFile
    from glm4v_magic.checkpoints.sources import Source
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
        files: files that weights may still be in.
    """

    model: Any
    processor: Processor
    inputs: ModelInputs
    notes: tuple[str, ...] = ()
    files: tuple[MappedFile, ...] = ()


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
        efforts: levels of reasoning effort that it offers.
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
        """Load the weights in one dtype to the devices of `device_map`.

        Args:
            dtype: dtype of all weights that are not quantised.
            device_map: module -> GPU index or ``cpu``; ``None`` is the CPU.
            quantize: quantisation of the text part's linear layers; needs bitsandbytes.
            arrived: called after each weight that has arrived.
            options: of the family, and further options of `from_pretrained`.

        Raises:
            CheckpointError: if a weight cannot be read.
            OptionError: if the layers cannot be quantised.
        """

    def processor(self, image_size: int | None = None) -> Processor:
        """Build the processor from tokenizer and configuration; reads no weights.

        Args:
            image_size: side in pixels of the largest square image that is seen, where images are
                seen in sizes of their own; ``None`` for the checkpoint's limit.
        """

    def require_usable(self) -> None:
        """Raise CheckpointError unless all but the weights can be read; imports torch."""

    @property
    def stamp(self) -> Stamp:
        """What tells that the files are still the same; see `files.stamp_of`."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that `load` imports, for `imports.import_whole`."""


def resolve(
    name: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    download: bool = False,
    base: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Find a checkpoint and check its files.

    Args:
        name: folder, repository on the hub, name of a published checkpoint, or one of `DEMOS`
            (``demo`` is also the meaning of ``None``). It may be that of an adapter, whose base is
            found as well.
        revision: commit, branch or tag of a repository.
        download: whether to download files that are not in the local cache of the hub.
        base: model that the adapter is for, found like `name`; ``None`` for what it says itself.
        lora: folder of an adapter for the model.

    Raises:
        CheckpointError: if there is no such checkpoint, or its files are unusable.
        OptionError: if a revision is given for a folder, or `base` or `lora` have no meaning.
    """
    from glm4v_magic.checkpoints.sources import find_source

    text = DEMO if name is None else path_text(name, "The model", OptionError)
    fetch = hub.fetch_adapter if download else None
    source = find_source(text, revision, base=base, lora=lora, fetch=fetch)
    fault: CheckpointError | None = None
    for folder in source.place.folders:
        try:
            return _opened(source, folder)
        except CheckpointError as error:
            fault = fault or error
    # What is in the cache may be a download that was interrupted.
    if fault is not None and not (download and source.place.in_cache):
        raise fault
    repository = source.place.repository
    if download and hub.names_a_repository(repository):
        with source.naming_adapter():
            _require_known(hub.download_config(repository, source.revision))  # before its weights
            folder = hub.download(repository, source.revision)
        return _opened(source, folder)
    raise source.missing()


def _opened(source: Source, folder: Path) -> Checkpoint:
    opened = _open(source, folder)
    opened.architecture.made_of = source.made_of
    return opened


def _open(source: Source, folder: Path) -> Checkpoint:
    from glm4v_magic.checkpoints.adapted import with_adapter
    from glm4v_magic.checkpoints.contents import read_contents
    from glm4v_magic.checkpoints.glm_native import families

    notice = DEMO_NOTICE if source.place.text in DEMOS else ""
    with source.naming_adapter():
        _require_known(folder)  # before the headers of weights are read
        contents = read_contents(folder, source.adapter)
    adapter = source.adapter or contents.adapter
    if adapter is not None:
        contents = with_adapter(contents, adapter, str(folder / "config.json"))
    if source.other_base:
        other = f"the adapter says that it was trained on {printable(source.other_base)!r}"
        contents = replace(contents, notes=(*contents.notes, other))
    if families.matches(contents.config):
        from glm4v_magic.checkpoints.glm_native.checkpoint import NativeCheckpoint

        return NativeCheckpoint(source.name, folder, contents, notice)
    from glm4v_magic.checkpoints.glm4v_9b.checkpoint import Glm4v9bCheckpoint

    return Glm4v9bCheckpoint(source.name, folder, contents, notice)


def _require_known(folder: Path) -> None:
    from glm4v_magic.checkpoints.architecture import of_contents
    from glm4v_magic.checkpoints.contents import read_config_alone

    file = folder / "config.json"
    of_contents(str(folder), read_config_alone(file, is_beside_weights=True), str(file))
