"""Rendering: plain data -> MIME bundles of text, Markdown and HTML.

Nothing here imports IPython or a model library. A function returns a `MimeBundle`; the caller
shows it. What a model says is hostile until proven otherwise: it reaches a page only through
`templates.fill`, which escapes it, or `markdown.safe_markdown`, and a terminal only through
`wording.printable`.

A tag stands in a file of ``templates/``, or in the constant text of an `Html`, whose `Html.fill`
escapes as a template does: `bars` and `plans` draw a plan with the standard library alone, so that
it can be drawn where there is nothing else, such as in Python in a browser; and the sanitisers make
Markdown, which no template can. Nothing else writes a tag, and a test reads the sources for it.

By subject: `answers` (all about a question and its answer), `rows` of a map, `plans` (and dry runs
and running parts), `memory`, `doctor`, `status`, `settings`, and `progress` of loading with its
`pace`.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

from glm4v_magic.core.wording import printable

__all__ = ["Html", "MimeBundle", "joined"]

MimeBundle: TypeAlias = dict[str, str]
"""One output, by MIME type. ``text/plain`` is always there: terminals show nothing else."""


class Html(str):
    """Text that is HTML already; a template prints it as it is.

    It is made from constant text, by a template, or by a function that escapes all it is given.
    """

    __slots__ = ()

    def __html__(self) -> str:
        """Return itself; libraries that escape HTML ask for this."""
        return str(self)

    def fill(self, *values: str | float) -> Html:
        """Return it with values in place of each ``{}``, escaped and without control characters."""
        return Html(self.format(*map(_escaped, values)))


def joined(pieces: Iterable[str], between: Html = Html()) -> Html:  # noqa: B008  no one changes it
    """Return pieces in a row; those that are not HTML are escaped."""
    return Html(between.join(map(str, map(_escaped, pieces))))


def _escaped(value: str | float) -> str | float:
    if isinstance(value, str) and not isinstance(value, Html):
        return escape(printable(value))
    return value
