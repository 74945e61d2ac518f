"""Addresses of servers, which are accepted wherever the name of a model is."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.hub_page import is_hub_page

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
"""Environment variable with the API key. It is read for each request and never stored."""

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_OF_THE_API = ("/chat/completions", "/models")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server, and how to ask it.

    Attributes:
        url: URL of its API, without a slash at the end: ``http://127.0.0.1:8000/v1``.
        served_model: name of the model to ask; ``None`` for the server's only one.
        timeout: longest silence in seconds.
    """

    url: str
    served_model: str | None = None
    timeout: float = 300.0

    @property
    def name(self) -> str:
        """Name of the server, as the user would type it."""
        return self.url


def is_address(name: str) -> bool:
    """Tell whether `name` is the address of a server: ``http://`` or ``https://`` in front.

    Pages of the hub are not: they name a repository.
    """
    return _SCHEME.match(name) is not None and not is_hub_page(name)


def is_address_without_scheme(name: str) -> bool:
    """Tell whether `name` is probably a server without its scheme: ``127.0.0.1:8000``."""
    return re.match(r"[\w.-]+:\d+(/|$)", name) is not None


def refuse_address(name: str) -> None:
    """Raise CheckpointError if `name` is a server where files of a checkpoint are needed.

    Raises:
        CheckpointError: if `name` is an address.
    """
    if is_address(name):
        raise CheckpointError(
            f"{read_address(name)} is a server: prompt, plan and memory are its own.",
            "It can be loaded and asked; for anything else name a checkpoint, or load one.",
        )


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this computer itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_address(text: str) -> str:
    """Return the URL of an API; without a path it is ``/v1``, where all servers have it.

    Raises:
        OptionError: if `text` is not an address, or contains a password.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")  # or the resolver fails on it
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
