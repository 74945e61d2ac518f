"""A server of images, and of what pretends to be one."""

from __future__ import annotations

import contextlib
import http.server
import threading


class Server:
    """A web server on this computer that answers what a test tells it to."""

    def __init__(self):
        self.answers = {}
        self.seen = []
        self.ending = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def answer(self, path, body, *, status=200, kind="image/png", length="given", **headers):
        if kind is not None:
            headers["Content-Type"] = kind
        if length is not None and isinstance(body, bytes):
            headers["Content-Length"] = str(len(body) + (length == "too long"))
        self.answers[path] = (status, headers, body)

    def redirect(self, path, target, body=b""):
        self.answer(path, body, status=302, length=None, Location=target)

    def endless(self, write):
        while not self.ending.is_set():
            write(bytes(1 << 16))

    def silence(self, write):
        self.ending.wait()

    def trickle(self, write):
        while not self.ending.wait(0.02):
            write(b"x")

    def secure(self, context):
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def close(self):
        self.ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.seen.append(self.path)
                missing = (404, {"Content-Type": "text/html"}, b"")
                status, headers, body = server.answers.get(self.path, missing)
                with contextlib.suppress(OSError):  # the client may have had enough
                    if body == server.silence:
                        server.ending.wait()
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if callable(body):
                        body(self.wfile.write)
                    else:
                        self.wfile.write(body)

            def log_message(self, *_):
                pass

        return Handler
