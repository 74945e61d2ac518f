"""What happens while a question is answered: the stream that everything above the engines reads.

A question goes through ``Loading``* ``Started`` (``Thinking`` | ``Text`` | ``Reclassified``)*,
once more of the last three behind a ``Correcting``, and ends with ``Done``. A prompt mapped over
many items goes through the same, with the row that each piece belongs to, a ``RowDone`` behind
each row, and ``MapDone`` at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from glm4v_magic.core.conversation import Answer, Generation, Message
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.model import EngineInfo, LoadProgress
from glm4v_magic.core.rows import AnsweredRow, Progress

__all__ = [
    "Correcting",
    "Done",
    "EngineEvent",
    "Event",
    "Finished",
    "Loading",
    "MapDone",
    "Piece",
    "Reclassified",
    "RowDone",
    "Started",
    "Text",
    "Thinking",
]


@dataclass(frozen=True, slots=True)
class Loading:
    """Weights are arriving."""

    progress: LoadProgress


@dataclass(frozen=True, slots=True)
class Started:
    """Everything is checked and loaded, and the model begins.

    Attributes:
        info: of the model.
        images: as they are sent; of a map, those that go with every row.
        partial: the unfinished answer that is carried on; ``None`` for a fresh one.
    """

    info: EngineInfo
    images: tuple[SourcedImage, ...] = ()
    partial: Message | None = None


@dataclass(frozen=True, slots=True)
class Thinking:
    """The next piece of a row's thinking. Never empty, and never cut inside a character."""

    text: str
    row: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of a row's answer. Never empty, and never cut inside a character."""

    text: str
    row: int = 0


@dataclass(frozen=True, slots=True)
class Reclassified:
    """All `Text` of the row so far was thinking; the answer is still to come.

    Some servers leave only the tag that ends the thinking in the text.
    """

    row: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """An engine has answered a request; `Session` makes an answer of it.

    Attributes:
        generation: all of the text, and what it took.
        row: which of the requests.
    """

    generation: Generation
    row: int = 0


@dataclass(frozen=True, slots=True)
class Correcting:
    """The answer is not as asked, and the model is asked once more.

    Attributes:
        fault: what is wrong with it.
        row: whose answer.
    """

    fault: str
    row: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete, and in its chat."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class RowDone:
    """A row has its answer or its error.

    Attributes:
        row: the row.
        progress: how far the map is, this row included.
    """

    row: AnsweredRow
    progress: Progress


@dataclass(frozen=True, slots=True)
class MapDone:
    """Every row has its answer or its error; `result` is what `Session.map` returns."""

    result: Any


Piece: TypeAlias = Thinking | Text | Reclassified
"""What a model says."""

EngineEvent: TypeAlias = Piece | Finished
"""What `engines.Engine.stream` yields."""

Event: TypeAlias = Loading | Started | Piece | Correcting | Done | RowDone | MapDone
"""What `Session.stream` and `Session.stream_map` yield."""
