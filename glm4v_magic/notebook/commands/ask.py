"""Asking: the cell magic, ``%glm4v ask``, and ``%glm4v preview``."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.forms import find_code
from glm4v_magic.calls.prompt import expand, read_prompt, require_text
from glm4v_magic.calls.tasks import asked
from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.errors import (
    EngineError,
    FormatError,
    GenerationInterrupted,
    OptionError,
    OutOfMemoryError,
    PromptError,
)
from glm4v_magic.images import (
    SourcedImage,
    count_images,
    resolve_images,
    with_clips_named,
)
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import Quoted, takes
from glm4v_magic.notebook.commands.compare import compare, refuse_beside_compare
from glm4v_magic.notebook.commands.context import Context, require_variable_name
from glm4v_magic.notebook.commands.over import over
from glm4v_magic.notebook.commands.question import (
    clips_of,
    crop_of,
    form_asked,
    frames_of,
    sampling_of,
    show_preview,
    system_of,
    video_of,
    video_parts,
)
from glm4v_magic.notebook.live.screen import screen_for
from glm4v_magic.notebook.live.stop_button import heard_first

if TYPE_CHECKING:
    from glm4v_magic.session.stream import Stream

__all__ = [
    "answer",
    "ask",
    "carry_out",
    "images_of",
    "preview",
    "question_of",
    "typed_question",
]


@takes("glm4v ask", *ARGUMENTS["ask"])
def ask(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> Answer | None:
    """Ask on one line.

    The question comes last and in quotes, or from a file::

        %glm4v ask cat.png "What is the cat doing?"
        x = %glm4v ask cat.png "Is it asleep?" --temperature 0
        %glm4v ask cat.png -f question.txt
        %glm4v ask "And what colour is it?" --continue
    """
    images, question = _images_and_question(arguments, "ask")
    return answer(context, arguments, images, question, names)


@takes("glm4v preview", *ARGUMENTS["preview"])
def preview(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show what a question would send: the prompt, its tokens, and the images.

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
    if arguments.task is not None and not isinstance((arguments.words or [""])[-1], Quoted):
        return arguments.words, ""
    *images, question = arguments.words or [""]
    if not isinstance(question, Quoted):
        raise OptionError(
            f"%glm4v {command} needs a question in {_kind_of(arguments.words)} behind the images.",
            'Quotes within it are of the other kind: "What\'s this?"'
            if re.search("['\"]", "".join(arguments.words[-1:]))
            else f'For example: %glm4v {command} cat.png "What is the cat doing?"',
        )
    return images, str(question)


def _kind_of(words: list[str]) -> str:
    """Return the kind of quotes to use instead of those in `words`."""
    return "straight quotes" if any(word[0] in "“”„‟«»‘’‚" for word in words if word) else "quotes"


def answer(
    context: Context, arguments: Namespace, images: list[str], text: str, names: Mapping[str, Any]
) -> Any:
    """Ask `text` about `images`, show it while it happens, and keep the answer.

    Args:
        context: shell and session.
        arguments: as `ANSWER_OPTIONS` declares them.
        images: the words that name images.
        text: the question as it was typed; blank with ``--file``.
        names: the user's variables.

    Returns:
        The answer, with ``--over`` the rows, with ``--compare`` the comparison; ``None`` with
        ``--preview``, which only shows what would be asked.
    """
    require_variable_name(arguments.out)
    images = with_clips_named(images, names)
    is_compared = arguments.compare is not None
    if is_compared:
        refuse_beside_compare(arguments)
    if arguments.over is not None:
        return over(context, arguments, images, typed_question(arguments, text), names)
    _refuse_without_over(arguments)
    question = question_of(arguments, text, names)
    frames = frames_of(arguments, images, names)
    if not frames and not clips_of(images, names):
        video_parts(arguments, "and there is none on this line")
    video, before, after = video_of(context, arguments, images, names, frames)
    sourced = images_of(context, arguments, [*before, *after], names)
    before_video = None if video is None else count_images(before, names)
    if is_compared:
        return compare(context, arguments, names, question, sourced, video, before_video)
    where = {
        "before_video": before_video,
        "chat": arguments.chat,
        "follow_up": arguments.follow_up,
        "system": system_of(context, arguments),
    }
    if arguments.preview:
        question = asked(question, arguments.task, form_asked(arguments, names).schema)
        show_preview(
            context, context.session.draft(question, sourced, video, **where), arguments.task
        )
        return None
    return carry_out(
        context,
        arguments,
        names,
        partial(context.session.stream, question, sourced, video, task=arguments.task, **where),
    )


def carry_out(
    context: Context,
    arguments: Namespace,
    names: Mapping[str, Any],
    call: Callable[..., Stream],
    kept: Mapping[str, Any] | None = None,
) -> Answer:
    """Make a call of the model, show it while it happens, and keep the answer.

    Args:
        context: shell and session.
        arguments: as `AGAIN_OPTIONS` declares them.
        names: the user's variables.
        call: `Session.stream`, `stream_retry` or `stream_carry_on`, for the rest of their
            arguments.
        kept: form of the answer to carry on; see `question.form_asked`.
    """
    require_variable_name(arguments.out)
    form = form_asked(arguments, names, kept)
    sampling = sampling_of(context, arguments)
    screen = screen_for(
        context.shell,
        context.model,
        quiet=arguments.quiet,
        form=form.format,
        button=context.settings.stop_button,
        told=context.told,
    )
    earlier = context.session.status().last
    given: Answer | None = None
    try:
        with (
            call(**sampling, **form.options, model=context.settings.model) as stream,
            heard_first(screen),
        ):
            for event in stream:
                screen.show(event)
        answer: Answer = stream.result
        given = answer
        context.keep(given, arguments.out)
        screen.finish(given)
    except (KeyboardInterrupt, FormatError, OutOfMemoryError, EngineError) as stop:
        if isinstance(stop, GenerationInterrupted | FormatError):
            given = stop.answer
        elif given is None and context.session.status().last is not earlier:
            given = context.session.status().last  # stopped on its way out of the session
        if given is not None:
            context.keep(given, arguments.out)
            # A cell that fails has no result, so IPython would not set _ and Out.
            context.shell.displayhook.update_user_ns(given)
            screen.finish(given)
        raise
    finally:
        screen.close()
    if given.format == "code":
        _offer(context, given)
    return given


def _offer(context: Context, answer: Answer) -> None:
    """Put the code of an answer into the next cell, or at the next prompt of a terminal."""
    code, language = find_code(answer.text)
    cell_magics = context.shell.magics_manager.magics["cell"]  # bash, html, javascript, ...
    if language in cell_magics and not language.startswith("py"):
        code = f"%%{language}\n{code}"
    context.shell.set_next_input(code)


def _refuse_without_over(arguments: Namespace) -> None:
    for option in ("batch_size", "fresh", "save", "evaluate", "by", "bins"):
        if getattr(arguments, option):
            raise OptionError(
                f"--{option.replace('_', '-')} is about the rows of --over, and there is no --over."
            )


def question_of(arguments: Namespace, text: str, names: Mapping[str, Any]) -> str:
    """Return the question of a cell or of ``--file``, expressions expanded unless ``--raw``."""
    text = typed_question(arguments, text)
    expanded = text if arguments.raw else expand(text, names)
    return expanded if arguments.task is not None else require_text(expanded)


def typed_question(arguments: Namespace, text: str) -> str:
    """Return the question as it was written in the cell or in a file.

    Raises:
        OptionError: if there is one in the cell and one in a file.
        PromptError: if the file cannot be read, or a follow-up is empty.
    """
    if arguments.file is not None:
        if text.strip():
            raise OptionError(
                "There is a question in the cell, and another in --file.",
                "Empty the cell below its first line, or leave --file out.",
            )
        return read_prompt(arguments.file)
    if arguments.follow_up and not text.strip() and arguments.task is None:
        raise PromptError(
            "The prompt is empty.", "To carry on an unfinished answer: %glm4v continue."
        )
    return text


def images_of(
    context: Context, arguments: Namespace, images: list[str], names: Mapping[str, Any]
) -> tuple[SourcedImage, ...]:
    """Return the images that words name, with ``--page`` and ``--crop``.

    Raises:
        ImageError: if a word names no image.
        OptionError: if an option does not suit the images.
    """
    crop = crop_of(arguments.crop, names)
    for option in ("page", "crop"):
        if getattr(arguments, option) is not None and not images:
            raise OptionError(f"--{option} is about an image, and there is none on this line.")
    if getattr(arguments, "compare", None) is None:
        context.session.require_images(count_images(images, names))
    sourced = resolve_images(images, names, limits=context.settings.limits, page=arguments.page)
    return sourced if crop is None else tuple(crop.of(each) for each in sourced)
