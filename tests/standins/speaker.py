"""An engine that says what a test wants it to say."""

from __future__ import annotations

from glm4v_magic.core.conversation import Generation, Usage
from glm4v_magic.core.errors import GenerationInterrupted
from glm4v_magic.core.events import Finished, Text
from glm4v_magic.core.model import EngineInfo


class Speaker:
    """Answers each request with the next of `answers`: a text, and why it ended."""

    info = EngineInfo("speaker", "", None, None, None, None, None)

    def __init__(self, *answers, batch_size=1):
        self.answers = list(answers)
        self.batch_size = batch_size
        self.requests = []
        self.closed = 0

    def require_room(self, request):
        return None

    def seen(self, request):
        return ()

    def stream(self, requests, at_once=None, withdrawn=()):
        said, stopped = {}, False
        try:
            for row, request in enumerate(requests):
                self.requests.append(request)
                text, reason = self.answers.pop(0)
                for word in text.split(" "):
                    said[row] = said.get(row, "") + word + " "
                    yield Text(f"{word} ", row)
                said.pop(row)
                yield Finished(Generation(text, Usage(1, 0, 1), reason), row)
        except KeyboardInterrupt:
            stopped = True
        finally:
            self.closed += 1
        if stopped:
            raise GenerationInterrupted(
                {
                    row: Generation(text.strip(), Usage(1, 0, 1), "interrupted")
                    for row, text in said.items()
                }
            )

    def close(self):
        pass
