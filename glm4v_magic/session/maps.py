"""`Maps`: the model in use is asked the same about many images or values."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.call import Terms, sourced, terms_of
from glm4v_magic.calls.prompt import require_text
from glm4v_magic.calls.refusals import (
    Takes,
    refuse_more_than,
    refuse_parts_of_no_video,
    refuse_place,
    refuse_task,
    refuse_thinking,
    refuse_video,
)
from glm4v_magic.calls.tasks import asked
from glm4v_magic.core.conversation import Conversation, Request
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.events import Event, Started
from glm4v_magic.core.model import ModelChoice
from glm4v_magic.core.python_options import accepts
from glm4v_magic.core.remarks import PYTHON
from glm4v_magic.core.server_address import is_address
from glm4v_magic.session.questions import OF_A_VIDEO, Questions
from glm4v_magic.session.stream import Stream

if TYPE_CHECKING:
    from glm4v_magic.core.remarks import Words
    from glm4v_magic.engines import Engine
    from glm4v_magic.mapping.answer_cache import AnswerStore
    from glm4v_magic.mapping.items import Items, PlannedRow
    from glm4v_magic.mapping.runner import Job, Read, ReadVideo

__all__ = ["Maps"]


class Maps(Questions):
    """One prompt over many rows, whose answers are remembered."""

    def __init__(self, engine: Engine | None = None) -> None:
        super().__init__(engine)
        self._store: AnswerStore | None = None

    @accepts("map")
    def map(
        self,
        prompt: str,
        items: object,
        *,
        column: object = None,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        names: Mapping[str, object] | None = None,
        read: Read | None = None,
        read_video: ReadVideo | None = None,
        **options: Any,
    ) -> Any:
        """Ask the same of many and return the rows; errors as `stream_map`.

        Args:
            prompt: the question; see `stream_map`.
            items: a list of images or values, a folder, a pattern, a pandas Series, a DataFrame.
            column: of a DataFrame, the one that holds the images or values.
            images: images that go with every row.
            video: a video that goes with every row; see `stream`.
            before_video: number of these images that stand before it; all of them by default.
            names: what else expressions in the prompt may use.
            read: how an item becomes images; `images.to_images` by default.
            read_video: how an item becomes a video; `images.video.to_video` by default.
            options: how rows are asked and how tokens are chosen.
        """
        return self.stream_map(
            prompt,
            items,
            column=column,
            images=images,
            video=video,
            before_video=before_video,
            names=names,
            read=read,
            read_video=read_video,
            **options,
        ).follow()

    @accepts("map")
    def stream_map(
        self,
        prompt: str,
        items: object,
        *,
        column: object = None,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        names: Mapping[str, object] | None = None,
        read: Read | None = None,
        read_video: ReadVideo | None = None,
        words: Words = PYTHON,
        **options: Any,
    ) -> Stream:
        """Ask the same about many images or values, each in a conversation of its own.

        Rows that fail keep their error and the others go on. What was answered in this session
        before is not asked again.

        Args:
            prompt: the question; ``{{item}}``, ``{{index}}`` and ``{{row.name}}`` differ from row
                to row, see `mapping.items`.
            items: a list of images or values, a folder, a pattern, a pandas Series, a DataFrame.
            column: of a DataFrame, the one that holds the images or values.
            images: images that go with every row.
            video: a video that goes with every row; see `stream`.
            before_video: number of these images that stand before it; all of them by default.
            names: what else expressions in the prompt may use.
            read: how an item becomes images; `images.to_images` by default.
            read_video: how an item becomes a video; `images.video.to_video` by default.
            words: front end that words the errors in a DataFrame.
            options: how rows are asked and how tokens are chosen. They count for each row by
                itself: with a ``seed`` every row is answered as `ask` would with this seed, without
                one each row draws its own and reports it; an answer that is not in its ``format``
                is its row's error; answers that break the ``schema`` are corrected together.

        Returns:
            Its events: those of `stream` with the row that they belong to, but no `Started` if
            every answer is known; `RowDone` for each row; and `MapDone`, whose result is
            `core.rows.Rows`, or a DataFrame for a Series or a DataFrame; see
            `mapping.results.result_of`. With ``save`` it is `mapping.row_file.SavedRows`.

        Raises:
            InputError: if the items or options cannot be used, or the prompt fails for every row.
            MapInterrupted: on an interrupt; its `result` holds the rows that are done.
            CheckpointError, PlacementError: if the model has to be loaded and cannot be.
            EngineError: if a server refuses the key, or fails for two rows in turn and for all that
                are being answered then. The same call goes on where it stopped, and what is done is
                the `result` of the latest `Progress`.
            SaveError: if rows cannot be written any more; likewise.
            BusyError: if another call is running.
        """
        from glm4v_magic.images import to_images
        from glm4v_magic.images.video import to_video
        from glm4v_magic.mapping.items import Items, items_of, plan
        from glm4v_magic.mapping.runner import Job

        terms = terms_of(options)
        if not isinstance(items, Items):
            items = items_of(items, "items", column=column)
        if not isinstance(names, Mapping | None):
            raise OptionError(f"names is of type {type(names).__name__}, but must be a mapping.")
        prompt = asked(prompt, terms.task, terms.form.schema)
        rows = plan(prompt, items, names or {}, raw=options.get("raw", False))
        shared = sourced(images)
        parts: dict[str, Any] = {each: options.get(each) for each in OF_A_VIDEO}
        own_video = any(row.has_video for row in rows)
        refuse_parts_of_no_video(parts, with_video=own_video or video is not None)
        if own_video and video is not None:
            raise OptionError("Rows are videos, and every row has another; a question has one.")
        refuse_place(before_video, len(shared), with_video=video is not None)
        videos = () if video is None else self._videos(video, parts)
        system = options.get("system")
        told = require_text(system) if system else None

        job = Job(
            terms,
            told,
            shared,
            videos,
            before_video,
            read or to_images,
            read_video or partial(to_video, **parts),
            options.get("batch_size"),
            options.get("fresh", False),
            words,
        )
        return self._locked(partial(self._map, rows, job, items, prompt, options.get("save")))

    def forget_answers(self) -> None:
        """Forget the answers that `map` remembers, so that equal rows are asked again."""
        self._store = None

    def _map(
        self,
        rows: Sequence[PlannedRow],
        job: Job,
        items: Items,
        prompt: str,
        save: str | os.PathLike[str] | None,
    ) -> Generator[Event, None, None]:
        """Ask all rows, and keep them in memory or in the file `save`."""
        from glm4v_magic.mapping.answer_cache import AnswerStore, model_key
        from glm4v_magic.mapping.runner import run

        choice = self._chosen(job.terms)
        self._store = self._store or AnswerStore()
        engine = self._engine_for_rows(job, rows)
        is_here = not is_address(choice.name)
        terms = _followed(job.terms, choice)
        job = replace(job, terms=terms, model=model_key(choice), is_here=is_here)
        if save is not None:
            from glm4v_magic.mapping.row_file import RowFile

            job = replace(job, kept=RowFile(save, prompt, job, rows, items))
        yield from run(rows, job, engine, self._store, items)

    def _open(self, choice: ModelChoice, found: Any) -> Generator[Event, None, Engine]:
        choice_before, stamp_before = self._choice, self._stamp
        engine = yield from super()._open(choice, found)
        if choice == choice_before and self._stamp != stamp_before:
            self._store = None  # of rows answered by what the files held before
        return engine

    def _engine_for_rows(
        self, job: Job, rows: Sequence[PlannedRow]
    ) -> Generator[Event, None, Engine]:
        """Return the engine, which takes the images and the video that each row has at least."""
        terms = job.terms
        bare = Request(Conversation(), terms.sampling)
        at_least = len(job.images) + (rows[0].is_image and not rows[0].has_video)
        has_video = bool(job.videos) or all(row.has_video for row in rows)

        def refuse(model: Takes) -> None:
            refuse_task(terms.task, model.name, model.tasks, at_least)
            refuse_thinking(bare, model.name, model.thinks, model.efforts)
            refuse_more_than(model.max_images, at_least, model.name, "each row")
            if has_video:
                refuse_video(model.name, model.takes_video)

        engine = yield from self._ready(terms, refuse)
        yield Started(engine.info, job.images)
        return engine


def _followed(terms: Terms, choice: ModelChoice) -> Terms:
    """Return terms without a constraint that the model will not follow: it would change nothing.

    A model in this process does not follow a schema if llguidance is missing.
    """
    from glm4v_magic.engines.grammars import is_available

    is_checked = terms.constraint is not None and terms.constraint.schema
    if is_checked and not is_address(choice.name) and not is_available():
        return replace(terms, constraint=None)
    return terms
