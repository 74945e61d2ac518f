"""Run of a map: asks the rows of `mapping.items.plan` in batches; errors stay in their rows.

A row that was answered in this session is not asked again while nothing that the answer depends on
has changed; see `mapping.answer_cache`. Rows whose answers break a schema are asked once more,
together.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from glm4v_magic.calls.asking import asking
from glm4v_magic.calls.call import Call, Terms, answer_of, corrected, correction_of, with_value
from glm4v_magic.calls.refusals import refuse_more_than, refuse_video
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
from glm4v_magic.core.events import (
    Correcting,
    EngineEvent,
    Event,
    Failed,
    Finished,
    MapDone,
    RowDone,
    Waiting,
)
from glm4v_magic.core.remarks import PYTHON, Text, Words
from glm4v_magic.core.rows import AnsweredRow, Progress
from glm4v_magic.core.video import Frame, SourcedVideo
from glm4v_magic.mapping.answer_cache import AnswerStore, request_key
from glm4v_magic.mapping.kept_rows import KeptRows, RowsInMemory
from glm4v_magic.mapping.row_media import media_of

if TYPE_CHECKING:
    from glm4v_magic.core.image import SourcedImage
    from glm4v_magic.engines import Engine
    from glm4v_magic.mapping.items import Items, PlannedRow

__all__ = ["Job", "run"]

THUMBNAIL_SIDE = 64
"""Longest side, in pixels, of the image copies that answers keep."""

Read: TypeAlias = "Callable[[object, str], tuple[SourcedImage, ...]]"
ReadVideo: TypeAlias = "Callable[[object, str], SourcedVideo]"


@dataclass(frozen=True, slots=True)
class Job:
    """Terms that all rows share.

    Attributes:
        terms: terms of each row; a seed applies to each row by itself.
        system: system message of each row; empty for none.
        images: images sent with every row, before its own.
        videos: a video sent with every row, if any.
        before_videos: as in `Message`.
        read: function that turns an item into images.
        read_video: function that turns one into a video.
        batch_size: rows to ask at once; ``None`` for the engine's preferred number.
        fresh: whether to ask all rows again, even if their answers are known.
        words: front end that words the errors in a DataFrame.
        model: key of the model, once it is chosen; see `answer_cache.model_key`.
        is_here: whether it is not on a server, so that it follows forms.
        kept: where rows are kept that are done; ``None`` keeps them in memory.
    """

    terms: Terms
    system: str | None
    images: tuple[SourcedImage, ...]
    videos: tuple[SourcedVideo, ...]
    before_videos: int | None
    read: Read
    read_video: ReadVideo
    batch_size: int | None = None
    fresh: bool = False
    words: Words = PYTHON
    model: str = ""
    is_here: bool = False
    kept: KeptRows | None = None


@dataclass(frozen=True, slots=True)
class _Question:
    """A request of a row: its question, or the correction of its first answer.

    Attributes:
        row: the row.
        call: call with the question.
        request: request sent to the engine.
        key: key of the answer in the store.
        number: number of the row among rows with the same request, from 1.
        content: key of the question itself.
        first: answer to correct; ``None`` for the question itself.
        fault: what is wrong with `first`.
        reused: whether the first answer is from an earlier run; ``True`` if there is none.
    """

    row: PlannedRow
    call: Call
    request: Request
    key: str
    number: int
    content: str
    first: Answer | None = None
    fault: str = ""
    reused: bool = True


def run(
    rows: Sequence[PlannedRow],
    job: Job,
    opening: Generator[Event, None, Engine],
    store: AnswerStore,
    items: Items,
) -> Generator[Event, None, None]:
    """Ask all rows; yields events, and `MapDone` at the end.

    Args:
        rows: rows from `mapping.items.plan`.
        job: terms that they share.
        opening: returns the engine; read before the first row is asked, and not at all if every
            answer is known.
        store: known answers; new ones are added.
        items: items of the rows.

    Raises:
        MapInterrupted: on an interrupt.
        EngineError: if a server refuses the key, or the model fails for two rows in turn and
            answers none of those that it had been asked by then. Otherwise it is its row's error,
            as is what a server refuses of one row.
        OptionError: if the schema refers to what is not in it.
    """
    running = _Run(rows, job, opening, store, items)
    try:
        yield from running.all()
        running.close()
    except KeyboardInterrupt:
        pass
    except Exception:
        yield from running.give_up()
        running.close()
        raise
    else:
        running.refuse()
        yield MapDone(running.result())
        return
    for _ in running.give_up():
        pass  # whoever stopped this is told by the exception
    running.close()
    # Out here the new exception has no __context__, whose frames would hold on to the model.
    raise MapInterrupted(running.progress())


class _Run:
    """State of a run: rows done, questions waiting, and how many at once have fitted so far."""

    def __init__(
        self,
        rows: Sequence[PlannedRow],
        job: Job,
        opening: Generator[Event, None, Engine],
        store: AnswerStore,
        items: Items,
    ) -> None:
        self._rows = rows
        self._rest = iter(rows)
        self._job = job
        self._opening = opening
        self._engine: Engine | None = None
        self._store = store
        self._kept = job.kept or RowsInMemory(rows, items, job.terms.form, job.words)
        # Where nothing is remembered or known, equal rows need not be told apart.
        self._counts_equal_rows = not self._kept.keeps_answers or not store.is_empty
        self._seen: Counter[str] = Counter()
        self._waiting: deque[_Question] = deque()
        self._corrections: dict[int, _Question] = {}
        self._news: deque[Event] = deque()
        self._size = 0
        self._since: float | None = None
        self._engine_failed = False
        self._doubted: list[Failed] = []
        self._schema_fault: OptionError | None = None

    def all(self) -> Generator[Event, None, None]:
        """Ask all rows; images are read when the engine has room for them."""
        while True:
            yield from self._fetch()
            self.refuse()
            if not self._waiting:
                return
            yield from self._ask()
            yield from self._told()

    def give_up(self) -> Iterator[RowDone]:
        """Finish rows whose answer was still to be corrected, with their first answer."""
        for each in list(self._corrections.values()):
            error = f"{each.fault} It was to be asked once more."
            yield self._finished(_row(each.row, each.first, error), each)

    def progress(self) -> Progress:
        """Return the progress, with a copy of the rows so far."""
        seconds = 0.0 if self._since is None else time.monotonic() - self._since
        kept = self._kept
        return Progress(
            kept.so_far(),
            len(self._rows),
            seconds,
            self._size,
            self.result,
            kept.counts,
            self._job.fresh,
        )

    def result(self) -> Any:
        """Return the result that `run` would have if it ended now."""
        return self._kept.result()

    def close(self) -> None:
        """Bring the rows into their final place."""
        self._kept.close()

    def _fetch(self) -> Generator[Event, None, None]:
        """Prepare rows until a question is waiting, no row is left, or asking more is useless."""
        while not self._waiting and self._fault is None:
            row = next(self._rest, None)
            if row is None:
                return
            known = self._kept.find(row)
            if known is None:
                yield from self._prepare(row)
            else:
                yield RowDone(known, self.progress())

    def _prepare(self, row: PlannedRow) -> Generator[Event, None, None]:
        """Read a row's images, and take its answer from the store or let it wait."""
        if row.failure is not None:
            yield self._finished(_row(row, failure=row.failure))
            return
        job = self._job
        images, videos, before_videos = job.images, job.videos, job.before_videos
        try:
            if row.has_video:
                own, video, before_own = media_of(row.item, row.name, job.read, job.read_video)
                before_videos = len(images) + before_own if own[before_own:] else None
                images, videos = images + own, (video,)
            elif row.is_image:
                images += job.read(row.item, row.name)
        except InputError as error:
            yield self._finished(_row(row, failure=error.text))
            return
        before = (Message("system", job.system),) if job.system else ()
        asked = Message("user", row.prompt, images, videos=videos, before_videos=before_videos)
        conversation = Conversation((*before, asked))
        call = Call("", conversation, self._job.terms)
        # Rows that are asked the same may be answered differently, if tokens are drawn.
        key = request_key(call.request, self._job.model)
        kept = self._kept.find(row, key)
        if kept is not None:
            yield RowDone(kept, self.progress())
            return
        number = self._number(key)
        yield from self._put(_Question(row, call, call.request, f"{key} {number}", number, key))

    def _number(self, key: str) -> int:
        """Return the number of a row among those that are asked the same."""
        if not self._counts_equal_rows:
            return 1
        self._seen[key] += 1
        return self._seen[key]

    def _put(self, question: _Question) -> Generator[Event, None, None]:
        """Answer a question from the store, or let it wait if the model can take it."""
        known = None if self._job.fresh else self._store.find(question.key)
        if known is not None:
            # The same pixels may have another name now, and another form may be wanted of the text.
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
            if question.request.conversation.videos:
                refuse_video(engine.info.model, engine.info.takes_video)
            engine.require_room(question.request)
        except InputError as error:
            yield self._failed(question, error)
            return
        self._waiting.append(question)
        if question.first is not None:
            self._corrections[question.row.index] = question
            yield Correcting(question.fault, question.row.index)

    def _opened(self) -> Generator[Event, None, Engine]:
        if self._engine is None:
            self._engine = yield from self._opening
            self._size = self._job.batch_size or self._engine.batch_size
            self._since = time.monotonic()
        return self._engine

    def refuse(self) -> None:
        """Raise what makes it useless to ask more rows: the schema, or a full disk."""
        if self._fault is not None:
            raise self._fault

    @property
    def _fault(self) -> Glm4vError | None:
        return self._schema_fault or self._kept.fault

    def _ask(self) -> Generator[Event, None, None]:
        """Ask until all rows are answered, or a row fails or does not fit."""
        asked: dict[int, _Question] = {}
        try:
            yield from self._answered(asked)
        except Glm4vError as error:
            if not asked:
                raise
            yield from self._refused(error, asked)
        self._waiting.extendleft(reversed(asked.values()))

    def _refused(self, error: Glm4vError, asked: dict[int, _Question]) -> Iterator[RowDone]:
        """Take the row that failed out of `asked`, or ask fewer rows at once from now on."""
        failed = min(asked)
        if isinstance(error, OutOfMemoryError):
            together = error.rows or (failed,)
            if len(together) > 1:
                self._size = len(together) // 2
                return
            failed = together[0]
        elif not isinstance(error, EngineError) or self._is_doubtful(error):
            raise error
        yield self._ended(Failed(error, failed), asked)

    def _is_doubtful(self, error: EngineError) -> bool:
        """Tell whether the engine may be gone: it failed for the row before, too, or for all."""
        if error.reach == "request":
            return False
        failed, self._engine_failed = self._engine_failed, True
        return failed or error.reach == "all"

    def _requests(self, asked: dict[int, _Question]) -> Iterator[Request]:
        """Yield the requests of all questions; each question is added to `asked` by its number."""
        for number in itertools.count():
            # Yielded with the engine's next event: here the engine waits for a request.
            self._news.extend(self._fetch())
            if not self._waiting or self._doubted or self._fault is not None:
                return
            asked[number] = self._waiting.popleft()
            yield asked[number].request

    def _told(self) -> Iterator[Event]:
        while self._news:
            yield self._news.popleft()

    def _answered(self, asked: dict[int, _Question]) -> Generator[Event, None, None]:
        """Ask; questions that are answered are taken out of `asked`."""
        engine = yield from self._opened()
        self._doubted = []
        try:
            with asking(engine, self._requests(asked), self._size) as events:
                for event in events:
                    yield from self._told()
                    yield from self._heard(event, asked)
                    if self._fault is not None:
                        return
        except GenerationInterrupted as stopped:
            partial = stopped.generations
        else:
            yield from self._despaired(asked)
            return
        for number, generation in sorted(partial.items()):
            if number in asked:
                for _ in self._keep(asked.pop(number), generation):
                    pass  # whoever stopped this hears of the row through the result
        raise KeyboardInterrupt

    def _heard(
        self, event: EngineEvent, asked: dict[int, _Question]
    ) -> Generator[Event, None, None]:
        """Pass an event of the engine on; a question that has ended is taken out of `asked`."""
        if isinstance(event, Waiting):
            yield event
        elif isinstance(event, Failed):
            yield from self._take_failure(event, asked)
        elif isinstance(event, Finished):
            news = [*self._keep(asked[event.row], event.generation)]
            # Taken away only now: an interrupt in between must not lose the answer.
            del asked[event.row]
            self._engine_failed = False
            yield from news
            yield from self._believed(asked)
        else:
            yield replace(event, row=asked[event.row].row.index)

    def _take_failure(
        self, failed: Failed, asked: dict[int, _Question]
    ) -> Generator[Event, None, None]:
        """Finish the row of a request that cannot be answered."""
        error = failed.error
        if isinstance(error, EngineError) and self._is_doubtful(error):
            if error.reach == "all":
                raise error
            # Refusals come sooner than answers: those that are being given tell which it is.
            self._doubted.append(failed)
            return
        yield self._ended(failed, asked)

    def _believed(self, asked: dict[int, _Question]) -> Iterator[RowDone]:
        """Finish rows that failed in turn, once an answer has shown that the server is there."""
        for failed in self._doubted:
            yield self._ended(failed, asked)
        self._doubted = []

    def _despaired(self, asked: dict[int, _Question]) -> Iterator[RowDone]:
        """Raise the error of rows that failed in turn, if no other was answered meanwhile.

        Those that had begun to be answered keep that.
        """
        if not self._doubted:
            return
        for failed in self._doubted:
            if _said_before(failed) is not None:
                yield self._ended(failed, asked)
        raise self._doubted[0].error

    def _ended(self, failed: Failed, asked: dict[int, _Question]) -> RowDone:
        """Finish the row of a request that has failed, with what was said until then."""
        question = asked[failed.row]
        said = _said_before(failed)
        begun = None if said is None else self._answer(question, said)
        done = self._failed(question, failed.error, begun)
        del asked[failed.row]
        return done

    def _keep(self, question: _Question, generation: Generation) -> Generator[Event, None, None]:
        """Store a generation as the answer of its question."""
        stopped = generation.finish_reason == "interrupted"
        if stopped and (question.first is not None or not generation.text):
            return  # as if it had not been asked
        answer = self._answer(question, generation)
        if not self._kept.keeps_answers:
            self._store.keep(question.key, answer)
        if stopped:
            yield self._finished(_row(question.row, answer), question)
        else:
            yield from self._take(replace(question, reused=False), answer)

    def _answer(self, question: _Question, generation: Generation) -> Answer:
        """Return a generation as the answer that a row keeps, with small copies of its images."""
        assert self._engine is not None  # it has answered
        answer = answer_of(question.call, generation, self._engine.info)
        return replace(
            answer,
            images=tuple(map(_small, answer.images)),
            videos=tuple(map(_small_video, answer.videos)),
        )

    def _take(self, question: _Question, answer: Answer) -> Generator[Event, None, None]:
        """Finish a row with its answer, unless the answer must be corrected."""
        if question.first is not None:
            answer = corrected(question.first, answer, question.fault)
        try:
            found = with_value(answer, question.call.terms.form)
        except FormatError as error:
            fault = error
        else:
            yield self._finished(_row(question.row, found, reused=question.reused), question)
            return
        if answer.finish_reason == "length":
            fault.advise(code="row_cut_off")
        if isinstance(fault.__cause__, OptionError):
            self._schema_fault = fault.__cause__
        again = correction_of(answer, question.call, fault, is_here=self._job.is_here)
        if again is None or question.first is not None:
            row = _row(question.row, answer, fault.text, reused=question.reused)
            yield self._finished(row, question)
        else:
            key = f"{request_key(again, self._job.model)} {question.number}"
            yield from self._put(
                replace(question, request=again, key=key, first=answer, fault=fault.what)
            )

    def _failed(
        self, question: _Question, error: Glm4vError, begun: Answer | None = None
    ) -> RowDone:
        """Finish a row with an error, and with its first answer or what was said of it."""
        before = (f"{question.fault} Asking again failed:",) if question.fault else ()
        row = _row(question.row, question.first or begun, (*before, *error.text))
        return self._finished(row, question)

    def _finished(self, row: AnsweredRow, question: _Question | None = None) -> RowDone:
        self._corrections.pop(row.index, None)
        self._kept.add(row, "" if question is None else question.content)
        return RowDone(row, self.progress())


def _said_before(failed: Failed) -> Generation | None:
    """Return what was said before a request failed; ``None`` if that is nothing."""
    error = failed.error
    known = error.generations if isinstance(error, EngineError | OutOfMemoryError) else {}
    said: Generation | None = known.get(failed.row)
    return said if said is not None and said.text else None


def _small(image: SourcedImage) -> SourcedImage:
    small = image.image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return replace(image, image=small, encoded=b"")


def _small_video(video: SourcedVideo) -> SourcedVideo:
    frames = tuple(Frame(_small(each.image), each.time) for each in video.seen)
    return SourcedVideo.of_seen(video.source, video.size, video.fps, frames) if frames else video


def _row(
    row: PlannedRow,
    answer: Answer | None = None,
    failure: Text | None = None,
    *,
    reused: bool = False,
) -> AnsweredRow:
    return AnsweredRow(row.index, row.name, row.item, row.prompt, answer, failure, reused)
