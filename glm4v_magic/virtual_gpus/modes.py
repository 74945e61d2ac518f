"""The two torch modes that route calls to the virtual GPUs, entered once per thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from glm4v_magic.virtual_gpus.tensor import VirtualTensor, leaves, replace_leaves

__all__ = ["virtual_devices"]

_PYTHON_NUMBERS_TO_TENSOR = (torch.tensor, torch.as_tensor)


class _Machine(Protocol):
    @property
    def is_open(self) -> bool: ...

    def dispatch(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def attention(self, *args: Any, **kwargs: Any) -> Any: ...

    def current_device(self) -> int: ...


@contextmanager
def virtual_devices(machine: _Machine) -> Iterator[None]:
    """Within this thread, ``cuda:k`` is a GPU of `machine`."""
    # torch.tensor(..., device="cuda:1") would fill the tensor in C++, bypassing both modes;
    # this flag of the thread makes it build on the CPU and copy.
    lifts_cpu_tensors_only = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _DispatchMode(machine), _FunctionMode(machine):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts_cpu_tensors_only)


class _DispatchMode(TorchDispatchMode):
    """Intercepts operators: factories on a GPU have no virtual tensor that would dispatch them."""

    def __init__(self, machine: _Machine) -> None:
        super().__init__()
        self._machine = machine

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # PyTorch would wrap the method below against torch.compile, which is off within the block;
        # the wrapper costs as much as a small operator
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._machine.is_open:
            device = kwargs.get("device")
            on_gpu = device is not None and torch.device(device).type == "cuda"
            if on_gpu or VirtualTensor in types:
                return self._machine.dispatch(func, args, kwargs)
        return func(*args, **kwargs)


class _FunctionMode(TorchFunctionMode):
    """Intercepts Python calls that C++ would handle before an operator is dispatched.

    A bare number such as ``device=1`` means "GPU 1" only where PyTorch finds an accelerator;
    here it always does.
    """

    def __init__(self, machine: _Machine) -> None:
        super().__init__()
        self._machine = machine

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self._machine.is_open:
            return func(*args, **kwargs)
        if isinstance(kwargs.get("device"), (int, str)):
            kwargs = {**kwargs, "device": self._device(kwargs["device"])}
        replacement = self._REPLACEMENTS.get(func)
        if replacement is not None:
            return replacement(self, func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name == "to" and len(args) > 1 and _is_index(args[1]):
            args = (args[0], self._device(args[1]), *args[2:])
        elif name == "_parse_to" and args and _is_index(args[0]):
            args = (self._device(args[0]), *args[1:])
        return func(*args, **kwargs)

    def _device(self, device: int | str) -> torch.device:
        if isinstance(device, int) or device == "cuda":
            index = device if isinstance(device, int) else self._machine.current_device()
            return torch.device("cuda", index)
        return torch.device(device)

    def _cuda(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = args[1] if len(args) > 1 else kwargs.get("device")
        if not isinstance(device, torch.device):
            device = self._device("cuda" if device is None else device)
        return args[0].to(device)

    def _make_device(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) == 1 and not kwargs and _is_index(args[0]):
            return self._device(args[0])
        return func(*args, **kwargs)

    def _from_numbers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Tensors inside a list are read in C++, which a virtual tensor does not allow."""
        if args and isinstance(args[0], (list, tuple)):
            values = replace_leaves(
                lambda t: t.tolist() if isinstance(t, VirtualTensor) else t, args[0]
            )
            args = (values, *args[1:])
        return func(*args, **kwargs)

    def _attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(isinstance(tensor, VirtualTensor) for tensor in leaves(args, kwargs)):
            return self._machine.attention(*args, **kwargs)
        return func(*args, **kwargs)

    _REPLACEMENTS: ClassVar[dict[Any, Callable[..., Any]]] = {
        torch.Tensor.cuda: _cuda,
        torch.device: _make_device,
        torch.nn.functional.scaled_dot_product_attention: _attention,
        **dict.fromkeys(_PYTHON_NUMBERS_TO_TENSOR, _from_numbers),
    }


def _is_index(value: Any) -> bool:
    return type(value) is int
