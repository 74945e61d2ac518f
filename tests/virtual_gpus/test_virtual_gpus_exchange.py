"""Tensors handed to other libraries by DLPack, and subclasses of tensors that move to a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from glm4v_magic.virtual_gpus import VirtualGPUs

WAYS: dict[str, Callable[[torch.Tensor], Any]] = {
    "the tensor": lambda tensor: torch.from_dlpack(tensor),
    "its capsule": lambda tensor: torch.from_dlpack(torch.utils.dlpack.to_dlpack(tensor)),
    "torch.utils": lambda tensor: torch.utils.dlpack.from_dlpack(torch.to_dlpack(tensor)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("values", ["real", "none"])
def test_dlpack_hands_on_the_memory(way: str, values: Any) -> None:
    with VirtualGPUs("2x1GiB", values=values) as gpus, torch.no_grad():
        given = torch.arange(4, device="cuda:0")
        before = gpus.live_bytes
        taken = WAYS[way](given)
        taken[0] = 7
        assert taken.device == torch.device("cuda:0")
        assert given.tolist() == [7, 1, 2, 3]
        assert gpus.live_bytes == before


def test_dlpack_copies_where_it_is_told() -> None:
    with VirtualGPUs("2x1GiB"), torch.no_grad():
        given = torch.arange(3, device="cuda:0")
        moved = torch.from_dlpack(given, device="cpu")
        copy = torch.from_dlpack(given, copy=True)
        copy[0] = 7
        assert (moved.device.type, moved.tolist()) == ("cpu", [0, 1, 2])
        assert given.tolist() == [0, 1, 2]
        assert torch.from_dlpack(torch.arange(2)).tolist() == [0, 1]
    assert torch.utils.dlpack.from_dlpack(torch.to_dlpack(torch.arange(2))).tolist() == [0, 1]


def test_libraries_without_gpus_are_refused_in_one_line() -> None:
    with VirtualGPUs("1GiB"), torch.no_grad():
        given = torch.arange(3, device="cuda:0")
        with pytest.raises(BufferError, match=r"cuda:0 has no memory .* Use Tensor\.cpu\(\)"):
            np.from_dlpack(given)
        assert np.from_dlpack(given.cpu()).tolist() == [0, 1, 2]


def test_a_tensor_with_gradients_is_not_exported() -> None:
    with VirtualGPUs("1GiB"), pytest.raises(BufferError, match="require gradient"):
        torch.from_dlpack(torch.ones(2, device="cuda:0", requires_grad=True))


class Marked(torch.Tensor):
    """As torchvision's ``Image`` and other tensors with a name for what they hold."""


def test_a_subclass_moves_to_a_gpu_and_back() -> None:
    marked = torch.ones(2).as_subclass(Marked)
    with VirtualGPUs("1GiB"), torch.no_grad():
        moved = marked.to("cuda:0")
        assert moved.is_cuda
        assert (moved * 2).cpu().tolist() == [2, 2]
        assert type(marked + 1) is Marked
