"""What a process takes of a GPU besides tensors, held against what was measured."""

from __future__ import annotations

import pytest

from glm4v_magic.core.gpu_models import GPU_MODELS, gpu_model
from glm4v_magic.core.gpu_spec import GPU, parse_gpus

MIB = 2**20
VOLTA = (7, 0)

MEASURED = {
    # context and kernels, cuBLAS's and cuBLASLt's workspaces, by tests/dry_run/test_real_gpu.py
    "H200": (707 + 33 + 32) * MIB,
    # contexts without a model's kernels
    "RTX-3090": 256 * MIB,
    "RTX-6000-Ada": 426 * MIB,
}


@pytest.mark.parametrize("name", MEASURED)
def test_what_was_measured_is_within_what_is_counted(name):
    (gpu,) = parse_gpus(name)
    others = 0 if name == "H200" else 202 * MIB  # kernels and workspaces
    assert MEASURED[name] <= gpu.overhead_bytes <= 1.05 * (MEASURED[name] + others)


def test_small_gpus_keep_their_memory():
    assert parse_gpus("T4")[0].overhead_bytes < 320 * MIB
    assert parse_gpus("RTX-3060")[0].overhead_bytes < 320 * MIB
    assert parse_gpus("8GiB")[0].overhead_bytes == 384 * MIB


@pytest.mark.parametrize("model", GPU_MODELS, ids=lambda model: model.name)
def test_a_gpu_known_by_its_size_alone_counts_as_the_largest_of_that_size(model):
    unknown = GPU(0, "GPU", model.memory_bytes).overhead_bytes
    if model.multiprocessors is None:
        assert model.capability is None  # of another maker
    elif model.capability != VOLTA:  # has the most for its memory
        assert parse_gpus(model.name.replace(" ", "-"))[0].overhead_bytes <= 1.02 * unknown


def test_a_context_that_is_there_counts_with_what_it_holds():
    (gpu,) = parse_gpus("RTX-3090")
    there = GPU(0, gpu.name, gpu.total_bytes, None, gpu.capability, context_bytes=900 * MIB)
    assert there.overhead_bytes == 910 * MIB
    assert gpu_model("RTX 3090").multiprocessors == 82
