"""The image on the clipboard of the computer that Python runs on."""

from __future__ import annotations

from glm4v_magic.core.errors import ImageError, reason

__all__ = ["CLIPBOARD", "grab"]

CLIPBOARD = "clipboard"
"""Name of the clipboard where an image is expected."""


def grab() -> object:
    """Return the copied image, or the list of copied files.

    Raises:
        ImageError: if the clipboard holds no image or cannot be read.
    """
    from PIL import ImageGrab

    try:
        copied = ImageGrab.grabclipboard()
    except Exception as error:  # no display, no program that reads it, text that claims to be PNG
        raise ImageError(
            f"The clipboard of the computer that runs Python cannot be read: {reason(error)}.",
            "Upload the image, or give its path or URL.",
        ) from None
    if copied is None:
        raise ImageError("The clipboard holds no image.", "Copy one first.")
    return copied
