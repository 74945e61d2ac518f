"""What models write in JSON about boxes and points: see `calls.boxes`, which imports this for it.

Lenient, because it is a model that wrote it: unknown keys are ignored, a value of the wrong type
counts as missing, and items of a list that are not boxes are left out.
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field

from glm4v_magic.core.errors import FormatError
from glm4v_magic.outside import checked, json_value
from glm4v_magic.outside.lenient import OR_EMPTY, OR_NONE

__all__ = ["MarkedObject", "read_object"]

_WHAT = "An object in the answer"
_LEADING = re.compile(r"\s*([-+]?\d{1,20}(?:\.\d{1,20})?(?:e[-+]?\d{1,4})?)", re.IGNORECASE)


def _as_float(given: Any) -> Any:
    """Return infinity for an integer of more digits than a float can have."""
    try:
        return float(given) if type(given) is int else given
    except OverflowError:
        return math.inf


def _without_unit(given: Any) -> Any:
    """Return the number of a text such as ``1.5 seconds``."""
    found = _LEADING.match(given) if isinstance(given, str) else None
    return given if found is None else float(found[1])


_Number: TypeAlias = Annotated[float, Field(strict=True), BeforeValidator(_as_float)]
_Four: TypeAlias = tuple[_Number, _Number, _Number, _Number]
_Two: TypeAlias = tuple[_Number, _Number]
_Whole: TypeAlias = Annotated[Annotated[int, Field(strict=True)] | None, OR_NONE]


def _one(row: Any) -> list[Any]:
    return [row]


class MarkedObject(BaseModel):
    """An object about boxes or points.

    Attributes:
        boxes: four numbers each; ``None`` in place of an item that is not a box.
        points: two numbers each, likewise.
        label: what the model calls it: a text, or any other JSON.
        image: number of the image, from 1.
        frame: number of the frame, from 0.
        time: seconds from the beginning of the clip.
    """

    boxes: Annotated[
        Annotated[_Four, AfterValidator(_one)] | list[Annotated[_Four | None, OR_NONE]],
        Field(union_mode="left_to_right", validation_alias=AliasChoices("bbox_2d", "bbox")),
        OR_EMPTY,
    ] = []
    points: Annotated[
        Annotated[_Two, AfterValidator(_one)] | list[Annotated[_Two | None, OR_NONE]],
        Field(union_mode="left_to_right", validation_alias=AliasChoices("point_2d", "point")),
        OR_EMPTY,
    ] = []
    label: Annotated[Any, Field(validation_alias=AliasChoices("label", "name"))] = ""
    image: _Whole = None
    frame: _Whole = None
    time: Annotated[
        Annotated[_Number, BeforeValidator(_without_unit)] | None,
        Field(validation_alias=AliasChoices("time", "timestamp", "second", "seconds")),
        OR_NONE,
    ] = None

    @property
    def marks(self) -> list[tuple[float, ...]]:
        """The numbers of all boxes, then of all points."""
        return [each for each in (*self.boxes, *self.points) if each is not None]

    @property
    def name(self) -> str:
        """The label as a text."""
        if self.label is None:
            return ""
        return self.label if isinstance(self.label, str) else json.dumps(self.label)


def read_object(text: str) -> MarkedObject | None:
    """Return the object that a text is; ``None`` if it is not JSON."""
    try:
        return checked(MarkedObject, json_value(text, _WHAT, FormatError), _WHAT, FormatError)
    except FormatError:
        return None
