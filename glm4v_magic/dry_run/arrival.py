"""What a load needs of each GPU while weights arrive, for a model that a dry run has placed.

A dry run loads nothing. What `from_pretrained` makes of the weights on their devices is known: it
joins some of several in the files, quantises others, or restores them, one weight at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from glm4v_magic.dry_run.quantised import while_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from glm4v_magic.core.model_shape import ModelShape
    from glm4v_magic.core.options import Quantization

__all__ = ["Arrival", "arrivals"]


class Arrival(NamedTuple):
    """The fullest moment of a GPU while weights arrive.

    Attributes:
        peak_bytes: bytes of its tensors.
        module: module whose weight arrives.
    """

    peak_bytes: int
    module: str


def arrivals(
    model: PreTrainedModel,
    shape: ModelShape,
    quantize: Quantization | None,
    weights: Sequence[int],
) -> Mapping[int, Arrival]:
    """Return the fullest moment of each GPU on which more than the weights are alive.

    Args:
        model: the model on virtual GPUs.
        shape: its sizes.
        quantize: quantisation as the weights are loaded. Layers are then quantised one by one,
            and before the vision tower is loaded; otherwise several threads bring all weights.
        weights: bytes of weights and buffers on each GPU.
    """
    devices = {
        name: parameter.device.index or 0
        for name, parameter in model.named_parameters()
        if parameter.device.type == "cuda"
    }
    there = list(weights)
    late = tuple(f"{name}." for name in shape.vision_modules) if quantize else ()
    for name, gpu in devices.items():
        if name.startswith(late):
            there[gpu] -= model.get_parameter(name).nbytes
    found: dict[int, Arrival] = {}
    for name, nbytes, module in (*_joined(model), *_quantised(model), *_restored(devices, shape)):
        gpu = devices.get(name, -1)
        if gpu >= 0 and (gpu not in found or there[gpu] + nbytes > found[gpu].peak_bytes):
            found[gpu] = Arrival(there[gpu] + nbytes, module)
    return found


_Beside = tuple[str, int, str]
"""A weight, the bytes that are alive beside it while it arrives, and its module."""


def _joined(model: PreTrainedModel) -> Iterator[_Beside]:
    """Yield the weights that are joined of several in the files: these are beside the result."""
    joins = tuple(
        target.replace("\\.", ".")
        for transform in get_model_conversion_mapping(model)
        if isinstance(transform, WeightConverter)
        and any(isinstance(each, MergeModulelist | Concatenate) for each in transform.operations)
        for target in transform.target_patterns
    )
    for name, parameter in model.named_parameters():
        if name.endswith(joins):
            yield name, parameter.nbytes, name.rpartition(".")[0]


def _quantised(model: PreTrainedModel) -> Iterator[_Beside]:
    for module, nbytes in while_quantised(model):
        yield f"{module}.weight", nbytes, module


def _restored(names: Iterable[str], shape: ModelShape) -> Iterator[_Beside]:
    """Yield the weights of units some of which are restored as they are loaded."""
    for unit in shape.units:
        inside = tuple(f"{module}." for module in unit.modules if unit.restoring_bytes)
        for name in names:
            if name.startswith(inside):
                yield name, unit.restoring_bytes, unit.modules[0]
