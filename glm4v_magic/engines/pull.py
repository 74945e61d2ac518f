"""Turn a function with a callback into a generator.

transformers reports each weight to a callback in the middle of `from_pretrained`. A generator
cannot yield from there, and a thread would go on loading after an interrupt. A greenlet can do
both: the function waits inside its callback, in the same thread, until the next event is asked for,
and an interrupt that is thrown in comes out of that callback.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from greenlet import greenlet

__all__ = ["pulled"]

News = TypeVar("News")
Result = TypeVar("Result")


def pulled(work: Callable[[Callable[[News], None]], Result]) -> Generator[News, None, Result]:
    """Yield what `work` tells the callback that it is given; return what it returns.

    Args:
        work: called with the callback. It must be read in the thread in which it began.

    Raises:
        BaseException: whatever `work` raises. What is thrown into this generator is raised in
            `work`, out of its callback.
    """
    reader = greenlet.getcurrent()

    def tell(news: News) -> None:
        reader.switch(news)

    worker = greenlet(lambda: work(tell))
    value: Any = worker.switch()
    while not worker.dead:
        try:
            yield value
        except BaseException as error:
            reader = greenlet.getcurrent()
            value = worker.throw(error)
        else:
            reader = greenlet.getcurrent()
            value = worker.switch()
    return value
