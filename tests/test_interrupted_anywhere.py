"""A hundred interrupts at random moments: nothing is lost, and the next answer is the same.

A moment is a function call, counted from where the magic begins: of this package, IPython, PIL,
torch or transformers. So the moments are spread over all that happens, and a seed repeats them.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import TINY
from IPython.utils.capture import capture_output

import glm4v_magic
from glm4v_magic.conversation import Answer
from glm4v_magic.virtual_gpus import active

PACKAGE = Path(glm4v_magic.__file__).parent
ASK = "%%glm4v cat.png -o answer --temperature 0 --max-tokens 8\nWhat is this?"
AGAIN = ASK.replace("-o answer", "-o again")
LOAD = f"%glm4v load {TINY}"
CHECK = f"%glm4v check {TINY} --gpus 2x1GiB"


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
        if code.co_name == "glm4v" and code.co_filename == str(PACKAGE / "magics.py"):
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


def torch_state():
    """What torch would do with the user's own tensors now."""
    return (
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.overrides._get_current_function_mode_stack(),
        torch.get_rng_state().tolist(),
    )


def test_a_hundred_interrupts(interruptible, shell, tiny, picture, run):
    run("kept = ['mine']")
    run(ASK)
    expected = shell.user_ns["answer"].text
    assert expected
    state = torch_state()
    context = shell.magics_manager.registry["Glm4vMagics"].context
    chosen = random.Random(20)
    met = Counter()
    for prepare, cell, times in (("", ASK, 60), ("%glm4v unload", LOAD, 25), ("", CHECK, 15)):
        if prepare:
            run(prepare)
        counted = Interrupter()
        result, _ = counted.run(shell, cell)
        assert result.success
        assert counted.calls > 1000
        tried = 0
        while tried < times:
            if prepare:
                run(prepare)
            shell.user_ns.pop("answer", None)
            interrupter = Interrupter(at=chosen.randrange(1, int(0.95 * counted.calls)))
            result, captured = interrupter.run(shell, cell)
            assert interrupter.where
            if interrupter.swallowed:
                met["swallowed"] += 1
                continue
            tried += 1
            assert isinstance(result.error_in_exec, KeyboardInterrupt), interrupter.where
            assert not context.session.status().busy
            assert torch_state() == state, interrupter.where
            assert active() is None, interrupter.where
            kept = shell.user_ns.get("answer")
            if kept is not None:
                assert isinstance(kept, Answer)
                assert expected.startswith(kept.text), interrupter.where
                assert shell.user_ns["_"] is kept
            met["kept" if kept is not None else "nothing yet"] += 1
            answers = [each for each in captured.outputs if "text/markdown" in each.data]
            assert sum(not each.update for each in answers) <= 1, interrupter.where
            assert shell.user_ns["kept"] == ["mine"]
            run(AGAIN)
            assert shell.user_ns["again"].text == expected, interrupter.where
            assert shell.user_ns["again"].finish_reason == "length"
    assert met["swallowed"] < 20
    assert met["kept"] + met["nothing yet"] == 100
    assert met["kept"] >= 15
    assert met["nothing yet"] >= 30
