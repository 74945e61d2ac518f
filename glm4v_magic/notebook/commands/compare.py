"""``--compare``: one question to several models or settings."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from glm4v_magic.calls.compared import ComparedAnswers
from glm4v_magic.core.errors import ComparisonInterrupted, InputError, OptionError, did_you_mean
from glm4v_magic.core.option import Option
from glm4v_magic.core.option_values import python_literal
from glm4v_magic.core.options import check, of_python
from glm4v_magic.core.remarks import worded
from glm4v_magic.core.typed_options import as_typed, flags_of, read_text
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.core.wording import split_at_commas
from glm4v_magic.images import SourcedImage
from glm4v_magic.images.words import is_lookup, looked_up
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.commands.question import form_asked, sampling_of
from glm4v_magic.notebook.live.columns import columns_for
from glm4v_magic.notebook.live.stop_button import heard_first
from glm4v_magic.notebook.next_steps import PYTHON_IN_CELL
from glm4v_magic.session.comparing import has_settings

__all__ = ["compare", "refuse_beside_compare"]

_ELSEWHERE = {
    "over": "It asks about one thing.",
    "chat": "Each of its answers is one to a fresh question.",
    "follow_up": "Each of its answers is one to a fresh question.",
}
# Possessive, so that a text of a million characters takes no time.
_PART = re.compile(r"""(?P<space>\s++)|"[^"]*+"|'[^']*+'|(?P<open>["'])|(?P<plain>[^\s"']++)""")
_BETWEEN_COMMAS = "Models stand between commas, the settings of each behind it."
_SET = re.compile(r"(?P<name>[A-Za-z][\w-]*)=(?P<value>.*)", re.DOTALL)


def refuse_beside_compare(arguments: Namespace) -> None:
    """Raise OptionError if an option does not go with ``--compare``."""
    check("compare", arguments.compare, as_typed("compare"))
    for name, why in _ELSEWHERE.items():
        if getattr(arguments, name):
            raise OptionError(f"{as_typed(name)} does not go with --compare.", why)
    if arguments.preview:
        raise OptionError(
            "--preview does not go with --compare.",
            "Leave --compare out to see what the model in use would be sent.",
        )


def compare(
    context: Context,
    arguments: Namespace,
    names: Mapping[str, Any],
    question: str,
    images: Sequence[SourcedImage],
    video: SourcedVideo | None,
    before_video: int | None,
) -> ComparedAnswers:
    """Ask several models or settings, show their answers side by side, and keep them.

    Args:
        context: shell and session.
        arguments: as `ANSWER_OPTIONS` declares them.
        names: the user's variables.
        question: the question, expressions expanded.
        images: its images.
        video: its video, if any.
        before_video: number of images before the video.
    """
    form = form_asked(arguments, names)
    system = context.settings.system if arguments.system is None else arguments.system
    stream = context.session.stream_compare(
        question,
        list(images),
        video,
        before_video,
        settings=_settings(arguments.compare, names),
        **sampling_of(context, arguments),
        **form.options,
        system=system,
        task=arguments.task,
        model=context.settings.model,
    )
    board = columns_for(
        context.shell,
        context.model,
        quiet=arguments.quiet,
        button=context.settings.stop_button,
        told=context.told,
    )
    try:
        with stream, heard_first(board):
            for event in stream:
                board.show(event)
        result: ComparedAnswers = stream.result
        context.keep(result, arguments.out)
        board.finish(result)
    except BaseException as error:
        given = error.result if isinstance(error, ComparisonInterrupted) else stream.result
        if given is not None:
            _keep(context, given, arguments.out)
            board.finish(given)
            if type(error) is KeyboardInterrupt:  # after the stream had ended
                raise ComparisonInterrupted(given) from None
        raise
    finally:
        board.close()
    if all(each.failure is not None for each in result.columns):
        _keep(context, result, arguments.out)
        first = worded(result.columns[0].failure or "", PYTHON_IN_CELL)
        raise InputError(f"Each of the {len(result.columns)} failed; the first: {first}")
    return result


def _keep(context: Context, result: object, name: str | None) -> None:
    context.keep(result, name)
    # A cell that fails has no result, so IPython would not set _ and Out.
    context.shell.displayhook.update_user_ns(result)


def _settings(word: str, names: Mapping[str, Any]) -> object:
    """Return what is compared: the list in a variable, or ``demo,http://... temperature=1``.

    A part of such a list is one, too: ``settings[:2]``. What a list holds as text is read as on the
    line, and so is a text in a variable.
    """
    found: Any = word
    if word in names:
        found = names[word]
    elif is_lookup(word, names) and isinstance(held := looked_up(word, names), list | tuple):
        found = held
    elif word.startswith("["):
        read = python_literal(word)
        found = word if read is None else read
    if isinstance(found, str):
        columns = split_at_commas(found)
        if columns == [word] and word.isidentifier():
            raise OptionError(
                f"--compare names {word:.60} alone, and there is no such variable.",
                did_you_mean(word, (name for name in names if not name.startswith("_")))
                or _BETWEEN_COMMAS,
            )
        return [_setting(each, names) for each in columns]
    if type(found) in (list, tuple):
        return [_setting(each, names) if has_settings(each) else each for each in found]
    return found


def _setting(text: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``demo temperature=1`` as a dict of options."""
    words = _words(text)
    if not words:
        raise OptionError(
            "--compare names nothing between two commas.",
            "For example --compare demo,http://127.0.0.1:8000/v1.",
        )
    found: dict[str, Any] = {}
    if _SET.fullmatch(words[0]) is None:
        found["model"] = words.pop(0)
    for word in words:
        match = _SET.fullmatch(word)
        if match is None:
            raise OptionError(
                f"--compare: {word!r:.60} is not a setting, such as temperature=1.",
                did_you_mean(word, (name for name in names if not name.startswith("_")))
                or _BETWEEN_COMMAS,
            )
        option = _option(match["name"])
        found[option.name] = read_text(option, match["value"])
    return found


def _words(text: str) -> list[str]:
    """Split at whitespace outside of quotes, wherever in a word they stand."""
    words: list[list[str]] = [[]]
    for found in _PART.finditer(text):
        if found["open"] is not None:
            raise OptionError(f"--compare: {text!r:.60} cannot be read: No closing quotation.")
        if found["space"] is not None:
            words.append([])
        else:
            words[-1].append(found["plain"] or found[0][1:-1])
    return ["".join(each) for each in words if each]


def _option(name: str) -> Option:
    """Return the option that is spelled so on a command line, or in Python."""
    table = {each.name: each for each in (*of_python("load"), *of_python("compare"))}
    spelled = {flags_of(each)[-1].removeprefix("--"): each for each in table.values()}
    option = table.get(name) or spelled.get(name)
    if option is None:
        raise OptionError(
            f"--compare: there is no setting {name!r:.60}.",
            did_you_mean(name, (*table, *spelled)) or f"There are {', '.join(spelled)}.",
        )
    return option
