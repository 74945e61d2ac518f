"""Rendering: plain data -> MIME bundles of text, Markdown and HTML.

Nothing here imports IPython or a model library. A function returns a `MimeBundle`; the caller
shows it. What a model says is hostile until proven otherwise: it reaches a page only through
`templates.fill`, which escapes it, or `markdown.safe_markdown`, and a terminal only through
`wording.printable`.

HTML is made from the files in ``templates/``, with one exception: `bars`, `plans.device_map` and
`plans.plan` draw a plan with the standard library alone, and escape by `bars.safe`. So a plan can
be drawn where there is nothing else, such as in Python in a browser.

By subject: `answers` (all about a question and its answer), `rows` of a map, `plans` (and dry runs
and running parts), `memory`, `doctor`, `status`, `settings`, and `progress` of loading with its
`pace`.
"""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["Html", "MimeBundle"]

MimeBundle: TypeAlias = dict[str, str]
"""One output, by MIME type. ``text/plain`` is always there: terminals show nothing else."""


class Html(str):
    """Text that is HTML already; a template prints it as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        """Return itself; libraries that escape HTML ask for this."""
        return str(self)
