"""Interrupts wait for an import that is under way, and for nothing else."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading

import pytest

from glm4v_magic.notebook.interrupts import imports_finish_first

INTERRUPT = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


@pytest.fixture(autouse=True)
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupted_library(tmp_path, monkeypatch):
    """Return the name of a library in whose import an interrupt comes."""
    (tmp_path / "inner_part.py").write_text(f"{INTERRUPT}[n for n in range(1000)]\nwhole = True\n")
    (tmp_path / "torn_library.py").write_text("import inner_part\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "torn_library"
    for name in ("torn_library", "inner_part"):
        sys.modules.pop(name, None)


def test_without_it_the_library_is_torn(interrupted_library):
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(interrupted_library)
    assert "torn_library" not in sys.modules


def _imported_and_then(reached, library=None):
    with imports_finish_first():
        if library is not None:
            importlib.import_module(library)
            reached.append("the end of the import")
            threading.Event().wait(60)  # the interrupt comes without anything else that happens
        else:
            os.kill(os.getpid(), signal.SIGINT)
        reached.extend(range(1000))


def test_the_import_ends_and_then_the_interrupt_comes(interrupted_library):
    reached = []
    with pytest.raises(KeyboardInterrupt):
        _imported_and_then(reached, interrupted_library)
    assert reached == ["the end of the import"]
    assert sys.modules["torn_library"].whole
    assert sys.modules["inner_part"].whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_that_ends_with_the_import_still_ends_in_the_interrupt(interrupted_library):
    with pytest.raises(KeyboardInterrupt), imports_finish_first():
        importlib.import_module(interrupted_library)
    assert sys.modules["torn_library"].whole


def test_elsewhere_an_interrupt_comes_at_once():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        _imported_and_then(reached)
    assert reached == []


def test_a_block_run_by_an_import_can_be_interrupted(tmp_path, monkeypatch):
    """A script that is imported may run cells; the import around them must not protect them."""
    (tmp_path / "script_with_cells.py").write_text(
        "from glm4v_magic.notebook.interrupts import imports_finish_first\n"
        "after = []\n"
        f"{INTERRUPT.splitlines()[0]}\n"
        "with imports_finish_first():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    after.extend(range(1000))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("script_with_cells")


def test_other_threads_leave_the_handler_alone():
    seen = []

    def work():
        with imports_finish_first():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
