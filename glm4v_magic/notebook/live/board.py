"""Boards: where a map shows its progress (outputs of a notebook, lines of a terminal, nowhere).

A board lives for one run, as a screen does for one answer, and keeps the latest progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from IPython.core.displaypub import DisplayPublisher

from glm4v_magic.core.events import Event, RowDone, Started, Text, Thinking, Waiting
from glm4v_magic.core.rows import AnsweredRow, OrderedRows, Progress
from glm4v_magic.notebook.live.output import Head, Output
from glm4v_magic.notebook.live.stop_button import is_watched
from glm4v_magic.notebook.render.answers.head import finished_line
from glm4v_magic.notebook.render.pace import LONGEST_SECONDS, Pace
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

    from glm4v_magic.core.model import EngineInfo

__all__ = ["Board", "NotebookBoard", "TerminalBoard", "board_for"]

_TERMINAL_SECONDS = 2.0

_SILENT_SECONDS = 3.0
"""Seconds without a word after which that is shown in place of the time that is left."""


def board_for(
    shell: InteractiveShell,
    total: int,
    *,
    quiet: bool,
    button: bool,
    told: set[str] | None = None,
) -> Board:
    """Return the board for what `shell` is connected to.

    Args:
        shell: the running shell.
        total: number of all rows.
        quiet: show nothing at all.
        button: offer a Stop button where one can work.
        told: as in `Screen`.
    """
    if quiet:
        return Board()
    # As in `screen_for`: only IPython's own publisher cannot replace an output.
    if type(shell.display_pub) is DisplayPublisher:
        return TerminalBoard(told)
    head = Head(shell, button=button) if is_watched(shell) else None
    return NotebookBoard(total, head, told)


class Board:
    """Base of all boards; shows nothing.

    Args:
        told: as in `Screen`.

    Attributes:
        progress: latest progress; ``None`` until a row is done.
    """

    def __init__(self, told: set[str] | None = None) -> None:
        self.progress: Progress | None = None
        self._told = set() if told is None else told
        self._notice = ""

    @property
    def rows(self) -> Sequence[AnsweredRow]:
        """Rows that are answered or have failed, in order."""
        done = () if self.progress is None else self.progress.rows
        if isinstance(done, OrderedRows):
            return done
        return [row for _, row in sorted({row.index: row for row in done}.items())]

    def show(self, event: Event) -> None:
        """Show an event; called with each event, in order."""
        match event:
            case Started():
                self._notice = event.info.notice
                self.start(event.info)
            case RowDone():
                self.row(event.progress)
                if event.progress.done < event.progress.total:
                    self.step()
            case Text() | Thinking():
                self.step()
            case Waiting() if event.seconds >= _SILENT_SECONDS:
                self.silent(event)
            case Waiting():
                self.step()

    def start(self, info: EngineInfo) -> None:
        """Called when the model begins; not if every answer is known."""

    def step(self) -> None:
        """Called for each row and piece of text, and while the next is waited for."""

    def silent(self, waiting: Waiting) -> None:
        """Called instead of `step` when nothing has come for a while."""

    def row(self, progress: Progress) -> None:
        """Called when a row is done."""
        self.progress = progress

    def stop_if_pressed(self) -> None:
        """Raise KeyboardInterrupt if the Stop button was pressed."""

    def finish(self) -> None:
        """Show the table: the run has ended or was stopped."""

    def close(self) -> None:
        """Leave nothing half drawn; called at the end of every call."""

    def _tell(self) -> None:
        if self._notice:
            self._told.add(self._notice)


class NotebookBoard(Board):
    """A progress bar that becomes the table; below it a head if the cell is watched.

    Args:
        total: number of all rows.
        head: has the Stop button, and announces the progress now and then.
        told: as in `Screen`.
    """

    def __init__(self, total: int, head: Head | None = None, told: set[str] | None = None) -> None:
        super().__init__(told)
        self._total = total
        self._head = head
        self._output = Output()
        self._pace = Pace()
        self._pace_of_silence = Pace(LONGEST_SECONDS)
        self._open = self._is_silent = False
        self._model = self._said = ""

    def start(self, info: EngineInfo) -> None:
        """Show the head, below the bar."""
        if self._head is None:
            return
        if not self._open:
            self._move(self._so_far)
        self._model = info.model
        self._said = rows_answering_line(self._model, self._done, self._total)
        self._head.start(self._said)

    def step(self) -> None:
        """Check the Stop button.

        Raises:
            KeyboardInterrupt: if it was pressed; the run then ends as it does when the kernel is
                interrupted.
        """
        if self._is_silent:
            self._move(self._so_far)
        self.stop_if_pressed()

    def silent(self, waiting: Waiting) -> None:
        """Say what is waited for, for how long is not known; raises as `step` does."""
        if self._pace_of_silence.due():
            self._move(self._so_far, waiting)
        self.stop_if_pressed()

    def stop_if_pressed(self) -> None:
        """Look at the button of the head."""
        if self._head is not None and self._head.stop_pressed:
            raise KeyboardInterrupt

    def row(self, progress: Progress) -> None:
        """Move the bar; announce every quarter of the rows."""
        super().row(progress)
        if self._is_silent or self._pace.due():
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
        self._output.show(rows_bundle(self.rows, self._total, self._told, fresh=self._so_far.fresh))
        self._tell()
        if self._head is not None:
            self._head.finish(summary(self.rows, self._total, fresh=self._so_far.fresh))

    def close(self) -> None:
        """Replace a bar that did not become a table."""
        if self._open:
            self._output.show(line_bundle(f"{rows_progress_line(self._so_far)}, not finished."))
        if self._head is not None:
            self._head.finish(finished_line(None))

    @property
    def _done(self) -> int:
        return 0 if self.progress is None else self.progress.done

    @property
    def _so_far(self) -> Progress:
        return self.progress or Progress((), self._total, 0.0, 0, list)

    def _move(self, progress: Progress, waiting: Waiting | None = None) -> None:
        self._open, self._is_silent = True, waiting is not None
        self._output.show(rows_progress_bundle(progress, waiting))


class TerminalBoard(Board):
    """Prints a line now and then, and the table at the end."""

    def __init__(self, told: set[str] | None = None) -> None:
        super().__init__(told)
        self._pace = Pace(_TERMINAL_SECONDS)
        self._is_silent = False

    def step(self) -> None:
        """Note that something has come, or is not missed yet."""
        self._is_silent = False

    def silent(self, waiting: Waiting) -> None:
        """Say once what is waited for."""
        if not self._is_silent and self.progress is not None:
            _say(rows_progress_line(self.progress, waiting))
        self._is_silent = True

    def row(self, progress: Progress) -> None:
        """Print the progress."""
        super().row(progress)
        if self._pace.due():
            _say(rows_progress_line(progress))

    def finish(self) -> None:
        """Print the table."""
        if self.progress is not None:
            of = self.progress
            shown = rows_bundle(self.rows, of.total, self._told, fresh=of.fresh)
            _say(shown["text/plain"])
            self._tell()


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  what a terminal is for
