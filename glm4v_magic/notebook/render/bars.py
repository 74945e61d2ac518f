"""Bars that show what fills a GPU, to one scale, on light and dark pages, with and without colour.

Every kind of content has a colour and a pattern, so that a bar reads the same in black and white.
Colours are translucent, and text keeps the page's own colour. JupyterLab
drops gradients, outlines and variables of themes from notebooks that are not trusted: colours and
frames are plain, and patterns lie on top of them.

A plan is drawn with the standard library alone, so its HTML comes from no template but from
`Html.fill`, which escapes as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from glm4v_magic.notebook.render import Html, breaking, joined, scrolling

__all__ = [
    "MUTED",
    "OUTLINE",
    "SHORT",
    "STYLE",
    "Segment",
    "axis",
    "bar",
    "enlarged",
    "legend",
    "lit",
    "mark",
    "table",
    "text_bar",
]

OUTLINE = "rgba(128, 128, 128, 0.6)"
MUTED = "var(--jp-ui-font-color2, GrayText)"
SHORT = "rgba(234, 67, 53, 0.9)"

_LEAST = 3  # pixels of a segment
_INK = "rgba(128, 128, 128, 0.55)"


def _lines(angle: int, gap: int) -> str:
    return f"repeating-linear-gradient({angle}deg,{_INK} 0 1px,transparent 1px {gap}px)"


_DOTS = f"radial-gradient({_INK} 25%,transparent 26%);background-size:5px 5px"
_SPARSE = f"radial-gradient({_INK} 18%,transparent 20%);background-size:9px 9px"

# Kind -> colour, pattern, letter in text.
_KINDS = {
    "vision": ("rgba(171, 71, 188, 0.55)", _lines(45, 6), "V"),
    "embedding": ("rgba(0, 172, 193, 0.55)", _lines(90, 4), "E"),
    "layers": ("rgba(66, 133, 244, 0.6)", "", "L"),
    "head": ("rgba(63, 81, 181, 0.6)", _lines(0, 4), "H"),
    "weights": ("rgba(66, 133, 244, 0.6)", "", "W"),
    "kernel": ("rgba(251, 188, 4, 0.6)", _lines(135, 5), "K"),
    "cache": ("rgba(52, 168, 83, 0.6)", _DOTS, "C"),
    "room": ("rgba(52, 168, 83, 0.3)", _SPARSE, "c"),
    "activations": ("rgba(251, 188, 4, 0.6)", _lines(135, 5), "A"),
    "overhead": ("rgba(128, 128, 128, 0.45)", _lines(0, 7), "o"),
    "others": ("rgba(128, 128, 128, 0.6)", f"{_lines(45, 4)},{_lines(135, 4)}", "x"),
    "reserve": ("transparent", _lines(45, 10), "r"),
    "free": ("transparent", "", "."),
}

# A title is shown to the mouse only; the keyboard gets those of all segments below the focused bar.
STYLE = Html(
    "<style>.glm4v-segment{position:relative}"
    ".glm4v-bar:focus-visible{outline:2px solid var(--jp-brand-color1,Highlight);"
    "outline-offset:1px}"
    ".glm4v-bar:focus-visible::after{content:attr(data-parts);position:absolute;left:0;top:100%;"
    "z-index:9;white-space:pre-wrap;width:max-content;max-width:30em;padding:2px 6px;"
    "background:var(--jp-layout-color2,Canvas);color:var(--jp-ui-font-color1,CanvasText);"
    "border:1px solid currentColor}</style>"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a bar.

    Attributes:
        kind: kind of content, one of the names above.
        size: length, in the unit of the whole bar.
        label: text in the segment, if there is room.
        detail: tooltip, for mouse and keyboard.
        marked: whether it has a dashed frame.
        place: name by which `mark` finds it on the page.
    """

    kind: str
    size: int
    label: str
    detail: str
    marked: bool = False
    place: str = ""

    @property
    def letter(self) -> str:
        """Letter of its kind in a bar of text."""
        return _KINDS[self.kind][2]


_BAR = Html(
    '<div class="glm4v-bar" role="group"{} aria-label="{}" style="display:flex;height:1.7em;'
    "width:{:.2f}%;min-width:2em;box-sizing:border-box;border:1px solid {};font-size:0.85em;"
    'position:relative;line-height:1.7em">{}{}</div>'
)
_STOP = Html(' tabindex="0" data-parts="{}"')
_END = Html(
    '<span title="the GPU ends here" style="position:absolute;left:100%;top:-3px;bottom:-3px;'
    'width:4px;background:{}"></span>'
)
_PIECE = Html(
    '<span class="glm4v-segment"{} role="img" title="{}" aria-label="{}" style="flex:0 {} {:.3f}%;'
    "min-width:{}px;box-sizing:border-box;border-right:1px solid {};{}{}overflow:hidden;"
    'text-overflow:ellipsis;white-space:nowrap;text-align:center">{}</span>'
)
_LEGEND = Html('<div aria-hidden="true" style="font-size:0.85em;color:{}">{}</div>')
_ENTRY = Html(
    '<span style="white-space:nowrap;margin-right:1em"><span style="display:inline-block;'
    "width:1.2em;height:0.8em;border:1px solid {};margin-right:0.3em;"
    '{}"></span>{}</span>'
)
_TABLE = Html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>")
_TITLE = Html('<th scope="col" style="{}">{}</th>')
_ROW = Html('<tr><th scope="row" style="{}">{}</th>{}</tr>')
_CELL = Html('<td style="{}">{}</td>')
_FOLD = Html("<details{}><summary>{}</summary>{}</details>")
_AXIS = Html(
    '<div aria-hidden="true" style="display:flex;justify-content:space-between;font-size:0.75em;'
    'color:{}"><span>0</span><span>{}</span></div>'
)
_LARGER = Html(
    '<div style="margin-left:1.5em"><div style="font-size:0.85em;color:{}">{}</div>{}</div>'
)
_PLACE = Html('{} .glm4v-segment[data-place="{}"]')
_STAGE = Html('{} [data-stage="{}"]')
_LIT = Html(
    "{}{{background-color:rgba(251, 188, 4, 0.25);"
    "box-shadow:0 0 0 4px rgba(251, 188, 4, 0.25);border-radius:2px}}"
)
_MARK = Html(
    '{}{{font-weight:bold}}{}::before{{content:"";position:absolute;left:0;right:0;top:0;'
    "min-width:6px;border-top:4px solid currentColor;z-index:1}}"
)


def bar(
    segments: Iterable[Segment],
    total: int,
    share: float,
    label: str,
    *,
    reachable: bool = True,
    short: bool = False,
) -> Html:
    """Return a bar as HTML.

    Args:
        segments: from left to right; those beyond `total` stick out.
        total: the capacity, in the unit of the segments.
        share: length of `total` as a part of the width there is.
        label: what a screen reader says about the whole bar.
        reachable: whether the keyboard stops at the bar, and shows its parts. Not in a view that
            is drawn anew every second: the focus would be lost each time.
        short: whether the end of the bar is marked, because segments stick out.
    """
    shown = [segment for segment in segments if segment.size > 0]
    stop = _STOP.fill("\n".join(each.detail for each in shown)) if reachable else ""
    pieces = joined(_piece(segment, total, short) for segment in shown)
    end = _END.fill(SHORT) if short else ""
    return _BAR.fill(stop, label, 100 * share, OUTLINE, pieces, end)


def enlarged(segments: Iterable[Segment], most: int, times: int, caption: str) -> Html:
    """Return the small part of a bar as a bar of its own, which says how much larger it is.

    Args:
        segments: what is to be seen.
        most: size of the widest of these bars.
        times: how much larger it is drawn.
        caption: what it is.
    """
    shown = list(segments)
    total = sum(each.size for each in shown)
    label = f"{caption}, {times:,} times as large"
    return _LARGER.fill(MUTED, label, bar(shown, total, total / most, label, reachable=False))


def axis(end: str) -> Html:
    """Return the scale below bars as long as the page, from 0 to `end`."""
    return _AXIS.fill(MUTED, end)


def lit(scope: str, stage: int) -> Html:
    """Return a style rule that marks everything that is shown of a GPU.

    Args:
        scope: selector of what holds the bars.
        stage: the ``data-stage`` of the GPU.
    """
    return _LIT.fill(_STAGE.fill(scope, stage))


def mark(scope: str, place: str) -> Html:
    """Return a style rule that marks a segment: a thick line along its top, and bold letters.

    Args:
        scope: selector of what holds the bar.
        place: place of the segment.
    """
    piece = _PLACE.fill(scope, place)
    return _MARK.fill(piece, piece)


def text_bar(segments: Iterable[Segment], total: int, width: int) -> str:
    """Return a bar as letters, `width` of them for `total`."""
    line, done = "", 0
    for segment in segments:
        done += segment.size
        end = round(width * done / total)
        line += segment.letter * (end - len(line))
    return f"[{line[:width]:<{width}}]{line[width:]}"


def legend(kinds: Iterable[tuple[str, str]]) -> Html:
    """Return a legend: colour and pattern of each kind with its name."""
    entries = joined(_ENTRY.fill(OUTLINE, _fill(kind), name) for kind, name in kinds)
    return _LEGEND.fill(MUTED, entries)


def table(
    head: Iterable[str],
    rows: Iterable[Iterable[str]],
    numbers: int,
    *,
    summary: str = "",
    is_open: bool = False,
    label: str = "",
) -> Html:
    """Return a table: the view in words and numbers. It scrolls where it is wider than the page.

    Args:
        head: titles of the columns.
        rows: cells; the first names its row, the next `numbers` are numbers.
        numbers: how many columns of numbers there are.
        summary: what to click on to unfold it; without it the table is always there.
        is_open: whether it is unfolded at first.
        label: what it is, for the keyboard and a screen reader; without it and a summary it
            does not scroll itself, as in a view that is drawn anew every second.
    """
    titles = tuple(head)

    def side(index: int, *, is_head: bool = False) -> str:
        align = "right" if 0 < index <= numbers else "left"
        # Only a last column of words may be long; "layers 12-26" is not to be broken at its hyphen.
        is_short = index <= numbers or index < len(titles) - 1
        wrap = "white-space:nowrap;" if is_short and not is_head else ""
        return f"text-align:{align};{wrap}padding:0.1em 0.4em;vertical-align:top"

    def line(first: str, *cells: str) -> Html:
        data = joined(
            _CELL.fill(side(index), breaking(cell)) for index, cell in enumerate(cells, start=1)
        )
        return _ROW.fill(side(0), first, data)

    top = joined(_TITLE.fill(side(index, is_head=True), name) for index, name in enumerate(titles))
    whole = _TABLE.fill(top, joined(line(*row) for row in rows))
    if not summary:
        return scrolling(label, whole) if label else whole
    return _FOLD.fill(" open" if is_open else "", summary, scrolling(summary, whole))


def _piece(segment: Segment, total: int, short: bool) -> Html:
    percent = 100 * segment.size / total
    # A label must fit: a letter takes about 1 % of an output of usual width.
    written = segment.label if percent > 1.1 * len(segment.label) + 1 else ""
    frame = "border:1px dashed currentColor;" if segment.marked else ""
    # A sliver stays visible, at the cost of the wide ones, unless the bar's end is marked.
    shrink, least = (0, 0) if short else (1, _LEAST)
    name = Html(' data-place="{}"').fill(segment.place) if segment.place else ""
    fill, detail = _fill(segment.kind), segment.detail
    return _PIECE.fill(name, detail, detail, shrink, percent, least, OUTLINE, frame, fill, written)


def _fill(kind: str) -> str:
    colour, pattern, _ = _KINDS[kind]
    on_top = f"background-image:{pattern};" if pattern else ""
    return f"background-color:{colour};{on_top}"
