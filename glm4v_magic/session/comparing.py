"""Asks several models or settings the same question, one after the other.

What the session has loaded answers where a column means it. Every other model is loaded into a
session of its own, and released before the next one comes, so memory has to hold one of them
beside what is loaded. Where it does not, what is loaded makes room, and is loaded again at the end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.compared import Column, ComparedAnswers
from glm4v_magic.core.errors import (
    ComparisonInterrupted,
    GenerationInterrupted,
    Glm4vError,
    OptionError,
    did_you_mean,
)
from glm4v_magic.core.events import ColumnBegun, ColumnDone, Done, Event, Text, Thinking
from glm4v_magic.core.option import Option
from glm4v_magic.core.options import of_python
from glm4v_magic.core.wording import brief, printable
from glm4v_magic.outside import expanded, is_there, path_text
from glm4v_magic.session.stream import Stream

if TYPE_CHECKING:
    from glm4v_magic.core.conversation import Answer

__all__ = ["Setting", "Steps", "compared", "has_settings", "settings_of"]

_MOST = 50
_LONGEST = 80  # characters of a name
_EXAMPLE = 'For example ["demo", {"model": "demo", "temperature": 1}].'
_SETTINGS = re.compile(r"(?:^|\s)[A-Za-z][\w-]*=")


@dataclass(frozen=True, slots=True)
class Setting:
    """A model with settings, as one column asks it.

    Attributes:
        name: how it was given, and unlike the others.
        model: model; ``None`` for the one in use.
        loading: options of loading it.
        asking: options of the question.
    """

    name: str
    model: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    asking: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Steps:
    """What a session does for a comparison.

    Attributes:
        ask: answers the question of a column, by its number; yields the events of
            `Session.stream`.
        release: releases the model that was loaded for the latest column, if any.
        restore: loads again what had made room; yields the events of loading.
        away: returns the name of the model that has made room and is not back; ``""`` for none.
    """

    ask: Callable[[int], Generator[Event, None, None]]
    release: Callable[[], None]
    restore: Callable[[], Generator[Event, None, None]]
    away: Callable[[], str]


def settings_of(given: object) -> tuple[Setting, ...]:
    """Return the columns of a comparison, checked.

    Args:
        given: models, by name or address, and dicts of options, ``model`` among them.

    Raises:
        OptionError: if there are fewer than two or too many, or an option is unknown or wrong.
    """
    if not isinstance(given, list | tuple):
        raise OptionError(
            f"settings is {brief(given)}, but must be a list of models or dicts of options.",
            _EXAMPLE,
        )
    columns = _listed(given)
    if not 2 <= len(columns) <= _MOST:
        raise OptionError(
            f"{len(columns)} cannot be compared: give from 2 to {_MOST} models or settings."
        )
    made = [_setting(each) for each in columns]
    names: dict[str, int] = {}
    for at, each in enumerate(made):
        number = names[each.name] = names.get(each.name, 0) + 1
        if number > 1:
            made[at] = replace(each, name=f"{each.name} ({number})")
    return tuple(made)


def _listed(given: Iterable[object]) -> list[object]:
    try:
        return list(given)
    except Exception as error:  # whatever a class that is derived from a list does
        reason = printable(f"{type(error).__name__}: {error}")[:_LONGEST]
        raise OptionError(f"settings is a list that cannot be read: {reason}.") from None


def has_settings(given: object) -> bool:
    """Tell whether a text is a model with settings behind it, or settings alone, as on a line.

    A folder may have such a name, too.
    """
    return (
        isinstance(given, str)
        and _SETTINGS.search(given) is not None
        and not is_there(expanded(given))
    )


def _setting(given: object) -> Setting:
    if has_settings(given):
        raise OptionError(
            f"{brief(given)} is a model and its settings in one text.",
            _EXAMPLE,
        )
    if isinstance(given, str | os.PathLike):
        given = {"model": given}
    if not isinstance(given, Mapping):
        raise OptionError(f"{brief(given)} is neither a model nor a dict of options.")
    options = dict(given)
    model = options.pop("model", None)
    if model is not None:
        model = path_text(model, "The model", OptionError)
    loading = _taken(options, of_python("load"))
    asking = _taken(options, of_python("compare"))
    for name in options:
        table = (*of_python("load"), *of_python("compare"))
        known = list(dict.fromkeys(each.name for each in table if each.name != "model"))
        raise OptionError(
            f"A setting has no option {brief(name)}.",
            did_you_mean(str(name), known) or f"There are model, {', '.join(known)}.",
        )
    return Setting(_name(model, {**loading, **asking}), model, loading, asking)


def _taken(options: dict[Any, Any], table: Iterable[Option]) -> dict[str, Any]:
    """Take the options of a table out of `options`, checked."""
    taken = {}
    for each in table:
        if each.name in options:
            value = each.normal(options.pop(each.name))
            each.check(value)
            taken[each.name] = value
    return taken


def _name(model: str | None, options: Mapping[str, Any]) -> str:
    written = [f"{name}={_written(value)}" for name, value in options.items()]
    text = " ".join([*([model] if model is not None else []), *written]) or "as it is"
    text = " ".join(printable(text).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _written(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) and re.fullmatch(r"\S+", value) else brief(value)


def compared(
    prompt: str, settings: Sequence[Setting], order: Iterable[int], steps: Steps
) -> Generator[Event, None, None]:
    """Ask every column, and keep its answer or its error.

    Args:
        prompt: the question.
        settings: the columns.
        order: numbers of the columns as they are asked.
        steps: what is done for each, and at the end.

    Raises:
        ComparisonInterrupted: on an interrupt, which ends all; also while a model is released or
            loaded again at the end.
    """
    columns = [Column(each.name, {**each.loading, **each.asking}) for each in settings]
    is_stopped = False
    try:
        try:
            for at in order:
                yield ColumnBegun(at, columns[at].name, settings[at].model or "")
                columns[at] = yield from _asked(columns[at], at, steps.ask(at))
                yield ColumnDone(at, ComparedAnswers(prompt, tuple(columns)))
        except _Stopped as stopped:
            columns[at] = replace(columns[at], answer=stopped.answer)
            is_stopped = True
        finally:
            steps.release()
        if not is_stopped:
            yield from steps.restore()
    except KeyboardInterrupt:
        is_stopped = True
    if is_stopped:
        # Out here it has no __context__, whose frames would hold on to the model.
        raise ComparisonInterrupted(ComparedAnswers(prompt, tuple(columns)), steps.away())


class _Stopped(KeyboardInterrupt):
    """An interrupt within an answer, with what was said until then."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def _asked(
    column: Column, at: int, events: Generator[Event, None, None]
) -> Generator[Event, None, Column]:
    """Yield the events of an answer with the number of its column; returns the column with it."""
    answer: Answer | None = None
    is_stopped = False
    try:
        with Stream(events) as stream:
            for event in stream:
                if isinstance(event, Done):
                    answer = event.answer
                elif isinstance(event, Text | Thinking):
                    yield replace(event, row=at)
                else:
                    yield event
    except GenerationInterrupted as stopped:
        answer, is_stopped = stopped.answer, True
    except KeyboardInterrupt:
        if answer is None:
            raise
        is_stopped = True
    except Glm4vError as error:
        return replace(column, answer=getattr(error, "answer", None), failure=error.text)
    if is_stopped and answer is not None:
        raise _Stopped(answer)
    return replace(column, answer=answer)
