"""Options of Python: keyword arguments of a method, checked, and described in its docstring."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from glm4v_magic.core.errors import OptionError, did_you_mean
from glm4v_magic.core.option import Option
from glm4v_magic.core.options import OPTIONS, of_python

__all__ = ["accepts"]

Function = TypeVar("Function", bound=Callable[..., Any])


def accepts(method: str) -> Callable[[Function], Function]:
    """Give a Python method its options from the table.

    The method takes them as ``**options``; it sees only those that were given, checked. Its
    signature and its docstring show all of them: the latter in place of a line ``options:`` under
    ``Args:``.

    Args:
        method: name in `Who.python`.
    """
    mine = of_python(method)
    known = {each.name: each for each in mine}

    def decorate(function: Function) -> Function:
        written = inspect.signature(function)
        *rest, last = written.parameters.values()
        assert last.kind is inspect.Parameter.VAR_KEYWORD
        own = {each.name for each in rest}

        @functools.wraps(function)
        def checked(*arguments: Any, **named: Any) -> Any:
            for name, value in named.items():
                if name in known:
                    named[name] = known[name].normal(value)
                    known[name].check(named[name])
                elif name not in own:
                    raise OptionError(
                        f"{function.__name__} has no option {name!r}.",
                        _elsewhere(name)
                        or did_you_mean(name, (*known, *own))
                        or f"There are {', '.join(known)}.",
                    )
            return function(*arguments, **named)

        shown = [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=each.default,
                annotation=each.annotation,
            )
            for each in mine
        ]
        checked.__signature__ = written.replace(parameters=[*rest, *shown])  # type: ignore[attr-defined]
        checked.__doc__ = _with_options(function.__doc__ or "", mine)
        return checked  # type: ignore[return-value]  # as before, to a caller

    return decorate


def _elsewhere(name: str) -> str:
    """Name the methods that have an option; empty if there are none."""
    methods = OPTIONS[name].who.python if name in OPTIONS else ()
    return f"It is one of {', '.join(methods)}." if methods else ""


_OPTIONS_LINE = re.compile(r"^( *)options:.*\n(?:\1 +.*\n)*", re.MULTILINE)


def _with_options(docstring: str, options: Sequence[Option]) -> str:
    """Put a line for each option in place of that of ``options``."""

    def lines(found: re.Match[str]) -> str:
        indent = found[1]
        return "".join(
            textwrap.fill(
                f"{each.name}: {each.explained()}",
                width=100,
                initial_indent=indent,
                subsequent_indent=f"{indent}    ",
                break_on_hyphens=False,
            )
            + "\n"
            for each in options
        )

    return _OPTIONS_LINE.sub(lines, docstring)
