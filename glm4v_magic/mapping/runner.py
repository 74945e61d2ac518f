"""Run of a map: asks the rows of `mapping.items.plan` in batches; errors stay in their rows.

A row that was answered in this session is not asked again while nothing that the answer depends on
has changed; see `mapping.answer_cache`. Answers that break a schema are asked for once more,
together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from glm4v_magic.calls.call import (
    Call,
    Terms,
    answer_of,
    corrected,
    correction_of,
    refuse_more_than,
    with_value,
)
from glm4v_magic.core.conversation import Answer, Conversation, Generation, Message, Request
from glm4v_magic.core.errors import (
    EngineError,
    FormatError,
    GenerationInterrupted,
    Glm4vError,
    InputError,
    MapInterrupted,
    OptionError,
    OutOfMemoryError,
)
from glm4v_magic.core.events import Correcting, EngineEvent, Event, Finished, MapDone, RowDone
from glm4v_magic.core.remarks import Text
from glm4v_magic.core.rows import AnsweredRow, Progress
from glm4v_magic.mapping.answer_cache import AnswerStore, request_key
from glm4v_magic.mapping.results import result_of

if TYPE_CHECKING:
    from glm4v_magic.core.image import SourcedImage
    from glm4v_magic.engines import Engine
    from glm4v_magic.mapping.items import Items, PlannedRow

__all__ = ["Job", "run"]

THUMBNAIL_SIDE = 64
"""Longest side in pixels of the copies that answers keep of their images."""

Read: TypeAlias = "Callable[[object, str], tuple[SourcedImage, ...]]"


@dataclass(frozen=True, slots=True)
class Job:
    """Terms that all rows share.

    Attributes:
        terms: terms of each row; a seed applies to each row by itself.
        system: system message of each row; empty for none.
        images: images sent with every row, before its own.
        read: function that turns an item into images.
        model: key of the model; see `answer_cache.model_key`.
        batch_size: rows to ask at once; ``None`` for the engine's preferred number.
        fresh: whether to ask all rows again, even if their answers are known.
    """

    terms: Terms
    system: str | None
    images: tuple[SourcedImage, ...]
    read: Read
    model: str
    batch_size: int | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    """A request of a row: its question, or the correction of its first answer.

    Attributes:
        row: the row.
        call: call with the question.
        request: request sent to the engine.
        key: key of the answer in the store.
        number: number of the row among rows with the same request, from 1.
        first: answer to correct; ``None`` for the question itself.
        fault: what is wrong with `first`.
        reused: whether the first answer is from an earlier run; ``True`` if there is none.
    """

    row: PlannedRow
    call: Call
    request: Request
    key: str
    number: int
    first: Answer | None = None
    fault: str = ""
    reused: bool = True


def run(
    rows: Sequence[PlannedRow],
    job: Job,
    open_engine: Callable[[], Generator[Event, None, Engine]],
    store: AnswerStore,
    items: Items,
) -> Generator[Event, None, None]:
    """Ask all rows; yields events, and `MapDone` at the end.

    Args:
        rows: rows from `mapping.items.plan`.
        job: terms that they share.
        open_engine: opens the engine before the first row is asked; not called if all answers are
            known.
        store: known answers; new ones are added.
        items: items of the rows.

    Raises:
        MapInterrupted: on an interrupt.
        EngineError: if the model fails for two rows in turn; one alone is its row's error.
        OptionError: if the schema refers to what is not in it.
    """
    running = _Run(rows, job, open_engine, store, items)
    try:
        yield from running.all()
    except KeyboardInterrupt:
        pass
    except Exception:
        yield from running.give_up()
        raise
    else:
        yield MapDone(running.result())
        return
    for _ in running.give_up():
        pass  # whoever stopped this is told by the exception
    # Out here the new exception has no __context__, whose frames would hold on to the model.
    raise MapInterrupted(running.progress())


class _Run:
    """State of a run: rows done, rows waiting, and the batch size that has fitted so far."""

    def __init__(
        self,
        rows: Sequence[PlannedRow],
        job: Job,
        open_engine: Callable[[], Generator[Event, None, Engine]],
        store: AnswerStore,
        items: Items,
    ) -> None:
        self.done: list[AnsweredRow] = []
        self._rows = rows
        self._job = job
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._store = store
        self._items = items
        self._seen: Counter[str] = Counter()
        self._questions: list[_Question] = []
        self._corrections: list[_Question] = []
        self._size = 0
        self._since: float | None = None
        self._engine_failed = False
        self._schema_fault: OptionError | None = None

    def all(self) -> Generator[Event, None, None]:
        """Ask the rows in order, one batch at a time; images are read just before."""
        for row in self._rows:
            yield from self._prepare(row)
            yield from self._ask_batches(self._size)
        yield from self._ask_batches(1)

    def give_up(self) -> Iterator[RowDone]:
        """Finish rows whose answer was still to be corrected, with their first answer."""
        waiting = {each.row.index: each for each in self._corrections}
        for row in self.done:
            waiting.pop(row.index, None)
        for each in waiting.values():
            error = f"{each.fault} It was to be asked once more."
            yield self._finished(_row(each.row, each.first, error))

    def progress(self) -> Progress:
        """Return the progress, with a copy of the rows so far."""
        seconds = 0.0 if self._since is None else time.monotonic() - self._since
        done = {row.index: row for row in self.done}
        return Progress(tuple(done.values()), len(self._rows), seconds, self._size, self.result)

    def result(self) -> Any:
        """Return the result that `run` would have if it ended now."""
        return result_of(self._rows, self.done, self._items, self._job.terms.form.format)

    def _prepare(self, row: PlannedRow) -> Generator[Event, None, None]:
        """Read a row's images, and take its answer from the store or let it wait."""
        if row.error:
            yield self._finished(_row(row, failure=row.error))
            return
        try:
            images = self._job.images
            if row.is_image:
                images += self._job.read(row.item, row.name)
        except InputError as error:
            yield self._finished(_row(row, failure=error.text))
            return
        before = (Message("system", self._job.system),) if self._job.system else ()
        conversation = Conversation((*before, Message("user", row.prompt, images)))
        call = Call("", conversation, self._job.terms)
        # Rows that are asked the same may be answered differently, if tokens are drawn.
        key = request_key(call.request, self._job.model)
        self._seen[key] += 1
        number = self._seen[key]
        yield from self._put(_Question(row, call, call.request, f"{key} {number}", number))

    def _put(self, question: _Question) -> Generator[Event, None, None]:
        """Answer a question from the store, or let it wait if the model can take it."""
        known = None if self._job.fresh else self._store.find(question.key)
        if known is not None:
            # The same pixels may have another name now, and the text be wanted in another form.
            form, conversation = question.call.terms.form, question.call.conversation
            images = tuple(map(_small, conversation.images))
            yield from self._take(question, replace(known, images=images, format=form.format))
            return
        engine = yield from self._opened()  # what it refuses concerns every row
        try:
            refuse_more_than(
                engine.info.max_images,
                len(question.request.conversation.images),
                engine.info.model,
            )
            engine.require_room(question.request)
        except InputError as error:
            yield self._failed(question, error)
            return
        if question.first is None:
            self._questions.append(question)
        else:
            self._corrections.append(question)
            yield Correcting(question.fault, question.row.index)

    def _opened(self) -> Generator[Event, None, Engine]:
        if self._engine is None:
            self._engine = yield from self._open_engine()
            is_server = self._engine.info.server is not None  # which is asked row by row
            self._size = (not is_server and self._job.batch_size) or self._engine.batch_size
            self._since = time.monotonic()
        return self._engine

    def _ask_batches(self, least: int) -> Generator[Event, None, None]:
        """Ask while at least `least` questions, or as many corrections, are waiting."""
        for waiting in (self._questions, self._corrections):
            while len(waiting) >= max(1, least):
                self._refuse_schema()
                yield from self._ask(waiting)
        self._refuse_schema()

    def _refuse_schema(self) -> None:
        if self._schema_fault is not None:
            raise self._schema_fault

    def _ask(self, waiting: list[_Question]) -> Generator[Event, None, None]:
        """Ask one batch, and remove questions that are answered or have failed."""
        batch = waiting[: self._size]
        open_rows = dict(enumerate(batch))
        engine_failed = False
        try:
            yield from self._answered(batch, open_rows)
        except OutOfMemoryError as error:
            if len(batch) == 1:
                yield self._failed(open_rows.pop(0), error)
            else:
                self._size = len(batch) // 2
        except InputError as error:  # only an engine that knows no room has not said so before
            yield self._failed(open_rows.pop(min(open_rows)), error)
        except EngineError as error:  # a server that refuses this row, or is gone
            if self._engine_failed:
                raise
            engine_failed = True
            yield self._failed(open_rows.pop(min(open_rows)), error)
        self._engine_failed = engine_failed
        waiting[: len(batch)] = open_rows.values()

    def _answered(
        self, batch: list[_Question], open_rows: dict[int, _Question]
    ) -> Generator[Event, None, None]:
        """Ask a batch; rows that are answered are taken out of `open_rows`."""
        engine = yield from self._opened()
        stream = engine.stream([each.request for each in batch])
        try:
            for event in stream:
                if isinstance(event, Finished):
                    # Taken away only now: an interrupt in between must not lose the answer.
                    yield from self._keep(open_rows[event.row], event.generation)
                    del open_rows[event.row]
                else:
                    yield replace(event, row=batch[event.row].row.index)
        except GenerationInterrupted as stopped:
            partial = stopped.generations
        except KeyboardInterrupt:
            partial = _partial(stream)
        else:
            return
        for number, generation in sorted(partial.items()):
            if number in open_rows:
                for _ in self._keep(open_rows.pop(number), generation):
                    pass  # whoever stopped this hears of the row through the result
        raise KeyboardInterrupt

    def _keep(self, question: _Question, generation: Generation) -> Generator[Event, None, None]:
        """Store a generation as the answer of its question."""
        stopped = generation.finish_reason == "interrupted"
        if stopped and (question.first is not None or not generation.text):
            return  # as if it had not been asked
        assert self._engine is not None  # it has answered
        answer = answer_of(question.call, generation, self._engine.info)
        answer = replace(answer, images=tuple(map(_small, answer.images)))
        self._store.keep(question.key, answer)
        if stopped:
            yield self._finished(_row(question.row, answer))
        else:
            yield from self._take(replace(question, reused=False), answer)

    def _take(self, question: _Question, answer: Answer) -> Generator[Event, None, None]:
        """Finish a row with its answer, unless the answer must be corrected."""
        if question.first is not None:
            answer = corrected(question.first, answer, question.fault)
        try:
            found = with_value(answer, question.call.terms.form)
        except FormatError as error:
            fault = error
        else:
            yield self._finished(_row(question.row, found, reused=question.reused))
            return
        if answer.finish_reason == "length":
            fault.advise(code="row_cut_off")
        if isinstance(fault.__cause__, OptionError):
            self._schema_fault = fault.__cause__
        again = correction_of(answer, question.call, fault)
        if again is None or question.first is not None:
            row = _row(question.row, answer, fault.text, reused=question.reused)
            yield self._finished(row)
        else:
            key = f"{request_key(again, self._job.model)} {question.number}"
            yield from self._put(
                replace(question, request=again, key=key, first=answer, fault=fault.what)
            )

    def _failed(self, question: _Question, error: Glm4vError) -> RowDone:
        before = (f"{question.fault} Asking again failed:",) if question.fault else ()
        return self._finished(_row(question.row, question.first, (*before, *error.text)))

    def _finished(self, row: AnsweredRow) -> RowDone:
        self.done.append(row)
        return RowDone(row, self.progress())


def _partial(stream: Generator[EngineEvent, None, None]) -> dict[int, Generation]:
    """Interrupt an engine and return the partial generations of its open rows."""
    try:
        stream.throw(KeyboardInterrupt())
    except GenerationInterrupted as stopped:
        return stopped.generations
    except KeyboardInterrupt:
        pass
    return {}


def _small(image: SourcedImage) -> SourcedImage:
    small = image.image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return replace(image, image=small)


def _row(
    row: PlannedRow,
    answer: Answer | None = None,
    failure: Text | None = None,
    *,
    reused: bool = False,
) -> AnsweredRow:
    return AnsweredRow(row.index, row.name, row.item, row.prompt, answer, failure, reused)
