"""A plan as text: a table of its stages.

``print(plan)`` shows it. It takes the parts of a plan instead of a `Plan`, which would be a circle
of imports: `Plan.__str__` passes them on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.remarks import Remark, Words, remark, worded
from glm4v_magic.core.room import room_note
from glm4v_magic.core.speed import SpeedLimit, measured_on
from glm4v_magic.core.stage import Stage
from glm4v_magic.core.wording import counted, gib, pixels, readable_seconds

__all__ = ["brief", "gpu_rows", "images", "rate", "span", "speed_notes", "text"]


def text(
    model: str,
    workload: Workload,
    stages: Sequence[Stage],
    notes: Iterable[Remark],
    words: Words,
    speed: SpeedLimit | None = None,
) -> str:
    """Return a plan as a table, sizes in GiB, with its notes in the words of a front end.

    `core.plan.Plan` describes the other arguments.
    """
    title = f"{model}, {workload.dtype}" + (f" in {workload.form}" if workload.form else "")
    title += f", {workload.context:,} tokens of context, {images(workload)}"
    title += f", batch of {workload.batch}"
    rows = gpu_rows(stages)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:], strict=True)]
            + [row[-1]]
        ).rstrip()
        for row in rows
    ]
    room = room_note(stages)
    told = [*notes, *speed_notes(speed, workload, stages), *([] if room is None else [room])]
    return "\n".join([title, "sizes in GiB", *lines, *(worded(note, words) for note in told)])


def speed_notes(
    speed: SpeedLimit | None, workload: Workload, stages: Sequence[Stage]
) -> Iterator[Remark]:
    """Yield the upper bound on the speed of a plan, or that it is unknown.

    Also how much of it was reached, where that was measured.
    """
    if speed is None:
        return
    if speed.unknown:
        yield remark("speed_unknown", gpus=", ".join(speed.unknown))
    if speed.tokens_per_second is None or speed.full_tokens_per_second is None:
        return
    yield _limit(speed, workload)
    for each in measured_on({stage.name for stage in stages if stage.units}):
        gpu, share, how = each.gpu, _span_of(each.share), each.what
        if each.prefill is None:
            yield remark("speed_measured", gpu=gpu, share=share, how=how)
        else:
            prefill = _span_of(each.prefill)
            yield remark(
                "speed_measured_with_prefill", gpu=gpu, share=share, prefill=prefill, how=how
            )


def _limit(speed: SpeedLimit, workload: Workload) -> Remark:
    most, full = rate(speed.tokens_per_second or 0.0), rate(speed.full_tokens_per_second or 0.0)
    context = f"{workload.context or 0:,}"
    by = _BUS_AND_MEMORY if speed.crosses_bus else _MEMORY
    prefill = None if speed.prefill_seconds is None else readable_seconds(speed.prefill_seconds)
    if not speed.starts_slowly:
        if prefill is None:
            return remark("speed_limit", most=most, full=full, context=context, by=by)
        return remark(
            "speed_limit_with_prefill",
            most=most,
            full=full,
            context=context,
            by=by,
            prefill=prefill,
        )
    expected = rate(speed.expected_tokens_per_second or 0.0)
    if prefill is None:
        return remark(
            "speed_limit_of_host", most=most, full=full, context=context, by=by, expected=expected
        )
    return remark(
        "speed_limit_of_host_with_prefill",
        most=most,
        full=full,
        context=context,
        by=by,
        expected=expected,
        prefill=prefill,
    )


_MEMORY = "the GPUs' memory bandwidth"
_BUS_AND_MEMORY = "the bus to the host and the GPUs' memory bandwidth"


def _span_of(shares: tuple[float, float]) -> str:
    """Return ``0.10 to 0.13``, or one number if both are the same."""
    return " to ".join(dict.fromkeys(f"{share:.2f}" for share in shares))


def rate(tokens_per_second: float) -> str:
    """Return ``53``, ``5.3``, ``0.53``: two digits at least, none that pretends to more."""
    digits = 0 if tokens_per_second >= 10 else 1 if tokens_per_second >= 1 else 2
    return f"{tokens_per_second:,.{digits}f}"


def images(workload: Workload) -> str:
    """Return the number of images, and their size where it is planned: ``2 images of ...``."""
    size = workload.image_size
    of = "" if size is None or not workload.images else f" of up to {pixels((size, size))}"
    return counted(workload.images, "image") + of


def gpu_rows(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """Return the rows of a table of the GPUs, its header first; sizes in GiB."""
    rows: list[tuple[str, ...]] = [
        ("", "weights", "cache", "activ.", "other", "total", "of", "full", "units")
    ]
    for stage in stages:
        sizes = (stage.weight_bytes, stage.kv_bytes, stage.activation_bytes)
        capacity = stage.capacity_bytes
        rows.append(
            (
                f"{stage.device} {stage.name}",
                *(gib(size) for size in (*sizes, stage.overhead_bytes, stage.total_bytes)),
                "?" if capacity is None else gib(capacity),
                "?" if capacity is None else f"{stage.fullness:.0%}",
                span(stage.units) or "idle",
            )
        )
    return rows


def span(units: Iterable[str]) -> str:
    """Return unit names with runs of numbers shortened: ``vision, embedding, layer.0-11``."""

    def split(name: str) -> tuple[str, int | None]:
        stem, _, number = name.rpartition(".")
        return (stem, int(number)) if re.fullmatch("[0-9]{1,9}", number) else (name, None)

    def run(part: tuple[int, tuple[str, int | None]]) -> tuple[str, int]:
        place, (stem, number) = part
        return stem, 0 if number is None else number - place  # the same while numbers go up by one

    def runs() -> Iterator[str]:
        for (stem, _), group in groupby(enumerate(map(split, units)), key=run):
            numbers = [number for _, (_, number) in group if number is not None]
            if not numbers:
                yield stem
            elif len(numbers) == 1:
                yield f"{stem}.{numbers[0]}"
            else:
                yield f"{stem}.{numbers[0]}-{numbers[-1]}"

    return ", ".join(runs())


def brief(model: str, stages: Sequence[Stage]) -> str:
    """Return a plan in a few words: ``<Plan of GLM-4V-9B on cuda:0, cuda:1>``."""
    used = [stage for stage in stages if stage.units]
    fullest = max((stage.fullness for stage in used), default=0)
    full = f", the fullest {fullest:.0%} full" if fullest else ""
    return f"<Plan of {model} on {', '.join(stage.device for stage in used)}{full}>"
