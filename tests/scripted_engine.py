"""An engine that answers each prompt by a function, at once: for runs of many rows."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable

from glm4v_magic.core.conversation import Generation, Request, Usage
from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.events import EngineEvent, Failed, Finished, Text
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.model import EngineInfo


class ScriptedEngine:
    """An engine without a model; see `engines.Engine`.

    Args:
        said: what is answered to a prompt; a `Glm4vError` that it raises fails the row.
        tells: whether it tells an answer as `Text`, or only when it is finished, which is quicker.
    """

    batch_size = 16

    def __init__(self, said: Callable[[str], str] = str.upper, *, tells: bool = True) -> None:
        self.said = said
        self._tells = tells
        self.asked = 0
        self.info = EngineInfo("scripted", "", None, None, None, None, None)

    def require_room(self, request: Request) -> int | None:
        return None

    def seen(self, request: Request) -> tuple[SeenImage, ...]:
        return ()

    def stream(
        self,
        requests: Iterable[Request | None],
        at_once: int | None = None,
        withdrawn: Container[int] = (),
    ) -> Generator[EngineEvent, None, None]:
        for number, request in enumerate(requests):
            self.asked += 1
            try:
                text = self.said(request.conversation.messages[-1].text)
            except Glm4vError as error:
                yield Failed(error, number)
                continue
            if self._tells:
                yield Text(text, number)
            yield Finished(Generation(text, Usage(7, None, 3), "stop", 5), number)

    def close(self) -> None: ...
