"""Downloads of http and https URLs, limited in time, size and kind."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.core.image import Limits
from glm4v_magic.images.formats import may_be_image
from glm4v_magic.images.messages import one_line
from glm4v_magic.images.public import Connector

__all__ = ["download"]


def download(url: str, limits: Limits) -> bytes:
    """Return what an http or https URL holds."""
    deadline = time.monotonic() + limits.download_seconds
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        Connector(limits.allow_private),
        _Redirects(deadline),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    shown = one_line(url)
    try:
        # Some hosts refuse Python's own user agent.
        request = urllib.request.Request(  # noqa: S310  the scheme is checked
            _checked_url(url), headers={"User-Agent": "glm4v-magic", "Accept": "image/*"}
        )
        with opener.open(request, timeout=limits.download_seconds) as response:
            return _body(response, shown, deadline, limits)
    except urllib.error.HTTPError as error:
        error.close()
        status = f"{error.code} {error.msg}".splitlines()[0].strip()  # the phrase may be empty
        raise ImageError(
            f"{shown}: the server answers {one_line(status)}.",
            "Check the address; it must open in a browser without signing in.",
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(shown, error, limits) from None


def _checked_url(url: str) -> str:
    """Return `url` with what a request cannot carry, such as spaces, percent-encoded."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise ImageError(
            f"{one_line(url)}: only http and https are fetched, not {one_line(parts.scheme)}.",
            "Download the image and give its path.",
        )
    if not parts.hostname:
        raise ImageError(f"{one_line(url)} names no host.")
    if "@" in parts.netloc:
        raise ImageError(
            f"{parts.scheme}://...@{parts.hostname}: a password in a URL is not sent.",
            "Download the image and give its path.",
        )
    safe = "/%:@!$&'()*+,;=~?"
    path, query = (urllib.parse.quote(part, safe=safe) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def _body(response: http.client.HTTPResponse, shown: str, deadline: float, limits: Limits) -> bytes:
    media_type = response.headers.get_content_type()
    if "Content-Type" in response.headers and not may_be_image(media_type):
        raise ImageError(
            f"{shown} is {one_line(media_type)}, not an image.",
            "Give the address of the image itself, not of a page that shows it.",
        )
    announced = response.length
    too_much = ImageError(
        f"{shown} is larger than {limits.download_bytes / 1e6:g} MB.",
        "Download the image and give its path.",
    )
    if announced is not None and announced > limits.download_bytes:
        raise too_much
    content = bytearray()
    # read1 returns with what has come, so that a trickle cannot outlast the deadline.
    while chunk := response.read1(1 << 16):
        content += chunk
        if len(content) > limits.download_bytes:
            raise too_much
        if time.monotonic() > deadline:
            raise TimeoutError
    if announced is not None and len(content) < announced:
        raise ImageError(f"{shown}: the connection ended after {len(content):,} bytes.")
    return bytes(content)


def _unreachable(shown: str, error: Exception, limits: Limits) -> ImageError:
    """Say in one line why a URL could not be fetched."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    hint = "Check the address and the network, or download the image and give its path."
    match cause:
        case socket.gaierror():
            why = "its host is not known, or there is no network"
        case TimeoutError():
            why = f"it did not come within {limits.download_seconds:g} s"
        case ConnectionRefusedError():
            why = "its host refuses the connection"
        case ssl.SSLCertVerificationError():
            why = f"its certificate is not trusted: {cause.verify_message}"
        case BaseException():
            why = f"it cannot be fetched: {reason(cause)}"
        case _:
            why = f"it cannot be fetched: {cause}"
    return ImageError(f"{shown}: {why}.", hint)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only; where to is checked anew by `Connector`."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        fp.close()  # or the base class reads its body, however long
        req.timeout = self._deadline - time.monotonic()  # which the next request takes over
        if req.timeout <= 0:
            raise TimeoutError
        return super().redirect_request(req, fp, code, msg, headers, _checked_url(newurl))
