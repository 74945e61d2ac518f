"""GPUs that NVML does not know: AMD's, by torch's build for ROCm, and Apple's.

There are none here: torch's own functions are replaced, nothing else is.
"""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import psutil
import pynvml
import pytest
import torch

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import PlacementError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dispatch.arrival import verify_places
from glm4v_magic.dispatch.devices import device_of, for_torch, name_of
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.hardware import gpus
from glm4v_magic.hardware.gpus import find_gpus, import_torch_if_needed, is_apple
from glm4v_magic.hardware.usable import gpus_here, usable_gpus
from glm4v_magic.planning.decision import decide
from glm4v_magic.virtual_gpus import VirtualGPUs

GIB = 2**30
SIZES = [(60 * GIB, 64 * GIB), (64 * GIB, 64 * GIB)]  # free, total


def refuse() -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", refuse)


@pytest.fixture
def rocm(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.version, "cuda", None)
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "is_initialized": True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "AMD Instinct MI210")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))  # gfx90a
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: SIZES[index])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: GIB * (index == 0))


@pytest.fixture
def apple(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 24 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * GIB))


def test_amd_gpus_are_planned_by_the_numbers_of_torch(rocm):
    speed = {"bandwidth": 1_638_000_000_000, "flops": 181e12}
    context = 848 * 2**20  # of this process, not of others
    expected = (  # what this process holds can be used
        GPU(0, "AMD Instinct MI210", 64 * GIB, 61 * GIB + context, **speed),
        GPU(1, "AMD Instinct MI210", 64 * GIB, 64 * GIB, **speed),
    )
    assert gpus_here() == usable_gpus(None) == expected
    placement = decide(architecture("GLM-4V-9B"), PlacementOptions(), expected)
    assert placement.dtype == "bfloat16"  # ROCm's (9, 0) is no compute capability of CUDA
    assert not placement.fp8
    assert name_of(1) == str(device_of(1)) == "cuda:1"
    assert {f.subject: f.verdict for f in diagnose(gather()) if f.subject == "model"} == {
        "model": "ok"
    }


def test_apples_gpu_has_a_part_of_the_memory_of_the_host(apple):
    (found,) = gpus_here()
    assert usable_gpus(None) == (found,)
    assert found == GPU(0, "Apple GPU (mps)", 24 * GIB, 12 * GIB)
    with pytest.raises(PlacementError, match="does not fit on 11"):
        decide(architecture("GLM-4V-9B"), PlacementOptions(), (found,))
    assert decide(architecture("demo"), PlacementOptions(), (found,)).plan.hops == 0
    assert "CUDA" not in {f.subject for f in diagnose(gather()) if f.verdict == "fail"}


def test_a_plan_for_it_is_put_on_mps(apple):
    device_map = {"model": 0, "lm_head": "cpu"}
    assert for_torch(device_map) == {"model": "mps:0", "lm_head": "cpu"}
    assert device_of(0) == torch.device("mps", 0)
    assert device_of("cpu") == torch.device("cpu")
    on = SimpleNamespace(device=torch.device("mps", 0))
    model = SimpleNamespace(named_parameters=lambda: [("w", on)], named_buffers=list)
    verify_places(model, {"": 0})
    with pytest.raises(PlacementError, match="was to be on cpu, but arrived on mps:0"):
        verify_places(model, {"": "cpu"})
    with VirtualGPUs("1x1GiB"):  # are CUDA's, wherever they are
        assert name_of(0) == "cuda:0"


def test_elsewhere_numbers_are_those_of_cuda():
    assert not is_apple()
    assert for_torch({"model": 0}) == {"model": 0}
    assert device_of(3) == torch.device("cuda", 3)
    assert find_gpus() == ()


@pytest.mark.parametrize(
    ("build", "platform", "machine", "needed"),
    [
        ("2.9.0+rocm6.4", "linux", "x86_64", True),
        ("2.9.0+cu128", "linux", "x86_64", False),
        ("2.9.0", "darwin", "arm64", True),
        ("2.9.0", "darwin", "x86_64", False),
    ],
)
def test_torch_is_imported_where_it_alone_knows(monkeypatch, build, platform, machine, needed):
    imported = []
    monkeypatch.setattr(importlib.metadata, "version", lambda name: build)
    monkeypatch.setattr(gpus.sys, "platform", platform)
    monkeypatch.setattr(gpus.platform, "machine", lambda: machine)
    monkeypatch.setattr(gpus.importlib, "import_module", imported.append)
    import_torch_if_needed()
    assert imported == ["torch"] * needed


def test_without_torch_nothing_is_imported(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    import_torch_if_needed()
