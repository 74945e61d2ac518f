"""What NVML says of the driver and of the ways between GPUs; replaced at its functions only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pynvml
import pytest

from glm4v_magic.hardware.driver import Driver, Link, find_driver, find_links
from glm4v_magic.hardware.gpus import FoundGPU

READ, NVLINK = 0, 2
OK, CHIPSET, GPU, ROOTS, SETTINGS, NO, UNKNOWN = range(7)

States = Mapping[tuple[str, str, int], int]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace NVML's functions; those that are not given fail as on an old driver."""

    def install(**functions: Callable[..., Any]) -> None:
        for name in dir(pynvml):
            if name.startswith(("nvmlDevice", "nvmlSystem")):
                monkeypatch.setattr(pynvml, name, missing)
        for name in ("nvmlInit", "nvmlShutdown"):
            monkeypatch.setattr(pynvml, name, lambda: None)
        for name, function in functions.items():
            monkeypatch.setattr(pynvml, name, function)

    return install


def missing(*arguments: Any) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)


def links(nvml: Callable[..., None], states: States, names: str = "ab") -> tuple[Link, ...]:
    """The links between GPUs; a pair without a state answers OK, one with -1 fails."""

    def status(first: str, second: str, capability: int) -> int:
        assert type(capability) is int  # ctypes takes nothing else
        state = states.get((first, second, capability), OK)
        return missing() if state < 0 else state

    nvml(
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid.removeprefix("GPU-"),
        nvmlDeviceGetP2PStatus=status,
    )
    return find_links([FoundGPU(i, "GPU", f"GPU-{name}") for i, name in enumerate(names)])


@pytest.mark.parametrize(
    ("cuda", "expected"), [(12040, (12, 4)), (13000, (13, 0)), (11080, (11, 8))]
)
def test_versions(nvml: Callable[..., None], cuda: int, expected: tuple[int, int]) -> None:
    nvml(
        nvmlSystemGetDriverVersion=lambda: "550.54.15",
        nvmlSystemGetCudaDriverVersion_v2=lambda: cuda,
    )
    assert find_driver() == Driver("550.54.15", expected)


def test_a_driver_that_does_not_tell_its_versions(nvml: Callable[..., None]) -> None:
    nvml()
    assert find_driver() == Driver("", None)


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert find_driver() is None
    assert find_links([FoundGPU(0, "GPU", "GPU-a"), FoundGPU(1, "GPU", "GPU-b")]) == ()


def test_every_pair_of_gpus(nvml: Callable[..., None]) -> None:
    found = links(nvml, {}, "abc")
    assert found == tuple(Link(pair, True, True) for pair in ((0, 1), (0, 2), (1, 2)))
    assert links(nvml, {}, "a") == ()


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({("a", "b", NVLINK): NO}, Link((0, 1), True, False)),
        ({("b", "a", READ): NO}, Link((0, 1), False, True)),
        ({("a", "b", READ): UNKNOWN}, Link((0, 1), None, True)),
        ({("a", "b", READ): -1, ("b", "a", NVLINK): -1}, Link((0, 1), None, None)),
        (
            {("a", "b", READ): CHIPSET},
            Link((0, 1), False, True, "the chipset does not support it"),
        ),
        ({("a", "b", READ): GPU}, Link((0, 1), False, True, "the GPUs do not support it")),
        (
            {("b", "a", READ): ROOTS},
            Link((0, 1), False, True, "the GPUs hang on different PCIe roots"),
        ),
        (
            {("a", "b", READ): SETTINGS},
            Link((0, 1), False, True, "the driver's settings turn it off"),
        ),
    ],
)
def test_a_way_is_as_good_as_its_worse_direction(
    nvml: Callable[..., None], states: States, expected: Link
) -> None:
    assert links(nvml, states) == (expected,)


def test_a_gpu_without_uuid_has_unknown_ways(nvml: Callable[..., None]) -> None:
    links(nvml, {})
    found = find_links([FoundGPU(0, "GPU", "GPU-a"), FoundGPU(1, "GPU")])
    assert found == (Link((0, 1), None, None),)
