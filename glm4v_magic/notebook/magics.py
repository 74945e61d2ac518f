"""``%glm4v`` and ``%%glm4v``: parse a line, call the session, show the result.

Only what loading the extension needs is imported here; the rest comes with `commands`.
"""

from __future__ import annotations

import inspect
import os
import re
from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from IPython.core.completer import Completion
from IPython.core.error import UsageError
from IPython.core.extensions import ExtensionManager
from IPython.core.magic import (
    Magics,
    line_cell_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
)
from IPython.core.magic_arguments import argument

from glm4v_magic.core.errors import (
    ComparisonInterrupted,
    GenerationInterrupted,
    Glm4vError,
    LoadInterrupted,
    MapInterrupted,
    OptionError,
)
from glm4v_magic.core.remarks import worded
from glm4v_magic.notebook.command_line import (
    ANSWER_OPTIONS,
    asks_for_help,
    filled,
    parse,
    split,
    takes,
)
from glm4v_magic.notebook.interrupts import imports_finish_first
from glm4v_magic.notebook.late_prompt import write_early, write_late
from glm4v_magic.notebook.next_steps import CELL, in_cell
from glm4v_magic.notebook.one_line import show_as_one_line, show_as_usual
from glm4v_magic.notebook.settings import Glm4v, read

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.lib.pretty import RepresentationPrinter

    from glm4v_magic.calls.compared import ComparedAnswers
    from glm4v_magic.core.conversation import Answer
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.core.rows import OrderedRows, Rows
    from glm4v_magic.inspect.comparison import Comparison
    from glm4v_magic.inspect.inspection import Inspection
    from glm4v_magic.mapping.evaluation import Evaluation
    from glm4v_magic.notebook.commands import Context
    from glm4v_magic.notebook.render import MimeBundle
    from glm4v_magic.session.session import Session

__all__ = ["Glm4vMagics", "Stopped", "register", "unregister"]

_ANSWERING = ("", "ask", "retry", "continue")  # a cell has no command
_EMPTY_CELL = re.compile(r"%%glm4v(?![\w?])")
_ASKED_ALONE = re.compile(r"()%glm4v\s+(.*\?)")
_LINE_ALONE = re.compile(r"((?:\w+\s*=\s*)?)%glm4v\s+(.*)")
_LONG_LINE = 10_000  # characters; a data: URI, which IPython would take half a second to tokenise
_ANSWER = ("glm4v_magic.core.conversation", "Answer")
_ROWS = ("glm4v_magic.core.rows", "Rows")
_SAVED = ("glm4v_magic.mapping.row_file", "SavedRows")
_PLAN = ("glm4v_magic.core.plan", "Plan")
_COMPARED = ("glm4v_magic.calls.compared", "ComparedAnswers")
_EVALUATION = ("glm4v_magic.mapping.evaluation", "Evaluation")
_LOOKS = (
    ("glm4v_magic.inspect.inspection", "Inspection"),
    ("glm4v_magic.inspect.comparison", "Comparison"),
)


class Stopped(KeyboardInterrupt):
    """An interrupt that shows as one line, not as a traceback through the model.

    It is raised again after the partial answer is shown and kept, so that "Run All" stops.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


@magics_class
class Glm4vMagics(Magics):
    """The magics of one shell, with their settings."""

    def __init__(
        self, shell: InteractiveShell, settings: Glm4v, session: Session | None = None
    ) -> None:
        super().__init__(shell)
        self._settings = settings
        self._told = _told.setdefault(shell, set())
        self._context = None if session is None else self._around(session)
        self._shown: list[object] = []
        self._borrowed: dict[type, Any] = {}

    @property
    def context(self) -> Context:
        """The shell, and the session behind the commands; made when first needed."""
        if self._context is None:
            from glm4v_magic.session.session import Session

            self._context = self._around(Session())
        return self._context

    def _around(self, session: Session) -> Context:
        from glm4v_magic.notebook.commands import Context

        page = self.glm4v.__doc__ or ""
        return Context(self.shell, page, self._settings, session, told=self._told)

    @line_cell_magic
    @no_var_expand
    @needs_local_scope
    @takes(
        "glm4v",
        argument("images", nargs="*", metavar="IMAGE", help="Path, pattern, URL or variable."),
        *ANSWER_OPTIONS,
        usage="%glm4v [IMAGE ...] [options]    with the question below, or a command: %glm4v ...",
    )
    def glm4v(
        self, line: str, cell: str | None = None, local_ns: Mapping[str, Any] | None = None
    ) -> Any:
        """Ask an image a question.

        Images and options stand on the first line, the question below it. The model is loaded
        with the first question::

            In [1]: %%glm4v cat.png
               ...: What is the cat doing?

            In [2]: %%glm4v https://example.org/cat.jpg -o answer --temperature 0
               ...: Describe {{detail}} in one sentence.

            In [3]: answer.text, answer.usage.new_tokens

        Many images or values, one conversation each: a folder, a list, a column of a DataFrame::

            In [4]: %%glm4v --over df.image -o answers
               ...: Is this {{row.name}}? Answer yes or no.

        An image is a path, a pattern such as photos/*.jpg, a URL, or a variable that holds one.
        {{expression}} in the question is evaluated in the notebook.
        The answer is in NAME, in _ and in Out. Interrupting the kernel keeps what was said so far.

        Each cell asks a fresh question, unless it goes on with a chat. The image stays in it::

            In [5]: %%glm4v --continue
               ...: And what colour is it?

            In [6]: %%glm4v cat.png --chat cats --format json
               ...: Answer as JSON: {"animals": number, "colours": [names]}

            In [7]: _.value["animals"]

        On one line::

            %glm4v                           the model, where it is, what it takes
            %glm4v ask cat.png "A cat?"      a question on one line; x = %glm4v ask ... works too
            %glm4v preview cat.png "A cat?"  what would be sent: prompt, images, tokens
            %glm4v continue                  carry on an answer that was stopped or cut off
            %glm4v retry --seed 3            ask the latest question again, replacing its answer
            %glm4v chats                     the chats, and which one --continue goes on with
            %glm4v history [NAME]            what was said in a chat
            %glm4v inspect [NAME]            why the latest answer was given: words, image, layers
            %glm4v reset [NAME]              forget a chat; --all for all of them
            %glm4v export [NAME] FILE        write a chat: .json to be read back, .md to be read
            %glm4v import FILE [NAME]        read a chat from its .json
            %glm4v plan MODEL --gpus 4x16GiB which GPU would run what; loads nothing
            %glm4v devices [MODEL]           which module is on which GPU, and a tool to plan it
            %glm4v memory                    what is in the memory of each GPU, live
            %glm4v check MODEL --gpus SPEC   a dry run: mixed devices, peaks, copies
            %glm4v load FOLDER               load another model: a folder, a hub id, demo, a server
            %glm4v serve MODEL --engine vllm start a server for a model, and ask it
            %glm4v unload                    give its memory back
            %glm4v doctor                    packages, driver, GPUs, disk: will the model run?
            %glm4v patch FOLDER              make a checkpoint's own code safe on any split
            %glm4v config [NAME]             the defaults, and where each of them comes from
            %glm4v help [COMMAND]            this page, or that of a command; --help does the same
        """
        names: ChainMap[str, Any] = ChainMap(dict(local_ns or {}), self.shell.user_ns)
        debug = self._settings.debug or "--debug" in line.split()
        try:
            with imports_finish_first():
                answer = self._run(line, cell, names)
        except Glm4vError as error:
            if debug:
                raise
            failure: BaseException = UsageError(in_cell(self.context.told_of_ending(error)))
        except FileNotFoundError:
            if debug or _has_current_folder():
                raise
            failure = UsageError("The current folder is no longer there. Go to one: %cd FOLDER")
        except KeyboardInterrupt as interrupt:
            if debug:
                raise
            failure = _stopped(interrupt, "" if cell is not None else line)
        else:
            if answer is not None:
                self._show_no_more(answer)
            return answer
        # Out here the new exception has no __context__, whose frames would keep the model alive.
        raise failure

    def _run(self, line: str, cell: str | None, names: Mapping[str, Any]) -> Any:
        from glm4v_magic.notebook import commands

        words = split(line)
        if cell is None:
            return commands.run(self.context, words, names)
        if asks_for_help(words):
            return commands.run(self.context, ["help"], names)
        return commands.ask_cell(
            self.context, parse(self.glm4v, filled(self.glm4v, words, names)), cell, names
        )

    # An answer has been streamed when its cell ends, and the cell's result is that same answer,
    # so that _ and Out[n] hold it. IPython shows results through formatters. They are registered
    # here for Answer, and not methods of it, because conversation.py stands below display: it
    # knows neither Markdown nor which answers a cell has shown.

    def install(self) -> None:
        """Register magics, settings, formatters and the hook that ends a cell."""
        formatter = self.shell.display_formatter
        self.shell.configurables.append(self._settings)
        self._settings.observe(self._model_was_set, "model")
        self.shell.register_magics(self)
        for kind, bundle in _BUNDLES.items():
            formatter.ipython_display_formatter.for_type_by_name(*kind, self._swallow_if_shown)
            formatter.mimebundle_formatter.for_type_by_name(*kind, partial(bundle, self._told))
        for kind in _LOOKS:
            formatter.ipython_display_formatter.for_type_by_name(*kind, self._open_look)
        # IPython has a printer of lists, which comes before the bundle of one.
        formatter.formatters["text/plain"].for_type_by_name(
            *_ROWS, partial(_print_rows, self._told)
        )
        self.shell.events.register("post_run_cell", self._forget_shown)
        self.shell.Completer.completions = self._completions
        self.shell.input_transformers_cleanup.append(_alone)
        show_as_one_line(self.shell, lambda: self._settings.debug)
        write_late(self.shell.displayhook)

    def _model_was_set(self, change: Any) -> None:
        """Tell that the setting waits, where a model was chosen before."""
        used = None if self._context is None else self._context.session.status().choice.model
        if used is not None and change["new"] not in (None, used):
            from glm4v_magic.core.placement import PlacementOptions
            from glm4v_magic.notebook.draft import load_line
            from glm4v_magic.notebook.live.output import show
            from glm4v_magic.notebook.render.progress import line_bundle

            line = load_line(change["new"], PlacementOptions())
            show(line_bundle(f"{used} stays in use. To change it: {line}"))

    def uninstall(self) -> Session | None:
        """Undo `install` and what `Magics` itself registered.

        Returns:
            The session, with its model; ``None`` if none was begun.
        """
        formatter = self.shell.display_formatter
        manager = self.shell.magics_manager
        for kind in ("line", "cell"):
            manager.magics[kind].pop("glm4v", None)
        manager.registry.pop(type(self).__name__, None)
        # Magics.__init__ appends itself here and nothing ever takes it away again.
        self.shell.configurables[:] = [
            each for each in self.shell.configurables if each not in (self, self._settings)
        ]
        for name in map(".".join, (*_BUNDLES, *_LOOKS)):
            formatter.ipython_display_formatter.pop(name, None)
            formatter.mimebundle_formatter.pop(name, None)
        formatter.formatters["text/plain"].pop(".".join(_ROWS), None)
        self._forget_shown(None)
        self.shell.events.unregister("post_run_cell", self._forget_shown)
        del self.shell.Completer.completions
        self.shell.input_transformers_cleanup.remove(_alone)
        show_as_usual()
        write_early(self.shell.displayhook)
        if self._context is None:
            return None
        self._context.close()
        return self._context.session

    def _completions(self, text: str, offset: int) -> Iterator[Completion]:
        """Complete our lines; IPython completes the others.

        It stands before the completer's own method, which kernels and terminals call: a matcher
        among IPython's could keep the others out of our lines only since IPython 8.6.
        """
        from glm4v_magic.notebook.completion import complete

        hidden = self.shell.user_ns_hidden
        names = {name: value for name, value in self.shell.user_ns.items() if name not in hidden}
        chats = () if self._context is None else self._context.session.chats
        found = complete(text[:offset], names, chats)
        if found is None:
            completer = self.shell.Completer
            yield from type(completer).completions(completer, text, offset)
            return
        start = offset - len(found.fragment)
        for each in found.matches:
            yield Completion(start, offset, each.text, type=each.type, _origin="glm4v")

    def _show_no_more(self, result: object) -> None:
        """Keep an answer that its cell has shown already from being shown again as its result."""
        self._shown.append(result)
        kind = type(result)
        if (kind.__module__, kind.__name__) not in _BUNDLES:  # a DataFrame
            formatter = self.shell.display_formatter.ipython_display_formatter
            self._borrowed.setdefault(kind, formatter.type_printers.get(kind))
            formatter.for_type(kind, self._swallow_if_shown)

    def _swallow_if_shown(self, answer: object) -> None:
        for number, shown in enumerate(self._shown):
            if shown is answer:
                del self._shown[number]
                return
        raise NotImplementedError  # a formatter's way to leave it to the next formatter

    def _open_look(self, look: Inspection | Comparison) -> None:
        from glm4v_magic.notebook.commands.look import open_result

        open_result(self.context, look)

    def _forget_shown(self, _: object) -> None:
        self._shown.clear()
        formatter = self.shell.display_formatter.ipython_display_formatter
        for kind, before in self._borrowed.items():
            formatter.type_printers.pop(kind, None)
            if before is not None:
                formatter.for_type(kind, before)
        self._borrowed.clear()


def _alone(lines: list[str]) -> list[str]:
    """Handle a cell of one line that IPython would refuse, answer by itself, or parse slowly.

    It refuses a cell magic without a body, and takes ``?`` at the end of a line for a request for
    help on its last word.
    """
    if len(lines) == 1 and _EMPTY_CELL.match(lines[0]):
        return [*lines, "\n"]
    alone = _LINE_ALONE if len("".join(lines[:1])) > _LONG_LINE else _ASKED_ALONE
    if len(lines) == 1 and (asked := alone.fullmatch(lines[0].strip())):
        return [f"{asked[1]}get_ipython().run_line_magic('glm4v', {asked[2]!r})\n"]
    return lines


# A terminal would take the blank line for the end of a cell that is still being typed.
_alone.has_side_effects = True  # type: ignore[attr-defined]


def _has_current_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def register(shell: InteractiveShell) -> None:
    """Install the magics in `shell`, with the settings as they are found now."""
    settings = _settings_now(
        shell,
        "glm4v_magic was not loaded. Put this right (%env NAME= unsets a variable), then "
        "%load_ext glm4v_magic again.",
    )
    Glm4vMagics(shell, settings, _kept.pop(shell, None)).install()


def _settings_now(shell: InteractiveShell, then: str = "") -> Glm4v:
    """Return the settings as they are found; a wrong one is a `UsageError` that ends in `then`."""
    try:
        return read(shell.config.get(Glm4v.__name__, {}), os.environ)
    except OptionError as error:
        problem = in_cell(error)
    raise UsageError(f"{problem} {then}".strip())


def unregister(shell: InteractiveShell) -> None:
    """Remove from `shell` all that `register` put there; a reload keeps the session.

    A reload that would find a wrong setting is refused while everything is still there.
    """
    if _is_reload():
        _settings_now(shell, "Nothing was reloaded; %glm4v works as before.")
    magics = shell.magics_manager.registry.get(Glm4vMagics.__name__)
    session = None if magics is None else magics.uninstall()
    if session is None:
        return
    if _is_reload():
        _kept[shell] = session
    else:
        from glm4v_magic.notebook.commands.model import release

        release(session)


_kept: WeakKeyDictionary[InteractiveShell, Session] = WeakKeyDictionary()
"""Sessions of shells that are reloading the extension."""


_told: WeakKeyDictionary[InteractiveShell, set[str]] = WeakKeyDictionary()
"""Notices that were shown in each shell; see `Context.told`."""


def _is_reload() -> bool:
    """Tell whether ``%reload_ext`` is running. IPython calls the same functions for it."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not ExtensionManager.reload_extension.__code__:
        frame = frame.f_back
    return frame is not None


def _bundle(told: Collection[str], answer: Answer) -> MimeBundle:
    from glm4v_magic.notebook.render.answers.answer import answer_bundle

    return answer_bundle(answer, told)


def _plan_bundle(_: Collection[str], plan: Plan) -> MimeBundle:
    from glm4v_magic.notebook.render.plans.plan import plan_bundle

    return plan_bundle(plan)


def _rows_bundle(told: Collection[str], rows: Rows | OrderedRows) -> MimeBundle:
    from glm4v_magic.notebook.render.rows import rows_bundle

    return rows_bundle(rows, told=told)


def _compared_bundle(_: Collection[str], compared: ComparedAnswers) -> MimeBundle:
    from glm4v_magic.notebook.render.compared import compared_bundle

    return compared_bundle(compared)


def _evaluation_bundle(_: Collection[str], evaluation: Evaluation) -> MimeBundle:
    from glm4v_magic.notebook.render.evaluation import evaluation_bundle

    return evaluation_bundle(evaluation)


def _print_rows(
    told: Collection[str], rows: Rows, printer: RepresentationPrinter, _cycle: bool
) -> None:
    printer.text(_rows_bundle(told, rows)["text/plain"])


_BUNDLES: dict[tuple[str, str], Callable[[Collection[str], Any], MimeBundle]] = {
    _ANSWER: _bundle,
    _ROWS: _rows_bundle,
    _SAVED: _rows_bundle,
    _PLAN: _plan_bundle,
    _COMPARED: _compared_bundle,
    _EVALUATION: _evaluation_bundle,
}
"""Results that are shown by what returns their bundle, by module and name of their classes.

The first argument has the notices that were shown; see `Context.told`.
"""


def _stopped(interrupt: KeyboardInterrupt, line: str) -> Stopped:
    if isinstance(
        interrupt,
        GenerationInterrupted | MapInterrupted | LoadInterrupted | ComparisonInterrupted,
    ):
        return Stopped(worded(interrupt.text, CELL))
    if str(interrupt):  # a command that was done all the same
        return Stopped(str(interrupt))
    command = line.partition(" ")[0]
    if command in _ANSWERING:
        return Stopped("there is no answer.")
    return Stopped(f"%glm4v {command} did not finish.")
