"""What an option is: its name, type, range, default, meaning, and who has it.

`options` is the table of all of them; `typed_options` puts them on a command line, and
`python_options` into the methods of `Session`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4v_magic.core.errors import OptionError, did_you_mean
from glm4v_magic.core.wording import brief

__all__ = ["Option", "Who", "has_type", "option"]


def _plain(value: Any) -> Any:
    """Return a number of numpy, as loops over arrays and tables have them, as that of Python."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


@dataclass(frozen=True)
class Who:
    """Where an option can be given.

    Attributes:
        commands: commands of the notebook that take it; ``cell`` is the cell magic, ``serve`` the
            server's program.
        python: methods of `Session` that take it.
        setting: whether it is a setting, too.
        request: whether it is a field of a request to the server.
    """

    commands: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    setting: bool = False
    request: bool = False


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: in Python.
        annotation: its type, as Python spells it.
        default: its value if it is not given.
        help: what it means, in sentences.
        demand: what a value must be, in words that follow "must be".
        holds: tells whether a value of the right type is in range.
        who: where it can be given.
        metavar: placeholder of the value in help texts.
        unset: what ``None`` means; empty where nothing needs to be said.
        choices: all values there are; empty for other options.
        words: words that it takes beside values of its type.
        noun: what a choice is called in messages; the option's name if empty.
        spelled: long option on a command line, without dashes; made from `name` if empty.
        short: one-letter option; empty for most.
        alone: its value on a command line where it stands without one; ``None`` demands one.
        read: parses the text on a command line, if the type does not say how. Raises OptionError.
        example: a value as it is typed, for the reference; empty if any of its type will do.
        normal: brings a value of another form, such as a torch.dtype, into that of `annotation`,
            and returns what it does not know as it is. By default numpy's numbers become Python's.
    """

    name: str
    annotation: str
    default: Any
    help: str
    demand: str
    holds: Callable[[Any], bool]
    who: Who
    metavar: str = ""
    unset: str = ""
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    noun: str = ""
    spelled: str = ""
    short: str = ""
    alone: Any = None
    read: Callable[[str], Any] | None = None
    example: str = ""
    normal: Callable[[Any], Any] = _plain

    @property
    def type(self) -> str:
        """``int``, ``float``, ``bool``, ``str``, or another annotation without ``None``."""
        return self.annotation.removesuffix(" | None")

    @property
    def allows_none(self) -> bool:
        """Whether ``None`` says that the option is not given."""
        return self.default in (None, ())

    def check(self, value: object, label: str | None = None) -> None:
        """Raise OptionError unless `value` has the option's type and range.

        Args:
            value: value to check.
            label: name of the option in the message, if not its own.

        Raises:
            OptionError: if the value has the wrong type or is out of range.
        """
        if value is None and self.allows_none:
            return
        if self.choices:
            self._check_choice(value)
        elif not (has_type(value, self.type) and self.holds(value)):
            what = f"{label or self.name} is {brief(value)}, but must be {self.demand}."
            raise OptionError(what, option="" if label else self.name)

    def _check_choice(self, value: object) -> None:
        if not (isinstance(value, str) and value in self.choices):
            two = len(self.choices) == 2
            between = " and " if two else ", "
            hint = did_you_mean(str(value), self.choices, cutoff=0.7)
            raise OptionError(
                f"Unknown {self.noun or self.name} {brief(value)}; "
                f"there are {between.join(self.choices)}.",
                "" if two and all(each in hint for each in self.choices) else hint,
            )

    def explained(self, unless: str = "given") -> str:
        """Return the help text, with the value that counts ``unless`` the option is given."""
        return f"{self.help} {self._otherwise(unless)}".rstrip()

    def _otherwise(self, unless: str) -> str:
        usual = self.unset if self.allows_none else str(self.default)
        if self.default is False or not usual:
            return ""
        if usual not in self.choices:
            usual = usual[:1].upper() + usual[1:]
        return f"{usual} unless {unless}."


_TYPES: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
}


def has_type(value: object, wanted: str) -> bool:
    """Tell whether a value is of a type as `Option.type` spells it; a number must be finite."""
    kinds = _TYPES.get(wanted)
    if kinds is None:  # `Option.holds` knows
        return True
    if not isinstance(value, kinds) or (isinstance(value, bool) and wanted != "bool"):
        return False
    try:
        return wanted != "float" or math.isfinite(value)  # type: ignore[arg-type]  # a number
    except OverflowError:  # a whole number beyond every float
        return False


def option(
    default: Any,
    help: str,  # noqa: A002  as argparse and traitlets call it
    who: Who,
    demand: str = "",
    holds: Callable[[Any], bool] = lambda _: True,
    **rest: Any,
) -> Any:
    """Describe the option that a field of a group is.

    Args:
        default: its value if it is not given.
        help: as in `Option`, and so are the rest.
        who: where it can be given.
        demand: what a value must be.
        holds: whether a value is in range.
        rest: more attributes of `Option`.
    """
    described = {"help": help, "who": who, "demand": demand, "holds": holds, **rest}
    return field(default=default, metadata=described)
