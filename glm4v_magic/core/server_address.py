"""Addresses of servers, which may stand wherever a model's name may stand."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from glm4v_magic.core.errors import CheckpointError, OptionError

__all__ = [
    "API_KEY",
    "ServerAddress",
    "is_address",
    "is_address_without_scheme",
    "is_loopback",
    "read_address",
    "refuse_address",
]

API_KEY = "GLM4V_API_KEY"
"""Environment variable with the key of a server. It is read for each request and never kept."""

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_OF_THE_API = ("/chat/completions", "/models")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is, and how it is asked.

    Attributes:
        url: of its API, without a slash at the end: ``http://127.0.0.1:8000/v1``.
        served_model: which of its models; ``None`` for the only one.
        timeout: the longest silence in seconds.
    """

    url: str
    served_model: str | None = None
    timeout: float = 300.0

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.url


def is_address(name: str) -> bool:
    """Tell a server from a folder or a repository: it begins with ``http://`` or ``https://``."""
    return _SCHEME.match(name) is not None


def is_address_without_scheme(name: str) -> bool:
    """Tell what must be meant as a server: ``127.0.0.1:8000``, with or without a path."""
    return re.match(r"[\w.-]+:\d+(/|$)", name) is not None


def refuse_address(name: str) -> None:
    """Refuse a server where the files of a checkpoint are needed.

    Raises:
        CheckpointError: if `name` is an address.
    """
    if is_address(name):
        raise CheckpointError(
            f"{read_address(name)} is a server: prompt, plan and memory are its own.",
            "It can be loaded and asked; for anything else name a checkpoint.",
        )


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this computer itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_address(text: str) -> str:
    """Return the URL of an API. Without a path it is ``/v1``, where all servers have it.

    Raises:
        OptionError: if `text` is no address, or holds a password.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise OptionError(
            f"The address of the server cannot be read: {error}.",
            "Write it as http://127.0.0.1:8000/v1.",
        ) from None
    if parts.username is not None or parts.password is not None:
        # Not shown: the part before the @ is a secret.
        raise OptionError(
            f"The address of the server at {host} holds a user name or password.",
            f"Leave it out, and put a key into the environment variable {API_KEY}.",
        )
    if not host or parts.query or parts.fragment or re.search(r"\s", text):
        raise OptionError(
            f"{text!r} is not the address of a server.", "Write it as http://127.0.0.1:8000/v1."
        )
    path = parts.path.rstrip("/")
    for end in _OF_THE_API:
        path = path.removesuffix(end)
    return f"{parts.scheme.lower()}://{parts.netloc}{path or '/v1'}"
