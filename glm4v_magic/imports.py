"""Import libraries where no interrupt can tear them apart.

An interrupt in the middle of an import leaves a library half loaded, and many cannot be imported a
second time in the same process: PyTorch has registered its operators, NumPy refuses to be loaded
again.
Python delivers interrupts to the main thread only, so imports run in another one: the main thread
waits and can be stopped at any moment, while the import goes on to its end.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator

__all__ = ["define_network_classes", "import_slowly", "import_whole", "is_imported"]

_OF_THE_NETWORK = ("anyio.abc", "anyio.streams.file", "anyio.streams.tls")

_PAUSE = 0.2
_turn = threading.Lock()  # two threads that import each other's modules could meet a half-made one


def import_whole(*names: str) -> None:
    """Import modules, each as a whole, whatever interrupts the wait.

    Args:
        names: names of modules, in the order of import; modules imported already cost nothing.

    Raises:
        ImportError: as the import itself.
        KeyboardInterrupt: at once. The import goes on, and the next call waits for its end.
    """
    for under_way in _begun(names):
        under_way.done.wait()
        under_way.require_success()


def define_network_classes() -> None:
    """Import what servers are asked with, also beside nnsight.

    nnsight gives every object a method `save`. anyio refuses to define its classes while there is
    one, so that no server could be asked any more: the method is away for this moment.
    """
    nnsight, mounting = (sys.modules.get(name) for name in ("nnsight", "nnsight._c"))
    if nnsight is None or mounting is None or not hasattr(object, "save"):
        _define()
        return
    mounting.unmount("save")
    try:
        _define()
    finally:
        mounting.mount(nnsight.save, "save")


def _define() -> None:
    import_whole(*_OF_THE_NETWORK)
    getattr(sys.modules["anyio.abc"], "SocketAttribute")  # noqa: B009  imported when it is named


def import_slowly(*names: str) -> Iterator[None]:
    """Import modules as `import_whole`; yields some times a second until that is done."""
    for under_way in _begun(names):
        while not under_way.done.is_set():
            yield
            under_way.done.wait(_PAUSE)
        under_way.require_success()


def _begun(names: tuple[str, ...]) -> Iterator[_Import]:
    if all(map(is_imported, names)):
        return
    if threading.current_thread() is not threading.main_thread():
        _import(names)  # no interrupt comes here
        return
    thread = _Import(names)
    thread.start()
    yield thread


class _Import(threading.Thread):
    """Imports modules, after those that another thread of this kind is importing."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(name=f"import of {names[0]}")
        self.done = threading.Event()
        self._names = names
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            with _turn:
                _import(self._names)
        except BaseException as error:
            self._error = error
        finally:
            self.done.set()

    def require_success(self) -> None:
        """Raise what the import raised."""
        if self._error is not None:
            raise self._error


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)


def is_imported(name: str) -> bool:
    """Return whether a module is imported as a whole; ``False`` while that is under way."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return module is not None and not getattr(spec, "_initializing", False)
