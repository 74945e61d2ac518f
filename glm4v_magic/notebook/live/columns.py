"""Where a comparison is shown: a table that grows by a column, lines of a terminal, nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from IPython.core.displaypub import DisplayPublisher

from glm4v_magic.core.events import (
    ColumnBegun,
    ColumnDone,
    Event,
    Loading,
    Started,
    Starting,
    Text,
    Thinking,
    Waiting,
)
from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.live.output import Head, Output, show
from glm4v_magic.notebook.live.screen import Screen, screen_for
from glm4v_magic.notebook.live.stop_button import is_watched
from glm4v_magic.notebook.render.answers.head import answering_line
from glm4v_magic.notebook.render.answers.image import strip_bundle
from glm4v_magic.notebook.render.answers.media import media_bundles
from glm4v_magic.notebook.render.compared import compared_bundle, compared_summary

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from glm4v_magic.calls.compared import ComparedAnswers

__all__ = ["Columns", "columns_for"]


def columns_for(
    shell: InteractiveShell,
    model: str,
    *,
    quiet: bool,
    button: bool,
    told: set[str] | None = None,
) -> Columns:
    """Return what shows a comparison in what `shell` is connected to.

    Args:
        shell: the running shell.
        model: name of the model in use, or of the one that the next question loads.
        quiet: show nothing at all.
        button: offer a Stop button where one can work.
        told: as in `Screen`.
    """
    if quiet:
        return Columns()
    # As in `screen_for`: only IPython's own publisher cannot replace an output.
    if type(shell.display_pub) is DisplayPublisher:
        return TerminalColumns(shell, model, button=button, told=told)
    return NotebookColumns(shell, model, button=button, told=told)


class Columns:
    """Base; shows nothing."""

    def show(self, event: Event) -> None:
        """Show an event; called with each event, in order."""

    def stop_if_pressed(self) -> None:
        """Raise KeyboardInterrupt if the Stop button was pressed."""

    def finish(self, comparison: ComparedAnswers) -> None:
        """Show the comparison: it has ended or was stopped."""

    def close(self) -> None:
        """Leave nothing half drawn; called at the end of every call."""


class _WithScreens(Columns):
    """Shows how each model is loaded, on a screen of its own.

    Args:
        shell: the running shell.
        model: as in `columns_for`.
        button: whether there may be a Stop button.
        told: as in `Screen`.
    """

    def __init__(
        self, shell: InteractiveShell, model: str, *, button: bool, told: set[str] | None = None
    ) -> None:
        self._shell = shell
        self._model = model
        self._may_have_button = button
        self._told = set() if told is None else told
        self._screen = Screen()
        self._is_asked = False
        self._has_begun = False

    def show(self, event: Event) -> None:
        """Show an event."""
        match event:
            case ColumnBegun():
                self._load(event.model or self._model)
                self._is_asked = True
                self.begin(event.name)
            case Starting() | Loading():
                self._screen.show(event)
            case Started():
                self._screen.loaded(event.info)
                self._screen.stop_if_pressed()
                if self._is_asked and not self._has_begun:
                    self._has_begun = True
                    self.start(event)
                if event.info.notice:
                    self._told.add(event.info.notice)
            case Waiting():
                self._screen.show(event)
                self.step()
            case Text() | Thinking():
                self.step()
            case ColumnDone():
                self._is_asked = False
                self.column(event.result)
                self._screen.stop_if_pressed()  # a server may have failed since it was pressed
                self._load(self._model)  # at the end it is loaded again, if it has made room

    def _load(self, model: str) -> None:
        self._screen.close()
        self._screen = screen_for(self._shell, model, button=self._may_have_button, told=self._told)

    def stop_if_pressed(self) -> None:
        """Look at the button of the bar."""
        self._screen.stop_if_pressed()

    def close(self) -> None:
        """Leave no bar half drawn."""
        self._screen.close()

    def begin(self, name: str) -> None:
        """Called when a model or setting is asked next."""

    def start(self, event: Started) -> None:
        """Called when the first of them begins to answer."""

    def step(self) -> None:
        """Called for each new piece of text."""

    def column(self, comparison: ComparedAnswers) -> None:
        """Called when one has answered or failed."""


class NotebookColumns(_WithScreens):
    """The images, the table so far, and a line with a Stop button if the cell is watched."""

    def __init__(
        self, shell: InteractiveShell, model: str, *, button: bool, told: set[str] | None = None
    ) -> None:
        super().__init__(shell, model, button=button, told=told)
        self._head = Head(shell, button=button) if is_watched(shell) else None
        self._output: Output | None = None
        self._is_open = False
        self._name = ""

    def begin(self, name: str) -> None:
        """Say who is asked."""
        self._name = name
        if self._head is not None and self._is_open:
            self._head.say(answering_line(name))

    def start(self, event: Started) -> None:
        """Show the images, and the line."""
        bundles, thumbnails = media_bundles(event.media, event.seen)
        for bundle in bundles:
            show(bundle)
        if self._head is not None:
            self._head.start(answering_line(self._name), thumbnails)
            self._is_open = True
        elif thumbnails:
            show(strip_bundle(thumbnails))

    def step(self) -> None:
        """Check the Stop button.

        Raises:
            KeyboardInterrupt: if it was pressed; all ends then as when the kernel is interrupted.
        """
        if self._head is not None and self._head.stop_pressed:
            raise KeyboardInterrupt

    def stop_if_pressed(self) -> None:
        """Look at the buttons of the bar and of the line."""
        super().stop_if_pressed()
        self.step()

    def column(self, comparison: ComparedAnswers) -> None:
        """Show the table so far."""
        self._output = self._output or Output()
        self._output.show(compared_bundle(comparison))
        self.step()

    def finish(self, comparison: ComparedAnswers) -> None:
        """Show the table, and end the line."""
        self._output = self._output or Output()
        self._output.show(compared_bundle(comparison))
        if self._head is not None:
            self._head.finish(compared_summary(comparison))
            self._is_open = False

    def close(self) -> None:
        """End the line."""
        super().close()
        if self._head is not None:
            self._head.finish("No answer.")


class TerminalColumns(_WithScreens):
    """Names who is asked, and prints the table at the end."""

    def begin(self, name: str) -> None:
        """Say who is asked."""
        _say(answering_line(name))

    def start(self, event: Started) -> None:
        """Name images and frames."""
        bundles, thumbnails = media_bundles(event.media, event.seen)
        for bundle in [*bundles, *([strip_bundle(thumbnails)] if thumbnails else [])]:
            _say(bundle["text/plain"])

    def finish(self, comparison: ComparedAnswers) -> None:
        """Print the table."""
        _say(compared_bundle(comparison)["text/plain"])


def _say(text: str) -> None:
    print(printable(text), flush=True)  # noqa: T201  what a terminal is for
