"""Progress and report of `from_pretrained`: its bar as `LoadProgress`, its report as text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

from glm4v_magic.core.model import LoadProgress

__all__ = ["collect_report", "report_progress"]


@contextmanager
def report_progress(
    sizes: Mapping[str, int],
    arrived: Callable[[LoadProgress], None] | None,
    device_of: Callable[[str], str] = lambda name: "",
) -> Iterator[None]:
    """Make `from_pretrained` report each weight as it is loaded, instead of drawing a bar.

    Args:
        sizes: bytes of each weight, by the name of the parameter it is loaded into.
        arrived: called after each weight; ``None`` draws nothing at all.
        device_of: where a weight goes, by the same names.
    """
    total = sum(sizes.values())

    class Bar:
        """The part of tqdm's interface that a loop over weights uses."""

        def __init__(self, items: Iterable[Any] = ()) -> None:
            self.items = items

        def __iter__(self) -> Iterator[Any]:
            done = 0
            for item in self.items:
                yield item
                name = item[0] if isinstance(item, tuple) else ""
                done += sizes.get(name, 0)
                if arrived is not None and name in sizes:
                    arrived(LoadProgress(done, total, name, device_of(name)))

        def update(self, n: float = 1) -> None:
            """Does nothing: only loops over weights are reported."""

        def close(self) -> None:
            """Does nothing."""

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *exception: object) -> None:
            self.close()

    def make_bar(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bar:
        return Bar(args[0] if args else kwargs.get("iterable", ()))

    previous = transformers_logging.set_tqdm_hook(make_bar)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


@contextmanager
def collect_report() -> Iterator[list[str]]:
    """Yield a list that receives the report of `from_pretrained`, which is not logged.

    Only the report has an exception that occurred while a weight was converted: transformers
    notes it there, goes on, and raises one of its own at the end. The message that offloaded
    weights are on meta is dropped as well: the plan tells how much is offloaded, and its cost.
    """
    reports: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_report = "LOAD REPORT" in message
        if is_report:
            reports.append(message)
        return not is_report

    def is_news(record: logging.LogRecord) -> bool:
        return "parameters are on the meta device" not in record.getMessage()

    filters = {"transformers.modeling_utils": keep, "accelerate.big_modeling": is_news}
    for name, drop in filters.items():
        logging.getLogger(name).addFilter(drop)
    try:
        yield reports
    finally:
        for name, drop in filters.items():
            logging.getLogger(name).removeFilter(drop)
