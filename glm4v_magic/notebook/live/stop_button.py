"""Stop button for front ends that can deliver a click while a cell runs.

Best effort: interrupting the kernel always works; this button is where the answer is. It exists
only while answers are generated, and is not saved with the notebook.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from IPython.core.displaypub import CapturingDisplayPublisher

from glm4v_magic.core.errors import EngineError
from glm4v_magic.notebook.live.busy import hear_while_busy

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["StopButton", "heard_first", "is_watched", "stop_button"]

_WIDGET = "application/vnd.jupyter.widget-view+json"


class HasButton(Protocol):
    """A screen, a board or the columns of a comparison."""

    def stop_if_pressed(self) -> None:
        """Raise KeyboardInterrupt if the Stop button was pressed."""


@contextmanager
def heard_first(*places: HasButton) -> Iterator[None]:
    """Let a click count that came before an engine or its server failed.

    Buttons are looked at with every event, and a server that is waited for may give up in between.

    Raises:
        KeyboardInterrupt: in place of that failure, if a button was pressed.
    """
    try:
        yield
    except EngineError:
        for each in places:
            each.stop_if_pressed()
        raise


def is_watched(shell: InteractiveShell) -> bool:
    """Tell whether a front end shows this cell while it runs.

    JupyterLab, Notebook 7 and VS Code send the cell's id along; nbclient and papermill do not.
    """
    kernel = getattr(shell, "kernel", None)
    if kernel is None or isinstance(shell.display_pub, CapturingDisplayPublisher):
        return False
    return bool(kernel.get_parent().get("metadata", {}).get("cellId"))


def stop_button(shell: InteractiveShell, html: str, status: str) -> StopButton | None:
    """Return a button with `status` beside it, below `html`; ``None`` where it cannot work.

    Without subshells a kernel takes a click only when the cell has ended.
    """
    kernel = getattr(shell, "kernel", None)
    features = getattr(kernel, "kernel_info", {}).get("supported_features", ())
    if "kernel subshells" not in features:
        return None
    try:
        import ipywidgets
    except ImportError:
        return None
    return StopButton(ipywidgets, html, status)


class StopButton:
    """The button and the HTML around it.

    Args:
        ipywidgets: the library.
        html: shown above the button.
        status: HTML of the line beside it.
    """

    def __init__(self, ipywidgets: Any, html: str, status: str) -> None:
        self._pressed = threading.Event()
        self._button = ipywidgets.Button(
            description="Stop",
            icon="stop",
            tooltip="Stop here; what was said until now stays",
            layout={"width": "auto"},
        )
        self._button.on_click(self._press)
        hear_while_busy(self._button)  # at once: no click is heard at the end of the cell
        self._line = ipywidgets.HTML(status)
        row = ipywidgets.HBox([self._button, self._line], layout={"align_items": "center"})
        self._above = ipywidgets.HTML(html)
        self._box = ipywidgets.VBox([self._above, row])
        self._widgets = [self._box, self._above, row, self._line, self._button]

    @property
    def pressed(self) -> bool:
        """Whether the button was pressed."""
        return self._pressed.is_set()

    @property
    def view(self) -> dict[str, Any]:
        """MIME data of an output that shows it."""
        return {_WIDGET: {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}}

    def say(self, status: str) -> None:
        """Replace the status line beside it by this HTML."""
        self._line.value = status

    def show_above(self, html: str) -> None:
        """Replace what is shown above the button by this HTML."""
        self._above.value = html

    def close(self) -> None:
        """Remove it, with all its widget models that the front end would save."""
        for widget in self._widgets:
            for name in ("layout", "style"):
                part = getattr(widget, name, None)
                if part is not None:
                    part.close()
            widget.close()

    def _press(self, _: object) -> None:
        # Called in the thread of a subshell, or in the main thread after the cell.
        self._pressed.set()
