"""`Labelled`, an array whose axes have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from glm4v_magic.core.errors import OptionError

__all__ = ["Labelled"]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """An array with named axes.

    Attributes:
        values: the array.
        dims: name of each axis.
        coords: labels along axes, by the axis's name; an axis without any is counted from 0.
        name: name of what the values are, such as ``attention``.
    """

    values: np.ndarray[Any, Any]
    dims: tuple[str, ...]
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    name: str = "value"

    def __post_init__(self) -> None:
        assert len(self.dims) == self.values.ndim
        for dim, labels in self.coords.items():
            assert len(labels) == self.values.shape[self.dims.index(dim)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is None:  # which NumPy 1 knows no name for
            return np.asarray(self.values, dtype=dtype)
        return np.array(self.values, dtype=dtype, copy=copy)

    @property
    def shape(self) -> Mapping[str, int]:
        """Size of each axis by its name."""
        return dict(zip(self.dims, self.values.shape, strict=True))

    def mean(self, dim: str) -> Labelled:
        """Return the mean along an axis, which is then gone.

        Raises:
            OptionError: if there is no such axis.
        """
        if dim not in self.dims:
            raise OptionError(f"There is no axis {dim!r}; there are {', '.join(self.dims)}.")
        rest = tuple(each for each in self.dims if each != dim)
        kept = {key: labels for key, labels in self.coords.items() if key != dim}
        return Labelled(self.values.mean(axis=self.dims.index(dim)), rest, kept, self.name)

    def labels(self, dim: str) -> Sequence[Any]:
        """Return the labels along an axis."""
        return self.coords.get(dim, range(self.shape[dim]))

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame: a row for each value, a column for each axis and the value."""
        import pandas as pd

        places = np.indices(self.values.shape).reshape(self.values.ndim, -1)
        columns: dict[str, Any] = {}
        for dim, at in zip(self.dims, places, strict=True):
            labels = self.labels(dim)
            columns[dim] = [labels[each] for each in at]
        return pd.DataFrame({**columns, self.name: self.values.ravel()})

    def to_xarray(self) -> Any:
        """Return an xarray DataArray.

        Raises:
            OptionError: if xarray is not installed.
        """
        try:
            import xarray
        except ImportError:
            raise OptionError(
                "xarray is not installed.", 'Install it with pip install "glm4v_magic[xarray]".'
            ) from None
        coords = {dim: list(labels) for dim, labels in self.coords.items()}
        return xarray.DataArray(self.values, dims=self.dims, coords=coords, name=self.name)
