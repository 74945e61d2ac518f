"""Boxes and points of an answer: drawn on their images, with a table below.

Pages drop SVG in the HTML of notebooks that are not trusted. So each figure is one ``<img>`` of an
SVG that holds the image, the boxes and their names, and in which nothing can run. Lines are white
between black ones and every box has a number, so that nothing depends on colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width
from urllib.parse import quote

from glm4v_magic.calls.boxes_text import MarkLine, image_of, line_of, mark_lines, marks_counted
from glm4v_magic.core.boxes import Box, Mark
from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.render import Html
from glm4v_magic.notebook.render.answers.image import data_uri
from glm4v_magic.notebook.render.templates import fill

__all__ = ["boxes_html", "boxes_text", "svg_uri"]

_SIDE = 560  # longest side of an image in pixels
_FIGURES = 12
_ROWS = 200
_LINES = 40  # boxes as plain text
_LONGEST = 100  # characters of a name on an image
_LEAST = 4  # characters of a name on an image, however small that is
_FONT = 13
_EDGE = 2.0  # pixels between the middle of a line and the edge of a figure


@dataclass(frozen=True, slots=True)
class _Figure:
    """An image with boxes: its URI, what it is called, and its width in pixels."""

    uri: str
    name: str
    width: int


@dataclass(frozen=True, slots=True)
class _Shape:
    """A box or a point in pixels of the figure, with its name.

    Attributes:
        x: left edge.
        y: upper edge.
        width: width.
        height: height.
        is_point: whether it is a point, at `x` and `y`.
        name: number and label.
        text_x: where the name begins.
        text_y: base line of the name.
    """

    x: float
    y: float
    width: float
    height: float
    is_point: bool
    name: str
    text_x: float
    text_y: float


def boxes_html(answer: Answer) -> Html:
    """Return images with boxes and points and a folded table of them, as HTML within Markdown."""
    lines = mark_lines(answer.marks, answer.images, answer.videos)
    return fill(
        "boxes",
        figures=list(_figures(answer, lines)),
        line=marks_counted(answer.marks),
        rows=lines[:_ROWS],
        with_images=any(line.image for line in lines),
        more=_more(len(lines), _ROWS),
    )


def boxes_text(answer: Answer) -> str:
    """Return a line for each box and point."""
    lines = mark_lines(answer.marks, answer.images, answer.videos)
    more = _more(len(lines), _LINES)
    return "\n".join([*map(line_of, lines[:_LINES]), *([more] if more else [])])


def _more(count: int, most: int) -> str:
    return f"and {count - most:,} more" if count > most else ""


def _figures(answer: Answer, lines: Sequence[MarkLine]) -> Iterator[_Figure]:
    marks = list(zip(answer.marks, lines, strict=True))
    places = sorted({_place(each) for each, _ in marks})
    for place in places[:_FIGURES]:
        on_it = [(each, line) for each, line in marks if _place(each) == place][:_ROWS]
        yield _figure(image_of(on_it[0][0], answer.images, answer.videos), on_it)


def _place(mark: Mark) -> tuple[int, int]:
    """Return what tells the images and frames that boxes are on: images first, then frames."""
    return (0, mark.image) if mark.frame is None else (1, mark.frame)


def _figure(image: SourcedImage, marks: Sequence[tuple[Mark, MarkLine]]) -> _Figure:
    small = image.image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    size = small.size
    across, down = size[0] / image.original_size[0], size[1] / image.original_size[1]
    svg = fill(
        "boxes_svg",
        width=size[0],
        height=size[1],
        uri=data_uri(small),
        shapes=[_shape(each, _name(line), size, (across, down)) for each, line in marks],
        font=_FONT,
    )
    names = "; ".join(_name(line)[:_LONGEST] for _, line in marks)
    return _Figure(svg_uri(svg), f"{printable(image.source)} with {names}", size[0])


def _shape(mark: Mark, name: str, size: tuple[int, int], scale: tuple[float, float]) -> _Shape:
    across, down = scale
    if isinstance(mark, Box):
        # Kept within the figure, so that its edges show.
        x, y = max(mark.x0 * across, _EDGE), max(mark.y0 * down, _EDGE)
        width = max(min(mark.x1 * across, size[0] - _EDGE) - x, 0.0)
        height = max(min(mark.y1 * down, size[1] - _EDGE) - y, 0.0)
    else:
        x, y, width, height = mark.x * across, mark.y * down, 0.0, 0.0
    name = _fitting(name, size[0] - 4)
    # Within the image, and below the upper edge of a box that touches that of the image.
    text_x = max(2.0, min(x + 2, size[0] - _length(name) - 2))
    text_y = y - 6 if y > _FONT + 8 else min(y + _FONT + 5, size[1] - 4)
    return _Shape(
        x=round(x, 1),
        y=round(y, 1),
        width=round(width, 1),
        height=round(height, 1),
        is_point=not isinstance(mark, Box),
        name=name,
        text_x=round(text_x, 1),
        text_y=round(text_y, 1),
    )


def _name(line: MarkLine) -> str:
    """Return number and label, without characters that XML does not allow."""
    return re.sub("[\ud800-\udfff\ufffe\uffff]", "\ufffd", line.name)


def _fitting(name: str, width: float) -> str:
    """Return a name shortened to `width` pixels, but to no less than its first characters."""
    if len(name) <= _LONGEST and _length(name) <= width:
        return name
    name = name[:_LONGEST]
    at = next(n for n in range(len(name), -1, -1) if _length(name[:n]) <= width - 2 * _FONT)
    return f"{name[: max(at, _LEAST)]}..."


def _length(name: str) -> float:
    """Return the approximate length of a name in pixels; the font is the page's."""
    wide = sum(east_asian_width(each) in "WF" for each in name)
    return _FONT * (wide + 0.65 * (len(name) - wide))


def svg_uri(svg: str) -> str:
    """Return an SVG as a URI in which Markdown interprets no character."""
    quoted = quote(svg, safe="+/=,:;").replace("_", "%5F").replace("~", "%7E")
    return f"data:image/svg+xml,{quoted}"
