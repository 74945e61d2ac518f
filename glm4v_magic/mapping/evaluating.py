"""A map whose rows are scored as they are answered."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from glm4v_magic.core.errors import MapInterrupted
from glm4v_magic.core.events import Event, MapDone, RowDone
from glm4v_magic.core.rows import AnsweredRow, OrderedRows, Progress, Rows
from glm4v_magic.mapping.evaluation import Evaluation, ScoredRow
from glm4v_magic.mapping.scoring import Truth, evaluation_of

if TYPE_CHECKING:
    from glm4v_magic.mapping.items import Items

__all__ = ["evaluated"]


class _Events(AbstractContextManager[Any], Protocol):
    """The events of a map, as `session.stream.Stream`."""

    def __iter__(self) -> Iterator[Event]: ...


def evaluated(
    events: _Events, items: Items, truth: Truth, *, is_saved: bool = False
) -> Generator[Event, None, None]:
    """Yield the events of a map with an `Evaluation` for each of its results.

    Args:
        events: the map.
        items: its items.
        truth: expected answers.
        is_saved: whether its rows are in a file, so that they are not kept in memory, too.

    Raises:
        MapInterrupted: on an interrupt, with the evaluation of the rows until then.
        Glm4vError: as the map.
    """
    scores = _Scores(items, truth, is_saved)
    try:
        with events:
            for event in events:
                yield scores.hear(event)
    except MapInterrupted as stopped:
        progress = stopped.progress
    else:
        return
    # Out here the new exception has no __context__, whose frames would hold on to the model.
    raise MapInterrupted(scores.at_the_end(progress))


class _Scores:
    """Rows that are scored so far."""

    def __init__(self, items: Items, truth: Truth, is_saved: bool) -> None:
        self._items = items
        self._truth = truth
        self._is_saved = is_saved
        self._scored: dict[int, ScoredRow] = {}
        self._rows: dict[int, AnsweredRow] = {}
        self._model = ""

    def hear(self, event: Event) -> Event:
        """Return an event of the map as one of the evaluation."""
        if isinstance(event, RowDone):
            self._add(event.row)
            return replace(event, progress=self._of(event.progress))
        if isinstance(event, MapDone):
            return MapDone(self.evaluation(event.result))
        return event

    def at_the_end(self, progress: Progress) -> Progress:
        """Return the progress of a map that was stopped; its last rows came without an event."""
        if not isinstance(progress.rows, OrderedRows):
            for row in progress.rows:
                self._add(row)
        return self._of(progress)

    def _add(self, row: AnsweredRow) -> None:
        self._scored[row.index] = self._truth.scored(row)
        if row.answer is not None:
            self._model = row.answer.model
        if not self._is_saved:
            self._rows[row.index] = row

    def _of(self, progress: Progress) -> Progress:
        return replace(progress, result=lambda: self.evaluation(progress.result()))

    def evaluation(self, result: Any) -> Evaluation:
        """Return the evaluation of the rows so far.

        Args:
            result: what the map returns for them.
        """
        names = self._items.names
        unasked = [
            AnsweredRow(index, name, self._items.values[index], "")
            for index, name in enumerate(names)
            if index not in self._scored
        ]
        scored = self._scored | {row.index: self._truth.scored(row) for row in unasked}
        if not self._is_saved:
            rows = self._rows | {row.index: row for row in unasked}
            result = Rows(rows[index] for index in range(len(names)))
        return evaluation_of(
            [scored[index] for index in range(len(names))], self._truth, self._model, result
        )
