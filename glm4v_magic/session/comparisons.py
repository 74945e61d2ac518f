"""`Comparisons`: several models or settings are asked the same, beside the model in use."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.call import terms_of
from glm4v_magic.calls.tasks import asked
from glm4v_magic.core.conversation import Message
from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.events import Done, Event, Started
from glm4v_magic.core.model import ModelChoice
from glm4v_magic.core.options import AnswerForm, of_group
from glm4v_magic.core.python_options import accepts
from glm4v_magic.session.opening import choice_of
from glm4v_magic.session.questions import OF_A_VIDEO, Questions
from glm4v_magic.session.stream import Stream

if TYPE_CHECKING:
    from glm4v_magic.calls.compared import ComparedAnswers
    from glm4v_magic.session.comparing import Setting

__all__ = ["Comparisons"]


class Comparisons(Questions):
    """Questions to several models or settings, one after the other."""

    @accepts("compare")
    def compare(
        self,
        text: str,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        *,
        settings: object,
        **options: Any,
    ) -> ComparedAnswers:
        """Ask several models or settings the same and return their answers side by side.

        Errors as `stream_compare`.

        Args:
            text: the question.
            images: one image or a list of them; see `stream`.
            video: as in `stream`.
            before_video: likewise.
            settings: models and settings; see `stream_compare`.
            options: how tokens are chosen and the form of the answer, unless a setting has its own.
        """
        comparison: ComparedAnswers = self.stream_compare(
            text, images, video, before_video, settings=settings, **options
        ).follow()
        return comparison

    @accepts("compare")
    def stream_compare(
        self,
        text: str,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        *,
        settings: object,
        **options: Any,
    ) -> Stream:
        """Ask several models or settings the same, one after the other, outside of any chat.

        Answers have log-probabilities, unless they are choices, which have probabilities. What is
        loaded answers where a setting names no other model, and stays loaded. Every other model is
        loaded into a session of its own and released again. Without room for both, what is loaded
        is released first, and loaded again at the end. An error of one is kept in its column.

        Args:
            text: the question.
            images: one image or a list of them; see `stream`.
            video: as in `stream`.
            before_video: likewise.
            settings: a list of models, by name or address, and of dicts of options: ``model``,
                those of `load`, and those below.
            options: how tokens are chosen and the form of the answer, unless a setting has its own.

        Returns:
            Its events: `ColumnBegun` for each model or setting, those of `stream` without `Done`,
            and `ColumnDone`. The result is a `calls.compared.ComparedAnswers`.

        Raises:
            InputError: if the question, images, settings or options cannot be used.
            ComparisonInterrupted: on an interrupt, which ends all; `result` has what was answered.
            BusyError: if another call is running.
        """
        from glm4v_magic.session.comparing import settings_of

        columns = settings_of(settings)
        for each in columns:
            terms = terms_of(_with(options, each))
            asked(text, terms.task, terms.form.schema)
        # Without a model: what one takes of images is for its own column to say.
        message = Questions()._question(text, images, video, before_video, options)
        return self._locked(partial(self._compare, text, message, columns, options))

    def _compare(
        self,
        text: str,
        message: Message,
        columns: Sequence[Setting],
        options: Mapping[str, Any],
    ) -> Generator[Event, None, None]:
        from glm4v_magic.session.comparing import Steps, compared

        chosen = self._chosen(terms_of(options))
        choices = [_meant(each, chosen) for each in columns]
        given = {name: value for name, value in options.items() if name not in OF_A_VIDEO}
        was_loaded = self._engine is not None
        other: Questions | None = None

        def ask(at: int) -> Generator[Event, None, None]:
            nonlocal other
            choice, terms = choices[at], _with(given, columns[at])
            if terms.get("logprobs") is None and terms.get("choices") is None:
                terms["logprobs"] = 0
            if choice is None:
                engine = yield from self._ready(terms_of(terms))
                session = Questions(engine)
            else:
                if other is not None and other._choice != choice:
                    other.unload()
                    other = None
                session = other = other or Questions()
                with session._stream_beside(self, choice) as loading:
                    for event in loading:
                        yield event
            video = message.videos[0] if message.videos else None
            asking = session.stream(
                text, list(message.images), video, message.before_videos, **terms
            )
            with asking as events:
                for event in events:
                    yield self._owned(event) if choice is None else event

        def release() -> None:
            if other is not None:
                other.unload()

        # Those of one model in a row, so that each is loaded once.
        order = sorted(range(len(columns)), key=lambda at: choices.index(choices[at]))
        away = partial(self._away, was_loaded)
        steps = Steps(ask, release, partial(self._restored, away), away)
        yield from compared(text, columns, order, steps)

    def _away(self, was_loaded: bool) -> str:
        """Return the name of the model that was loaded and has made room, ``""`` for none."""
        return self._choice.name if was_loaded and self._engine is None else ""

    def _restored(self, away: Callable[[], str]) -> Generator[Event, None, None]:
        """Load again what has made room."""
        if away():
            with suppress(Glm4vError):  # the next question tells why it cannot be loaded
                engine = yield from self._ready(terms_of({}))
                yield Started(engine.info)

    def _owned(self, event: Event) -> Event:
        """Return an event whose answer is looked into with the engine of this session."""
        origin = event.answer.origin if isinstance(event, Done) else None
        if origin is None:
            return event
        assert isinstance(event, Done)
        assert self._engine is not None  # it has answered
        origin = replace(origin, lend=self._lending(self._engine))
        return Done(replace(event.answer, origin=origin))


def _meant(setting: Setting, chosen: ModelChoice) -> ModelChoice | None:
    """Return the model of a column of a comparison; ``None`` for the one that is `chosen` here."""
    if setting.model is None and not setting.loading:
        return None
    choice = choice_of(setting.model or chosen.name, setting.loading)
    return None if choice == replace(chosen, model=chosen.name) else choice


def _with(options: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """Return the options of a column: its own before those of all, and its form as a whole."""
    forms = {each.name for each in of_group(AnswerForm)}
    left = set() if forms.isdisjoint(setting.asking) else forms
    return {name: options[name] for name in options if name not in left} | dict(setting.asking)
