"""Where things are, and shells to run cells in."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests" / "data" / "golden" / "checkpoint"


@contextlib.contextmanager
def ipython_shell(folder):
    """An IPython shell without the extension, its settings and history in `folder`."""
    from IPython.core.history import HistoryManager
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    main, hooks = sys.modules["__main__"], (sys.displayhook, sys.excepthook)
    before = InteractiveShell._instance
    config = Config()
    config.HistoryManager.hist_file = ":memory:"
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(
        config=config, ipython_dir=str(folder), user_module=ModuleType("__main__")
    )
    yield shell
    shell.reset(new_session=False)
    shell.history_manager.end_session()
    getattr(HistoryManager, "_instances", set()).clear()  # IPython 7 keeps none
    InteractiveShell.clear_instance()
    if before is not None:  # a module's shell, which this one stood in for
        for each in type(before)._walk_mro():
            each._instance = before
    sys.modules["__main__"] = main
    sys.displayhook, sys.excepthook = hooks


def fresh_shell(*lines):
    """Run line magics in a Python of their own; returns its output and its imported modules."""
    code = f"""
import sys
from traitlets.config import Config
from IPython.core.interactiveshell import InteractiveShell
config = Config()
config.HistoryManager.enabled = False
shell = InteractiveShell.instance(config=config)
shell.run_line_magic("load_ext", "glm4v_magic")
for line in {lines!r}:
    shell.run_line_magic("glm4v", line)
print("", *sys.modules, sep="\\n\\0")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown, *modules = done.stdout.split("\n\0")
    return shown, {name.strip() for name in modules}


def open_widgets():
    """The widgets that are not closed, by their numbers."""
    from ipywidgets.widgets import widget

    # IPython widgets 7 have them in a public place, from which 8 warns off.
    return widget._instances if hasattr(widget, "_instances") else widget.Widget.widgets


class InterruptingStream:
    """Standard output that a user interrupts as soon as some text has been written to it."""

    def __init__(self, stream, text, interrupt):
        self._stream, self._text, self._interrupt = stream, text, interrupt

    def write(self, text):
        self._stream.write(text)
        if self._text in text:
            self._text = "\x00never"
            self._interrupt()

    def __getattr__(self, name):
        return getattr(self._stream, name)
