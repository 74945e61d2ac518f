"""Plain data in, something to look at out: MIME bundles of text, Markdown and HTML.

Nothing here imports IPython or a model library. A function returns a `MimeBundle`; the caller
shows it. What a model says is hostile until proven otherwise: it reaches a page only through
`markdown.safe_markdown`, and a terminal only through `text.printable`.
"""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["MimeBundle"]

MimeBundle: TypeAlias = dict[str, str]
"""One output, by MIME type. ``text/plain`` is always there: terminals show nothing else."""
