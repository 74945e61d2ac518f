"""Imports in a thread of their own: whole, whatever interrupts the wait."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from glm4v_magic.calls import forms
from glm4v_magic.checkpoints import pretrained
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.engines import grammars
from glm4v_magic.imports import import_slowly, import_whole


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Return a library whose import waits in its middle, and the state of that."""
    state = SimpleNamespace(begun=threading.Event(), may_end=threading.Event(), runs=0)
    sys.modules["state_of_slow_library"] = state
    (tmp_path / "slow_library.py").write_text(
        "import state_of_slow_library as state\n"
        "state.runs += 1\n"
        "state.begun.set()\n"
        "assert state.may_end.wait(60)\n"
        "whole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield state
    state.may_end.set()
    for name in ("slow_library", "state_of_slow_library"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupt_when(event):
    def wait():
        assert event.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_an_interrupt_ends_the_wait_and_not_the_import(library):
    assert threading.current_thread() is threading.main_thread()
    thread = _interrupt_when(library.begun)
    with pytest.raises(KeyboardInterrupt):
        import_whole("slow_library")
    thread.join()
    library.may_end.set()
    import_whole("slow_library")
    assert sys.modules["slow_library"].whole
    assert library.runs == 1


def test_a_stop_between_two_yields_does_not_end_the_import(library):
    steps = import_slowly("slow_library")
    next(steps)
    steps.close()
    library.may_end.set()
    assert list(import_slowly("slow_library")) in ([], [None])  # it may be at its end already
    assert sys.modules["slow_library"].whole
    assert library.runs == 1


def test_what_is_imported_takes_no_step(library):
    library.may_end.set()
    import_whole("slow_library")
    assert list(import_slowly("slow_library", "sys")) == []


def test_in_another_thread_there_is_nothing_to_wait_for(library):
    library.may_end.set()
    done = []
    thread = threading.Thread(target=lambda: done.append(list(import_slowly("slow_library"))))
    thread.start()
    thread.join()
    assert done == [[]]
    assert sys.modules["slow_library"].whole


@pytest.mark.parametrize(
    ("user", "ask"),
    [
        (grammars, lambda: grammars.require(Constraint(schema="{}"))),
        (forms, lambda: forms.check_schema({})),
        (pretrained, lambda: pretrained.require_mergeable(SimpleNamespace(), {})),
    ],
    ids=["llguidance", "jsonschema", "peft"],
)
def test_a_first_question_or_load_does_not_make_an_interrupt_wait(monkeypatch, user, ask):
    def interrupted(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(user, "import_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask()


def test_a_failing_import_is_told_and_tried_again(tmp_path, monkeypatch):
    file = tmp_path / "half_installed.py"
    file.write_text("raise ImportError('a part is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="a part is missing"):
        import_whole("half_installed")
    file.write_text("whole = 'as it should be'")
    importlib.invalidate_caches()
    import_whole("half_installed")
    assert sys.modules.pop("half_installed").whole
