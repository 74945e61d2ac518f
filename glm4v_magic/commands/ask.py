"""Asking: the cell magic, and ``%glm4v ask``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from IPython.core.magic_arguments import argument

from glm4v_magic.command_line import ANSWER_OPTIONS, Quoted, takes
from glm4v_magic.commands.context import Context, require_variable_name
from glm4v_magic.conversation import Answer
from glm4v_magic.errors import GenerationInterrupted, OptionError
from glm4v_magic.images import resolve_images
from glm4v_magic.prompt import expand, require_text
from glm4v_magic.screen import screen_for

__all__ = ["answer", "ask"]


@takes(
    "glm4v ask",
    argument("words", nargs="*", metavar="IMAGE", help="Pictures, then the question in quotes."),
    *ANSWER_OPTIONS,
)
def ask(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> Answer:
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
    return answer(context, arguments, images, str(question), names)


def answer(
    context: Context, arguments: Namespace, images: list[str], text: str, names: Mapping[str, Any]
) -> Answer:
    """Ask `text` about `images`, show it while it happens, and keep the answer.

    Args:
        context: shell and session.
        arguments: as `ANSWER_OPTIONS` declares them.
        images: the words that name pictures.
        text: the question as it was typed.
        names: the user's variables.
    """
    require_variable_name(arguments.out)
    question = require_text(text if arguments.raw else expand(text, names))
    pictures = resolve_images(images, names)
    model = context.session.status().choice.name
    screen = screen_for(context.shell, model, quiet=arguments.quiet)
    given: Answer | None = None
    try:
        given = context.session.ask(
            question,
            pictures,
            **_sampling(arguments),
            on_progress=screen.loading,
            on_start=screen.start,
            on_text=screen.piece,
        )
        context.keep(given, arguments.out)
        screen.finish(given)
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, GenerationInterrupted):
            given = interrupt.answer
        if given is not None:
            context.keep(given, arguments.out)
            # An interrupted cell has no result, so IPython would not set _ and Out.
            context.shell.displayhook.update_user_ns(given)
            screen.finish(given)
        raise
    finally:
        screen.close()
    return given


def _sampling(arguments: Namespace) -> dict[str, Any]:
    """Return the sampling options that were typed; the session knows the defaults of the rest."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
