"""`VirtualGPUs`: within its ``with`` block, this computer has the described GPUs."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, get_args

import torch
from torch import nn

from glm4v_magic.virtual_gpus.converted import swapped_parameters
from glm4v_magic.virtual_gpus.dlpack import exporters, inner_functions
from glm4v_magic.virtual_gpus.exporting import exports_refused
from glm4v_magic.virtual_gpus.facade import CudaFacade
from glm4v_magic.virtual_gpus.first_use import forget_first_use
from glm4v_magic.virtual_gpus.generators import VirtualGenerator
from glm4v_magic.virtual_gpus.guard import install_noop_cuda_guard
from glm4v_magic.virtual_gpus.lazy import lazy_weights_refused
from glm4v_magic.virtual_gpus.machine import Machine, OnMismatch, Values
from glm4v_magic.virtual_gpus.meta_model import without_data
from glm4v_magic.virtual_gpus.modes import (
    has_torch_function,
    operators_watched,
    torch_function_checks,
    virtual_devices,
)
from glm4v_magic.virtual_gpus.nested import nested_makers
from glm4v_magic.virtual_gpus.package import (
    GPU,
    MAX_GPUS,
    GPUDescriptionError,
    OptionError,
    PlacementError,
    parse_gpus,
)
from glm4v_magic.virtual_gpus.parallel import collectives
from glm4v_magic.virtual_gpus.report import CopyRecord, MemoryPeak, Problem, Report
from glm4v_magic.virtual_gpus.saving import files_of_gpus, queues_of_processes
from glm4v_magic.virtual_gpus.storages import storages_on_gpus
from glm4v_magic.virtual_gpus.streams import Ranges, VirtualEvent, VirtualStream

__all__ = ["VirtualGPUs", "active"]

ModelT = TypeVar("ModelT", bound=nn.Module)

_in_use = threading.Lock()
_active: list[VirtualGPUs] = []


def active() -> VirtualGPUs | None:
    """Return the virtual GPUs whose block is running, if any."""
    return _active[-1] if _active else None


def _after_fork() -> None:
    for gpus in _active:
        gpus._machine.ledger.is_forked = True


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)


class VirtualGPUs:
    """CPU tensors that live on ``cuda:k``.

    Examples:
        >>> with VirtualGPUs("2x16GiB") as gpus:
        ...     x = torch.ones(2, device="cuda:0") + torch.ones(2, device="cuda:0")
        ...     y = x.to("cuda:1").cpu()
        >>> y
        tensor([2., 2.])
        >>> [(copy.source, copy.target, copy.total_bytes) for copy in gpus.copies]
        [('cuda:0', 'cuda:1', 8), ('cuda:1', 'cpu', 8)]

    Inside the block, ``from_pretrained(device_map=...)``, ``dispatch_model`` and ``generate`` work
    as they are, in all threads that start inside it. What they compute is what one CPU computes,
    bit by bit; mixing devices and running out of memory raise the errors of a real machine.
    Virtual tensors cannot leave the block: copy results with ``.cpu()``.

    Not modelled: backward passes on CUDA and CUDA graphs. Work of all streams is done in the order
    it is called. Random numbers on a GPU are those of the CPU. ``torch.compile`` returns its
    function unchanged, and what was compiled before runs as it was written. Reading a value
    (``item()``, ``bool()``) is not counted as a copy; ``cpu()`` and ``tolist()`` are.

    Args:
        gpus: a description such as ``"4x16GiB"`` (see `core.gpu_spec`), or the capacity of
            each GPU in bytes, or `GPU` objects.
        values: ``"real"`` computes on the CPU; for models that fit into it. ``"none"`` drops the
            data of every large floating-point tensor, so that a model of any size takes no
            memory, while ids, masks, position ids and the model's control flow stay real; whole
            numbers that would depend on dropped data, such as the next token, are zero.
        on_mismatch: ``"raise"`` CUDA's error when an operation mixes devices, or ``"collect"``
            it in `problems`, move the tensors and go on.
        available: let ``torch.cuda.is_available()`` be true, so that a program written for GPUs
            runs as it is. It is not by default, as some libraries then use the CUDA runtime.

    Raises:
        GPUDescriptionError: if `gpus` describes no GPU or cannot be read.
        OptionError: if `values` or `on_mismatch` is none of the above.
    """

    def __init__(
        self,
        gpus: str | Sequence[int] | Sequence[GPU],
        *,
        values: Values = "real",
        on_mismatch: OnMismatch = "raise",
        available: bool = False,
    ) -> None:
        _check_choice("values", values, get_args(Values))
        _check_choice("on_mismatch", on_mismatch, get_args(OnMismatch))
        self.gpus = _read_gpus(gpus)
        self._machine = Machine([gpu.usable_bytes for gpu in self.gpus], values, on_mismatch)
        self._facade = CudaFacade(self.gpus, self._machine.ledger, available)
        self._machine.current = self._facade.current_device
        self._machine.watched = partial(operators_watched, self._machine)
        self._undo: ExitStack | None = None
        self._was_entered = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Put the virtual GPUs in place, for the whole process.

        Raises:
            PlacementError: inside another `VirtualGPUs` block, on entering the same object twice,
                or if this build of PyTorch cannot have virtual GPUs.
        """
        if self._was_entered:
            raise PlacementError(
                "These virtual GPUs were in use already.", "Make new ones for each `with` block."
            )
        if not _in_use.acquire(blocking=False):
            raise PlacementError(
                "Virtual GPUs are in use already, and only one set can be.",
                "End the `with VirtualGPUs(...)` block around this one first.",
            )
        self._was_entered = True
        self._open()
        return self

    def _open(self) -> None:
        """Put the virtual GPUs in place; the lock is held, and released with them."""
        with ExitStack() as undo:
            undo.callback(_in_use.release)
            undo.callback(install_noop_cuda_guard())
            undo.callback(forget_first_use)
            machine = self._machine
            functions = self._facade.functions()
            for module in (torch.cuda, torch.cuda.memory, torch.cuda.random):
                undo.enter_context(_replaced(module, functions))
            undo.enter_context(_replaced(torch.cuda.nvtx, {"_nvtx": Ranges()}))
            undo.enter_context(_replaced(torch.cuda.profiler, _PROFILER))
            undo.enter_context(_replaced(torch.cuda.nccl, {"is_available": lambda tensors: False}))
            undo.enter_context(_replaced(torch._C, collectives(), is_new=True))
            undo.enter_context(_replaced(torch._C, self._facade.exchanges()))
            undo.enter_context(_replaced(torch._C, inner_functions()))
            undo.enter_context(_replaced(torch, exporters()))
            undo.enter_context(_replaced(torch.utils.dlpack, exporters()))
            undo.enter_context(_replaced(torch.nested, nested_makers()))
            undo.enter_context(_replaced(torch.accelerator, self._facade.accelerator_functions()))
            undo.enter_context(_replaced(torch.cuda.amp.common, {_NO_AMP: lambda: False}))
            undo.enter_context(_replaced(torch, _IN_TORCH))
            undo.enter_context(exports_refused())
            undo.enter_context(_nothing_compiled())
            undo.enter_context(_replaced(torch.backends.cudnn, {"is_acceptable": _never}))
            undo.enter_context(_replaced(nn.functional, torch_function_checks()))
            if machine.values == "real":  # fused kernels exist for real values alone
                undo.enter_context(
                    _replaced(torch.overrides, {"has_torch_function": has_torch_function})
                )
            undo.enter_context(files_of_gpus(machine))
            undo.enter_context(queues_of_processes())
            undo.enter_context(_replaced(nn.Module, {"__call__": self._traced_call()}))
            undo.enter_context(_replaced(threading.Thread, {"start": self._traced_start()}))
            undo.enter_context(swapped_parameters())
            undo.enter_context(lazy_weights_refused())
            undo.enter_context(storages_on_gpus(machine))
            undo.enter_context(virtual_devices(self._machine))
            undo.callback(setattr, self._machine, "is_open", False)
            undo.callback(_active.remove, self)
            _active.append(self)
            self._machine.is_open = True
            self._thread = threading.current_thread()
            self._undo = undo.pop_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the block; if an interrupt stopped that, a second call completes it."""
        if self._undo is not None:
            self._undo.close()
            self._undo = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """End the block and begin it again, so that other virtual GPUs can be used meanwhile.

        Tensors on these GPUs stay as they are, and no thread can compute with them until then.
        Other virtual GPUs that another thread uses are waited for.

        Raises:
            PlacementError: at the end, if this thread has not ended the others that it began.
        """
        self.close()
        try:
            yield
        finally:
            if not _in_use.acquire(blocking=False):
                _refuse_to_wait_for_oneself()
                _in_use.acquire()
            self._open()

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """``cuda:0``, ``cuda:1``, ..."""
        return tuple(torch.device("cuda", gpu.index) for gpu in self.gpus)

    @property
    def max_memory(self) -> dict[int, int]:
        """Capacities in bytes, as ``max_memory`` of accelerate expects them."""
        return {gpu.index: gpu.usable_bytes for gpu in self.gpus}

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Operations that mixed devices, in the order they happened."""
        return tuple(self._machine.problems)

    @property
    def copies(self) -> tuple[CopyRecord, ...]:
        """Copies between devices, by phase, devices and modules."""
        machine = self._machine
        return tuple(
            CopyRecord(*key, count=count, total_bytes=machine.copied_bytes[key])
            for key, count in machine.copies.copy().items()
        )

    @property
    def peaks(self) -> tuple[MemoryPeak, ...]:
        """The fullest moment of each GPU in each phase."""
        return self._machine.ledger.peaks()

    @property
    def live_bytes(self) -> tuple[int, ...]:
        """Bytes of the live tensors on each GPU."""
        return tuple(self._machine.ledger.live_bytes(gpu.index) for gpu in self.gpus)

    def report(self) -> Report:
        """Return everything recorded so far, as plain data; works after the block, too."""
        return Report(
            problems=self.problems,
            copies=self.copies,
            peaks=self.peaks,
            live_bytes=self.live_bytes,
            forwards=tuple(self._machine.trace.forwards.items()),
            guesses=self._machine.guess_records(),
        )

    def reset(self) -> None:
        """Forget problems, copies, peaks, forwards and guesses; tensors are not touched."""
        self._machine.forget()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count everything inside the returned ``with`` block, in all threads, under `name`.

        Without it the phase is found automatically: ``load`` until the first forward, then
        ``prefill`` or ``decode`` by what the outermost forward is given.
        """
        return self._machine.trace.in_phase(name)

    def without_data(self, model: ModelT) -> ModelT:
        """Give a model built on ``meta`` parameters that can be dispatched; returns `model`.

        The parameters become data-less tensors on a virtual CPU, in place, tied ones still tied;
        ``dispatch_model`` or ``.to("cuda:0")`` put them on GPUs. Only within the block.

        Raises:
            PlacementError: outside of the block, or with ``values="real"``.
        """
        if self._machine.values == "real":
            raise PlacementError(
                "A model without data has no real values.",
                'Use VirtualGPUs(..., values="none") for it.',
            )
        if not self._machine.is_open:
            raise PlacementError(
                "without_data works inside the `with VirtualGPUs(...)` block only."
            )
        without_data(model, self._machine)
        return model

    def _traced_call(self) -> Callable[..., Any]:
        call = nn.Module.__call__
        trace = self._machine.trace

        def __call__(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            return trace.call(call, module, args, kwargs)

        return __call__

    def _traced_start(self) -> Callable[[threading.Thread], None]:
        start = threading.Thread.start
        machine = self._machine

        def run_with_virtual_devices(thread: threading.Thread, run: Callable[[], None]) -> None:
            del thread.run  # the method of the class shows again
            with virtual_devices(machine):
                run()

        def start_with_virtual_devices(thread: threading.Thread) -> None:
            # Modes belong to a thread; one that starts inside the block gets its own pair.
            thread.run = partial(  # type: ignore[method-assign]
                run_with_virtual_devices, thread, thread.run
            )
            start(thread)

        return start_with_virtual_devices


def _refuse_to_wait_for_oneself() -> None:
    other = active()
    if other is not None and other._thread is threading.current_thread():
        raise PlacementError(
            "Virtual GPUs that were begun within paused() are in use still.",
            "End them (close()) before that block ends.",
        )


_NO_AMP = "amp_definitely_not_available"


def _compile_nothing(model: Any = None, **options: Any) -> Any:
    """Replaces ``torch.compile``: compiled code would not see the virtual devices."""
    return model if model is not None else lambda function: function


def _nothing_compiled() -> AbstractContextManager[Any]:
    """Run what was compiled before as it was written, within the returned ``with`` block."""
    if "torch._dynamo" not in sys.modules:  # nothing was
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _never(tensor: torch.Tensor) -> bool:
    """Replaces ``cudnn.is_acceptable``: weights of recurrent layers are not packed for cuDNN."""
    return False


_PROFILER = {"start": lambda: None, "stop": lambda: None}
_IN_TORCH = {
    "compile": _compile_nothing,
    "Event": VirtualEvent,
    "Generator": VirtualGenerator,
    # a later answer of the cached one would be of GPUs that are gone
    "get_device_module": inspect.unwrap(torch.get_device_module),
    "Stream": VirtualStream,
}


@contextmanager
def _replaced(
    target: Any, replacements: Mapping[str, Any], *, is_new: bool = False
) -> Iterator[None]:
    """Replace attributes within the block: those that are there, or all and for the first time."""
    originals = {name: getattr(target, name) for name in replacements if hasattr(target, name)}
    added = replacements.keys() - originals if is_new else ()
    for name in (*originals, *added):
        setattr(target, name, replacements[name])
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(target, name, original)
        for name in added:
            delattr(target, name)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(
            f"{option}={value!r} is unknown.", "It is " + " or ".join(map(repr, choices)) + "."
        )


def _read_gpus(gpus: str | Sequence[int] | Sequence[GPU]) -> tuple[GPU, ...]:
    if isinstance(gpus, str):
        machine = parse_gpus(gpus)
    elif isinstance(gpus, Sequence):
        machine = tuple(
            replace(gpu, index=index) if isinstance(gpu, GPU) else GPU(index, "GPU", _positive(gpu))
            for index, gpu in enumerate(gpus)
        )
    else:
        raise GPUDescriptionError(
            f"GPUs are described by a string or a list of sizes, not by {type(gpus).__name__}.",
            'Write for example VirtualGPUs("4x16GiB").',
        )
    if not 0 < len(machine) <= MAX_GPUS:
        raise GPUDescriptionError(
            f"Virtual GPUs need 1 to {MAX_GPUS} GPUs, and {gpus!r:.40} has {len(machine)}.",
            'Write for example VirtualGPUs("4x16GiB").',
        )
    return machine


def _positive(size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise GPUDescriptionError(f"{size!r:.40} is not the size of a GPU in bytes.")
    return size
