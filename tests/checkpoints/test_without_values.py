"""A load draws no random weights, and leaves torch as it was."""

from __future__ import annotations

import golden
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.without_values import no_drawing
from glm4v_magic.engines import local

DRAWN = ("aten.uniform_", "aten.normal_")


class Drawn(TorchDispatchMode):
    """Counts the tensors that are filled at random."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function).startswith(DRAWN)
        return function(*args, **(kwargs or {}))


def test_a_load_draws_nothing_and_layers_are_drawn_as_ever_after_it():
    before = dict(vars(torch.nn.init))
    with Drawn() as drawn:
        local.load(resolve(golden.CHECKPOINT)).close()
    assert drawn.count == 0
    assert dict(vars(torch.nn.init)) == before
    with Drawn() as drawn, torch.device("meta"):
        torch.nn.Linear(3, 4)
    assert drawn.count


def test_only_tensors_without_values_are_passed_over():
    before = dict(vars(torch.nn.init))
    torch.manual_seed(0)
    expected = torch.nn.Linear(3, 4).weight
    torch.manual_seed(0)
    with no_drawing():
        assert torch.equal(torch.nn.Linear(3, 4).weight, expected)
        assert torch.nn.LayerNorm(3).weight.tolist() == [1, 1, 1]
        assert torch.nn.Linear(3, 4, device="meta").weight.is_meta
    with pytest.raises(KeyboardInterrupt), no_drawing():
        raise KeyboardInterrupt
    assert dict(vars(torch.nn.init)) == before
