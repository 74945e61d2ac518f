"""The two torch modes that route calls to the virtual GPUs, entered once per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from inspect import unwrap
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import overrides
from torch._ops import HigherOrderOperator
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from glm4v_magic.virtual_gpus.exporting import refuse_export
from glm4v_magic.virtual_gpus.generators import DefaultGenerator, check_generator
from glm4v_magic.virtual_gpus.nested import refuse_jagged
from glm4v_magic.virtual_gpus.old_types import device_and_dtype
from glm4v_magic.virtual_gpus.recurrent import CELLS, LAYERS
from glm4v_magic.virtual_gpus.rules import SETS, is_implicit, lazy_views
from glm4v_magic.virtual_gpus.tensor import META, VirtualTensor, leaves, replace_leaves

__all__ = [
    "has_torch_function",
    "operators_watched",
    "torch_function_checks",
    "virtual_devices",
]

_CUSOLVER = ("gesvd", "gesvdj", "gesvda")
_PLACE_OF_DEVICE = {"to": 1, "_parse_to": 0}
_PYTHON_NUMBERS_TO_TENSOR = (torch.tensor, torch.as_tensor, torch.asarray)
_STORAGES = (torch.UntypedStorage, torch.TypedStorage)
_MEMORY = (torch.Tensor, *_STORAGES)


class _Machine(Protocol):
    @property
    def is_open(self) -> bool: ...

    @property
    def pinned(self) -> WeakKeyDictionary[torch.UntypedStorage, None]: ...

    def dispatch(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def attention(self, *args: Any, **kwargs: Any) -> Any: ...

    def recurrent(self, function: Any, args: tuple[Any, ...]) -> Any: ...

    def gpu(self, device: torch.device) -> torch.device: ...

    def place_of(self, storage: torch.UntypedStorage) -> torch.device: ...


@contextmanager
def virtual_devices(machine: _Machine) -> Iterator[None]:
    """Within this thread, ``cuda:k`` is a GPU of `machine`.

    If another thread leaves the block, as when it collects a generator, the modes stay where they
    are: each thread has a stack of its own. Those of a closed machine do nothing, and are taken
    off when their thread enters the next block.
    """
    _take_off_closed()
    entered = ExitStack()
    # torch.tensor(..., device="cuda:1") would fill the tensor in C++, bypassing both modes;
    # this flag of the thread makes it build on the CPU and copy.
    entered.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
    torch._C._set_only_lift_cpu_tensors(True)
    entered.enter_context(_DispatchMode(machine))
    mode = entered.enter_context(_FunctionMode(machine))
    _of_thread.entered.append((mode, entered))
    try:
        yield
    finally:
        if (mode, entered) in _of_thread.entered:
            entered.close()
            _of_thread.entered.remove((mode, entered))


class _OfThread(threading.local):
    """The modes that a thread has entered and not left, the innermost last."""

    def __init__(self) -> None:
        self.entered: list[tuple[_FunctionMode, ExitStack]] = []


_of_thread = _OfThread()


def _take_off_closed() -> None:
    """Take modes of this thread off its stacks whose block was left by another thread."""
    while _of_thread.entered:
        mode, entered = _of_thread.entered[-1]
        if mode.is_open or overrides._get_current_function_mode() is not mode:
            return
        entered.close()
        _of_thread.entered.pop()


def operators_watched(machine: _Machine) -> AbstractContextManager[Any]:
    """Within the returned block `machine` sees operators even while it runs another one."""
    return _DispatchMode(machine)


_any_torch_function = overrides.has_torch_function
_KNOWN = frozenset({torch.Tensor, torch.nn.Parameter, VirtualTensor, type(None)})


def has_torch_function(tensors: Iterable[Any]) -> bool:
    """Replaces ``torch.overrides.has_torch_function``: does not count the mode of virtual GPUs.

    ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` ask it before they take their fast
    path, which a GPU and the CPU outside of the block take; other digits come out of the slow one.
    Functions of ``torch.nn.functional`` ask it whether to hand over to the mode, which would not
    see what is called inside them then.
    """
    if not isinstance(overrides._get_current_function_mode(), _FunctionMode):
        return _any_torch_function(tensors)
    tensors = tuple(tensors)
    if all(type(tensor) in _KNOWN for tensor in tensors):
        return False
    with overrides._pop_mode_temporarily():
        return _any_torch_function(tensors)


def torch_function_checks() -> dict[str, Any]:
    """Return the replacements of the checks, by name in ``torch.nn.functional``."""
    return {
        "has_torch_function": has_torch_function,
        "has_torch_function_unary": lambda tensor: has_torch_function((tensor,)),
        "has_torch_function_variadic": lambda *tensors: has_torch_function(tensors),
    }


class _DispatchMode(TorchDispatchMode):
    """Intercepts operators: factories on a GPU have no virtual tensor that would dispatch them."""

    supports_higher_order_operators = True

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
        if isinstance(func, HigherOrderOperator):
            return _whole(func, args, kwargs)
        if self._machine.is_open and (
            VirtualTensor in types
            or func in SETS  # its storage may be that of a GPU
            or any(map(_is_gpu, (*args, *kwargs.values())))
        ):
            return self._machine.dispatch(func, args, kwargs)
        if is_implicit(func):
            with lazy_views():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _FunctionMode(TorchFunctionMode):
    """Intercepts Python calls that C++ would handle before an operator is dispatched.

    A bare number such as ``device=1`` means "GPU 1" only where PyTorch finds an accelerator;
    here it always does.
    """

    def __init__(self, machine: _Machine) -> None:
        super().__init__()
        self._machine = machine

    @property
    def is_open(self) -> bool:
        """Whether the block of its virtual GPUs is running."""
        return self._machine.is_open

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
        if torch.compiler.is_compiling():  # by torch.export, which would end the process (2.13)
            refuse_export()
        if forward_ad._current_level >= 0:
            _refuse_in_forward_mode(func, args, kwargs)
        if isinstance(kwargs.get("device"), (int, str, torch.device)):
            kwargs = {**kwargs, "device": self._device(kwargs["device"])}
        check_generator(args, kwargs)
        if (
            type(kwargs.get("generator")) is DefaultGenerator
        ):  # every generator is an instance of it
            kwargs = {**kwargs, "generator": None}
        replacement = self._REPLACEMENTS.get(func) or self._REPLACEMENTS.get(unwrap(func))
        if replacement is not None:
            return replacement(self, func, args, kwargs)
        place = _PLACE_OF_DEVICE.get(getattr(func, "__name__", ""), len(args))
        if place < len(args) and _is_device(args[place]):
            args = (*args[:place], self._device(args[place]), *args[place + 1 :])
        if func is torch.Tensor.to:
            refuse_jagged(args, kwargs)
        if kwargs.get("pin_memory"):
            return self._pinned_factory(func, args, kwargs)
        return func(*args, **kwargs)

    def _device(self, device: int | str | torch.device) -> torch.device:
        """Return a device with the index of the current GPU, if it is a GPU without one.

        Where C++ asks the device guard for that index, the guard of virtual GPUs has none to give.
        """
        if isinstance(device, int):
            return torch.device("cuda", device)
        device = torch.device(device)
        without_index = device.type == "cuda" and device.index is None
        return self._machine.gpu(device) if without_index else device

    def _cuda(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = args[1] if len(args) > 1 else kwargs.get("device")
        place = self._device("cuda" if device is None else device)
        refuse_jagged((args[0], place), {})
        return args[0].to(place)

    def _set_data(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``tensor.data = value`` may move a tensor to another device, in place."""
        tensor, value = args
        if isinstance(tensor, VirtualTensor) and isinstance(value, VirtualTensor):
            tensor.become(value)
        elif isinstance(tensor, VirtualTensor) or isinstance(value, VirtualTensor):
            if META in (tensor.device, value.device):
                raise RuntimeError(
                    "Attempted to call `variable.set_data(tensor)`, but `variable` and `tensor` "
                    "have incompatible tensor type."
                )
            moved = value.detach()
            if isinstance(tensor, torch.nn.Parameter):
                moved = torch.nn.Parameter(moved, requires_grad=tensor.requires_grad)
            torch.utils.swap_tensors(tensor, moved)
        else:
            func(*args, **kwargs)

    def _pin(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = args[0]
        if tensor.device.type != "cpu":
            raise RuntimeError(f"cannot pin '{tensor.type()}' only dense CPU tensors can be pinned")
        if self._is_pinned(func, args, kwargs):
            return tensor
        copy = tensor.clone()
        self._machine.pinned[copy.untyped_storage()] = None
        return copy

    def _pinned_factory(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = func(*args, **{**kwargs, "pin_memory": False})
        return self._pin(func, (tensor,), {})

    def _is_pinned(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0].untyped_storage() in self._machine.pinned

    def _make_device(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) == 1 and not kwargs and _is_index(args[0]):
            return self._device(args[0])
        return func(*args, **kwargs)

    def _from_numbers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Tensors inside a list are read in C++, which a virtual tensor does not allow.

        Of a storage C++ makes a tensor that shares its memory.
        """
        if args and isinstance(args[0], _STORAGES):
            memory: Any = getattr(args[0], "_untyped_storage", args[0])
            place = self._machine.place_of(memory)
            if place.type == "cuda":
                dtype = getattr(args[0], "dtype", torch.int64)
                shared = torch.empty(0, dtype=dtype, device=place).set_(memory)
                return shared.to(device=kwargs.get("device"), dtype=kwargs.get("dtype"))
        return func(*map(_numbers, args), **{name: _numbers(kwargs[name]) for name in kwargs})

    def _new(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``x.new_tensor(...)``, ``x.new(...)``: C++ looks up the device by the tensor's keys.

        Those of a virtual tensor say "meta", and none says which of several GPUs.
        """
        tensor, *given = (*args, *(kwargs[name] for name in kwargs if name != "device"))
        if isinstance(tensor, VirtualTensor):
            is_old = func is torch.Tensor.new
            if is_old and not given:
                return tensor.new_empty(0, **kwargs)
            if kwargs.get("device") is None and not (is_old and isinstance(given[0], _MEMORY)):
                kwargs = {**kwargs, "device": tensor.device}
        return self._from_numbers(func, args, kwargs)

    def _ctc_loss(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lengths are read on the CPU, wherever they are; PyTorch leaves out tensor subclasses."""
        lengths = replace_leaves(lambda tensor: tuple(tensor.tolist()), args[2:4])
        return func(*args[:2], *lengths, *args[4:], **kwargs)

    def _attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(isinstance(tensor, VirtualTensor) for tensor in leaves(args, kwargs)):
            if torch.is_autocast_enabled("cuda"):
                args, kwargs = replace_leaves(_autocast, (args, kwargs))
            return self._machine.attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _type(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = args[1] if len(args) > 1 else kwargs.get("dtype")
        read = device_and_dtype(kind)
        if read is None:
            return func(*args, **kwargs)
        device, dtype = read
        target = args[0].device if args[0].is_cuda else self._device(device)
        return args[0].to(target, dtype)

    def _recurrent(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(isinstance(tensor, VirtualTensor) for tensor in leaves(args)):
            if torch.is_autocast_enabled("cuda"):
                args = replace_leaves(_autocast, args)
            return self._machine.recurrent(func, args)
        return func(*args, **kwargs)

    def _backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Refuse gradients through virtual tensors: autograd computes them in a thread of the GPU.

        Raises:
            NotImplementedError: if any tensor is on a virtual GPU.
        """
        if any(_is_virtual(leaf) for leaf in leaves((args, kwargs))):
            raise NotImplementedError(
                "Virtual GPUs compute no gradients: run backward() on the CPU, and what needs no "
                "gradients under torch.no_grad() here."
            )
        return func(*args, **kwargs)

    def _by_driver(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Leave out which of cuSOLVER's drivers decomposes a matrix: all give the same."""
        if args and _is_virtual(args[0]) and kwargs.get("driver") in _CUSOLVER:
            kwargs = {**kwargs, "driver": None}
        return func(*args, **kwargs)

    _REPLACEMENTS: ClassVar[dict[Any, Callable[..., Any]]] = {
        unwrap(torch.Tensor.backward): _backward,  # nnsight wraps it when it is imported
        torch.autograd.grad: _backward,
        torch.linalg.svd: _by_driver,
        torch.linalg.svdvals: _by_driver,
        torch.Tensor.cuda: _cuda,
        torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
        torch.Tensor.is_pinned: _is_pinned,
        torch.Tensor.new: _new,
        torch.Tensor.new_tensor: _new,
        torch.Tensor.pin_memory: _pin,
        torch.Tensor.type: _type,
        torch.device: _make_device,
        torch.ctc_loss: _ctc_loss,
        torch.nn.functional.scaled_dot_product_attention: _attention,
        **dict.fromkeys(_PYTHON_NUMBERS_TO_TENSOR, _from_numbers),
        **dict.fromkeys((*CELLS, *LAYERS), _recurrent),
    }


def _numbers(value: Any) -> Any:
    """Return a list with numbers in place of the virtual tensors in it; anything else as it is."""
    if not isinstance(value, (list, tuple)) or isinstance(value, torch.Size):
        return value
    return replace_leaves(lambda leaf: leaf.tolist() if _is_virtual(leaf) else leaf, value)


def _is_virtual(tensor: torch.Tensor) -> bool:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # of torch.func.grad
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return isinstance(tensor, VirtualTensor)


def _refuse_in_forward_mode(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what computes on a virtual GPU, or moves there, while there are dual numbers.

    A tensor that is not PyTorch's own has no place for a tangent: the process would end.

    Raises:
        NotImplementedError: if a tensor is on a virtual GPU, or goes to one.
    """
    is_read = getattr(func, "__name__", "") == "__get__"
    goes = func is torch.Tensor.cuda or any(map(_names_gpu, (*args, *kwargs.values())))
    goes = goes or _is_index(kwargs.get("device"))
    goes = goes or (func is torch.Tensor.to and any(map(_is_index, args[1:])))
    if goes or (not is_read and any(map(_is_virtual, leaves((args, kwargs))))):
        raise NotImplementedError(
            "Virtual GPUs compute no gradients, in forward mode neither: run it on the CPU."
        )


def _names_gpu(value: Any) -> bool:
    is_name = isinstance(value, str) and value.startswith(("cuda", "torch.cuda"))
    return _is_gpu(value) or is_name


def _whole(func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator whose arguments are functions, which virtual GPUs do not see into.

    Raises:
        NotImplementedError: if any tensor is on a virtual GPU.
    """
    if any(isinstance(leaf, VirtualTensor) for leaf in leaves(args, kwargs)):
        raise NotImplementedError(
            f"Virtual GPUs do not run {func.name()}: it takes functions as its arguments. "
            'Instead of flex_attention use scaled_dot_product_attention ("sdpa" in transformers).'
        )
    return func(*args, **kwargs)


def _is_index(value: Any) -> bool:
    return type(value) is int


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """Cast an operand as autocast does for operations of lower precision."""
    casts = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.get_autocast_dtype("cuda")) if casts else tensor


def _is_gpu(value: Any) -> bool:
    return type(value) is torch.device and value.type == "cuda"


def _is_device(value: Any) -> bool:
    return _is_index(value) or isinstance(value, (str, torch.device))
