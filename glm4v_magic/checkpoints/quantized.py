"""Weights that were quantised before they were published: by which scheme, and what can be loaded.

Told by the ``quantization_config`` of a ``config.json`` and by the names and dtypes of the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from glm4v_magic.checkpoints.files import TensorInfo
from glm4v_magic.checkpoints.outline import outline_of
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.images.messages import one_line

__all__ = [
    "FULL",
    "QUANTIZATION",
    "is_full",
    "method_of",
    "quantization_of",
    "refused",
    "require_full",
    "scheme_of",
    "without_quantization",
]

FULL = ("BF16", "F16", "F32")
"""Dtypes of weights that are not quantised, as safetensors writes them."""

QUANTIZATION = "quantization_config"
"""Key of a ``config.json`` that describes quantised weights."""

_OF_MLX = "quantization"
"""Key under which MLX describes them as well, or alone."""

_NAMES = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FP8 of FBGEMM", "mlx": "MLX"}
_BY_NAMES = (  # the first that ends the name of a weight
    (".weight_packed", "compressed-tensors"),
    (".weight_scale", "compressed-tensors"),
    (".g_idx", "gptq"),
    (".biases", "mlx"),
    (".qweight", "awq"),
    (".absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_scale_inv", "fp8"),
)


def quantization_of(config: Mapping[str, Any]) -> Any:
    """Return the ``quantization_config`` of a configuration, or of its text part; or ``None``."""
    return outline_of(config).quantization


def without_quantization(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that says nothing about quantisation."""
    full = {name: value for name, value in config.items() if name not in (QUANTIZATION, _OF_MLX)}
    text = outline_of(config).text_config
    if text is not None and QUANTIZATION in text:
        full["text_config"] = {name: value for name, value in text.items() if name != QUANTIZATION}
    return full


def is_full(tensors: Iterable[TensorInfo]) -> bool:
    """Tell whether no weight is quantised."""
    return all(info.dtype in FULL for info in tensors)


def method_of(config: Mapping[str, Any], tensors: Iterable[str] = ()) -> str:
    """Return the method by which weights are quantised, as transformers calls it; empty if none.

    Args:
        config: parsed ``config.json``.
        tensors: names of the weights, which tell if the configuration does not.
    """
    outline = outline_of(config)
    said = outline.scheme.method
    if said is not None:
        return said
    names = tuple(tensors)
    for ending, method in _BY_NAMES:
        if any(name.endswith(ending) for name in names):
            return method
    if outline.quantization is None:
        return ""
    return "mlx" if outline.scheme.is_of_mlx else "an unknown scheme"


def scheme_of(config: Mapping[str, Any], tensors: Iterable[str] = ()) -> str:
    """Return the name of the scheme for people; arguments as `method_of`."""
    method = method_of(config, tensors)
    said = outline_of(config).scheme
    bits = said.bits
    if method == "bitsandbytes" and said.model_fields_set:
        bits = 4 if said.load_in_4bit else 8
    name = _NAMES.get(method, method)
    if method in ("gptq", "awq", "bitsandbytes", "mlx") and bits:
        return f"{name} ({bits} bits)"
    if method == "compressed-tensors" and said.format is not None:
        return f"{name} ({one_line(said.format)})"
    return one_line(name)


def require_full(tensors: Mapping[str, TensorInfo], other: Collection[str] = ()) -> None:
    """Raise CheckpointError unless all weights are of a dtype that is loaded as it is.

    Args:
        tensors: the weights.
        other: further dtypes that can be loaded.
    """
    for name, info in tensors.items():
        if info.dtype not in (*FULL, *other):
            raise CheckpointError(
                f"{one_line(name)} in {info.file} is of dtype {info.dtype}, which cannot be loaded "
                f"here; known are {', '.join(FULL)}.",
                "Save it in bfloat16, or take the original checkpoint.",
            )


def refused(where: str, scheme: str, *, is_described: bool = True) -> CheckpointError:
    """Return the error for weights that are quantised in a way that cannot be loaded.

    Args:
        where: file or folder, for the message.
        scheme: as `scheme_of` names it.
        is_described: whether the configuration says how they are quantised.
    """
    why = "which cannot be loaded here" if is_described else "but it has no quantization_config"
    return CheckpointError(
        f"The weights of {where} are quantised by {scheme}, {why}.", code="take_the_original"
    )
