"""What the magics do: ask, load, unload, status, help.

Apart from `magics` so that loading the extension stays cheap: this module brings the session and
the display with it, and is imported with the first use.
"""

from __future__ import annotations

import keyword
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.magic_arguments import argument

from glm4v_magic.command_line import ANSWER_OPTIONS, DEBUG, Quoted, parse, takes
from glm4v_magic.conversation import Answer
from glm4v_magic.display.progress import line_bundle
from glm4v_magic.display.status import status_bundle, status_rows
from glm4v_magic.errors import GenerationInterrupted, OptionError, did_you_mean
from glm4v_magic.images import resolve_images
from glm4v_magic.prompt import expand, require_text
from glm4v_magic.screen import screen_for, show
from glm4v_magic.session import DTYPES, ModelChoice, Session

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["COMMANDS", "Commands"]


class Commands:
    """The commands of one shell, and the session behind them.

    Args:
        shell: the shell whose variables are read and set.
        page: the help of the magic itself.
    """

    def __init__(self, shell: InteractiveShell, page: str) -> None:
        self.shell = shell
        self.session = Session()
        self._page = page

    def ask_cell(self, arguments: Namespace, cell: str, names: Mapping[str, Any]) -> Answer:
        """Ask the question in `cell` about the pictures of the first line."""
        first = arguments.images[0] if arguments.images else ""
        if first in COMMANDS and first not in names:
            raise OptionError(
                f"{first} is a command for one line: %glm4v {first}.",
                f"A cell begins with pictures; write ./{first} for a file of that name.",
            )
        return self._answer(arguments, arguments.images, cell, names)

    def run(self, words: list[str], names: Mapping[str, Any]) -> Answer | None:
        """Run a line: a command, its arguments and options; no words are ``status``."""
        if not words:
            words = ["status"]
        name, rest = words[0], words[1:]
        command = COMMANDS.get(name)
        if name.startswith("-"):
            raise OptionError(
                "%glm4v needs a command before its options.", f"There are {', '.join(COMMANDS)}."
            )
        if command is None:
            raise OptionError(
                f"%glm4v has no command {name!r}.",
                did_you_mean(name, COMMANDS)
                or f'To ask about a picture: a cell "%%glm4v {name}" with the question on the next '
                f'line, or %glm4v ask {name} "the question".',
            )
        return command(self, parse(command, rest), names)

    @takes(
        "glm4v ask",
        argument(
            "words", nargs="*", metavar="IMAGE", help="Pictures, then the question in quotes."
        ),
        *ANSWER_OPTIONS,
    )
    def _ask(self, arguments: Namespace, names: Mapping[str, Any]) -> Answer:
        """Ask on one line.

        The question comes last and in quotes::

            %glm4v ask cat.png "What is the cat doing?"
            x = %glm4v ask cat.png "Is it asleep?" --temperature 0
        """
        *images, question = arguments.words or [""]
        if not isinstance(question, Quoted):
            raise OptionError(
                "%glm4v ask needs a question in quotes behind the pictures.",
                'For example: %glm4v ask cat.png "What is the cat doing?"',
            )
        return self._answer(arguments, images, str(question), names)

    @takes(
        "glm4v load",
        argument("model", nargs="?", help="Folder, id of a downloaded repository, or demo."),
        argument("--dtype", help=f"Of the weights: {', '.join(DTYPES)}."),
        DEBUG,
    )
    def _load(self, arguments: Namespace, names: Mapping[str, Any]) -> None:
        """Load a model, releasing the one before.

        Without MODEL the model of the last load, at first the embedded demo model::

            %glm4v load ~/models/glm-4v-9b --dtype bfloat16
        """
        before = self.session.status()
        model = arguments.model or before.choice.model
        screen = screen_for(self.shell, ModelChoice(model).name)
        try:
            self.session.load(model, dtype=arguments.dtype, on_progress=screen.loading)
            info = self.session.status().info
            if info is not None:
                screen.loaded(info)
            if info is not None and info is before.info:
                show(line_bundle(f"{info.model} is loaded already."))
        finally:
            screen.close()

    @takes("glm4v unload", DEBUG)
    def _unload(self, arguments: Namespace, names: Mapping[str, Any]) -> None:
        """Give the model's memory back. The next question loads the model again."""
        choice = self.session.status().choice
        was = "unloaded" if self.session.unload() else "not loaded"
        show(line_bundle(f"{choice.name} was {was}."))

    @takes("glm4v status", DEBUG)
    def _status(self, arguments: Namespace, names: Mapping[str, Any]) -> None:
        """Show the model, where it is, what it takes, and what the last answer cost."""
        status = self.session.status()
        rows = status_rows(status.choice.name, status.info, status.last, busy=status.busy)
        show(status_bundle(rows))

    @takes("glm4v help", argument("command", nargs="?", help="One of the commands."), DEBUG)
    def _help(self, arguments: Namespace, names: Mapping[str, Any]) -> None:
        """Show this help, or that of one command."""
        if arguments.command is None:
            show({"text/plain": self._page})
            return
        command = COMMANDS.get(arguments.command)
        if command is None:
            raise OptionError(
                f"%glm4v has no command {arguments.command!r}.",
                did_you_mean(arguments.command, COMMANDS) or f"There are {', '.join(COMMANDS)}.",
            )
        show({"text/plain": command.__doc__ or ""})

    def _answer(
        self, arguments: Namespace, images: list[str], text: str, names: Mapping[str, Any]
    ) -> Answer:
        _require_variable_name(arguments.out)
        question = require_text(text if arguments.raw else expand(text, names))
        pictures = resolve_images(images, names)
        model = self.session.status().choice.name
        screen = screen_for(self.shell, model, quiet=arguments.quiet)
        answer: Answer | None = None
        try:
            answer = self.session.ask(
                question,
                pictures,
                **_given(arguments),
                on_progress=screen.loading,
                on_start=screen.start,
                on_text=screen.piece,
            )
            self._keep(answer, arguments.out)
            screen.finish(answer)
        except KeyboardInterrupt as interrupt:
            if isinstance(interrupt, GenerationInterrupted):
                answer = interrupt.answer
            if answer is not None:
                self._keep(answer, arguments.out)
                # An interrupted cell has no result, so IPython would not set _ and Out.
                self.shell.displayhook.update_user_ns(answer)
                screen.finish(answer)
            raise
        finally:
            screen.close()
        return answer

    def _keep(self, answer: Answer, name: str | None) -> None:
        if name is not None:
            self.shell.user_ns[name] = answer


COMMANDS: dict[str, Callable[..., Answer | None]] = {
    "ask": Commands._ask,
    "load": Commands._load,
    "unload": Commands._unload,
    "status": Commands._status,
    "help": Commands._help,
}


def _given(arguments: Namespace) -> dict[str, Any]:
    """Return the sampling options that were typed; the session knows the defaults of the rest."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _require_variable_name(name: str | None) -> None:
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise OptionError(
            f"--out {name!r} is not the name of a variable.",
            "Use letters, digits and underscores, for example -o answer.",
        )
