"""Words -> images: variables and expressions first, then URIs, paths and patterns."""

from __future__ import annotations

import ast
import builtins
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.core.image import DEFAULT_LIMITS, Limits, SourcedImage
from glm4v_magic.images.clipboard import CLIPBOARD, grab
from glm4v_magic.images.files import current_folder, exists, matches
from glm4v_magic.images.formats import SUFFIXES
from glm4v_magic.images.messages import one_line, refuse_too_many, refuse_too_much
from glm4v_magic.images.names import from_name
from glm4v_magic.images.pdf import name_and_page
from glm4v_magic.images.uris import is_uri
from glm4v_magic.images.values import to_images
from glm4v_magic.images.video import is_clip

__all__ = ["count_images", "is_lookup", "looked_up", "resolve_images", "with_clips_named"]


def resolve_images(
    words: Sequence[str],
    namespace: Mapping[str, object],
    *,
    base: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    page: int | None = None,
) -> tuple[SourcedImage, ...]:
    """Return the images that `words` stand for, in order; see `images` for how each is read.

    Args:
        words: words without surrounding quotes.
        namespace: variables that words may name.
        base: folder that relative paths start from; the current one by default.
        limits: limits on size and download.
        page: page of each image, from 1; the first by default.

    Raises:
        ImageError: for the first word that names no image, or if there are too many.
    """
    folder = current_folder() if base is None else base
    refuse_too_many(count_images(words, namespace, base=folder), " ".join(words), limits)
    images: list[SourcedImage] = []
    for index, word in enumerate(words):
        try:
            images += _resolve(word, namespace, folder, limits, page)
            refuse_too_much(images, word, limits)
        except ImageError as error:
            error.hint = _quotes_missing(words, index, folder) or error.hint
            raise
    return tuple(images)


def count_images(
    words: Sequence[str], namespace: Mapping[str, object], *, base: Path | None = None
) -> int:
    """Count the images of `words` without reading any: files of patterns, items of variables.

    A word that names nothing counts as none; the error comes when it is read.
    """
    folder = current_folder() if base is None else base
    return sum(_count(word, namespace, folder) for word in words)


def with_clips_named(
    words: Sequence[str], namespace: Mapping[str, object], *, base: Path | None = None
) -> list[str]:
    """Return the words with the files themselves in place of each pattern that clips match."""
    folder = current_folder() if base is None else base
    named: list[str] = []
    for word in words:
        found = [] if _is_one(word, namespace, folder) else matches(word, folder)
        named += found if any(map(is_clip, found)) else [word]
    return named


def _is_one(word: str, namespace: Mapping[str, object], base: Path) -> bool:
    """Tell whether a word is a variable, an expression, an address or a file: no pattern."""
    if word in namespace or is_uri(word) or word == CLIPBOARD or is_lookup(word, namespace):
        return True
    return exists(word, base) or exists(name_and_page(word)[0], base)


def _count(word: str, namespace: Mapping[str, object], base: Path) -> int:
    value = namespace.get(word)
    if isinstance(value, list | tuple):
        # A number is not an image; the error comes when it is read.
        return sum(not isinstance(each, int | float) for each in value)
    return 1 if _is_one(word, namespace, base) else len(matches(word, base))


def _quotes_missing(words: Sequence[str], index: int, base: Path) -> str:
    """Return a hint if words from `index` on, joined by spaces, name one file; else ``""``."""
    for end in range(index + 2, len(words) + 1):
        name = " ".join(word.rstrip("\\") for word in words[index:end])
        if exists(name, base):
            return f'A name with spaces goes in quotes: "{name}".'
    return ""


def _resolve(
    word: str, namespace: Mapping[str, object], base: Path, limits: Limits, page: int | None
) -> tuple[SourcedImage, ...]:
    if not is_uri(word):
        if word in namespace:
            return _from_variable(word, namespace[word], base, limits, page)
        if not exists(word, base) and is_lookup(word, namespace):
            value = looked_up(word, namespace)
            return to_images(value, word, base=base, limits=limits, page=page)
        if word == CLIPBOARD and not exists(word, base):
            return to_images(grab(), word, base=base, limits=limits, page=page)
    return from_name(word, base, namespace, limits, page)


def _from_variable(
    word: str, value: object, base: Path, limits: Limits, page: int | None
) -> tuple[SourcedImage, ...]:
    try:
        return to_images(value, word, base=base, limits=limits, page=page)
    except ImageError as error:
        if os.path.lexists(base / word):
            error.hint = f"For the file of this name write ./{word}."
        raise


def is_lookup(word: str, namespace: Mapping[str, object]) -> bool:
    """Tell whether `word` is Python that starts from a variable and uses only known names."""
    if name_and_page(word)[0].lower().endswith(SUFFIXES):
        return False
    try:
        with warnings.catch_warnings():  # a path may look like odd Python
            warnings.simplefilter("ignore")
            tree = ast.parse(word, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    node = tree
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    if not isinstance(node, ast.Name) or node.id not in namespace:
        return False
    names = [each for each in ast.walk(tree) if isinstance(each, ast.Name)]
    bound = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return all(
        name.id in namespace or name.id in bound or hasattr(builtins, name.id) for name in names
    )


def looked_up(word: str, namespace: Mapping[str, object]) -> object:
    """Return the value of an expression that `is_lookup` recognised.

    Raises:
        ImageError: if the expression raises.
    """
    try:
        # The user's own expression in the user's own process, as in any cell. The copy keeps the
        # __builtins__ that eval adds out of the user's namespace.
        return eval(word, dict(namespace))  # noqa: S307
    except Exception as error:
        raise ImageError(f"{one_line(word)} failed: {reason(error)}") from error
