"""Connections to public addresses only: not to this computer, nor to its private network."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterable

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images.messages import one_line

__all__ = ["Connector", "is_public"]


class Connector(urllib.request.AbstractHTTPHandler):
    """Connects to public addresses only, unless private ones are allowed.

    The address that is checked is the one that is connected to: a name cannot change its meaning
    in between. Behind a proxy the proxy looks names up, so only addresses and ``localhost``
    written in the URL are refused.
    """

    def __init__(self, allow_private: bool) -> None:
        super().__init__()
        self._allow_private = allow_private

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request; urllib finds this by its name."""
        return self._open(req, http.client.HTTPConnection, _PublicHTTPConnection)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request over TLS; urllib finds this by its name."""
        return self._open(req, http.client.HTTPSConnection, _PublicHTTPSConnection)

    http_request = urllib.request.AbstractHTTPHandler.do_request_
    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _open(
        self,
        request: urllib.request.Request,
        anywhere: type[http.client.HTTPConnection],
        public: type[http.client.HTTPConnection],
    ) -> http.client.HTTPResponse:
        if self._allow_private:
            return self.do_open(anywhere, request)
        if request.has_proxy() or getattr(request, "_tunnel_host", None):
            _refuse_private_name(urllib.parse.urlsplit(request.full_url).hostname or "")
            return self.do_open(anywhere, request)
        return self.do_open(public, request)


class _PublicHTTPConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = _connect_public(self.host, self.port, self.timeout)


class _PublicHTTPSConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        plain = _connect_public(self.host, self.port, self.timeout)
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(plain, server_hostname=self.host)


def _connect_public(host: str, port: int, timeout: float | None) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(place[4][0]) for place in found]
    _refuse_private(host, addresses)
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), timeout)
        except OSError:  # the next may do; the last one's failure is told
            continue
    return socket.create_connection((addresses[-1], port), timeout)


def _refuse_private_name(host: str) -> None:
    if host == "localhost" or host.endswith(".localhost"):
        _refuse_private(host, ["127.0.0.1"])
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    _refuse_private(host, [host])


def _refuse_private(host: str, addresses: Iterable[str]) -> None:
    for address in addresses:
        if not is_public(address):
            raise ImageError(
                f"{one_line(host)} is {address}, an address of this computer or a private network.",
                "Such URLs are not fetched; save the image and give its path.",
            )


def is_public(address: str) -> bool:
    """Say whether an IPv4 or IPv6 address is one of the internet's, for one host."""
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        # An IPv4 address in disguise: mapped, 6to4 (RFC 3056), NAT64 (RFC 6052).
        inner = number.ipv4_mapped or number.sixtofour
        if inner is None and number in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if number.is_site_local:
            return False
    return number.is_global and not number.is_multicast
