"""A tensor that reports ``cuda:k`` as its device."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["CPU", "META", "Owner", "VirtualTensor", "content", "leaves", "replace_leaves"]

CPU = torch.device("cpu")
META = torch.device("meta")
# torch/_tensor.py
_NO_LEAF = (
    "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at "
    "the moment."
)


class Owner(Protocol):
    """Runs the operations of virtual tensors."""

    def dispatch(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `operator`, which belongs to ``torch.ops``."""

    def move(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Copy `tensor` to `device`."""

    def saved(self, tensor: VirtualTensor) -> torch.Tensor:
        """Return the content of `tensor` for a file."""


class VirtualTensor(torch.Tensor):
    """A tensor whose device is ``cuda:k`` and whose content is elsewhere.

    The content is a CPU tensor (real values) or a meta tensor (no data) of the same size, strides
    and dtype. To C++ the device is really ``cuda:k``: ``.device``, ``.is_cuda`` and every check
    inside PyTorch see a CUDA tensor. A tensor without data may also be on ``cpu``.

    Attributes:
        content: CPU tensor with the values, or a meta tensor.
        made_in: name of the module that made it; empty for inputs and weights.
        owner: runs its operations.
    """

    content: torch.Tensor
    made_in: str
    owner: Owner

    @staticmethod
    def __new__(  # type: ignore[misc]  # a parameter of plain data is not a virtual tensor
        cls: type[VirtualTensor], data: torch.Tensor, requires_grad: bool = True
    ) -> torch.Tensor:
        """Make a parameter of `data`, as ``nn.Parameter`` does.

        accelerate rebuilds parameters by calling the type of the old one. To put content on a
        virtual device, use `wrap`.
        """
        return torch.nn.Parameter(data, requires_grad=requires_grad)

    def __init__(self, data: torch.Tensor, requires_grad: bool = True) -> None:
        """Nothing is left to do after `__new__`."""

    @classmethod
    def wrap(cls, content: torch.Tensor, device: torch.device, made_in: str, owner: Owner) -> Self:
        """Return a virtual tensor on `device` with this content.

        A nested content, as ``nn.TransformerEncoder`` makes of padded sequences, has no size: that
        with the padding stands for it.
        """
        if content.is_nested:
            longest = content._nested_tensor_size().amax(0).tolist()
            like = torch.empty(len(content.unbind()), *longest, device=META)
        else:
            like = content
        tensor: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            like.size(),
            strides=like.stride(),
            storage_offset=like.storage_offset(),
            dtype=content.dtype,
            layout=content.layout,
            device=device,
        )
        # else an operator would run on the content as if it were not a lazily conjugated view
        torch._C._set_conj(tensor, content.is_conj())
        torch._C._set_neg(tensor, content.is_neg())
        tensor.content, tensor.made_in, tensor.owner = content, made_in, owner
        return tensor

    # The methods of torch.Tensor stay as they are; the function mode sees calls before this does.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # PyTorch calls it as a class method
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        owner = next(t.owner for t in leaves(args, kwargs) if isinstance(t, VirtualTensor))
        return owner.dispatch(func, args, kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"VirtualTensor({self.content!r}, device='{self.device}')"

    def data_ptr(self) -> int:
        """The address of the values; without them a number that tensors share if they share memory.

        All meta tensors have address 0, but accelerate recognises tied weights by this number.
        """
        if self.content.device == META:
            return int(self.content.untyped_storage()._cdata)
        return self.content.data_ptr()

    def tolist(self) -> Any:
        """Return the values as nested lists; the C++ method refuses every tensor subclass."""
        return content(self.owner.move(self.detach(), CPU)).tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Raise TypeError as CUDA does, unless forced."""
        if force:
            return self.owner.move(self.detach(), CPU).numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def untyped_storage(self) -> Any:
        """Return the storage of the content; it says that it is on this device."""
        return self.content.untyped_storage()

    def set_(self, *source: Any, **named: Any) -> torch.Tensor:
        """Take the memory of a tensor or a storage.

        Of a part of a virtual tensor C++ would take the wrapper's memory, which is none.
        """
        take: Any = super().set_
        if "source" in named:
            source = (named.pop("source"), *source)
        if source and isinstance(source[0], VirtualTensor) and (source[1:] or named):
            source = (source[0].untyped_storage(), *source[1:])
        return take(*source, **named)

    def __dlpack__(self, *, stream: int | None = -1, dl_device: Any = None, **others: Any) -> Any:
        """Raise BufferError for libraries without GPUs, which name no stream, as CUDA's tensors do.

        `dlpack` has what PyTorch itself is given.
        """
        if stream == -1 and dl_device is None:
            raise BufferError(
                f"A tensor on {self.device} has no memory that another library could read. "
                "Use Tensor.cpu() to copy the tensor to host memory first."
            )
        return super().__dlpack__(stream=stream, dl_device=dl_device, **others)

    def as_subclass(self, cls: type[Any]) -> Any:
        """Return the tensor itself: results of operations on a subclass that moved here are plain.

        A virtual tensor is of a type of its own, and PyTorch gives a tensor one type only.
        """
        return self

    def record_stream(self, stream: Any) -> None:
        """All work on the tensor is done when its memory is freed."""

    def is_pinned(self, device: Any = None) -> bool:
        """Return False: only tensors of the CPU are pinned."""
        return False

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else repr(self).__format__(spec)

    def __copy__(self) -> torch.Tensor:
        """Return a tensor on the same device that shares its values, as ``copy.copy`` does."""
        copied = self.detach()
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        return copied.requires_grad_(self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Return a copy; those of tensors that share a storage share one, too.

        Raises:
            RuntimeError: as on a GPU, of a tensor that was computed with gradients.
        """
        if not self.is_leaf:
            raise RuntimeError(_NO_LEAF)
        if id(self) not in memo:
            memo[id(self)] = self._copied(memo)
        copied: torch.Tensor = memo[id(self)]
        return copied

    def _copied(self, memo: dict[int, Any]) -> torch.Tensor:
        if isinstance(self, torch.nn.Parameter):
            copied = self.detach().clone()
            return torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        inner = self.content
        if inner.is_nested or inner.is_conj() or inner.is_neg():
            copied = self.detach().clone()
        else:
            storage = copy.deepcopy(self.untyped_storage(), memo)
            copied = torch.empty(0, dtype=self.dtype, device=self.device).set_(
                storage, self.storage_offset(), self.size(), self.stride()
            )
        return copied.requires_grad_(self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if isinstance(self, torch.nn.Parameter):
            arguments = (self.detach(), self.requires_grad, OrderedDict[str, Any]())
            return torch._utils._rebuild_parameter, arguments
        return self.owner.saved(self).__reduce_ex__(protocol)

    def become(self, other: VirtualTensor) -> None:
        """Become a view of `other`, as ``tensor.data = other`` makes an ordinary tensor one."""
        _set_metadata(self, other)
        self.content, self.made_in = other.content, other.made_in

    def follow_content(self) -> None:
        """Take over the size and strides of the content, after they changed in place."""
        inner = self.content
        if inner.is_nested:
            return
        ours = self.size(), self.stride(), self.storage_offset()
        if ours != (inner.size(), inner.stride(), inner.storage_offset()):
            _set_metadata(self, self.wrap(inner, self.device, self.made_in, self.owner))


def _set_metadata(tensor: torch.Tensor, other: torch.Tensor) -> None:
    with (
        torch._C.DisableTorchFunction(),
        _disable_current_modes(),
        torch._C._DisableTorchDispatch(),
    ):
        tensor.data = other


def content(tensor: torch.Tensor) -> torch.Tensor:
    """Return the content of a virtual tensor; any other tensor itself."""
    return tensor.content if isinstance(tensor, VirtualTensor) else tensor


_WITHOUT = frozenset({
    bool, int, float, str, type(None),
    torch.device, torch.dtype, torch.layout, torch.memory_format,
})  # fmt: skip
"""Common types of arguments that hold no tensor: a lookup here is faster than ``isinstance``."""


def leaves(*values: Any) -> list[torch.Tensor]:
    """Return the tensors in nested lists, tuples and dicts."""
    found: list[torch.Tensor] = []
    _collect(values, found)
    return found


def _collect(values: Iterable[Any], found: list[torch.Tensor]) -> None:
    for value in values:
        if type(value) in _WITHOUT:
            continue
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)


def replace_leaves(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Return the same nested lists, tuples and dicts with every tensor replaced."""
    kind = type(value)
    if kind in _WITHOUT:
        return value
    if isinstance(value, torch.Tensor):
        return change(value)
    if kind is list or kind is tuple:
        return kind([
            item if type(item) in _WITHOUT else replace_leaves(change, item) for item in value
        ])  # fmt: skip
    if kind is dict:
        return {key: replace_leaves(change, item) for key, item in value.items()}
    return value
