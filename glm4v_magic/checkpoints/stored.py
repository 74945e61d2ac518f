"""Weights that were quantised before they were published, and that transformers loads.

Those of bitsandbytes, GPTQ and AWQ stay as they are; those of compressed-tensors are restored as
they are loaded.
Weights in FP8 with scales by block are the subject of `fp8`.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from glm4v_magic.checkpoints.contents import Contents
from glm4v_magic.checkpoints.files import TensorInfo
from glm4v_magic.checkpoints.gptq import for_transformers, packed_of
from glm4v_magic.checkpoints.outline import Scheme, outline_of
from glm4v_magic.checkpoints.quant_states import (
    described_matrices,
    require_groups,
    require_row_scales,
)
from glm4v_magic.checkpoints.quantized import (
    is_full,
    method_of,
    quantization_of,
    refused,
    scheme_of,
)
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.model_shape import ModelShape, PackedMatrix
from glm4v_magic.core.options import Quantization
from glm4v_magic.images.messages import one_line
from glm4v_magic.planning.packages import require_bitsandbytes

__all__ = ["Stored", "is_told_by", "read_stored", "refuse_adapter"]

_STATE = re.compile(
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)$"
)
_ON_CPU = {"gptq": "torch", "awq": "torch_awq"}
"""Kernel on the CPU: what gptqmodel would choose is compiled first, which takes minutes."""
_OF_GPTQMODEL = (".qweight", ".qzeros", ".scales", ".g_idx")
_KNOWN = ("bitsandbytes", "compressed-tensors", "gptq", "awq")
_ABSMAX, _ROW_SCALES, _FORMAT = ".absmax", ".SCB", ".weight_format"
_SCALE, _PACKED = ".weight_scale", ".weight_packed"
_FULL = ("BF16", "F16", "F32", "F64")
_INT8, _HALF, _UNPACKED = 1, 2, 10  # bytes per value


@dataclass(frozen=True, slots=True)
class Stored:
    """How weights are stored.

    Attributes:
        scheme: name of the scheme, for people.
        kind: how many bits their values have, if they stay as they are; ``None`` if they are
            restored.
        needs: packages that load them.
        install: what installs them, as pip is told.
        config: their ``quantization_config``, as transformers takes it.
        packed: matrices that stay quantised, by their names in the files.
        restored: module of the files -> bytes that are alive while its matrix is restored as it is
            loaded, beside the result in half precision; of GPTQ and AWQ beside the matrix, while it
            is arranged for a kernel.
    """

    scheme: str
    kind: Quantization | None
    needs: tuple[str, ...]
    install: str
    config: Mapping[str, Any]
    packed: tuple[PackedMatrix, ...] = ()
    restored: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_of_bitsandbytes(self) -> bool:
        """Whether bitsandbytes has quantised them."""
        return self.needs == ("bitsandbytes",)

    def for_devices(self, device_map: Mapping[str, int | str] | None) -> dict[str, Any]:
        """Return the ``quantization_config`` for a load.

        Args:
            device_map: device map of the load; ``None`` is the CPU.
        """
        on_cpu = set((device_map or {"": "cpu"}).values()) == {"cpu"}
        kernel = _ON_CPU.get(str(self.config.get("quant_method")))
        if kernel is None or not on_cpu:
            return dict(self.config)
        return {**self.config, "backend": kernel}

    def require(self) -> None:
        """Raise an error unless the package that loads them is here, and reads their description.

        Raises:
            OptionError: if it is not installed.
            CheckpointError: if it cannot read their ``quantization_config``.
        """
        if self.is_of_bitsandbytes:
            require_bitsandbytes(f"Weights that are quantised by {self.scheme}")
        if any(importlib.util.find_spec(package) is None for package in self.needs):
            packages = " and ".join(each.replace("_", "-") for each in self.needs)
            are = "is" if len(self.needs) == 1 else "are"
            raise OptionError(
                f"Weights that are quantised by {self.scheme} need {packages}, which {are} not "
                "installed.",
                f"Install {'it' if are == 'is' else 'them'} with: pip install {self.install}",
            )
        from transformers.quantizers.auto import AutoQuantizationConfig

        try:
            AutoQuantizationConfig.from_dict(dict(self.config))
        except Exception as error:  # of whatever a configuration leads to
            said = one_line(" ".join(str(error).split()))
            raise CheckpointError(
                f"The quantization_config of weights that are quantised by {self.scheme} cannot be "
                f"read: {said}.",
                "The file is damaged; download it again.",
            ) from error

    def shape(
        self, full: ModelShape, names: Callable[[str], Iterable[str]] = lambda name: (name,)
    ) -> ModelShape:
        """Return the sizes of a model whose full weights have the sizes `full`.

        Args:
            full: sizes of the model.
            names: yields what a module of the files may be called in the model.
        """
        holders = {module: at for at, unit in enumerate(full.units) for module in unit.modules}

        def inside(module: str) -> Iterator[tuple[int, str]]:
            """Yield the units that a module of the files is in, and its names there."""
            for name in names(module):
                around = accumulate(name.split("."), "{}.{}".format)
                yield from ((holders[each], name) for each in around if each in holders)

        packed: list[dict[str, PackedMatrix]] = [{} for _ in full.units]
        for matrix in self.packed:
            for at, name in inside(matrix.module):
                packed[at][name] = replace(matrix, module=name)
        most = [0] * len(full.units)
        for module, nbytes in self.restored.items():
            for at, _ in inside(module):
                most[at] = max(most[at], nbytes)
        units = [
            replace(unit, packed=tuple(held.values()), restoring_bytes=restoring)
            for unit, held, restoring in zip(full.units, packed, most, strict=True)
        ]
        # transformers computes with AWQ in float16 on GPUs, whatever it is told.
        is_half = "gptqmodel" in self.needs and full.dtype == "bfloat16"
        dtype = "float16" if is_half else full.dtype
        return replace(full, units=tuple(units), scheme=self.scheme, packed=self.kind, dtype=dtype)

    def full(self, tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
        """Yield the names of the weights that are not quantised, and so can have another dtype.

        None of those of GPTQ and AWQ, whose package decides on the dtype.

        Args:
            tensors: all tensors, by the names that `packed` and `restored` have.
        """
        if "gptqmodel" in self.needs:
            return
        packed = {f"{each.module}.weight" for each in self.packed}
        for name, info in tensors.items():
            module, _, leaf = name.rpartition(".")
            is_quantised = name in packed or is_told_by(name, packed)
            is_quantised |= module in self.restored and leaf != "bias"
            if info.dtype in _FULL and not is_quantised:
                yield name

    def count(self, tensors: Mapping[str, TensorInfo]) -> int | None:
        """Return the number of values in files, quantised or not; ``None`` if headers do not tell.

        Args:
            tensors: weights that count.
        """
        if self.kind is None:
            return None
        packed = {each.module: each.values for each in self.packed}
        found = sum(packed.values())
        for name, info in tensors.items():
            is_packed = name.removesuffix(".weight") in packed
            if name.endswith(_OF_GPTQMODEL) and name.rpartition(".")[0] in packed:
                continue
            if not (is_packed or _STATE.search(name) or name.endswith((_ROW_SCALES, _FORMAT))):
                found += math.prod(info.shape)
        return found


def read_stored(contents: Contents, where: str, *, is_cut: bool = False) -> Stored | None:
    """Return how weights are stored; ``None`` for full weights, and for those in FP8 by block.

    Args:
        contents: what is in the folder.
        where: path of its ``config.json``, for messages.
        is_cut: whether matrices are parts of those in the files, which passed this as a whole.

    Raises:
        CheckpointError: if weights are quantised in a way that cannot be loaded, or what describes
            them is incomplete or damaged.
    """
    config, tensors = contents.config, contents.tensors
    method = _method(contents, where)
    if not method:
        return None
    scheme = scheme_of(config, tensors)
    outline = outline_of(config)
    given = outline.quantization_entries
    if outline.quantization is None and method != "bitsandbytes":
        raise refused(where, scheme, is_described=False)
    if method in ("gptq", "awq"):
        matrices = packed_of(given, tensors, where)
        if matrices is None:
            raise refused(where, scheme)
        config = for_transformers(given, matrices, tensors)
        needs = ("gptqmodel", "optimum") if method == "gptq" else ("gptqmodel",)
        # Marlin makes another matrix of the same size (gptqmodel, nn_modules/qlinear/marlin.py).
        copies = {each.module: each.nbytes for each in matrices}
        return Stored(scheme, "4bit", needs, " ".join(needs), config, matrices, copies)
    if method == "compressed-tensors":
        if outline.scheme.config_groups is None:
            raise refused(where, scheme)
        require_groups(outline.scheme, tensors, where)
        return Stored(
            scheme,
            None,
            ("compressed_tensors",),
            "'glm4v_magic[compressed]'",
            {**given, "dequantize": True},
            restored=dict(_restored(outline.scheme, tensors)),
        )
    found = _of_bitsandbytes(given, tensors, where, scheme)
    return _described(found, tensors, where, is_cut=is_cut)


def refuse_adapter(contents: Contents, where: str) -> None:
    """Raise CheckpointError if weights are quantised, so that no adapter is merged into them.

    Args:
        contents: what is in the folder.
        where: path of its ``config.json``, for messages.
    """
    if _method(contents, where):
        raise CheckpointError(
            f"The weights of {where} are quantised by "
            f"{scheme_of(contents.config, contents.tensors)}, and an adapter is merged into full "
            "ones.",
            code="base_is_quantised",
        )


def _method(contents: Contents, where: str) -> str:
    """Return the method by which weights are quantised; empty for full ones, and for FP8 by block.

    Raises:
        CheckpointError: if they cannot be loaded.
    """
    config, tensors = contents.config, contents.tensors
    if quantization_of(config) is None and is_full(tensors.values()):
        return ""
    method = method_of(config, tensors)
    if method in ("", "fp8"):
        return ""
    if not tensors or method not in _KNOWN:
        raise refused(where, scheme_of(config, tensors))
    return method


def _described(
    found: Stored, tensors: Mapping[str, TensorInfo], where: str, *, is_cut: bool
) -> Stored:
    """Return what bitsandbytes has quantised with the sizes that its description tells."""
    if found.kind == "4bit":
        matrices = described_matrices(found.packed, tensors, where, is_cut=is_cut)
        return replace(found, packed=tuple(matrices))
    if not is_cut:
        require_row_scales(found.packed, tensors, where)
    return found


def is_told_by(name: str, packed: Collection[str]) -> bool:
    """Tell whether a tensor describes a quantised weight.

    Args:
        name: its name.
        packed: names of quantised weights.
    """
    weight, found = _STATE.subn("", name)
    if not found:
        weight = f"{name.removesuffix(_ROW_SCALES).removesuffix(_FORMAT)}.weight"
    return weight in packed


def _restored(scheme: Scheme, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, int]]:
    """Yield the modules of matrices that are restored, and what that takes beside the results.

    Alive at once are the matrix of the files, its levels in int8 if they were packed, and two of
    its size in the dtype of the scales: the levels and the product with them. Levels that are not
    of 4 bits are cut from words of int32, with their places beside them
    (``compressed_tensors/compressors/pack_quantized/helpers.py``).
    """
    given = [group.get("weights") for group in (scheme.config_groups or {}).values()]
    told = [each["num_bits"] for each in given if isinstance(each, dict)]
    bits = min(filter(None, told), default=4)
    for name, scales in tensors.items():
        module = name.removesuffix(_SCALE)
        stored = tensors.get(f"{module}{_PACKED}") or tensors.get(f"{module}.weight")
        if module == name or stored is None:
            continue
        values, alive = math.prod(stored.shape), stored.nbytes
        size = 4 if scales.dtype == "F32" else _HALF
        if f"{module}{_PACKED}" in tensors:
            values = stored.nbytes * 8 // bits
            alive += values * _INT8
        alive += 2 * values * size
        if stored.dtype == "I32" and bits != 4:
            alive = max(alive, stored.nbytes + _UNPACKED * values)
        yield module, alive - values * _HALF


def _of_bitsandbytes(
    given: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str, scheme: str
) -> Stored:
    is_four = any(name.endswith(_ABSMAX) for name in tensors)
    if not is_four and not any(name.endswith(_ROW_SCALES) for name in tensors):
        raise refused(where, scheme)
    packed = tuple(_packed_4bit(tensors) if is_four else _packed_8bit(tensors))
    held = {each.module for each in packed}
    config = dict(given)
    config.setdefault("quant_method", "bitsandbytes")
    config["load_in_4bit"], config["load_in_8bit"] = is_four, not is_four
    if is_four and "bnb_4bit_quant_type" not in config:
        config["bnb_4bit_quant_type"] = "nf4" if _is_nf4(tensors) else "fp4"
    full = {
        name.removesuffix(".weight")
        for name, info in tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2
    }
    config["llm_int8_skip_modules"] = sorted(full - held)
    kind: Quantization = "4bit" if is_four else "8bit"
    return Stored(scheme, kind, ("bitsandbytes",), "'glm4v_magic[quantize]'", config, packed)


def _is_nf4(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(name.endswith("bitsandbytes__nf4") for name in tensors)


def _packed_4bit(tensors: Mapping[str, TensorInfo]) -> list[PackedMatrix]:
    extra: dict[str, int] = {}
    for name, info in tensors.items():
        if _STATE.search(name):
            weight = _STATE.sub("", name)
            extra[weight] = extra.get(weight, 0) + info.nbytes
    return [
        PackedMatrix(weight.removesuffix(".weight"), 2 * stored.nbytes, more + stored.nbytes)
        for weight, more in extra.items()
        if (stored := tensors.get(weight)) is not None
    ]


def _packed_8bit(tensors: Mapping[str, TensorInfo]) -> list[PackedMatrix]:
    return [
        PackedMatrix(module, weight.nbytes, weight.nbytes + info.nbytes, weight.shape[0])
        for name, info in tensors.items()
        if name.endswith(_ROW_SCALES)
        and (weight := tensors.get(f"{(module := name.removesuffix(_ROW_SCALES))}.weight"))
        is not None
    ]
