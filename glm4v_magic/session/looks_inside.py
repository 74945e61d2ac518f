"""`LooksInside`: what the model in use computes while it answers, looked at and changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.call import Call, terms_of
from glm4v_magic.core.python_options import accepts
from glm4v_magic.session.questions import Questions

if TYPE_CHECKING:
    from glm4v_magic.inspect.inspection import Inspection
    from glm4v_magic.inspect.tracing import Trace

__all__ = ["LooksInside"]


class LooksInside(Questions):
    """Looks into the model that gave an answer, or gives one now."""

    def inspect(self, chat: str | None = None) -> Inspection:
        """Return a look into the model that gave the latest answer of a chat.

        Args:
            chat: its name; by default that of the latest answer.

        Raises:
            ConversationError: if there is none, or it was interrupted or imported.
            EngineError: if the model is on a server, in other processes, or is no longer loaded.
            BusyError: if another call is running.
        """
        answer = self._chats.answer(chat)
        from glm4v_magic.inspect.entry import inspected

        return inspected(answer)

    @accepts("trace")
    def trace(
        self,
        text: str,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        **options: Any,
    ) -> Trace:
        """Return nnsight's context for a question: what the model computes, to read and to change.

        The answer is computed when the block ends, by the loaded model, wherever it is, and goes
        into no chat::

            with session.trace("What colour is the circle?", "shapes.png") as trace:
                state = trace.layers[2].output.save()
            print(trace.answer.text, state.shape)

        Args:
            text: the question.
            images: as in `stream`.
            video: likewise.
            before_video: likewise.
            options: where the question goes, how tokens are chosen.

        Raises:
            OptionError: if nnsight is not installed, or an option makes no sense.
            InputError: as `stream`.
            EngineError: if no model is loaded, or it is on a server or in other processes.
            BusyError: if another call is running.
        """
        from glm4v_magic.calls.tracing import traced

        message = self._question(text, images, video, before_video, options)
        _, before = self._before(options)
        lend = self._lending(self._engine)
        return traced(Call("", before.add(message), terms_of(options)), lend)
