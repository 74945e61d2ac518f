"""Connections to public addresses only: not to this computer, nor to its private network."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import Iterable

import httpx

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images.messages import one_line

__all__ = ["is_public", "transport"]


def transport(url: httpx.URL, allow_private: bool) -> httpx.BaseTransport:
    """Return a transport for `url`, which uses the environment's proxy if there is one.

    Args:
        url: URL that is requested.
        allow_private: whether it may be on this computer or in a private network.

    Raises:
        ImageError: if a proxy would be asked for a private address. A proxy looks names up itself,
            so only addresses and ``localhost`` in the URL are refused.
    """
    # The system's certificates: httpx's own would leave out those that the machine trusts.
    trusted = ssl.create_default_context()
    proxy = _proxy(url)
    if proxy is not None:
        if not allow_private:
            _refuse_private_name(url.host)
        return httpx.HTTPTransport(verify=trusted, proxy=proxy)
    direct = httpx.HTTPTransport(verify=trusted)
    return direct if allow_private else _PublicTransport(direct)


class _PublicTransport(httpx.BaseTransport):
    """Looks a host up and connects to the addresses that were found, if all of them are public.

    The address that is checked is the one that is connected to: a name cannot change its meaning
    in between. The server is still asked, and its certificate checked, for its name.
    """

    def __init__(self, direct: httpx.HTTPTransport) -> None:
        self._direct = direct

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.raw_host.decode("ascii")
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(place[4][0]) for place in found]
        _refuse_private(host, addresses)
        for address in addresses[:-1]:
            try:
                return self._send(request, host, address)
            except httpx.ConnectError:  # the next may do; the last one's failure is told
                continue
        return self._send(request, host, addresses[-1])

    def _send(self, request: httpx.Request, host: str, address: str) -> httpx.Response:
        url = request.url.copy_with(host=address)
        extensions = {**request.extensions, "sni_hostname": host}
        return self._direct.handle_request(
            httpx.Request(request.method, url, headers=request.headers, extensions=extensions)
        )

    def close(self) -> None:
        self._direct.close()


def _proxy(url: httpx.URL) -> str | None:
    """Return the address of the proxy for `url`; ``None`` to ask its host itself."""
    proxies = urllib.request.getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(url.host):
        return None
    return address if "://" in address else f"http://{address}"


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
            named = f"{one_line(host)} is" + ("" if host == address else f" {address},")
            raise ImageError(
                f"{named} an address of this computer or a private network.",
                "Such URLs are not fetched; save the image and give its path.",
            )


def is_public(address: str) -> bool:
    """Tell whether an IPv4 or IPv6 address is a public unicast address."""
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
