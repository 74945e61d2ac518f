"""Weights that were published in FP8, with a scale for each block of a matrix.

A weight ``X.weight`` of dtype F8_E4M3 has its scales beside it as ``X.weight_scale_inv``, one for
each block of rows and columns; blocks at the end may be cut short.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glm4v_magic.checkpoints.files import TensorInfo, read_tensor_infos
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.wording import printable
from glm4v_magic.outside import checked

__all__ = ["FULL", "SCALE", "Fp8", "as_stored", "read_fp8", "without_quantization"]

FULL = ("BF16", "F16", "F32")
"""Dtypes of weights that are not quantised, as safetensors writes them."""

SCALE = "_scale_inv"
"""Suffix of the scales' name, after the name of the weight."""

_KEY = "quantization_config"
_OTHER = "Load the checkpoint in bfloat16, quantised as it is loaded if need be."

_Side = Annotated[int, Field(ge=1, lt=2**20)]


class _Config(BaseModel):
    model_config = ConfigDict(strict=True)

    weight_block_size: Annotated[list[_Side], Field(min_length=2, max_length=2)]
    activation_scheme: Literal["dynamic"] = "dynamic"
    scale_fmt: Literal["float"] = "float"
    expert_dtype: Literal["fp8"] = "fp8"
    modules_to_not_convert: list[str] | None = None
    ignored_layers: list[str] | None = None
    modules_to_convert: None = None


@dataclass(frozen=True, slots=True)
class Fp8:
    """The FP8 scheme of a checkpoint.

    Attributes:
        block: rows and columns that share a scale.
        skipped: names of modules that are not in FP8, as transformers matches them; ``None`` if
            the file names none.
    """

    block: tuple[int, int]
    skipped: tuple[str, ...] | None

    def holds(self, module: str) -> bool:
        """Tell whether a module is in FP8, as transformers' ``should_convert_module`` does."""
        boundary = r"(?:(?<=\.)|(?=\.|$))"
        names = ("lm_head",) if self.skipped is None else self.skipped
        return not any(
            module.endswith(name) or _matches(rf"(?:{name}){boundary}", module) for name in names
        )

    def scales(self, rows: int, columns: int) -> int:
        """Return the number of scales of a matrix."""
        return -(-rows // self.block[0]) * -(-columns // self.block[1])

    def for_transformers(self) -> dict[str, Any]:
        """Return the ``quantization_config`` with which weights stay in FP8."""
        skipped = None if self.skipped is None else list(self.skipped)
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": list(self.block),
            "modules_to_not_convert": skipped,
        }


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.match(pattern, module) is not None
    except re.error:
        return False


def read_fp8(config: Mapping[str, Any], where: str) -> Fp8 | None:
    """Return the FP8 scheme of a ``config.json``; ``None`` for weights that are not quantised.

    Args:
        config: parsed content of the file.
        where: path of the file, for messages.

    Raises:
        CheckpointError: if the weights are quantised in another scheme.
    """
    found = _quantization(config)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if method != "fp8":
        raise CheckpointError(
            f"The weights of {where} are quantised by {printable(str(method))}, which cannot be "
            "loaded here; FP8 with scales by block can.",
            _OTHER,
        )
    what = f"{_KEY} of {where}"
    read = checked(_Config, dict(found), what, CheckpointError, _OTHER)
    rows, columns = read.weight_block_size
    skipped = read.modules_to_not_convert
    if skipped is None:
        skipped = read.ignored_layers
    return Fp8((rows, columns), None if skipped is None else tuple(skipped))


def without_quantization(
    config: dict[str, Any], tensors: Iterable[TensorInfo] | None = None
) -> dict[str, Any]:
    """Return a configuration without its ``quantization_config``.

    Args:
        config: parsed ``config.json``.
        tensors: weights of the checkpoint; if any of them is quantised, `config` is returned as it
            is.
    """
    if tensors is not None and any(info.dtype not in FULL for info in tensors):
        return config
    full = {name: value for name, value in config.items() if name != _KEY}
    text = full.get("text_config")
    if isinstance(text, Mapping) and _KEY in text:
        full["text_config"] = {name: value for name, value in text.items() if name != _KEY}
    return full


def as_stored(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return `without_quantization` for the weights of a folder, if it holds any."""
    if _quantization(config) is None:
        return config
    try:
        tensors = read_tensor_infos(folder)
    except CheckpointError:
        return config
    return without_quantization(config, tensors.values())


def _quantization(config: Mapping[str, Any]) -> Any:
    text = config.get("text_config")
    outer = config.get(_KEY)
    return text.get(_KEY) if outer is None and isinstance(text, Mapping) else outer
