"""Weights that were published in FP8, with a scale for each block of a matrix.

A weight ``X.weight`` of dtype F8_E4M3 has its scales beside it as ``X.weight_scale_inv``, one for
each block of rows and columns; blocks at the end may be cut short.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glm4v_magic.checkpoints.quantized import (
    QUANTIZATION,
    method_of,
    quantization_of,
    refused,
    scheme_of,
)
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.outside import checked

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["SCALE", "Fp8", "read_fp8"]

SCALE = "_scale_inv"
"""Suffix of the scales' name, after the name of the weight."""

_OTHER = "Take the original checkpoint in bfloat16, quantised as it is loaded if need be."

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

    def renamed(self, names: Callable[[str], Iterable[str]]) -> Fp8:
        """Return the scheme with all that `names` returns for each of its modules beside it."""
        if self.skipped is None:
            return self
        every = (each for name in self.skipped for each in (name, *names(name)))
        return replace(self, skipped=tuple(dict.fromkeys(every)))

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

    def put_on(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Replace modules on ``meta`` with those into which transformers loads weights in FP8.

        Args:
            model: the model.
            dtype: dtype of all that is not in FP8.
        """
        import torch
        from transformers.integrations.finegrained_fp8 import FP8Linear
        from transformers.quantizers.auto import AutoHfQuantizer

        quantizer = AutoHfQuantizer.from_config(self.for_transformers(), pre_quantized=True)
        quantizer.preprocess_model(model=model)
        for module in model.modules():
            if isinstance(module, FP8Linear) and module.bias is not None:
                module.bias = torch.nn.Parameter(module.bias.to(dtype))


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
    found = quantization_of(config)
    if found is None:
        return None
    if method_of(config) != "fp8":
        raise refused(where, scheme_of(config))
    what = f"{QUANTIZATION} of {where}"
    read = checked(_Config, found, what, CheckpointError, _OTHER)
    rows, columns = read.weight_block_size
    skipped = read.modules_to_not_convert
    if skipped is None:
        skipped = read.ignored_layers
    return Fp8((rows, columns), None if skipped is None else tuple(skipped))
