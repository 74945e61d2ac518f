"""Models of GPUs, by the names that drivers, torch and people use."""

from __future__ import annotations

import pytest

from glm4v_magic.core.gpu_models import GPU_MODELS, capability_of, gpu_model


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Tesla T4", "T4"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("Tesla V100-PCIE-32GB", "V100-32GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB PCIe"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("Quadro RTX 6000", "Quadro RTX 6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060"),
        ("RTX 3060 8GB", "RTX 3060 8GB"),
        ("RTX 2060-12GB", "RTX 2060 12GB"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "RTX 4000 SFF Ada"),
        ("NVIDIA RTX 4000 Ada Generation", "RTX 4000 Ada"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        ("AMD Radeon RX 7900 XTX", "RX 7900 XTX"),
        ("3090", "RTX 3090"),
        ("rtx3090ti", "RTX 3090 Ti"),
        ("a100", "A100-40GB"),
    ],
)
def test_names(name: str, model: str) -> None:
    found = gpu_model(name)
    assert found is not None
    assert found.name == model


@pytest.mark.parametrize(
    "name",
    [
        "GPU", "", "RTX", "RTX 6000", "GTX 1050", "Apple GPU (mps)", "40", "NVIDIA GB10",
        # Slower than what their name begins with, or a part of it.
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "GRID A100-10C",
        "NVIDIA A10-4Q", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "NVIDIA RTX 3080 Mobile",
    ],
)  # fmt: skip
def test_of_others_nothing_is_assumed(name: str) -> None:
    assert gpu_model(name) is None


def test_memory_tells_models_of_one_name_apart() -> None:
    for name, gigabytes, model in (
        ("A100", 40, "A100-40GB"),
        ("A100", 80, "A100-80GB"),
        ("NVIDIA GeForce RTX 3060", 8, "RTX 3060 8GB"),
        ("NVIDIA GeForce RTX 2060", 12, "RTX 2060 12GB"),
    ):
        found = gpu_model(name, gigabytes * 10**9)
        assert found is not None
        assert found.name == model


def test_every_model_is_found_by_its_own_name_and_its_figures_are_of_a_gpu() -> None:
    assert len(GPU_MODELS) >= 40
    for model in GPU_MODELS:
        assert gpu_model(model.name) is model
        assert gpu_model(f"NVIDIA {model.name.upper()}") is model
        assert 5 < model.memory_gib < 200
        assert 100e9 < model.bandwidth < 10e12
        # A decode step is bound by memory on all of them: a weight is two bytes and two operations.
        assert 40 < model.flops / model.bandwidth < 700 or model.name in ("P100", "H20")
        assert model.source
    assert len({model.name for model in GPU_MODELS}) == len(GPU_MODELS)


def test_compute_capabilities() -> None:
    assert capability_of("NVIDIA GeForce RTX 4090 Laptop GPU") == (8, 9)
    assert capability_of("Tesla T4") == (7, 5)
    assert capability_of("A100") == (8, 0)
    assert capability_of("RTX 6000 Ada") == (8, 9)
    assert capability_of("RTX 6000") is None
    assert capability_of("MI300X") is None
