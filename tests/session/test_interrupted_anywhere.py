"""Interrupts at random moments: nothing is lost, and the next answer is the same.

A moment is a function call, counted from where the magic begins: of this package, IPython, PIL,
torch or transformers. So the moments are spread over all that happens, and a seed repeats them.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from interrupting import Interrupter, interruptible
from shells import TINY

from glm4v_magic.core.conversation import Answer
from glm4v_magic.virtual_gpus import active

ASK = "%%glm4v cat.png -o answer --temperature 0 --max-tokens 8\nWhat is this?"
__all__ = ["interruptible"]

AGAIN = ASK.replace("-o answer", "-o again")
LOAD = f"%glm4v load {TINY}"
CHECK = f"%glm4v check {TINY} --gpus 2x1GiB"


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


# Interrupts of a question, a load and a check.
TIMES = [
    pytest.param((20, 8, 4), id="32"),
    pytest.param((60, 25, 15), id="100", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize("times_of", TIMES)
def test_interrupts_at_any_moment(interruptible, shell, tiny, photo, run, times_of):
    run("kept = ['mine']")
    run(ASK)
    expected = shell.user_ns["answer"].text
    assert expected
    state = torch_state()
    context = shell.magics_manager.registry["Glm4vMagics"].context
    chosen = random.Random(20)
    met = Counter()
    cells = (("", ASK), ("%glm4v unload", LOAD), ("", CHECK))
    for (prepare, cell), times in zip(cells, times_of, strict=True):
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
            if interrupter.where is None:
                # What is kept of earlier calls had made it shorter, or it was drawn less often.
                met["over before"] += 1
                counted = interrupter
                continue
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
    number = sum(times_of)
    assert met["swallowed"] < 0.3 * number
    assert met["over before"] < 0.4 * number
    assert met["kept"] + met["nothing yet"] == number
    assert met["kept"] >= 0.15 * number
    assert met["nothing yet"] >= 0.3 * number
