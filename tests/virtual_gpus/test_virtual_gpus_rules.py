"""Which tensors may be on another device: what real CUDA does is the expectation."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from glm4v_magic.virtual_gpus import MixedDeviceError, VirtualGPUs


@dataclass(frozen=True)
class Operands:
    """Tensors to mix: `here`, where the operation should run, and `there`."""

    here: str
    there: str

    def ones(self, *shape: int, at: str = "here") -> torch.Tensor:
        return torch.ones(shape, device=getattr(self, at))

    def index(self, at: str = "here") -> torch.Tensor:
        return torch.zeros(4, dtype=torch.long, device=getattr(self, at))

    @property
    def a(self) -> torch.Tensor:
        return self.ones(4, 8)

    @property
    def b(self) -> torch.Tensor:
        return self.ones(4, 8, at="there")

    @property
    def scalar(self) -> torch.Tensor:
        """0-dim, there."""
        return self.ones(at="there")

    @property
    def heads(self) -> torch.Tensor:
        return self.ones(1, 2, 4, 8)

    @property
    def other_heads(self) -> torch.Tensor:
        return self.ones(1, 2, 4, 8, at="there")


REFUSED, TAKEN = False, True
Case = tuple[str, Callable[[Operands], object], bool, bool]

# name, operation, taken with another GPU, taken with the CPU
CASES: list[Case] = [
    ("add", lambda o: o.a + o.b, REFUSED, REFUSED),
    ("add in place", lambda o: o.a.add_(o.b), REFUSED, REFUSED),
    ("add 0-dim", lambda o: o.a + o.scalar, REFUSED, TAKEN),
    ("0-dim times", lambda o: o.scalar * o.a, REFUSED, TAKEN),
    ("add into 0-dim", lambda o: o.scalar.add_(o.ones()), REFUSED, REFUSED),
    ("two 0-dim", lambda o: torch.addcmul(o.a, o.scalar, o.scalar), REFUSED, REFUSED),
    ("maximum 0-dim", lambda o: torch.maximum(o.a, o.scalar), REFUSED, TAKEN),
    ("compare 0-dim", lambda o: o.a == o.scalar, REFUSED, TAKEN),
    ("clamp 0-dim", lambda o: o.a.clamp(min=o.scalar), REFUSED, REFUSED),
    ("clamp_max 0-dim", lambda o: torch.clamp_max(o.a, o.scalar), REFUSED, REFUSED),
    ("logaddexp 0-dim", lambda o: torch.logaddexp(o.a, o.scalar), REFUSED, REFUSED),
    ("linear weight", lambda o: F.linear(o.a, o.ones(8, 8, at="there")), REFUSED, REFUSED),
    (
        "linear bias",
        lambda o: F.linear(o.a, o.ones(8, 8), o.ones(8, at="there")),
        REFUSED,
        REFUSED,
    ),
    (
        "layer_norm weight",
        lambda o: F.layer_norm(o.a, (8,), o.b[0], o.b[0]),
        REFUSED,
        REFUSED,
    ),
    ("rms_norm weight", lambda o: F.rms_norm(o.a, (8,), o.b[0]), REFUSED, REFUSED),
    (
        "conv2d weight",
        lambda o: F.conv2d(o.ones(1, 3, 8, 8), o.ones(4, 3, 2, 2, at="there")),
        REFUSED,
        REFUSED,
    ),
    (
        "conv2d bias",
        lambda o: F.conv2d(o.ones(1, 3, 8, 8), o.ones(4, 3, 2, 2), o.ones(4, at="there")),
        REFUSED,
        REFUSED,
    ),
    (
        "conv3d weight",
        lambda o: F.conv3d(o.ones(1, 3, 8, 8, 8), o.ones(4, 3, 2, 2, 2, at="there")),
        REFUSED,
        REFUSED,
    ),
    ("embedding index", lambda o: F.embedding(o.index("there"), o.a), REFUSED, REFUSED),
    ("index", lambda o: o.a[o.index("there")], REFUSED, TAKEN),
    ("index of the other", lambda o: o.b[o.index()], REFUSED, REFUSED),
    ("boolean index", lambda o: o.a[o.b > 0], REFUSED, TAKEN),
    ("masked_fill mask", lambda o: o.a.masked_fill(o.b > 0, 0.0), REFUSED, REFUSED),
    ("masked_fill 0-dim mask", lambda o: o.a.masked_fill(o.scalar > 0, 0.0), REFUSED, REFUSED),
    ("masked_fill 0-dim", lambda o: o.a.masked_fill(o.a > 0, o.scalar), TAKEN, TAKEN),
    ("fill 0-dim", lambda o: o.a.fill_(o.scalar), TAKEN, TAKEN),
    ("index_fill 0-dim", lambda o: o.a.index_fill(0, o.index(), o.scalar), TAKEN, TAKEN),
    ("cat", lambda o: torch.cat([o.a, o.b]), REFUSED, REFUSED),
    ("stack 0-dim", lambda o: torch.stack([o.ones(), o.scalar]), REFUSED, REFUSED),
    ("where", lambda o: torch.where(o.a > 0, o.b, 0.0), REFUSED, REFUSED),
    ("where 0-dim", lambda o: torch.where(o.a > 0, o.a, o.scalar), TAKEN, TAKEN),
    ("masked_scatter source", lambda o: o.a.masked_scatter(o.a > 0, o.b), REFUSED, REFUSED),
    ("masked_scatter mask", lambda o: o.a.masked_scatter(o.b > 0, o.a), REFUSED, REFUSED),
    ("index_put value", lambda o: o.a.index_put((o.index(),), o.b), REFUSED, REFUSED),
    ("index_put 0-dim", lambda o: o.a.index_put((o.index(),), o.scalar), TAKEN, TAKEN),
    ("index_put index", lambda o: o.a.index_put((o.index("there"),), o.a), REFUSED, TAKEN),
    ("copy", lambda o: o.a.copy_(o.b), TAKEN, TAKEN),
    ("copy to a slice", lambda o: o.a.__setitem__(slice(0, 2), o.b[:2]), TAKEN, TAKEN),
    ("to", lambda o: o.a.to(o.there), TAKEN, TAKEN),
    (
        "attention key",
        lambda o: F.scaled_dot_product_attention(o.heads, o.other_heads, o.other_heads),
        REFUSED,
        REFUSED,
    ),
    (
        "attention mask",
        lambda o: F.scaled_dot_product_attention(
            o.heads, o.heads, o.heads, attn_mask=o.ones(1, 1, 4, 4, at="there")
        ),
        REFUSED,
        REFUSED,
    ),
    ("gather", lambda o: o.a.gather(0, o.index("there")[:, None]), REFUSED, REFUSED),
    ("scatter", lambda o: o.a.scatter(0, o.index()[:, None], o.b), REFUSED, REFUSED),
    ("index_select", lambda o: o.a.index_select(0, o.index("there")), REFUSED, REFUSED),
    ("index_add", lambda o: o.a.index_add(0, o.index(), o.b), REFUSED, REFUSED),
    ("index_copy", lambda o: o.a.index_copy(0, o.index("there"), o.a), REFUSED, REFUSED),
    ("matmul", lambda o: o.a @ o.b.T, REFUSED, REFUSED),
    ("einsum", lambda o: torch.einsum("ij,kj->ik", o.a, o.b), REFUSED, REFUSED),
    ("bmm", lambda o: torch.bmm(o.heads[0], o.other_heads[0].mT), REFUSED, REFUSED),
    (
        "grid_sample",
        lambda o: F.grid_sample(
            o.heads, o.ones(1, 4, 1, 2, at="there"), align_corners=False
        ),
        REFUSED,
        REFUSED,
    ),
    ("expand_as", lambda o: o.ones(1, 8).expand_as(o.b), TAKEN, TAKEN),
    ("equal", lambda o: torch.equal(o.a, o.b), REFUSED, REFUSED),
]  # fmt: skip
EACH_CASE = pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])

IN_OTHER_WORDS = "device|indices should be|too many CPU scalars|type .* should be the same"


def is_taken(case: Case, here: str, there: str) -> bool:
    try:
        case[1](Operands(here, there))
    except RuntimeError as error:
        if not re.search(IN_OTHER_WORDS, str(error)):
            raise
        return False
    return True


@EACH_CASE
def test_two_gpus(case: Case) -> None:
    with VirtualGPUs("4x1GiB") as gpus:
        assert is_taken(case, "cuda:2", "cuda:3") is case[2]
        assert len(gpus.problems) == (not case[2])


@EACH_CASE
def test_gpu_and_cpu(case: Case) -> None:
    with VirtualGPUs("1x1GiB") as gpus:
        assert is_taken(case, "cuda:0", "cpu") is case[3]
        assert len(gpus.problems) == (not case[3])


@EACH_CASE
def test_without_data(case: Case) -> None:
    with VirtualGPUs("4x1GiB", values="none"):
        assert is_taken(case, "cuda:2", "cuda:3") is case[2]


@EACH_CASE
def test_every_refusal_can_be_repaired(case: Case) -> None:
    with VirtualGPUs("4x1GiB", on_mismatch="collect") as gpus:
        result = case[1](Operands("cuda:2", "cuda:3"))
        assert len(gpus.problems) == (not case[2])
        with torch.device("cpu"):
            expected = case[1](Operands("cpu", "cpu"))
        if isinstance(result, torch.Tensor):
            torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=0)
        else:
            assert result == expected


def test_the_text_is_that_of_cuda() -> None:
    with VirtualGPUs("4x1GiB"):
        o = Operands("cuda:2", "cuda:3")
        for operation, text in (
            (lambda: o.a + o.b, "found at least two devices, cuda:2 and cuda:3!"),
            (lambda: torch.ones(4, 8) + o.b, "found at least two devices, cuda:3 and cpu!"),
            (
                lambda: o.a[o.index("there")],
                "indices should be either on cpu or on the same device as the indexed tensor "
                r"\(cuda:2\)",
            ),
            (
                lambda: torch.equal(o.a, o.b),
                "Cannot compare two tensors on different devices. Got: cuda:2 and cuda:3",
            ),
            (lambda: o.a.index_put((o.index(),), o.b), "found at least two devices"),
        ):
            with pytest.raises(MixedDeviceError, match=text):
                operation()


INTO_THE_CPU: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], object], bool]] = {
    "index_put": (lambda x, value: x.index_put((torch.tensor([1]),), value), TAKEN),
    "index_put_": (lambda x, value: x.index_put_((torch.tensor([1]),), value), TAKEN),
    "by a mask": (lambda x, value: x.__setitem__(torch.tensor([False, True]), value), TAKEN),
    "index_fill": (lambda x, value: x.index_fill(0, torch.tensor([1]), value), TAKEN),
    "index_fill_": (lambda x, value: x.index_fill_(0, torch.tensor([1]), value), TAKEN),
    "fill": (lambda x, value: x[1].fill_(value), TAKEN),
    "item": (lambda x, value: x.__setitem__(1, value), TAKEN),
    "masked_fill": (lambda x, value: x.masked_fill_(x > 0, value), REFUSED),
    "a vector": (lambda x, value: x.index_put_((torch.tensor([1]),), value[None]), REFUSED),
    "its index": (lambda x, value: x.index_put_((value[None].long(),), torch.ones(1)), REFUSED),
    "its index to fill": (lambda x, value: x.index_fill_(0, value[None].long(), 2.0), REFUSED),
}


@pytest.mark.parametrize("way", INTO_THE_CPU)
def test_a_number_on_a_gpu_written_into_a_tensor_of_the_cpu(way: str) -> None:
    """``_index_put_impl_`` and ``index_fill_`` go by the tensor written to, whatever the number."""
    operation, is_taken_there = INTO_THE_CPU[way]
    with VirtualGPUs("1x1GiB"):
        target, number = torch.zeros(2), torch.ones((), device="cuda:0")
        if not is_taken_there:
            with pytest.raises(MixedDeviceError):
                operation(target, number)
            return
        result = operation(target, number)
        written = result if isinstance(result, torch.Tensor) and result.dim() else target
        assert (written.device.type, written.tolist()) == ("cpu", [0, 1])


def test_repairing_an_in_place_operation_keeps_its_target() -> None:
    with VirtualGPUs("2x1GiB", on_mismatch="collect"):
        target = torch.ones(3, device="cuda:1")
        other = torch.ones(3, device="cuda:0")
        assert torch.add(other, other).device == other.device
        assert target.add_(other) is target
        assert target.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@EACH_CASE
def test_real_cuda_with_the_cpu(case: Case) -> None:
    assert is_taken(case, "cuda:0", "cpu") is case[3]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA GPUs")
@EACH_CASE
def test_real_cuda_with_another_gpu(case: Case) -> None:
    assert is_taken(case, "cuda:0", "cuda:1") is case[2]
