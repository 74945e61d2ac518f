"""The picture of a device map: one bar for each card, what is on it, and what crosses between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from glm4v_magic.display import MimeBundle, bars
from glm4v_magic.display.text import printable, readable_bytes
from glm4v_magic.placement.stages import span

if TYPE_CHECKING:
    from glm4v_magic.placement.occupancy import Hop, Occupancy, OccupiedCard, Part

__all__ = ["device_map_bundle", "device_map_html", "device_map_text", "part_place", "verdict"]

_LEGEND = {
    "vision": "vision tower",
    "embedding": "embedding",
    "layers": "layers",
    "head": "norm and head",
    "cache": "cache in use",
    "room": "cache",
    "activations": "activations",
    "overhead": "CUDA context",
    "others": "other programs",
    "reserve": "reserve",
    "free": "free",
}
_TEXT_WIDTH = 60


def device_map_bundle(picture: Occupancy, at: str = "") -> MimeBundle:
    """Return the picture as HTML and as text.

    Args:
        picture: what to show.
        at: when it was taken, for a picture that will stay when the kernel is gone.
    """
    bundle = {"text/plain": device_map_text(picture), "text/html": device_map_html(picture)}
    if at:
        bundle["text/plain"] += f"\nas of {at}"
        bundle["text/html"] += f'<div style="color:{bars.MUTED}">as of {bars.safe(at)}</div>'
    return bundle


def verdict(picture: Occupancy) -> str:
    """Say in one line whether it fits, and how full the fullest card is."""
    if picture.problem:
        return picture.problem
    fullest = picture.fullest
    state = "Loaded" if picture.loaded else "Fits"
    if fullest is None:
        return f"{'Loaded on' if picture.loaded else 'On'} the CPU, whose memory is not checked."
    return (
        f"{state}: the fullest card is {fullest.device}, {_percent(fullest.fullness or 0)} of the "
        f"{readable_bytes(max(fullest.usable_bytes or 0, 0))} that may be used."
    )


def device_map_html(picture: Occupancy, *, table_open: bool = False) -> str:
    """Return the picture as HTML: verdict, bars with hops between them, a legend and a table.

    Args:
        picture: what to show.
        table_open: whether the table is unfolded.
    """
    largest = _largest(picture)
    colour = f"border-left:3px solid {bars.SHORT};padding-left:0.5em;" if picture.problem else ""
    rows = []
    for row, card in enumerate(picture.cards):
        rows.append(_card(card, largest, row))
        rows.extend(_hop(hop) for hop in picture.hops if hop.source == card.device)
    present = {part.kind for card in picture.cards for part in card.parts}
    notes = "".join(f"<li>{bars.safe(note)}</li>" for note in picture.notes)
    return (
        f'<div class="glm4v-devices" style="line-height:1.4">{bars.STYLE}'
        f"<div>{bars.safe(f'{picture.model}, {picture.work}')}</div>"
        f'<div role="status" style="{colour}"><strong>{bars.safe(verdict(picture))}</strong></div>'
        f'<div style="margin:0.4em 0">{"".join(rows)}</div>'
        f"{bars.legend((kind, name) for kind, name in _LEGEND.items() if kind in present)}"
        + (f"<ul>{notes}</ul>" if notes else "")
        + f"{_table(picture, table_open) if picture.cards else ''}</div>"
    )


def part_place(row: int, column: int) -> str:
    """Return the place on the page, see `bars.Segment`, of a part of a card by their numbers."""
    return f"{row}.{column}"


def device_map_text(picture: Occupancy) -> str:
    """Return the picture as text: the same verdict, bars of letters, and lines of their parts."""
    largest = _largest(picture)
    lines = [f"{picture.model}, {picture.work}", verdict(picture)]
    for card in picture.cards:
        width = max(round(_TEXT_WIDTH * card.total_bytes / largest), 4)
        segments = [_segment(part) for part in card.parts]
        lines.append(_title(card))
        lines.append(f"  {bars.text_bar(segments, card.total_bytes, width)}")
        parts = [
            f"{segment.letter} {part.name} {_size(part)}"
            for segment, part in zip(segments, card.parts, strict=True)
        ]
        lines.append(f"  {' · '.join(parts)}")
        lines.extend(
            f"  -> {hop.target}: {_crossing(hop)}"
            for hop in picture.hops
            if hop.source == card.device
        )
    return printable("\n".join([*lines, *picture.notes]))


def _largest(picture: Occupancy) -> int:
    """What the widest bar stands for: a card, or all that does not fit on it."""
    return max(
        (max(card.total_bytes, _drawn(card)) for card in picture.cards),
        default=1,
    )


def _drawn(card: OccupiedCard) -> int:
    return sum(part.size_bytes for part in card.parts)


def _title(card: OccupiedCard) -> str:
    full = "" if card.fullness is None else f", {_percent(card.fullness)} of {_usable(card)}"
    used = "" if card.planned_bytes else ", idle"
    size = readable_bytes(card.total_bytes) if card.usable_bytes is not None else _needs(card)
    return f"{card.device} {card.name}, {size}{full}{used}"


def _percent(fullness: float) -> str:
    """Never 100 % for what is only almost full, or only just too full."""
    return f"{fullness:.1%}" if 0.99 < fullness < 1.01 else f"{fullness:.0%}"


def _needs(card: OccupiedCard) -> str:
    return f"needs {readable_bytes(card.planned_bytes)}"


def _usable(card: OccupiedCard) -> str:
    return f"{readable_bytes(max(card.usable_bytes or 0, 0))} usable"


def _size(part: Part) -> str:
    away = f" (+ {readable_bytes(part.host_bytes)} in host memory)" if part.host_bytes else ""
    return f"{readable_bytes(part.size_bytes)}{away}"


def _segment(part: Part, place: str = "") -> bars.Segment:
    lines = [f"{part.name}: {_size(part)}"]
    if part.dtype:
        lines[0] += f", {part.dtype}"
    if part.modules:
        lines += span(part.modules).split(", ")
    return bars.Segment(
        part.kind, part.size_bytes, part.name, "\n".join(lines), bool(part.host_bytes), place
    )


def _card(card: OccupiedCard, largest: int, row: int) -> str:
    segments = [_segment(part, part_place(row, column)) for column, part in enumerate(card.parts)]
    away = sum(part.host_bytes for part in card.parts)
    marks = ""
    if away:
        marks += f" <span>⇅ {readable_bytes(away)} visit from host memory</span>"
    title = _title(card)
    short = _drawn(card) > card.total_bytes
    share = card.total_bytes / largest
    return (
        f'<div style="margin-top:0.3em"><div>{bars.safe(title)}{marks}</div>'
        f"{bars.bar(segments, card.total_bytes, share, title, short=short)}</div>"
    )


def _hop(hop: Hop) -> str:
    text = f"{hop.target}: {_crossing(hop)}"
    return (
        f'<div style="margin-left:1.5em;font-size:0.85em;color:{bars.MUTED}">'
        f'<span aria-hidden="true">↳ </span>to {bars.safe(text)}</div>'
    )


def _crossing(hop: Hop) -> str:
    token = f"{readable_bytes(hop.token_bytes)} per token"
    if hop.picture_bytes is None:
        return f"{hop.what}, {token}, once per picture"
    picture = f", {readable_bytes(hop.picture_bytes)} per picture" if hop.picture_bytes else ""
    return f"{hop.what}, {token}{picture}"


def _table(picture: Occupancy, is_open: bool) -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for card in picture.cards:
            for part in card.parts:
                yield (
                    card.device,
                    readable_bytes(part.size_bytes),
                    readable_bytes(part.host_bytes) if part.host_bytes else "",
                    part.name,
                    part.dtype,
                    span(part.modules),
                )

    head = ("card", "on it", "in host memory", "part", "dtype", "modules")
    return bars.table(head, rows(), numbers=2, summary="as a table", is_open=is_open)
