"""Asking: the cell magic, ``%glm4v ask``, and ``%glm4v preview``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from IPython.core.magic_arguments import argument

from glm4v_magic.command_line import ANSWER_OPTIONS, Quoted, takes
from glm4v_magic.commands.context import Context, require_variable_name
from glm4v_magic.conversation import Answer, Conversation, Message
from glm4v_magic.errors import GenerationInterrupted, OptionError
from glm4v_magic.images import SourcedImage, parse_crop, resolve_images
from glm4v_magic.prompt import expand, read_prompt, require_text
from glm4v_magic.screen import screen_for, show

__all__ = ["answer", "ask", "preview"]

_WORDS = argument(
    "words", nargs="*", metavar="IMAGE", help="Pictures, then the question in quotes."
)


@takes("glm4v ask", _WORDS, *ANSWER_OPTIONS)
def ask(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> Answer | None:
    """Ask on one line.

    The question comes last and in quotes, or from a file::

        %glm4v ask cat.png "What is the cat doing?"
        x = %glm4v ask cat.png "Is it asleep?" --temperature 0
        %glm4v ask cat.png -f question.txt
    """
    images, question = _images_and_question(arguments, "ask")
    return answer(context, arguments, images, question, names)


@takes("glm4v preview", _WORDS, *ANSWER_OPTIONS)
def preview(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show what a question would send: the prompt, its tokens, and the pictures.

    No weight is loaded and nothing is asked. A line for %glm4v ask can be previewed as it is; a
    cell takes the option --preview::

        %glm4v preview cat.png "What is the cat doing?" --crop 10%,10%,50%,50%
    """
    images, question = _images_and_question(arguments, "preview")
    arguments.preview = True
    answer(context, arguments, images, question, names)


def _images_and_question(arguments: Namespace, command: str) -> tuple[list[str], str]:
    if arguments.file is not None:
        return arguments.words, ""
    *images, question = arguments.words or [""]
    if not isinstance(question, Quoted):
        raise OptionError(
            f"%glm4v {command} needs a question in quotes behind the pictures.",
            f'For example: %glm4v {command} cat.png "What is the cat doing?"',
        )
    return images, str(question)


def answer(
    context: Context, arguments: Namespace, images: list[str], text: str, names: Mapping[str, Any]
) -> Answer | None:
    """Ask `text` about `images`, show it while it happens, and keep the answer.

    Args:
        context: shell and session.
        arguments: as `ANSWER_OPTIONS` declares them.
        images: the words that name pictures.
        text: the question as it was typed; blank with ``--file``.
        names: the user's variables.

    Returns:
        The answer; ``None`` with ``--preview``, which only shows what would be asked.
    """
    require_variable_name(arguments.out)
    question = _question(arguments, text, names)
    pictures = _pictures(context, arguments, images, names)
    system = context.settings.system if arguments.system is None else arguments.system
    if arguments.preview:
        _show_preview(context, question, pictures, system)
        return None
    screen = screen_for(
        context.shell,
        context.model,
        quiet=arguments.quiet,
        button=context.settings.stop_button,
    )
    given: Answer | None = None
    try:
        given = context.session.ask(
            question,
            pictures,
            **_sampling(context, arguments),
            system=system,
            model=context.settings.model,
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


def _question(arguments: Namespace, text: str, names: Mapping[str, Any]) -> str:
    if arguments.file is not None:
        if text.strip():
            raise OptionError(
                "There is a question in the cell, and another in --file.",
                "Empty the cell below its first line, or leave --file away.",
            )
        text = read_prompt(arguments.file)
    return require_text(text if arguments.raw else expand(text, names))


def _pictures(
    context: Context, arguments: Namespace, images: list[str], names: Mapping[str, Any]
) -> tuple[SourcedImage, ...]:
    crop = None if arguments.crop is None else parse_crop(arguments.crop)
    for option in ("page", "crop"):
        if getattr(arguments, option) is not None and not images:
            raise OptionError(f"--{option} is about a picture, and there is none on this line.")
    pictures = resolve_images(images, names, limits=context.settings.limits, page=arguments.page)
    return pictures if crop is None else tuple(crop.of(picture) for picture in pictures)


def _sampling(context: Context, arguments: Namespace) -> dict[str, Any]:
    """Return the sampling options that were typed or set; the session knows the rest."""
    values = {
        name: getattr(context.settings, name)
        for name in ("max_tokens", "temperature", "top_p", "top_k")
    }
    for name in (*values, "repetition_penalty", "seed"):
        typed = getattr(arguments, name)
        if typed is not None:
            values[name] = typed
    return {name: value for name, value in values.items() if value is not None}


def _show_preview(
    context: Context, question: str, pictures: tuple[SourcedImage, ...], system: str | None
) -> None:
    from glm4v_magic.checkpoints import resolve
    from glm4v_magic.display.preview import preview_bundle
    from glm4v_magic.preview import preview

    before = (Message("system", system),) if system else ()
    conversation = Conversation((*before, Message("user", question, pictures)))
    checkpoint = resolve(context.model, revision=context.session.status().choice.revision)
    show(preview_bundle(preview(checkpoint, conversation)))
