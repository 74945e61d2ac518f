"""Which values may be images, told from their types and a few of their bytes.

Nothing is decoded, drawn, fetched or run, and no table is read beyond its first row: this is asked
of all variables while somebody types.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any

from glm4v_magic.core.errors import ImageError
from glm4v_magic.core.image import DEFAULT_LIMITS, SourcedImage
from glm4v_magic.images.formats import HEAD, SUFFIXES, is_read
from glm4v_magic.images.holders import head_of_file_in, several, taken_out
from glm4v_magic.images.uris import base64_head

__all__ = ["may_be_images"]

_LONGEST_NAME = 4096
_MOST = DEFAULT_LIMITS.images
_LOOKED_AT = 1000  # numbers of an array
_KEYS = 1000  # of a row; one with more is no row
_COPIED = 2**25  # bytes of a row that are copied to look at it


def may_be_images(value: object) -> bool:
    """Tell whether a value holds one image or several, or a clip's frames, as a question takes.

    Raises whatever the value's own methods raise.
    """
    return _holds(_is_one, value) or _holds(_are_several, value)


def _holds(rule: Callable[[Any], bool], value: object) -> bool:
    try:
        return rule(value)
    except ImageError:  # as a question would say
        return False


def _is_one(value: Any) -> bool:
    if issubclass(type(value), _NEVER):
        return False
    for cls in type(value).__mro__:
        rule = _ONE.get(cls) or _ONE_OF.get(_library(cls))
        if rule is not None:
            return rule(value)
    if issubclass(type(value), Mapping):
        return _row(value)
    if issubclass(type(value), os.PathLike):
        return _text(os.fsdecode(value))
    return _shows_itself(value)


def _are_several(value: Any) -> bool:
    for cls in type(value).__mro__:
        rule = _SEVERAL.get((_library(cls), cls.__name__))
        if rule is not None:
            return rule(value)
    if issubclass(type(value), Mapping):
        return len(value) <= _KEYS and _all(several(_trimmed(value), ""))
    return False


def _all(items: Any) -> bool:
    return bool(items) and len(items) <= _MOST and all(map(_is_one, items))


def _beginning(first: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """Return a rule that looks at the beginning of a list, a column or a table."""
    return lambda value: 0 < len(value) <= _MOST and _all(several(first(value), ""))


def _frame_of_pandas(value: Any) -> bool:
    return len(value.columns) <= _KEYS and _beginning(lambda frame: frame.iloc[:1])(value)


def _polars(value: Any) -> bool:
    return value.head(1).estimated_size() <= _COPIED and _beginning(lambda each: each.head(1))(
        value
    )


def _arrow(value: Any) -> bool:
    return value.slice(0, 1).nbytes <= _COPIED and _beginning(lambda each: each.slice(0, 1))(value)


def _library(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _is_of(value: object, *names: str) -> bool:
    return any(cls.__name__ in names for cls in type(value).__mro__)


def _text(value: str) -> bool:
    if value[:5].lower() == "data:":
        return value[5:11].lower() == "image/"
    if len(value) <= _LONGEST_NAME:
        name = value.partition("?")[0].partition("#page=")[0].lower()
        if name.endswith(SUFFIXES):
            return True
    return is_read(base64_head(value))


def _bytes(value: Any) -> bool:
    head = bytes(value[:HEAD])
    return is_read(head) or (b"\0" not in head and _text(os.fsdecode(head)))


def _file(value: Any) -> bool:
    """Look at an open file, which stays where it is."""
    if issubclass(type(value), io.BytesIO):
        return is_read(value.getvalue()[:HEAD])  # not a copy, unlike its buffer
    if value.closed or not value.readable():
        return False
    name: Any = getattr(value, "name", None)
    return issubclass(type(name), str | bytes) and _text(os.fsdecode(name))


def _shows_itself(value: object) -> bool:
    return any(hasattr(type(value), name) for name in ("_repr_png_", "_repr_jpeg_"))


def _row(value: Mapping[Any, Any]) -> bool:
    """Look at a file of an upload, an image as it is stored, or a row with one image."""
    if not 0 < len(value) <= _KEYS:
        return False
    if {"name", "content"} <= value.keys():
        return _is_one(value["content"])
    trimmed = _trimmed(value)
    cell = taken_out(trimmed, "")
    return cell is not trimmed and _is_one(cell)


def _trimmed(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a row whose lists are hardly longer than those of images may be."""
    lists = (list, tuple)
    return {
        key: each[: _MOST + 1] if issubclass(type(each), lists) else each
        for key, each in row.items()
    }


def _array(value: Any) -> bool:
    """Look at the shape of an array, and at some of its values."""
    import numpy as np

    from glm4v_magic.images.arrays import has_shape_of_image
    from glm4v_magic.images.scaling import eight_bits

    if not issubclass(type(value), np.ndarray):
        return issubclass(type(value), str) and _text(value)
    if value.dtype.kind in "OSU":
        return _of_objects(value)
    if is_read(head_of_file_in(value)):
        return True
    frame = _frame(value)
    if not has_shape_of_image(frame.shape):
        return False
    eight_bits(frame.flat[:: max(1, frame.size // _LOOKED_AT)], "")
    return True


def _frame(value: Any) -> Any:
    """Return the first frame of an array of several, which is a clip."""
    return value[0] if len(value.shape) == 4 and len(value) > 1 else value


def _of_objects(value: Any) -> bool:
    from glm4v_magic.images.arrays import has_shape_of_image

    if value.size == 0 or isinstance(value.flat[0], int | float):
        return value.ndim == 4 or has_shape_of_image(value.shape)
    return value.size <= _MOST and all(map(_is_one, value.flat))


def _tensor(value: Any) -> bool:
    """Look at a tensor; at its values only where they are NumPy's, too."""
    from glm4v_magic.images.arrays import has_shape_of_image

    if not _is_of(value, "Tensor"):
        return False
    is_dense = not value.is_nested and str(value.layout).endswith("strided")
    if not is_dense or value.device.type == "meta" or value.is_complex():
        return False
    is_plain = value.device.type == "cpu" and _library(type(value)) == "torch"
    if is_plain and not value.is_quantized and not str(value.dtype).endswith("bfloat16"):
        return _array(value.detach().numpy())
    return has_shape_of_image(_frame(value).shape)


def _pandas(value: Any) -> bool:
    """Look at a row."""
    if not _is_of(value, "Series") or not 0 < len(value) <= _KEYS or value.dtype.kind != "O":
        return False
    if not issubclass(type(value.index[0]), str):
        return False
    cell = taken_out(value, "")
    return cell is not value and _is_one(cell)


def _pyarrow(value: Any) -> bool:
    if _is_of(value, "BinaryScalar"):
        content = value.as_buffer()
        return content is not None and _bytes(content)
    return _is_of(value, "StringScalar", "StructScalar") and _is_one(value.as_py())


def _matplotlib(value: object) -> bool:
    return _is_of(value, "Axes", "FigureBase") or _shows_itself(value)


def _ipython(value: Any) -> bool:
    if not _is_of(value, "Image"):
        return _shows_itself(value)
    return _bytes(value.data) if isinstance(value.data, bytes) else True


def _has_numbers(value: Any) -> bool:
    """Tell whether an array that may not be read yet has the shape and type of an image."""
    from glm4v_magic.images.arrays import has_shape_of_image

    return value.dtype.kind in "buif" and has_shape_of_image(value.shape)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _dataset(value: Any) -> bool:
    if not 0 < value.num_rows <= _MOST:
        return False
    kinds = [type(each).__name__ for each in (value.features or {}).values()]
    if "Image" in kinds:
        return kinds.count("Image") == 1
    return set(kinds) == {"Value"} and _is_one(value.with_format(None)[0])


def _dataset_column(value: Any) -> bool:
    if not 0 < len(value) <= _MOST:
        return False
    kind = type(value.source.features[value.column_name]).__name__
    return kind == "Image" or (kind == "Value" and _is_one(value[0]))


_NEVER = (int, float, list, tuple, set, type, ModuleType, FunctionType)
_ONE: Mapping[type, Callable[[Any], bool]] = {
    **dict.fromkeys((bytes, bytearray, memoryview), _bytes),
    **dict.fromkeys((io.BytesIO, io.RawIOBase, io.BufferedIOBase), _file),
    **dict.fromkeys((io.BufferedReader, io.BufferedRandom, io.FileIO), _file),
    SourcedImage: lambda _: True,
    str: _text,
}
_ONE_OF: Mapping[str, Callable[[Any], bool]] = {
    "IPython": _ipython,
    "PIL": lambda value: _is_of(value, "Image") and value.width * value.height > 0,
    "altair": lambda value: _is_of(value, "TopLevelMixin") and _is_installed("vl_convert"),
    "ipywidgets": lambda value: _is_of(value, "Image") and bool(value.value),
    "matplotlib": _matplotlib,
    "numpy": _array,
    "pandas": _pandas,
    "plotly": lambda value: _is_of(value, "BaseFigure") and _is_installed("kaleido"),
    "pyarrow": _pyarrow,
    "torch": _tensor,
    "xarray": lambda value: _is_of(value, "DataArray") and _has_numbers(value),
}
"""Library of a class -> rule for its values."""

_SEVERAL: Mapping[tuple[str, str], Callable[[Any], bool]] = {
    ("builtins", "list"): _beginning(lambda value: value),
    ("builtins", "tuple"): _beginning(lambda value: value),
    ("datasets", "Column"): _dataset_column,
    ("datasets", "Dataset"): _dataset,
    ("ipywidgets", "FileUpload"): lambda value: bool(value.value),
    ("pandas", "DataFrame"): _frame_of_pandas,
    ("pandas", "Series"): _beginning(lambda value: value),
    ("polars", "DataFrame"): _polars,
    ("polars", "Series"): _polars,
    ("pyarrow", "Array"): _arrow,
    ("pyarrow", "ChunkedArray"): _arrow,
    ("pyarrow", "RecordBatch"): _arrow,
    ("pyarrow", "Table"): _arrow,
}
"""Library and class -> rule for its values, of which a table is read as far as its first row."""
