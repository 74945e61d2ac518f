"""Loads weights into a model class of transformers, each from its shard directly to its device."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.files import TensorInfo
from glm4v_magic.checkpoints.packages import quiet_bitsandbytes
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.images.messages import one_line
from glm4v_magic.imports import import_whole

if TYPE_CHECKING:
    import torch

    from glm4v_magic.checkpoints.adapters import Merges
    from glm4v_magic.checkpoints.merging import Merger
    from glm4v_magic.checkpoints.reading import MappedFile, Restored
    from glm4v_magic.core.model import LoadProgress
    from glm4v_magic.core.options import Quantization

__all__ = ["LoadOptions", "load_weights", "require_mergeable"]

_CAUSE = re.compile(r"[\w.]+(Error|Exception)\b")  # the last line of a traceback


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How weights are loaded.

    Attributes:
        dtype: dtype of all weights.
        device_map: module -> GPU index or ``cpu``; ``None`` is the CPU.
        quantize: quantisation of linear layers; needs bitsandbytes.
        unquantized: names of modules that are never quantised.
        arrived: called after each weight that has arrived; transformers loads in a loop of its own.
        more: further options of `from_pretrained`.
        restored: how weights in FP8 are restored; ``None`` if there are none, or they stay in FP8.
        merges: what an adapter does to the weights; ``None`` without one.
        casts: dtypes of full weights beside quantised ones, which transformers leaves in those of
            their files.
    """

    dtype: torch.dtype
    device_map: Mapping[str, int | str] | None
    quantize: Quantization | None
    unquantized: Collection[str]
    arrived: Callable[[LoadProgress], None] | None
    more: Mapping[str, Any]
    restored: Restored | None = None
    merges: Merges | None = None
    casts: Mapping[str, torch.dtype] = field(default_factory=dict)


def load_weights(
    model_class: Any,
    config: Any,
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    sizes: Mapping[str, int],
    generation: Mapping[str, Any] | None,
    options: LoadOptions,
) -> tuple[Any, tuple[MappedFile, ...]]:
    """Load a model, and return it with the files that its weights may be in.

    The published generation config is used whatever it holds.

    Args:
        model_class: class of the model.
        config: configuration of the model.
        folder: folder of the checkpoint.
        tensors: weights of the checkpoint, with their shards.
        sizes: bytes of each weight, by the name of the parameter it is loaded into.
        generation: published generation config; ``None`` for what the model's config implies.
        options: how the weights are loaded.

    Raises:
        CheckpointError: if transformers cannot read a weight, or some are missing.
    """
    from glm4v_magic.checkpoints.progress import collect_report, report_progress
    from glm4v_magic.checkpoints.reading import mapped_files, stored_weights
    from glm4v_magic.checkpoints.without_values import no_drawing
    from glm4v_magic.dispatch.devices import for_torch

    quiet_bitsandbytes()
    device_map = options.device_map
    more = dict(options.more)
    if options.quantize is not None or getattr(config, "quantization_config", None) is not None:
        device_map = device_map or {"": "cpu"}
    if options.quantize is not None:
        more["quantization_config"] = _quantization(options)
    stored = getattr(config, "quantization_config", None) or {}
    if options.quantize == "8bit" or stored.get("load_in_8bit"):
        # LLM.int8 computes in float16, and bitsandbytes warns of that for every layer and token.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    with (
        stored_weights(tensors, options.restored, _merger(options), options.casts) as weights,
        _restoring(stored, options.dtype),
        report_progress(sizes, options.arrived, _device_of(device_map)),
        collect_report() as reports,
        no_drawing(),
        warnings.catch_warnings(),
    ):
        # A map may name parameters, such as boi and eoi; accelerate's check knows modules only.
        warnings.filterwarnings("ignore", "The following device_map keys do not match", UserWarning)
        try:
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=options.dtype,
                device_map=None if device_map is None else for_torch(dict(device_map)),
                output_loading_info=True,
                **more,
            )
        except RuntimeError as error:
            raise _reported(folder, reports) or error from None
        files = mapped_files(weights)
    _require_all(folder, info)
    if generation is not None:
        model.generation_config = _generation_config(generation)
    return model.eval(), files


def _require_all(folder: Path, info: Mapping[str, Any]) -> None:
    """Raise CheckpointError if transformers found weights missing or left over.

    Names and shapes of full weights are checked before; what describes quantised ones is not.
    """
    for kind, names in info.items():
        if names:
            first = one_line(str(min(names, key=str)))
            raise CheckpointError(
                f"{folder} could not be loaded completely: {kind.replace('_', ' ')} such as "
                f"{first}.",
                "Config and weights do not belong together; download them again.",
            )


@contextmanager
def _restoring(stored: Mapping[str, Any], dtype: torch.dtype) -> Iterator[None]:
    """Restore experts of compressed-tensors in a dtype; transformers leaves them in their scales'.

    Args:
        stored: the model's ``quantization_config``.
        dtype: dtype of the load.
    """
    if stored.get("quant_method") != "compressed-tensors":
        yield
        return
    from compressed_tensors.compressors import BaseCompressor
    from torch import nn

    restore = vars(BaseCompressor)["decompress_module"]

    def restored(cls: Any, module: Any, *more: Any, **options: Any) -> None:
        restore.__func__(cls, module, *more, **options)
        module.weight = nn.Parameter(module.weight.to(dtype), requires_grad=False)

    BaseCompressor.decompress_module = classmethod(restored)
    try:
        yield
    finally:
        BaseCompressor.decompress_module = restore


def _merger(options: LoadOptions) -> Merger | None:
    if options.merges is None:
        return None
    from glm4v_magic.checkpoints.merging import Merger

    return Merger(options.merges, options.dtype)


def require_mergeable(merges: Merges | None, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise an error unless an adapter, if there is one, can be merged; imports torch and peft.

    Args:
        merges: its changes; ``None`` without one.
        tensors: weights of the base.

    Raises:
        OptionError: if peft is not installed.
        CheckpointError: if peft cannot merge it, or it has values that are not finite.
    """
    if merges is None:
        return
    if importlib.util.find_spec("peft") is None:
        raise OptionError(
            "Adapters need peft, which is not installed.",
            "Install it with: pip install 'glm4v_magic[lora]'",
        )
    quiet_bitsandbytes()
    import_whole("glm4v_magic.checkpoints.merging")  # peft takes seconds
    import torch

    from glm4v_magic.checkpoints.merging import Merger, require_finite
    from glm4v_magic.checkpoints.reading import stored_weights

    merger = Merger(merges, torch.float32)
    merger.require_mergeable(tensors)
    largest = {}
    with stored_weights(merges.tensors) as weights:
        for name, weight in weights.items():
            values = weight[...]
            require_finite(name, values)
            largest[name] = float(values.abs().max()) if values.numel() else 0.0
    merger.require_bounded(largest)


def _reported(folder: Path, reports: list[str]) -> Exception | None:
    """Return the error that stopped the conversion of a weight, if any."""
    import torch

    lines = [line.strip() for report in reports for line in report.splitlines()]
    causes = [line for line in lines if _CAUSE.match(line)]
    if not causes:
        return None
    memory = [line for line in causes if "out of memory" in line]
    if memory:
        return torch.OutOfMemoryError(memory[0])
    return CheckpointError(f"{folder} could not be loaded: {causes[0]}.")


def _generation_config(named: Mapping[str, Any]) -> Any:
    # from_pretrained refuses generation configs that people publish; the engine takes what it
    # understands.
    from transformers import GenerationConfig

    config = GenerationConfig()
    vars(config).update({name: value for name, value in named.items() if name[:1] != "_"})
    return config


def _device_of(device_map: Mapping[str, int | str] | None) -> Callable[[str], str]:
    if device_map is None:
        return lambda weight: ""
    from glm4v_magic.dispatch.devices import name_of
    from glm4v_magic.planning.device_map import place_of

    def device(weight: str) -> str:
        place = place_of(device_map, weight)
        return "" if place is None else name_of(place)

    return device


def _quantization(options: LoadOptions) -> Any:
    """Return the config that quantises the text part's linear layers; tower and head stay."""
    from transformers import BitsAndBytesConfig

    kept = list(options.unquantized)
    # transformers refuses a map with GPUs and host memory unless it is told so; `kept` names the
    # modules that may be in host memory.
    places = set((options.device_map or {}).values())
    away = {"llm_int8_enable_fp32_cpu_offload": "cpu" in places and len(places) > 1}
    if options.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept, **away)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=options.dtype,
        **away,
    )
