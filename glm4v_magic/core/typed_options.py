"""Options on a command line: the table as argparse arguments, and parsed arguments as options."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.option import Option
from glm4v_magic.core.option_forms import integer_in, number_in, sizes_text
from glm4v_magic.core.option_values import is_pins, is_sizes
from glm4v_magic.core.options import OPTIONS
from glm4v_magic.core.plan import Plan

__all__ = ["argument_of", "as_typed", "flag_of", "flags_of", "read_text", "typed", "value_text"]

_ON_OFF = ("on", "off")
_READ: Mapping[str, Callable[[str], Any]] = {"int": integer_in, "float": number_in}


def flags_of(option: Option) -> tuple[str, ...]:
    """Return the flags of an option: the one-letter flag if it has one, then the long one."""
    long = option.spelled or option.name.replace("_", "-")
    return (*((f"-{option.short}",) if option.short else ()), f"--{long}")


def as_typed(name: str, value: str = "") -> str:
    """Return an option as it is typed on a command line, with its value if it has one."""
    return f"{flag_of(name)} {value}" if value else flag_of(name)


def flag_of(name: str) -> str:
    """Return the long flag of an option; any name that is not in the table as it is."""
    option = OPTIONS.get(name)
    return name if option is None else flags_of(option)[-1]


def argument_of(option: Option, unless: str = "given") -> dict[str, Any]:
    """Return an option as the keyword arguments of `argparse.ArgumentParser.add_argument`.

    The value is ``None``, or false, where the option is not given: see `typed`. A value that
    cannot be read makes ``parse_args`` raise OptionError.

    Args:
        option: option of the table.
        unless: wording of the help for when the default does not count.
    """
    known: dict[str, Any] = {
        "dest": option.name,
        "help": option.explained(unless).replace("%", "%%"),
    }
    if option.type == "bool":
        if option.allows_none:
            return {**known, "choices": _ON_OFF}
        return {**known, "action": "store_true"}
    if option.choices and not option.metavar:
        known["choices"] = option.choices
    if option.metavar:
        known["metavar"] = option.metavar
    if option.alone is not None:
        known |= {"nargs": "?", "const": option.alone}
    reader = _reader(option)
    return known if reader is None else {**known, "type": reader}


def read_text(option: Option, text: str) -> Any:
    """Return the value of an option that is written as text.

    Raises:
        OptionError: if it cannot be read; whether it is in range is not checked.
    """
    if option.type == "bool" and text in _ON_OFF:
        return text == "on"
    reader = _reader(option)
    return text if reader is None else reader(text)


def _reader(option: Option) -> Callable[[str], Any] | None:
    read = option.read or _READ.get(option.type)
    if read is None:
        return None

    # An OptionError passes argparse, which would keep only its text, and the front end words it.
    def reader(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            what = f"{option.name} is {text!r}, but must be {option.demand}."
            raise OptionError(what, option=option.name) from None
        except OptionError as error:
            if error.option != option.name:  # or it is named already
                error.what = f"{option.name}: {error.what}"
                error.option = option.name
            raise

    return reader


def value_text(option: Option, value: Any) -> str | None:
    """Return a value of an option as it is typed; ``None`` for what only a variable can hold.

    Args:
        option: option of the table.
        value: in any form that Python takes, such as a ``torch.dtype`` or accelerate's dict.

    Raises:
        OptionError: if it is not in such a form.
    """
    value = option.normal(value)
    if option.name == "pin" and is_pins(value):
        return ",".join(f"{unit}={gpu}" for unit, gpu in value)
    if option.name == "device_map":
        return _map_text(value)
    if option.name == "choices" and isinstance(value, list | tuple):
        return repr([*value])
    if isinstance(value, bool):
        return _ON_OFF[not value] if option.type == "bool" else None
    if option.name == "max_memory" and is_sizes(value):
        is_for_all = (
            isinstance(value, tuple) and len(value) == 1 and not isinstance(value[0], tuple)
        )
        return None if is_for_all else sizes_text(value)
    if isinstance(value, float):
        return sizes_text(value)
    return str(value) if isinstance(value, str | int | os.PathLike) else None


def _map_text(given: Any) -> str | None:
    """Return a plan or a device map as JSON, and a word, number or device as text."""
    if isinstance(given, Plan):
        return given.to_json()
    if isinstance(given, Mapping):
        return json.dumps({str(name): place for name, place in given.items()}, default=str)
    is_device = type(given).__module__ == "torch"
    return str(given) if is_device or isinstance(given, str | int | os.PathLike) else None


def typed(arguments: Namespace, options: Iterable[Option]) -> dict[str, Any]:
    """Return the values of those `options` that were typed, by their names in Python."""
    values = {}
    for option in options:
        value = getattr(arguments, option.name)
        if option.type == "bool" and value in _ON_OFF:
            value = value == "on"
        elif value is None or value is False:
            continue
        values[option.name] = value
    return values
