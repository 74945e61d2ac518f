"""Data URIs, and images from a web server on this computer."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import urllib.parse

import IPython.display
import pytest
from image_server import Server
from photos import BLUE, GREEN, RED, colours, data_uri, error_of, png

from glm4v_magic.images import Limits, public, resolve_images, to_image

LOCAL = Limits(allow_private=True)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """No proxy stands between the tests and their server."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def test_the_network_is_imported_for_urls_only():
    code = (
        "import sys\n"
        "from glm4v_magic.core.errors import ImageError\n"
        "from glm4v_magic.images import resolve_images\n"
        "for word in ('x.png', 'data:,x', 'ftp://host/x.png'):\n"
        "    try: resolve_images([word], {})\n"
        "    except ImageError: pass\n"
        "    print(word, sorted({'ssl', 'httpx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "x.png []",
        "data:,x []",
        "ftp://host/x.png ['httpx', 'ssl']",
    ]


class TestDataUris:
    @pytest.mark.parametrize(
        "make",
        [
            lambda content: data_uri(content),
            lambda content: data_uri(content).replace("data:image/png", "DATA:Image/PNG"),
            lambda content: data_uri(content).rstrip("="),
            lambda content: data_uri(content)[:60] + "\n  " + data_uri(content)[60:],
            lambda content: "data:image/png;name=x;base64," + base64.b64encode(content).decode(),
            lambda content: "data:;base64," + base64.b64encode(content).decode(),
            lambda content: "data:image/png," + urllib.parse.quote(content),
        ],
    )
    def test_forms(self, make):
        (photo,) = resolve_images([make(png(BLUE))], {"data": 1})
        assert colours(photo) == [BLUE]
        assert photo.source == "data: URI"

    @pytest.mark.parametrize(
        ("uri", "said"),
        [
            ("data:image/png;base64", "The data: URI has no comma."),
            ("data:image/png;base64,@@@", "The data: URI is not valid base64: "),
            ("data:text/html,<p>", "The data: URI is text/html, not an image."),
            ("data:image/png;base64,", "data: URI is empty (0 bytes)."),
            ("data:image/png,hello", "data: URI is not an image: it is text that starts with"),
            ("data:image/svg+xml,<svg/>", "data: URI is an SVG drawing."),
        ],
    )
    def test_broken_ones(self, uri, said):
        assert said in error_of(resolve_images, [uri], {})


class TestUrls:
    def test_an_image(self, server):
        server.answer("/cat.png", png(GREEN))
        (photo,) = resolve_images([f"{server.url}/cat.png"], {}, limits=LOCAL)
        assert colours(photo) == [GREEN]
        assert photo.source == f"{server.url}/cat.png"

    def test_from_python(self, server):
        server.answer("/cat.png", png(GREEN))
        assert colours(to_image(f"{server.url}/cat.png", "x", limits=LOCAL)) == [GREEN]
        later = IPython.display.Image(url=f"{server.url}/cat.png")
        assert colours(to_image(later, "x", limits=LOCAL)) == [GREEN]

    @pytest.mark.parametrize("kind", [None, "image/webp", "application/octet-stream", "IMAGE/PNG"])
    def test_content_types_that_may_be_an_image(self, server, kind):
        server.answer("/x", png(), kind=kind)
        assert colours(resolve_images([f"{server.url}/x"], {}, limits=LOCAL)[0]) == [RED]

    def test_spaces_letters_queries_and_fragments(self, server):
        server.answer("/my%20cat%C3%BC.png?a=b%20c&d=%2F", png(GREEN))
        url = f"{server.url}/my catü.png?a=b c&d=%2F#top"
        assert colours(resolve_images([url], {}, limits=LOCAL)[0]) == [GREEN]

    def test_a_body_without_length(self, server):
        server.answer("/x", png(GREEN), length=None)
        assert colours(resolve_images([f"{server.url}/x"], {}, limits=LOCAL)[0]) == [GREEN]

    def test_redirects_are_followed(self, server):
        server.redirect("/a", "/b c")
        server.redirect("/b%20c", f"{server.url}/cat.png")
        server.answer("/cat.png", png(GREEN))
        (photo,) = resolve_images([f"{server.url}/a"], {}, limits=LOCAL)
        assert colours(photo) == [GREEN]
        assert photo.source == f"{server.url}/a"

    def test_redirects_in_a_circle(self, server):
        server.redirect("/a", "/a")
        message = error_of(resolve_images, [f"{server.url}/a"], {}, limits=LOCAL)
        assert "/a: the server answers with more than 10 redirects." in message

    @pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
    def test_redirects_elsewhere_are_refused(self, server, target):
        server.redirect("/a", target)
        message = error_of(resolve_images, [f"{server.url}/a"], {}, limits=LOCAL)
        assert "only http and https are fetched" in message or "fetched: InvalidURL" in message
        assert server.seen == ["/a"]

    def test_the_body_of_a_redirect_is_not_read(self, server):
        server.redirect("/a", "/cat.png", body=server.endless)
        server.answer("/cat.png", png(GREEN))
        assert colours(resolve_images([f"{server.url}/a"], {}, limits=LOCAL)[0]) == [GREEN]

    @pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
    def test_errors_of_the_server(self, server, status):
        server.answer("/x.png", png(), status=status)
        message = error_of(resolve_images, [f"{server.url}/x.png"], {}, limits=LOCAL)
        assert message.startswith(f"{server.url}/x.png: the server answers {status} ")

    def test_a_status_without_a_phrase(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def answer():
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
            message = error_of(resolve_images, [url], {}, limits=LOCAL)
            thread.join()
        assert message.startswith(f"{url}: the server answers 404.")

    def test_a_page_instead_of_an_image(self, server):
        server.answer("/x.png", b"<html>", kind="text/html; charset=utf-8")
        message = error_of(resolve_images, [f"{server.url}/x.png"], {}, limits=LOCAL)
        assert f"{server.url}/x.png is text/html, not an image. Give the address" in message

    def test_a_lie_about_the_content_type(self, server):
        server.answer("/x.png", b"<html>", kind="image/png")
        message = error_of(resolve_images, [f"{server.url}/x.png"], {}, limits=LOCAL)
        assert "is a web page." in message

    @pytest.mark.parametrize("length", ["given", None])
    def test_too_large(self, server, length):
        server.answer("/x.png", png() + bytes(2000), length=length)
        limits = Limits(allow_private=True, download_bytes=1000)
        message = error_of(resolve_images, [f"{server.url}/x.png"], {}, limits=limits)
        assert "x.png is larger than 0.001 MB." in message

    def test_an_endless_body_is_cut_off(self, server):
        server.answer("/x.png", server.endless, length=None)
        limits = Limits(allow_private=True, download_bytes=1_000_000)
        message = error_of(resolve_images, [f"{server.url}/x.png"], {}, limits=limits)
        assert "x.png is larger than 1 MB." in message

    def test_a_connection_that_ends_early(self, server):
        server.answer("/x.png", png(), length="too long")
        message = error_of(resolve_images, [f"{server.url}/x.png"], {}, limits=LOCAL)
        assert "x.png: the connection ended after" in message

    def test_silence(self, server):
        server.answer("/x.png", server.silence)
        limits = Limits(allow_private=True, download_seconds=0.2)
        message = error_of(resolve_images, [f"{server.url}/x.png"], {}, limits=limits)
        assert "x.png: it did not come within 0.2 s." in message

    def test_a_trickle(self, server):
        server.answer("/x.png", server.trickle, length=None)
        limits = Limits(allow_private=True, download_seconds=0.3)
        message = error_of(resolve_images, [f"{server.url}/x.png"], {}, limits=limits)
        assert "x.png: it did not come within 0.3 s." in message

    def test_nobody_listens(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        message = error_of(resolve_images, [f"http://127.0.0.1:{port}/x.png"], {}, limits=LOCAL)
        assert "x.png: its host refuses the connection. Check the address" in message

    @pytest.mark.parametrize("limits", [LOCAL, Limits()])
    def test_an_unknown_host_or_no_network(self, limits):
        message = error_of(resolve_images, ["https://images.invalid/x.png"], {}, limits=limits)
        assert message == (
            "https://images.invalid/x.png: its host is not known, or there is no network. "
            "Check the address and the network, or download the image and give its path."
        )

    def test_a_host_that_does_not_speak_http(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=speak_nonsense, args=(listener,), daemon=True).start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
            assert "it cannot be fetched: RemoteProtocolError" in error_of(
                resolve_images, [url], {}, limits=LOCAL
            )

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("ftp://host/x.png", "only http and https are fetched, not ftp."),
            ("s3://bucket/x.png", "only http and https are fetched, not s3."),
            ("file:///a/b%20c.png", "fetched, not file. Give its path: /a/b c.png"),
            ("http:///x.png", "names no host."),
            ("http://host:port/x.png", "it cannot be fetched"),
            ("http://[::1/x.png", "it cannot be fetched: InvalidURL: Invalid port"),
            ("http://a..b/x.png", "it cannot be fetched"),
            ("https://me:secret@host/x.png", "https://...@host: a password in a URL is not sent."),
        ],
    )
    def test_odd_urls(self, url, said):
        message = error_of(resolve_images, [url], {})
        assert said in message
        assert "secret" not in message

    def test_a_long_url_is_shortened_in_messages(self):
        message = error_of(resolve_images, [f"s3://bucket/{'x' * 500}.png"], {})
        assert len(message) < 300


class TestPrivateAddresses:
    def test_they_are_refused(self, server):
        server.answer("/cat.png", png())
        message = error_of(resolve_images, [f"{server.url}/cat.png"], {})
        assert message == (
            "127.0.0.1 is an address of this computer or a private network. "
            "Such URLs are not fetched; save the image and give its path."
        )
        assert server.seen == []

    @pytest.mark.parametrize(
        "host", ["localhost", "127.1", "0x7f000001", "2130706433", "%6cocalhost", "[::ffff:7f00:1]"]
    )
    def test_by_any_name(self, server, host):
        message = error_of(resolve_images, [f"http://{host}:{server.port}/cat.png"], {})
        assert "an address of this computer or a private network" in message
        assert server.seen == []

    def test_a_host_of_two_addresses_one_of_which_does_not_answer(self, server, monkeypatch):
        def two(host, port, *_, **__):
            found = ("127.0.0.2", "127.0.0.1") if host == "images.example" else (host,)
            return [(2, 1, 6, "", (address, port)) for address in found]

        monkeypatch.setattr(public, "is_public", lambda _: True)
        monkeypatch.setattr(public.socket, "getaddrinfo", two)
        server.answer("/cat.png", png(GREEN))
        (photo,) = resolve_images([f"http://images.example:{server.port}/cat.png"], {})
        assert colours(photo) == [GREEN]

    def test_with_tls(self, server):
        message = error_of(resolve_images, [f"https://127.0.0.1:{server.port}/cat.png"], {})
        assert "an address of this computer or a private network" in message

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("8.8.8.8", True),
            ("2606:4700::1111", True),
            ("64:ff9b::808:808", True),
            ("10.0.0.1", False),
            ("172.16.0.1", False),
            ("192.168.1.1", False),
            ("127.0.0.1", False),
            ("0.0.0.0", False),
            ("100.64.0.1", False),
            ("169.254.169.254", False),
            ("224.0.0.1", False),
            ("255.255.255.255", False),
            ("::1", False),
            ("::", False),
            ("fe80::1%eth0", False),
            ("fc00::1", False),
            ("fec0::1", False),
            ("ff02::1", False),
            ("::ffff:10.0.0.1", False),
            ("2002:7f00:1::", False),
            ("64:ff9b::7f00:1", False),
        ],
    )
    def test_which_addresses_are_public(self, address, expected):
        assert public.is_public(address) is expected

    def test_a_redirect_to_one_is_refused(self, server, monkeypatch):
        # The server stands in for the world outside, as a proxy; what it redirects to does not
        # go through the proxy.
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        server.redirect("http://images.example/a", f"{server.url}/cat.png")
        server.answer("/cat.png", png())
        message = error_of(resolve_images, ["http://images.example/a"], {})
        assert "127.0.0.1 is an address of this computer" in message
        assert server.seen == ["http://images.example/a"]
        # It is the refusal that stops it: allowed, the same redirect gives the image.
        (photo,) = resolve_images(["http://images.example/a"], {}, limits=LOCAL)
        assert colours(photo) == [RED]

    def test_a_proxy_may_be_private_but_not_what_is_asked_of_it(self, server, monkeypatch):
        monkeypatch.setenv("http_proxy", server.url)
        server.answer("http://images.example/cat.png", png(GREEN))
        (photo,) = resolve_images(["http://images.example/cat.png"], {})
        assert colours(photo) == [GREEN]
        for host in ("127.0.0.1", "localhost", "app.localhost", "[::1]", "169.254.169.254"):
            message = error_of(resolve_images, [f"http://{host}/cat.png"], {})
            assert "an address of this computer or a private network" in message
        assert server.seen == ["http://images.example/cat.png"]

    def test_a_tunnel_through_a_proxy(self, server, monkeypatch):
        monkeypatch.setenv("https_proxy", server.url)
        message = error_of(resolve_images, ["https://images.example/cat.png"], {})
        assert "it cannot be fetched: ProxyError: 501" in message


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
class TestTls:
    @pytest.fixture
    def secure(self, server, tmp_path):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-keyout", "key.pem", "-out", "certificate.pem", "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=DNS:localhost"),
            ],
            check=True,
            capture_output=True,
            cwd=tmp_path,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
        server.secure(context)
        server.answer("/cat.png", png(GREEN))
        return f"https://localhost:{server.port}/cat.png"

    @pytest.fixture(params=["allowed", "taken for public"])
    def limits(self, request, monkeypatch):
        # The connections to public and to allowed addresses are two pieces of code.
        if request.param == "allowed":
            return LOCAL
        monkeypatch.setattr(public, "is_public", lambda _: True)
        return Limits()

    def test_an_untrusted_certificate(self, secure, limits):
        message = error_of(resolve_images, [secure], {}, limits=limits)
        assert "its certificate is not trusted: self-signed certificate." in message

    def test_a_trusted_certificate(self, secure, limits, tmp_path, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert colours(resolve_images([secure], {}, limits=limits)[0]) == [GREEN]

    def test_a_certificate_for_another_name(self, secure, limits, tmp_path, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        url = secure.replace("localhost", "127.0.0.1")
        message = error_of(resolve_images, [url], {}, limits=limits)
        assert "its certificate is not trusted: IP address mismatch" in message


@pytest.fixture
def server():
    server = Server()
    try:
        yield server
    finally:
        server.close()


def speak_nonsense(listener):
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"220 hello, this is mail\r\n")
