"""Status shown by ``%glm4v``: the model, its devices and memory, the latest answer's usage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.plan_text import span
from glm4v_magic.core.wording import (
    counted,
    gib,
    pixels,
    printable,
    readable_bytes,
    readable_count,
)
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.answer import usage_line
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.core.model import EngineInfo, Replica
    from glm4v_magic.engines.prefixes import CacheFacts

__all__ = ["replica_words", "status_bundle", "status_rows"]

_UNTOLD = "the server does not tell"
_BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2}


def status_rows(
    model: str,
    info: EngineInfo | None,
    last: Answer | None,
    *,
    busy: bool = False,
    kept: CacheFacts | None = None,
) -> list[tuple[str, str]]:
    """Return the facts as label and value.

    Args:
        model: the model in use, or the one that the next question loads.
        info: facts about the loaded model; ``None`` if none is loaded.
        last: the latest answer, if any.
        busy: whether a call is running.
        kept: contents of the prefix cache, if there is one.
    """
    if info is None:
        rows = [("model", f"{model}, not loaded: the next question loads it")]
    elif info.server is not None:
        rows = [
            ("model", info.model),
            ("server", info.server),
            ("images", _images(info)),
            ("context", _context(info)),
        ]
    else:
        rows = [
            ("model", f"{info.model}, {readable_count(info.parameters or 0)} parameters"),
            ("dtype", info.dtype + (f", text part in {info.quantize}" if info.quantize else "")),
            *([] if info.replicas else [("devices", ", ".join(info.devices))]),
            ("images", _images(info)),
            ("context", _context(info)),
        ]
        width = _BYTES_PER_WEIGHT.get(info.dtype)
        if width is not None and info.quantize is None:
            rows.insert(3, ("weights", readable_bytes((info.parameters or 0) * width)))
        rows += replica_words(info.replicas) or _gpus(info)
        if kept is not None:
            rows.append(("kept", _kept(kept)))
        rows += [("note", note) for note in info.notes]
    if info is not None and info.notice:
        rows.append(("note", info.notice))
    if busy:
        rows.append(("now", "a call is running"))
    if last is not None:
        rows.append(("last answer", usage_line(last)))
    return [(label, printable(value)) for label, value in rows]


def replica_words(replicas: Sequence[Replica]) -> list[tuple[str, str]]:
    """Return the name of each replica, and where it is and what it holds."""
    are_lost = all(each.lost for each in replicas)
    then = "load the model again" if are_lost else "the others answer"
    return [(f"replica {each.number}", _replica(each, then)) for each in replicas]


def _replica(replica: Replica, then: str) -> str:
    if replica.lost:
        return f"was on {replica.machine} and is lost; {then}"
    used = "" if replica.used_bytes is None else f", {readable_bytes(replica.used_bytes)} in use"
    where = ", ".join(replica.devices)
    return f"{where} of {replica.machine}, process {replica.process}{used}"


def _gpus(info: EngineInfo) -> Iterator[tuple[str, str]]:
    """Yield the contents of each GPU, from the plan or the device map."""
    if info.plan is not None:
        for stage in info.plan.stages:
            if stage.units:
                of = "" if stage.capacity_bytes is None else f" of {gib(stage.capacity_bytes)}"
                away = len(stage.offloaded)
                waits = f" ({counted(away, 'module')} in host memory)" if away else ""
                planned = f"{gib(stage.total_bytes)}{of} GiB planned"
                yield stage.device, f"{span(stage.units)}{waits}; {planned}"
    elif info.device_map is not None:
        by_device: dict[str, list[str]] = {}
        for module, place in info.device_map.items():
            device = f"cuda:{place}" if isinstance(place, int) else place
            by_device.setdefault(device, []).append(module or "the whole model")
        for device in info.devices:
            yield device, span(by_device.get(device, ()))


def _kept(facts: CacheFacts) -> str:
    if not facts.budget_bytes:
        return "nothing: every prompt is read from its beginning"
    return (
        f"{counted(facts.prefixes, 'prompt')} and {counted(facts.images, 'image')} that were read, "
        f"{readable_bytes(facts.used_bytes)} of {readable_bytes(facts.budget_bytes)}"
    )


def _context(info: EngineInfo) -> str:
    return _UNTOLD if info.context is None else counted(info.context, "token")


def _images(info: EngineInfo) -> str:
    if info.max_images is None:
        count = "any number" if info.tells_images else _UNTOLD
    else:
        count = f"at most {info.max_images}"
    size = ""
    if info.image_size is not None:
        size = f", seen at {pixels(info.image_size)}"
    elif info.largest_image is not None:
        size = f", each seen at as many pixels as {pixels((info.largest_image,) * 2)} at most"
    tokens = (
        ""
        if info.visual_tokens is None
        else f", {counted(info.visual_tokens, 'visual token')} each"
    )
    return f"{count}{size}{tokens}"


def status_bundle(rows: Sequence[tuple[str, str]]) -> MimeBundle:
    """Return `rows` as a table; as text, one line each."""
    width = max(len(label) for label, _ in rows)
    return {
        "text/plain": "\n".join(f"{label:<{width}}  {value}" for label, value in rows),
        "text/html": fill("status", rows=rows),
    }
