"""Downloads of http and https URLs, limited in time, size and media type."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterator

import httpx

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.core.image import Limits
from glm4v_magic.images.formats import may_be_image
from glm4v_magic.images.messages import one_line
from glm4v_magic.images.public import transport

__all__ = ["download"]

_MOST_REDIRECTS = 10
_HEADERS = {
    "User-Agent": "glm4v-magic",  # some hosts refuse the names of libraries
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # compressed content could expand beyond the limit
}


def download(url: str, limits: Limits) -> bytes:
    """Return the content of an http or https URL.

    Raises:
        ImageError: if it cannot be fetched within `limits`, or its media type is not of an image.
    """
    deadline = time.monotonic() + limits.download_seconds
    shown = one_line(url)
    try:
        checked = _checked_url(url)
        for _ in range(_MOST_REDIRECTS):
            with _answer(checked, deadline, limits) as response:
                if response.next_request is None:
                    return _body(response, shown, deadline, limits)
                # The body of a redirect is not read, however long.
                checked = _checked_url(str(response.next_request.url))
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        raise _unreachable(shown, error, limits) from None
    raise ImageError(f"{shown}: the server answers with more than {_MOST_REDIRECTS} redirects.")


def _checked_url(url: str) -> httpx.URL:
    """Return `url` with characters that a request cannot carry, such as spaces, percent-encoded."""
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https"):
        raise ImageError(
            f"{one_line(url)}: only http and https are fetched, not {one_line(parsed.scheme)}.",
            "Download the image and give its path.",
        )
    if not parsed.host:
        raise ImageError(f"{one_line(url)} names no host.")
    if parsed.userinfo:
        raise ImageError(
            f"{parsed.scheme}://...@{one_line(parsed.host)}: a password in a URL is not sent.",
            "Download the image and give its path.",
        )
    if "%" in parsed.host and ":" not in parsed.host:  # in IPv6 it begins a zone
        return parsed.copy_with(host=urllib.parse.unquote(parsed.host))
    return parsed


@contextlib.contextmanager
def _answer(url: httpx.URL, deadline: float, limits: Limits) -> Iterator[httpx.Response]:
    """Request `url`; the target of every redirect is checked again."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    with (
        httpx.Client(transport=transport(url, limits.allow_private), timeout=left) as client,
        client.stream("GET", url, headers=_HEADERS) as response,
    ):
        yield response


def _body(response: httpx.Response, shown: str, deadline: float, limits: Limits) -> bytes:
    if not response.is_success:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        raise ImageError(
            f"{shown}: the server answers {one_line(status)}.",
            "Check the address; it must open in a browser without signing in.",
        )
    media_type = response.headers.get("Content-Type", "image/").partition(";")[0].strip().lower()
    if not may_be_image(media_type):
        raise ImageError(
            f"{shown} is {one_line(media_type)}, not an image.",
            "Give the address of the image itself, not of a page that shows it.",
        )
    too_much = ImageError(
        f"{shown} is larger than {limits.download_bytes / 1e6:g} MB.",
        "Download the image and give its path.",
    )
    # httpx has already refused a length that is not a number.
    if int(response.headers.get("Content-Length", 0)) > limits.download_bytes:
        raise too_much
    content = bytearray()
    try:
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > limits.download_bytes:
                raise too_much
            if time.monotonic() > deadline:
                raise TimeoutError
    except httpx.RemoteProtocolError:
        raise ImageError(f"{shown}: the connection ended after {len(content):,} bytes.") from None
    return bytes(content)


def _unreachable(shown: str, error: BaseException, limits: Limits) -> ImageError:
    """Return the error that says in one line why a URL could not be fetched."""
    while inner := error.__cause__ or error.__context__:  # httpx wraps what httpcore wraps
        if isinstance(error, httpx.InvalidURL):  # whose text says more than that of its cause
            break
        error = inner
    hint = "Check the address and the network, or download the image and give its path."
    match error:
        case socket.gaierror():
            why = "its host is not known, or there is no network"
        case TimeoutError() | httpx.TimeoutException():
            why = f"it did not come within {limits.download_seconds:g} s"
        case ConnectionRefusedError():
            why = "its host refuses the connection"
        case ssl.SSLCertVerificationError():
            why = f"its certificate is not trusted: {error.verify_message}"
        case _:
            why = f"it cannot be fetched: {one_line(reason(error).rstrip('.'))}"
    return ImageError(f"{shown}: {why}.", hint)
