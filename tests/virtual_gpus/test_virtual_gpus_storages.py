"""Storages on a virtual GPU: what of a tensor's memory is where, and who may share it with whom."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing, nn
from torch.multiprocessing.reductions import reduce_storage

from glm4v_magic.virtual_gpus import MixedDeviceError, VirtualGPUs
from glm4v_magic.virtual_gpus.rules import RULES
from glm4v_magic.virtual_gpus.storages import device_of_memory

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")

Take = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# How a tensor takes the memory of another one; PyTorch's own checks are in C++.
TAKES: dict[str, Take] = {
    "a tensor": lambda tensor, other: tensor.set_(other),
    "a part of a tensor": lambda tensor, other: tensor.set_(other, 1, (2,), (1,)),
    "named": lambda tensor, other: tensor.set_(
        source=other, storage_offset=1, size=(2,), stride=(1,)
    ),
    "a storage": lambda tensor, other: tensor.set_(other.untyped_storage()),
    "a typed storage": lambda tensor, other: tensor.set_(other.storage()),
    "a part of a storage": lambda tensor, other: tensor.set_(
        other.untyped_storage(), 1, (2,), (1,)
    ),
    "a part of a typed storage": lambda tensor, other: tensor.set_(other.storage(), 1, (2,), (1,)),
    "new": lambda tensor, other: tensor.new(other.storage()),
}
OLD: dict[str, Take] = {
    "an old type": lambda tensor, other: (
        torch.cuda.FloatTensor if tensor.is_cuda else torch.FloatTensor
    )(other.storage())
}


def numbers(device: str) -> torch.Tensor:
    return torch.arange(4.0, device=device)


@pytest.mark.parametrize("way", [*TAKES, *OLD])
@pytest.mark.parametrize("inference", [False, True])
def test_memory_of_the_same_device_is_shared(way: str, inference: bool) -> None:
    with VirtualGPUs("2x1GiB") as gpus, torch.inference_mode(inference):
        other = numbers("cuda:0")
        taken = (TAKES | OLD)[way](torch.empty(0, device="cuda:0"), other)
        assert taken.device == torch.device("cuda:0")
        assert taken.tolist() == other.tolist()[taken.storage_offset() :][: len(taken)]
        assert taken.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        taken[0] = 7
        assert other[taken.storage_offset()].item() == 7
        assert gpus.live_bytes == (16, 0)
        if len(taken) == 2:
            TAKES["a storage"](taken, other)
            assert (taken.set_(other, 2, (2,), (1,)).storage_offset(), len(taken)) == (2, 2)
            assert taken.set_(other, 1, (2,), (1,)).storage_offset() == 1


@pytest.mark.parametrize("way", [*TAKES, *OLD])
@pytest.mark.parametrize(
    ("here", "there"), [("cuda:0", "cpu"), ("cuda:0", "cuda:1"), ("cpu", "cuda:1")]
)
def test_memory_of_another_device_is_refused(way: str, here: str, there: str) -> None:
    words = f'"{here}" to a storage on different device "{there}"'
    with VirtualGPUs("2x1GiB") as gpus:
        tensor = torch.ones(3, device=here)
        with pytest.raises(MixedDeviceError, match=words):
            (TAKES | OLD)[way](tensor, numbers(there))
        assert tensor.tolist() == [1, 1, 1]
        assert gpus.problems[0].devices == (here, there)


def test_a_part_of_a_gpus_tensor_is_refused_to_the_cpu_where_problems_are_collected() -> None:
    with VirtualGPUs("1GiB", on_mismatch="collect"), pytest.raises(MixedDeviceError):
        TAKES["a part of a tensor"](torch.ones(3), numbers("cuda"))


@pytest.mark.parametrize(
    "way", [way for way in TAKES if way not in ("a part of a tensor", "named")]
)
@pytest.mark.parametrize(("here", "there"), [("cuda:0", "cpu"), ("cpu", "cuda:1")])
def test_memory_of_another_device_is_moved_where_problems_are_collected(
    way: str, here: str, there: str
) -> None:
    with VirtualGPUs("2x1GiB", on_mismatch="collect") as gpus:
        taken = TAKES[way](torch.ones(3, device=here), numbers(there))
        assert (taken.device.type, len(gpus.problems)) == (torch.device(here).type, 1)
        assert taken.tolist() == [0, 1, 2, 3][taken.storage_offset() :][: len(taken)]


def test_the_words_are_those_of_pytorch() -> None:
    with pytest.raises(RuntimeError, match="different device") as refused:
        torch.empty(0, device="meta").set_(torch.ones(2))
    assert str(refused.value) == RULES["set"].message.format(expected="meta", found="cpu")


def test_nothing_is_shared_between_devices() -> None:
    with VirtualGPUs("2x1GiB"):
        assert not numbers("cuda:0").is_set_to(torch.ones(2))
        x = numbers("cuda:0")
        assert x.is_set_to(x[:])


@pytest.mark.parametrize("home", ["cpu", "cuda:0"])
def test_data_of_a_meta_tensor_is_refused(home: str) -> None:
    with VirtualGPUs("1GiB"):
        x, meta = numbers(home), torch.empty(4, device="meta")
        for tensor, value in ((x, meta), (meta, x)):
            with pytest.raises(RuntimeError, match="incompatible tensor type"):
                tensor.data = value
        assert x.tolist() == [0, 1, 2, 3]


def test_a_storage_says_where_it_is() -> None:
    original = torch.UntypedStorage.device
    with VirtualGPUs("2x1GiB"):
        typed = numbers("cuda:1").storage()
        untyped = typed.untyped()
        for storage in (typed, untyped):
            assert storage.device == torch.device("cuda", 1)
            assert storage.is_cuda
            assert storage.is_shared()
            assert storage.share_memory_().device.index == 1
            assert not storage.is_pinned()
            assert storage.get_device() == 1
            assert "device=cuda:1" in repr(storage)
            with pytest.raises(TypeError, match="only CPU memory can be pinned"):
                storage.pin_memory()
        assert typed.type() == "torch.cuda.FloatStorage"
        assert isinstance(typed, torch.cuda.FloatStorage)
        assert not isinstance(typed, torch.FloatStorage)
        on_cpu = torch.ones(2).storage()
        assert (on_cpu.is_cuda, on_cpu.is_shared(), on_cpu.type()) == (
            False, False, "torch.FloatStorage"
        )  # fmt: skip
    assert torch.UntypedStorage.device is original
    assert typed.device.type == "cpu"  # its GPU is gone


MADE: dict[str, tuple[Callable[[], Any], str]] = {
    "bytes": (lambda: torch.UntypedStorage(16, device="cuda"), "cuda:0"),
    "a list": (lambda: torch.UntypedStorage([1] * 16, device=torch.device("cuda", 1)), "cuda:1"),
    "typed": (lambda: torch.TypedStorage(4, dtype=torch.float32, device="cuda:1"), "cuda:1"),
    "an old type": (lambda: torch.cuda.FloatStorage(4), "cuda:0"),
    "numbers": (lambda: torch.cuda.FloatStorage([1.0, 2.0, 3.0, 4.0]), "cuda:0"),
    "cuda()": (lambda: torch.UntypedStorage(16).cuda(), "cuda:0"),
    "cuda(1)": (lambda: torch.FloatStorage(4).cuda(1), "cuda:1"),
    "to()": (lambda: torch.UntypedStorage(16).to(device="cuda:1"), "cuda:1"),
    "clone": (lambda: numbers("cuda:1").untyped_storage().clone(), "cuda:1"),
    "deepcopy": (lambda: copy.deepcopy(numbers("cuda:1").storage()), "cuda:1"),
    "pickle": (lambda: pickle.loads(pickle.dumps(numbers("cuda:1").storage())), "cuda:1"),
    "a part": (lambda: torch.UntypedStorage(20, device="cuda")[4:], "cuda:0"),
    "another dtype": (lambda: numbers("cuda:1").storage().int(), "cuda:1"),
}


@pytest.mark.parametrize("way", MADE)
def test_a_storage_without_a_tensor(way: str) -> None:
    make, device = MADE[way]
    with VirtualGPUs("2x1GiB") as gpus:
        storage = make()
        assert str(storage.device) == device
        assert storage.nbytes() == 16
        assert gpus.live_bytes[storage.get_device()] >= 16
        assert torch.empty(0, device=device, dtype=torch.uint8).set_(storage.untyped()).is_cuda
        assert storage.cpu().device.type == "cpu"
        del storage
        assert gpus.live_bytes == (0, 0)


def test_storages_of_the_cpu_stay_there() -> None:
    with VirtualGPUs("1GiB"):
        assert torch.UntypedStorage(4, device="cpu").device.type == "cpu"
        assert torch.UntypedStorage(4).clone().device.type == "cpu"
        assert torch.UntypedStorage(4, device="meta").device.type == "meta"
        torch.set_default_device("cuda")
        try:
            assert torch.UntypedStorage(4).device.type == "cpu"  # as with CUDA
        finally:
            torch.set_default_device(None)
    with pytest.raises((RuntimeError, AssertionError)):  # PyTorch's own words again
        torch.UntypedStorage(4, device="cuda")


def test_values_are_read_and_written_through_storages() -> None:
    with VirtualGPUs("2x1GiB") as gpus:
        x, y = numbers("cuda:0"), numbers("cuda:1")
        x.storage()[1] = 9
        assert (x.tolist(), x.storage().tolist()) == ([0, 9, 2, 3],) * 2
        y.storage().copy_(x.storage())
        assert y.tolist() == [0, 9, 2, 3]
        x.untyped_storage().fill_(0)
        assert (x.tolist(), x.untyped_storage()[3], y[1].item()) == ([0] * 4, 0, 9)
        assert y.untyped_storage().cpu().device.type == "cpu"
        found = {(each.source, each.target): each.total_bytes for each in gpus.copies}
        assert found["cuda:0", "cuda:1"] == found["cuda:1", "cpu"] - 16 == 16  # and y.tolist()


def test_a_storage_that_is_resized_takes_as_much_memory() -> None:
    with VirtualGPUs("1GiB") as gpus:
        x = numbers("cuda")
        storage = x.untyped_storage()
        for size in (1 << 20, 0, 16):
            storage.resize_(size)
            assert (gpus.live_bytes, storage.nbytes()) == ((size,), size)
        assert torch.cuda.memory_stats()["allocated_bytes.all.freed"] >= (1 << 20)
        with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 4\.00 GiB"):
            storage.resize_((1 << 32) + 16)
        assert (gpus.live_bytes, storage.nbytes()) == ((16,), 16)
        of_numpy = torch.from_numpy(np.ones(4)).untyped_storage()
        with pytest.raises(RuntimeError, match="not resizable"):
            of_numpy.resize_(99)


def test_tensors_of_a_storage_share_it() -> None:
    with VirtualGPUs("2x1GiB"):
        x = numbers("cuda:1")
        for function in (torch.tensor, torch.as_tensor, torch.asarray):
            found = function(x.storage())
            found[0] += 1
            assert (found.device, found.dtype) == (x.device, x.dtype)
        assert x[0].item() == 3
        assert torch.tensor(x.storage(), device="cpu").tolist() == [3, 1, 2, 3]


def test_a_deep_copy_shares_what_was_shared() -> None:
    with VirtualGPUs("2x1GiB") as gpus:
        x = numbers("cuda:1")
        copied = copy.deepcopy({"all": x, "part": x[1:], "again": x})
        copied["all"][1] = 50
        assert copied["all"] is copied["again"]
        assert (copied["part"].tolist(), str(copied["part"].device)) == ([50, 2, 3], "cuda:1")
        assert (x.tolist(), gpus.live_bytes) == ([0, 1, 2, 3], (0, 32))
        conjugated = copy.deepcopy(torch.ones(2, dtype=torch.complex64, device="cuda").conj())
        assert conjugated.tolist() == [1, 1]
        with pytest.raises(RuntimeError, match="graph leaves"):
            copy.deepcopy(x.requires_grad_() * 2)
        layer = copy.deepcopy(nn.Linear(2, 2).cuda())
        assert isinstance(layer.weight, nn.Parameter)
        assert layer.weight.is_cuda


def test_files_of_every_format_name_gpus() -> None:
    with VirtualGPUs("2x1GiB") as gpus:
        x = numbers("cuda:1")
        for is_new in (True, False):
            file = io.BytesIO()
            saved = {"all": x, "part": x[1:], "storage": x.storage()}
            torch.save(saved, file, _use_new_zipfile_serialization=is_new)
            file.seek(0)
            for place, device in ((None, "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")):
                file.seek(0)
                found = torch.load(file, map_location=place, weights_only=False)
                assert {str(each.device) for each in found.values()} == {device}
                found["all"][1] = 50
                assert (found["part"].tolist(), found["storage"][1]) == ([50, 2, 3], 50)
                del found
        assert gpus.live_bytes == (0, 16)
        gpus.reset()
        file.seek(0)
        torch.load(file, map_location="cuda:0", weights_only=False)
        (read,) = gpus.copies
        assert (read.source, read.target, read.total_bytes) == ("cpu", "cuda:0", 16)


def test_no_other_process_is_handed_a_virtual_gpu() -> None:
    with VirtualGPUs("1GiB"):
        x = numbers("cuda")
        with pytest.raises(NotImplementedError, match=r"hand another one the tensor\.cpu\(\)"):
            ForkingPickler.dumps(x)
        with pytest.raises(NotImplementedError, match="end with their process"):
            x.untyped_storage()._share_cuda_()
        with pytest.raises(RuntimeError, match="Cannot pickle CUDA storage"):
            reduce_storage(x.untyped_storage())
        assert pickle.loads(bytes(ForkingPickler.dumps(x.cpu()))).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda numbers: numbers,
        lambda numbers: nn.Parameter(numbers),
        lambda numbers: {"a": [numbers]},
        lambda numbers: nn.Linear(2, 2).cuda(),
    ],
    ids=["tensor", "parameter", "within", "module"],
)
def test_queues_and_pipes_refuse_a_virtual_gpu_where_it_is_put(make: Any) -> None:
    """And not in a thread of the queue, while whoever reads it waits for ever."""
    kinds = (multiprocessing.SimpleQueue, multiprocessing.Queue, multiprocessing.JoinableQueue)
    queues: list[Any] = [each() for each in kinds]
    one, other = multiprocessing.Pipe()
    with VirtualGPUs("2x1GiB", available=True):
        given = make(numbers("cuda:1"))
        for put, get in ((one.send, other.recv), *((each.put, each.get) for each in queues)):
            with pytest.raises(NotImplementedError, match=r"hand another one the tensor\.cpu\(\)"):
                put(given)
            put(numbers("cuda:1").cpu())
            got = get()
            assert (got.tolist(), str(got.device)) == ([0, 1, 2, 3], "cpu")
            assert str(got.to("cuda:1").device) == "cuda:1"


class Holder:
    """Anything with an attribute."""

    def __init__(self, held: Any) -> None:
        self.held = held


WITHIN: dict[str, Callable[[torch.Tensor], Any]] = {
    "buffers alone": lambda _: nn.BatchNorm1d(2, affine=False).cuda(),
    "a module in a list": lambda _: [nn.Linear(2, 2).cuda()],
    "an attribute": Holder,
    "an object in an object": lambda numbers: {1: Holder((Holder(numbers),))},
    "a storage": lambda numbers: numbers.untyped_storage(),
    "a typed storage": lambda numbers: [numbers.storage()],
}


@pytest.mark.parametrize("way", WITHIN)
def test_a_queue_refuses_a_virtual_gpu_wherever_in_an_object(way: str) -> None:
    queue: Any = multiprocessing.Queue()
    with VirtualGPUs("2x1GiB", available=True):
        given = WITHIN[way](numbers("cuda:1"))
        with pytest.raises(NotImplementedError, match=r"hand another one the tensor\.cpu\(\)"):
            queue.put(given)
        queue.put(Holder([numbers("cpu"), nn.Linear(2, 2), np.arange(3), b"bytes"]))
        held = queue.get().held
        assert (held[0].tolist(), held[2].tolist(), held[3]) == ([0, 1, 2, 3], [0, 1, 2], b"bytes")
        queue.put("what follows comes through")
        assert queue.get() == "what follows comes through"


def test_a_pool_says_itself_what_cannot_be_handed_to_it() -> None:
    """A refusal in the thread that fills its queue would end the thread."""
    context = multiprocessing.get_context("spawn")
    with VirtualGPUs("1x1GiB"), ProcessPoolExecutor(1, mp_context=context) as pool:
        for _ in range(2):
            with pytest.raises(NotImplementedError, match="Virtual GPUs end with their process"):
                pool.submit(len, numbers("cuda:0")).result(timeout=60)
        assert pool.submit(len, [1, 2]).result(timeout=60) == 2


def test_storages_without_data() -> None:
    with VirtualGPUs("2x1GiB", values="none") as gpus:
        x = torch.ones(1 << 17, device="cuda:0")
        size = 4 << 17
        assert x.untyped_storage().device.index == 0
        assert torch.empty(0, device="cuda:0").set_(x.untyped_storage()).shape == x.shape
        assert gpus.live_bytes == (size, 0)
        twin = copy.deepcopy(x)
        assert (twin.shape, gpus.live_bytes) == (x.shape, (2 * size, 0))
        assert device_of_memory(twin.untyped_storage()).type == "meta"
        assert device_of_memory(x.untyped_storage().clone()).type == "meta"
        moved = x.untyped_storage().cuda(1)
        assert (moved.nbytes(), gpus.live_bytes) == (size, (2 * size, size))
        # values that are there are dropped, as a tensor's are
        taken = torch.empty(0, device="cuda:1").set_(moved, 0, x.shape)
        del moved
        assert (taken.shape, gpus.live_bytes) == (x.shape, (2 * size, size))
        assert device_of_memory(taken.untyped_storage()).type == "meta"
        with pytest.raises(MixedDeviceError, match="different device"):
            x.set_(torch.ones(2).untyped_storage())
        x.untyped_storage().resize_(0)
        assert gpus.live_bytes == (size, size)


def test_a_file_without_data_is_counted_once() -> None:
    x = torch.ones(1 << 17)
    file = io.BytesIO()
    torch.save({"all": x, "part": x[5:], "other": x.clone()}, file)
    file.seek(0)
    with VirtualGPUs("2x1GiB", values="none") as gpus:
        found = torch.load(file, map_location="cuda:1")
        assert gpus.live_bytes == (0, 2 * (4 << 17))
        assert gpus.peaks[-1].peak_bytes <= 2 * (4 << 17)
        storages = {name: each.untyped_storage() for name, each in found.items()}
        assert storages["all"] is storages["part"] is not storages["other"]
        assert found["part"].storage_offset() == 5
        assert {device_of_memory(each).type for each in storages.values()} == {"meta"}
        del found["all"], storages
        assert gpus.live_bytes == (0, 2 * (4 << 17))
        del found
        assert gpus.live_bytes == (0, 0)
