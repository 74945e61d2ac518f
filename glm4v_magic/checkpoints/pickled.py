"""Weights in files of ``torch.save``, as trainers write them; nothing in them is executed."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm4v_magic.core.errors import CheckpointError, reason
from glm4v_magic.core.wording import printable

__all__ = ["read_pickled"]

_WITHIN = ("state_dict", "module", "model")  # where some trainers put the weights


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Read a file of weights by name; their values stay in the file until they are used.

    Raises:
        CheckpointError: if the file is damaged, or holds anything but weights.
    """
    try:
        found: Any = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} holds more than weights, or is damaged.",
            "Nothing else is read from such a file: save the model as safetensors.",
        ) from None
    except Exception as error:  # of whatever a damaged file leads to
        raise CheckpointError(
            f"{file} cannot be read: {printable(reason(error))}.",
            "It is damaged; download or save it again.",
        ) from None
    for name in _WITHIN:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    tensors = found if isinstance(found, dict) else {}
    if not tensors or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise CheckpointError(
            f"{file} holds no weights by name.", "Is it a file of a trainer's own state?"
        )
    return {str(name): tensor for name, tensor in tensors.items()}
