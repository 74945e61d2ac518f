"""Outputs of the running cell: shown once, or replaced repeatedly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from IPython.display import display

from glm4v_magic.core.wording import printable
from glm4v_magic.held_interrupts import interrupt_held_back
from glm4v_magic.notebook.live.stop_button import StopButton, stop_button
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.head import head_bundle, status_html
from glm4v_magic.notebook.render.answers.image import Thumbnail, strip_bundle

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Head", "Output", "Stoppable", "show"]


def show(bundle: MimeBundle) -> None:
    """Show `bundle` once, as an output of its own."""
    display(_for_a_terminal(bundle), raw=True)


def _for_a_terminal(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Return `bundle` with no control character in its text, whatever it was made of."""
    return {**bundle, "text/plain": printable(bundle["text/plain"])}


class Output:
    """One output of the cell; showing again replaces what it shows."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, bundle: MimeBundle) -> None:
        """Show `bundle` here."""
        # An interrupt between sending the first form and keeping its handle would make the next
        # one a second output.
        bundle = _for_a_terminal(bundle)
        with interrupt_held_back():
            if self._handle is None:
                self._handle = display(bundle, raw=True, display_id=True)
            else:
                self._handle.update(bundle, raw=True)


class _WithButton:
    """An output that may have a Stop button until the call is over.

    Args:
        shell: the running shell.
        button: whether there may be a button.
    """

    def __init__(self, shell: InteractiveShell, *, button: bool) -> None:
        self._shell = shell
        self._may_have_button = button
        self._output = Output()
        self._button: StopButton | None = None
        self._open = False

    @property
    def stop_pressed(self) -> bool:
        """Whether the Stop button was pressed."""
        return self._button is not None and self._button.pressed

    def _open_with(self, bundle: MimeBundle, above: str, status: str) -> None:
        """Show `bundle`; where a button can work, the button with this HTML above and beside it."""
        self._open = True
        shown: dict[str, Any] = {**bundle}
        if self._may_have_button:
            self._button = stop_button(self._shell, above, status)
        if self._button is not None:
            shown |= self._button.view
        self._output.show(shown)

    def _close_with(self, bundle: MimeBundle) -> None:
        """Show `bundle` alone."""
        self._open = False
        self._output.show(bundle)
        if self._button is not None:
            self._button.close()


class Stoppable(_WithButton):
    """One output with a Stop button below it, until it is finished."""

    def show(self, bundle: MimeBundle) -> None:
        """Show `bundle` here, with the button if there can be one."""
        with interrupt_held_back():
            if not self._open:
                self._open_with(bundle, bundle["text/html"], "")
            elif self._button is not None:
                self._button.show_above(bundle["text/html"])
            else:
                self._output.show(bundle)

    def finish(self, bundle: MimeBundle) -> None:
        """Show `bundle` here without a button."""
        with interrupt_held_back():
            self._close_with(bundle)


class Head(_WithButton):
    """Head of a watched answer: images, a status line, a Stop button.

    When the call is over, images and line stay as plain HTML; the button is gone.
    """

    _thumbnails: Sequence[Thumbnail] = ()

    def start(self, line: str, thumbnails: Sequence[Thumbnail] = ()) -> None:
        """Show it, with the button if there can be one."""
        with interrupt_held_back():
            self._thumbnails = thumbnails
            above = strip_bundle(thumbnails)["text/html"] if thumbnails else ""
            head = head_bundle(thumbnails, line, seen=True)
            self._open_with(head, above, status_html(line, seen=True))

    def say(self, line: str) -> None:
        """Replace the status line."""
        if self._button is not None:
            self._button.say(status_html(line, seen=True))
        else:
            self._output.show(head_bundle(self._thumbnails, line, seen=True))

    def finish(self, line: str) -> None:
        """Show how the call ended; only the first call has an effect."""
        if not self._open:
            return
        with interrupt_held_back():
            self._close_with(head_bundle(self._thumbnails, line, seen=False))
