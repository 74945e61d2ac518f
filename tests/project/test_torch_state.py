"""What torch does with the user's tensors is the same after whatever ended a call."""

from __future__ import annotations

import contextlib

import pytest
import torch
from shells import TINY
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.torch_state import torch_state_kept
from glm4v_magic.virtual_gpus import VirtualGPUs, active


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def pop_mode():
    torch.overrides._pop_mode()


def interrupt():
    raise KeyboardInterrupt


@torch_state_kept()
def end_with(error, *steps):
    before = state()
    for step in steps:
        step()
        assert state() != before
    raise error


LEFT_BEHIND = {
    "default device": lambda: torch.device("meta").__enter__(),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "gradients": lambda: torch.set_grad_enabled(False),
    "function mode": lambda: Functions().__enter__(),
    "dispatch mode": lambda: Dispatches().__enter__(),
    "random state": lambda: torch.rand(1),
}


def state():
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
        _get_current_function_mode_stack(),
        _get_current_dispatch_mode_stack(),
    )


@pytest.mark.parametrize("leave", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_an_interrupt_leaves_behind_is_taken_back(leave, error):
    before = state()
    with pytest.raises(error):
        end_with(error, leave)
    assert state() == before


def test_modes_that_were_entered_before_are_still_entered():
    with torch.device("meta"), Functions(), Dispatches():
        before = state()
        with pytest.raises(KeyboardInterrupt):
            end_with(KeyboardInterrupt, pop_mode, Functions().__enter__)
        assert state() == before
        assert torch.empty(1).device.type == "meta"
    assert not _get_current_function_mode_stack()
    assert not _get_current_dispatch_mode_stack()


def test_what_a_call_sets_on_purpose_stays_if_nothing_goes_wrong():
    with torch_state_kept():
        torch.set_grad_enabled(False)
    assert not torch.is_grad_enabled()
    torch.set_grad_enabled(True)


def test_an_error_that_only_comes_of_an_interrupt_is_the_interrupt():
    @torch_state_kept()
    def call():
        with Functions():
            pop_mode()
            interrupt()

    with pytest.raises(KeyboardInterrupt) as caught:
        call()
    assert "empty mode stack" in str(caught.value.__cause__)


def test_an_error_after_an_interrupt_that_was_dealt_with_is_an_error():
    try:
        interrupt()
    except KeyboardInterrupt:
        with pytest.raises(ValueError):
            end_with(ValueError)


def test_virtual_gpus_whose_end_was_interrupted_end_when_closed(monkeypatch):
    gpus = VirtualGPUs("1x1GiB")
    gpus.__enter__()

    with monkeypatch.context() as patch:
        patch.setattr(contextlib.ExitStack, "__exit__", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt):
            gpus.__exit__(None, None, None)
    assert active() is gpus
    gpus.close()
    assert active() is None
    with VirtualGPUs("1x1GiB"):
        assert torch.ones(1, device="cuda:0").is_cuda
    gpus.close()  # once more does nothing


def test_a_dry_run_ends_its_virtual_gpus_however_it_is_interrupted(monkeypatch):
    before = state()
    monkeypatch.setattr(VirtualGPUs, "__exit__", lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        dry_run(architecture(str(TINY)), "2x1GiB", text_tokens=8, decode_steps=1)
    assert active() is None
    assert state() == before
