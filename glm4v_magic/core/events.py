"""Events of an answer: the one stream that everything above the engines consumes.

The order for a question: ``Starting``*, ``Loading``*, ``Started``, (``Thinking`` | ``Text`` |
``Reclassified``)*, then, if the answer must be corrected, ``Correcting`` and more of these three,
and ``Done``. A prompt mapped over many items yields the same events, each with its row, a
``RowDone`` after each row, and ``MapDone`` at the end. Of a comparison, ``ColumnBegun`` comes
before those of each model or setting, and ``ColumnDone`` in place of ``Done``. So do requests of
other programs, which belong to no chat; the last event of each is ``Finished`` or ``Failed``.
While a server or a replica is silent, ``Waiting`` comes between any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from glm4v_magic.core.conversation import Answer, Generation, Message
from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.model import EngineInfo, LoadProgress
from glm4v_magic.core.rows import AnsweredRow, Progress
from glm4v_magic.core.tokens import Token
from glm4v_magic.core.video import Media

__all__ = [
    "ColumnBegun",
    "ColumnDone",
    "Correcting",
    "Done",
    "EngineEvent",
    "Event",
    "Failed",
    "Finished",
    "Loading",
    "MapDone",
    "Piece",
    "Reclassified",
    "RowDone",
    "RowEvent",
    "Started",
    "Starting",
    "Text",
    "Thinking",
    "Waiting",
]


@dataclass(frozen=True, slots=True)
class Starting:
    """A library is being imported, which takes seconds; comes repeatedly until that is done.

    Attributes:
        library: its name, such as ``PyTorch``.
        goes_on: whether an interrupt leaves it to go on in the background, as imports do; processes
            that are being started are ended.
    """

    library: str
    goes_on: bool = True


@dataclass(frozen=True, slots=True)
class Loading:
    """Weights are being loaded."""

    progress: LoadProgress


@dataclass(frozen=True, slots=True)
class Started:
    """Everything is checked and loaded; the model starts to answer.

    Attributes:
        info: facts about the model.
        media: images and videos of the prompt, in order; of a map, those that every row shares.
        partial: the incomplete answer to continue; ``None`` for a new one.
        seen: what the model sees of each image; empty for a map.
    """

    info: EngineInfo
    media: tuple[Media, ...] = ()
    partial: Message | None = None
    seen: tuple[SeenImage, ...] = ()


@dataclass(frozen=True, slots=True)
class Thinking:
    """The next piece of a row's thinking. Never empty, and never cut inside a character."""

    text: str
    row: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of a row's answer. Never empty, and never cut inside a character.

    Attributes:
        text: the piece.
        row: row of the answer.
        tokens: tokens of the piece, with their places in the whole text so far. Empty unless
            log-probabilities were asked of a model in this process that does not think.
    """

    text: str
    row: int = 0
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Reclassified:
    """All `Text` of the row so far was thinking; the answer follows.

    Some servers leave only the closing tag of the thinking in the text.
    """

    row: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing has come for a while; comes repeatedly until something does.

    Whoever reads a stream can stop it here as at any other event.

    Attributes:
        on: what is waited for, such as the address of a server.
        seconds: seconds since something came.
    """

    on: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A request is answered; `Session.stream` turns this into an `Answer`.

    Attributes:
        generation: the whole text, with the tags around boxes, and its usage.
        row: index of the request.
    """

    generation: Generation
    row: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """A request cannot be answered; the others are not affected.

    Attributes:
        error: what is wrong with it.
        row: index of the request.
    """

    error: Glm4vError
    row: int = 0


@dataclass(frozen=True, slots=True)
class Correcting:
    """The answer does not follow its format; the model is asked to correct it.

    Attributes:
        fault: what is wrong with the answer.
        row: row of the answer.
    """

    fault: str
    row: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete and has been added to its chat."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class RowDone:
    """A row is answered or has failed.

    Attributes:
        row: row with its answer or its error.
        progress: progress of the whole map, this row included.
    """

    row: AnsweredRow
    progress: Progress


@dataclass(frozen=True, slots=True)
class MapDone:
    """All rows are answered or have failed; `result` is what `Session.map` returns."""

    result: Any


@dataclass(frozen=True, slots=True)
class ColumnBegun:
    """A model or setting of a comparison is asked next; its events follow.

    Attributes:
        column: its number, from 0, which is the `row` of its pieces.
        name: model and settings.
        model: name of the model; empty for the one in use.
    """

    column: int
    name: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class ColumnDone:
    """A model or setting of a comparison has answered or failed.

    Attributes:
        column: its number.
        result: the comparison so far; after the last one what `Session.compare` returns.
    """

    column: int
    result: Any


Piece: TypeAlias = Thinking | Text | Reclassified
"""What a model says."""

RowEvent: TypeAlias = Piece | Finished | Failed
"""What is told of one row."""

EngineEvent: TypeAlias = RowEvent | Waiting
"""What `engines.Engine.stream` yields."""

Event: TypeAlias = (
    Starting
    | Loading
    | Started
    | EngineEvent
    | Correcting
    | Done
    | RowDone
    | MapDone
    | ColumnBegun
    | ColumnDone
)
"""What streams of a `Session` yield."""
