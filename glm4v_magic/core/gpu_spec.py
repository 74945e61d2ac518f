"""Descriptions of GPUs: ``"4x16GiB"`` -> four `GPU`.

    description = "cpu" | group, or several groups joined by "+"
    group       = [count "x"] ([name "-"] size [unit] | model) ["@" bandwidth]

==================  =====================================================
``4x16GiB``         four equal GPUs
``24+16+12GiB``     three different GPUs; a unit also counts for the sizes before it
``2xA100-40GB``     two GPUs with a name
``2xT4``            two GPUs of a model in `gpu_models`, with the memory that torch reports for it
``24GiB@936GB/s``   a GPU and the bandwidth of its memory, in powers of 1000
``cpu``             no GPU
==================  =====================================================

Units are those of accelerate's ``max_memory``: GiB, MiB, KiB and TiB are powers of 1024; GB, MB, KB
and TB are powers of 1000. A name in `gpu_models` tells which number formats the GPU can compute
with and how fast it is; nothing is assumed about other GPUs. Of a model in there, a size that is
the nominal one means the memory that torch reports, a smaller one is a limit, and a larger one is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from glm4v_magic.core.errors import GPUDescriptionError, did_you_mean
from glm4v_magic.core.gpu_models import GPU_MODELS, GPUModel, capability_of, gpu_model
from glm4v_magic.core.overhead import cuda_overhead
from glm4v_magic.core.wording import narrowed

__all__ = [
    "ANY_CPU",
    "APPLE",
    "CPU",
    "GPU",
    "MAX_GPUS",
    "bytes_of",
    "device_name",
    "gpus_of",
    "parse_gpus",
]

MAX_GPUS = 128
"""PyTorch numbers devices with a signed byte (``c10::DeviceIndex``)."""

_UNITS = {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("ib", 1024), ("b", 1000))
}
_GROUP = re.compile(
    r"(?:(?P<count>-?[0-9]+)\s*[x×]\s*)?"
    r"(?:(?P<name>(?:[a-z]|[0-9]{4})[a-z0-9 _.-]*?)[ -])?"
    r"(?P<size>-?[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[kmgt]i?b)?",
    re.IGNORECASE | re.ASCII,
)
_NAMED = re.compile(
    r"(?:(?P<count>[0-9]+)\s*[x×]\s*)?(?P<name>[a-z0-9][a-z0-9 _.-]*)", re.IGNORECASE | re.ASCII
)
_NUMBER = re.compile(r"(?<![a-z0-9])[0-9]+(?![a-z0-9])", re.IGNORECASE | re.ASCII)
_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?b)/s", re.IGNORECASE | re.ASCII)
_COUNT_FIRST = re.compile(r"(?P<count>[0-9]+)\s+(?P<name>.+)", re.ASCII)
_COUNT_LAST = re.compile(r"(?P<name>.*[0-9b\s])[x×]\s*(?P<count>[0-9]+)", re.IGNORECASE | re.ASCII)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?b)", re.IGNORECASE | re.ASCII)
_UNIT = re.compile(r"[kmgt]i?b\b", re.IGNORECASE | re.ASCII)
_SEPARATOR = re.compile(r"\s*[,;，、；＋]\s*")
"""What people write between GPUs in place of ``+``."""

_EXAMPLE = 'Write for example "4x16GiB", "24+16+12GiB", "2xT4", "24GiB@936GB/s" or "cpu".'
_LONGEST = 200
_TAKEN = 0.15  # of the nominal size, by error correction and the driver: at most


APPLE = "Apple GPU (mps)"
"""Name of Apple's GPU, which torch calls ``mps``."""


def device_name(index: int, name: str = "") -> str:
    """Return torch's name of a GPU, given its index and what it is called."""
    return f"{'mps' if name == APPLE else 'cuda'}:{index}"


@dataclass(frozen=True, slots=True)
class CPU:
    """A CPU.

    Attributes:
        bfloat16: its instructions for products in bfloat16 that are faster than those in float32;
            empty if it is not known to have any.
    """

    bfloat16: str = ""


ANY_CPU = CPU()
"""A CPU of which nothing is known."""


@dataclass(frozen=True, slots=True)
class GPU:
    """One GPU, found or described.

    Attributes:
        index: CUDA index, as in ``cuda:<index>``.
        name: name from the driver or the description.
        total_bytes: size of its memory.
        free_bytes: memory that other programs leave free; ``None`` if unknown.
        capability: CUDA's compute capability; ``None`` if unknown.
        bandwidth: peak memory bandwidth in bytes per second; ``None`` if unknown.
        flops: operations per second in products of matrices in half precision; ``None`` if unknown.
        multiprocessors: number of streaming multiprocessors; ``None`` if unknown.
        context_bytes: what this process's CUDA context holds of it; ``None`` if it has none, or
            that is unknown.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int | None = None
    capability: tuple[int, int] | None = None
    bandwidth: int | None = None
    flops: float | None = None
    multiprocessors: int | None = None
    context_bytes: int | None = None

    @property
    def device(self) -> str:
        """The device's name in torch."""
        return device_name(self.index, self.name)

    @property
    def usable_bytes(self) -> int:
        """Memory that a plan may use: the free memory if known, else all of it."""
        return self.total_bytes if self.free_bytes is None else self.free_bytes

    @property
    def overhead_bytes(self) -> int:
        """Bytes that a process using it takes besides tensors; see `core.overhead`."""
        return cuda_overhead(
            self.total_bytes, self.capability, self.multiprocessors, self.context_bytes
        )


def gpus_of(gpus: str | Iterable[GPU]) -> tuple[GPU, ...]:
    """Return GPUs, or those of a description such as ``"4x16GiB"``.

    Raises:
        GPUDescriptionError: if they are neither, or the description cannot be read.
    """
    if isinstance(gpus, str):
        return parse_gpus(gpus)
    found = tuple(gpus) if isinstance(gpus, Iterable) else (gpus,)
    wrong = [each for each in found if not isinstance(each, GPU)]
    if wrong:
        raise GPUDescriptionError(
            f"GPUs are a description or a sequence of GPU, not of type {type(wrong[0]).__name__}.",
            _EXAMPLE,
        )
    return found


def parse_gpus(description: str) -> tuple[GPU, ...]:
    """Read a description such as ``"4x16GiB"``; ``"cpu"`` describes no GPU at all.

    Raises:
        GPUDescriptionError: if the description cannot be read, or a count or size is not positive.
    """
    if not isinstance(description, str):
        raise GPUDescriptionError(
            f"GPUs are described by a string, not by {type(description).__name__}.", _EXAMPLE
        )
    text = description.strip()
    if text.lower() == "cpu":
        return ()
    if not text:
        raise GPUDescriptionError("The description of the GPUs is empty.", _EXAMPLE)
    if len(text) > _LONGEST:
        raise GPUDescriptionError("The description of the GPUs is too long.", _EXAMPLE)
    gpus: list[GPU] = []
    for group in _read_groups(text):
        if len(gpus) + group.count > MAX_GPUS:
            raise GPUDescriptionError(
                f"{text!r} describes more than {MAX_GPUS} GPUs, the most that PyTorch can number."
            )
        gpus += [group.gpu(len(gpus) + i) for i in range(group.count)]
    return tuple(gpus)


def bytes_of(size: str) -> int | None:
    """Return the bytes of a size such as ``10GiB``; ``None`` if it is not a size."""
    match = _SIZE.fullmatch(size.strip()) if len(size) <= _LONGEST else None
    return None if match is None else _bytes(match[1], match[2])


def _bytes(number: str, unit: str) -> int:
    from decimal import Decimal  # here: loading the extension is to be fast

    return int(Decimal(number) * _UNITS[unit.lower()])


@dataclass(frozen=True, slots=True)
class _Group:
    """Equal GPUs; the bandwidth is the one that is written, if any."""

    count: int
    name: str
    size: int
    model: GPUModel | None = None
    bandwidth: int | None = None

    def gpu(self, index: int) -> GPU:
        """Return one of them, with what its model is known for."""
        model = self.model
        known = (
            (None, None, None)
            if model is None
            else (model.bandwidth, model.flops, model.multiprocessors)
        )
        return GPU(
            index,
            self.name,
            self.size,
            None,
            capability_of(self.name),
            known[0] if self.bandwidth is None else self.bandwidth,
            *known[1:],
        )


def _read_groups(text: str) -> list[_Group]:
    """Return the groups in the order in which they are written."""
    groups: list[_Group] = []
    unit = ""
    for part in reversed(text.split("+")):
        written, at, speed = part.strip().partition("@")
        bandwidth = _bandwidth(speed, text) if at else None
        group, unit = _read_group(written.strip(), unit, text)
        if group.count < 1 or group.size < 1:
            what = "a count" if group.count < 1 else "a size"
            raise GPUDescriptionError(f"{part.strip()!r} has {what} below one.", _EXAMPLE)
        groups.append(replace(group, bandwidth=bandwidth))
    return groups[::-1]


def _read_group(part: str, unit: str, text: str) -> tuple[_Group, str]:
    """Return a group without its bandwidth, and the unit for sizes before it.

    Args:
        part: the group, without its bandwidth.
        unit: unit of the sizes after it.
        text: the whole description, for messages.
    """
    match = _COUNT_LAST.fullmatch(part)
    if match is not None and _is_readable(meant := f"{match['count']}x{match['name'].strip()}"):
        raise GPUDescriptionError(f"Cannot read {_within(part, text)}.", f'Did you mean "{meant}"?')
    return _read_counted(part, unit, text)


def _read_counted(part: str, unit: str, text: str) -> tuple[_Group, str]:
    """As `_read_group`, of a part whose count is at its beginning, if it has one."""
    match = _GROUP.fullmatch(part)
    if (
        match is not None
        and (match["name"] or "")[:1].isdigit()
        and not capability_of(match["name"])
    ):
        match = None
    if match is None or not match["unit"]:
        named = _of_model(part)
        if named is not None:
            return named, unit
    if match is None:
        raise GPUDescriptionError(f"Cannot read {_within(part, text)}.", _meant(part))
    unit = match["unit"] or unit
    if not unit:
        if match["name"] is None:
            raise GPUDescriptionError(f"{text!r} gives a size without a unit.", _meant(part))
        if capability_of(match["name"]):
            hint = f'Add the unit, as in "{part}GiB".'
            raise GPUDescriptionError(f"{text!r} gives a size without a unit.", hint)
        name = f"{match['name']} {match['size']}"
        meant = did_you_mean(name, (model.name for model in GPU_MODELS))
        raise GPUDescriptionError(
            f"{text!r} names a GPU that is not known.", f"{meant} {_add_memory(part)}".strip()
        )
    group = _Group(int(match["count"] or 1), match["name"] or "GPU", _bytes(match["size"], unit))
    if match["name"] is not None:
        group = _sized(group, match["size"], unit)
    return group, unit


def _of_model(part: str) -> _Group | None:
    """Return a group that names a model without its memory; ``None`` if it does not."""
    match = _NAMED.fullmatch(part)
    if match is None:
        return None
    model = gpu_model(match["name"])
    if model is None or {*_NUMBER.findall(match["name"])} - {*model.marks}:  # "A100-40"
        return None
    return _Group(int(match["count"] or 1), match["name"], model.memory_bytes, model)


def _sized(group: _Group, number: str, unit: str) -> _Group:
    """Return a group with a name and a size, as its model really is, if that is known.

    Raises:
        GPUDescriptionError: if the model has less memory.
    """
    # with the size, which may tell the model: "A100-SXM4-40GB"
    written = f"{group.name} {number}{unit}"
    model = gpu_model(written, group.size)
    if model is None or group.size < 1:
        return group
    # "80GB" of data sheets are 80 GiB, less what error correction and the driver take.
    nominal = _bytes(number, unit[0] + "ib")
    if f"{number}{unit.lower()}" in model.hints or 1 <= nominal / model.memory_bytes < 1 + _TAKEN:
        return replace(group, size=model.memory_bytes, model=model)
    if group.size > model.memory_bytes:
        count = "" if group.count == 1 else f"{group.count}x"
        raise GPUDescriptionError(
            f"{model.name} has {model.memory_gib:g} GiB, not {number}{unit}.",
            f'Leave the size out, or the name: "{count}{number}{unit}".',
        )
    return replace(group, model=model)


def _is_readable(part: str) -> bool:
    try:
        group, _ = _read_counted(part, "", part)
    except GPUDescriptionError:
        return False
    return 0 < group.count <= MAX_GPUS and group.size > 0


def _within(part: str, text: str) -> str:
    return repr(part) if part == text else f"{part!r} in {text!r}"


def _meant(part: str) -> str:
    """Return what to write instead of a group that cannot be read."""
    first = _COUNT_FIRST.fullmatch(part)
    if first is not None and _is_readable(meant := f"{first['count']}x{first['name']}"):
        return f'Did you mean "{meant}"?'
    joined = _SEPARATOR.sub("+", part)
    if joined != part and all(map(_is_readable, joined.split("+"))):
        return f'Different GPUs are joined by +: "{joined}".'
    if (narrow := narrowed(part)) != part and all(map(_is_readable, narrow.split("+"))):
        return f'Did you mean "{narrow}"?'
    match = _NAMED.fullmatch(part)
    name = "" if match is None else match["name"].replace("-", " ")
    if not (any(map(str.isalpha, name)) and any(map(str.isdigit, name))):
        return _EXAMPLE
    if capability_of(name):  # of a laptop, or a part of a GPU
        return _add_memory(part)
    meant = did_you_mean(name, (model.name for model in GPU_MODELS))
    is_name = name[0].isalpha() and not _UNIT.search(name) and _is_readable(f"{part}-16GiB")
    way = f"{_add_memory(part)} {_EXAMPLE}" if is_name else _EXAMPLE
    return f"{meant} {way}".strip()


def _add_memory(part: str) -> str:
    return f'Add its memory, as in "{part}-16GiB".'


def _bandwidth(written: str, text: str) -> int:
    """Return bytes per second of ``936GB/s``."""
    match = _SPEED.fullmatch(written.strip())
    speed = 0 if match is None else _bytes(match[1], match[2])
    if speed < 1:
        raise GPUDescriptionError(
            f"Cannot read the bandwidth {written.strip()!r} in {text!r}.",
            'Write for example "24GiB@936GB/s".',
        )
    return speed
