"""What ``--preview`` shows: the prompt, its tokens, and the images as the model sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.wording import counted, printable
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.image import strip_bundle
from glm4v_magic.notebook.render.answers.media import media_bundles
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.session.preview import Preview

__all__ = ["preview_bundle", "tokens_line"]


def preview_bundle(preview: Preview) -> MimeBundle:
    """Return images, prompt and tokens; special tokens of the prompt are set apart in HTML."""
    line = tokens_line(preview)
    sizes = iter(preview.seen)
    media = [
        _resized(each, next(sizes).image_size) if isinstance(each, SourcedImage) else each
        for each in preview.media
    ]
    bundles, thumbnails = media_bundles(media, preview.seen)
    last = [strip_bundle(thumbnails)["text/plain"]] if thumbnails else []
    plain = [each["text/plain"] for each in bundles] + [*last, printable(preview.prompt), line]
    html = fill("preview", thumbnails=thumbnails, pieces=preview.pieces, line=line)
    before = "".join(each["text/html"] for each in bundles)
    return {"text/plain": "\n".join(plain), "text/html": before + html}


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
    return image if size is None else replace(image, image=image.image.resize(size), encoded=b"")
