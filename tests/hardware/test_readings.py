"""How full memory is now. The driver's library is replaced at its functions, nothing else is."""

from __future__ import annotations

import os

import psutil
import pytest
from driver_standin import GIB, MISSING, Described, Driver

from glm4v_magic.hardware.gpus import find_gpus, gpu_reader
from glm4v_magic.hardware.readings import HOST, take_readings

WEIGHTS = {"cuda:0": 2 * GIB}


@pytest.fixture
def read(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def take(*gpus, weights=WEIGHTS, **temperatures):
        driver = Driver(list(gpus))
        driver.install(monkeypatch)
        if temperatures:
            celsius = temperatures["celsius"]
            monkeypatch.setattr("pynvml.nvmlDeviceGetTemperature", lambda gpu, sensor: celsius)
        with gpu_reader() as read_gpus:
            assert driver.initialised == 1  # once, for any number of readings
            readings = take_readings(read_gpus, weights)
            assert take_readings(read_gpus, weights).memories[:1] == readings.memories[:1]
        assert driver.initialised == 0
        return readings

    return take


def test_a_gpu_is_split_into_model_kernel_others_and_free(read):
    mine = (os.getpid(), 5 * GIB)
    readings = read(
        Described(memory=(40 * GIB, 30 * GIB), processes=[(1, 4 * GIB), mine]), celsius=61
    )
    (gpu,) = readings.memories
    assert (gpu.weight_bytes, gpu.kernel_bytes) == (2 * GIB, 3 * GIB)
    assert (gpu.other_bytes, gpu.free_bytes, gpu.total_bytes) == (5 * GIB, 30 * GIB, 40 * GIB)
    assert gpu.own_bytes == 5 * GIB
    assert (gpu.utilization, gpu.celsius) == (0.35, 61)
    assert (gpu.power_watts, gpu.power_limit_watts) == (61.5, 400)
    assert readings.note == ""


def test_a_gpu_is_known_by_its_uuid_whatever_its_number(read, monkeypatch):
    gpus = Described(uuid="GPU-a"), Described(uuid="GPU-b")
    assert [c.key for c in read(*gpus).memories] == ["GPU-a", "GPU-b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert [(c.device, c.key) for c in read(*gpus).memories] == [
        ("cuda:0", "GPU-b"),
        ("cuda:1", "GPU-a"),
    ]


def test_a_metric_that_is_not_told_takes_no_other_with_it(read):
    (gpu,) = read(Described(power=MISSING, utilization=MISSING, limit=MISSING)).memories
    assert (gpu.utilization, gpu.celsius, gpu.power_watts) == (None, None, None)
    assert gpu.free_bytes == 30 * GIB


def test_a_board_with_unified_memory_says_so_and_shows_the_host(read):
    readings = read(Described(memory=MISSING, processes=MISSING))
    gpu, host = readings.memories
    assert (gpu.total_bytes, gpu.own_bytes) == (None, None)
    assert host.device == HOST
    assert "cuda:0 does not tell its memory" in readings.note


def test_without_a_driver_the_host_is_shown():
    readings = take_readings(find_gpus, {HOST: 2**20})
    (host,) = readings.memories
    assert "No NVIDIA GPU" in readings.note
    assert host.weight_bytes == 2**20
    assert host.own_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert host.total_bytes == psutil.virtual_memory().total
    parts = host.weight_bytes + host.kernel_bytes + host.other_bytes + host.free_bytes
    assert parts == pytest.approx(host.total_bytes, rel=0.05)


def test_virtual_gpus_come_first():
    import torch

    from glm4v_magic.virtual_gpus import VirtualGPUs

    with VirtualGPUs("2x4MiB"):
        held = torch.ones(2**18, device="cuda:1")
        readings = take_readings(find_gpus, {"cuda:1": 2**19})
        first, second = readings.memories
        assert (first.own_bytes, first.free_bytes) == (0, 4 * 2**20)
        assert (second.weight_bytes, second.kernel_bytes) == (2**19, 2**19)
        assert second.free_bytes == 3 * 2**20
        assert "Virtual GPUs" in readings.note
        del held
        assert take_readings(find_gpus, {}).memories[1].own_bytes == 0
    assert take_readings(find_gpus, {}).memories[0].device == HOST


def test_a_library_that_is_just_being_imported_is_left_alone(monkeypatch):
    """Another thread reads while the main one imports torch, whose module is half there."""
    import sys
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    half = ModuleType("torch")
    half.__spec__ = ModuleSpec("torch", None)
    half.__spec__._initializing = True
    monkeypatch.setitem(sys.modules, "torch", half)
    name = "glm4v_magic.virtual_gpus.context"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert take_readings(find_gpus, {}).memories[0].device == HOST
