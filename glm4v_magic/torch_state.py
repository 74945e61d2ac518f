"""Keep torch's global state as the user left it, whatever ends a call.

torch's context managers are Python code. An interrupt between two of their steps leaves behind
what they had set: tensors would then be created on the meta device, or gradients stay off, long
after the call. Code that enters such contexts therefore wraps them in `torch_state_kept`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.overrides import _pop_mode as _pop_function_mode
from torch.overrides import _push_mode as _push_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as _push_dispatch_mode

__all__ = ["torch_state_kept"]


@contextlib.contextmanager
def torch_state_kept() -> Iterator[None]:
    """Restore torch's state if an error or interrupt ends the context. Also usable as a decorator.

    The state: default dtype and device, whether gradients are recorded, active modes, and the
    CPU's random state.

    Raises:
        KeyboardInterrupt: instead of an error that an interrupt caused; torch's modes trip over
            one ("trying to pop from empty mode stack").
    """
    outer = sys.exception()
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    random_state = torch.get_rng_state()
    function_modes = _get_current_function_mode_stack()
    dispatch_modes = _get_current_dispatch_mode_stack()
    try:
        yield
    except BaseException as error:
        _restore(
            function_modes,
            _get_current_function_mode_stack,
            _pop_function_mode,
            _push_function_mode,
        )
        _restore(
            dispatch_modes,
            _get_current_dispatch_mode_stack,
            _pop_dispatch_mode,
            _push_dispatch_mode,
        )
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        torch.set_rng_state(random_state)
        if _comes_of_interrupt(error, outer) and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def _restore(
    before: list[Any],
    stack: Callable[[], list[Any]],
    pop: Callable[[], Any],
    push: Callable[[Any], None],
) -> None:
    while stack():
        pop()
    for mode in before:
        push(mode)


def _comes_of_interrupt(error: BaseException, outer: BaseException | None) -> bool:
    """Tell whether an interrupt caused `error`, one before the earlier `outer` not counted."""
    each: BaseException | None = error
    while each is not None and each is not outer:
        if isinstance(each, KeyboardInterrupt):
            return True
        each = each.__context__
    return False
