"""What other libraries hold images in: tables, columns, uploads, widgets, charts, chat messages.

Their types are recognised without importing them: where such a value exists, its library is
imported already.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.images.formats import CLIPS, HEAD, SUFFIXES, is_known
from glm4v_magic.images.messages import one_line

__all__ = [
    "columns_of_images",
    "content_of",
    "file_in",
    "head_of_file_in",
    "is_instance",
    "is_row",
    "kind_of",
    "rows_of",
    "several",
    "taken_out",
    "uploaded",
]

_STORED = {"bytes", "path"}
"""Keys of an image as Hugging Face's `datasets` stores it."""


def is_instance(value: object, module: str, *names: str) -> bool:
    """Tell whether `value` is of a class of a library that may not be imported."""
    found = (getattr(sys.modules.get(module), name, None) for name in names)
    return any(isinstance(value, cls) for cls in found if isinstance(cls, type))


_KALEIDO = "Install it with: pip install --upgrade kaleido, and restart Python."
_VL_CONVERT = "Install it with: pip install --upgrade vl-convert-python"
"""They draw charts; plotly looks for its own as it is imported, altair as it draws."""


def file_in(value: Any) -> bytes | None:
    """Return the bytes of a file in an array or tensor, as OpenCV and torchvision hold them.

    They have one axis, or a second of one in earlier versions of OpenCV. ``None`` of anything else:
    what does not begin like a file is taken for pixels.
    """
    return _bytes_of(value.reshape(-1)) if is_known(head_of_file_in(value)) else None


def head_of_file_in(value: Any) -> bytes:
    """Return the first bytes of an array or tensor that may hold a file; else nothing."""
    if is_instance(value, "torch", "Tensor"):
        is_plain = value.device.type != "meta" and not value.is_nested
        if not is_plain or not str(value.layout).endswith("strided"):
            return b""
    elif not is_instance(value, "numpy", "ndarray"):
        return b""
    shape = tuple(value.shape)
    is_flat = len(shape) == 1 or (len(shape) == 2 and 1 in shape)
    if not is_flat or str(value.dtype).rpartition(".")[2] != "uint8":
        return b""
    return _bytes_of(value.reshape(-1)[:HEAD])


def _bytes_of(flat: Any) -> bytes:
    array = flat.detach().cpu().numpy() if is_instance(flat, "torch", "Tensor") else flat
    content: bytes = array.tobytes()
    return content


def content_of(value: Any, source: str) -> bytes | None:
    """Return what a binary file object holds, from its beginning; its position is restored.

    ``None`` if the value is no file object.

    Raises:
        ImageError: if it cannot be read, or gives text.
    """
    if not callable(getattr(value, "read", None)) or isinstance(value, type | ModuleType):
        return None
    try:
        if not (hasattr(value, "seekable") and value.seekable()):
            content = value.read()
        else:
            # A buffer that was just written to is at its end.
            position = value.tell()
            value.seek(0)
            content = value.read()
            value.seek(position)
    except Exception as error:
        raise ImageError(f"{one_line(source)} cannot be read: {reason(error)}") from error
    if not isinstance(content, bytes):
        raise ImageError(
            f"{one_line(source)} gives {type(content).__name__}, not bytes.",
            'Open the file in binary mode: open(path, "rb").',
        )
    return content


def _in_part(part: Mapping[Any, Any]) -> Any:
    """Return the image of a part of a message to a chat model; ``None`` if it is no such part.

    OpenAI's has the URL in ``image_url``, in a mapping of its own or not; Anthropic's has a URL or
    base64 in ``source``; transformers' has a path, a URL or base64.
    """
    if part.get("type") not in _PARTS or not part.keys() <= _KEYS_OF_PARTS:
        return None
    found = [part[key] for key in _WHERE if part.get(key) is not None]
    if len(found) != 1:
        return None
    (where,) = found
    if not isinstance(where, Mapping):
        return where
    inner = [where[key] for key in ("url", "data") if isinstance(where.get(key), str | bytes)]
    return inner[0] if len(inner) == 1 else None


def _is_part_alone(part: Mapping[Any, Any]) -> bool:
    """Tell whether a mapping is a part of a message that could be no row of a table."""
    return _in_part(part) is not None and any(isinstance(each, Mapping) for each in part.values())


_PARTS = ("image", "image_url", "input_image")
_WHERE = ("image_url", "source", "image", "url", "path", "base64", "data")
_KEYS_OF_PARTS = {*_WHERE, "type", "detail", "media_type", "mime_type", "cache_control"}


def several(value: Any, source: str) -> Sequence[Any] | None:
    """Return the items of a value that holds several images; ``None`` if it is not such a value.

    Raises:
        ImageError: if it holds nothing yet, or has splits of which one must be chosen.
    """
    files = uploaded(value, source)
    if files is not None:
        return files
    if isinstance(value, Mapping):
        return _list_in(value)
    if isinstance(value, list | tuple):
        return value
    if is_instance(value, "numpy", "ndarray") and value.dtype.kind in "OSU" and value.size:
        if not _is_of_numbers(value):
            return list(value.flat)
        return list(value) if value.ndim == 4 else None  # NumPy takes PIL images apart
    if is_instance(value, "polars", "Series") or is_instance(value, "pyarrow", *_ARRAYS):
        return list(value.to_list() if hasattr(value, "to_list") else value.to_pylist())
    if is_instance(value, "datasets.arrow_dataset", "Column"):
        return list(value)
    if is_instance(value, "pandas", "Series"):
        return _column(value)
    rows = _records(value) if is_instance(value, "pandas", "DataFrame") else rows_of(value)
    return None if rows is None else list(itertools.islice(rows, _MOST_ROWS))


def _is_of_numbers(array: Any) -> bool:
    return isinstance(array.flat[0], int | float)


def _list_in(row: Mapping[Any, Any]) -> Sequence[Any] | None:
    """Return the only list of images in a row, or in several that are a mapping of lists.

    Images of some of several rows may be missing.
    """
    lists = [
        each
        for each in row.values()
        if isinstance(each, list | tuple) and _are_images_or_gaps(each)
    ]
    has_others = any(map(_is_or_names_an_image, row.values()))
    return lists[0] if len(lists) == 1 and not has_others else None


_MOST_ROWS = 10_000
"""More than a question may have images; a streamed dataset may be endless."""

_ARRAYS = ("Array", "ChunkedArray")


def uploaded(value: Any, source: str) -> Sequence[Any] | None:
    """Return the files of an upload, by ipywidgets or Colab; ``None`` of anything else.

    Raises:
        ImageError: if it has none yet, or is a dataset with splits of which one must be chosen.
    """
    if is_instance(value, "ipywidgets.widgets.widget_upload", "FileUpload"):
        if not value.value:
            raise ImageError(
                f"{one_line(source)}: nothing is uploaded yet.", "Choose a file first."
            )
        value = value.value
        if not isinstance(value, Mapping):  # of ipywidgets 8
            return list(value)
    return _uploads(value, source) if isinstance(value, Mapping) else None


def _column(series: Any) -> Sequence[Any] | None:
    """Return the items of a Series of pandas; ``None`` if it is a row, or one of numbers.

    A row has the names of the columns as its index, and seldom nothing but images.
    """
    items = list(series)
    known = [each for each in items if not _is_missing(each)]
    if items and isinstance((known or items)[0], int | float):
        return None
    is_row = all(isinstance(name, str) for name in series.index)
    if items and is_row and not all(map(_is_or_names_an_image, items)):
        return None
    return items


def _records(frame: Any) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a DataFrame of pandas."""
    return (dict(row) for _, row in frame.iterrows())


def _uploads(value: Mapping[Any, Any], source: str) -> Sequence[Any] | None:
    """Return the files of an upload: of Colab, name -> bytes, or of ipywidgets 7."""
    if is_instance(value, "datasets", "DatasetDict", "IterableDatasetDict"):
        raise ImageError(
            f"{one_line(source)} has the splits {', '.join(map(str, value))[:200]}.",
            f"Choose one: {one_line(source)}[{next(iter(value), '')!r}].",
        )
    files = []
    for name, file in value.items():
        content = file.get("content") if isinstance(file, Mapping) else file
        if not isinstance(name, str) or not isinstance(content, bytes | memoryview):
            return None
        files.append({"name": name, "content": content})
    return None if value.keys() <= _STORED | {"name", "content"} else files


def rows_of(value: Any) -> Iterable[Mapping[str, Any]] | None:
    """Return the rows of a table of `datasets`, polars or PyArrow; ``None`` of anything else.

    Images of a dataset stay as they are stored: decoded, a large one would fill the memory.
    """
    if is_instance(value, "datasets", "Dataset", "IterableDataset"):
        for name, feature in (value.features or {}).items():
            if is_instance(feature, "datasets", "Image"):
                value = value.cast_column(name, type(feature)(decode=False))
        return iter(value.with_format(None))
    if is_instance(value, "polars", "LazyFrame"):
        value = value.collect()
    if is_instance(value, "polars", "DataFrame"):
        return iter(value.iter_rows(named=True))
    if is_instance(value, "pyarrow", "Table", "RecordBatch"):
        return iter(value.to_pylist())
    return None


def columns_of_images(columns: Mapping[Any, Sequence[object]]) -> list[Any]:
    """Return the columns of a table that hold images, or else clips and images by their names.

    They may be missing in some rows. A cell may be a list of images.
    """
    return (
        [name for name, cells in columns.items() if any(_has(_is_image, each) for each in cells)]
        or [name for name, cells in columns.items() if _are_named(cells)]
        or [name for name, cells in columns.items() if any(map(_is_pixels, cells))]
    )


def is_row(value: Mapping[Any, Any]) -> bool:
    """Tell whether a mapping is the row of a table, not an image or the file of an upload."""
    return bool(value) and not _is_image(value) and not {"name", "content"} <= value.keys()


def _has(test: Callable[[object], bool], cell: object) -> bool:
    """Tell whether a cell passes a test, or is a list of which each item does."""
    if isinstance(cell, list | tuple):
        return bool(cell) and all(map(test, cell))
    return test(cell)


def _are_named(cells: Sequence[object]) -> bool:
    known = [each for each in cells if not _is_missing(each)]
    return bool(known) and all(_has(_names_a_medium, each) for each in known)


def _are_images_or_gaps(items: Sequence[object]) -> bool:
    known = [each for each in items if not _is_missing(each)]
    return bool(known) and all(map(_is_or_names_an_image, known))


def _is_missing(value: Any) -> bool:
    """Tell whether a cell of a table is empty."""
    if value is None or (isinstance(value, str | list | tuple) and len(value) == 0):
        return True
    return bool(_name_of_gap(value))


def _name_of_gap(value: Any) -> str:
    """Return ``NaN``, ``NA`` or ``NaT`` for what stands for a missing value; else nothing."""
    if isinstance(value, float) or is_instance(value, "numpy", "floating"):
        return "NaN" if value != value else ""
    name = type(value).__name__
    is_gap = name in ("NAType", "NaTType") and type(value).__module__.startswith("pandas.")
    return name.removesuffix("Type") if is_gap else ""


def kind_of(value: Any) -> str:
    """Return what a value is that is no image, in words that follow "is"."""
    if value is None:
        return "None, not an image"
    if gap := _name_of_gap(value):
        return f"missing ({gap})"
    name = type(value).__name__
    kind = f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
    is_series = is_instance(value, "pandas", "Series") and any(map(_is_missing, value))
    row = dict(value) if is_series else value
    empty = (
        [key for key, cell in row.items() if _is_missing(cell)] if isinstance(row, Mapping) else []
    )
    if not empty:
        return f"{kind}, not an image"
    gaps = ", ".join(f"{key!r} is {_shown(row[key])}" for key in empty[:3])
    return f"a row without an image: {one_line(gaps)}"


def _shown(gap: object) -> str:
    return _name_of_gap(gap) or repr(gap)


def _is_image(value: object) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and (value.keys() <= _STORED or _is_part_alone(value))
    is_file = isinstance(value, bytes) or is_known(head_of_file_in(value))
    return is_file or is_instance(value, "PIL.Image", "Image")


def _names_an_image(value: object, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Tell whether a value of a row is the path or URL of an image, by its suffix."""
    if not isinstance(value, str | os.PathLike):
        return False
    text = os.fsdecode(value).partition("?")[0].lower()
    return text.endswith(suffixes) or text.startswith("data:image/")


def _names_a_medium(value: object) -> bool:
    return _names_an_image(value, SUFFIXES + CLIPS)


def _is_or_names_an_image(value: object) -> bool:
    return _is_image(value) or _names_an_image(value)


def _is_pixels(value: Any) -> bool:
    """Tell whether a value of a row is an array or tensor of an image's shape."""
    is_array = is_instance(value, "numpy", "ndarray") or is_instance(value, "torch", "Tensor")
    return is_array and value.ndim == 3


def taken_out(value: Any, source: str) -> Any:
    """Return the bytes, path or array that a library's value holds; other values as they are.

    Raises:
        ImageError: if a chart cannot be drawn, or a row holds several images.
    """
    if is_instance(value, "pyarrow", "Scalar"):  # a struct is a mapping, too
        value = value.as_py()
    if isinstance(value, Mapping):
        return _of_mapping(value, source)
    if is_instance(value, "pandas", "Series"):
        return _of_row(dict(value), value, source)
    if is_instance(value, "ipywidgets", "Image"):
        content = bytes(value.value)
        return content.decode("utf-8", "replace") if value.format == "url" else content
    if is_instance(value, "xarray", "DataArray"):
        return value.values
    if is_instance(value, "numpy", "ndarray") and value.dtype.kind == "O" and value.size:
        return _of_numbers(value)
    if is_instance(value, "plotly.basedatatypes", "BaseFigure"):
        return _drawn(
            "a plotly figure",
            "kaleido",
            _KALEIDO,
            source,
            lambda _: value.to_image(format="png"),
        )
    if is_instance(value, "altair", "TopLevelMixin"):
        return _drawn(
            "an altair chart",
            "vl-convert-python",
            _VL_CONVERT,
            source,
            lambda file: value.save(file, format="png"),
        )
    return value


def _of_mapping(value: Mapping[Any, Any], source: str) -> Any:
    if value and value.keys() <= _STORED:
        return value["path"] if value.get("bytes") is None else value["bytes"]
    if {"name", "content"} <= value.keys():
        return value
    part = _in_part(value)
    return _of_row(value, value, source) if part is None else part


def _of_numbers(array: Any) -> Any:
    """Return an array of Python's numbers as one of NumPy's; others as they are."""
    import numpy as np

    return np.array(array.tolist()) if _is_of_numbers(array) else array


def _of_row(row: Mapping[Any, Any], whole: object, source: str) -> Any:
    """Return the only image of a row: in memory, or else named; `whole` if it has none.

    Raises:
        ImageError: if it has several.
    """
    found = [name for name, value in row.items() if _is_image(value)]
    found = found or [name for name, value in row.items() if _names_an_image(value)]
    found = found or [name for name, value in row.items() if _is_pixels(value)]
    if len(found) > 1:
        raise ImageError(
            f"{one_line(source)} is a row with several images: "
            f"{one_line(', '.join(map(repr, found)))}.",
            f"Choose one: {one_line(source)}[{found[0]!r}].",
        )
    return taken_out(row[found[0]], f"{source}[{found[0]!r}]") if found else whole


def _drawn(kind: str, package: str, install: str, source: str, draw: Any) -> bytes:
    """Draw a chart with what its library uses for it; that is a package of its own."""
    file = io.BytesIO()
    try:
        return bytes(draw(file) or file.getvalue())
    except Exception as error:
        said = str(error)
        if "plotly_get_chrome" in said:
            raise ImageError(
                f"{one_line(source)} is {kind}, and {package} draws it with Chrome, which is not "
                "there.",
                "Install Chrome, or run plotly_get_chrome in a terminal.",
            ) from None
        if isinstance(error, ImportError) or package.split("-")[0] in said.lower():
            raise ImageError(
                f"{one_line(source)} is {kind}, which needs the package {package} to be drawn.",
                install,
            ) from None
        raise ImageError(f"{one_line(source)} cannot be drawn: {reason(error)}") from error
