"""`torch.inference_mode` over weights that were made outside it, as a loaded model's are."""

from __future__ import annotations

import threading

import pytest
import torch

from glm4v_magic.virtual_gpus import MixedDeviceError, VirtualGPUs

VIEWS = {
    "alias": lambda x: x.view_as(x),
    "chunk": lambda x: x.chunk(2, -1)[1],
    "detach": lambda x: x.detach(),
    "expand": lambda x: x.expand(3, 2, -1),
    "index": lambda x: x[0, 1:],
    "narrow": lambda x: x.narrow(2, 1, 2),
    "permute": lambda x: x.permute(2, 0, 1),
    "split": lambda x: x.split(2, dim=-1)[0],
    "transpose": lambda x: x.transpose(1, 2),
    "transpose_": lambda x: x.detach().clone().transpose_(1, 2),
    "unbind": lambda x: x.unbind(1)[1],
    "unsqueeze": lambda x: x.unsqueeze(0),
    "unsqueeze_": lambda x: x.clone().unsqueeze_(0),
    "view": lambda x: x.view(8),
    "view of a view": lambda x: x.view(8)[2:].view(2, 3),
    "view of a result": lambda x: (x + 1).view(8),
    "view_dtype": lambda x: x.view(torch.int32),
}


@pytest.mark.parametrize("values", ["real", "none"])
@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_weights(name, is_trained, values):
    plain = torch.arange(8.0).view(1, 2, 4)
    with VirtualGPUs("2x1GiB", values=values):
        weight = torch.nn.Parameter(plain.to("cuda:1"), requires_grad=is_trained)
        with torch.inference_mode():
            expected, found = VIEWS[name](plain), VIEWS[name](weight)
            assert found.device == torch.device("cuda:1")
            assert (found.shape, found.stride()) == (expected.shape, expected.stride())
            if values == "real":
                assert torch.equal(found.cpu(), expected)


PARTS = {
    "conjugated": (lambda x: torch.fft.hfftn(x, norm="ortho"), torch.float32),
    "negated": (lambda x: torch.ops.glm4v_tests.sums(x), torch.complex64),
}


@pytest.fixture
def operation_of_a_negated_view():
    library = torch.library.Library("glm4v_tests", "FRAGMENT")
    library.define("sums(Tensor x) -> Tensor")
    library.impl("sums", lambda x: x.conj().imag.cumsum(0), "CompositeImplicitAutograd")
    yield
    library._destroy()


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_an_operation_see_lazy_conjugation_and_negation(name, operation_of_a_negated_view):
    work, dtype = PARTS[name]
    numbers = torch.randn(5, 6, 7, dtype=dtype, generator=torch.Generator().manual_seed(3))
    expected = work(numbers)
    with torch.inference_mode(), VirtualGPUs("1x1GiB"):
        assert torch.equal(work(numbers), expected)
        assert torch.equal(work(numbers.to("cuda:0")).cpu(), expected)


def test_what_is_written_through_a_view_is_in_the_weight():
    with VirtualGPUs("1x1GiB"):
        weight = torch.nn.Parameter(torch.zeros(2, 4, device="cuda:0"))
        with torch.inference_mode():
            weight.detach()[1].add_(2)
        assert weight.tolist() == [[0.0] * 4, [2.0] * 4]


MOVES = {
    "cpu": (lambda x: x.cpu(), "cpu"),
    "to": (lambda x: x.to("cuda:0"), "cuda:0"),
    "to and convert": (lambda x: x.to("cuda:0", torch.float64), "cuda:0"),
    "to that of another": (lambda x: x.to(torch.ones(1, device="cuda:0")), "cuda:0"),
    "cuda": (lambda x: x.cuda(0), "cuda:0"),
    "convert": (lambda x: x.double(), "cuda:1"),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name):
    move, device = MOVES[name]
    with VirtualGPUs("2x1GiB") as gpus, torch.inference_mode():
        moved = move(torch.arange(3.0).to("cuda:1"))
        assert moved.device == torch.device(device)
        assert moved.tolist() == [0, 1, 2]
    crossed = [copy.target for copy in gpus.copies if copy.source == "cuda:1" != copy.target]
    assert device == "cuda:1" or device in crossed


def test_mixed_devices_are_refused():
    with VirtualGPUs("2x1GiB"), torch.inference_mode():
        one, other = torch.ones(2, 2, device="cuda:0"), torch.ones(2, 2, device="cuda:1")
        for mix in (torch.matmul, torch.nn.functional.linear, torch.add):
            with pytest.raises(MixedDeviceError, match="found at least two devices"):
                mix(one, other)


def test_an_encoder_says_what_it_says_on_the_cpu():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    inputs = torch.randn(2, 5, 16)
    with torch.inference_mode():
        expected = layer(inputs)
        with VirtualGPUs("1x1GiB"):
            found = layer.to("cuda:0")(inputs.to("cuda:0")).cpu()
    assert found.equal(expected)


BEHIND = {
    "cpu": lambda x, other: x.cpu(),
    "cuda": lambda x, other: x.cuda(1),
    "to a name": lambda x, other: x.to("cuda:0"),
    "to a number": lambda x, other: x.to(0),
    "to the current one": lambda x, other: x.to("cuda"),
    "to by keyword": lambda x, other: x.to(device="cuda:0", dtype=torch.float64),
    "to and convert": lambda x, other: x.to("cuda:0", torch.float64),
    "to a copy": lambda x, other: x.to("cuda:0", non_blocking=True, copy=True),
    "to that of another": lambda x, other: x.to(other),
    "type of another": lambda x, other: x.type_as(other),
    "type": lambda x, other: x.type(torch.cuda.DoubleTensor),
    "convert": lambda x, other: x.double(),
    "copied into another": lambda x, other: other.clone().copy_(x),
    "parameter": lambda x, other: torch.nn.Parameter(x, requires_grad=False).to("cuda:0"),
    "buffer": lambda x, other: torch.nn.BatchNorm1d(3, affine=False).to(x).to("cuda:0").running_var,
    "view": lambda x, other: x.view(3, 1).T[0].to("cuda:0"),
    "result": lambda x, other: (x + 1).to("cuda:0") - 1,
}
DOUBLE = {"to by keyword", "to and convert", "type", "convert"}
PLACES = {"cpu": "cpu", "cuda": "cuda:1", "convert": None, "type": None}


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("home", ["cpu", "cuda:1"])
@pytest.mark.parametrize("name", BEHIND)
def test_tensors_made_in_inference_mode_move_behind_it(name, home, around):
    with VirtualGPUs("2x1GiB") as gpus:
        other = torch.ones(3, device="cuda:0")
        with torch.inference_mode():
            made = torch.arange(3.0).to(home) * 1
        with around():
            found = BEHIND[name](made, other)
            kept = home if home == "cuda:1" or name == "convert" else "cuda:0"
            place = PLACES.get(name, "cuda:0") or kept
            assert found.device == torch.device(place)
            assert found.dtype == (torch.float64 if name in DOUBLE else torch.float32)
            expected = [1.0] * 3 if name == "buffer" else [0.0, 1.0, 2.0]
            assert found.tolist() == expected
            assert made.device == torch.device(home)
    if place != home and name != "buffer":
        assert (home, place) in {(copy.source, copy.target) for copy in gpus.copies}


def test_without_data_they_move_behind_it_too():
    with VirtualGPUs("2x1GiB", values="none") as gpus:
        with torch.inference_mode():
            made = torch.ones(1 << 18, device="cuda:0") + 1
        moved = made.to("cuda:1")
        assert moved.device == torch.device("cuda:1")
        assert gpus.live_bytes == (1 << 20, 1 << 20)
        assert made.cpu().device == torch.device("cpu")


def test_a_thread_moves_what_another_made_in_inference_mode():
    found = []
    with VirtualGPUs("2x1GiB"), torch.inference_mode():
        made = torch.ones(3, device="cuda:0") + 1
        # inference mode belongs to a thread
        thread = threading.Thread(target=lambda: found.extend([made.cpu(), made.to("cuda:1")]))
        thread.start()
        thread.join()
        assert [str(each.device) for each in found] == ["cpu", "cuda:1"]


IN_PLACE = {
    "add": lambda x: x.add_(1),
    "assign": lambda x: x.__setitem__(0, 1),
    "copy": lambda x: x.copy_(x + 1),
    "fill": lambda x: x.fill_(1),
    "out": lambda x: torch.add(x, 1, out=x),
    "through a view": lambda x: x[0].add_(1),
    "through a reshaped one": lambda x: x.reshape(6).add_(1),
    "of the copy": lambda x: x.clone().add_(1),
    "of the result": lambda x: (x * 1).add_(1),
    "form": lambda x: x.unsqueeze_(0),
    "gradients": lambda x: x.requires_grad_(),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_torch_refuses_of_inference_tensors_is_refused(name):
    def outcome(device):
        with torch.inference_mode():
            made = torch.ones(2, 3, device=device) + 1
        try:
            return IN_PLACE[name](made) is None
        except RuntimeError as error:
            return str(error).partition("\n")[0]

    expected = outcome("cpu")
    with VirtualGPUs("1x1GiB"):
        assert outcome("cuda:0") == expected


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_inference_tensors_are_such_tensors_as_torch_says(name):
    with torch.inference_mode():
        plain = torch.arange(8.0).view(1, 2, 4) * 1
    expected = VIEWS[name](plain)
    with VirtualGPUs("1x1GiB"):
        with torch.inference_mode():
            made = plain.to("cuda:0")
        found = VIEWS[name](made)
        assert found.is_inference() == expected.is_inference()
        assert torch.equal(found.cpu(), expected)
