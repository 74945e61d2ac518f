"""Ask GLM vision models about images in a notebook cell.

In a notebook::

    In [1]: %load_ext glm4v_magic

    In [2]: %%glm4v cat.png
       ...: What is the cat doing?

In Python::

    >>> import glm4v_magic
    >>> session = glm4v_magic.load()
    >>> print(session.ask("What is the cat doing?", images=["cat.png"]))

Importing this package imports nothing else: the public names are looked up when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from glm4v_magic.calls.answer import ImageAnswer
    from glm4v_magic.core.conversation import Answer, Conversation, Message, Usage
    from glm4v_magic.core.errors import (
        ComparisonInterrupted,
        GenerationInterrupted,
        Glm4vError,
        LoadInterrupted,
        MapInterrupted,
    )
    from glm4v_magic.core.options import Sampling
    from glm4v_magic.session.session import Session, load

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "ComparisonInterrupted",
    "Conversation",
    "GenerationInterrupted",
    "Glm4vError",
    "ImageAnswer",
    "LoadInterrupted",
    "MapInterrupted",
    "Message",
    "Sampling",
    "Session",
    "Usage",
    "load",
    "load_ipython_extension",
    "unload_ipython_extension",
]

_HOMES = {
    "Answer": "core.conversation",
    "ImageAnswer": "calls.answer",
    "Conversation": "core.conversation",
    "Message": "core.conversation",
    "Sampling": "core.options",
    "Usage": "core.conversation",
    "ComparisonInterrupted": "core.errors",
    "GenerationInterrupted": "core.errors",
    "LoadInterrupted": "core.errors",
    "Glm4vError": "core.errors",
    "MapInterrupted": "core.errors",
    "Session": "session.session",
    "load": "session.session",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from glm4v_magic.imports import import_whole

    home = f"{__name__}.{_HOMES[name]}"
    import_whole(home)
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register ``%glm4v`` and ``%%glm4v``: what ``%load_ext glm4v_magic`` calls."""
    from glm4v_magic.notebook import magics

    magics.register(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Remove the magics and release the model: what ``%unload_ext glm4v_magic`` calls.

    ``%reload_ext`` calls it, too; then model and chats are kept.
    """
    from glm4v_magic.notebook import magics

    magics.unregister(shell)
