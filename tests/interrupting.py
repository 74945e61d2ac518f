"""Interrupts at a random line of this package."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from IPython.utils.capture import capture_output

import glm4v_magic

PACKAGE = Path(glm4v_magic.__file__).parent


class Interrupter:
    """Counts the calls within the magic, and sends the stop button's signal at one of them."""

    def __init__(self, at=None):
        self.at = at
        self.calls = 0
        self.where = None
        self.swallowed = False
        self._inside = False

    def __call__(self, frame, event, _):
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code.co_name == "glm4v" and code.co_filename == str(PACKAGE / "notebook" / "magics.py"):
            self._inside = event == "call"
        if not self._inside or event != "call":
            return
        self.calls += 1
        if self.calls == self.at:
            self.where = f"{Path(code.co_filename).stem}.{code.co_name}"
            self._inside = False
            os.kill(os.getpid(), signal.SIGINT)

    def run(self, shell, cell):
        before = sys.unraisablehook

        def unraisable(unraised):
            # A destructor, a callback of a weak reference or a generator that is thrown away lets
            # nothing out: Python goes on there as if nothing had been pressed.
            if unraised.exc_type is KeyboardInterrupt:
                self.swallowed = True
            else:
                before(unraised)

        sys.unraisablehook = unraisable
        try:
            with capture_output() as captured:
                sys.setprofile(self)
                try:
                    result = shell.run_cell(cell, store_history=True)
                finally:
                    sys.setprofile(None)
        finally:
            sys.unraisablehook = before
        return result, captured


@pytest.fixture
def interruptible():
    """Take the signal as a kernel does; a run in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
