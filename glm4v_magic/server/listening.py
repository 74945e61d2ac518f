"""The socket, and uvicorn, which speaks HTTP on it."""

from __future__ import annotations

import asyncio
import copy
import errno
import logging
import math
import os
import socket
from importlib.metadata import version
from types import TracebackType
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from glm4v_magic.core.errors import OptionError, reason
from glm4v_magic.core.wording import printable
from glm4v_magic.server.app import application
from glm4v_magic.server.deadlines import IDLE_SECONDS, Impatient
from glm4v_magic.server.worker import Worker
from glm4v_magic.session.session import Session

__all__ = ["STOP_SECONDS", "Server"]

_log = logging.getLogger("uvicorn.error")

_BACKLOG = 512  # connections that wait until they are accepted
_LONGEST_HOST = 80  # characters of it in a message
_ACCEPTED = 32  # of them in a turn of the loop; one that is cut stays open for some turns more
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_QUIET_SECONDS = 60.0  # after a line that connections cannot be accepted
STOP_SECONDS = 3  # that a client has to read the last of its answer when the server stops


class Server:
    """One session at one address. Use it in a ``with`` statement.

    Args:
        host: name or address to listen on.
        port: 0 for any free one.

    Raises:
        OptionError: if that is not possible.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        # Bound now, so that a port in use is known before a model is loaded; open after that.
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if os.name == "posix":  # elsewhere it means that two servers may share a port
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except (OSError, OverflowError, TypeError, UnicodeError) as error:  # of what is no name
            self._socket.close()
            raise _unusable(host, port, error) from None
        self.port: int = self._socket.getsockname()[1]
        self._worker: Worker | None = None
        self._uvicorn: _Uvicorn | None = None

    @property
    def url(self) -> str:
        """Address of the API."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}/v1"

    def open(self, session: Session, model: str, at_once: int | None = None) -> None:
        """Begin to listen, and print the address; `serve` then answers.

        Args:
            session: session that answers, with a model loaded.
            model: its name for clients.
            at_once: maximum number of requests that are answered together; see `Worker`.

        Raises:
            OptionError: if another program has come to listen on the port.
        """
        info = session.status().info
        assert info is not None  # it is loaded
        self._worker = Worker(session, at_once)
        config = uvicorn.Config(
            application(self._worker, info, model, self._host),
            http=Impatient,
            ws="none",
            lifespan="off",
            loop="asyncio",
            backlog=_ACCEPTED,
            timeout_keep_alive=IDLE_SECONDS,
            proxy_headers=False,
            server_header=False,
            headers=[("Server", f"glm4v_magic/{version('glm4v_magic')}")],
            timeout_graceful_shutdown=STOP_SECONDS,
            log_config=_logging(),
        )
        self._uvicorn = _Uvicorn(config, self._worker)
        try:
            self._socket.listen(_BACKLOG)
        except OSError as error:  # another that was bound to the port, too, listened first
            raise _unusable(self._host, self.port, error) from None
        # print, and not a log: scripts wait for this line
        print(f"{model} is served at {self.url}. Ctrl-C ends it.", flush=True)  # noqa: T201

    def serve(self) -> None:
        """Answer until `stop` is called or, in the main thread, until a signal arrives.

        Replicas that are all lost end it, too: whoever started it may start it again.

        Raises:
            KeyboardInterrupt: if the signal was Ctrl-C; the answer in progress has ended.
        """
        assert self._uvicorn is not None  # it is open
        self._uvicorn.run([self._socket])

    @property
    def is_lost(self) -> bool:
        """Whether all replicas of the model are lost; `serve` ends then."""
        return self._worker is not None and self._worker.is_lost

    def stop(self) -> None:
        """End `serve`; may be called from any thread."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()
        if self._worker is not None:
            self._worker.stop()
            self._worker.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn, which waits for open answers before it ends: they are ended first."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker
        self._exhausted_at = -math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._unexpected)
        await super().startup(sockets)
        for each in sockets or ():  # asyncio has one number for both, and has set it again
            each.listen(_BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        """Tell whether to end; called by uvicorn ten times a second."""
        return await super().on_tick(counter) or self._worker.is_lost

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error of the loop; what asyncio says in a traceback for each accept, once."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _EXHAUSTED and "socket" in context):
            loop.default_exception_handler(context)
        elif loop.time() - self._exhausted_at >= _QUIET_SECONDS:
            self._exhausted_at = loop.time()
            _log.warning(
                "No more connections can be accepted: %s. Those that wait are tried again each "
                "second; a higher limit (ulimit -n) helps.",
                os.strerror(error.errno),
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.stop()
        await super().shutdown(sockets)


def _unusable(host: str, port: int, error: Exception) -> OptionError:
    is_no_name = isinstance(error, socket.gaierror | TypeError | UnicodeError)
    if is_no_name or getattr(error, "errno", 0) == errno.EADDRNOTAVAIL:
        shown = " ".join(printable(host).encode("utf-8", "replace").decode().split())
        shown = shown if len(shown) <= _LONGEST_HOST else f"{shown[:_LONGEST_HOST]}..."
        return OptionError(
            f"{shown} is not an address of this machine; 0.0.0.0 stands for all of them."
        )
    return OptionError(
        f"Port {port} of {host} cannot be used: {reason(error)}.", code="port_not_usable"
    )


def _logging() -> dict[str, Any]:
    """Return uvicorn's own configuration: a line for each request, but on stderr like the rest."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config["loggers"]["uvicorn.error"]["level"] = "WARNING"
    return config
