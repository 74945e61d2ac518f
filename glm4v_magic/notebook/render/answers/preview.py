"""What ``--preview`` shows: the prompt, its tokens, and the images as the model sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from glm4v_magic.core.wording import counted, printable
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.image import make_thumbnail, strip_bundle
from glm4v_magic.notebook.render.answers.video import video_bundle
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.images import SourcedImage
    from glm4v_magic.session.preview import Preview

__all__ = ["preview_bundle", "tokens_line"]


def preview_bundle(preview: Preview) -> MimeBundle:
    """Return images, prompt and tokens; special tokens of the prompt are set apart in HTML."""
    line = tokens_line(preview)
    plain = [printable(preview.prompt), line]
    seen = [
        make_thumbnail(_resized(image, seen.image_size), seen)
        for image, seen in zip(preview.images, preview.seen, strict=True)
    ]
    if seen:
        plain.insert(0, strip_bundle(seen)["text/plain"])
    html: str = fill("preview", thumbnails=seen, pieces=preview.pieces, line=line)
    if preview.videos:
        strip = video_bundle(preview.videos)
        plain.insert(0, strip["text/plain"])
        html = strip["text/html"] + html
    return {"text/plain": "\n".join(plain), "text/html": html}


def tokens_line(preview: Preview) -> str:
    """Return how long the prompt is, and what is left for the answer."""
    total = preview.text_tokens + preview.all_visual_tokens
    room = (
        f"room for an answer of {counted(preview.room, 'token')}"
        if preview.room > 0
        else "too long for the model"
    )
    return printable(
        f"{preview.model} · {counted(total, 'token')}: {preview.text_tokens:,} text + "
        f"{preview.all_visual_tokens:,} visual · {room} · nothing was sent"
    )


def _resized(image: SourcedImage, size: tuple[int, int] | None) -> SourcedImage:
    return image if size is None else replace(image, image=image.image.resize(size))
