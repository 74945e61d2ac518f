"""``torch.export`` traces what is below the modes of virtual GPUs, and is refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

import torch

__all__ = ["exports_refused", "refuse_export"]

_NAMES = ("export", "draft_export")
_DRAFT = "torch.export._draft_export"
"""Imported by ``draft_export`` as it is called: it would end in a text of many lines before any
function that the modes see."""


def refuse_export(*_: Any, **__: Any) -> NoReturn:
    """Refuse ``torch.export``.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "torch.export does not see virtual GPUs: export the model on the CPU, before or after "
        "their block."
    )


@contextmanager
def exports_refused() -> Iterator[None]:
    """Refuse them by whatever name they are called, also one that was imported before."""
    originals = {
        name: getattr(torch.export, name) for name in _NAMES if hasattr(torch.export, name)
    }
    before = sys.modules.get(_DRAFT)
    stand_in = ModuleType(_DRAFT)
    vars(stand_in)["draft_export"] = refuse_export
    for name in originals:
        setattr(torch.export, name, refuse_export)
    sys.modules[_DRAFT] = stand_in
    try:
        yield
    finally:
        del sys.modules[_DRAFT]
        if before is not None:
            sys.modules[_DRAFT] = before
        for name, original in originals.items():
            setattr(torch.export, name, original)
