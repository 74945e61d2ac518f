"""Tables that a model writes as HTML, made safe for any page.

Models that read documents answer with ``<table>``, since Markdown has no merged cells. Only the
tags of a table are read as tags, and only their attributes ``colspan`` and ``rowspan``; and
within a line of a cell pairs of ``<b>``, ``<i>``, ``<sup>`` and ``<sub>``. Everything else is text,
so the result holds no tag that was not written here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from glm4v_magic.notebook.render import Html, joined, scrolling

__all__ = ["begins_table", "safe_table"]

_TAGS = "table|caption|colgroup|col|thead|tbody|tfoot|tr|th|td|br"
_TAG = re.compile(rf"<(?P<end>/?)(?P<name>{_TAGS})(?P<attributes>(?:\s[^<>]*)?)/?>", re.IGNORECASE)
_BEGINNING = re.compile(
    rf"[ ]{{0,3}}<table(?:\s[^<>]{{0,1000}})?>\s{{0,99}}(?:<(?:{_TAGS})[\s/>]|\Z)", re.IGNORECASE
)
_SPAN = re.compile(r"\b(?P<name>colspan|rowspan)\s*=\s*[\"']?(?P<count>[0-9]{1,3})\b", re.I)
_LARGEST_SPAN = 100

_TABLE = Html("<table>{}<tbody>{}</tbody></table>")
_CAPTION, _ROW = Html("<caption>{}</caption>"), Html("<tr>{}</tr>")
_CELLS = {"td": Html("<td{}>{}</td>"), "th": Html("<th{}>{}</th>")}
_SPANS = {"colspan": Html(' colspan="{}"'), "rowspan": Html(' rowspan="{}"')}
_BREAK = Html("<br>")
_STYLES = {
    "b": Html("<b>{}</b>"),
    "i": Html("<i>{}</i>"),
    "sup": Html("<sup>{}</sup>"),
    "sub": Html("<sub>{}</sub>"),
}
_STYLE = re.compile(
    rf"<(?P<name>{'|'.join(_STYLES)})>(?P<text>[^<>]{{1,1000}})</(?P=name)>", re.IGNORECASE
)
_MARK = "\ue000"  # of a range for private use; in a line it stands around what is in a style


def begins_table(text: str, at: int) -> bool:
    """Tell whether a table begins at a line of `text` that begins at `at`."""
    return _BEGINNING.match(text, at) is not None


def safe_table(text: str, at: int, cell: Callable[[str], Html]) -> tuple[Html, int]:
    """Return the table that begins at `at` as one line, and where it ends in `text`.

    One that has not ended yet is closed.

    Args:
        text: what the model wrote.
        at: place at which `begins_table`.
        cell: makes HTML of the text of a cell, which is passed to it without tags and references.
    """
    table = _Table(cell)
    for tag in _TAG.finditer(text, at):
        table.add_text(text[at : tag.start()])
        at = tag.end()
        table.add_tag(tag)
        if not table.depth:
            return table.html(), at
    table.add_text(text[at:])
    return table.html(), len(text)


@dataclass
class _Table:
    """A table that is being read."""

    cell: Callable[[str], Html]
    depth: int = 0
    captions: list[Html] = field(default_factory=list)
    rows: list[list[Html]] = field(default_factory=list)
    _name: str = ""  # of the open cell
    _spans: Html = Html()  # noqa: RUF009  no one changes it
    _lines: list[str] = field(default_factory=list)  # of its text

    def add_text(self, text: str) -> None:
        """Add text; outside of cells it becomes a cell of its own."""
        text = _marked(text)
        if not self._name:
            if not text.strip():
                return
            self._open("td", "")
        self._lines[-1] += text

    def add_tag(self, tag: re.Match[str]) -> None:
        """Add a tag; the tags of a nested table are text."""
        name, is_end = tag["name"].lower(), bool(tag["end"])
        if name == "table":
            if self.depth and not (is_end and self.depth == 1):
                self.add_text(tag[0])
            self.depth += -1 if is_end else 1
        elif self.depth > 1:
            self.add_text(tag[0])
        elif name == "br":
            if self._name:
                self._lines.append("")
        elif name in ("td", "th", "caption"):
            self._close()
            if not is_end:
                self._open(name, tag["attributes"])
        else:
            self._close()
            if name == "tr" and not is_end:
                self.rows.append([])

    def _open(self, name: str, attributes: str) -> None:
        self._name, self._lines = name, [""]
        found = {span["name"].lower(): int(span["count"]) for span in _SPAN.finditer(attributes)}
        self._spans = joined(
            _SPANS[each].fill(min(max(count, 1), _LARGEST_SPAN))
            for each, count in sorted(found.items())
        )

    def _close(self) -> None:
        if not self._name:
            return
        inner = joined(map(self._line, self._lines), _BREAK)
        if self._name == "caption":
            self.captions.append(inner)
        else:
            if not self.rows:
                self.rows.append([])
            self.rows[-1].append(_CELLS[self._name].fill(self._spans, inner))
        self._name = ""

    def _line(self, line: str) -> Html:
        first, *styled = " ".join(line.split()).split(_MARK)
        made = [self.cell(first)]
        for name, text, rest in zip(styled[::3], styled[1::3], styled[2::3], strict=True):
            made += [_STYLES[name].fill(self.cell(text)), self.cell(rest)]
        return joined(made)

    def html(self) -> Html:
        """Return what was read, as a whole table."""
        self._close()
        caption = _CAPTION.fill(joined(self.captions, _BREAK)) if self.captions else ""
        rows = joined(_ROW.fill(joined(row)) for row in self.rows if row)
        return scrolling("table", _TABLE.fill(caption, rows))


def _marked(text: str) -> str:
    """Return text with references decoded, and styles as mark, name, mark, styled text, mark."""
    parts, at = [], 0
    for found in _STYLE.finditer(text):
        parts += [_plain(text[at : found.start()]), _MARK, found["name"].lower(), _MARK]
        parts += [_plain(found["text"]), _MARK]
        at = found.end()
    return "".join([*parts, _plain(text[at:])])


def _plain(text: str) -> str:
    return html.unescape(text).replace(_MARK, "")
