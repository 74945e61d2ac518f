"""What is on the screen while a cell runs: rows in their order, and no interrupt is lost."""

from __future__ import annotations

import contextlib

import pytest
from IPython.utils.capture import capture_output

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.events import RowDone, Starting, Text, Waiting
from glm4v_magic.core.rows import AnsweredRow, Progress
from glm4v_magic.notebook.live.board import NotebookBoard, TerminalBoard
from glm4v_magic.notebook.live.output import Head
from glm4v_magic.notebook.live.screen import NotebookScreen


def done(*indices):
    """The event of the last of these rows, which were done in this order."""
    rows = tuple(
        AnsweredRow(i, f"item {i}", i, "?", Answer(f"text {i}", "?", "m", Usage(1, 0, 1), "stop"))
        for i in indices
    )
    return RowDone(rows[-1], Progress(rows, 4, 1.0, 2, list))


def test_rows_that_are_done_in_another_order_stand_in_their_own(shell):
    board = NotebookBoard(4)
    with capture_output() as captured:
        for order in ((2,), (2, 0), (2, 0, 3), (2, 0, 3, 1)):
            board.show(done(*order))
        board.finish()
    assert [row.index for row in board.rows] == [0, 1, 2, 3]
    text = captured.outputs[-1].data["text/plain"]
    assert [text.index(f"text {i}") for i in range(4)] == sorted(
        text.index(f"text {i}") for i in range(4)
    )


@pytest.mark.parametrize("board", [NotebookBoard(4), TerminalBoard()])
def test_a_silent_server_is_named_in_place_of_the_time_that_is_left(shell, board):
    silent = Waiting("http://gpu:8000/v1", 12.0)
    with capture_output() as captured:
        for event in (done(2), Waiting("http://gpu:8000/v1", 0.3), silent, silent, Text("So", 1)):
            board.show(event)
    told = [each.data["text/plain"] for each in captured.outputs] or captured.stdout.splitlines()
    before = "1 of 4 rows, 1.0 rows/s, 3.0 s left, 2 at once"
    meanwhile = "1 of 4 rows, 2 at once, nothing from http://gpu:8000/v1 for 12.0 s"
    assert told == [before, meanwhile, before][: len(told)]
    assert len(told) == (3 if captured.outputs else 2)


@pytest.mark.parametrize("at", ["start", "finish"])
def test_an_interrupt_while_the_head_is_drawn_comes_after_it(shell, interrupt, monkeypatch, at):
    head = Head(shell, button=False)
    with capture_output() as captured:
        publish = shell.display_pub.publish

        def interrupted(*arguments, **options):
            interrupt()
            publish(*arguments, **options)

        if at == "finish":
            head.start("m is answering")
        monkeypatch.setattr(shell.display_pub, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            head.start("m is answering") if at == "start" else head.finish("done")
        monkeypatch.undo()
        head.finish("stopped")
    *_, last = captured.outputs
    assert ("done" if at == "finish" else "stopped") in last.data["text/html"]
    assert len({str(output.transient) for output in captured.outputs}) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyboardInterrupt, "PyTorch is still starting"), (RuntimeError, "Nothing was loaded.")],
)
def test_a_load_that_is_refused_leaves_no_word_of_a_start(shell, error, said):
    screen = NotebookScreen("demo")
    with capture_output() as captured, contextlib.suppress(error):
        try:
            screen.starting(Starting("PyTorch"))
            raise error
        finally:
            screen.close()
    assert captured.outputs[-1].data["text/plain"].startswith(said)
