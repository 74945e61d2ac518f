"""Counts and times for Prometheus: ``GET /metrics``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, TypeAlias

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from glm4v_magic.core.conversation import Generation
from glm4v_magic.core.errors import BusyError, CheckpointError, InputError
from glm4v_magic.server.worker import Worker

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "Outcome", "Watch"]

Outcome: TypeAlias = Literal["answered", "refused", "busy", "failed", "left"]
"""What became of a request: `refused` is the client's fault, `left` means that it went away."""

_PREFIX = "glm4v_magic"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """Metrics of one server.

    Args:
        worker: worker whose requests are counted.
    """

    def __init__(self, worker: Worker) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"{_PREFIX}_{name}", what, labels, registry=registry)

        def seconds(name: str, what: str) -> Histogram:
            full = f"{_PREFIX}_{name}_seconds"
            return Histogram(full, what, buckets=_SECONDS, registry=registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"{_PREFIX}_{name}", what, registry=registry)

        gauge("requests_running", "Requests in the batch").set_function(lambda: worker.num_running)
        gauge("requests_waiting", "Requests that wait for a place in the batch").set_function(
            lambda: worker.num_waiting
        )
        gauge("requests_at_once", "Most requests in the batch").set(worker.at_once)
        self.requests = counter("requests", "Requests for answers that are over", "outcome")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, images included")
        self.image_tokens = counter("image_tokens", "Tokens of prompts that stand for images")
        self.answer_tokens = counter("answer_tokens", "Generated tokens, thinking included")
        self.first_token = seconds("first_token", "Time from a request to its first token")
        self.whole_answer = seconds("answer", "Time from a request to the end of its answer")

    def request(self) -> Watch:
        """Return a watch for a request that begins now."""
        return Watch(self)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class Watch:
    """Counts one request. Use it in a ``with`` statement.

    Args:
        metrics: metrics to add it to.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = time.perf_counter()
        self._outcome: Outcome = "left"
        self._has_begun = False

    def began(self) -> None:
        """Note that the first piece of the answer has come; later ones change nothing."""
        if not self._has_begun:
            self._has_begun = True
            self._metrics.first_token.observe(time.perf_counter() - self._start)

    def answered(self, generations: Sequence[Generation]) -> None:
        """Note that all answers are complete."""
        self._outcome = "answered"
        elapsed, usages = time.perf_counter() - self._start, [each.usage for each in generations]
        metrics = self._metrics
        metrics.whole_answer.observe(elapsed)
        if not self._has_begun:  # sent in one piece
            longest = max(each.decode_seconds for each in usages)
            metrics.first_token.observe(max(elapsed - longest, 0.0))
        metrics.prompt_tokens.inc(usages[0].prompt_tokens or 0)
        metrics.image_tokens.inc(usages[0].visual_tokens or 0)
        metrics.answer_tokens.inc(sum(each.new_tokens or 0 for each in usages))

    def ended(self, error: BaseException) -> None:
        """Note that an error has ended the request."""
        self._outcome = _outcome_of(error)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.ended(error)
        self._metrics.requests.labels(self._outcome).inc()


def _outcome_of(error: BaseException) -> Outcome:
    if isinstance(error, BusyError):
        return "busy"
    if isinstance(error, InputError | CheckpointError | HTTPException):
        return "refused"
    # asyncio.CancelledError is not an Exception: the task was cancelled with its connection.
    is_gone = isinstance(error, ClientDisconnect) or not isinstance(error, Exception)
    return "left" if is_gone else "failed"
