"""Live and peak bytes, and OutOfMemoryError beyond the size of a GPU."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GlmForCausalLM

from glm4v_magic.virtual_gpus import MemoryPeak, VirtualGPUs

MIB = 2**20


def mebibytes(count: int, device: str = "cuda:0") -> torch.Tensor:
    return torch.zeros(count * MIB, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("values", ["real", "none"])
def test_live_bytes_follow_the_storages(values: str) -> None:
    with VirtualGPUs("2x1GiB", values=values) as gpus:  # type: ignore[arg-type]
        weight = torch.zeros(MIB, device="cuda:1")
        view = weight.view(1024, -1)[:10]
        assert gpus.live_bytes == (0, 4 * MIB)
        half = weight.bfloat16()
        assert gpus.live_bytes == (0, 6 * MIB)
        del weight
        assert gpus.live_bytes == (0, 6 * MIB), "the view keeps the storage"
        del view
        assert gpus.live_bytes == (0, 2 * MIB)
        moved = half.to("cuda:0")
        assert gpus.live_bytes == (2 * MIB, 2 * MIB)
        del half, moved
        assert gpus.live_bytes == (0, 0)


@pytest.mark.parametrize("values", ["real", "none"])
@pytest.mark.parametrize("in_place", [True, False])
def test_masked_scatter_takes_what_its_kernel_takes(values: str, in_place: bool) -> None:
    with VirtualGPUs("1x1GiB", values=values) as gpus:  # type: ignore[arg-type]
        tensor = torch.zeros(MIB, device="cuda:0")
        mask = torch.zeros(MIB, dtype=torch.bool, device="cuda:0")
        source = torch.ones(MIB, device="cuda:0")
        before = gpus.live_bytes[0]
        scatter = tensor.masked_scatter_ if in_place else tensor.masked_scatter
        result = scatter(mask, source)
        kept = 0 if in_place else 4 * MIB
        assert (result is tensor) == in_place
        assert gpus.live_bytes[0] == before + kept
        assert max(peak.peak_bytes for peak in gpus.peaks) == before + kept + 9 * MIB


def test_out_of_memory_has_the_text_of_cuda() -> None:
    with VirtualGPUs([64 * MIB, 100 * MIB]) as gpus:
        kept = mebibytes(60)
        with pytest.raises(
            torch.OutOfMemoryError,
            match=r"^CUDA out of memory. Tried to allocate 5.00 MiB. GPU 0 has a total capacity "
            r"of 64.00 MiB of which 4.00 MiB is free. Of the allocated memory 60.00 MiB is "
            r"allocated by PyTorch",
        ) as caught:
            mebibytes(5)
        assert __file__ in str(caught.value)
        assert gpus.live_bytes == (60 * MIB, 0), "what did not fit is not counted"
        other = mebibytes(99, "cuda:1")
        with pytest.raises(torch.OutOfMemoryError, match="GPU 1"):
            kept.to("cuda:1")
        del kept, other
        assert len(mebibytes(64)) == 64 * MIB


def test_out_of_memory_names_the_module() -> None:
    with VirtualGPUs([MIB]), torch.no_grad():
        net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1024)).to("cuda:0")
        with pytest.raises(torch.OutOfMemoryError, match="in module 1,"):
            net(torch.ones(1024, 8, device="cuda:0"))


def test_out_of_memory_while_loading(glm_folder: Path) -> None:
    with VirtualGPUs([50_000]) as gpus:
        with pytest.raises(torch.OutOfMemoryError, match=r"total capacity of 48.83 KiB"):
            GlmForCausalLM.from_pretrained(glm_folder, device_map={"": 0})
        gc.collect()
        assert gpus.live_bytes == (0,)


def test_peaks_by_phase() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(4, 4096, bias=False)

        def forward(self, input_ids: torch.Tensor, past_key_values: object = None) -> torch.Tensor:
            return self.wide(input_ids)

    with VirtualGPUs("2x1GiB") as gpus, torch.no_grad():
        net = Net().to("cuda:0")
        weights = 4 * 4 * 4096
        for tokens, cache in ((8, None), (1, ("keys",)), (1, ("keys",))):
            x = torch.ones(1, tokens, 4, device="cuda:0")
            net(input_ids=x, past_key_values=cache)
        del x
        with gpus.phase("mine"):
            net(input_ids=torch.ones(1, 2, 4, device="cuda:0"))
            mebibytes(3, "cuda:1")
        peaks = {(peak.phase, peak.device): peak for peak in gpus.peaks}
        assert dict(gpus.report().forwards) == {"prefill": 1, "decode": 2, "mine": 1}
    load = peaks["load", 0]
    assert (load.start_bytes, load.module) == (0, "")
    assert peaks["prefill", 0] == MemoryPeak(
        "prefill", 0, weights + 8 * 16 + 8 * 4096 * 4, weights + 8 * 16, "wide"
    )
    assert peaks["decode", 0].peak_bytes < peaks["prefill", 0].peak_bytes
    assert peaks["mine", 0].module == "wide"
    assert peaks["mine", 1].peak_bytes == 3 * MIB
    assert peaks["decode", 1].peak_bytes == 0


def test_reset_keeps_the_tensors() -> None:
    with VirtualGPUs("1x1GiB") as gpus:
        kept = mebibytes(2)
        mebibytes(5)
        assert max(peak.peak_bytes for peak in gpus.peaks) == 7 * MIB
        gpus.reset()
        assert gpus.peaks == (MemoryPeak("load", 0, 2 * MIB, 2 * MIB, ""),)
        assert gpus.live_bytes == (2 * MIB,)
        del kept
    assert gpus.live_bytes == (0,)


@pytest.mark.parametrize("size", [1000])  # a function with an argument
def test_what_a_function_deletes_is_free_though_a_module_ran_below_it(size: int) -> None:
    with VirtualGPUs("1x1GiB") as gpus:
        held = torch.empty(size, dtype=torch.uint8, device="cuda:0")
        nn.ReLU()(torch.ones(1, device="cuda:0"))
        assert gpus.live_bytes == (size,)
        del held
        assert gpus.live_bytes == (0,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(1 << 40, device="cuda"),
        lambda: torch.zeros(1 << 20, 1 << 20, dtype=torch.int64, device="cuda"),
        lambda: torch.UntypedStorage(1 << 42, device="cuda"),
        lambda: torch.ones(1, device="cuda").expand(1 << 20, 1 << 20).contiguous(),
        lambda: torch.ones(1).expand(1 << 20, 1 << 20).to("cuda"),
    ],
)
def test_what_no_computer_has_room_for_is_out_of_memory_on_the_gpu(make: Callable[[], Any]) -> None:
    with VirtualGPUs("1GiB") as gpus:
        with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate"):
            make()
        assert torch.cuda.memory_stats()["num_ooms"] == 1
        assert gpus.live_bytes == (0,)


@pytest.mark.parametrize("values", ["real", "none"])
def test_room_is_asked_for_what_is_made(values: Any) -> None:
    with VirtualGPUs("256MiB", values=values) as gpus:
        made = torch.full((100_000_000,), True, device="cuda")
        assert gpus.live_bytes == (made.numel(),)
        del made
        rows = torch.empty_strided((2**20, 2**10), (0, 1), device="cuda")  # all rows are one
        assert gpus.live_bytes == (4 * 2**10,)
        assert torch.cuda.memory_stats()["num_ooms"] == 0
        with pytest.raises(torch.OutOfMemoryError):
            torch.full((40_000_000,), 3, device="cuda")  # int64
        generator = torch.Generator("cuda").manual_seed(1)
        assert torch.rand(5_000_000, generator=generator, device="cuda").shape == (5_000_000,)
        assert rows.shape == (2**20, 2**10)


def test_what_a_gpu_has_no_room_for_is_not_filled_in_here() -> None:
    script = """
import resource, torch
from glm4v_magic.virtual_gpus import VirtualGPUs
with VirtualGPUs("1GiB"):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    try:
        torch.ones(2 << 30, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    # In a process of its own: the highest of this one may be higher already.
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1 << 20
