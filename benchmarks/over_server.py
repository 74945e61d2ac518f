"""How much sooner a map over a server is done with many requests in flight than one by one.

    python benchmarks/over_server.py [--rows N] [--seconds S] [--refuse N] [--batch-size N]

The server is a process of its own that takes a time for each answer, however many it is asked for
at once, and refuses every N-th request once with the status 429: the row is asked again. The same
rows are asked one by one and many at once, in turn; none may be lost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import glm4v_magic


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=0.5, help="time that an answer takes")
    parser.add_argument("--refuse", type=int, default=7, help="every such request is refused once")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.seconds, options.refuse)
        return
    words = [sys.executable, __file__, "--serve", "--seconds", str(options.seconds)]
    words += ["--refuse", str(options.refuse)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            measure(server.stdout.readline().strip(), options.rows, options.batch_size)
        finally:
            server.terminate()


def measure(url: str, rows: int, batch_size: int) -> None:
    """Print the times of both ways, and their ratio."""
    session = glm4v_magic.load(url)
    session.map("What is {{item}}?", [0])  # the first one imports
    one = timed(session, rows, 1)
    many = timed(session, rows, batch_size)
    print(f"{rows} rows one by one: {one:.2f} s; {batch_size} at once: {many:.2f} s")
    print(f"ratio {one / many:.2f}")


def timed(session: glm4v_magic.Session, rows: int, batch_size: int) -> float:
    """Ask all rows; return the seconds."""
    start = time.perf_counter()
    # Rows that have been answered are not asked again, so the question is another one.
    question = f"With {batch_size} at once, what is {{{{item}}}}?"
    answers = session.map(question, [*range(rows)], batch_size=batch_size)
    seconds = time.perf_counter() - start
    lost = [str(each.error) for each in answers if each.error is not None]
    assert not lost, f"{len(lost)} rows are lost, the first one: {lost[0]}"
    texts = [question.replace("{{item}}", str(row)) for row in range(rows)]
    assert [each.text for each in answers] == texts
    return seconds


def serve(seconds: float, refuse: int) -> None:
    """Answer at a free port of this computer, whose address is printed, until the process ends."""
    lock = threading.Lock()
    count = 0

    class Handler(BaseHTTPRequestHandler):
        """Says the question again."""

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name there
            """Log nothing."""

        def do_GET(self) -> None:
            """List the model."""
            self._send(200, {"data": [{"id": "echo"}]})

        def do_POST(self) -> None:
            """Answer, or refuse."""
            nonlocal count
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                count += 1
                is_refused = count % refuse == 0
            if is_refused:
                self._send(429, {"error": {"message": "Slow down."}})
                return
            time.sleep(seconds)
            message = {"role": "assistant", "content": body["messages"][-1]["content"]}
            self._send(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

        def _send(self, status: int, content: object) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
