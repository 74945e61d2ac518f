"""`torch.inference_mode` over weights that were made outside it, as a loaded model's are."""

from __future__ import annotations

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
