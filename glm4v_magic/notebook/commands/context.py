"""Context of all commands: the shell, and the session of its magics."""

from __future__ import annotations

import keyword
import re
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from glm4v_magic.core.errors import EngineError, Glm4vError, OptionError, reason
from glm4v_magic.core.plan import Plan
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.next_steps import in_cell
from glm4v_magic.notebook.render.progress import line_bundle
from glm4v_magic.session.session import Session

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from glm4v_magic.core.conversation import Answer
    from glm4v_magic.notebook.launched import LaunchedServer
    from glm4v_magic.notebook.monitor import Monitor
    from glm4v_magic.notebook.settings import Glm4v
    from glm4v_magic.planning.machines import MachineFit

__all__ = ["Command", "Context", "LiveView"]

_OF_IPYTHON = {"In", "Out", "_dh", "_ih", "_oh", "exit", "get_ipython", "quit"}
"""Names that IPython puts among the user's variables and relies on."""


class LiveView(Protocol):
    """A widget with a static view beside it."""

    def show(self) -> None:
        """Show both in the running cell."""

    def cell_ended(self) -> None:
        """Bring the static view up to date."""

    def close(self) -> None:
        """Close the widget, leaving only the static view."""


@dataclass(repr=False)  # that of the page alone has ten thousand characters
class Context:
    """Shell, settings, session and views of the commands.

    Attributes:
        shell: shell whose variables are read and set.
        page: help of the magic itself.
        settings: defaults of options.
        session: session with the model in use.
        views: views that are open as widgets.
        launched: server that was started last; ``None`` if there was none, or it was ended.
        ended: server that was started and ended last, by a command.
        told: notices of models that were shown; each is shown once.
    """

    shell: InteractiveShell
    page: str
    settings: Glm4v
    session: Session
    views: list[LiveView] = field(default_factory=list)
    launched: LaunchedServer | None = None
    ended: LaunchedServer | None = None
    told: set[str] = field(default_factory=set)

    @cached_property
    def monitor(self) -> Monitor:
        """Monitor that updates open views."""
        from glm4v_magic.notebook.monitor import Monitor

        return Monitor(self.session.status, self.session.recorder)

    @property
    def has_widgets(self) -> bool:
        """Whether the shell belongs to a kernel, whose front end may show widgets."""
        return getattr(self.shell, "kernel", None) is not None

    def open(self, view: LiveView) -> None:
        """Show a widget, and update its static view at the end of every cell.

        One that cannot be shown is closed, and is none of the views.
        """
        try:
            view.show()
        except BaseException:
            _close(view)
            raise
        if not self.views:
            self.shell.events.register("post_run_cell", self._cell_ended)
        self.views.append(view)

    def close(self) -> None:
        """Close all views, end the monitor and a server that was started."""
        self.end_launched()
        while self.views:
            self._close(self.views[-1])
        if "monitor" in vars(self):
            self.monitor.stop()

    def _close(self, view: LiveView) -> None:
        self.views.remove(view)
        if not self.views:
            self.shell.events.unregister("post_run_cell", self._cell_ended)
        _close(view)

    def end_launched(self) -> LaunchedServer | None:
        """End the server that was started here, if there is one; returns it."""
        launched, self.launched = self.launched, None
        if launched is not None:
            launched.end()
            self.ended = launched
        return launched

    def told_of_ending(self, error: Glm4vError) -> Glm4vError:
        """Return an error; one about a server that was started here and has ended says so."""
        server = self.launched or self.ended
        if isinstance(error, EngineError) and server is not None and server.url in error.what:
            how = server.ending if self.launched else "was ended"
            if how:
                error.what = f"{server.name} at {server.url}, started by %glm4v serve, {how}."
                error.hint = "The same line starts it again; %glm4v load MODEL takes another model."
        return error

    def _cell_ended(self, _: object) -> None:
        with suppress(KeyboardInterrupt):  # the cell is over: nothing is left to interrupt
            for view in [*self.views]:
                try:
                    view.cell_ended()
                except Exception as error:  # IPython would tell it after this and every later cell
                    self._close(view)
                    why = in_cell(error) if isinstance(error, Glm4vError) else reason(error)
                    show(line_bundle(f"A view of an earlier cell was closed: {why}"))

    @property
    def model(self) -> str:
        """Name of the model in use, or of the one that the next question loads."""
        status = self.session.status()
        if status.info is None and status.choice.model is None and self.settings.model:
            return self.settings.model
        return status.choice.name

    @property
    def chosen(self) -> str | None:
        """Model that was loaded by name, else that of the settings; ``None`` without either."""
        return self.session.status().choice.model or self.settings.model

    def named(self, model: str | None) -> str:
        """Return the model that a line names, if it names one, or else `model`."""
        return self.model if model is None else model

    def named_in(self, arguments: Namespace, given: object = None) -> str:
        """Return the model that a line names; else that of the plan it follows, or `model`.

        Args:
            arguments: the parsed line.
            given: plan or device map that the line follows.
        """
        if arguments.model is None and isinstance(given, Plan):
            return given.model
        return self.named(arguments.model)

    def made_of(self, arguments: Namespace, given: object = None) -> dict[str, Any]:
        """Return the revision, base and adapter of `named_in`.

        What a line does not give is that of its plan, if that is for the model; where it names no
        model, that of the model in use.

        Args:
            arguments: the parsed line.
            given: plan or device map that the line follows.
        """
        typed = {name: getattr(arguments, name) for name in ("revision", "base", "lora")}
        known: Mapping[str, Any] = {}
        if isinstance(given, Plan):
            known = dict(given.made_of) if given.is_of(self.named_in(arguments, given)) else {}
        elif arguments.model is None:
            known = self.session.status().choice.made_of
        return {name: known.get(name) if value is None else value for name, value in typed.items()}

    def keep(self, value: object, name: str | None) -> None:
        """Assign `value` to the user's variable `name`, if one is given."""
        if name is not None:
            self.shell.user_ns[name] = value


class Command(Protocol):
    """A command: a function decorated with `command_line.takes`."""

    __doc__: str | None

    def __call__(
        self, context: Context, arguments: Namespace, names: Mapping[str, Any], /
    ) -> Answer | Plan | tuple[MachineFit, ...] | None:
        """Run it.

        Args:
            context: shell and session.
            arguments: as its options declare them.
            names: the user's variables.

        Returns:
            The value of the line, as in ``x = %glm4v ask ...``.
        """


def _close(view: LiveView) -> None:
    """Close a view, even one that fails: whoever closes it has other things to do."""
    with suppress(Exception):
        view.close()


def require_variable_name(name: str | None) -> None:
    """Raise OptionError unless `name` is a valid value of ``--out``."""
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise OptionError(
            f"--out {name!r} is not the name of a variable.",
            "Use letters, digits and underscores, for example -o answer.",
        )
    if name is not None and (name in _OF_IPYTHON or re.fullmatch("__.+__", name)):
        raise OptionError(
            f"--out {name} would replace a name that the notebook itself needs.",
            "Use another one, for example -o answer.",
        )
