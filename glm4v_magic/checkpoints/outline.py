"""What a ``config.json`` says before its family is known: kind, parts, and how weights are stored.

What follows depends on the family, which checks its keys: `glm4v_9b.config_file` and
`glm_native.config_file`. Here a value of the wrong type counts as missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from glm4v_magic.outside.lenient import OR_EMPTY, OR_NO_ENTRIES, OR_NONE, Count, Words

__all__ = ["Outline", "Scheme", "outline_of"]

_Switch = Annotated[bool | None, OR_NONE]


class Scheme(BaseModel):
    """What a ``quantization_config`` says, in the keys of any method."""

    quant_method: Words = None
    bits: Count = None
    group_size: Any = None
    load_in_4bit: _Switch = None
    load_in_8bit: _Switch = None
    format: Words = None
    config_groups: Annotated[dict[str, Any] | None, OR_NONE] = None

    @property
    def method(self) -> str | None:
        """Method as transformers calls it; ``None`` if it does not say."""
        if self.quant_method is None and (self.load_in_4bit or self.load_in_8bit):
            return "bitsandbytes"
        return self.quant_method

    @property
    def is_of_mlx(self) -> bool:
        """Whether it is described as MLX does, which does not name itself."""
        return None not in (self.bits, self.group_size)


class _Text(BaseModel):
    quantization_config: Any = None


class _Described(BaseModel):
    entries: Annotated[dict[str, Any], OR_NO_ENTRIES] = {}


class Outline(BaseModel):
    """Keys of any family.

    Attributes:
        architectures: names of classes.
        model_type: kind of the model; of any type, for messages.
        text_config: configuration of the language model.
        vision_config: configuration of the vision tower.
        quantization_config: how weights are quantised; of any type, as some files have it.
        quantized_by_mlx: the same by the key that MLX has it under.
    """

    architectures: Annotated[list[Words], OR_EMPTY] = []
    model_type: Any = None
    text_config: Annotated[dict[str, Any] | None, OR_NONE] = None
    vision_config: Any = None
    quantization_config: Any = None
    quantized_by_mlx: Any = Field(None, alias="quantization")

    @property
    def quantization(self) -> Any:
        """How weights are said to be quantised, by whatever key; ``None`` if nothing is said."""
        inner = _Text.model_validate(self.text_config or {})
        said = (self.quantization_config, inner.quantization_config, self.quantized_by_mlx)
        return next((each for each in said if each is not None), None)

    @property
    def quantization_entries(self) -> dict[str, Any]:
        """All keys of the ``quantization_config``; none if it is not an object."""
        return _Described.model_validate({"entries": self.quantization}).entries

    @property
    def scheme(self) -> Scheme:
        """What the ``quantization_config`` says about the weights."""
        return Scheme.model_validate(self.quantization_entries)


def outline_of(config: Mapping[str, Any]) -> Outline:
    """Return what a parsed ``config.json`` says."""
    return Outline.model_validate(dict(config))
