"""Finding GPUs. The driver's library is replaced at its functions, nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pynvml
import pytest
import torch
from driver_standin import GIB, MISSING, Described, Driver

from glm4v_magic.core.errors import PlacementError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.hardware.gpus import FoundGPU, find_gpus
from glm4v_magic.hardware.visible import Device, visible


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[FoundGPU, ...]]:
    def find(*gpus: Described, **environment: str) -> tuple[FoundGPU, ...]:
        driver = Driver(list(gpus))
        driver.install(monkeypatch)
        found = find_gpus(environment)
        assert driver.initialised == 0  # as often shut down as initialised
        return found

    return find


Find = Callable[..., tuple[FoundGPU, ...]]


def test_everything_the_driver_tells(find: Find) -> None:
    mine = (os.getpid(), 4 * GIB)
    (found,) = find(Described(processes=[(1, 3 * GIB), mine]))
    assert found == FoundGPU(
        index=0,
        name="NVIDIA A100",
        uuid="GPU-aaaa",
        total_bytes=40 * GIB,
        free_bytes=30 * GIB,
        own_bytes=4 * GIB,
        other_bytes=6 * GIB,
        power_watts=61.5,
        power_limit_watts=400.0,
        utilization=0.35,
        ecc=True,
        mig=False,
        index_certain=True,
        bandwidth=1_555_200_000_000,
        multiprocessors=108,
    )
    # What this process holds itself can be planned with.
    speed = {"bandwidth": 1_555_200_000_000, "flops": 312e12}
    assert found.gpu == GPU(0, "NVIDIA A100", 40 * GIB, 34 * GIB, **speed, multiprocessors=108)


@pytest.mark.parametrize(
    ("silent", "unknown"),
    [
        ("name", {"name": "unknown GPU", "multiprocessors": None}),
        ("bus", {"bandwidth": 1_555_000_000_000}),  # of the model, by its name
        ("clock", {"bandwidth": 1_555_000_000_000}),
        ("uuid", {"uuid": ""}),
        ("memory", {"total_bytes": None, "free_bytes": None, "other_bytes": None}),
        ("processes", {"own_bytes": None}),
        ("power", {"power_watts": None}),
        ("limit", {"power_limit_watts": None}),
        ("utilization", {"utilization": None}),
        ("ecc", {"ecc": None}),
    ],
)
def test_each_call_may_fail_alone(find: Find, silent: str, unknown: dict[str, Any]) -> None:
    (all_known,) = find(Described())
    (found,) = find(Described(**{silent: MISSING}))
    for name in FoundGPU.__dataclass_fields__:
        expected = unknown.get(name, getattr(all_known, name))
        assert getattr(found, name) == expected, name


def test_a_board_with_unified_memory_has_an_unknown_size(find: Find) -> None:
    for memory in (MISSING, (0, 0)):
        (found,) = find(Described(name="NVIDIA GB10", memory=memory))
        assert found.total_bytes is None
        with pytest.raises(PlacementError) as caught:
            _ = found.gpu
        assert str(caught.value) == (
            "Nothing tells how much memory cuda:0 (NVIDIA GB10) has. "
            'Describe the GPUs, for example "2x24GiB".'
        )


def test_processes_listed_without_their_memory(find: Find) -> None:
    (found,) = find(Described(processes=[(os.getpid(), None), (1, None)]))
    assert found.own_bytes is None
    assert found.other_bytes == 10 * GIB


def test_a_container_does_not_see_its_own_process(find: Find) -> None:
    (found,) = find(Described(processes=[(1, 3 * GIB)]))
    assert found.own_bytes == 0


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that torch has reserved on the GPU."""
    for name, value in {"is_available": True, "is_initialized": True, "device_count": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 2 * GIB)
    return 2 * GIB


def test_the_context_of_this_process_is_no_other_programs(find: Find, reserved: int) -> None:
    (found,) = find(Described(capability=(8, 0)))  # a container: the process is not listed
    context = found.gpu.overhead_bytes
    assert found.own_bytes == reserved + context
    # what a plan has for tensors: all that torch has reserved already, and all that is free
    assert found.gpu.usable_bytes - context == reserved + 30 * GIB


def test_the_context_of_this_process_is_as_large_as_the_driver_says(
    find: Find, reserved: int
) -> None:
    usual = find(Described(capability=(8, 0)))[0].gpu.overhead_bytes
    for context, overhead in ((GIB // 4, usual), (GIB, GIB + 10 * 2**20)):
        listed = [(os.getpid(), reserved + context)]
        (found,) = find(Described(capability=(8, 0), processes=listed))
        assert found.context_bytes == context
        assert found.gpu.overhead_bytes == overhead


def test_of_an_unknown_gpu_the_driver_tells_the_multiprocessors(find: Find) -> None:
    new = Described(name="NVIDIA RTX 9090", capability=(12, 0), cores=128 * 200)
    assert find(new)[0].multiprocessors == 200
    old = Described(name="NVIDIA T4G", capability=(7, 5), cores=64 * 40)
    assert find(old)[0].multiprocessors == 40
    assert find(Described(name="NVIDIA RTX 9090"))[0].multiprocessors is None


GPUS = [Described(f"GPU-{letter * 4}", f"GPU {letter}") for letter in "abc"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "abc"),
        ("", ""),
        ("2,0", "ca"),
        (" 1 , 2 ", "bc"),
        ("0,2,-1,1", "ac"),
        ("0,7,1", "a"),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("1,1", ""),
        ("1gpu,0", "ba"),
        ("GPU-cccc,GPU-aaaa", "ca"),
        ("GPU-b", "b"),
        ("GPU-", ""),
        ("GPU-c,GPU-x,GPU-a", "c"),
        ("GPU-c,1", "cb"),
    ],
)
def test_cuda_visible_devices(find: Find, value: str | None, expected: str) -> None:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    found = find(*GPUS, **environment)
    assert "".join(gpu.uuid[4:5] for gpu in found) == expected
    assert [gpu.index for gpu in found] == list(range(len(expected)))


def cut_up() -> Described:
    instances = [
        Described(
            f"MIG-{n}{n}{n}", f"A100 MIG {n}", (5 * GIB, 4 * GIB), power=MISSING, ids=(6 + n, 0)
        )
        for n in (1, 2)
    ]
    return Described(instances=instances)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ["MIG-111", "GPU-bbbb"]),
        ("0", ["MIG-111"]),
        ("1,0", ["GPU-bbbb", "MIG-111"]),
        ("MIG-222", ["MIG-222"]),
        ("MIG-2", ["MIG-222"]),
        ("MIG-", []),
        ("MIG-GPU-aaaa/8/0", ["MIG-222"]),
        ("MIG-GPU-aaaa/9/0", []),
        ("GPU-aaaa", []),
        ("MIG-222,MIG-111", ["MIG-222"]),
    ],
)
def test_mig_instances(find: Find, value: str | None, expected: list[str]) -> None:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    found = find(cut_up(), GPUS[1], **environment)
    assert [gpu.uuid for gpu in found] == expected
    for gpu in found:
        assert gpu.mig == gpu.uuid.startswith("MIG-")
        assert gpu.total_bytes == (5 * GIB if gpu.mig else 40 * GIB)
        assert (gpu.power_watts is None) == gpu.mig
        assert (gpu.bandwidth is None) == gpu.mig
        assert gpu.gpu.flops is None


def test_a_gpu_in_mig_mode_without_instances_cannot_be_used(find: Find) -> None:
    assert [gpu.uuid for gpu in find(Described(instances=[]), GPUS[1])] == ["GPU-bbbb"]
    assert find(Described(instances=[]), CUDA_VISIBLE_DEVICES="0") == ()


def test_indices_of_different_gpus_depend_on_cudas_order(find: Find) -> None:
    def certain(*gpus: Described, **environment: str) -> bool:
        return all(gpu.index_certain for gpu in find(*gpus, **environment))

    assert not certain(*GPUS)
    assert not certain(*GPUS, CUDA_VISIBLE_DEVICES="1,0")
    assert certain(*GPUS, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert certain(*GPUS, CUDA_VISIBLE_DEVICES="GPU-b,GPU-a")
    assert certain(Described("GPU-1"), Described("GPU-2"))


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert find_gpus({}) == ()


def test_a_driver_that_loses_a_gpu(find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(GPUS)
    driver.install(monkeypatch)

    def lost(index: int) -> Described:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return GPUS[index]

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lost)
    assert [gpu.name for gpu in find_gpus({})] == ["GPU a", "GPU c"]


def test_an_ambiguous_beginning_of_a_uuid_names_nothing() -> None:
    devices = [Device(0, "GPU-12"), Device(1, "GPU-13")]
    assert visible(devices, "GPU-1") == ()
    assert visible(devices, "GPU-13,GPU-1") == (devices[1],)


def test_looking_for_gpus_imports_no_torch() -> None:
    code = (
        "import sys, glm4v_magic.hardware.gpus as gpus\n"
        "assert 'pynvml' not in sys.modules\n"
        "gpus.find_gpus()\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
