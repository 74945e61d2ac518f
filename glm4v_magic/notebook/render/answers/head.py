"""Head of an answer: its images and a status line.

The line is for screen readers above all. Nothing in a notebook tells them that an output has
changed, and an answer that is read out anew with every token is worse than silence: so this one
line is a polite live region, and the answer is not.
"""

from __future__ import annotations

from collections.abc import Sequence

from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.image import Thumbnail, strip_bundle
from glm4v_magic.notebook.render.templates import fill

__all__ = ["answering_line", "finished_line", "head_bundle", "status_html"]

_ENDED = {"interrupted": "Stopped.", "failed": "Broken off."}


def answering_line(model: str) -> str:
    """Return the line while an answer is being written."""
    return f"{printable(model)} is answering…"


def finished_line(answer: Answer | None) -> str:
    """Return the line for an answer that has ended; ``None`` if there was none after all."""
    if answer is None:
        return "No answer."
    return _ENDED.get(answer.finish_reason, "Answered.")


def status_html(line: str, *, seen: bool) -> str:
    """Return a line as a polite live region, one that shows or one that is only read out."""
    return fill("live_region", line=line, seen=seen)


def head_bundle(thumbnails: Sequence[Thumbnail], line: str, *, seen: bool) -> MimeBundle:
    """Return the strip of images, if there are any, with the line below it.

    Args:
        thumbnails: thumbnails of the images, in order.
        line: how far the answer is.
        seen: whether the line shows; otherwise it is only read out.
    """
    plain = strip_bundle(thumbnails)["text/plain"] if thumbnails else line
    return {
        "text/plain": plain,
        "text/html": fill("head", thumbnails=thumbnails, line=line, seen=seen),
    }
