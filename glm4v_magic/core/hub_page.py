"""Addresses of pages of the hub and of ModelScope: they name a repository, not a server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

__all__ = ["MAIN_BRANCHES", "HubPage", "is_hub_page", "read_hub_page"]

_HOSTS = r"(?:huggingface\.co|hf\.co|hf-mirror\.com|modelscope\.(?:cn|com|ai))"
_PAGE = re.compile(
    rf"(?:https?://)?(?:www\.)?{_HOSTS}(?:/(?P<path>[^?#]*))?(?:\?(?P<query>[^#]*))?(?:#.*)?", re.I
)
_NAME = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(
    rf"(?:models/)?(?P<owner>{_NAME})/(?P<name>{_NAME})"
    r"(?:/(?:tree|blob|resolve|commit|commits|file/view)/(?P<revision>[^/]+))?(?:/.*)?"
)
_OTHERS = frozenset((
    "api", "blog", "chat", "collections", "datasets", "docs", "join", "learn", "login", "new",
    "organization", "organizations", "papers", "pricing", "settings", "spaces", "studios", "tasks",
))  # fmt: skip
"""What stands in the place of an owner on pages that are about no model."""
MAIN_BRANCHES = ("main", "master")
"""Names of the main branch on the hub and on ModelScope."""

_IN_CACHE = re.compile(rf"models--(?P<owner>{_NAME}?)--(?P<name>{_NAME})")


@dataclass(frozen=True, slots=True)
class HubPage:
    """What a page is about.

    Attributes:
        repository: ``owner/name``.
        revision: branch, tag or commit that the page shows; ``None`` for the main branch.
    """

    repository: str
    revision: str | None = None


def is_hub_page(text: str) -> bool:
    """Tell whether `text` is the address of a page, with or without ``https://``."""
    return _PAGE.fullmatch(text.strip()) is not None


def read_hub_page(text: str) -> HubPage | None:
    """Return the repository of a page, or of a folder of the hub's cache (``models--...``).

    Args:
        text: what the user typed; ``None`` is returned for what names no repository in these ways.
    """
    text = text.strip()
    folder = _IN_CACHE.fullmatch(text.rstrip("/"))
    if folder is not None:
        return HubPage(f"{folder['owner']}/{folder['name']}")
    page = _PAGE.fullmatch(text)
    if page is None:
        return None
    found = _REPOSITORY.fullmatch((page["path"] or "").rstrip("/"))
    if found is None or found["owner"].lower() in _OTHERS:
        return None
    asked = {name.lower(): values[-1] for name, values in parse_qs(page["query"] or "").items()}
    revision = unquote(found["revision"] or asked.get("revision") or asked.get("version") or "main")
    if ".." in revision.split("/"):
        return None
    name = found["name"].removesuffix(".git")
    return HubPage(f"{found['owner']}/{name}", None if revision in MAIN_BRANCHES else revision)
