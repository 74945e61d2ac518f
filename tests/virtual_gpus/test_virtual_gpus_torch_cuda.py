"""Every public name of ``torch.cuda`` works on virtual GPUs, or is refused and listed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import comm

from glm4v_magic.virtual_gpus import VirtualGPUs
from glm4v_magic.virtual_gpus.refused import REFUSED

cuda = torch.cuda
DOCS = Path(__file__).parents[2] / "docs" / "your-own-model.md"

NOT_CALLED = {
    "CudaError", "DeferredCudaCallError", "amp", "cudaStatus", "default_generators", "graphs",
    "has_half", "has_magma", "memory", "nvtx", "profiler", "random", "sparse", "streams",
}  # fmt: skip
"""Exceptions, constants and modules; of the modules those below are tried."""
OF_CUDA_ALONE = {"jiterator", "nccl", "tunable"}
"""Modules whose functions launch kernels of CUDA."""


def a_tensor() -> torch.Tensor:
    return torch.ones(2, device="cuda:1")


CALLS: dict[str, Callable[[], Any]] = {
    "Event": lambda: cuda.Event(enable_timing=True).query(),
    "Stream": lambda: cuda.Stream.priority_range(),
    "StreamContext": lambda: cuda.StreamContext(cuda.Stream()).__enter__(),
    "caching_allocator_disabled": lambda: cuda.caching_allocator_disabled().__enter__(),
    "caching_allocator_enable": lambda: cuda.caching_allocator_enable(True),
    "can_device_access_peer": lambda: cuda.can_device_access_peer(0, 1),
    "device": lambda: cuda.device(1).__enter__(),
    "device_of": lambda: cuda.device_of(a_tensor()).__enter__(),
    "manual_seed": lambda: cuda.manual_seed(1),
    "manual_seed_all": lambda: cuda.manual_seed_all(1),
    "set_device": lambda: cuda.set_device(0),
    "set_per_process_memory_fraction": lambda: cuda.set_per_process_memory_fraction(1.0),
    "set_rng_state": lambda: cuda.set_rng_state(cuda.get_rng_state()),
    "set_rng_state_all": lambda: cuda.set_rng_state_all(cuda.get_rng_state_all()),
    "set_stream": lambda: cuda.set_stream(cuda.current_stream()),
    "set_sync_debug_mode": lambda: cuda.set_sync_debug_mode("default"),
    "stream": lambda: cuda.stream(cuda.Stream()).__enter__(),
}
"""Calls of the names that need arguments."""


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what PyTorch has other names for
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_every_public_name_works_or_is_refused() -> None:
    names = set(cuda.__all__)
    assert REFUSED.keys() <= names
    for name in sorted(names - NOT_CALLED - OF_CUDA_ALONE):
        with VirtualGPUs("2x1GiB", available=True):
            call = CALLS.get(name, getattr(cuda, name))
            if name in REFUSED:
                with pytest.raises(NotImplementedError, match=f"have no torch.cuda.{name}: "):
                    call()
            else:
                call()


def test_what_is_refused_is_in_the_docs() -> None:
    text = " ".join(DOCS.read_text().split())
    for name in {*REFUSED, *OF_CUDA_ALONE}:
        assert f"`{name}`" in text, name
    for reason in set(REFUSED.values()):
        assert reason.partition(";")[0] in text, reason


def test_properties_of_a_gpu() -> None:
    with VirtualGPUs("2xA100-1GiB", available=True):
        one, other = (cuda.get_device_properties(index) for index in (0, 1))
        assert (one.name, one.total_memory, one.multi_processor_count) == ("A100", 2**30, 108)
        assert one.uuid != other.uuid
        assert cuda.get_arch_list() == ["sm_80"]
        assert cuda.get_gencode_flags() == "-gencode compute=compute_80,code=sm_80"
        assert not cuda.can_device_access_peer(1, 1)
        assert "no processes" in cuda.list_gpu_processes(1)


def test_statistics_of_memory() -> None:
    with VirtualGPUs("2x1GiB", available=True):
        first = torch.ones(1 << 18, device="cuda:1")
        second = torch.ones(1 << 18, device="cuda:1")
        del first
        stats = cuda.memory_stats(1)
        found = [
            stats[f"allocated_bytes.all.{n}"] for n in ("current", "peak", "allocated", "freed")
        ]
        assert found == [1 << 20, 2 << 20, 2 << 20, 1 << 20]
        assert [stats[f"allocation.all.{n}"] for n in ("current", "peak", "freed")] == [1, 2, 1]
        assert "| Allocated memory      |   1024 KiB |   2048 KiB |   2048 KiB |   1024 KiB |" in (
            cuda.memory_summary(1)
        )
        with pytest.warns(FutureWarning, match="reset_peak_memory_stats"):
            cuda.reset_max_memory_allocated(1)
        cuda.reset_accumulated_memory_stats(1)
        stats = cuda.memory_stats(1)
        assert stats["allocated_bytes.all.peak"] == cuda.max_memory_allocated(1) == 1 << 20
        assert stats["allocated_bytes.all.allocated"] == cuda.memory_stats(0)["num_ooms"] == 0
        assert cuda.memory.memory_allocated(1) == second.nbytes


def test_a_share_of_the_memory() -> None:
    with VirtualGPUs("1x1MiB", available=True):
        cuda.set_per_process_memory_fraction(0.5)
        assert cuda.get_per_process_memory_fraction() == 0.5
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(1 << 18, device="cuda")
        assert cuda.memory_stats()["num_ooms"] == 1
        cuda.set_per_process_memory_fraction(1.0)
        torch.ones(1 << 18, device="cuda")
        for fraction, error in ((2.0, ValueError), (1, TypeError)):
            with pytest.raises(error, match="fraction"):
                cuda.set_per_process_memory_fraction(fraction)


def test_random_numbers_of_the_default_generators() -> None:
    with VirtualGPUs("2x1GiB", available=True):
        generator = cuda.default_generators[1]
        assert generator.device == torch.device("cuda:1")
        assert generator.manual_seed(3) is generator
        expected = torch.rand(3, device="cuda:1").tolist()
        cuda.seed_all()
        assert cuda.initial_seed() == generator.initial_seed() != 3
        generator.manual_seed(3)
        state = generator.get_state()
        assert torch.rand(3, device="cuda:1", generator=generator).tolist() == expected
        assert torch.rand(3, device="cuda:1").tolist() != expected
        own = [torch.Generator("cuda:1").manual_seed(7) for _ in range(2)]
        first, again = (torch.rand(3, device="cuda:1", generator=each).tolist() for each in own)
        assert first == again != expected
        generator.set_state(state)
        assert torch.rand(3, device="cuda:1").tolist() == expected


def test_the_stream_that_is_current() -> None:
    seen = []
    with VirtualGPUs("2x1GiB", available=True):
        default = cuda.current_stream()
        assert default is cuda.default_stream(0) is not cuda.default_stream(1)
        stream = cuda.Stream(1)
        for context in (cuda.stream(stream), stream, cuda.StreamContext(stream)):
            with context:
                assert cuda.current_stream() is stream
                assert cuda.current_stream(0) is default
                assert cuda.current_device() == 1
                thread = threading.Thread(target=lambda: seen.append(cuda.current_stream(1)))
                thread.start()
                thread.join()
            assert cuda.current_stream() is default
            assert (cuda.current_device(), cuda.current_stream(1)) == (0, cuda.default_stream(1))
        assert set(seen) == {cuda.default_stream(1)}


def test_ranges_and_profiles() -> None:
    with VirtualGPUs("1x1GiB", available=True):
        assert [cuda.nvtx.range_push("a"), cuda.nvtx.range_push("b")] == [0, 1]
        assert [cuda.nvtx.range_pop(), cuda.nvtx.range_pop()] == [1, 0]
        cuda.nvtx.range_end(cuda.nvtx.range_start("c"))
        with cuda.nvtx.range("of {}", "work"), cuda.profiler.profile():
            cuda.nvtx.mark("here")


def test_types_from_before_there_were_devices() -> None:
    with VirtualGPUs("2x1GiB", available=True):
        cuda.set_device(1)
        x = cuda.FloatTensor([1, 2])
        assert (str(x.device), x.dtype, x.tolist()) == ("cuda:1", torch.float32, [1, 2])
        assert cuda.LongTensor(2, 3).shape == (2, 3)
        assert cuda.HalfTensor().numel() == 0
        assert isinstance(x, cuda.FloatTensor)
        assert not isinstance(x, cuda.HalfTensor)
        assert not isinstance(torch.ones(1), cuda.FloatTensor)
        moved = torch.ones(2, dtype=torch.int64).type("torch.cuda.FloatTensor")
        assert (moved.type(), str(moved.device)) == ("torch.cuda.FloatTensor", "cuda:1")
        assert moved.to("cuda:0").type(cuda.HalfTensor).device == torch.device("cuda:0")
        assert x.type("torch.FloatTensor").device == torch.device("cpu")
        assert x.type(torch.int32).tolist() == [1, 2]


@pytest.mark.parametrize("device_ids", [None, [0], [1, 0]])
def test_data_parallel(device_ids: list[int] | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.GELU()).eval()
    x = torch.randn(6, 4)
    with torch.no_grad(), VirtualGPUs("2x1GiB", available=True) as gpus:
        first = (device_ids or [0])[0]
        alone = copy.deepcopy(model)
        parallel = nn.DataParallel(model.to(f"cuda:{first}"), device_ids)
        expected = alone(x)
        found = parallel(x.to(f"cuda:{first}"))
        assert found.device == torch.device("cuda", first)
        torch.testing.assert_close(found.cpu(), expected)
        weights = {copy.target for copy in gpus.copies if copy.source == f"cuda:{first}"}
        assert weights == ({"cpu"} if device_ids == [0] else {f"cuda:{1 - first}", "cpu"})


def test_collectives_of_data_parallel() -> None:
    with VirtualGPUs("3x1GiB", available=True):
        x = torch.arange(6.0, device="cuda:0")
        parts = comm.scatter(x, [0, 1, 2])
        assert [(str(part.device), part.tolist()) for part in parts] == [
            ("cuda:0", [0, 1]), ("cuda:1", [2, 3]), ("cuda:2", [4, 5]),
        ]  # fmt: skip
        assert [len(part) for part in comm.scatter(x, [1, 2], [1, 5])] == [1, 5]
        assert comm.gather(parts, destination=1).device == torch.device("cuda:1")
        assert comm.gather(parts, destination="cpu").tolist() == x.tolist()
        copies = comm.broadcast(x, [0, 2])
        assert [str(each.device) for each in copies] == ["cuda:0", "cuda:2"]
        assert comm.reduce_add(copies, 2).tolist() == (2 * x).tolist()
        out = [torch.empty(2, device="cuda:1"), torch.empty(4, device="cuda:2")]
        assert [part.tolist() for part in comm.scatter(x, out=out)] == [[0, 1], [2, 3, 4, 5]]
        assert comm.gather(out, out=torch.empty(6, device="cuda:0")).tolist() == x.tolist()
        assert [t.tolist() for t in comm.broadcast(x[:2], out=[torch.empty(2, device="cuda:2")])]
        with pytest.raises(RuntimeError, match="must be on devices"):
            comm.broadcast_coalesced([x.cpu()], [0, 1])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_strided_and_jagged_ones_are_refused() -> None:
    rows = [torch.arange(6.0).view(2, 3), torch.ones(4, 3)]
    nested = torch.nested
    before = nested.nested_tensor
    with VirtualGPUs("2x1GiB"):
        on_gpu = [row.cuda() for row in rows]
        offsets = torch.tensor([0, 2, 6], device="cuda")
        for make in (
            lambda: nested.nested_tensor(rows, device="cuda", layout=torch.jagged),
            lambda: nested.nested_tensor(on_gpu, layout=torch.jagged),
            lambda: nested.as_nested_tensor(on_gpu, layout=torch.jagged),
            lambda: nested.nested_tensor_from_jagged(torch.cat(on_gpu), offsets),
            lambda: nested.nested_tensor(rows, layout=torch.jagged).to("cuda"),
            lambda: nested.nested_tensor(rows, layout=torch.jagged).cuda(1),
        ):
            with pytest.raises(NotImplementedError, match=r"^Virtual GPUs have no .*torch.jagged"):
                make()
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        assert padded.cuda().device.index == 0
        for made in (
            nested.nested_tensor(rows, device="cuda"),
            nested.nested_tensor([row.tolist() for row in rows], device="cuda"),
            nested.nested_tensor(on_gpu),
            nested.as_nested_tensor(on_gpu),
            nested.nested_tensor(rows).to("cuda"),
        ):
            assert made.device == torch.device("cuda", 0)
            assert torch.equal(nested.to_padded_tensor(made, 0).cpu(), padded)
        assert nested.nested_tensor(rows).is_nested  # on the CPU
    assert nested.nested_tensor is before


def test_a_lazy_module_is_made_on_the_cpu_and_moved() -> None:
    with VirtualGPUs("2x1GiB"):
        for make in (nn.LazyLinear, nn.LazyConv1d):
            with pytest.raises(NotImplementedError, match=r'move it with .to\("cuda"\)'):
                make(3, **({} if make is nn.LazyLinear else {"kernel_size": 1}), device="cuda")
        with torch.device("cuda"), pytest.raises(NotImplementedError, match="lazy module"):
            nn.LazyBatchNorm1d()
        moved = nn.LazyLinear(3).to("cuda")
        assert moved(torch.ones(1, 2, device="cuda")).device.index == 0
    assert nn.LazyLinear(3)(torch.ones(1, 2)).shape == (1, 3)


@pytest.mark.parametrize("kind", ["Stream", "Event"])
def test_streams_and_events_have_every_public_name(kind: str) -> None:
    real = {*dir(getattr(torch.cuda, kind)), *dir(getattr(torch, kind))}
    with VirtualGPUs("2x1GiB"):
        made = getattr(torch.cuda, kind)()
        missing = {name for name in real if not name.startswith("_") and not hasattr(made, name)}
        assert not missing
        if kind == "Event":
            made.record(torch.cuda.Stream(1))
            for call in (made.ipc_handle, lambda: type(made).from_ipc_handle(0, b"")):
                with pytest.raises(NotImplementedError, match="end with their process"):
                    call()
        assert made.device.index == (kind == "Event")


def test_an_optimizer_takes_a_step_with_gradients_of_its_own() -> None:
    with VirtualGPUs("1GiB", available=True):
        assert torch.get_device_module() is torch.cuda
        layer = nn.Linear(2, 2).cuda()
        before = layer.bias.tolist()
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(layer.parameters(), lr=1.0).step()
        assert layer.bias.is_cuda
        assert all(new < old for new, old in zip(layer.bias.tolist(), before, strict=True))
    assert torch.get_device_module() is not torch.cuda or torch.cuda.is_available()


def test_a_profile_is_one_of_the_cpu(capfd: pytest.CaptureFixture[str]) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with VirtualGPUs("1GiB", available=True):
        x = torch.ones(2, device="cuda")
        with (
            pytest.warns(UserWarning, match="CUDA is not available"),
            torch.profiler.profile(activities=activities) as profile,
        ):
            x + 1
    assert any("add" in event.key for event in profile.key_averages())
    assert "Failed to record CUDA event" not in capfd.readouterr().err
