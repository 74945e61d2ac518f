"""Models known by their ``config.json`` alone: enough for a plan and a dry run.

No weights, no tokenizer, no download. Each family implements `Architecture` in its own module;
`architecture` finds the configuration and picks the family by its ``model_type``.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import CheckpointError, did_you_mean
from glm4v_magic.core.model import Architecture
from glm4v_magic.core.model_shape import DTYPE_BYTES
from glm4v_magic.core.server_address import refuse_address

if TYPE_CHECKING:
    pass

__all__ = ["PUBLISHED", "REPOSITORIES", "architecture"]

PUBLISHED = (
    "GLM-4V-9B",
    "GLM-4.1V-9B-Thinking",
    "GLM-4.6V-Flash",
    "GLM-4.5V",
    "GLM-4.6V",
    "GLM-OCR",
)
"""Checkpoints whose configuration ships with the package, in ``published/``."""

REPOSITORIES = {
    **{name.lower(): f"zai-org/{name}" for name in PUBLISHED},
    "glm-4v-9b": "zai-org/glm-4v-9b",
}
"""Name of each in lower case -> its repository on the hub."""

_OWNERS = ("thudm", "zai-org", "zhipuai")
_DEMO = "demo"


def architecture(source: str | os.PathLike[str]) -> Architecture:
    """Find a configuration and return its architecture.

    Args:
        source: the name of a published checkpoint (`PUBLISHED`, in any case, with or without its
            owner), ``demo``, a folder with a ``config.json``, or such a file.

    Raises:
        CheckpointError: if there is no such configuration, it describes an unknown kind of model,
            or a value in it is invalid.
    """
    text = os.fspath(source)
    refuse_address(text)
    if text == _DEMO:
        return _read(text, Path(__file__).parent / _DEMO / "config.json")
    path = Path(text).expanduser()
    if path.is_dir():
        return _read(text, path / "config.json")
    if path.is_file():
        return _read(text, path)
    owner, _, name = text.lower().rpartition("/")
    for published in PUBLISHED:
        if name == published.lower() and owner in ("", *_OWNERS):
            folder = resources.files("glm4v_magic.checkpoints") / "published"
            with resources.as_file(folder / f"{published}.json") as file:
                return _read(published, file)
    known = ", ".join(PUBLISHED)
    raise CheckpointError(
        f"There is no configuration {text!r}: no such folder or file, and not one of {known}.",
        did_you_mean(text.rpartition("/")[2], [*PUBLISHED, _DEMO]),
    )


def _read(name: str, file: Path) -> Architecture:
    from glm4v_magic.checkpoints.files import read_json

    found = _of_its_kind(name, read_json(file), str(file))
    dtype = found.shape().dtype
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(
            f"{file} gives the weights the dtype {dtype!r}; known are {', '.join(DTYPE_BYTES)}."
        )
    return found


def _of_its_kind(name: str, config: dict[str, Any], where: str) -> Architecture:
    from glm4v_magic.checkpoints.glm4v_9b import layout
    from glm4v_magic.checkpoints.glm_native import families

    if layout.matches(config):
        from glm4v_magic.checkpoints.glm4v_9b.architecture import Glm4v9bArchitecture

        return Glm4v9bArchitecture(name, config, where)
    if families.matches(config):
        from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture
        from glm4v_magic.checkpoints.glm_native.fp8 import as_stored

        return NativeArchitecture(name, as_stored(config, Path(where).parent), where)
    kind = config.get("model_type", "without a model_type")
    raise CheckpointError(
        f"{where} describes a model of type {kind!r}.", f"Known are {', '.join(families.KNOWN)}."
    )
