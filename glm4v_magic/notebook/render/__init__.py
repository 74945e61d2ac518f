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

import re
from collections.abc import Callable, Iterable
from html import escape
from typing import TypeAlias

from glm4v_magic.core.wording import printable

__all__ = ["Html", "MimeBundle", "breaking", "joined", "scrolling"]

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


def scrolling(label: str, content: Html) -> Html:
    """Return `content`, such as a table, in a part of the page that scrolls where it is too wide.

    The keyboard reaches it, also in a notebook that is not trusted: JupyterLab drops ``tabindex``
    there, except from a link, which may have no address, and hold a table. It asks for no width of
    its own, or what holds a widget would be as wide as the table, and cut. Markdown reads a line as
    HTML that begins with <div>.

    Args:
        label: what it is, for a screen reader.
        content: what may be wide; no link.
    """
    return _SCROLLING.fill(label, content)


def breaking(text: str, escaped: Callable[[str], str] = escape) -> Html:
    """Return text as HTML in which lines may end within long names and paths; none is copied.

    JupyterLab drops ``overflow-wrap:anywhere`` from notebooks that are not trusted, and any other
    way lets a table be as wide as its longest word.

    Args:
        text: the text.
        escaped: makes HTML of each of its parts.
    """
    if isinstance(text, Html):
        return text
    parts, at, text = [], 0, printable(text)
    for word in _LONG_WORD.finditer(text):
        parts.append(escaped(text[at : word.start()]))
        parts.append(_MAY_END.join(map(escaped, _PARTS.findall(word[0]))))
        at = word.end()
    return Html("".join([*parts, escaped(text[at:])]))


_SCROLLING = Html(
    '<div><a tabindex="0" role="region" aria-label="{}" style="display:block;overflow-x:auto;'
    'width:0;min-width:100%;color:inherit;text-decoration:none">{}</a></div>'
)
_MAY_END = Html("<wbr>")
# Only of ASCII: nothing parts a letter from its marks, and Chinese has ends of lines everywhere.
_LONG_WORD = re.compile(r"[!-~]{17,}")
_PARTS = re.compile(r"[0-9A-Za-z]{1,16}[^0-9A-Za-z]{0,4}|[^0-9A-Za-z]{1,8}")


def _escaped(value: str | float) -> str | float:
    if isinstance(value, str) and not isinstance(value, Html):
        return escape(printable(value))
    return value
