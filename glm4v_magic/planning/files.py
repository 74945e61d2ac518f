"""Plans and device maps read from JSON files; `Plan.save` writes a plan."""

from __future__ import annotations

import ast
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm4v_magic.core.errors import DeviceMapError, OptionError
from glm4v_magic.core.option_values import python_literal
from glm4v_magic.core.options import check
from glm4v_magic.core.placement import DeviceMap, GivenMap
from glm4v_magic.core.plan import PLAN_FORMAT, PLAN_VERSION, Plan
from glm4v_magic.core.remarks import PYTHON, Remark, worded
from glm4v_magic.core.wording import printable
from glm4v_magic.outside import FileKind, checked, json_object, text_of
from glm4v_magic.planning.device_map import EXAMPLE

__all__ = ["PLANNED", "plan_from_json", "read_given"]

PLANNED = ("plan", "auto", "balanced")
"""Device maps that leave it to a plan; ``auto`` and ``balanced`` are transformers' words for it."""

_AGAIN = "Make a new plan."
_PLAN = FileKind(PLAN_FORMAT, PLAN_VERSION, "a plan", _AGAIN, _AGAIN)


def plan_from_json(text: str, what: str = "The plan") -> Plan:
    """Read a plan that `Plan.to_json` wrote.

    Args:
        text: the JSON.
        what: what it is called in messages.

    Raises:
        DeviceMapError: if `text` is not a plan that `Plan.to_json` wrote.
    """
    content = _PLAN.content(text, what, DeviceMapError)
    plan = checked(Plan, content, what, DeviceMapError, _AGAIN)
    try:
        check("objective", plan.objective)
    except OptionError as error:
        raise DeviceMapError(f"{what} is wrong: {error.what}", _AGAIN) from None
    if not plan.stages:
        raise DeviceMapError(f"{what} has no stages.", _AGAIN)
    if plan.workload.context is None or plan.workload.dtype is None:
        raise DeviceMapError(f"{what} names no context or no dtype in its workload.", _AGAIN)
    for what_is, named in (
        ("unit", [unit for stage in plan.stages for unit in stage.units]),
        ("device", [stage.device for stage in plan.stages]),
    ):
        for name, count in Counter(named).items():
            if count > 1:
                raise DeviceMapError(
                    f"{what} names the {what_is} {printable(name)!r} twice.", _AGAIN
                )
    for number, note in enumerate(plan.notes):
        if not _is_worded(note):
            raise DeviceMapError(
                f"{what} has an unknown note or values for 'notes[{number}]'.", _AGAIN
            )
    return plan


def _is_worded(note: Remark) -> bool:
    """Tell whether there are words for a note, and its values fit them."""
    if not all(isinstance(value, str | int) for value in note.values.values()):
        return False
    try:
        return bool(worded(note, PYTHON))
    except (LookupError, ValueError):  # a value is missing, or not of the kind to format
        return False


def read_given(given: GivenMap) -> Plan | DeviceMap | None:
    """Return the plan or the device map that is given, itself, as JSON or as a file of it.

    ``None`` for one of `PLANNED`.

    Whether a map suits a model is up to `planning.device_map.check`.

    Raises:
        DeviceMapError: if the file cannot be read, is not valid JSON, is not an object, names a
            module twice, or is a plan that `plan_from_json` refuses; or if the map is not one of
            `planning.given_map`.
    """
    _refuse_ways_of_others(given)
    if isinstance(given, str) and given in PLANNED:
        return None
    if isinstance(given, Plan):
        return given
    # Not above: planning without files does not need pydantic.
    from glm4v_magic.planning.given_map import device_map_of, whole

    if isinstance(given, Mapping):
        if "format" in given:
            return _plan_of(given)
        return device_map_of(given)
    if isinstance(given, str) and given.lstrip().startswith("{"):
        content = _object_in(given)
        return _plan_of(content) if "format" in content else device_map_of(content)
    everything = whole(given)
    if everything is not None:
        return everything
    assert isinstance(given, str | os.PathLike)  # or `whole` would have taken or refused it
    if not os.fspath(given):
        raise DeviceMapError("The name of the device map is empty.", EXAMPLE)
    path = Path(os.path.expanduser(given))  # noqa: PTH111  Path's own fails on ~nobody
    shown = printable(str(path)).replace("\n", " ")
    what = f"The device map {shown}"
    text = text_of(path, what, DeviceMapError, EXAMPLE)
    content = json_object(text, what, DeviceMapError, EXAMPLE, unique=True)
    if "format" in content:
        return plan_from_json(text, f"The plan {shown}")
    return device_map_of(content, what)


def _refuse_ways_of_others(given: GivenMap) -> None:
    """Raise DeviceMapError for words by which transformers fills GPUs, and plans here do not."""
    if not isinstance(given, str):
        return
    what = f"{given!r} is a way of transformers to fill GPUs, which is not followed here."
    if given == "sequential":
        raise DeviceMapError(what, code="fill_in_order")
    if given == "balanced_low_0":
        raise DeviceMapError(what, code="less_on_the_first")


def _object_in(text: str) -> dict[str, Any]:
    """Parse a map or plan in JSON, or in a dict as Python shows it."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        held = python_literal(text)
        if isinstance(held, dict):
            _refuse_twice(text)
            return held
    return json_object(text, "The device map", DeviceMapError, EXAMPLE, unique=True)


def _refuse_twice(text: str) -> None:
    """Raise DeviceMapError if a dict that is written in Python has a key twice."""
    shown = ast.parse(text.strip(), mode="eval").body
    keys = [ast.unparse(key) for key in getattr(shown, "keys", ()) if key is not None]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DeviceMapError(f"The device map names {twice[0]} twice.", EXAMPLE)


def _plan_of(content: Mapping[str, object]) -> Plan:
    """Read a plan whose JSON somebody has parsed."""
    try:
        text = json.dumps(dict(content))
    except (TypeError, ValueError, RecursionError):
        raise DeviceMapError("The plan is not what a JSON file of a plan holds.", _AGAIN) from None
    return plan_from_json(text)
