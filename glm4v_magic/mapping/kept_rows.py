"""Rows of a run that are done: in memory, or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

from glm4v_magic.core.rows import AnsweredRow, Counts
from glm4v_magic.mapping.results import result_of

if TYPE_CHECKING:
    from glm4v_magic.calls.forms import Form
    from glm4v_magic.core.errors import Glm4vError
    from glm4v_magic.core.remarks import Words
    from glm4v_magic.mapping.items import Items, PlannedRow

__all__ = ["KeptRows", "RowsInMemory"]


class KeptRows(Protocol):
    """Rows that are done.

    Attributes:
        keeps_answers: whether they can be found in the next run.
    """

    keeps_answers: bool

    @property
    def counts(self) -> Counts:
        """How many of them were answered, failed or reused."""

    @property
    def fault(self) -> Glm4vError | None:
        """Why no more rows can be kept; the run then ends. The latest row is kept all the same."""

    def find(self, row: PlannedRow, content: str = "") -> AnsweredRow | None:
        """Return the answered row of an earlier run, if this one is asked the same.

        Args:
            row: the row.
            content: digest of what is asked, if it is known already.
        """

    def add(self, row: AnsweredRow, content: str = "") -> None:
        """Keep a row; one of the same index is replaced."""

    def so_far(self) -> Sequence[AnsweredRow]:
        """Return the rows that are done now; later ones do not appear in it."""

    def result(self) -> Any:
        """Return what `Session.map` would return now."""

    def close(self) -> None:
        """Bring everything into its final place; called at the end of every run."""


class RowsInMemory:
    """Rows in memory; see `KeptRows`.

    Args:
        rows: all rows of the run.
        items: their items.
        form: form of the answers.
        words: front end that words errors in a DataFrame.
    """

    keeps_answers = False

    def __init__(self, rows: Sequence[PlannedRow], items: Items, form: Form, words: Words) -> None:
        self.counts = Counts()
        self.fault = None
        self._done: list[AnsweredRow] = []
        self._places: dict[int, int] = {}
        self._of_all = (rows, items, form, words)

    def find(self, row: PlannedRow, content: str = "") -> AnsweredRow | None:
        """Return ``None``: earlier runs are remembered by `answer_cache`."""
        return None

    def add(self, row: AnsweredRow, content: str = "") -> None:
        """Keep a row; see `KeptRows`."""
        place = self._places.setdefault(row.index, len(self._done))
        if place < len(self._done):
            self.counts -= self._done[place]
            self._done[place] = row
        else:
            self._done.append(row)
        self.counts += row

    def so_far(self) -> Sequence[AnsweredRow]:
        """Return the rows that are done now, without a copy."""
        return _Beginning(self._done)

    def result(self) -> Any:
        """Return what `results.result_of` makes of the rows."""
        rows, items, form, words = self._of_all
        return result_of(rows, self._done, items, form, words)

    def close(self) -> None:
        """Do nothing."""


class _Beginning(Sequence[AnsweredRow]):
    """The rows that a growing list has now."""

    def __init__(self, rows: Sequence[AnsweredRow]) -> None:
        self._rows = rows
        self._length = len(rows)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> AnsweredRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AnsweredRow]: ...
    def __getitem__(self, index: int | slice) -> AnsweredRow | Sequence[AnsweredRow]:
        places = range(self._length)[index]
        if isinstance(places, range):
            return [self._rows[each] for each in places]
        return self._rows[places]
