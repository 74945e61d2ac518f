"""Screens: where an answer is shown (outputs of a notebook, lines of a terminal, nowhere).

A screen lives for one call and is handed the call's events. What it shows comes from `render`; it
only knows how to put that on this kind of front end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from IPython.core.displaypub import DisplayPublisher

from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.events import (
    Correcting,
    Event,
    Loading,
    Reclassified,
    Started,
    Starting,
    Text,
    Thinking,
    Waiting,
)
from glm4v_magic.core.options import Format
from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.live.output import Head, Output, Stoppable, show
from glm4v_magic.notebook.live.stop_button import is_watched
from glm4v_magic.notebook.render.answers.answer import LiveAnswer, footnotes
from glm4v_magic.notebook.render.answers.boxes import boxes_text
from glm4v_magic.notebook.render.answers.certainty import certainty_text
from glm4v_magic.notebook.render.answers.choices import choices_text
from glm4v_magic.notebook.render.answers.head import answering_line, finished_line
from glm4v_magic.notebook.render.answers.image import strip_bundle
from glm4v_magic.notebook.render.answers.media import media_bundles
from glm4v_magic.notebook.render.answers.thinking import thought_line
from glm4v_magic.notebook.render.pace import Pace, Rate
from glm4v_magic.notebook.render.progress import (
    line_bundle,
    loaded_line,
    loading_line,
    progress_bundle,
    starting_line,
    stopped_line,
    waiting_line,
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from glm4v_magic.core.image import SeenImage
    from glm4v_magic.core.model import EngineInfo, LoadProgress
    from glm4v_magic.core.video import Media

__all__ = ["NotebookScreen", "Screen", "TerminalScreen", "screen_for"]


class Screen:
    """Base of all screens; shows nothing: the answer is in its variable.

    Args:
        told: notices of models that were shown; a screen leaves them out, and adds its own.
    """

    def __init__(self, told: set[str] | None = None) -> None:
        self._told = set() if told is None else told
        self._notice = ""

    def show(self, event: Event) -> None:
        """Show an event; called with each event, in order."""
        match event:
            case Starting():
                self.starting(event)
            case Loading():
                self.loading(event.progress)
            case Waiting():
                self.waiting(event)
            case Started():
                self._notice = event.info.notice
                self.loaded(event.info)
                self.start(event.info, event.media, event.seen)
                if event.partial is not None:
                    self.begun(event.partial.text, event.partial.thinking)
            case Thinking():
                self.thinking(event.text)
            case Text():
                self.piece(event.text)
            case Reclassified():
                self.reclassified()
            case Correcting():
                self.begun(f"\n\n[{event.fault} It is asked once more.]\n\n")

    def starting(self, event: Starting) -> None:
        """Called repeatedly while a library is imported."""

    def loading(self, progress: LoadProgress) -> None:
        """Called while weights are being loaded."""

    def waiting(self, waiting: Waiting) -> None:
        """Called now and then while nothing comes, before the model is ready or after."""

    def loaded(self, info: EngineInfo) -> None:
        """Called when the model is ready; shows that if `loading` was shown."""

    def start(
        self,
        info: EngineInfo,
        media: Sequence[Media],
        seen: Sequence[SeenImage],
    ) -> None:
        """Called when the model begins, with what it sees, in order; `seen` is of each image."""

    def begun(self, text: str, thinking: str = "") -> None:
        """Called with text before the next piece: an answer to continue, or a fault."""

    def thinking(self, text: str) -> None:
        """Called with the next piece of thinking."""

    def reclassified(self) -> None:
        """Called when the text so far turns out to be thinking."""

    def piece(self, text: str) -> None:
        """Called with the next piece of the answer."""

    def finish(self, answer: Answer) -> None:
        """Called when the answer is complete or was stopped."""

    def stop_if_pressed(self) -> None:
        """Raise KeyboardInterrupt if the Stop button was pressed."""

    def close(self) -> None:
        """Leave nothing half drawn; called at the end of every call."""

    def _tell(self) -> None:
        """Count the notice of the model as shown: once in a kernel is enough."""
        if self._notice:
            self._told.add(self._notice)


def screen_for(
    shell: InteractiveShell,
    model: str,
    *,
    quiet: bool = False,
    form: Format = "markdown",
    button: bool = True,
    told: set[str] | None = None,
) -> Screen:
    """Return the screen for what `shell` is connected to.

    Args:
        shell: the running shell.
        model: name of the model that `Screen.loading` will be about.
        quiet: show nothing at all.
        form: format of the answer.
        button: offer a Stop button where one can work.
        told: as in `Screen`.
    """
    if quiet:
        return Screen()
    # IPython's own publisher prints; it cannot replace an output. Those of a kernel and of
    # capture_output can.
    if type(shell.display_pub) is DisplayPublisher:
        return TerminalScreen(model, told)
    if not is_watched(shell):
        return NotebookScreen(model, form, told=told)
    head, bar = Head(shell, button=button), Stoppable(shell, button=button)
    return NotebookScreen(model, form, head, bar, told)


_SILENT_SECONDS = 1.0
"""Seconds without a word after which it is said what is waited for."""

_MARK = "| "
"""Prefix of each line of thinking in a terminal."""


class NotebookScreen(Screen):
    """Three outputs: the progress bar, which becomes one line; the images; the answer.

    Args:
        model: name of the model.
        form: format of the answer.
        head: shows the images if the cell is watched.
        bar: shows the progress of loading if the cell is watched.
        told: as in `Screen`.
    """

    def __init__(
        self,
        model: str,
        form: Format = "markdown",
        head: Head | None = None,
        bar: Stoppable | None = None,
        told: set[str] | None = None,
    ) -> None:
        super().__init__(told)
        self._model = model
        self._head = head
        self._button = bar
        self._bar = Output() if bar is None else bar
        self._pace = Pace()
        self._starting: Starting | None = None  # until that is done
        self._progress: LoadProgress | None = None
        self._waiting: Waiting | None = None
        self._is_ready = False
        self._since: float | None = None
        self._rate = Rate()
        self._answer = LiveAnswer(Output().show, form=form, told=self._told)

    def starting(self, event: Starting) -> None:
        """Name the library in place of the bar."""
        if self._starting is None:
            self._starting, self._since = event, time.monotonic()
            self._bar.show(line_bundle(starting_line(event.library)))
        self.stop_if_pressed()

    def loading(self, progress: LoadProgress) -> None:
        """Move the bar."""
        if self._since is None:
            self._since = time.monotonic()
        self._starting = None
        self._progress = progress
        if self._pace.due():
            self._bar.show(
                progress_bundle(
                    self._model,
                    progress,
                    bytes_per_second=self._rate.so_far(progress.done_bytes),
                )
            )
        self.stop_if_pressed()

    def waiting(self, waiting: Waiting) -> None:
        """Say what is waited for, if that is not the answer; raises as `piece` does."""
        if not self._is_ready and waiting.seconds >= _SILENT_SECONDS:
            if self._waiting is None:
                self._bar.show(line_bundle(waiting_line(waiting.on)))
            self._waiting = waiting
        self.stop_if_pressed()

    def loaded(self, info: EngineInfo) -> None:
        """Replace the bar by one line."""
        self._is_ready = True
        if self._since is not None:
            line = loaded_line(info, time.monotonic() - self._since)
            self._end_bar(line)
        self._end_waiting()

    def _end_waiting(self) -> None:
        if self._waiting is not None:
            self._end_bar(waiting_line(self._waiting.on, self._waiting.seconds))

    def _end_bar(self, line: str) -> None:
        self._progress, self._since, self._starting, self._waiting = None, None, None, None
        if self._button is None:
            self._bar.show(line_bundle(line))
        else:
            self._button.finish(line_bundle(line))

    def start(
        self,
        info: EngineInfo,
        media: Sequence[Media],
        seen: Sequence[SeenImage],
    ) -> None:
        """Show images as thumbnails, and the frames of videos with their times."""
        bundles, thumbnails = media_bundles(media, seen)
        for bundle in bundles:
            show(bundle)
        if self._head is not None:
            self._head.start(answering_line(info.model), thumbnails)
        elif thumbnails:
            show(strip_bundle(thumbnails))

    def begun(self, text: str, thinking: str = "") -> None:
        """Show the text before the next pieces."""
        self._answer.begin(text, thinking)

    def thinking(self, text: str) -> None:
        """Show the last lines of the thinking; raises as `piece` does."""
        self._answer.think(text)
        self.stop_if_pressed()

    def reclassified(self) -> None:
        """Show as thinking what was shown as an answer."""
        self._answer.reclassify()

    def piece(self, text: str) -> None:
        """Show the answer so far.

        Raises:
            KeyboardInterrupt: if the Stop button was pressed; the answer then ends as it does
                when the kernel is interrupted.
        """
        self._answer.add(text)
        self.stop_if_pressed()

    def stop_if_pressed(self) -> None:
        """Look at the button of the bar and at that of the answer."""
        if any(each is not None and each.stop_pressed for each in (self._head, self._button)):
            raise KeyboardInterrupt

    def finish(self, answer: Answer) -> None:
        """Show the whole answer."""
        self._answer.finish(answer)
        self._tell()
        if self._head is not None:
            self._head.finish(finished_line(answer))

    def close(self) -> None:
        """Replace a bar that did not become full."""
        if self._progress is not None:
            done, total = self._progress.done_bytes, self._progress.total_bytes
            self._end_bar(f"{loading_line(self._model, done, total)}, not finished.")
        elif self._starting is not None:
            is_stopped = isinstance(sys.exception(), KeyboardInterrupt)
            self._end_bar(stopped_line(self._starting) if is_stopped else "Nothing was loaded.")
        self._end_waiting()
        self._answer.close()
        if self._head is not None:
            self._head.finish(finished_line(None))


class TerminalScreen(Screen):
    """Prints plain text as it comes."""

    def __init__(self, model: str, told: set[str] | None = None) -> None:
        super().__init__(told)
        self._model = model
        self._is_starting = False
        self._since: float | None = None
        self._is_ready = self._said_released = False
        self._in_line = False
        self._is_thinking = False
        self._held = ""  # white space of the thinking

    def starting(self, event: Starting) -> None:
        """Say once that this takes a while."""
        if not self._is_starting:
            self._is_starting = True
            _say(starting_line(event.library))

    def loading(self, progress: LoadProgress) -> None:
        """Say once that this takes a while."""
        if self._since is None:
            self._since = time.monotonic()
            _say(loading_line(self._model, progress.done_bytes, progress.total_bytes))
        if progress.released and not self._said_released:
            self._said_released = True
            _say(f"{printable(progress.released)} was released to make room.")

    def waiting(self, waiting: Waiting) -> None:
        """Say once what is waited for, if that is not the answer."""
        if not self._is_ready and waiting.seconds >= _SILENT_SECONDS:
            self._is_ready = True  # it is said once
            _say(waiting_line(waiting.on))

    def loaded(self, info: EngineInfo) -> None:
        """Say what was loaded."""
        self._is_ready = True
        if self._since is not None:
            _say(loaded_line(info, time.monotonic() - self._since))
            self._since = None

    def start(
        self,
        info: EngineInfo,
        media: Sequence[Media],
        seen: Sequence[SeenImage],
    ) -> None:
        """Name images and frames."""
        bundles, thumbnails = media_bundles(media, seen)
        for bundle in [*bundles, *([strip_bundle(thumbnails)] if thumbnails else [])]:
            _say(bundle["text/plain"])

    def begun(self, text: str, thinking: str = "") -> None:
        """Print it."""
        if thinking:
            self.thinking(thinking)
        if text:
            self.piece(text)

    def thinking(self, text: str) -> None:
        """Print the piece, each line with a mark."""
        if not self._is_thinking and text:
            self.close()
            self._is_thinking = self._in_line = True
            _say(_MARK, end="")
        text = self._held + printable(text)
        self._held = text[len(text.rstrip()) :]  # so that it does not end in empty marked lines
        _say(text.rstrip().replace("\n", f"\n{_MARK}"), end="")

    def reclassified(self) -> None:
        """Say that the text printed so far was thinking."""
        self.close()
        _say("[That was thinking.]")

    def piece(self, text: str) -> None:
        """Print the piece."""
        if self._is_thinking:
            self.close()
        _say(printable(text), end="")
        self._in_line = True

    def finish(self, answer: Answer) -> None:
        """Print the footnotes."""
        self.close()
        if answer.thinking:
            _say(f"[{thought_line(answer.thinking, answer.usage)}]")
        if answer.tokens:
            _say(certainty_text(answer))
        if answer.choices:
            _say(choices_text(answer))
        if answer.marks:
            _say(boxes_text(answer))
        for note in footnotes(answer, self._told):
            _say(f"[{printable(note)}]")
        self._tell()

    def close(self) -> None:
        """End a line that the model left open."""
        if self._in_line:
            _say("")
        self._in_line = self._is_thinking = False
        self._held = ""


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)  # noqa: T201  what a terminal screen is for
