"""Reading a stream with a function for each kind of event."""

from __future__ import annotations

from glm4v_magic.core.events import (
    Correcting,
    Loading,
    RowDone,
    Started,
    Text,
    Thinking,
)


def follow(
    stream, *, loading=None, started=None, text=None, thinking=None, correcting=None, row=None
):
    """Hand what each event holds to the function for its kind; return the answer or the rows."""
    given = {
        Loading: (loading, lambda event: (event.progress,)),
        Started: (started, lambda event: (event.info, event.media)),
        Text: (text, lambda event: (event.text,)),
        Thinking: (thinking, lambda event: (event.text,)),
        Correcting: (correcting, lambda event: (event.fault,)),
        RowDone: (row, lambda event: (event.progress,)),
    }

    def show(event):
        function, arguments = given.get(type(event), (None, None))
        if function is not None:
            function(*arguments(event))

    return read(stream, show)


def read(stream, show):
    """Hand each event to a function; return the answer or the rows."""
    with stream:
        for event in stream:
            show(event)
    return stream.result


def returned(generator):
    """Read a generator to its end; return what it returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value
