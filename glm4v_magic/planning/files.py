"""Plans and device maps in JSON files. A plan is written and read back; a map is only read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.placement import DeviceMap, GivenMap
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import PYTHON, Remark, worded
from glm4v_magic.outside import FileKind, checked, json_object, text_of
from glm4v_magic.planning.device_map import EXAMPLE

__all__ = ["plan_from_json", "plan_to_json", "read_given"]

_PLAN = FileKind("glm4v_magic.plan", 1, "a plan")


def plan_to_json(plan: Plan) -> str:
    """Write a plan as JSON that `plan_from_json` reads."""
    return json.dumps({**_PLAN.head(), **asdict(plan)}, indent=2)


def plan_from_json(text: str, what: str = "The plan") -> Plan:
    """Read a plan that `plan_to_json` wrote.

    Args:
        text: the JSON.
        what: what it is called in messages.

    Raises:
        DeviceMapError: if `text` is not a plan that `plan_to_json` wrote.
    """
    content = _PLAN.content(text, what, DeviceMapError)
    plan = checked(Plan, content, what, DeviceMapError)
    if not plan.stages:
        raise DeviceMapError(f"{what} has no stages.")
    if plan.workload.context is None or plan.workload.dtype is None:
        raise DeviceMapError(f"{what} names no context or no dtype in its workload.")
    for number, note in enumerate(plan.notes):
        if not _is_worded(note):
            raise DeviceMapError(f"{what} has an unknown note or values for 'notes[{number}]'.")
    return plan


def _is_worded(note: Remark) -> bool:
    """Tell whether there are words for a note, and its values fit them."""
    if not all(isinstance(value, str | int) for value in note.values.values()):
        return False
    try:
        return bool(worded(note, PYTHON))
    except (LookupError, ValueError):  # a value is missing, or not of the kind to format
        return False


def read_given(given: GivenMap) -> Plan | DeviceMap:
    """Return the plan or the device map that is given, itself or as a JSON file.

    Whether a map suits a model is up to `planning.device_map.check`.

    Raises:
        DeviceMapError: if the file cannot be read, is not valid JSON, is not an object, names a
            module twice, or is a plan that `plan_from_json` refuses; or if the map is not one of
            `planning.given_map`.
    """
    if isinstance(given, Plan):
        return given
    # Not above: planning without files does not need pydantic.
    from glm4v_magic.planning.given_map import device_map_of

    if isinstance(given, Mapping):
        return device_map_of(given)
    path = Path(os.path.expanduser(given))  # noqa: PTH111  Path's own fails on ~nobody
    what = f"The device map {path}"
    text = text_of(path, what, DeviceMapError, EXAMPLE)
    content = json_object(text, what, DeviceMapError, EXAMPLE, unique=True)
    if "format" in content:
        return plan_from_json(text, f"The plan {path}")
    return device_map_of(content, what)
