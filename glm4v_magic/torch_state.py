"""What torch does with the user's own tensors, the same after a call as before.

torch's context managers are Python code. An interrupt that falls between two of their steps leaves
behind what they had set: tensors would then be made on the meta device, or gradients stay off, long
after the call. So whoever enters such contexts on the way keeps the state around all of them.
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
    """Restore torch's state if an error or an interrupt ends the context; also a decorator.

    That is the default dtype and device, whether gradients are recorded, the modes that are
    entered, and the CPU's random state.

    Raises:
        KeyboardInterrupt: in place of an error that only came of one; torch's modes trip over an
            interrupt ("trying to pop from empty mode stack").
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
    """Tell whether an interrupt is behind `error`; one that was handled before, `outer`, is not."""
    each: BaseException | None = error
    while each is not None and each is not outer:
        if isinstance(each, KeyboardInterrupt):
            return True
        each = each.__context__
    return False
