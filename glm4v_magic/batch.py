"""Asking the rows of `rows.plan`: in batches, each row's error kept in its row, done rows reused.

A row that was answered in this session is not asked again while nothing that the answer depends on
has changed: prompt, system message, pixels of its pictures, model with revision, dtype and files,
and sampling options. `AnswerStore` remembers that, in memory.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from glm4v_magic.conversation import Answer, Conversation, Generation, Message, Request, Sampling
from glm4v_magic.engines import BatchEngine
from glm4v_magic.errors import (
    ConversationError,
    EngineError,
    GenerationInterrupted,
    InputError,
    MapInterrupted,
    OutOfMemoryError,
)
from glm4v_magic.placement.decision import PlacementOptions

if TYPE_CHECKING:
    from glm4v_magic.engines import Engine, EngineInfo
    from glm4v_magic.images import SourcedImage
    from glm4v_magic.rows import Items, PlannedRow
    from glm4v_magic.session import ModelChoice

__all__ = [
    "AnswerStore",
    "AnsweredRow",
    "Job",
    "Progress",
    "Rows",
    "default_batch_size",
    "model_key",
    "refuse_too_many",
    "result_of",
    "run",
]

THUMBNAIL_SIDE = 64
"""Longest side in pixels of the copies that answers keep of their pictures."""

_MOST_REMEMBERED = 10_000
_LARGE = 10**9

Read: TypeAlias = "Callable[[object, str], tuple[SourcedImage, ...]]"


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row with its answer or its error; with neither if it was not asked before an interrupt.

    Attributes:
        index: its position, from 0.
        name: of its item.
        item: as it was given.
        prompt: what was asked, expressions expanded.
        answer: what the model said; its pictures are small copies, so that thousands of rows fit
            in memory. An interrupt leaves answers with ``finish_reason`` ``interrupted``.
        error: why there is no answer.
        reused: whether the answer is from an earlier run.
    """

    index: int
    name: str
    item: object
    prompt: str
    answer: Answer | None = None
    error: str | None = None
    reused: bool = False

    @property
    def text(self) -> str | None:
        """What the model said."""
        return None if self.answer is None else self.answer.text

    @property
    def finish_reason(self) -> str | None:
        """Of the answer; see `Generation`."""
        return None if self.answer is None else self.answer.finish_reason

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.answer is not None and self.answer.finish_reason != "interrupted"

    def __str__(self) -> str:
        return self.text or ""


class Rows(list[AnsweredRow]):
    """The rows of a list, folder or pattern, in order."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: those that are done so far or have failed, in the order in which that happened.
        total: of all rows.
        seconds: since the first row was asked.
        batch_size: rows that are asked at once; 0 before the first.
    """

    rows: Sequence[AnsweredRow]
    total: int
    seconds: float
    batch_size: int

    @property
    def answered(self) -> int:
        """Rows with a complete answer."""
        return sum(row.done for row in self.rows)

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return sum(row.error is not None for row in self.rows)

    @property
    def reused(self) -> int:
        """Rows whose answer is from an earlier run."""
        return sum(row.reused for row in self.rows)


class AnswerStore:
    """Complete answers by what they depend on; the oldest make room for new ones."""

    def __init__(self, most: int = _MOST_REMEMBERED) -> None:
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._most = most

    def find(self, key: str) -> Answer | None:
        """Return an answer, if it is known."""
        return self._answers.get(key)

    def keep(self, key: str, answer: Answer) -> None:
        """Remember an answer, if it is complete."""
        if answer.finish_reason == "interrupted":
            return
        self._answers[key] = answer
        self._answers.move_to_end(key)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for all rows.

    Attributes:
        sampling: how tokens are chosen. A seed counts for each row by itself.
        system: message before each question, or none.
        pictures: that are sent with every row, before its own.
        read: how an item becomes pictures.
        model: whatever tells two models apart.
        batch_size: rows to ask at once; ``None`` for `default_batch_size`.
        fresh: ask all rows, known answers or not.
    """

    sampling: Sampling
    system: str | None
    pictures: tuple[SourcedImage, ...]
    read: Read
    model: str
    batch_size: int | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class _Waiting:
    row: PlannedRow
    request: Request
    key: str


def default_batch_size(info: EngineInfo) -> int:
    """Return how many rows to ask at once: 8, or 1 of a large model on the CPU.

    There a row takes minutes by itself, and memory that runs out ends the kernel. On GPUs a batch
    that does not fit is halved.
    """
    large = info.parameters is not None and info.parameters > _LARGE
    return 1 if large and info.devices == ("cpu",) else 8


def refuse_too_many(given: int, model: str, most: int | None, *, rows: str = "this row") -> None:
    """Refuse more pictures in a row than a model takes.

    Raises:
        ConversationError: if there are more.
    """
    if most is not None and given > most:
        few = "one picture" if most == 1 else f"{most} pictures"
        raise ConversationError(f"{model} takes {few} in a conversation, and {rows} has {given}.")


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
        rows: from `rows.plan`.
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
    """
    running = _Run(rows, job, open_engine, store, on_progress)
    try:
        running.all()
    except KeyboardInterrupt:
        done = running.done
    else:
        return result_of(rows, running.done, items)
    answered = len({row.index for row in done if row.done})
    # Out here the new exception has no __context__, whose frames would hold on to the model.
    raise MapInterrupted(result_of(rows, done, items), answered, len(rows))


class _Run:
    """One run: what is done, and the batch size that has fitted so far."""

    def __init__(
        self,
        rows: Sequence[PlannedRow],
        job: Job,
        open_engine: Callable[[], Engine],
        store: AnswerStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.done: list[AnsweredRow] = []
        self._rows = rows
        self._job = job
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._store = store
        self._on_progress = on_progress
        self._seen: Counter[str] = Counter()
        self._size = 0
        self._since: float | None = None
        self._engine_failed = False

    def all(self) -> None:
        """Ask the rows in their order, a batch at a time; pictures are read just before."""
        waiting: list[_Waiting] = []
        for row in self._rows:
            ready = self._prepare(row)
            if isinstance(ready, AnsweredRow):
                self._finish(ready)
                continue
            waiting.append(ready)
            if len(waiting) >= self._size:
                waiting = self._ask(waiting)
        while waiting:
            waiting = self._ask(waiting)

    def _prepare(self, row: PlannedRow) -> _Waiting | AnsweredRow:
        if row.error:
            return _failed(row, row.error)
        try:
            pictures = self._job.pictures
            if row.is_picture:
                pictures += self._job.read(row.item, row.name)
        except InputError as error:
            return _failed(row, str(error))
        before = (Message("system", self._job.system),) if self._job.system else ()
        conversation = Conversation((*before, Message("user", row.prompt, pictures)))
        request = Request(conversation, self._job.sampling)
        key = _key(request, self._job.model)
        # Rows that are asked the same may be answered differently, if tokens are drawn.
        self._seen[key] += 1
        key = f"{key} {self._seen[key]}"
        known = None if self._job.fresh else self._store.find(key)
        if known is not None:
            # The same pixels may have another name now.
            known = replace(known, images=tuple(map(_small, pictures)))
            return _answered(row, known, reused=True)
        engine = self._opened()  # what it refuses concerns every row
        try:
            refuse_too_many(
                len(request.conversation.images), engine.info.model, engine.info.max_images
            )
            if isinstance(engine, BatchEngine):
                engine.require_room(request)
        except InputError as error:
            return _failed(row, str(error))
        return _Waiting(row, request, key)

    def _opened(self) -> Engine:
        if self._engine is None:
            self._engine = self._open_engine()
            if isinstance(self._engine, BatchEngine):
                self._size = self._job.batch_size or default_batch_size(self._engine.info)
            else:
                self._size = 1
            self._since = time.monotonic()
        return self._engine

    def _ask(self, waiting: list[_Waiting]) -> list[_Waiting]:
        """Ask as many as fit at once; return those that are left."""
        batch = waiting[: self._size]
        open_rows = dict(enumerate(batch))

        def on_row(number: int, generation: Generation) -> None:
            self._keep(batch[number], generation)
            open_rows.pop(number, None)  # an interrupt may tell of a row twice

        try:
            self._generate([each.request for each in batch], on_row)
        except OutOfMemoryError as error:
            if len(batch) == 1:
                self._finish(_failed(batch[0].row, str(error)))
                return waiting[1:]
            self._size = len(batch) // 2
        except InputError as error:  # only an engine without batches has not said so before
            number = min(open_rows)
            self._finish(_failed(batch[number].row, str(error)))
            open_rows.pop(number)
        except EngineError as error:  # a server that refuses this row, or is gone
            if self._engine_failed:
                raise
            self._engine_failed = True
            self._finish(_failed(batch[0].row, str(error)))
            return waiting[1:]
        self._engine_failed = False
        return [*open_rows.values(), *waiting[len(batch) :]]

    def _generate(
        self, requests: Sequence[Request], on_row: Callable[[int, Generation], None]
    ) -> None:
        engine = self._opened()
        if isinstance(engine, BatchEngine):
            engine.generate_batch(requests, on_row)
            return
        for number, request in enumerate(requests):
            try:
                generation = engine.generate(request, _ignore)
            except GenerationInterrupted as stopped:
                on_row(number, stopped.generation)
                raise
            on_row(number, generation)

    def _keep(self, waiting: _Waiting, generation: Generation) -> None:
        if generation.finish_reason == "interrupted" and not generation.text:
            return  # as if it had not been asked
        info = self._opened().info
        answer = Answer(
            text=generation.text,
            prompt=waiting.row.prompt,
            model=info.model,
            usage=generation.usage,
            finish_reason=generation.finish_reason,
            seed=generation.seed,
            thinking=generation.thinking,
            notice=info.notice,
            plan=info.plan,
            images=tuple(map(_small, waiting.request.conversation.images)),
        )
        self._store.keep(waiting.key, answer)
        self._finish(_answered(waiting.row, answer))

    def _finish(self, row: AnsweredRow) -> None:
        self.done.append(row)
        seconds = 0.0 if self._since is None else time.monotonic() - self._since
        self._on_progress(Progress(self.done, len(self._rows), seconds, self._size))


def result_of(rows: Sequence[PlannedRow], done: Sequence[AnsweredRow], items: Items) -> Any:
    """Return what a run is worth.

    Args:
        rows: all of them.
        done: those that were answered or failed.
        items: what the rows are from.

    Returns:
        `Rows` in their order. Of a Series or DataFrame a DataFrame with its index and columns, and
        behind them ``answer``, ``error``, ``finish_reason``, ``new_tokens`` and ``seed``; if one of
        these names is taken, all of them get the same number: ``answer_2``.
    """
    by_index = {row.index: row for row in done}
    result = Rows(
        by_index.get(row.index) or AnsweredRow(row.index, row.name, row.item, row.prompt)
        for row in rows
    )
    return result if items.table is None else _frame(result, items.table)


def _frame(rows: Rows, table: Any) -> Any:
    import pandas as pd

    if isinstance(table, pd.Series):
        name = "item" if table.name is None else table.name
        frame = table.to_frame(name)
    else:
        frame = table.copy()
    columns: dict[str, tuple[list[Any], str]] = {
        "answer": ([row.text for row in rows], "object"),
        "error": ([row.error for row in rows], "object"),
        "finish_reason": ([row.finish_reason for row in rows], "object"),
        "new_tokens": ([row.answer and row.answer.usage.new_tokens for row in rows], "Int64"),
        "seed": ([row.answer and row.answer.seed for row in rows], "Int64"),
    }
    taken = set(frame.columns)
    suffix, number = "", 1
    while any(f"{name}{suffix}" in taken for name in columns):
        number += 1
        suffix = f"_{number}"
    for name, (values, dtype) in columns.items():
        frame[f"{name}{suffix}"] = pd.Series(values, index=frame.index, dtype=dtype)
    return frame


def model_key(choice: ModelChoice) -> str:
    """Return what tells two models apart: name, revision, options, and the state of the files."""
    given = choice.options
    options = PlacementOptions(dtype=given.dtype, quantize=given.quantize, gpus=given.gpus)
    facts = repr(replace(choice, model=choice.name, options=options, device_map=None))
    folder = Path(choice.name).expanduser()
    if not folder.is_dir():
        return facts
    states = sorted((each.name, each.stat().st_mtime_ns) for each in folder.iterdir())
    return f"{facts} {states}"


def _key(request: Request, model: str) -> str:
    digest = hashlib.sha256(repr((model, request.sampling)).encode())
    for message in request.conversation.messages:
        digest.update(repr((message.role, message.text, len(message.images))).encode())
        for picture in message.images:
            digest.update(repr(picture.image.size).encode())
            digest.update(picture.image.tobytes())
    return digest.hexdigest()


def _small(picture: SourcedImage) -> SourcedImage:
    small = picture.image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return replace(picture, image=small)


def _failed(row: PlannedRow, error: str) -> AnsweredRow:
    return AnsweredRow(row.index, row.name, row.item, row.prompt, error=error)


def _answered(row: PlannedRow, answer: Answer, *, reused: bool = False) -> AnsweredRow:
    return AnsweredRow(row.index, row.name, row.item, row.prompt, answer, reused=reused)


def _ignore(_: object) -> None:
    """Take news that nobody asked for."""
