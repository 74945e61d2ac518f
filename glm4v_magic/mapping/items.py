"""Items that a prompt is mapped over, and the prompt of each row. No model is needed here.

Items come from a list, a folder, a pattern, a PDF document, a pandas Series, a DataFrame or one of
its columns. Each of them is a row. Expressions in the prompt are evaluated for each row and may use

- ``index``: number of the row, from 0;
- ``item``: the item itself; of a folder or pattern the path as text;
- ``row``: of a DataFrame all its columns, ``row.name`` or ``row["two words"]``; of a list of
  dictionaries the item's keys.

A table of `datasets`, polars or PyArrow is a list of dictionaries, too. If exactly one of the
columns of a table holds images, or names images or clips, that column is the items; which of
several is meant must be said. The files of an upload are a table, too.

Whether an item is an image or a value depends on the prompt: **it is an image, or a clip, unless
the prompt uses** ``item`` (of rows without a column of images also ``row``). Then the item is in
the text, where the prompt puts it, and is not sent as an image. Files of a folder or pattern and
images in memory are always sent, and rows of a whole DataFrame whose columns hold none are values.
A list of images, with a clip among them or without, is one item.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from glm4v_magic.calls.prompt import expand, names_in, require_text
from glm4v_magic.core.errors import ImageError, OptionError, PromptError, did_you_mean, reason
from glm4v_magic.core.remarks import Text
from glm4v_magic.images.files import current_folder, entries, matches, natural, path_of, suffixes_in
from glm4v_magic.images.formats import CLIPS, SUFFIXES
from glm4v_magic.images.holders import (
    columns_of_images,
    is_instance,
    is_row,
    rows_of,
    uploaded,
)
from glm4v_magic.images.messages import one_line
from glm4v_magic.images.pdf import SUFFIX, count_pages, name_and_page, named
from glm4v_magic.images.video import has_video, is_clip, is_video
from glm4v_magic.outside import SHUT, is_shut, is_there

__all__ = [
    "Items",
    "PlannedRow",
    "Record",
    "are_images",
    "files_of",
    "is_dataframe",
    "is_table",
    "items_of",
    "plan",
]

_ACCEPTED = (
    "Give a list of images or values, a folder, a pattern such as photos/*.png, a pandas Series, "
    "or a column such as df.image."
)
_MOST = 1_000_000
"""Most items of an iterable: one with more is endless, or would take weeks."""


class Record:
    """The columns of a row, as ``row.name`` or ``row["name"]``.

    It has no methods: they would hide columns that are called ``items`` or ``values``.
    """

    __slots__ = ("_columns",)

    def __init__(self, columns: Mapping[Any, object]) -> None:
        self._columns = columns

    def __getattr__(self, name: str) -> object:
        if name == "_columns":  # a copy is asked before it has any
            raise AttributeError(name)
        try:
            return self._columns[name]
        except KeyError:
            raise AttributeError(self._missing(name)) from None

    def __getitem__(self, name: Hashable) -> object:
        try:
            return self._columns[name]
        except KeyError:
            raise KeyError(self._missing(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[Any]:
        return iter(self._columns)

    def __str__(self) -> str:
        return ", ".join(f"{name}: {value}" for name, value in self._columns.items())

    def _missing(self, name: object) -> str:
        known = [str(each) for each in self._columns]
        similar = did_you_mean(str(name), known) or f"There are {', '.join(known)}."
        return f"row has no column {name}. {similar}"


@dataclass(frozen=True, slots=True)
class Items:
    """Items that a prompt is mapped over.

    Attributes:
        source: expression or path that the user gave.
        values: the items.
        names: name of each item.
        records: columns of each row; ``None`` if there are none.
        kind: ``images`` or ``values``; ``None`` if that depends on the prompt.
        table: DataFrame or Series that the items come from; the result is then a DataFrame.
        is_column: whether they are one column of the table that `records` are.
        image_columns: columns of the table that hold images, if several do and none is chosen.
    """

    source: str
    values: tuple[object, ...]
    names: tuple[str, ...]
    records: tuple[Record, ...] | None = None
    kind: Literal["images", "values"] | None = None
    table: Any = None
    is_column: bool = False
    image_columns: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: object) -> tuple[object, ...]:
        """Return a column of the table, ``None`` where a row lacks it.

        Raises:
            OptionError: if there is no table, or no such column.
        """
        if self.records is None:
            raise OptionError(
                f"{one_line(self.source)} is not a table, so it has no column {name!r:.60}.",
                "Give a DataFrame, another table, or a list of dictionaries.",
            )
        if not isinstance(name, Hashable) or not any(name in each for each in self.records):
            raise _no_column(name, [*dict.fromkeys(key for each in self.records for key in each)])
        return tuple(
            each[name] if name in each else None  # noqa: SIM401  a record has no `get`
            for each in self.records
        )


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row before it is asked.

    Attributes:
        index: number of the row, from 0.
        name: name of the item.
        item: the item, as it was given.
        is_image: whether the item is sent: as an image, a video, or a list of images of which one
            may be a video.
        prompt: prompt with expressions expanded; empty if that failed.
        failure: why the expansion failed, for a front end to word; ``None`` if it did not.
    """

    index: int
    name: str
    item: object
    is_image: bool
    prompt: str
    failure: Text | None = None

    @property
    def is_video(self) -> bool:
        """Whether the item is sent as a video."""
        return self.is_image and is_video(self.item)

    @property
    def has_video(self) -> bool:
        """Whether a video is sent."""
        return self.is_image and has_video(self.item)


def items_of(
    value: object, source: str, *, column: object = None, base: Path | None = None
) -> Items:
    """Return the items in `value`.

    Args:
        value: a list or another iterable, a folder or pattern, a Series, or a DataFrame.
        source: expression or path that the user gave.
        column: of a DataFrame, another table or a list of dictionaries, the one that holds the
            items; without it the whole row is the item.
        base: folder that relative paths start from; the current one by default.

    Raises:
        OptionError: if there are no items in it.
        ImageError: if it is an upload without files, or has splits of which one must be chosen.
    """
    shown = one_line(source)
    if column is not None and not is_dataframe(value):
        return _of_column(items_of(value, source, base=base), column)
    if isinstance(value, str | os.PathLike):
        if value == "":
            raise OptionError(f"{shown} is empty: there is nothing to ask about.")
        return files_of(os.fsdecode(value), base)
    if is_dataframe(value):
        items = _of_dataframe(value, source, column)
    elif _is(value, "Series"):
        names = tuple(f"{source}[{label!r}]" for label in value.index)  # type: ignore[attr-defined]
        items = Items(source, tuple(value), names, table=value)  # type: ignore[arg-type]
    elif (rows := rows_of(value)) is not None:
        items = _of_rows(_taken(rows, shown), source)
    else:
        is_arrow = is_instance(value, "pyarrow", "Array", "ChunkedArray")
        items = _of_list(value.to_pylist() if is_arrow else value, source)  # type: ignore[attr-defined]
    if not items.values:
        raise OptionError(
            f"{shown} is empty: there is nothing to ask about.",
            "An iterator gives its items only once; make a list of them."
            if hasattr(value, "__next__")
            else "",
        )
    return items


def files_of(
    text: str, base: Path | None = None, page: int | None = None, names: Collection[str] = ()
) -> Items:
    """Return the images in a folder or the files of a pattern, sorted so that 10.png follows 2.png.

    A folder without images is one of clips. Each page of a PDF document is an image, and one
    document or page alone may be given, too, or one clip.

    Args:
        text: a folder, a pattern, ``paper.pdf`` or ``paper.pdf#page=3``.
        base: folder that relative paths start from; the current one by default.
        page: page of each document that is an item; its reader then asks for that page. By default
            each page is an item.
        names: variables that may have been meant instead.

    Raises:
        OptionError: if there is no such folder, or no such file.
        ImageError: if one document is given that cannot be read.
    """
    folder = current_folder() if base is None else base
    shown = one_line(text)
    if not text.strip():  # the path of an empty name is the folder itself
        raise OptionError("An empty name names no folder.", "The current one is called '.'.")
    place = path_of(text, folder)
    there = is_there(place)
    if is_shut(place):
        raise OptionError(f"{shown} cannot be read: permission denied.", SHUT)
    if there and place.is_dir():
        inside = _listed(place, shown)
        found = _of_kind(text, inside, SUFFIXES) or _of_kind(text, inside, CLIPS)
        if not found:
            raise OptionError(
                f"The folder {shown} holds no images and no clips.",
                "An image is a file such as *.png or *.jpg, a clip one such as *.mp4.",
            )
    elif there and place.suffix.lower() == SUFFIX and place.is_file():
        return Items(text, *_pages_of(text, count_pages(place, text), page), kind="images")
    elif _is_page(text, folder):
        return Items(text, (text,), (_name_of_page(*name_and_page(text)),), kind="images")
    elif there and place.is_file():
        if not is_clip(text):
            raise OptionError(f"{shown} is one file.", _ACCEPTED)
        found = [text]
    else:
        found = matches(text, folder)
        if not found:
            raise _no_items(text, folder, names)
    found.sort(key=natural)
    parts = [_rows_of(each, folder, page) for each in found]
    values, labels = (tuple(chain(*lists)) for lists in zip(*parts, strict=True))
    return Items(text, values, labels, kind="images")


def _of_kind(folder: str, names: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    return [
        os.path.join(folder, name)  # noqa: PTH118  "./photos" keeps its dot
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith(".")
    ]


def _rows_of(file: str, folder: Path, page: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the items of a file and their names: itself, or the pages of a PDF document."""
    if file.lower().endswith(SUFFIX):
        try:
            return _pages_of(file, count_pages(path_of(file, folder), file), page)
        except ImageError:
            pass  # its row will say what is wrong with it
    return (file,), (file,)


def _pages_of(file: str, count: int, page: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the pages of a document and their names; given a `page`, the document itself."""
    if page is not None:
        return (file,), (_name_of_page(file, page),)
    pages = range(1, count + 1)
    return tuple(named(file, n) for n in pages), tuple(_name_of_page(file, n) for n in pages)


def _name_of_page(file: str, page: int | None) -> str:
    return f"{file}, page {page}"


def _is_page(text: str, folder: Path) -> bool:
    """Tell whether a text names a page of an existing document: ``paper.pdf#page=3``."""
    file, page = name_and_page(text)
    if page is None or not file.lower().endswith(SUFFIX):
        return False
    place = path_of(file, folder)
    return is_there(place) and place.is_file()


def _listed(folder: Path, shown: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  names are wanted, not paths
    except OSError as error:
        raise OptionError(f"The folder {shown} cannot be read: {reason(error)}.") from None


def _no_items(text: str, folder: Path, names: Collection[str]) -> OptionError:
    shown = one_line(text)
    parent = path_of(text, folder).parent
    if re.search(r"[*?]", text):
        return OptionError(
            f"{shown}: no file matches in {folder}.", suffixes_in(parent, SUFFIXES + CLIPS)
        )
    variables = [name for name in names if not name.startswith("_")]
    similar = did_you_mean(path_of(text, folder).name, [*entries(parent), *variables])
    nothing = "neither a variable nor a folder" if names else "no such folder"
    return OptionError(f"{shown}: {nothing}.", similar or _ACCEPTED)


def _of_dataframe(frame: Any, source: str, column: object) -> Items:
    columns = list(frame.columns)
    if len(set(columns)) < len(columns):
        raise OptionError(f"{one_line(source)} has two columns of the same name.")
    records = tuple(
        Record(dict(zip(columns, values, strict=True)))
        for values in frame.itertuples(index=False, name=None)
    )
    if column is None:
        names = tuple(f"row {label}" for label in frame.index)
        whole = Items(source, records, names, records, kind="values", table=frame)
        return _with_images(whole, {name: list(frame[name]) for name in columns})
    if column not in columns:
        raise _no_column(column, columns)
    names = tuple(f"{column}[{label!r}]" for label in frame.index)
    return Items(source, tuple(frame[column]), names, records, table=frame, is_column=True)


_WITH_COLUMNS = "It has none at all; rows with columns are such as [{'image': 'cat.png'}]."


def _no_column(column: object, columns: Sequence[object]) -> OptionError:
    return OptionError(
        f"There is no column {column!r:.60}.",
        did_you_mean(str(column), map(str, columns))
        or (f"There are {', '.join(map(str, columns))}." if columns else _WITH_COLUMNS),
    )


def _of_column(items: Items, column: object) -> Items:
    """Return a column of a table that is no DataFrame, or of a list of dictionaries."""
    values = items.column(column)
    names = tuple(f"{one_line(str(column))}[{index}]" for index in range(len(items)))
    return replace(items, values=values, names=names, kind=None, is_column=True, image_columns=())


def _of_rows(rows: Sequence[Mapping[Any, Any]], source: str) -> Items:
    """Return the items of a table: its rows, or its images if exactly one column holds some."""
    names = tuple(f"{source}[{index}]" for index in range(len(rows)))
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in keys}
    return _with_images(Items(source, tuple(rows), names, tuple(map(Record, rows))), columns)


def _with_images(items: Items, columns: Mapping[Any, Sequence[object]]) -> Items:
    """Return the images of rows as the items if one column holds some, else the rows themselves."""
    found = columns_of_images(columns)
    if len(found) != 1:
        return replace(items, image_columns=tuple(found))
    cells = tuple(columns[found[0]])
    if any(isinstance(each, str | os.PathLike) for each in cells):  # {{item}} puts in the name
        return replace(items, values=cells, kind=None, is_column=True)
    return replace(items, values=cells, kind="images", is_column=True)


def _of_list(value: Any, source: str) -> Items:
    shown = one_line(source)
    files = uploaded(value, source)
    value = value if files is None else files
    if isinstance(value, bytes | bytearray | memoryview | Mapping) or hasattr(value, "read"):
        if isinstance(value, Mapping) and not value:
            return Items(source, (), ())
        hint = f"For its values write {shown}.values()." if isinstance(value, Mapping) else ""
        raise OptionError(f"{shown} is one {type(value).__name__}.", hint or _ACCEPTED)
    dimensions = getattr(value, "ndim", None)
    if dimensions in (2, 3):
        raise OptionError(f"{shown} is one image; put it into a list.")
    values = _taken(value, shown)
    records = None
    if values and all(isinstance(each, Mapping) for each in values):
        if files is None and any(map(is_row, values)):
            return _of_rows(values, source)
        records = tuple(map(Record, values))
    names = tuple(_name(each, f"{source}[{index}]") for index, each in enumerate(values))
    return Items(source, values, names, records)


def _name(item: object, otherwise: str) -> str:
    """Return the name that an item has itself: a path, or those of a list."""
    if isinstance(item, list | tuple) and item and all(isinstance(each, str) for each in item):
        return ", ".join(item)
    return item if isinstance(item, str) else otherwise


def _taken(value: Any, shown: str) -> tuple[Any, ...]:
    """Return the items of an iterable, which may be endless."""
    values: list[Any] = []
    try:
        # Not tuple(value): no interrupt reaches Python within it.
        for each in value:
            if len(values) == _MOST:
                raise OptionError(
                    f"{shown} has more than {_MOST:,} items.",
                    f"Take the first of them: list(itertools.islice({shown}, 100)).",
                )
            values.append(each)
    except TypeError:
        raise OptionError(
            f"{shown} is of type {type(value).__name__}, not a list.", _ACCEPTED
        ) from None
    return tuple(values)


def plan(
    prompt: str, items: Items, names: Mapping[str, object], *, raw: bool = False
) -> tuple[PlannedRow, ...]:
    """Return the row of each item, its prompt expanded.

    Args:
        prompt: as the user wrote it.
        items: from `items_of`.
        names: other names for expressions; `index`, `item` and `row` hide those of the same name.
        raw: leave expressions as they are.

    Raises:
        PromptError: if the prompt fails for every row, or no row differs from the others.
    """
    used = frozenset() if raw else names_in(prompt)
    is_image = are_images(prompt, items, raw=raw)
    if items.kind == "values" and not used & {"row", "item", "index"}:
        raise PromptError(
            f"Every row of {one_line(items.source)} would be asked the same.",
            code="rows_are_alike",
        )
    rows: list[PlannedRow] = []
    first: PromptError | None = None
    for index, (value, name) in enumerate(zip(items.values, items.names, strict=True)):
        own = {**names, "index": index, "item": value}
        if items.records is not None:
            own["row"] = items.records[index]
        try:
            text = require_text(prompt if raw else expand(prompt, own))
            rows.append(PlannedRow(index, name, value, is_image, text))
        except PromptError as error:
            first = first or error
            rows.append(PlannedRow(index, name, value, is_image, "", error.text))
    if first is not None and all(row.failure is not None for row in rows):
        raise first
    return tuple(rows)


def are_images(prompt: str, items: Items, *, raw: bool = False) -> bool:
    """Tell whether the items are sent as images; otherwise they are values for the prompt.

    Raises:
        PromptError: if an expression in the prompt is not closed, is empty or is not Python, or if
            all items are numbers, which are not images, and the prompt does not use them.
        OptionError: if several columns of a table hold images, and none is chosen.
    """
    if items.image_columns:
        raise OptionError(
            f"{one_line(items.source)} has several columns of images: "
            f"{one_line(', '.join(map(str, items.image_columns)))}.",
            code="name_column",
            source=one_line(items.source),
            column=items.image_columns[0],
        )
    used = frozenset() if raw else names_in(prompt)
    if items.kind is not None:
        return items.kind == "images"
    of_dictionaries = items.records is not None and not items.is_column
    as_images = "item" not in used and not (of_dictionaries and "row" in used)
    if as_images and items.values and all(isinstance(each, int | float) for each in items.values):
        raise PromptError(
            f"The items of {one_line(items.source)} are numbers, and the prompt does not use them.",
            "Write {{item}} where each of them goes.",
        )
    return as_images


def is_dataframe(value: object) -> bool:
    """Tell whether `value` is a DataFrame; imports no pandas."""
    return _is(value, "DataFrame")


def is_table(value: Any) -> bool:
    """Tell whether `value` is a table of another library, or a list of dictionaries."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(each, Mapping) and is_row(each) for each in value)
    return rows_of(value) is not None


def _is(value: object, name: str) -> bool:
    cls = getattr(sys.modules.get("pandas"), name, None)
    return cls is not None and isinstance(value, cls)
