"""Where a run of many rows shows how far it is: a notebook's outputs, a terminal's lines, nowhere.

A board lives for one run, as a screen does for one answer, and keeps what the run has told last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from IPython.core.displaypub import DisplayPublisher

from glm4v_magic.core.events import Event, RowDone, Started, Text, Thinking
from glm4v_magic.core.rows import Progress
from glm4v_magic.notebook.live.output import Head, Output
from glm4v_magic.notebook.live.stop_button import is_watched
from glm4v_magic.notebook.render.head import finished_line
from glm4v_magic.notebook.render.pace import Pace
from glm4v_magic.notebook.render.progress import line_bundle
from glm4v_magic.notebook.render.rows import (
    rows_answering_line,
    rows_bundle,
    rows_progress_bundle,
    rows_progress_line,
    summary,
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from glm4v_magic.core.events import Event, RowDone, Started, Text, Thinking
    from glm4v_magic.core.model import EngineInfo
from glm4v_magic.core.rows import AnsweredRow

__all__ = ["Board", "NotebookBoard", "TerminalBoard", "board_for"]

_TERMINAL_SECONDS = 2.0


def board_for(shell: InteractiveShell, total: int, *, quiet: bool, button: bool) -> Board:
    """Return the board for what `shell` is connected to.

    Args:
        shell: the running shell.
        total: of all rows.
        quiet: show nothing at all.
        button: offer a button that stops the run, where one can work.
    """
    if quiet:
        return Board()
    # As in `screen_for`: only IPython's own publisher cannot replace an output.
    if type(shell.display_pub) is DisplayPublisher:
        return TerminalBoard()
    return NotebookBoard(total, Head(shell, button=button) if is_watched(shell) else None)


class Board:
    """What a run has told; this one shows nothing of it.

    Attributes:
        progress: the latest; ``None`` until a row is done.
    """

    def __init__(self) -> None:
        self.progress: Progress | None = None

    @property
    def rows(self) -> list[AnsweredRow]:
        """Rows that are answered or have failed, in their order."""
        done = () if self.progress is None else self.progress.rows
        return [row for _, row in sorted({row.index: row for row in done}.items())]

    def show(self, event: Event) -> None:
        """Show an event; called with each, in their order."""
        match event:
            case Started():
                self.start(event.info)
            case RowDone():
                self.row(event.progress)
            case Text() | Thinking():
                self.step()

    def start(self, info: EngineInfo) -> None:
        """The model begins. Not called if every answer is known."""

    def step(self) -> None:
        """The model has said a little more."""

    def row(self, progress: Progress) -> None:
        """One more row is done."""
        self.progress = progress

    def finish(self) -> None:
        """The run has ended, or was stopped: show the table."""

    def close(self) -> None:
        """The call is over, well or not: leave nothing half drawn."""


class NotebookBoard(Board):
    """The bar, which becomes the table; and if somebody is watching, a head below it.

    Args:
        total: of all rows.
        head: has the Stop button, and says how far it is now and then.
    """

    def __init__(self, total: int, head: Head | None = None) -> None:
        super().__init__()
        self._total = total
        self._head = head
        self._output = Output()
        self._pace = Pace()
        self._open = False
        self._model = self._said = ""

    def start(self, info: EngineInfo) -> None:
        """Show the head, below the bar."""
        if self._head is None:
            return
        if not self._open:
            self._move(Progress((), self._total, 0.0, 0, list))
        self._model = info.model
        self._said = rows_answering_line(self._model, self._done, self._total)
        self._head.start(self._said)

    def step(self) -> None:
        """Look at the button.

        Raises:
            KeyboardInterrupt: if it was pressed; the run then ends as it does when the kernel is
                interrupted.
        """
        if self._head is not None and self._head.stop_pressed:
            raise KeyboardInterrupt

    def row(self, progress: Progress) -> None:
        """Move the bar; say so if another quarter of the rows is done."""
        super().row(progress)
        if self._pace.due():
            self._move(progress)
        if self._head is not None and self._said:
            line = rows_answering_line(self._model, self._done, self._total)
            if line != self._said:
                self._said = line
                self._head.say(line)

    def finish(self) -> None:
        """Replace the bar by the table."""
        if self.progress is None:
            return
        self._open = False
        self._output.show(rows_bundle(self.rows, self._total))
        if self._head is not None:
            self._head.finish(summary(self.rows, self._total))

    def close(self) -> None:
        """Replace a bar that never became a table."""
        if self._open:
            progress = self.progress or Progress((), self._total, 0.0, 0, list)
            self._output.show(line_bundle(f"{rows_progress_line(progress)}, not finished."))
        if self._head is not None:
            self._head.finish(finished_line(None))

    @property
    def _done(self) -> int:
        return 0 if self.progress is None else len(self.progress.rows)

    def _move(self, progress: Progress) -> None:
        self._open = True
        self._output.show(rows_progress_bundle(progress))


class TerminalBoard(Board):
    """A line now and then, and the table at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace(_TERMINAL_SECONDS)

    def row(self, progress: Progress) -> None:
        """Print how far it is."""
        super().row(progress)
        if self._pace.due():
            _say(rows_progress_line(progress))

    def finish(self) -> None:
        """Print the table."""
        if self.progress is not None:
            _say(rows_bundle(self.rows, self.progress.total)["text/plain"])


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  what a terminal is for
