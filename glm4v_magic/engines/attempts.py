"""Retries without the prefix cache what has run out of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from glm4v_magic.checkpoints.reading import forget_locals
from glm4v_magic.engines.out_of_memory import is_out_of_memory
from glm4v_magic.engines.prefixes import KeptPrefix, PrefixStore

__all__ = ["Attempts"]

_Result = TypeVar("_Result")


class Attempts:
    """Calls functions, and calls them again if memory runs out, after dropping all cached prefixes.

    Such a function must leave everything in a state in which it may be called again.

    Args:
        kept: prefix cache.

    Attributes:
        shared: prefix that rows of a call have in common; held besides what is kept, so that rows
            which enter later share it even if nothing is kept.
    """

    def __init__(self, kept: PrefixStore) -> None:
        self._kept = kept
        self.shared: KeptPrefix | None = None

    @property
    def are_repeated(self) -> bool:
        """Whether there is anything to drop; otherwise functions are called once."""
        return self.shared is not None or not self._kept.is_empty

    def __call__(self, action: Callable[[], _Result]) -> _Result:
        """Call `action`, and once more if memory runs out and there is anything to drop."""
        try:
            return action()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self.are_repeated:
                raise
            forget_locals(error)
        self.shared = None
        self._kept.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return action()

    def spare(self, action: Callable[[], _Result]) -> _Result | None:
        """Call `action`, which can be done without; returns ``None`` if memory runs out."""
        try:
            return self(action)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            forget_locals(error)
        return None
