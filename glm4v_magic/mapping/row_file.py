"""Rows of a map in a Parquet file, which grows as they are answered.

Each row is written at once to a journal beside the file (``rows.parquet.journal``, a line of JSON
each), because a Parquet file is readable only when it is complete. The end of a run, an interrupted
one included, merges the journal into the file. After a crash the journal is still there: the next
run reads it, asks only what is missing, and merges.

A row of an earlier run is found by what it was asked, wherever it stands now. Complete answers to
rows that are not among the items stay at the end of the file, without an index.

No answer stays in memory: only the items, their prompts, and some fifty bytes for each row.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import time
import weakref
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import accumulate, chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import OptionError, SaveError, reason
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.remarks import Words, worded
from glm4v_magic.core.rows import AnsweredRow, Counts, OrderedRows, Totals
from glm4v_magic.core.wording import counted
from glm4v_magic.images.pdf import name_and_page
from glm4v_magic.mapping.answer_cache import request_key
from glm4v_magic.mapping.results import result_of
from glm4v_magic.mapping.saved_row import OF_ANSWER, OF_USAGE, SavedHeader, SavedRow
from glm4v_magic.outside import checked, expanded, is_folder, json_object, path_text

if TYPE_CHECKING:
    from glm4v_magic.mapping.items import Items, PlannedRow
    from glm4v_magic.mapping.runner import Job

__all__ = ["INSTALL", "SUFFIX", "RowFile", "SavedRows"]

SUFFIX = ".parquet"
INSTALL = "Install it with: pip install 'glm4v_magic[parquet]'"

_JOURNAL = ".journal"
_NEW = ".new"
_KIND = "glm4v_magic.rows"
ROWS_IN_A_GROUP = 1000
"""Rows that are in memory when a file is read or written."""

_NOWHERE = -1
_CHUNK = 2**16
_SECONDS_TO_SYNC = 5.0
_ASK_AGAIN = "Give another name, or ask all rows again."

Record = dict[str, Any]


class RowFile:
    """Rows of a run in a file; see `kept_rows.KeptRows`.

    Args:
        path: the file; its name ends in ``.parquet``.
        prompt: the prompt as it was written.
        job: terms of the rows.
        rows: rows of the run.
        items: their items.

    Raises:
        OptionError: if the file cannot be written, was not written by this package, or holds
            answers to something else.
    """

    keeps_answers = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        prompt: str,
        job: Job,
        rows: Sequence[PlannedRow],
        items: Items,
    ) -> None:
        _require_pyarrow()
        if job.terms.sampling.logprobs is not None:
            raise OptionError("logprobs does not go with save.", "Leave one of them out.")
        self._shown = path_text(path, "The file of the rows", OptionError)
        self.path = _checked(self._shown)
        self.totals = Totals()
        self.fault: SaveError | None = None
        self._rows, self._words, self._asked = rows, job.words, _asked(prompt, job)
        self._items, self._form = items, job.terms.form
        self._where = array("q", [_NOWHERE]) * len(rows)
        self._keys = array("Q", [0]) * len(rows)
        self._from_before = bytearray(len(rows))
        self._counted = bytearray(len(rows))
        self._unsaved: dict[int, AnsweredRow] = {}
        self._table: _Table | None = None
        self._earlier = _EarlierRows()
        self._journal = _Journal(self.path.with_name(self.path.name + _JOURNAL))
        try:
            self._read_back(job.fresh)
        except BaseException:
            if self._journal.is_new:
                self._journal.discard()
            self._journal.unlock()
            raise

    def _read_back(self, fresh: bool) -> None:
        """Find the rows of earlier runs."""
        header = self._journal.header()
        if header is not None:
            self._require_same(header.asked, fresh)
        is_fresh = fresh or (header is not None and header.replaces)
        if self.path.exists():
            table = _Table(self.path)  # a file that is not ours is refused in any case
            if not is_fresh:
                self._require_same(table.asked, fresh)
                self._table = table
                for place, (_, key, complete) in enumerate(table.heads()):
                    self._earlier.add(key, -2 - place, complete)
        if header is None or fresh:
            self._journal.begin({"kind": _KIND, "replaces": is_fresh, "asked": self._asked})
        else:
            for offset, record in self._journal.records():
                self._earlier.add(int(record.key, 16), offset, record.is_complete)
        self._earlier.arrange()

    def _require_same(self, asked: Mapping[str, str], fresh: bool) -> None:
        differ = [name for name, value in self._asked.items() if asked.get(name) != value]
        if differ and not fresh:
            raise OptionError(
                f"{self._shown} holds answers to something else: not the same {', '.join(differ)}.",
                code="file_of_other_rows",
            )

    @property
    def counts(self) -> Counts:
        """Numbers of rows; see `KeptRows`."""
        return self.totals.counts

    def find(self, row: PlannedRow, content: str = "") -> AnsweredRow | None:
        """Return a row that an earlier run has answered; see `KeptRows.find`."""
        if not self._match(row, content, complete=True):
            return None
        found = self._read(row.index)
        self._count(found)
        return found

    def _match(self, row: PlannedRow, content: str = "", *, complete: bool) -> bool:
        """Match a row with its counterpart in an earlier run; tells whether there is one."""
        if not self._earlier or (_needs_content(row) and not content):
            return False
        key = _key(row, content)
        place = self._earlier.take(key, complete=complete)
        if place is None:
            return False
        self._where[row.index], self._keys[row.index] = place, key
        self._from_before[row.index] = complete
        return True

    def add(self, row: AnsweredRow, content: str = "") -> None:
        """Write a row to the journal; what cannot be written stays in memory."""
        index = row.index
        if self._counted[index]:
            self.totals = replace(self.totals, counts=self.counts - self.row(index))
        self._count(row)
        self._from_before[index] = row.reused
        self._keys[index] = _key(self._rows[index], content)
        if self.fault is None:
            try:
                self._where[index] = self._journal.append(self._written(row))
            except OSError as error:
                self.fault = self._failure(error)
        if self.fault is not None:
            self._unsaved[index] = row

    def _count(self, row: AnsweredRow) -> None:
        self.totals += row
        self._counted[row.index] = True

    def _failure(self, error: OSError) -> SaveError:
        return SaveError(
            f"{self._shown} cannot be written: {reason(error)}.",
            code="rows_not_saved",
            journal=self._shown + _JOURNAL,
        )

    def _written(self, row: AnsweredRow) -> Record:
        return _record(row, f"{self._keys[row.index]:016x}", self._words)

    def so_far(self) -> Sequence[AnsweredRow]:
        """Return the rows that are done, in their order."""
        return SavedRows(self, only_done=True)

    def result(self) -> SavedRows:
        """Return the rows, read from the file as they are asked for."""
        return SavedRows(self)

    def close(self) -> None:
        """Merge the journal into the file; without room for that, the journal stays as it is."""
        try:
            self._match_the_rest()
            besides = self._earlier.complete_places()
            if not self._is_merged(besides):
                self._merge(besides)
        except OSError as error:
            self.fault = self.fault or self._failure(error)
        else:
            self._unsaved.clear()
            self._journal.discard()
            if self.fault is not None:  # the journal that it names is in the file now
                self.fault.values["journal"] = self._shown
            self.totals = replace(self.totals, besides=len(besides))
        finally:
            self._journal.unlock()

    def _match_the_rest(self) -> None:
        """Find earlier answers and errors of rows that the run has not reached."""
        for index, place in enumerate(self._where):
            if not self._earlier:
                return
            if place == _NOWHERE and index not in self._unsaved:
                row = self._rows[index]
                if not self._match(row, complete=True):
                    self._match(row, complete=False)

    def _is_merged(self, besides: Sequence[int]) -> bool:
        """Tell whether the file has each row in its place already."""
        if self._unsaved:
            return False
        done = ((index, self._where[index]) for index in self._done())
        wanted = chain(done, ((None, place) for place in besides))
        heads = () if self._table is None else self._table.heads()
        there = ((index, -2 - place) for place, (index, _, _) in enumerate(heads))
        return all(one == other for one, other in zip_longest(wanted, there))

    def _merge(self, besides: Sequence[int]) -> None:
        new = self.path.with_name(self.path.name + _NEW)
        kept = ({**self._record_at(place), "index": None} for place in besides)
        try:
            _write(new, chain(self.records(), kept), self._asked)
            new.replace(self.path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        self._table = _Table(self.path)
        for place, index in enumerate(self._done()):
            self._where[index] = -2 - place

    def _record(self, index: int) -> Record:
        if index in self._unsaved:
            return self._written(self._unsaved[index])
        record = self._record_at(self._where[index])
        if record["index"] == index:
            return record
        return {**record, "index": index, "item": _utf8(self._rows[index].name)}

    def _record_at(self, place: int) -> Record:
        if place >= 0:
            return self._journal.read(place)
        assert self._table is not None  # where else is the row
        return self._table.read(-2 - place)

    def is_done(self, index: int) -> bool:
        """Tell whether a row was answered or has failed, now or in an earlier run."""
        return index in self._unsaved or self._where[index] != _NOWHERE

    def row(self, index: int) -> AnsweredRow:
        """Return a row."""
        if index in self._unsaved:
            return self._unsaved[index]
        if self._where[index] != _NOWHERE:
            return self._read(index)
        planned = self._rows[index]
        return AnsweredRow(index, planned.name, planned.item, planned.prompt)

    def _read(self, index: int) -> AnsweredRow:
        planned = self._rows[index]
        what = f"Row {index} of {self._shown}"
        record = checked(SavedRow, self._record(index), what, OptionError, _ASK_AGAIN)
        answer = record.as_answer()
        is_half = answer is not None and answer.finish_reason == "interrupted"
        return AnsweredRow(
            index,
            planned.name,
            planned.item,
            record.prompt,
            answer,
            None if is_half else record.error,
            bool(self._from_before[index]),
        )

    def records(self) -> Iterator[Record]:
        """Yield the rows that are done as they are written to the file, in order."""
        return map(self._record, self._done())

    def frame(self) -> Any:
        """Return all rows as a DataFrame.

        Of a Series or DataFrame it is what a run in memory returns, of other items it has the
        columns of the file.
        """
        if self._items.table is not None:
            return result_of(self._rows, self.result(), self._items, self._form, self._words)
        import pyarrow as pa

        table = pa.Table.from_pylist(list(self.records()), _schema({}))
        return table.drop_columns("key").to_pandas()

    def _done(self) -> Iterator[int]:
        return filter(self.is_done, range(len(self._rows)))

    def __len__(self) -> int:
        return len(self._rows)


class SavedRows(OrderedRows):
    """Rows of a map that are in a file; they are read as they are asked for.

    Args:
        file: the file.
        only_done: leave out rows that were not asked.

    Attributes:
        path: the Parquet file.
    """

    def __init__(self, file: RowFile, *, only_done: bool = False) -> None:
        self.path = file.path
        self._file = file
        self._only_done = only_done

    @property
    def totals(self) -> Totals:  # type: ignore[override]  # as of now
        """Numbers and tokens of all rows."""
        return self._file.totals

    def read(self) -> Any:
        """Return the rows as a DataFrame; see `RowFile.frame`."""
        return self._file.frame()

    def __len__(self) -> int:
        return len(self._places())

    @overload
    def __getitem__(self, index: int) -> AnsweredRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AnsweredRow]: ...
    def __getitem__(self, index: int | slice) -> AnsweredRow | Sequence[AnsweredRow]:
        if isinstance(index, str | list):  # as of the DataFrame that a map returns without a file
            raise OptionError(
                f"The rows are in {self.path}, so that their columns are not in memory.",
                "All of them as a DataFrame are .read(), which has columns.",
            )
        places = self._places()[index]
        if isinstance(places, int):
            return self._file.row(places)
        return [self._file.row(each) for each in places]

    def __iter__(self) -> Iterator[AnsweredRow]:
        return map(self._file.row, self._places())

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'row')} in {self.path}>"

    def _places(self) -> Sequence[int]:
        every = range(len(self._file))
        return array("q", filter(self._file.is_done, every)) if self._only_done else every


class _EarlierRows:
    """Places of the rows of earlier runs by what they were asked, some twenty bytes for each.

    Rows that are asked the same are taken in the order in which they were added, complete ones
    first.
    """

    def __init__(self) -> None:
        self._keys, self._places = array("Q"), array("q")
        self._complete = bytearray()
        self._left = bytearray()
        self._count = 0
        self._next: dict[int, int] = {}

    def add(self, key: int, place: int, complete: bool) -> None:
        """Add a row; `arrange` follows the last one."""
        self._keys.append(key)
        self._places.append(place)
        self._complete.append(complete)

    def arrange(self) -> None:
        """Make the rows ready for `take`."""
        keys, complete = self._keys, self._complete
        order = sorted(range(len(keys)), key=lambda each: (keys[each], not complete[each]))
        self._keys = array("Q", (keys[each] for each in order))
        self._places = array("q", (self._places[each] for each in order))
        self._complete = bytearray(complete[each] for each in order)
        self._count = len(order)
        self._left = bytearray(b"\1") * self._count

    def take(self, key: int, *, complete: bool) -> int | None:
        """Return the place of a row that nobody has taken; ``None`` if there is none."""
        found = self._next.get(key, bisect_left(self._keys, key))
        if not self._is_of(key, found) or not self._left[found]:
            return None
        if self._complete[found] != complete:
            return None
        self._left[found] = False
        if self._is_of(key, found + 1):
            self._next[key] = found + 1
        self._count -= 1
        return self._places[found]

    def _is_of(self, key: int, number: int) -> bool:
        return number < len(self._keys) and self._keys[number] == key

    def complete_places(self) -> Sequence[int]:
        """Return the places of complete rows that nobody has taken, in their order in the file."""
        every = zip(self._places, self._left, self._complete, strict=True)
        places = [place for place, left, complete in every if left and complete]
        return sorted(places, key=lambda place: (place >= 0, abs(place)))

    def __bool__(self) -> bool:
        return self._count > 0


class _Journal:
    """Lines of JSON that are appended one by one; the first one is a header.

    Args:
        path: its file, which is created.

    Attributes:
        is_new: whether there was none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = self._open()
        self.is_new = not os.fstat(self._descriptor).st_size
        self._synced = time.monotonic()

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except (OSError, ValueError) as error:
            raise OptionError(f"{self.path} cannot be written: {reason(error)}.") from None
        try:
            _lock(descriptor)
        except OSError:
            os.close(descriptor)
            raise OptionError(
                f"Another run is writing {self.path}.", "Give another name, or wait for its end."
            ) from None
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def header(self) -> SavedHeader | None:
        """Return the first line; ``None`` if nothing was written.

        Raises:
            OptionError: if the file is not a journal that `RowFile` wrote.
        """
        offset, line = next(self._lines(), (0, None))
        if line is None:
            return None
        found = _object(line)
        try:
            if offset == 0 and found.get("kind") == _KIND:
                return checked(SavedHeader, found, "", OptionError)
        except OptionError:
            pass
        raise OptionError(
            f"{self.path} is in the way: it is not a journal of rows.",
            "Move it elsewhere, or give another name.",
        )

    def begin(self, header: Mapping[str, object]) -> None:
        """Begin anew. A file that is there is replaced: rows that were read from it may be in use.

        Raises:
            OptionError: if it cannot be written.
        """
        try:
            if os.fstat(self._descriptor).st_size:
                self.path.unlink()
                self._descriptor = self._open()
            self.append(header)
        except OSError as error:
            raise OptionError(f"{self.path} cannot be written: {reason(error)}.") from None

    def records(self) -> Iterator[tuple[int, SavedRow]]:
        """Yield offset and row of each line; one that a crash cut off or damaged is left out."""
        for offset, line in self._lines():
            with contextlib.suppress(OptionError):
                yield offset, checked(SavedRow, _object(line), "", OptionError)

    def append(self, record: Mapping[str, object]) -> int:
        """Append a line and return its offset.

        Raises:
            OSError: if it cannot be written; what was written of it is taken back.
        """
        if not self.is_there():
            raise FileNotFoundError(errno.ENOENT, "the folder or the file is gone", str(self.path))
        line = json.dumps(record).encode() + b"\n"
        offset = os.lseek(self._descriptor, 0, os.SEEK_END)
        if offset and os.pread(self._descriptor, 1, offset - 1) != b"\n":  # cut off by a crash
            line = b"\n" + line
        try:
            self._write(line)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, offset)
            raise
        if time.monotonic() - self._synced > _SECONDS_TO_SYNC:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()
        return offset + line.startswith(b"\n")

    def _write(self, line: bytes) -> None:
        while line:  # a full disk takes a part, and gives its reason at the next write
            line = line[os.write(self._descriptor, line) :]

    def read(self, offset: int) -> Record:
        """Return the row at this offset."""
        line = b""
        while not line.endswith(b"\n"):
            part = os.pread(self._descriptor, _CHUNK, offset + len(line))
            if not part:
                break
            line += part[: part.find(b"\n") + 1 or None]
        return _object(line)

    def is_there(self) -> bool:
        """Tell whether the file is still in its folder."""
        try:
            found = self.path.stat()
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._descriptor))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        offset = 0
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            for line in file:
                if line.strip():
                    yield offset, line
                offset += len(line)

    def unlock(self) -> None:
        """Let other runs write; rows can still be read."""
        _lock(self._descriptor, held=False)

    def discard(self) -> None:
        """Remove the file: its rows are elsewhere now."""
        if self.is_there():
            self.path.unlink()


class _Table:
    """A Parquet file of rows that is read group by group.

    Attributes:
        asked: what its rows are answers to.

    Raises:
        OptionError: if it is not a file that `RowFile` wrote.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # It stays open, and so can still be read when another file takes its name.
            self._file = pq.ParquetFile(path)
            told = (self._file.schema_arrow.metadata or {}).get(_KIND.encode(), b"")
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from None
        if not self._file.schema_arrow.equals(_schema({}), check_metadata=False):
            raise OptionError(
                f"{path} is in the way: it holds no rows of a map.",
                "Move it elsewhere, or give another name.",
            )
        self.asked = self._asked(told)
        sizes = (self._file.metadata.row_group(n).num_rows for n in range(self._groups))
        self._starts = [0, *accumulate(sizes)]
        self._cached: tuple[int, list[Record]] = (-1, [])
        self._path = path

    @staticmethod
    def _asked(told: bytes) -> Mapping[str, str]:
        try:
            return checked(SavedHeader, {"asked": _object(told)}, "", OptionError).asked
        except OptionError:
            return {}

    @property
    def _groups(self) -> int:
        count: int = self._file.num_row_groups
        return count

    def heads(self) -> Iterator[tuple[int | None, int, bool]]:
        """Yield index and key of each row, and whether it is complete.

        The index of a row that was not among the items is ``None``.
        """
        for number in range(self._groups):
            for each in self._group(number, ["index", "key", "error", "finish_reason"]):
                is_complete = each["error"] is None and each["finish_reason"] is not None
                yield each["index"], int(each["key"], 16), is_complete

    def read(self, place: int) -> Record:
        """Return the row at a place."""
        number = bisect_right(self._starts, place) - 1
        if self._cached[0] != number:
            self._cached = (number, self._group(number))
        return self._cached[1][place - self._starts[number]]

    def _group(self, number: int, columns: Sequence[str] | None = None) -> list[Record]:
        import pyarrow as pa

        try:
            found: list[Record] = self._file.read_row_group(number, columns).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _unreadable(self._path, error) from None
        return found


def _unreadable(path: Path, error: Exception) -> OptionError:
    if getattr(error, "errno", None):
        return OptionError(f"{path} cannot be read: {reason(error)}.")
    return OptionError(
        f"{path} is in the way: it is damaged, or no Parquet file.",
        "Move it elsewhere, or give another name.",
    )


_COLUMNS: Mapping[str, str] = {
    "index": "int64",
    "item": "string",
    "prompt": "string",
    "answer": "string",
    "value": "string",
    "thinking": "string",
    "probability": "float64",
    "choices": "string",
    "boxes": "string",
    "points": "string",
    "error": "string",
    "finish_reason": "string",
    "seed": "int64",
    "text_tokens": "int64",
    "visual_tokens": "int64",
    "new_tokens": "int64",
    "thinking_tokens": "int64",
    "time_to_first_token": "float64",
    "decode_seconds": "float64",
    "format": "string",
    "corrected": "string",
    "model": "string",
    "notice": "string",
    "key": "string",
}
"""Columns of the file and their types; ``value``, ``choices``, ``boxes``, ``points`` are JSON."""


def _schema(asked: Mapping[str, str]) -> Any:
    import pyarrow as pa

    fields = [pa.field(name, getattr(pa, kind)()) for name, kind in _COLUMNS.items()]
    return pa.schema(fields, {_KIND: json.dumps(asked)})


def _write(path: Path, records: Iterator[Record], asked: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(asked)
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            while group := list(islice(records, ROWS_IN_A_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema))
                group.clear()  # before the next one is read
        file.flush()
        os.fsync(file.fileno())


def _record(row: AnsweredRow, key: str, words: Words) -> Record:
    record: Record = dict.fromkeys(_COLUMNS)
    record |= {"index": row.index, "key": key, "item": row.name, "prompt": row.prompt}
    if row.fault is not None:
        record["error"] = worded(row.fault, words)
    answer = row.answer
    if answer is not None:
        record |= {
            "answer": answer.text,
            "value": None if answer.value is None else _json(answer.value),
            "thinking": answer.thinking or None,
            "probability": row.probability,
            "choices": _json(dict(answer.choices)) if answer.choices else None,
            "boxes": _json([asdict(each) for each in answer.boxes]) if answer.boxes else None,
            "points": _json([asdict(each) for each in answer.points]) if answer.points else None,
            **{name: getattr(answer, name) for name in OF_ANSWER},
            **{name: getattr(answer.usage, name) for name in OF_USAGE},
        }
    return {
        name: _utf8(value) if isinstance(value, str) else value for name, value in record.items()
    }


def _asked(prompt: str, job: Job) -> dict[str, str]:
    """Return what all answers depend on: name -> digest or text."""
    shared = Message("user", "", job.images, videos=job.videos, before_videos=job.before_videos)
    images = request_key(Request(Conversation((shared,)), Sampling()), "")
    return {
        "model": job.model,
        "prompt": prompt,
        "system message": job.system or "",
        "sampling options": repr(job.terms.sampling),
        "form of the answer": repr(job.terms.form),
        "images of every row": images,
    }


def _key(row: PlannedRow, content: str) -> int:
    """Return a key of 8 bytes that is equal for rows that are asked the same.

    A file is identified by name, size and time: reading 100,000 images again would take an hour.
    """
    facts: object = content if _needs_content(row) else ""
    if row.is_image and isinstance(row.item, str | os.PathLike):
        facts = (os.fspath(row.item), _state(row.item))
    said = repr((row.prompt, row.is_image, facts)).encode(errors="backslashreplace")
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")


def _needs_content(row: PlannedRow) -> bool:
    """Tell whether a row's image can only be identified by its pixels."""
    return row.is_image and not isinstance(row.item, str | os.PathLike)


def _state(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return size and time of a file, or of the document that a page is of."""
    text = os.fspath(path)
    for name in (text, name_and_page(text)[0]):
        with contextlib.suppress(OSError, ValueError):
            found = expanded(name).stat()
            return found.st_size, found.st_mtime_ns
    return None  # an address


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _utf8(text: str) -> str:
    """Return a text that UTF-8 can write: names of files may not be valid Unicode."""
    return text.encode(errors="backslashreplace").decode()


def _object(line: bytes) -> Record:
    try:
        return json_object(line, "", OptionError)
    except OptionError:
        return {}


def _lock(descriptor: int, *, held: bool = True) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if held else fcntl.LOCK_UN)


def _require_pyarrow() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise OptionError("Saving rows needs pyarrow, which is not installed.", INSTALL)


def _checked(text: str) -> Path:
    file = expanded(text)
    if file.suffix.lower() != SUFFIX or "\0" in text:
        raise OptionError(f"{text!r} names no Parquet file.", f"Its name ends in {SUFFIX}.")
    if is_folder(file):
        raise OptionError(f"{file} is a folder.", "Name a file that is to be written.")
    if not is_folder(file.parent):
        raise OptionError(f"There is no folder {file.parent}.", "Make it first.")
    return file.absolute()
