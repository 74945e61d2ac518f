"""Import libraries where no interrupt can tear them apart.

An interrupt in the middle of an import leaves a library half made, and for many there is no second
time in the same process: PyTorch has registered its operators, NumPy refuses to be loaded again.
Python delivers interrupts to the main thread only, so imports run in another one: the main thread
waits and can be stopped at any moment, while the import goes on to its end.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

__all__ = ["import_slowly", "import_whole"]

# One thread: two that import each other's modules could meet a half-made one.
_executor = ThreadPoolExecutor(1, "glm4v_magic imports")
_PAUSE = 0.2


def import_whole(*names: str) -> None:
    """Import modules, each as a whole, whatever interrupts the wait.

    Args:
        names: names of modules, in the order of import; those imported already cost nothing.

    Raises:
        ImportError: as the import itself.
        KeyboardInterrupt: at once. The import goes on, and the next call waits for its end.
    """
    for future in _begin(names):
        future.result()


def import_slowly(*names: str) -> Iterator[None]:
    """Import modules as `import_whole`; yields some times a second until that is done."""
    for future in _begin(names):
        while not future.done():
            yield
            wait([future], timeout=_PAUSE)
        future.result()


def _begin(names: tuple[str, ...]) -> Iterator[Future[None]]:
    if all(_is_whole(name) for name in names):
        return
    if threading.current_thread() is threading.main_thread():
        yield _executor.submit(_import, names)
    else:  # no interrupt comes here
        _import(names)


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)


def _is_whole(name: str) -> bool:
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return module is not None and not getattr(spec, "_initializing", False)
