"""What is said about an operation that mixes devices."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from torch import nn

from glm4v_magic.virtual_gpus import MixedDeviceError, VirtualGPUs

pytestmark = pytest.mark.filterwarnings(
    # accelerate knows no place for a bare parameter in a device map, and transformers makes one
    "ignore:The following device_map keys do not match any submodules"
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        y = self.mlp(x)
        return x + y  # the residual


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.end = nn.Parameter(torch.ones(1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return torch.cat([x, self.end])  # the end mark


INSIDE_A_BLOCK = {"blocks.0": 0, "blocks.1.norm": 2, "blocks.1.mlp": 3}


def dispatched() -> Tower:
    torch.manual_seed(0)
    tower = Tower()
    return dispatch_model(tower, {**INSIDE_A_BLOCK, "end": 0}, main_device=0)


def line_of(code: str) -> int:
    source = inspect.getsource(inspect.getmodule(Block)).splitlines()
    return 1 + next(i for i, line in enumerate(source) if line.strip() == code)


def test_the_error_says_module_and_source_line() -> None:
    with VirtualGPUs("4x1GiB") as gpus, torch.no_grad():
        tower = dispatched()
        with pytest.raises(MixedDeviceError) as caught:
            tower(torch.ones(2, 8, device="cuda:0"))
        assert gpus.problems == (caught.value.problem,)
    text = str(caught.value)
    assert text.startswith(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:2 "
        "and cuda:3!"
    )
    code = "return x + y  # the residual"
    assert f"aten.add.Tensor in module blocks.1, {__file__}:{line_of(code)} in forward" in text
    assert "\n" not in text
    assert isinstance(caught.value, RuntimeError)
    source = caught.value.problem.source
    assert (Path(source.file), source.line, source.function, source.code) == (
        Path(__file__), line_of(code), "forward", code,
    )  # fmt: skip


def test_collecting_goes_on_to_the_right_result() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        expected = Tower()(torch.ones(2, 8))
        with VirtualGPUs("4x1GiB", on_mismatch="collect") as gpus:
            result = dispatched()(torch.ones(2, 8, device="cuda:0")).cpu()
    assert torch.equal(result, expected)
    first, second = gpus.problems
    assert (first.operation, first.module, first.source.code) == (
        "aten.add.Tensor", "blocks.1", "return x + y  # the residual",
    )  # fmt: skip
    assert (second.operation, second.module, second.source.code) == (
        "aten.cat.default", "", "return torch.cat([x, self.end])  # the end mark",
    )  # fmt: skip
    assert (first.devices, second.devices[1]) == (("cuda:2", "cuda:3"), "cuda:0")
    assert {problem.phase for problem in gpus.problems} == {"prefill"}
    assert gpus.report().problems == gpus.problems
    gpus.reset()
    assert gpus.problems == ()


def test_modules_made_inside_the_block_are_named() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = Tower()

        def describe(self, x: torch.Tensor) -> torch.Tensor:
            # another method of the model calls a part of it, as generate() does
            return self.tower(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tower(x)

    with VirtualGPUs("4x1GiB", on_mismatch="collect") as gpus, torch.no_grad():
        outer = Outer().to("cuda:0")
        outer.tower.blocks[1].mlp.to("cuda:3")
        outer.describe(torch.ones(2, 8, device="cuda:0"))
        outer(torch.ones(2, 8, device="cuda:0"))
        outer.tower.blocks.append(Block().to("cuda:2"))
        outer(torch.ones(2, 8, device="cuda:0"))
    assert list(dict.fromkeys(problem.module for problem in gpus.problems)) == [
        "tower.blocks.1.mlp", "tower.blocks.1",
        "tower.blocks.2.norm", "tower.blocks.2.mlp", "tower.blocks.2",
    ]  # fmt: skip


def test_a_problem_outside_of_any_module() -> None:
    with VirtualGPUs("2x1GiB"), pytest.raises(MixedDeviceError, match="in no submodule") as caught:
        torch.ones(1, 2, device="cuda:0") @ torch.ones(2, 1, device="cuda:1")
    assert caught.value.problem.module == ""
    assert caught.value.problem.phase == "load"


def test_torch_2_6_has_no_grouped_products(monkeypatch):
    class Older:
        def __getattr__(self, name):
            if name == "_grouped_mm":
                raise AttributeError(name)
            return getattr(aten, name)

    aten = torch.ops.aten
    with monkeypatch.context() as patched, VirtualGPUs("1x1GiB"):
        patched.setattr(torch.ops, "aten", Older())
        layer = nn.Linear(8, 8).to("cuda:0")
        assert layer(torch.ones(1, 8, device="cuda:0")).device.type == "cuda"
