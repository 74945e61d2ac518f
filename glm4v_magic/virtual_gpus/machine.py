"""Runs the operations of virtual tensors and records copies, memory and problems."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import _disable_current_modes

from glm4v_magic.virtual_gpus.dtypes import refused_dtype
from glm4v_magic.virtual_gpus.memory import MemoryLedger
from glm4v_magic.virtual_gpus.package import PlacementError
from glm4v_magic.virtual_gpus.recurrent import CELLS, LAYERS, LayerCall
from glm4v_magic.virtual_gpus.report import Guess, MetaTensorError, MixedDeviceError, Problem
from glm4v_magic.virtual_gpus.rules import (
    IMPLICIT,
    NO_DATA,
    RULES,
    SETS,
    Mismatch,
    check_devices,
    composite_kernel,
    is_cpu_only,
    is_gpu_only,
    is_implicit,
    lazy_views,
    may_stay,
)
from glm4v_magic.virtual_gpus.storages import device_of_memory
from glm4v_magic.virtual_gpus.tensor import (
    CPU,
    META,
    VirtualTensor,
    content,
    leaves,
    replace_leaves,
)
from glm4v_magic.virtual_gpus.trace import Trace, source_line

__all__ = ["Machine", "OnMismatch", "Values"]

Values = Literal["real", "none"]
OnMismatch = Literal["raise", "collect"]

aten = torch.ops.aten

# Without data, floating-point tensors up to this many elements keep their values on the GPUs
# all the same: frequencies, scales and the like cost nothing and keep control flow real.
_SMALL_FLOATS = 1 << 16
# Integers computed from tensors without data become zeros, up to this many elements.
_GUESSED_INTEGERS = 1 << 22
# Without data, larger results of several tensors, such as the mask of every pair of tokens, are not
# computed whatever their dtype: they would take as much memory here as on the GPU.
_COMPUTED = 1 << 27

_INDEXING = (
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)
_OF_LIBRARIES = tuple(
    getattr(getattr(aten, name), overload)
    for name in ("_use_cudnn_ctc_loss", "_use_miopen_ctc_loss")
    if hasattr(aten, name)
    for overload in getattr(aten, name).overloads()
)
# Bytes per element (aten/src/ATen/native/cuda/IndexKernel.cpp, masked_scatter__cuda).
_SCATTER_WORKSPACE = 9
# c10/core/impl/alloc_cpu.cpp
_NO_MEMORY_HERE = re.compile("can't allocate memory: you tried to allocate ([0-9]+) bytes")
_SOFTMAX = (aten._softmax.default, aten._log_softmax.default)
_COUNTING_FACTORIES = ("arange", "scalar_tensor")

CopyKey = tuple[str, str, str, str, str]
"""Phase, source device, target device, module that made the tensor, module that uses it."""


class Machine:
    """Virtual GPUs at work.

    Args:
        capacities: bytes of each GPU.
        values: ``real`` computes on the CPU; ``none`` drops the data of large floating-point
            tensors.
        on_mismatch: ``raise`` what CUDA raises, or ``collect`` it and move the tensors.
    """

    def __init__(self, capacities: Sequence[int], values: Values, on_mismatch: OnMismatch) -> None:
        self.ledger = MemoryLedger(capacities)
        self.trace = Trace(self.ledger)
        self.ledger.begin(self.trace.phase)
        self.values = values
        self.on_mismatch = on_mismatch
        self.is_open = False
        self.problems: list[Problem] = []
        self.copies: Counter[CopyKey] = Counter()
        self.copied_bytes: Counter[CopyKey] = Counter()
        self.guesses: Counter[tuple[str, str]] = Counter()
        # storages of tensors whose data was dropped, by those that they had
        self._twins: WeakKeyDictionary[torch.UntypedStorage, Any] = WeakKeyDictionary()
        # of all threads: a loader pins in one of its own
        self.pinned: WeakKeyDictionary[torch.UntypedStorage, None] = WeakKeyDictionary()
        self.current: Callable[[], int] = lambda: 0
        self.watched: Callable[[], AbstractContextManager[Any]] = nullcontext

    def current_device(self) -> int:
        """Index of the GPU that a bare ``cuda`` means in this thread."""
        return self.current()

    def dispatch(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `operator`, after CUDA's check of its devices.

        Raises:
            MixedDeviceError: if CUDA would refuse the devices and `on_mismatch` is ``raise``.
            NotImplementedError: if CUDA has no kernel for the operator, or none for the dtype.
            PlacementError: if the context of a tensor has been left, or a tensor is on a real GPU.
        """
        tensors = leaves(args, kwargs)
        self._check_owners(tensors)
        special = _SPECIAL.get(operator)
        if special is not None:
            return special(self, operator, args, kwargs)
        if is_implicit(operator):  # in inference mode, or behind it of a tensor that was made there
            return self._by_parts(operator, IMPLICIT, args, kwargs)
        if is_cpu_only(operator):
            raise NotImplementedError(
                f"Could not run '{operator.name()}' with arguments from the 'CUDA' backend: it "
                f"exists for the CPU alone ({self._where()})"
            )
        if is_gpu_only(operator) and not any(content(tensor).is_meta for tensor in tensors):
            raise NotImplementedError(
                f"Virtual GPUs cannot run '{operator.name()}', which is not made for the CPU "
                f"({self._where()})"
            )
        device, mismatch = check_devices(operator, args, kwargs, tensors)
        if mismatch is not None:
            kernel = composite_kernel(operator)
            if kernel is not None and mismatch.message != NO_DATA:
                return self._by_parts(operator, kernel, args, kwargs)
            args, kwargs = self._repaired(operator, args, kwargs, device, mismatch)
        self._check_dtypes(operator, tensors, device)
        with _as_the_base(operator, args):
            return self._run(operator, args, kwargs, device)

    def _check_dtypes(
        self, operator: Any, tensors: Sequence[torch.Tensor], device: torch.device
    ) -> None:
        message = refused_dtype(operator, tensors) if device.type == "cuda" else None
        if message is not None:
            raise NotImplementedError(f"{message} ({operator}, {self._where()})")

    def _by_parts(
        self, operator: Any, kernel: DispatchKey, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the kernel of `operator` that is made of others; each of them is dispatched here."""
        with self.watched(), lazy_views():
            return operator._op_dk(kernel, *args, **kwargs)

    def move(
        self,
        tensor: torch.Tensor,
        device: torch.device,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> torch.Tensor:
        """Return a copy of `tensor` on `device`; recorded if that is another device."""
        self._check_owners((tensor,))
        if tensor.device == META != device:
            self._note(aten._to_copy.default, Mismatch(NO_DATA, device, META))
        if tensor.device != device and device != META and tensor.numel():
            made_in = tensor.made_in if isinstance(tensor, VirtualTensor) else ""
            size = tensor.numel() * tensor.element_size()
            self.crossed(size, tensor.device, device, made_in)
        source = content(tensor)
        if device == META:
            source = source.to(META)
        if device.type == "cuda" and self._drops(source):
            source = source.to(META)
        if device.type == "cuda":
            self.check_room(source.numel() * (dtype or source.dtype).itemsize, device)
        options = {} if memory_format is None else {"memory_format": memory_format}
        copy = aten._to_copy.default(source, dtype=dtype, **options)
        is_guessed = device == CPU or (
            copy.dtype == torch.bool and copy.numel() <= _GUESSED_INTEGERS
        )
        if is_guessed and copy.device == META and device != META and not copy.is_floating_point():
            copy = self._guess(aten._to_copy.default, copy)
        return self._place(copy, device)

    def crossed(
        self, size: int, source: torch.device, target: torch.device, made_in: str = ""
    ) -> None:
        """Record a copy of `size` bytes from one device to another."""
        key = self.trace.phase, str(source), str(target), made_in, self.trace.module
        self.copies[key] += 1
        self.copied_bytes[key] += size

    def place_of(self, storage: torch.UntypedStorage) -> torch.device:
        """Return the device of a storage: the GPU that it is counted on, if any."""
        gpu = self.ledger.gpu_of(storage)
        return device_of_memory(storage) if gpu is None else torch.device("cuda", gpu)

    def hold(self, storage: torch.UntypedStorage, size: int, device: torch.device) -> None:
        """Count a storage on a GPU, where it has `size` bytes or is about to have them."""
        assert device.index is not None
        trace = self.trace
        self.ledger.hold(storage, size, device.index, trace.phase, trace.module, self._where)

    def check_room(self, size: int, device: torch.device) -> None:
        """Raise ``torch.OutOfMemoryError`` if a GPU has no room for `size` bytes more."""
        assert device.index is not None
        self.ledger.check_room(size, device.index, self._where)

    def saved(self, tensor: VirtualTensor) -> torch.Tensor:
        """Return the content of `tensor` for a file.

        Raises:
            MetaTensorError: of a tensor whose data was dropped.
            PlacementError: if the context of the tensor has been left.
        """
        self._check_owners((tensor,))
        if tensor.content.is_meta:
            self._note(aten._to_copy.default, Mismatch(NO_DATA, tensor.device, META))
        return tensor.content

    def attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """``scaled_dot_product_attention``, as a kernel that keeps no score matrix.

        C++ would believe the query's device and choose a CUDA kernel. Shapes are those of
        PyTorch: (..., heads, length, head size).
        """
        operator = aten.scaled_dot_product_attention.default
        operands = (query, key, value, attn_mask)
        self._check_owners(leaves(operands))
        operands, _, device = self._same_device(operator, operands, {})
        query, key, value, attn_mask = replace_leaves(content, operands)
        if META in (query.device, key.device, value.device):
            *batch, heads, length, _ = query.shape
            shape = (*batch, length, heads, value.shape[-1])
            # a flash kernel writes (batch, length, heads, head size) and returns a view
            output = torch.empty(shape, dtype=query.dtype, device=META).transpose(-2, -3)
            return self._place(output, device)
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            output = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
        return self._place(output, device)

    def recurrent(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Run a recurrent layer, or a cell of one, by the kernel of the CPU.

        Args:
            function: one of `CELLS` or `LAYERS`.
            args: its arguments.
        """
        self._check_owners(leaves(args))
        operator: Any
        if function in CELLS:
            operator = CELLS[function]
            args, _, device = self._same_device(operator, args, {})
        else:
            operator = LAYERS[function]
            call = LayerCall.read(args)
            device, mismatch = call.device(), call.mismatch()
            if mismatch is not None:
                movable, _ = self._repaired(operator, call.movable(), {}, device, mismatch)
                call = call.moved(*movable)
            args = call.arguments()
        args = replace_leaves(_content_with_gradients, args)
        if any(tensor.is_meta for tensor in leaves(args)):
            # the number of rows at each step is read: it stays
            args = replace_leaves(lambda t: _without_data(t) if t.is_floating_point() else t, args)
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            result = function(*args)
        return replace_leaves(
            lambda out: self._place(
                self._with_or_without_data(operator, out.detach(), device), device
            ),
            result,
        )

    def _to_copy(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        target = args[0].device if device is None else self.gpu(torch.device(device))
        return self.move(args[0], target, kwargs.get("dtype"), kwargs.get("memory_format"))

    def _copy_into(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target, source = args[0], args[1]
        if target.device == META:
            return target
        if source.device != target.device:
            source = self.move(source, target.device)
        into, values = content(target), content(source)
        if into.device != META:
            into.zero_() if values.device == META else into.copy_(values)
        return target

    def _set(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let a tensor take the memory of another tensor, or a storage."""
        tensor, source, *shape = args
        device = tensor.device
        is_tensor = isinstance(source, torch.Tensor)
        found = source.device if is_tensor else self.place_of(source)
        if found != device:
            message = RULES["set"].message.format(expected=device, found=found)
            self._note(operator, Mismatch(message, device, found))
            if not is_tensor and device_of_memory(source).type == "cuda":
                # C++ took the memory of a wrapper, out of which no value can be moved
                raise MixedDeviceError(self.problems[-1])
            octets = source if is_tensor else self._octets(source)
            moved = self.move(octets, device)
            source = moved if is_tensor else moved.untyped_storage()
        inner = content(tensor)
        given = content(source) if is_tensor else source
        memory = given.device if isinstance(given, torch.Tensor) else device_of_memory(given)
        if isinstance(tensor, VirtualTensor) and inner.device != memory:
            # without data, small tensors have values, and large ones have none
            inner = torch.empty(0, dtype=inner.dtype, device=memory)
        operator(inner, given, *shape)
        if isinstance(tensor, VirtualTensor):
            tensor.content = self._dropped(inner, device) if self._drops(inner) else inner
            self._follow_contents((tensor,))
        return tensor

    def _dropped(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return `tensor` without data; what shared its storage shares one again, counted once."""
        storage = tensor.untyped_storage()
        if storage not in self._twins:
            size = storage.nbytes()
            twin = torch.empty(size, dtype=torch.uint8, device=META).untyped_storage()
            self.hold(storage, 0, device)  # the twin has its bytes
            self.hold(twin, size, device)
            self._twins[storage] = twin
        place = tensor.storage_offset(), tensor.size(), tensor.stride()
        empty = torch.empty(0, dtype=tensor.dtype, device=META)
        return empty.set_(self._twins[storage], *place)

    def _octets(self, storage: torch.UntypedStorage) -> torch.Tensor:
        octets = torch.empty(0, dtype=torch.uint8, device=device_of_memory(storage)).set_(storage)
        return self._place(octets, self.place_of(storage))

    def _item(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = content(args[0])
        if value.device == META:
            value = self._guess(operator, value)
        return operator(value)

    def _index(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs, device = self._same_device(operator, args, kwargs)
        tensor, indices, *rest = args
        if content(tensor).device == META:
            # a mask whose values are real selects as many elements as it would of real data
            indices = [
                index
                for mask in indices
                for index in (content(mask).nonzero().unbind(1) if _is_real_mask(mask) else [mask])
            ]
        return self._run(operator, (tensor, indices, *rest), kwargs, device)

    def _without_libraries(
        self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Say that the GPU vendor's library has no kernel: PyTorch's own is for the CPU, too."""
        return False

    def _histogram(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """CUDA's ``histc`` takes integers, the CPU kernel only floating-point numbers."""
        self._check_dtypes(operator, args[:1], args[0].device)
        numbers = content(args[0])
        if numbers.is_floating_point() or numbers.device == META:
            return self._run(operator, args, kwargs, args[0].device)
        counts = operator(numbers.double(), *args[1:], **kwargs).to(numbers.dtype)
        return self._place(counts, args[0].device)

    def _masked_scatter(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """CUDA's kernel keeps an int64 prefix sum and the expanded mask beside its operands."""
        args, kwargs, device = self._same_device(operator, args, kwargs)
        result = self._run(operator, args, kwargs, device)
        if device.type == "cuda":
            size = _SCATTER_WORKSPACE * args[0].numel()
            self._count(torch.empty(size, dtype=torch.uint8, device=META), device)
        return result

    def _check_owners(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            if isinstance(tensor, VirtualTensor):
                if tensor.owner is not self or not self.is_open:
                    raise PlacementError(
                        f"A tensor on virtual {tensor.device} is used after its `with "
                        "VirtualGPUs(...)` block has ended.",
                        "Copy what you need with .cpu() inside the block.",
                    )
            elif tensor.is_cuda:
                raise PlacementError(
                    f"A tensor on a real GPU ({tensor.device}) is used among virtual ones.",
                    "Move it to the CPU before the `with VirtualGPUs(...)` block.",
                )

    def _same_device(
        self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], torch.device]:
        device, mismatch = check_devices(operator, args, kwargs, leaves(args, kwargs))
        if mismatch is not None:
            args, kwargs = self._repaired(operator, args, kwargs, device, mismatch)
        return args, kwargs, device

    def _repaired(
        self,
        operator: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        device: torch.device,
        mismatch: Mismatch,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Note a mismatch and return the arguments on one device."""
        self._note(operator, mismatch)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if may_stay(tensor, device) else self.move(tensor, device)

        repaired: tuple[tuple[Any, ...], dict[str, Any]] = replace_leaves(moved, (args, kwargs))
        return repaired

    def _note(self, operator: Any, mismatch: Mismatch) -> None:
        problem = Problem(
            message=mismatch.message,
            operation=str(operator),
            devices=(str(mismatch.expected), str(mismatch.found)),
            module=self.trace.module,
            source=source_line(),
            phase=self.trace.phase,
        )
        self.problems.append(problem)
        if META in (mismatch.expected, mismatch.found):
            raise MetaTensorError(problem)  # nothing could be moved
        if self.on_mismatch == "raise":
            raise MixedDeviceError(problem)

    def _run(
        self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
    ) -> Any:
        """Run `operator` on the contents and put its results on `device`."""
        in_place = args[0] if args else None
        wrapped: dict[int, torch.Tensor] = {}
        has_no_data = False

        def unwrap(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal has_no_data
            inner = content(tensor)
            wrapped[id(inner)] = tensor
            has_no_data = has_no_data or inner.is_meta
            return inner

        args, kwargs = replace_leaves(unwrap, (args, kwargs))
        if kwargs.get("device") is not None:
            device = self.gpu(torch.device(kwargs["device"]))
            kwargs["device"] = self._content_device(operator, args, kwargs, device)
            if device.type == "cuda":
                self._make_room(operator, args, kwargs, device)
        elif has_no_data or (self.values == "none" and _is_larger(args, device)):
            args, kwargs = replace_leaves(_without_data, (args, kwargs))
        try:
            result = _called(operator, args, kwargs)
        except (NotImplementedError, RuntimeError, IndexError) as error:
            self._check_memory_of(error, device)
            error.add_note(f"{operator}, {self._where()}")
            raise

        if operator._schema.is_mutable:
            self._follow_contents(wrapped.values())
        if _returns_its_first(operator) and isinstance(result, torch.Tensor):
            return in_place

        def placed(out: torch.Tensor) -> torch.Tensor:
            known = wrapped.get(id(out))
            if known is not None:
                return known
            return self._place(self._with_or_without_data(operator, out, device), device)

        return replace_leaves(placed, result)

    def _follow_contents(self, tensors: Iterable[torch.Tensor]) -> None:
        """Let tensors take over sizes that an operator gave to their contents."""
        for tensor in tensors:
            if isinstance(tensor, VirtualTensor):
                tensor.follow_content()
                if tensor.is_cuda:
                    self._count(tensor.content, tensor.device)

    def gpu(self, device: torch.device) -> torch.device:
        """Return `device`, with its index if it is a GPU.

        Raises:
            PlacementError: if there is no such GPU.
        """
        if device.type != "cuda":
            return device
        index = self.current_device() if device.index is None else device.index
        if index >= len(self.ledger.capacities):
            raise PlacementError(
                f"There is no virtual GPU {index}: "
                f"the last one is cuda:{len(self.ledger.capacities) - 1}."
            )
        return torch.device("cuda", index)

    def _content_device(
        self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
    ) -> torch.device:
        """Return the device on which a factory makes the content of a tensor on `device`."""
        if device.type != "cuda":
            return device
        like = next(iter(leaves(args)), None)
        dtype = kwargs.get("dtype") or (
            torch.get_default_dtype() if like is None else like.dtype
        )  # fmt: skip
        is_counting = operator.__name__.startswith(_COUNTING_FACTORIES)
        drops = self.values == "none" and dtype.is_floating_point and not is_counting
        return META if drops else CPU

    def _check_memory_of(self, error: Exception, device: torch.device) -> None:
        """Raise OutOfMemoryError if this computer lacked what a GPU has no room for either."""
        needed = _NO_MEMORY_HERE.search(str(error))
        if needed and device.type == "cuda":
            self.check_room(int(needed[1]), device)

    def _make_room(
        self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
    ) -> None:
        """Raise OutOfMemoryError before a tensor is made that this computer has no room for."""
        if not args or operator._schema.arguments[0].name != "size":
            return
        assert device.index is not None
        most = math.prod(args[0]) * torch.complex128.itemsize
        if not self.ledger.has_room(most, device.index):  # what it takes is up to the operator
            without_data = {**kwargs, "device": META}
            without_data.pop("generator", None)  # which is of another device
            like = operator(*args, **without_data)
            self.check_room(like.untyped_storage().nbytes(), device)

    def _with_or_without_data(
        self, operator: Any, out: torch.Tensor, device: torch.device
    ) -> torch.Tensor:
        if self.values == "real" or device == META:
            return out
        if out.device != META:
            return out.to(META) if device.type == "cuda" and self._drops(out) else out
        is_view = out._base is not None
        if out.is_floating_point() or is_view or out.numel() > _GUESSED_INTEGERS:
            return out
        return self._guess(operator, out)

    def _drops(self, tensor: torch.Tensor) -> bool:
        is_large = tensor.is_floating_point() and tensor.numel() > _SMALL_FLOATS
        return self.values == "none" and tensor.device == CPU and is_large

    def _guess(self, operator: Any, like: torch.Tensor) -> torch.Tensor:
        """Return values in place of those that were not computed.

        They are zeros, like a comparison that finds nothing; but a conversion to bool gives true.
        """
        self.guesses[str(operator), self.trace.module] += 1
        is_conversion = operator is aten._to_copy.default and like.dtype == torch.bool
        return (torch.ones if is_conversion else torch.zeros)(like.shape, dtype=like.dtype)

    def _place(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if tensor.device == device:
            return tensor
        if tensor.layout != torch.strided:
            raise NotImplementedError(
                f"Virtual GPUs have no tensors of layout {tensor.layout}: make it dense first, "
                f"with .to_dense() ({self._where()})."
            )
        if device.type == "cuda":
            self._count(tensor, device)
        return VirtualTensor.wrap(tensor, device, self.trace.module, self)

    def _count(self, content: torch.Tensor, gpu: torch.device) -> None:
        storage = content.untyped_storage()
        self.hold(storage, storage.nbytes(), gpu)

    def _where(self) -> str:
        module = self.trace.module
        return f"in {f'module {module}' if module else 'no submodule'}, {source_line()}"

    def forget(self) -> None:
        """Clear all records; tensors are not touched."""
        self.problems.clear()
        for book in (self.copies, self.copied_bytes, self.guesses, self.trace.forwards):
            book.clear()
        self.ledger.reset_peaks()
        self.ledger.begin(self.trace.phase)

    def guess_records(self) -> tuple[Guess, ...]:
        """Return the guesses so far."""
        return tuple(Guess(name, module, n) for (name, module), n in self.guesses.items())


def _as_the_base(operator: Any, args: tuple[Any, ...]) -> AbstractContextManager[Any]:
    """Leave inference mode for views of a tensor that was made outside it, and enter it for others.

    A view of a tensor that was made outside is not an inference tensor either, and PyTorch, which
    lets it share the version of its base, refuses one that is. A view of an inference tensor is
    one, wherever it is taken, so that writing through it is refused outside of the mode; but for
    that of another dtype.
    """
    if not operator.is_view:
        return nullcontext()
    is_inference = args[0].is_inference()
    if is_inference == torch.is_inference_mode_enabled():
        return nullcontext()
    is_exempt = is_inference and operator is aten.view.dtype
    return nullcontext() if is_exempt else torch.inference_mode(is_inference)


def _called(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an operator; two of them in the form that the content's device supports.

    Without data, grouped products of other dtypes are called as those of bfloat16: on ``meta``
    torch 2.13 refuses all others, which its kernels for CPU and CUDA take. A softmax that converts
    from float16, which autocast asks for, is CUDA's alone.
    """
    if operator in _SOFTMAX and args[2] and not args[0].is_meta:
        return operator(args[0].float(), args[1], False)
    is_grouped = operator.name() == "aten::_grouped_mm"  # torch 2.6 has none
    if is_grouped and args[0].is_meta and args[0].dtype != torch.bfloat16:
        factors = (each.to(torch.bfloat16) for each in args[:2])
        return operator(*factors, *args[2:], **kwargs).to(args[0].dtype)
    return operator(*args, **kwargs)


@cache
def _returns_its_first(operator: Any) -> bool:
    """Tell whether an operator writes into its first argument and returns it.

    The names of those that do end in an underscore; that of ``a << b`` does, too.
    """
    arguments, returns = operator._schema.arguments, operator._schema.returns
    aliases = [each[0].alias_info for each in (arguments, returns) if each]
    return len(aliases) == 2 and all(each is not None and each.is_write for each in aliases)


def _is_larger(args: tuple[Any, ...], device: torch.device) -> bool:
    """Tell whether tensors on a GPU broadcast to a result of more than `_COMPUTED` elements."""
    shapes = [arg.shape for arg in args if isinstance(arg, torch.Tensor)]
    if len(shapes) < 2 or device.type != "cuda":
        return False
    rank = max(map(len, shapes))
    sides = ([1] * (rank - len(shape)) + [*shape] for shape in shapes)
    columns = [{*sizes} - {1} for sizes in zip(*sides, strict=True)]
    if any(len(sizes) > 1 for sizes in columns):
        return False
    return math.prod(sizes.pop() for sizes in columns if sizes) > _COMPUTED


def _content_with_gradients(tensor: torch.Tensor) -> torch.Tensor:
    """Return the content, which asks for gradients if its tensor does.

    ``matmul`` folds its first operand if the second one does, which changes last bits.
    """
    inner = content(tensor)
    return inner.detach().requires_grad_() if tensor.requires_grad else inner


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device == META:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


def _is_real_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool and content(index).device == CPU


_SPECIAL: dict[Any, Callable[..., Any]] = {
    aten._to_copy.default: Machine._to_copy,
    aten.copy_.default: Machine._copy_into,
    aten._local_scalar_dense.default: Machine._item,
    aten.histc.default: Machine._histogram,
    aten.masked_scatter.default: Machine._masked_scatter,
    aten.masked_scatter_.default: Machine._masked_scatter,
    **dict.fromkeys(SETS, Machine._set),
    **dict.fromkeys(_OF_LIBRARIES, Machine._without_libraries),
    **dict.fromkeys(_INDEXING, Machine._index),
}
