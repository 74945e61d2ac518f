"""The one place where data becomes HTML: Jinja2 templates that escape every value.

A value that a template prints loses its control characters and is escaped, wherever it came from;
only `Html`, which is HTML already, passes unchanged. A name that a template misspells is an error.

The templates are in the folder beside this module. Their line breaks and indentation are for
readers of the source and reach no page: Markdown ends HTML at a blank line, and in <pre> all of
them would show.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.render import Html, breaking, scrolling
from glm4v_magic.notebook.render.markdown import in_attribute, literal

if TYPE_CHECKING:
    import jinja2

__all__ = ["Value", "View", "fill"]


class View(Protocol):
    """Any dataclass; a template uses its fields by name."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Value: TypeAlias = "str | int | float | View | Sequence[Value] | None"
"""A value for a template. A dict is not one, because nothing would check its keys."""


def fill(name: str, /, **values: Value) -> Html:
    """Return the template ``name.html`` filled with `values`."""
    return Html(_environment().get_template(f"{name}.html").render(values))


@cache
def _environment() -> jinja2.Environment:
    # Not above: Jinja2 takes 30 ms to import, and loading the extension shows nothing.
    import jinja2
    import jinja2.ext

    class OneLine(jinja2.ext.Extension):
        def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
            return re.sub(r"[ \t]*\n[ \t]*", "", source)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("glm4v_magic.notebook.render", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_without_controls,
        extensions=[OneLine],
        auto_reload=False,
    )
    environment.filters["breaking"] = breaking
    environment.filters["breaking_literal"] = lambda text: breaking(text, literal)
    environment.filters["literal"] = lambda text: Html(literal(text))
    environment.filters["attribute"] = lambda text: Html(in_attribute(text))
    environment.globals["scrolling"] = lambda label, caller: scrolling(label, Html(caller()))
    return environment


def _without_controls(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
