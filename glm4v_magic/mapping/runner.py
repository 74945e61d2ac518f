"""Asks the rows of `mapping.items.plan` in batches; errors stay in their rows.

A row that was answered in this session is not asked again while nothing that the answer depends on
has changed; see `mapping.answer_cache`. Answers that break a schema are asked for once more,
together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from glm4v_magic.calls.call import (
    Call,
    Terms,
    answer_of,
    corrected,
    correction_of,
    refuse_more_than,
    tell,
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
from glm4v_magic.core.rows import AnsweredRow, Progress
from glm4v_magic.mapping.answer_cache import AnswerStore, request_key
from glm4v_magic.mapping.results import result_of

if TYPE_CHECKING:
    from glm4v_magic.engines import Engine
    from glm4v_magic.images import SourcedImage
    from glm4v_magic.mapping.items import Items, PlannedRow

__all__ = ["Job", "run"]

THUMBNAIL_SIDE = 64
"""Longest side in pixels of the copies that answers keep of their images."""

Read: TypeAlias = "Callable[[object, str], tuple[SourcedImage, ...]]"


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for all rows.

    Attributes:
        terms: how each row is asked. A seed counts for each row by itself.
        system: message before each question, or none.
        images: that are sent with every row, before its own.
        read: how an item becomes images.
        model: whatever tells two models apart.
        batch_size: rows to ask at once; ``None`` for the engine's own.
        fresh: ask all rows, known answers or not.
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
    """What is to be asked for a row: its question, or the correction of its first answer.

    Attributes:
        row: that it is for.
        call: of the row's question.
        request: what is sent.
        key: what the answer depends on.
        number: of the row among those that are asked the same.
        first: the answer to correct.
        fault: what is wrong with it.
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
    open_engine: Callable[[], Engine],
    store: AnswerStore,
    items: Items,
    on_progress: Callable[[Progress], None],
) -> Any:
    """Ask all rows.

    Args:
        rows: from `mapping.items.plan`.
        job: what they share.
        open_engine: called before the first row is asked; not at all if none has to be.
        store: of known answers; new ones are added.
        items: what the rows are from.
        on_progress: called after each row.

    Returns:
        See `result_of`.

    Raises:
        MapInterrupted: on an interrupt.
        EngineError: if the model fails for two rows in turn; one alone is its row's error.
        OptionError: if the schema refers to what is not in it.
    """
    running = _Run(rows, job, open_engine, store, items, on_progress)
    try:
        running.all()
    except KeyboardInterrupt:
        running.give_up()
    except Exception:
        running.give_up()
        raise
    else:
        return running.result()
    answered = len({row.index for row in running.done if row.done})
    # Out here the new exception has no __context__, whose frames would hold on to the model.
    raise MapInterrupted(running.result(), answered, len(rows))


class _Run:
    """One run: what is done, what waits, and the batch size that has fitted so far."""

    def __init__(
        self,
        rows: Sequence[PlannedRow],
        job: Job,
        open_engine: Callable[[], Engine],
        store: AnswerStore,
        items: Items,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.done: list[AnsweredRow] = []
        self._rows = rows
        self._job = job
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._store = store
        self._items = items
        self._on_progress = on_progress
        self._seen: Counter[str] = Counter()
        self._questions: list[_Question] = []
        self._corrections: list[_Question] = []
        self._size = 0
        self._since: float | None = None
        self._engine_failed = False
        self._schema_fault: OptionError | None = None

    def all(self) -> None:
        """Ask the rows in their order, a batch at a time; images are read just before."""
        for row in self._rows:
            self._prepare(row)
            self._ask_batches(self._size)
        self._ask_batches(1)

    def give_up(self) -> None:
        """Keep first answers that are still to be corrected; tells nobody, since all is over."""
        waiting = {each.row.index: each for each in self._corrections}
        for row in self.done:
            waiting.pop(row.index, None)
        for each in waiting.values():
            error = f"{each.fault} It was to be asked once more."
            self.done.append(_row(each.row, each.first, error))

    def result(self) -> Any:
        """Return what `run` would return if it ended now."""
        return result_of(self._rows, self.done, self._items, self._job.terms.form.format)

    def _prepare(self, row: PlannedRow) -> None:
        """Read a row's images, and take its answer from the store or let it wait."""
        if row.error:
            self._finish(_row(row, error=row.error))
            return
        try:
            images = self._job.images
            if row.is_image:
                images += self._job.read(row.item, row.name)
        except InputError as error:
            self._finish(_row(row, error=str(error)))
            return
        before = (Message("system", self._job.system),) if self._job.system else ()
        conversation = Conversation((*before, Message("user", row.prompt, images)))
        request = Request(conversation, self._job.terms.sampling)
        # Rows that are asked the same may be answered differently, if tokens are drawn.
        key = request_key(request, self._job.model)
        self._seen[key] += 1
        number = self._seen[key]
        call = Call("", conversation, self._job.terms)
        self._put(_Question(row, call, request, f"{key} {number}", number))

    def _put(self, question: _Question) -> None:
        """Answer a question from the store, or let it wait if the model can take it."""
        known = None if self._job.fresh else self._store.find(question.key)
        if known is not None:
            # The same pixels may have another name now, and the text be wanted in another form.
            form, conversation = question.call.terms.form, question.call.conversation
            images = tuple(map(_small, conversation.images))
            self._take(question, replace(known, images=images, format=form.format))
            return
        engine = self._opened()  # what it refuses concerns every row
        try:
            refuse_more_than(
                engine.info.max_images,
                len(question.request.conversation.images),
                engine.info.model,
            )
            engine.require_room(question.request)
        except InputError as error:
            self._fail(question, error)
            return
        if question.first is None:
            self._questions.append(question)
        else:
            self._corrections.append(question)
            question.call.terms.on_correction(question.fault)

    def _opened(self) -> Engine:
        if self._engine is None:
            self._engine = self._open_engine()
            is_server = self._engine.info.server is not None
            self._size = (not is_server and self._job.batch_size) or self._engine.batch_size
            self._since = time.monotonic()
        return self._engine

    def _ask_batches(self, least: int) -> None:
        """Ask as long as at least so many questions wait, or so many corrections."""
        for waiting in (self._questions, self._corrections):
            while len(waiting) >= max(1, least):
                self._refuse_schema()
                self._ask(waiting)
        self._refuse_schema()

    def _refuse_schema(self) -> None:
        if self._schema_fault is not None:
            raise self._schema_fault

    def _ask(self, waiting: list[_Question]) -> None:
        """Ask as many as fit at once, and take those that are answered or have failed away."""
        batch = waiting[: self._size]
        open_rows = dict(enumerate(batch))

        def on_row(number: int, generation: Generation) -> None:
            self._keep(batch[number], generation)
            open_rows.pop(number, None)  # an interrupt may tell of a row twice

        engine_failed = False
        try:
            self._generate([each.request for each in batch], on_row)
        except OutOfMemoryError as error:
            if len(batch) == 1:
                self._fail(open_rows.pop(0), error)
            else:
                self._size = len(batch) // 2
        except InputError as error:  # only an engine without batches has not said so before
            self._fail(open_rows.pop(min(open_rows)), error)
        except EngineError as error:  # a server that refuses this row, or is gone
            if self._engine_failed:
                raise
            engine_failed = True
            self._fail(open_rows.pop(min(open_rows)), error)
        self._engine_failed = engine_failed
        waiting[: len(batch)] = open_rows.values()

    def _generate(
        self, requests: Sequence[Request], on_row: Callable[[int, Generation], None]
    ) -> None:
        engine, terms = self._opened(), self._job.terms
        is_server = engine.info.server is not None  # of which one row is shown as it is written
        try:
            tell(
                engine,
                requests,
                on_row,
                terms.on_text if is_server else lambda _: terms.on_text(""),
                terms.on_thinking,
            )
        except GenerationInterrupted as stopped:
            for number, generation in stopped.generations.items():
                on_row(number, generation)
            raise

    def _keep(self, question: _Question, generation: Generation) -> None:
        """Take what the model has said, and remember it."""
        stopped = generation.finish_reason == "interrupted"
        if stopped and (question.first is not None or not generation.text):
            return  # as if it had not been asked
        answer = answer_of(question.call, generation, self._opened().info)
        answer = replace(answer, images=tuple(map(_small, answer.images)))
        self._store.keep(question.key, answer)
        if stopped:
            self._finish(_row(question.row, answer))
        else:
            self._take(replace(question, reused=False), answer)

    def _take(self, question: _Question, answer: Answer) -> None:
        """Finish a row with its answer, if it is in its form or cannot be corrected."""
        if question.first is not None:
            answer = corrected(question.first, answer, question.fault)
        try:
            found = with_value(answer, question.call.terms.form)
        except FormatError as error:
            fault = error
        else:
            self._finish(_row(question.row, found, reused=question.reused))
            return
        if answer.finish_reason == "length":
            fault.advise(code="row_cut_off")
        if isinstance(fault.__cause__, OptionError):
            self._schema_fault = fault.__cause__
        again = correction_of(answer, question.call, fault)
        if again is None or question.first is not None:
            self._finish(_row(question.row, answer, str(fault), reused=question.reused))
        else:
            key = f"{request_key(again, self._job.model)} {question.number}"
            self._put(replace(question, request=again, key=key, first=answer, fault=fault.what))

    def _fail(self, question: _Question, error: Glm4vError) -> None:
        what = f"{question.fault} Asking again failed: {error}" if question.fault else str(error)
        self._finish(_row(question.row, question.first, what))

    def _finish(self, row: AnsweredRow) -> None:
        self.done.append(row)
        seconds = 0.0 if self._since is None else time.monotonic() - self._since
        self._on_progress(Progress(self.done, len(self._rows), seconds, self._size, self.result))


def _small(image: SourcedImage) -> SourcedImage:
    small = image.image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return replace(image, image=small)


def _row(
    row: PlannedRow, answer: Answer | None = None, error: str | None = None, *, reused: bool = False
) -> AnsweredRow:
    return AnsweredRow(row.index, row.name, row.item, row.prompt, answer, error, reused)
