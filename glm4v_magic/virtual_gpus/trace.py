"""Trace of the running model: module, phase and source line."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from glm4v_magic.virtual_gpus.memory import MemoryLedger
from glm4v_magic.virtual_gpus.report import SourceLine

__all__ = ["LOAD", "Trace", "source_line"]

LOAD, PREFILL, DECODE = "load", "prefill", "decode"


class Trace:
    """Follows the calls of modules, in every thread.

    A module is named as in ``named_modules()`` of the outermost module whose forward, or other
    method, is running; the model need not be known before. The phase is ``load`` until a forward
    begins. From then on each outermost forward decides: ``decode`` if it takes one token per
    sequence and a cache that is not empty, else ``prefill``.

    Args:
        ledger: has its peaks by phase, and so is told when one begins.
    """

    def __init__(self, ledger: MemoryLedger) -> None:
        self.forwards: Counter[str] = Counter()
        self._ledger = ledger
        self._names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._running = threading.local()
        self._detected = LOAD
        self._given: list[str] = []

    @property
    def phase(self) -> str:
        """Phase set by `in_phase`, else the detected one."""
        return self._given[-1] if self._given else self._detected

    @property
    def module(self) -> str:
        """Name of the innermost module whose forward runs in this thread, or ``""``."""
        stack = self._stack()
        return stack[-1][1] if stack else ""

    @contextmanager
    def in_phase(self, name: str) -> Iterator[None]:
        """Count everything inside to the phase `name`, whatever would be detected."""
        self._given.append(name)
        self._ledger.begin(name)
        try:
            yield
        finally:
            self._given.remove(name)
            self._ledger.begin(self.phase)

    def call(
        self, forward: Callable[..., Any], module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run ``forward(module, *args, **kwargs)`` as the call of `module`."""
        stack = self._stack()
        name = self._name(module, stack)
        if not stack:
            self._begin_step(name, args, kwargs)
        stack.append((module, name))
        try:
            return forward(module, *args, **kwargs)
        finally:
            stack.pop()

    def _stack(self) -> list[tuple[nn.Module, str]]:
        if not hasattr(self._running, "stack"):
            self._running.stack = []
        stack: list[tuple[nn.Module, str]] = self._running.stack
        return stack

    def _name(self, module: nn.Module, stack: list[tuple[nn.Module, str]]) -> str:
        name = self._names.get(module)
        if name is None:
            root = stack[0][0] if stack else _find_root(module)
            for path, child in root.named_modules(prefix=self._names.get(root, "")):
                self._names[child] = path
            name = self._names.get(module, type(module).__name__)
        return name

    def _begin_step(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        detected = _detect_phase(args, kwargs)
        if not self._given and detected != self._detected:
            self._ledger.begin(detected)
        self._detected = detected
        if not name:
            self.forwards[self.phase] += 1


def _find_root(module: nn.Module) -> nn.Module:
    """Return the model that `module` belongs to, if one of its methods is being called.

    ``generate`` may run the vision tower before, and outside of, the first forward of the model.
    """
    root = module
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        # Before Python 3.13 a frame keeps what was looked at, even after `del`: those of functions
        # with variables of a user's are none of ours.
        is_method = code.co_argcount > 0 and code.co_varnames[0] == "self"
        owner = frame.f_locals.get("self") if is_method else None
        if isinstance(owner, nn.Module) and any(child is root for child in owner.modules()):
            root = owner
        frame = frame.f_back
    return root


def _detect_phase(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    candidates = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1])
    tokens = next((value for value in candidates if isinstance(value, torch.Tensor)), None)
    cache = kwargs.get("past_key_values")
    one_token = tokens is not None and tokens.dim() > 1 and tokens.shape[1] == 1
    # The caches of transformers say whether they are empty; a tuple of tensors never is.
    filled = cache is not None and bool(getattr(cache, "is_initialized", True))
    return DECODE if one_token and filled else PREFILL


def source_line() -> SourceLine:
    """Return the innermost line on the stack that is not PyTorch's, accelerate's or ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_plumbing(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return SourceLine("?", 0, "?")
    code = linecache.getline(frame.f_code.co_filename, frame.f_lineno, frame.f_globals).strip()
    return SourceLine(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, code)


_HERE = str(Path(__file__).parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep
_ACCELERATE = f"{os.sep}accelerate{os.sep}"
_SITE_PACKAGES = f"{os.sep}site-packages{os.sep}"
_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep


def _is_plumbing(path: str) -> bool:
    if path.startswith((_HERE, _TORCH, "<frozen")) or _ACCELERATE in path:
        return True
    return path.startswith(_STANDARD_LIBRARY) and _SITE_PACKAGES not in path
