"""Entering, leaving and misusing the ``with`` block; what a virtual tensor is like."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from glm4v_magic.core.errors import GPUDescriptionError, OptionError, PlacementError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.virtual_gpus import VirtualGPUs, VirtualTensor
from glm4v_magic.virtual_gpus.guard import install_noop_cuda_guard

GIB = 2**30


def global_state() -> dict[str, Any]:
    state = {f"cuda.{name}": getattr(torch.cuda, name) for name in dir(torch.cuda)}
    return {
        **state,
        "compile": torch.compile,
        "Module.__call__": nn.Module.__call__,
        "Thread.start": threading.Thread.start,
        "Thread.run": threading.Thread.run,
        "swap": torch.__future__.get_swap_module_params_on_conversion(),
        "lift": torch._C._only_lift_cpu_tensors(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "function modes": torch._C._len_torch_function_stack(),
    }


class AccidentError(Exception):
    pass


@pytest.mark.parametrize("ends", ["well", "with an exception", "in the middle of a forward"])
def test_leaving_restores_everything(ends: str) -> None:
    def fail(*_: Any) -> None:
        raise AccidentError

    before = global_state()
    try:
        with VirtualGPUs("2x1GiB"):
            assert global_state() != before
            layer = nn.Linear(2, 2).to("cuda:1")
            if ends == "with an exception":
                fail()
            elif ends == "in the middle of a forward":
                layer.register_forward_hook(fail)
            layer(torch.ones(1, 2, device="cuda:1"))
    except AccidentError:
        assert ends != "well"
    assert global_state() == before
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError), match=r"CUDA|NVIDIA"):
            torch.ones(1, device="cuda:0")
    with VirtualGPUs("2x1GiB"):
        assert torch.ones(1, device="cuda:1").is_cuda


def test_leaving_with_a_thread_alive() -> None:
    go, entered = threading.Event(), threading.Event()
    seen: list[Any] = []

    def work() -> None:
        tensor = torch.ones(2, device="cuda:1")
        entered.set()
        go.wait(60)
        seen.append(torch.ones(2) + 1)
        try:
            tensor + 1
        except PlacementError as error:
            seen.append(str(error))

    before = global_state()
    with VirtualGPUs("2x1GiB"):
        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(60)
    assert global_state() == before
    go.set()
    thread.join(60)
    assert seen[0].tolist() == [2.0, 2.0]
    assert "used after its `with VirtualGPUs(...)` block" in seen[1]


def gpus_for_a_while() -> Iterator[torch.Tensor]:
    with VirtualGPUs("1x1GiB", available=True):
        yield torch.ones(2, device="cuda:0")


def test_a_block_that_another_thread_leaves() -> None:
    """As when a generator that holds it is closed, or collected, elsewhere."""
    before = global_state()
    block = gpus_for_a_while()
    left = threading.Event()
    seen: list[Any] = []

    def work() -> None:
        seen.append(next(block).tolist())
        assert left.wait(60)
        # what is left of the block in this thread changes nothing
        seen.append((torch.ones(2).device.type, torch.tensor([1.0]).tolist()))
        with VirtualGPUs("2x1GiB"):
            seen.append(torch.ones(2, device="cuda:1").tolist())
        seen.append(global_state() == before)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while not seen and not working.done():
            time.sleep(0.01)
        try:
            block.close()
            assert global_state() == before
            with VirtualGPUs("1x1GiB"):
                assert torch.ones(2, device="cuda:0").tolist() == [1, 1]
            assert global_state() == before
        finally:
            left.set()
        working.result(60)
    assert seen == [[1, 1], ("cpu", [1]), [1, 1], True]


def test_a_block_whose_thread_is_gone() -> None:
    before = global_state()
    block = gpus_for_a_while()
    thread = threading.Thread(target=next, args=(block,))
    thread.start()
    thread.join()
    del block
    gc.collect()
    assert global_state() == before
    with VirtualGPUs("1x1GiB"):
        assert torch.ones(2, device="cuda:0").tolist() == [1, 1]


def test_a_pause_does_not_wait_for_what_its_thread_has_not_ended() -> None:
    before = global_state()
    with VirtualGPUs("1x1GiB") as gpus:
        inner = VirtualGPUs("2x1GiB")
        said = "End them (close()) before that block ends."
        with pytest.raises(PlacementError, match=re.escape(said)), gpus.paused():
            inner.__enter__()
        inner.close()
    assert global_state() == before


def test_a_pause_waits_for_the_virtual_gpus_of_another_thread() -> None:
    def work() -> None:
        with VirtualGPUs("2x1GiB"):
            begun.set()
            time.sleep(0.2)
            done.append(torch.ones(2, device="cuda:1").tolist())

    begun, done = threading.Event(), []
    with ThreadPoolExecutor(1) as pool, VirtualGPUs("1x1GiB") as gpus:
        x = torch.ones(2, device="cuda:0")
        with gpus.paused():
            working = pool.submit(work)
            assert begun.wait(60)
        working.result(60)
        assert (done, (x + x).tolist()) == ([[1, 1]], [2, 2])


def test_threads_of_every_kind_see_the_gpus() -> None:
    class Worker(threading.Thread):
        def run(self) -> None:
            self.device = torch.ones(1, device="cuda:1").device

    def work(_: int) -> torch.device:
        return torch.ones(1, device="cuda:1").device

    with VirtualGPUs("2x1GiB"):
        with ThreadPoolExecutor(2) as pool:
            assert set(pool.map(work, range(4))) == {torch.device("cuda:1")}
        worker = Worker()
        worker.start()
        worker.join(60)
        assert worker.device == torch.device("cuda:1")
        assert "run" not in vars(worker)


def test_nested_use_is_an_error() -> None:
    with VirtualGPUs("2x1GiB") as outer:
        with pytest.raises(PlacementError, match="in use already, and only one"):
            VirtualGPUs("2x1GiB").__enter__()
        assert torch.ones(1, device="cuda:1").is_cuda
    with pytest.raises(PlacementError, match="Make new ones"):
        outer.__enter__()
    with VirtualGPUs("2x1GiB"):
        pass


def test_tensors_end_with_their_block() -> None:
    with VirtualGPUs("2x1GiB"):
        tensor = torch.ones(2, device="cuda:1")
        layer = nn.Linear(2, 2).to("cuda:0")
    assert "VirtualTensor(tensor([1., 1.]), device='cuda:1')" in repr(tensor)
    uses: list[Callable[[], object]] = [
        tensor.cpu, tensor.tolist, lambda: tensor + 1, lambda: layer(torch.ones(1, 2)),
        lambda: pickle.dumps(tensor),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(PlacementError, match="block has ended"):
            use()
    with VirtualGPUs("2x1GiB"), pytest.raises(PlacementError, match="block has ended"):
        tensor + 1


def test_a_build_that_cannot_have_virtual_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if torch.version.cuda is not None and torch.cuda.device_count() == 0:
        pytest.skip("a CUDA build without a GPU has a guard of its own")
    before = global_state()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))  # no libraries there
    with pytest.raises(PlacementError, match="do not work with this build of PyTorch"):
        VirtualGPUs("2x1GiB").__enter__()
    assert global_state() == before
    monkeypatch.undo()
    with VirtualGPUs("2x1GiB"):
        pass


@pytest.mark.parametrize("way", ["libc10.so", "libc10.dylib", "a CUDA build without a GPU"])
def test_a_build_of_pytorch_that_is_named_has_virtual_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    """Builds are stood in for by the library that each brings, or by its guard."""
    if torch.version.cuda is not None:
        pytest.skip("this build has a guard of its own")
    here = Path(torch.__file__).parent / "lib"
    (library,) = (here / name for name in ("libc10.so", "libc10.dylib") if (here / name).exists())
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))  # as on Windows
    said = "Use PyTorch for Linux or macOS, or a CUDA build on a computer without a GPU."
    with pytest.raises(PlacementError, match=re.escape(said)):
        VirtualGPUs("2x1GiB").__enter__()
    if way.startswith("libc10"):
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / way).symlink_to(library)
    else:
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        guard = SimpleNamespace(restore=None)

        def bring() -> None:
            monkeypatch.setattr(torch, "__file__", str(here.parent / "__init__.py"))
            guard.restore = install_noop_cuda_guard()

        monkeypatch.setattr(torch._C, "_ensureCUDADeviceGuardSet", bring, raising=False)
    with VirtualGPUs("2x1GiB"):
        assert (torch.ones(2, device="cuda:1") * 2).sum() == 4


@pytest.mark.parametrize("gpus", ["cpu", [], [0], [-1], [True], ["a"], 4, None, [GIB] * 129])
def test_what_describes_no_gpus(gpus: Any) -> None:
    with pytest.raises(GPUDescriptionError) as caught:
        VirtualGPUs(gpus)
    assert "\n" not in str(caught.value)


def test_unknown_options() -> None:
    with pytest.raises(OptionError, match=r"values='fake' is unknown. It is 'real' or 'none'"):
        VirtualGPUs("1x1GiB", values="fake")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="on_mismatch='warn' is unknown"):
        VirtualGPUs("1x1GiB", on_mismatch="warn")  # type: ignore[arg-type]


def test_gpus_of_every_description() -> None:
    assert VirtualGPUs("2x1GiB").max_memory == {0: GIB, 1: GIB}
    assert VirtualGPUs([GIB, 2 * GIB]).max_memory == {0: GIB, 1: 2 * GIB}
    found = [GPU(3, "H200", 8 * GIB, free_bytes=5 * GIB)]
    assert VirtualGPUs(found).max_memory == {0: 5 * GIB}
    assert VirtualGPUs("2x1GiB").devices == (torch.device("cuda:0"), torch.device("cuda:1"))


def test_every_way_to_name_a_gpu() -> None:
    with VirtualGPUs("2x1GiB"):
        one = torch.device("cuda:1")
        for tensor in (
            torch.ones(2, device="cuda:1"), torch.ones(2, device=1), torch.ones(2).to("cuda:1"),
            torch.ones(2).to(1), torch.ones(2).to(device=1), torch.ones(2).cuda(1),
            torch.ones(2).cuda("cuda:1"), torch.tensor([1.0, 1.0], device="cuda:1"),
            torch.as_tensor([1.0, 1.0], device=1), torch.ones(2, device=torch.device(1)),
            torch.full_like(torch.ones(2), 1.0, device="cuda:1"), torch.ones(2).to(one.type + ":1"),
        ):  # fmt: skip
            assert isinstance(tensor, VirtualTensor)
            assert tensor.device == one
            assert tensor.is_cuda
            assert tensor.tolist() == [1.0, 1.0]
        with torch.device("cuda:1"):
            assert torch.zeros(1).device == one
        with torch.cuda.device(1):
            assert torch.ones(1, device="cuda").device == torch.ones(1).cuda().device == one
        assert torch.ones(1, device="cuda").device == torch.device("cuda:0")
        with pytest.raises(PlacementError, match="no virtual GPU 2"):
            torch.ones(1, device="cuda:2")


def test_the_device_that_is_chosen() -> None:
    set_device: Any = torch.cuda.set_device
    with VirtualGPUs("2x1GiB"):
        assert torch.cuda.set_device("cuda:1") is None  # type: ignore[func-returns-value]
        assert torch.cuda.current_device() == 1
        with pytest.raises(RuntimeError, match="invalid device ordinal: there is no cuda:2"):
            torch.cuda.set_device(2)
        assert torch.cuda.current_device() == 1
    assert torch.cuda.set_device is set_device


def test_what_torch_cuda_says() -> None:
    with VirtualGPUs("A100-2GiB+1GiB") as gpus:
        assert torch.cuda.device_count() == 2
        assert torch.cuda.get_device_name(0) == "A100"
        tensor = torch.ones(256, device="cuda:1")
        assert torch.cuda.memory_allocated(1) == gpus.live_bytes[1] == 1024
        assert torch.cuda.mem_get_info("cuda:0") == (2 * GIB, 2 * GIB)
        assert torch.cuda.mem_get_info(1)[0] == GIB - 1024
        assert torch.cuda.get_device_properties(1).total_memory == GIB
        del tensor
        assert torch.cuda.memory_allocated(1) == 0
        assert torch.cuda.max_memory_allocated(1) == 1024
        torch.cuda.synchronize()
        with pytest.raises(AssertionError, match="Invalid device id"):
            torch.cuda.memory_allocated(5)


def test_a_virtual_tensor_is_like_a_cuda_tensor() -> None:
    with VirtualGPUs("2x1GiB"):
        tensor = torch.arange(6.0, device="cuda:1").reshape(2, 3)
        with pytest.raises(TypeError, match="can't convert cuda:1 device type tensor to numpy"):
            tensor.numpy()
        assert tensor.cpu().numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
        assert not isinstance(tensor.cpu(), VirtualTensor)
        assert tensor[1, 2].item() == 5
        assert torch.tensor([tensor[1, 2], 1.0]).tolist() == [5, 1]
        assert (tensor.T.shape, tensor.T.stride()) == ((3, 2), (1, 3))
        tensor.T[0] = 9
        assert tensor.tolist() == [[9, 1, 2], [9, 4, 5]]
        copied = copy.deepcopy(tensor)
        copied.zero_()
        assert tensor.sum().item() == 30
        again = pickle.loads(pickle.dumps(tensor))
        assert (again.device, again.tolist()) == (tensor.device, tensor.tolist())
        assert f"{tensor[1, 1]:.2f}" == "4.00"


def test_parameters_stay_parameters() -> None:
    with VirtualGPUs("2x1GiB"):
        layer = nn.Linear(2, 2).to("cuda:1")
        clone = copy.deepcopy(layer)
        for module in (layer, clone):
            assert len(list(module.parameters())) == 2
            assert all(p.device.index == 1 and p.requires_grad for p in module.parameters())
        tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        tied[1].weight = tied[0].weight
        tied.to("cuda:0")
        assert tied[1].weight is tied[0].weight
        assert tied[1].weight.data_ptr() == tied[0].weight.data_ptr()
        assert tied[1].weight.data_ptr() != tied[0].bias.data_ptr()


def test_an_error_inside_an_operation_says_where() -> None:
    with VirtualGPUs("2x1GiB"), pytest.raises(RuntimeError, match=r"shape|size") as caught:
        nn.Sequential(nn.Linear(2, 2)).to("cuda:1")(torch.ones(1, 3, device="cuda:1"))
    assert any("in module 0" in note and __file__ in note for note in caught.value.__notes__)


def test_compile_runs_eagerly() -> None:
    with VirtualGPUs("1x1GiB"):

        @torch.compile(fullgraph=True)
        def double(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        assert double(torch.ones(1, device="cuda:0")).item() == 2


def test_integer_histogram_as_cuda_counts_it() -> None:
    with VirtualGPUs("1x1GiB"):
        numbers = torch.tensor([0, 2, 2], dtype=torch.int32, device="cuda:0")
        counts = torch.histc(numbers, bins=3, min=0, max=2)
        assert (counts.tolist(), counts.dtype, counts.device.index) == ([1, 0, 2], torch.int32, 0)


def test_this_room_imports_only_the_ground_floor() -> None:
    code = (
        "import sys\nfrom glm4v_magic.virtual_gpus import VirtualGPUs\n"
        "rooms = {n for n in sys.modules if n.startswith('glm4v_magic.')}\n"
        "print(*sorted(n for n in rooms if not n.startswith('glm4v_magic.virtual_gpus')))\n"
        "print(*sorted({'transformers', 'accelerate', 'IPython'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == [
        "glm4v_magic.core glm4v_magic.core.errors glm4v_magic.core.gpu_models "
        "glm4v_magic.core.gpu_spec glm4v_magic.core.overhead glm4v_magic.core.remarks "
        "glm4v_magic.core.wording",
        "",
    ]


def test_nothing_else_of_the_package_is_imported():
    script = (
        "import sys; from glm4v_magic.virtual_gpus import VirtualGPUs; "
        "print(*sorted(name for name in sys.modules if name.startswith('glm4v_magic.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    rooms = {name for name in done.stdout.split() if ".virtual_gpus" not in name}
    plain = ("errors", "gpu_models", "gpu_spec", "overhead", "remarks", "wording")
    assert rooms == {"glm4v_magic.core", *(f"glm4v_magic.core.{name}" for name in plain)}


def test_the_peak_begins_anew_when_a_program_says_so() -> None:
    with VirtualGPUs("2x1GiB") as gpus:
        kept = torch.ones(256, device="cuda:1")
        torch.ones(1024, device="cuda:1")
        assert torch.cuda.max_memory_allocated(1) == kept.nbytes + 4096
        torch.cuda.reset_peak_memory_stats(1)
        assert torch.cuda.max_memory_allocated(1) == kept.nbytes
        torch.ones(512, device="cuda:1")
        assert torch.cuda.max_memory_allocated(1) == kept.nbytes + 2048
        assert max(peak.peak_bytes for peak in gpus.peaks) == kept.nbytes + 4096


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(1, device="cuda"), lambda: torch.zeros(1).to("cuda:0")]
)
def test_after_a_block_torch_says_of_cuda_what_it_said_before(make):
    def said():
        with pytest.raises((AssertionError, RuntimeError)) as caught:
            make()
        return type(caught.value), str(caught.value)

    before = said()
    assert "with CUDA enabled" in before[1]
    for _ in range(2):
        with VirtualGPUs("1x1GiB"):
            assert make().device.type == "cuda"
        assert said() == before
    with pytest.raises(IndexError), VirtualGPUs("1x1GiB"):
        make()[5]
    assert said() == before
